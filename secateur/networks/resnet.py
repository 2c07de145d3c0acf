"""Residual networks: the CIFAR family of He et al., ResNet-18/34/50, and Wide ResNets.

Leaves are ``conv_1``, ``bn_1`` (the stem), ``stage_2/block_1/conv_1``, ``.../bn_1``, for a
projecting shortcut ``.../shortcut`` and ``.../bn_shortcut``, and ``dense_1``. Identity shortcuts
are no parameters (SynFlow and NTK-SAP hold them as vectors of ones, which no default prunes).
Convolutions have no bias. Padding is PyTorch's: k // 2 zeros on both sides, at any stride.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import Key, fold
from secateur.core.network import Network, Stats
from secateur.core.trees import Params
from secateur.networks.build import Forward, Leaves, build, image_shape, made_once
from secateur.networks.layers import (
    batch_norm,
    conv,
    dense,
    dropout,
    global_average_pool,
    max_pool,
    residual_shape,
)

relu = jax.nn.relu
Shape = tuple[int, int, int]
Norm = Callable[[dict[str, jax.Array], dict[str, jax.Array], jax.Array], tuple[jax.Array, Any]]


def _basic(p: Params, s: Stats, x: jax.Array, stride: int, norm: Norm) -> tuple[jax.Array, Stats]:
    """relu(BN conv3x3 relu BN conv3x3(stride) x + shortcut x)."""
    new = dict(s)
    h = conv(p["conv_1"], x, stride, padding=1)
    h, new["bn_1"] = norm(p["bn_1"], s["bn_1"], h)
    h = conv(p["conv_2"], relu(h), padding=1)
    h, new["bn_2"] = norm(p["bn_2"], s["bn_2"], h)
    x = _shortcut(p, s, new, x, h, stride, norm)
    return relu(h + x), new


def _bottleneck(
    p: Params, s: Stats, x: jax.Array, stride: int, norm: Norm
) -> tuple[jax.Array, Stats]:
    """1x1, 3x3 (stride), 1x1 to four times the channels; the stride of torchvision's v1.5."""
    new = dict(s)
    h = conv(p["conv_1"], x, padding=0)
    h, new["bn_1"] = norm(p["bn_1"], s["bn_1"], h)
    h = conv(p["conv_2"], relu(h), stride, padding=1)
    h, new["bn_2"] = norm(p["bn_2"], s["bn_2"], h)
    h = conv(p["conv_3"], relu(h), padding=0)
    h, new["bn_3"] = norm(p["bn_3"], s["bn_3"], h)
    x = _shortcut(p, s, new, x, h, stride, norm)
    return relu(h + x), new


def _shortcut(
    p: Params, s: Stats, new: Stats, x: jax.Array, h: jax.Array, stride: int, norm: Norm
) -> jax.Array:
    """x as it is added to h. Leaves and stride decide on the form, both given when it was made.

    Shapes do not: in a network from which units were cut two widths may be equal by chance.
    """
    if "shortcut" in p:
        x = conv(p["shortcut"], x, stride, padding=0)
        x, new["bn_shortcut"] = norm(p["bn_shortcut"], s["bn_shortcut"], x)
        return x
    return x if stride == 1 else residual_shape(x, h.shape, stride)


def _stages(p: Params, s: Stats, x: jax.Array, block: Any, norm: Norm) -> tuple[jax.Array, Stats]:
    """All stages; the first block of each but the first has stride 2."""
    new = {}
    for stage in range(1, 1 + sum(name.startswith("stage_") for name in p)):
        name = f"stage_{stage}"
        new[name] = dict(s[name])
        for k in range(1, 1 + len(p[name])):
            of_p, of_s = p[name][f"block_{k}"], s[name][f"block_{k}"]
            stride = 2 if k == 1 and stage > 1 else 1
            x, new[name][f"block_{k}"] = block(of_p, of_s, x, stride, norm)
    return x, new


def _forward(block: Any, stem: tuple[int, int, bool], unbiased: bool) -> Forward:
    """Stem (stride, padding, max-pooling), stages of ``block``, mean of each map, outputs."""
    stride, padding, pooled = stem

    def forward(
        params: Params, stats: Stats, x: jax.Array, key: Key | None
    ) -> tuple[jax.Array, Stats]:
        norm = partial(batch_norm, train=key is not None, unbiased=unbiased)
        x, first = norm(params["bn_1"], stats["bn_1"], conv(params["conv_1"], x, stride, padding))
        x = relu(x)
        if pooled:
            x = max_pool(x, 3, 2, 1)
        x, new = _stages(params, stats, x, block, norm)
        return dense(params["dense_1"], global_average_pool(x)), {"bn_1": first, **new}

    return forward


@made_once
def resnet(
    depth: int,
    *,
    width: int = 16,
    shortcut: str = "B",
    input_shape: Shape = (32, 32, 3),
    outputs: int = 10,
    initialiser: str = "kaiming_normal",
    dense_initialiser: str = "kaiming_normal",
    dense_bias: str = "zeros",
    scale: str = "ones",
    unbiased: bool = False,
) -> Network:
    """ResNet-20, 32, 56, ... for CIFAR: three stages of (depth - 2) / 6 basic blocks.

    Prunable with 10 outputs: 270,896 (20), 464,432 (32), 851,504 (56). He et al. 2016, section
    4.2. With ``width=32`` these are the "ResNet-32" of GraSP and sanity-checking, 1,855,584, and
    SynFlow's "wide-resnet".

    Args:
        width: channels of the first stage; the next have 2 and 4 times as many.
        shortcut: where the shape changes, ``"B"``: 1x1 convolution of stride 2 and batch norm,
            prunable (open_lth, SynFlow, NTK-SAP, GraSP, PHEW); ``"A"``: every second pixel, and
            zeros for the new channels (He et al.; shrinkbench).
        initialiser: Kaiming normal by fan-in in open_lth, SynFlow and NTK-SAP;
            ``"kaiming_normal_fan_out"`` in GraSP, PHEW and sanity-checking.
        dense_initialiser, dense_bias: of the last layer; GraSP: ``"small_normal"``, zeros.
        scale: of batch norm; ``"uniform"`` draws it from U(0, 1), the default of open_lth.
        unbiased: see `layers.batch_norm`.

    Raises:
        SecateurError: unless depth is 6 n + 2; for unknown names; for images below 4 x 4.
    """
    if depth < 8 or (depth - 2) % 6:
        raise SecateurError(
            f"a CIFAR ResNet has 6 n + 2 layers (20, 32, 44, 56, ...), not {depth}."
        )
    lookup("shortcut", shortcut, {"A": 0, "B": 0})
    image_shape(f"resnet-{depth}", input_shape, outputs, least=4)
    widths = [width, 2 * width, 4 * width]
    leaves = _basic_leaves(widths, [(depth - 2) // 6] * 3, 3, input_shape[2], shortcut == "B")
    leaves.dense("dense_1", widths=(widths[-1], outputs))
    return build(
        f"resnet-{depth}",
        tuple(input_shape),
        outputs,
        leaves.init(initialiser, scale, dense_initialiser, dense_bias),
        _forward(_basic, (1, 1, False), unbiased),
    )


def _basic_leaves(
    widths: list[int], blocks: list[int], field: int, channels: int, projects: bool
) -> Leaves:
    leaves = Leaves()
    leaves.conv("conv_1", field=field, channels=(channels, widths[0]))
    leaves.norm("bn_1", width=widths[0])
    before = widths[0]
    for stage, (width, count) in enumerate(zip(widths, blocks), start=1):
        for k in range(1, count + 1):
            at = (f"stage_{stage}", f"block_{k}")
            leaves.conv(*at, "conv_1", field=3, channels=(before, width))
            leaves.conv(*at, "conv_2", field=3, channels=(width, width))
            for norm in ("bn_1", "bn_2"):
                leaves.norm(*at, norm, width=width)
            if projects and before != width:
                leaves.conv(*at, "shortcut", field=1, channels=(before, width))
                leaves.norm(*at, "bn_shortcut", width=width)
            before = width
    return leaves


def _bottleneck_leaves(
    planes: list[int], wide: int, blocks: list[int], field: int, channels: int
) -> Leaves:
    leaves = Leaves()
    leaves.conv("conv_1", field=field, channels=(channels, planes[0]))
    leaves.norm("bn_1", width=planes[0])
    before = planes[0]
    for stage, (plane, count) in enumerate(zip(planes, blocks), start=1):
        inner, outer = wide * plane, 4 * plane
        for k in range(1, count + 1):
            at = (f"stage_{stage}", f"block_{k}")
            leaves.conv(*at, "conv_1", field=1, channels=(before, inner))
            leaves.conv(*at, "conv_2", field=3, channels=(inner, inner))
            leaves.conv(*at, "conv_3", field=1, channels=(inner, outer))
            for norm, width in (("bn_1", inner), ("bn_2", inner), ("bn_3", outer)):
                leaves.norm(*at, norm, width=width)
            if k == 1:
                leaves.conv(*at, "shortcut", field=1, channels=(before, outer))
                leaves.norm(*at, "bn_shortcut", width=outer)
            before = outer
    return leaves


BLOCKS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3]}
STEMS: dict[str, tuple[int, tuple[int, int, bool], Shape, int]] = {
    # name -> kernel, (stride, padding, max-pooling), default input and outputs
    "3x3": (3, (1, 1, False), (32, 32, 3), 10),
    "7x7": (7, (2, 3, True), (224, 224, 3), 1000),
}


@made_once
def deep_resnet(
    depth: int,
    stem: str = "3x3",
    *,
    width: int = 64,
    wide: int = 1,
    input_shape: Shape | None = None,
    outputs: int | None = None,
    initialiser: str = "kaiming_normal_fan_out",
    dense_initialiser: str = "torch_uniform",
    dense_bias: str = "torch_uniform",
    scale: str = "ones",
    unbiased: bool = False,
) -> Network:
    """ResNet-18, 34 (basic blocks) and 50 (bottlenecks): four stages, strides 1, 2, 2, 2.

    Prunable: ResNet-18 11,164,352 (3x3 stem, 10 outputs) and 11,678,912 (7x7 stem, 1000 outputs);
    ResNet-50 23,467,712 and 25,502,912. He et al. 2016, table 1; torchvision.

    Args:
        stem: ``"3x3"``: stride 1, no pooling, for CIFAR and Tiny-ImageNet (SynFlow, PHEW, force);
            ``"7x7"``: stride 2 and 3x3 max-pooling of stride 2, for ImageNet. Sets the defaults
            of input_shape and outputs: (32, 32, 3) and 10, (224, 224, 3) and 1000. SynFlow's and
            NTK-SAP's class for ImageNet has 1000 outputs whatever the data: give ``outputs=1000``
            to have the network that NTK-SAP ran on Tiny-ImageNet.
        width: channels of the first stage.
        wide: multiplies the inner width of bottlenecks (``wide=2``: WRN-50-2). Basic blocks have
            none, and SynFlow's "wide_resnet18" is its ResNet-18.
        initialiser: SynFlow and PHEW as the default, NTK-SAP ``"kaiming_normal"`` for all kernels.

    Raises:
        SecateurError: for another depth or stem, unknown names, ``wide`` with basic blocks, or
            images below 8 x 8 (3x3 stem) or 32 x 32 (7x7 stem).
    """
    if depth not in BLOCKS:
        raise SecateurError(f"this ResNet has 18, 34 or 50 layers, not {depth}; see `resnet`.")
    field, form, usual, classes = lookup("stem", stem, STEMS)
    shape: Shape = input_shape or usual
    classes = classes if outputs is None else outputs
    name = f"resnet-{depth}"
    image_shape(name, shape, classes, least=8 if stem == "3x3" else 32)
    planes = [width, 2 * width, 4 * width, 8 * width]
    if depth < 50:
        if wide != 1:
            raise SecateurError(
                f"{name} has no bottlenecks to widen: give width, the channels of its first stage."
            )
        block, last = _basic, planes[-1]
        leaves = _basic_leaves(planes, BLOCKS[depth], field, shape[2], projects=True)
    else:
        block, last = _bottleneck, 4 * planes[-1]
        leaves = _bottleneck_leaves(planes, wide, BLOCKS[depth], field, shape[2])
    leaves.dense("dense_1", widths=(last, classes))
    init = leaves.init(initialiser, scale, dense_initialiser, dense_bias)
    return build(name, shape, classes, init, _forward(block, form, unbiased))


@made_once
def wide_resnet(
    depth: int,
    factor: int,
    *,
    width: int = 16,
    drop: float = 0.0,
    input_shape: Shape = (32, 32, 3),
    outputs: int = 10,
    initialiser: str = "kaiming_normal_fan_out",
    dense_initialiser: str = "torch_uniform",
    dense_bias: str = "zeros",
    scale: str = "ones",
    unbiased: bool = False,
) -> Network:
    """WRN-depth-factor: pre-activation blocks of widths 16 k, 32 k, 64 k, strides 1, 2, 2.

    WRN-28-10 with 10 outputs: 36,461,232 prunable weights. Zagoruyko & Komodakis 2016. Where
    channels change, the 1x1 shortcut reads the normalised and rectified input, as the first
    convolution does, and has no norm. The last norm is ``bn_1``, before the mean of each map.

    Args:
        width: of the stem; drop: rate of dropout between the convolutions of a block, in `train`.

    Raises:
        SecateurError: unless depth is 6 n + 4; for unknown names; for images below 4 x 4.
    """
    if depth < 10 or (depth - 4) % 6:
        raise SecateurError(f"a Wide ResNet has 6 n + 4 layers (16, 22, 28, ...), not {depth}.")
    name = f"wrn-{depth}-{factor}"
    image_shape(name, input_shape, outputs, least=4)
    leaves = Leaves()
    leaves.conv("conv_1", field=3, channels=(input_shape[2], width))
    before = width
    for stage, channels in enumerate((factor * width * m for m in (1, 2, 4)), start=1):
        for k in range(1, (depth - 4) // 6 + 1):
            at = (f"stage_{stage}", f"block_{k}")
            leaves.norm(*at, "bn_1", width=before)
            leaves.conv(*at, "conv_1", field=3, channels=(before, channels))
            leaves.norm(*at, "bn_2", width=channels)
            leaves.conv(*at, "conv_2", field=3, channels=(channels, channels))
            if before != channels:
                leaves.conv(*at, "shortcut", field=1, channels=(before, channels))
            before = channels
    leaves.norm("bn_1", width=before)
    leaves.dense("dense_1", widths=(before, outputs))

    def forward(
        params: Params, stats: Stats, x: jax.Array, key: Key | None
    ) -> tuple[jax.Array, Stats]:
        norm = partial(batch_norm, train=key is not None, unbiased=unbiased)
        keys = iter(range(depth))
        stream = lambda: None if key is None else fold(key, "dropout", next(keys))

        def block(
            p: Params, s: Stats, x: jax.Array, stride: int, norm: Norm
        ) -> tuple[jax.Array, Stats]:
            new = dict(s)
            a, new["bn_1"] = norm(p["bn_1"], s["bn_1"], x)
            a = relu(a)
            h, new["bn_2"] = norm(p["bn_2"], s["bn_2"], conv(p["conv_1"], a, stride, padding=1))
            h = conv(p["conv_2"], dropout(relu(h), drop, stream()), padding=1)
            return h + (conv(p["shortcut"], a, stride, padding=0) if "shortcut" in p else x), new

        x = conv(params["conv_1"], x, padding=1)
        x, new = _stages(params, stats, x, block, norm)
        x, last = norm(params["bn_1"], stats["bn_1"], x)
        return dense(params["dense_1"], global_average_pool(relu(x))), {**new, "bn_1": last}

    init = leaves.init(initialiser, scale, dense_initialiser, dense_bias)
    return build(name, tuple(input_shape), outputs, init, forward)
