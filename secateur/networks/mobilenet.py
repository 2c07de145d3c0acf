"""MobileNetV1 and V2: depthwise separable convolutions, which many methods leave dense.

Leaves: ``conv_1, bn_1`` (the stem), ``block_1/depthwise``, ``.../pointwise`` (V1),
``.../expand``, ``.../depthwise``, ``.../project`` (V2) with ``bn_1, bn_2, bn_3`` behind them,
``dense_1``. A depthwise kernel is (3, 3, 1, channels): 9 weights a channel, prunable like any
other; a scope by layer can hold them apart by their name.
"""

from __future__ import annotations

from functools import partial

import jax

from secateur.core.errors import lookup
from secateur.core.keys import Key
from secateur.core.network import Network, Stats
from secateur.core.trees import Params
from secateur.networks.build import Leaves, build, image_shape, made_once
from secateur.networks.layers import batch_norm, conv, dense, global_average_pool

relu, relu6 = jax.nn.relu, jax.nn.relu6
Shape = tuple[int, int, int]

# Stem -> stride of the first convolution, usual input and outputs.
STEMS: dict[str, tuple[int, Shape, int]] = {
    "cifar": (1, (32, 32, 3), 10),
    "imagenet": (2, (224, 224, 3), 1000),
}
V1 = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
V1 += [(512, 1)] * 5 + [(1024, 2), (1024, 1)]
V2 = [  # expansion, channels, blocks, stride of the first: table 2 of the paper
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


def _depthwise(params: dict[str, jax.Array], x: jax.Array, stride: int) -> jax.Array:
    return conv(params, x, stride, padding=1, groups=x.shape[-1])


@made_once
def mobilenet_v1(
    stem: str = "cifar",
    *,
    width: float = 1.0,
    input_shape: Shape | None = None,
    outputs: int | None = None,
    initialiser: str = "kaiming_normal_fan_out",
    dense_initialiser: str = "small_normal",
    dense_bias: str = "zeros",
    scale: str = "ones",
    unbiased: bool = False,
) -> Network:
    """A 3x3 stem and 13 pairs of depthwise 3x3 and pointwise 1x1. Howard et al. 2017, table 1.

    Prunable: 3,195,328 with 10 outputs, 4,209,088 with 1000.

    Args:
        stem: ``"cifar"``: stride 1 in the first convolution; ``"imagenet"``: stride 2. Sets the
            defaults of input_shape and outputs.
        width: the paper's multiplier of all channels.

    Raises:
        SecateurError: for an unknown name, or images below 16 x 16.
    """
    first, usual, classes = lookup("stem", stem, STEMS)
    shape: Shape = input_shape or usual
    classes = classes if outputs is None else outputs
    image_shape("mobilenet-v1", shape, classes, least=16)
    wide = lambda channels: max(1, int(channels * width))

    leaves = Leaves()
    leaves.conv("conv_1", field=3, channels=(shape[2], wide(32)))
    leaves.norm("bn_1", width=wide(32))
    before = wide(32)
    for k, (channels, _) in enumerate(V1, start=1):
        leaves.conv(f"block_{k}", "depthwise", field=3, channels=(1, before))
        leaves.norm(f"block_{k}", "bn_1", width=before)
        leaves.conv(f"block_{k}", "pointwise", field=1, channels=(before, wide(channels)))
        leaves.norm(f"block_{k}", "bn_2", width=wide(channels))
        before = wide(channels)
    leaves.dense("dense_1", widths=(before, classes))

    def forward(
        params: Params, stats: Stats, x: jax.Array, key: Key | None
    ) -> tuple[jax.Array, Stats]:
        norm = partial(batch_norm, train=key is not None, unbiased=unbiased)
        new = dict(stats)
        x = conv(params["conv_1"], x, first, padding=1)
        x, new["bn_1"] = norm(params["bn_1"], stats["bn_1"], x)
        x = relu(x)
        for k, (_, stride) in enumerate(V1, start=1):
            p, s = params[f"block_{k}"], stats[f"block_{k}"]
            x, one = norm(p["bn_1"], s["bn_1"], _depthwise(p["depthwise"], x, stride))
            x, two = norm(p["bn_2"], s["bn_2"], conv(p["pointwise"], relu(x), padding=0))
            x, new[f"block_{k}"] = relu(x), {"bn_1": one, "bn_2": two}
        return dense(params["dense_1"], global_average_pool(x)), new

    init = leaves.init(initialiser, scale, dense_initialiser, dense_bias)
    return build("mobilenet-v1", tuple(shape), classes, init, forward)


def _by_eight(channels: float) -> int:
    """To a multiple of 8, never more than a tenth below: the reference code's rounding."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


@made_once
def mobilenet_v2(
    stem: str = "cifar",
    *,
    port: bool = False,
    width: float = 1.0,
    input_shape: Shape | None = None,
    outputs: int | None = None,
    initialiser: str = "kaiming_normal_fan_out",
    dense_initialiser: str = "small_normal",
    dense_bias: str = "zeros",
    scale: str = "ones",
    unbiased: bool = False,
) -> Network:
    """17 inverted residual blocks: expand 1x1, depthwise 3x3, project 1x1. Sandler et al. 2018.

    Prunable: 2,202,560 with 10 outputs, 3,469,760 with 1000; 2,261,824 in the CIFAR port. ReLU6,
    which is not positively homogeneous.

    Args:
        stem: ``"cifar"``: stride 1 in the first convolution and in the second row of table 2;
            ``"imagenet"``: 2 in both. Sets the defaults of input_shape and outputs.
        port: as a common port to CIFAR has it: the first block expands too, by 1; where stride is
            1 and channels change, a 1x1 convolution with batch norm is the shortcut; plain ReLU.
        width: the paper's multiplier, to multiples of 8; the last 1x1 convolution never gets less
            than 1280 channels.

    Raises:
        SecateurError: for an unknown name, or images below 8 x 8 (cifar) or 32 x 32.
    """
    first, usual, classes = lookup("stem", stem, STEMS)
    shape: Shape = input_shape or usual
    classes = classes if outputs is None else outputs
    image_shape("mobilenet-v2", shape, classes, least=8 if stem == "cifar" else 32)
    wide = lambda channels: channels if width == 1 else _by_eight(channels * width)
    phi = relu if port else relu6

    leaves = Leaves()
    leaves.conv("conv_1", field=3, channels=(shape[2], wide(32)))
    leaves.norm("bn_1", width=wide(32))
    before = wide(32)
    strides: list[int] = []
    carried: list[bool] = []  # here, not by shapes: cut to other widths, two may be equal by chance
    for row, (expansion, channels, count, stride) in enumerate(V2):
        for _ in range(count):
            strides.append(1 if row == 1 and stem == "cifar" else stride)
            stride = 1
            at = f"block_{len(strides)}"
            inner, after = expansion * before, wide(channels)
            if expansion > 1 or port:
                leaves.conv(at, "expand", field=1, channels=(before, inner))
                leaves.norm(at, "bn_1", width=inner)
            leaves.conv(at, "depthwise", field=3, channels=(1, inner))
            leaves.norm(at, "bn_2", width=inner)
            leaves.conv(at, "project", field=1, channels=(inner, after))
            leaves.norm(at, "bn_3", width=after)
            if port and strides[-1] == 1 and before != after:
                leaves.conv(at, "shortcut", field=1, channels=(before, after))
                leaves.norm(at, "bn_shortcut", width=after)
            carried.append(strides[-1] == 1 and (port or before == after))
            before = after
    last = 1280 if width <= 1 else _by_eight(1280 * width)
    leaves.conv("conv_2", field=1, channels=(before, last))
    leaves.norm("bn_2", width=last)
    leaves.dense("dense_1", widths=(last, classes))

    def forward(
        params: Params, stats: Stats, x: jax.Array, key: Key | None
    ) -> tuple[jax.Array, Stats]:
        norm = partial(batch_norm, train=key is not None, unbiased=unbiased)
        new = dict(stats)
        x = conv(params["conv_1"], x, first, padding=1)
        x, new["bn_1"] = norm(params["bn_1"], stats["bn_1"], x)
        x = phi(x)
        for k, (stride, carries) in enumerate(zip(strides, carried), start=1):
            p, s = params[f"block_{k}"], stats[f"block_{k}"]
            t, h = dict(s), x
            if "expand" in p:
                h, t["bn_1"] = norm(p["bn_1"], s["bn_1"], conv(p["expand"], h, padding=0))
                h = phi(h)
            h, t["bn_2"] = norm(p["bn_2"], s["bn_2"], _depthwise(p["depthwise"], h, stride))
            h, t["bn_3"] = norm(p["bn_3"], s["bn_3"], conv(p["project"], phi(h), padding=0))
            if "shortcut" in p:
                x = conv(p["shortcut"], x, padding=0)
                x, t["bn_shortcut"] = norm(p["bn_shortcut"], s["bn_shortcut"], x)
            x = h + x if carries else h
            new[f"block_{k}"] = t
        x, new["bn_2"] = norm(params["bn_2"], stats["bn_2"], conv(params["conv_2"], x, padding=0))
        return dense(params["dense_1"], global_average_pool(phi(x))), new

    init = leaves.init(initialiser, scale, dense_initialiser, dense_bias)
    return build("mobilenet-v2", tuple(shape), classes, init, forward)
