"""VGG-11/13/16/19 in the forms of seven repositories: bias, batch norm, head and draws.

Leaves: ``conv_1, bn_1, conv_2, ...``, then ``dense_1, ...`` (and ``bn_dense_1, ...`` in SNIP's).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import Key, fold
from secateur.core.network import Network, Stats
from secateur.core.trees import Params
from secateur.networks.build import Leaves, build, image_shape, made_once
from secateur.networks.layers import (
    batch_norm as norm_layer,
)
from secateur.networks.layers import (
    conv,
    dense,
    dropout,
    flat,
    global_average_pool,
    max_pool,
)

relu = jax.nn.relu
Shape = tuple[int, int, int]

# Convolutions in each of the five stages, of 1, 2, 4, 8 and 8 times the width.
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDENING = (1, 2, 4, 8, 8)


@dataclass(frozen=True)
class Head:
    """What follows the convolutions.

    Attributes:
        pools: max-poolings: 4 leave the last stage to a mean over each map, 5 are flattened.
        hidden: widths of dense layers with ReLU (at width 64), before the output layer.
        drop: rate of dropout behind them.
        normed: whether they have batch norm where the convolutions do.
        input_shape, outputs: usual ones.
    """

    pools: int
    hidden: tuple[int, ...]
    drop: float
    normed: bool
    input_shape: Shape
    outputs: int


HEADS = {
    "average": Head(4, (), 0.0, False, (32, 32, 3), 10),
    "tiny": Head(5, (1024, 1024), 0.5, False, (64, 64, 3), 200),
    "imagenet": Head(5, (4096, 4096), 0.5, False, (224, 224, 3), 1000),
    "snip-d": Head(5, (512, 512), 0.0, True, (32, 32, 3), 10),
    "snip-like": Head(5, (512,), 0.0, True, (32, 32, 3), 10),
}

# Code -> head, bias of convolutions, initialiser of convolutions, of dense layers, dense bias.
CODES: dict[str, tuple[str, str | None, str, str, str]] = {
    "synflow": ("average", "zeros", "kaiming_normal", "kaiming_normal", "zeros"),
    "open-lth": ("average", "torch_uniform", "kaiming_normal", "kaiming_normal", "torch_uniform"),
    "ntk-sap": ("average", "torch_uniform", "kaiming_normal", "kaiming_normal", "torch_uniform"),
    "grasp": ("average", None, "kaiming_normal_fan_out", "small_normal", "zeros"),
    "synflow-tiny": ("tiny", "zeros", "kaiming_normal_fan_out", "small_normal", "zeros"),
    "synflow-imagenet": ("imagenet", "zeros", "kaiming_normal_fan_out", "small_normal", "zeros"),
    "snip-d": ("snip-d", "zeros", "variance_scaling", "variance_scaling", "zeros"),
    "snip-like": ("snip-like", "zeros", "variance_scaling", "variance_scaling", "zeros"),
}


@made_once
def vgg(
    depth: int,
    code: str = "synflow",
    *,
    batch_norm: bool = True,
    width: int = 64,
    input_shape: Shape | None = None,
    outputs: int | None = None,
    bias: str | None = "as the code",
    initialiser: str | None = None,
    dense_initialiser: str | None = None,
    dense_bias: str | None = None,
    scale: str = "ones",
    unbiased: bool = False,
) -> Network:
    """3x3 convolutions in five stages with max-pooling between them (Simonyan & Zisserman 2015).

    Prunable, CIFAR form with 10 outputs: 9,222,848 (11), 9,407,168 (13), 14,715,584 (16),
    20,024,000 (19).

    Args:
        code: whose form, a name in `CODES`. ``"synflow"``, ``"open-lth"``, ``"ntk-sap"``,
            ``"grasp"`` (and force) have four poolings and one dense layer behind the mean of each
            map; they differ in biases and draws. ``"synflow-tiny"`` has five poolings and dense
            1024, 1024 with dropout, ``"synflow-imagenet"`` 4096, 4096; ``"snip-d"`` dense 512, 512
            with batch norm, ``"snip-like"`` 512 (both are VGG-16). Sets the defaults below.
        batch_norm: after each convolution.
        width: channels of the first stage; later stages and hidden dense layers grow with it.
        bias: of the convolutions, a name in `layers.BIASES` or None for none. Before a batch norm
            a bias does nothing in training mode.
        initialiser, dense_initialiser, dense_bias: names in `layers`.
        scale: of batch norm, see `resnet`.

    Raises:
        SecateurError: for another depth, an unknown name, or an image that the poolings use up.
    """
    if depth not in CONVOLUTIONS:
        raise SecateurError(f"VGG has 11, 13, 16 or 19 layers, not {depth}.")
    of = lookup("form of VGG", code, CODES)
    head = HEADS[of[0]]
    shape: Shape = input_shape or head.input_shape
    classes = head.outputs if outputs is None else outputs
    image_shape(f"vgg-{depth}", shape, classes, least=2**head.pools)

    leaves = Leaves()
    channels, layer = shape[2], 0
    for count, widening in zip(CONVOLUTIONS[depth], WIDENING):
        for _ in range(count):
            layer += 1
            leaves.conv(f"conv_{layer}", field=3, channels=(channels, widening * width))
            channels = widening * width
            if batch_norm:
                leaves.norm(f"bn_{layer}", width=channels)
    left = 1 if not head.hidden else (shape[0] >> head.pools) * (shape[1] >> head.pools)
    hidden = [max(1, n * width // 64) for n in head.hidden]
    before = left * channels
    for l, after in enumerate([*hidden, classes], start=1):
        leaves.dense(f"dense_{l}", widths=(before, after))
        if batch_norm and head.normed and l <= len(hidden):
            leaves.norm(f"bn_dense_{l}", width=after)
        before = after

    def forward(
        params: Params, stats: Stats, x: jax.Array, key: Key | None
    ) -> tuple[jax.Array, Stats]:
        new = dict(stats)

        def norm(name: str, x: jax.Array) -> jax.Array:
            if name not in params:
                return x
            x, new[name] = norm_layer(params[name], stats[name], x, key is not None, unbiased)
            return x

        layer = 0
        for stage, count in enumerate(CONVOLUTIONS[depth], start=1):
            for _ in range(count):
                layer += 1
                x = relu(norm(f"bn_{layer}", conv(params[f"conv_{layer}"], x, padding=1)))
            x = max_pool(x, 2) if stage <= head.pools else x
        x = flat(x) if head.hidden else global_average_pool(x)
        for l in range(1, len(hidden) + 1):
            x = relu(norm(f"bn_dense_{l}", dense(params[f"dense_{l}"], x)))
            x = dropout(x, head.drop, None if key is None else fold(key, "dropout", l))
        return dense(params[f"dense_{len(hidden) + 1}"], x), new

    init = leaves.init(
        initialiser or of[2],
        scale,
        dense_initialiser or of[3],
        dense_bias or of[4],
        of[1] if bias == "as the code" else bias,
    )
    return build(f"vgg-{depth}", tuple(shape), classes, init, forward)
