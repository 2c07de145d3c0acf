"""Plain stacks of convolutions: Conv-2/4/6, the Conv-4 of NTT, and SynFlow's two default networks.

Leaves are ``conv_1, conv_2, ..., dense_1, ...`` with ``kernel`` and ``bias``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import jax

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import Key, fold
from secateur.core.network import Network, Stats
from secateur.core.trees import Params
from secateur.networks.build import build, image_shape, made_once
from secateur.networks.layers import conv, dense, drawn, dropout, flat, max_pool
from secateur.networks.mlp import mlp


def _stack(
    name: str,
    blocks: Sequence[Sequence[int]],
    hidden: Sequence[int],
    *,
    input_shape: tuple[int, int, int],
    outputs: int,
    initialiser: str,
    bias: str,
    padding: str = "SAME",
    pool: bool = True,
    drop_conv: float = 0.0,
    drop_dense: float = 0.0,
) -> Network:
    """Blocks of 3x3 convolutions with ReLU, each ended by max-pooling; dense layers; outputs."""
    lookup("padding", padding, {"SAME": 0, "VALID": 0})
    lost = 0 if padding == "SAME" else 2
    least = 1
    for block in reversed(blocks):
        least = least * (2 if pool else 1) + lost * len(block)
    image_shape(name, input_shape, outputs, least)
    draw = drawn(initialiser, bias)

    height, width, channels = input_shape
    shapes: dict[str, tuple[int, ...]] = {}
    for block in blocks:
        for filters in block:
            shapes[f"conv_{len(shapes) + 1}"] = (3, 3, channels, filters)
            channels, height, width = filters, height - lost, width - lost
        if pool:
            height, width = height // 2, width // 2
    for l, pair in enumerate(pairwise((height * width * channels, *hidden, outputs)), start=1):
        shapes[f"dense_{l}"] = pair

    def init(key: Key) -> tuple[Params, Stats]:
        return {layer: draw(fold(key, layer), shape) for layer, shape in shapes.items()}, {}

    def forward(
        params: Params, stats: Stats, x: jax.Array, key: Key | None
    ) -> tuple[jax.Array, Stats]:
        stream = lambda name: None if key is None else fold(key, "dropout", name)
        layer = 0
        for number, block in enumerate(blocks, start=1):
            for _ in block:
                layer += 1
                x = jax.nn.relu(conv(params[f"conv_{layer}"], x, padding=padding))
            x = max_pool(x, 2) if pool else x
            x = dropout(x, drop_conv, stream(f"block_{number}"))
        x = flat(x)
        for l in range(1, len(hidden) + 1):
            x = jax.nn.relu(dense(params[f"dense_{l}"], x))
            x = dropout(x, drop_dense, stream(f"dense_{l}"))
        return dense(params[f"dense_{len(hidden) + 1}"], x), stats

    return build(name, tuple(input_shape), outputs, init, forward)


@made_once
def conv_net(
    depth: int,
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    outputs: int = 10,
    width: int = 64,
    hidden: int = 256,
    initialiser: str = "glorot_normal",
    bias: str = "zeros",
) -> Network:
    """Conv-2, Conv-4, Conv-6: blocks of two 3x3 convolutions and max-pooling, dense 256, 256.

    Prunable: 4,300,992, 2,425,024 and 2,261,184 weights. Frankle & Carbin 2019, figure 2; the
    table there prints about 1.7 million for Conv-6, which this layout does not give.

    Args:
        depth: 2, 4 or 6 convolutions; ``width`` filters in the first block, doubled in each next.
        hidden: width of the two dense layers.

    Raises:
        SecateurError: for another depth, an unknown initialiser, or too small an image.
    """
    if depth not in (2, 4, 6):
        raise SecateurError(f"Conv networks have 2, 4 or 6 convolutions, not {depth}.")
    blocks = [[width * 2**b] * 2 for b in range(depth // 2)]
    return _stack(
        f"conv-{depth}",
        blocks,
        [hidden, hidden],
        input_shape=input_shape,
        outputs=outputs,
        initialiser=initialiser,
        bias=bias,
    )


@made_once
def ntt_conv_4(
    padding: str = "VALID",
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    outputs: int = 10,
    width: int = 64,
    hidden: int = 512,
    rates: tuple[float, float] = (0.25, 0.5),
    initialiser: str = "glorot_normal",
    bias: str = "small_normal",
) -> Network:
    """64, 64, pool, 128, 128, pool, dense 512, outputs. Neural Tangent Transfer (Liu & Zenke 2020).

    Args:
        padding: ``"VALID"``, what the published code builds (the old default of stax): 1,903,296
            prunable weights. ``"SAME"``: 4,459,200.
        rates: of dropout, after each pooling and after the dense layer; it is active in `train`
            alone, each with a stream of its own below the key.
        bias: N(0, 0.01^2) as in the code.

    Raises:
        SecateurError: for another padding, an unknown initialiser, or too small an image.
    """
    return _stack(
        "ntt-conv-4",
        [[width] * 2, [2 * width] * 2],
        [hidden],
        input_shape=input_shape,
        outputs=outputs,
        initialiser=initialiser,
        bias=bias,
        padding=padding,
        drop_conv=rates[0],
        drop_dense=rates[1],
    )


@made_once
def synflow_conv(
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    outputs: int = 10,
    layers: int = 2,
    width: int = 32,
    initialiser: str = "torch_uniform",
    bias: str = "torch_uniform",
) -> Network:
    """Two 3x3 convolutions of 32 filters, no pooling, and the output layer: 260,384 on MNIST.

    The default ``conv`` of ganguli-lab/Synaptic-Flow (Models/mlp.py), with PyTorch's default draws.

    Raises:
        SecateurError: for an unknown initialiser or an input that is no image.
    """
    return _stack(
        "synflow-conv",
        [[width] * layers],
        [],
        input_shape=input_shape,
        outputs=outputs,
        initialiser=initialiser,
        bias=bias,
        pool=False,
    )


@made_once
def synflow_fc(
    *,
    input_shape: tuple[int, ...] = (28, 28, 1),
    outputs: int = 10,
    layers: int = 6,
    width: int = 100,
    initialiser: str = "torch_uniform",
    bias: str = "torch_uniform",
) -> Network:
    """Six dense layers of width 100: 119,400 prunable weights on MNIST, 348,200 on CIFAR-10.

    The default ``fc`` of ganguli-lab/Synaptic-Flow (Models/mlp.py), with PyTorch's default draws.

    Raises:
        SecateurError: for an unknown initialiser or widths below 1.
    """
    draw = drawn(initialiser, bias)
    plain = mlp(*[width] * (layers - 1), input_shape=tuple(input_shape), outputs=outputs)
    widths = (math.prod(input_shape), *[width] * (layers - 1), outputs)

    def init(key: Key) -> tuple[Params, Stats]:
        names = [f"dense_{l}" for l in range(1, layers + 1)]
        return {n: draw(fold(key, n), s) for n, s in zip(names, pairwise(widths))}, {}

    return replace(plain, name="synflow-fc", init=init)
