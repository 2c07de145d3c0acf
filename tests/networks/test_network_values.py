"""Whole networks against plain NumPy, written from the published layer lists, in both modes.

The conventions are PyTorch's, which the published codes are written in:

- a convolution pads the same zeros on both sides at any stride, 1 around 3x3 and 3 around 7x7, so
  that a window of stride 2 begins one row outside the image (``"SAME"`` would begin inside an even
  one); a 1x1 convolution of stride 2 reads rows 0, 2, 4, ...;
- max-pooling drops what is left over at the end; the 3x3 pooling of the 7x7 stem pads 1 of -inf;
- the stride of a bottleneck is in its 3x3 convolution (torchvision's v1.5);
- batch norm divides by sqrt(variance over count + 1e-5); in training mode the running statistics
  become .9 of themselves and .1 of the batch's, the variance over count or, with ``unbiased``, as
  PyTorch keeps it, over count - 1;
- MobileNetV2 has ReLU6, and a shortcut where stride is 1 and channels in are channels out.

Axes are (n, row, column, channel), so a flattened map is in this order and not in PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from secateur.core.trees import flatten, unflatten
from secateur.networks.registry import network

Array = Any
Leaves = dict[str, Array]


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def relu6(x: Array) -> Array:
    return np.clip(x, 0, 6)


def windows(x: Array, size: int, stride: int, padding: int, fill: float) -> Array:
    """(n, h, w, c) -> (n, h', w', c, size, size), h' = (h + 2 padding - size) // stride + 1."""
    edge = (padding, padding)
    x = np.pad(x, ((0, 0), edge, edge, (0, 0)), constant_values=fill)
    return sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]


def max_pool(x: Array, size: int, stride: int, padding: int = 0) -> Array:
    return windows(x, size, stride, padding, -np.inf).max((-2, -1))


class Pass:
    """One forward pass over leaves by name; ``after`` collects the statistics of training mode."""

    def __init__(self, params: Leaves, stats: Leaves, train: bool, unbiased: bool) -> None:
        self.p, self.s, self.train, self.unbiased = params, stats, train, unbiased
        self.after = dict(stats)

    def conv(
        self, name: str, x: Array, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> Array:
        w = self.p[f"{name}/kernel"]
        size, _, inner, outer = w.shape
        seen = windows(x, size, stride, padding, 0.0)
        n, rows, columns = seen.shape[:3]
        seen = seen.reshape(n, rows, columns, groups, inner, size, size)
        w = w.reshape(size, size, inner, groups, outer // groups)
        y = np.einsum("nhwgcij,ijcgo->nhwgo", seen, w, optimize=True)
        y = y.reshape(n, rows, columns, outer)
        return y + self.p[f"{name}/bias"] if f"{name}/bias" in self.p else y

    def norm(self, name: str, x: Array) -> Array:
        mean, var = self.s[f"{name}/mean"], self.s[f"{name}/var"]
        if self.train:
            each = x.reshape(-1, x.shape[-1])
            kept = each.var(0, ddof=int(self.unbiased))
            self.after[f"{name}/mean"] = 0.9 * mean + 0.1 * each.mean(0)
            self.after[f"{name}/var"] = 0.9 * var + 0.1 * kept
            mean, var = each.mean(0), each.var(0)
        unit = (x - mean) / np.sqrt(var + 1e-5)
        return unit * self.p[f"{name}/scale"] + self.p[f"{name}/bias"]

    def dense(self, name: str, x: Array) -> Array:
        return x @ self.p[f"{name}/kernel"] + self.p[f"{name}/bias"]


# ---- the families, from the lists of their papers and codes --------------------------------------

VGG = {
    11: "64 M 128 M 256 256 M 512 512 M 512 512",
    13: "64 64 M 128 128 M 256 256 M 512 512 M 512 512",
    16: "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512",
    19: "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512",
}


def vgg(depth: int, normed: bool = True, hidden: int = 0, hidden_normed: bool = False) -> Any:
    """Four poolings and the mean of each 2x2 map; with ``hidden`` layers a fifth, and flattened."""

    def run(net: Pass, x: Array) -> Array:
        layer = 0
        for step in [*VGG[depth].split(), *(["M"] if hidden else [])]:
            if step == "M":
                x = max_pool(x, 2, 2)
                continue
            layer += 1
            x = net.conv(f"conv_{layer}", x, padding=1)
            x = relu(net.norm(f"bn_{layer}", x) if normed else x)
        x = x.reshape(len(x), -1) if hidden else windows(x, 2, 2, 0, 0.0)[:, 0, 0].mean((-2, -1))
        for l in range(1, hidden + 1):
            x = net.dense(f"dense_{l}", x)
            x = relu(net.norm(f"bn_dense_{l}", x) if hidden_normed else x)
        return net.dense(f"dense_{hidden + 1}", x)

    return run


def basic(net: Pass, at: str, x: Array, stride: int, shortcut: str | None) -> Array:
    h = relu(net.norm(f"{at}/bn_1", net.conv(f"{at}/conv_1", x, stride, 1)))
    h = net.norm(f"{at}/bn_2", net.conv(f"{at}/conv_2", h, 1, 1))
    return relu(h + carried(net, at, x, stride, shortcut))


def bottleneck(net: Pass, at: str, x: Array, stride: int, shortcut: str | None) -> Array:
    h = relu(net.norm(f"{at}/bn_1", net.conv(f"{at}/conv_1", x)))
    h = relu(net.norm(f"{at}/bn_2", net.conv(f"{at}/conv_2", h, stride, 1)))
    h = net.norm(f"{at}/bn_3", net.conv(f"{at}/conv_3", h))
    return relu(h + carried(net, at, x, stride, shortcut))


def carried(net: Pass, at: str, x: Array, stride: int, shortcut: str | None) -> Array:
    if shortcut == "B":
        return net.norm(f"{at}/bn_shortcut", net.conv(f"{at}/shortcut", x, stride))
    if shortcut == "A":  # twice the channels: a quarter of them, zeros, on each side
        edge = x.shape[-1] // 2
        return np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (edge, edge)))
    return x


def cifar_resnet(depth: int, shortcut: str) -> Any:
    def run(net: Pass, x: Array) -> Array:
        x = relu(net.norm("bn_1", net.conv("conv_1", x, 1, 1)))
        for stage in (1, 2, 3):
            for k in range(1, (depth - 2) // 6 + 1):
                changes = stage > 1 and k == 1
                kind = shortcut if changes else None
                x = basic(net, f"stage_{stage}/block_{k}", x, 2 if changes else 1, kind)
        return net.dense("dense_1", x.mean((1, 2)))

    return run


def deep_resnet(depth: int, stem: int) -> Any:
    counts = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}[depth]
    block = bottleneck if depth == 50 else basic

    def run(net: Pass, x: Array) -> Array:
        stride, padding = (2, 3) if stem == 7 else (1, 1)
        x = relu(net.norm("bn_1", net.conv("conv_1", x, stride, padding)))
        x = max_pool(x, 3, 2, 1) if stem == 7 else x
        for stage, count in enumerate(counts, start=1):
            for k in range(1, count + 1):
                # Bottlenecks widen in the first stage, too, where the stride is 1.
                projects = k == 1 and (stage > 1 or depth == 50)
                stride = 2 if k == 1 and stage > 1 else 1
                at = f"stage_{stage}/block_{k}"
                x = block(net, at, x, stride, "B" if projects else None)
        return net.dense("dense_1", x.mean((1, 2)))

    return run


def wide_resnet(depth: int) -> Any:
    """Norm and ReLU before the convolutions; the projection reads what the first one reads."""

    def run(net: Pass, x: Array) -> Array:
        x = net.conv("conv_1", x, 1, 1)
        for stage in (1, 2, 3):
            for k in range(1, (depth - 4) // 6 + 1):
                at, stride = f"stage_{stage}/block_{k}", 2 if stage > 1 and k == 1 else 1
                a = relu(net.norm(f"{at}/bn_1", x))
                h = relu(net.norm(f"{at}/bn_2", net.conv(f"{at}/conv_1", a, stride, 1)))
                h = net.conv(f"{at}/conv_2", h, 1, 1)
                x = h + (net.conv(f"{at}/shortcut", a, stride) if x.shape[-1] != h.shape[-1] else x)
        return net.dense("dense_1", relu(net.norm("bn_1", x)).mean((1, 2)))

    return run


def mobilenet_v1(net: Pass, x: Array) -> Array:
    channels = [64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    x = relu(net.norm("bn_1", net.conv("conv_1", x, 1, 1)))
    for k, after in enumerate(channels, start=1):
        stride = 2 if after >= 128 and after not in channels[: k - 1] else 1
        h = net.conv(f"block_{k}/depthwise", x, stride, 1, groups=x.shape[-1])
        h = net.conv(f"block_{k}/pointwise", relu(net.norm(f"block_{k}/bn_1", h)))
        x = relu(net.norm(f"block_{k}/bn_2", h))
    return net.dense("dense_1", x.mean((1, 2)))


V2 = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)]
V2 += [(6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


HALF = [8, 16, 16, 32, 48, 80, 160]  # multiples of 8 next to half of them, by hand


def mobilenet_v2(stem: str, channels: list[int], port: bool = False) -> Any:
    """(expansion, channels, blocks, stride of the first); the CIFAR form has one stride less.

    ``channels`` stand in the place of those at full width.
    """
    phi = relu if port else relu6

    def run(net: Pass, x: Array) -> Array:
        x = phi(net.norm("bn_1", net.conv("conv_1", x, 1 if stem == "cifar" else 2, 1)))
        k = 0
        for (expansion, full, count, stride), after in zip(V2, channels, strict=True):
            stride = 1 if full == 24 and stem == "cifar" else stride
            for _ in range(count):
                k += 1
                at, h, before = f"block_{k}", x, x.shape[-1]
                if expansion > 1 or port:
                    h = phi(net.norm(f"{at}/bn_1", net.conv(f"{at}/expand", h)))
                assert h.shape[-1] == expansion * before
                h = net.conv(f"{at}/depthwise", h, stride, 1, groups=h.shape[-1])
                h = net.conv(f"{at}/project", phi(net.norm(f"{at}/bn_2", h)))
                h = net.norm(f"{at}/bn_3", h)
                assert h.shape[-1] == after
                if stride == 1 and before == after:
                    h = h + x
                elif stride == 1 and port:
                    h = h + net.norm(f"{at}/bn_shortcut", net.conv(f"{at}/shortcut", x))
                x, stride = h, 1
        x = phi(net.norm("bn_2", net.conv("conv_2", x)))
        return net.dense("dense_1", x.mean((1, 2)))

    return run


# ---- the comparison ------------------------------------------------------------------------------


def drawn(tree: Any, seed: int) -> Any:
    """Leaves of no special value: no bias is 0, no scale or variance 1."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Array:
        if name.endswith("kernel"):
            return rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[:-1]))
        near = 1.0 if name.endswith(("scale", "var")) else 0.0
        return near + 0.3 * rng.uniform(-1, 1, shape)

    return unflatten({k: draw(k, a.shape) for k, a in flatten(tree).items()}, tree)


def compiled(run: Callable[..., Any], *given: Any) -> Any:
    """One call; without the compiler's optimisations, which take five times as long as the rest."""
    program = jax.jit(run).lower(*given)
    return program.compile(compiler_options={"xla_backend_optimization_level": 0})(*given)


def long(*case: Any) -> Any:
    return pytest.param(*case, marks=pytest.mark.long)


# Widths that keep each to a second or two, most of it to compile; sizes that halve to odd ones.
ODD = {"input_shape": (10, 14, 3), "outputs": 3, "width": 4}
CASES = [
    ("vgg-11", {"width": 2, "input_shape": (32, 36, 3), "unbiased": True}, vgg(11)),
    ("vgg-16", {"width": 2, "batch_norm": False, "code": "ntk-sap"}, vgg(16, normed=False)),
    long("vgg-13", {"width": 2, "code": "grasp"}, vgg(13)),
    long("vgg-16", {"width": 2}, vgg(16)),
    long("vgg-19", {"width": 2, "code": "open-lth"}, vgg(19)),
    long("vgg-snip-d", {"width": 4, "input_shape": (32, 64, 3)}, vgg(16, True, 2, True)),
    long("vgg-snip-like", {"width": 4, "input_shape": (32, 64, 3)}, vgg(16, True, 1, True)),
    ("resnet-20", {**ODD, "unbiased": True}, cifar_resnet(20, "B")),
    long("resnet-20", {**ODD, "shortcut": "A"}, cifar_resnet(20, "A")),
    long("resnet-18", {**ODD, "stem": "7x7", "input_shape": (36, 46, 3)}, deep_resnet(18, 7)),
    long("resnet-18", ODD, deep_resnet(18, 3)),
    long("resnet-34", ODD, deep_resnet(34, 3)),
    long("resnet-50", ODD, deep_resnet(50, 3)),
    long("resnet-50", {**ODD, "stem": "7x7", "input_shape": (36, 46, 3)}, deep_resnet(50, 7)),
    ("wrn-10-2", ODD, wide_resnet(10)),
    long("wrn-16-1", {**ODD, "unbiased": True}, wide_resnet(16)),
    ("mobilenet-v1", {"width": 0.0625, "input_shape": (18, 22, 3)}, mobilenet_v1),
    long("mobilenet-v2", {**ODD, "width": 0.5, "unbiased": True}, mobilenet_v2("cifar", HALF)),
    long(
        "mobilenet-v2",
        {"input_shape": (34, 38, 3), "stem": "imagenet", "width": 0.5, "outputs": 5},
        mobilenet_v2("imagenet", HALF),
    ),
    long(
        "mobilenet-v2", {**ODD, "width": 0.5, "port": True}, mobilenet_v2("cifar", HALF, port=True)
    ),
]


@pytest.mark.parametrize(
    ("name", "options", "oracle"),
    CASES,
    ids=lambda v: ",".join(f"{k}={w}" for k, w in v.items()) if isinstance(v, dict) else None,
)
@pytest.mark.usefixtures("x64")
def test_logits_and_running_statistics_are_numpys(
    name: str, options: dict[str, Any], oracle: Callable[[Pass, Array], Array]
) -> None:
    net = network(name, **options)
    params, stats = (
        drawn(tree, seed)
        for seed, tree in enumerate(jax.eval_shape(net.init, jax.random.key(0)), start=1)
    )
    x = np.random.default_rng(0).standard_normal((4, *net.input_shape))
    both = lambda p, s, x, key: (net.apply(p, s, x), *net.train(p, s, x, key))
    found, trained, after = compiled(both, params, stats, x, jax.random.key(0))

    leaves = flatten(params), flatten(stats)
    still = Pass(*leaves, train=False, unbiased=False)
    same = {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose(found, oracle(still, x), **same)
    live = Pass(*leaves, train=True, unbiased=options.get("unbiased", False))
    np.testing.assert_allclose(trained, oracle(live, x), **same)
    assert np.ptp(np.asarray(trained), axis=0).min() > 1e-3  # examples are told apart
    carried_on = flatten(after)
    assert set(carried_on) == set(live.after)
    for leaf, value in live.after.items():
        np.testing.assert_allclose(carried_on[leaf], value, err_msg=leaf, **same)


@pytest.mark.long
@pytest.mark.usefixtures("x64")
def test_vgg_for_tiny_images_is_numpys_in_evaluation() -> None:
    """Its dense layers have dropout in training; a 3 x 2 map is flattened in (row, column)."""
    net = network("vgg-11", code="synflow-tiny", width=4, input_shape=(96, 64, 3), outputs=5)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    params, stats = (drawn(tree, seed) for seed, tree in enumerate(shapes, start=1))
    x = np.random.default_rng(0).standard_normal((2, *net.input_shape))
    expected = vgg(11, hidden=2)(Pass(flatten(params), flatten(stats), False, False), x)
    found = compiled(net.apply, params, stats, x)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
