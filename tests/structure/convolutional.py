"""Small convolutional networks for tests of compaction, with masks that kill channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.network import Network
from secateur.core.trees import flatten, unflatten
from secateur.networks.layers import (
    average_pool,
    batch_norm,
    conv,
    dense,
    flat,
    global_average_pool,
    max_pool,
)

SHAPE = (6, 6, 2)
relu = jax.nn.relu


def _network(
    name: str,
    kernels: dict[str, tuple[int, ...]],
    forward: Callable[[Any, Any, Any, Callable[[str, Any], Any]], Any],
    norms: dict[str, int] | None = None,
    bias: bool = True,
    shape: tuple[int, ...] = SHAPE,
) -> Network:
    """``forward(p, s, x, norm)``; every kernel has a random bias, or the head alone."""
    norms = norms or {}

    def init(key: Any) -> Any:  # numpy: nothing to compile
        traced = isinstance(key, jax.core.Tracer)  # for shapes alone
        rng = np.random.default_rng(0 if traced else np.asarray(jax.random.key_data(key)))
        params: dict[str, Any] = {}
        stats: dict[str, Any] = {}
        for k, size in kernels.items():
            params[k] = {"kernel": rng.standard_normal(size) / np.sqrt(np.prod(size[:-1]))}
            if bias or len(size) == 2:
                params[k]["bias"] = 0.3 * rng.standard_normal(size[-1])
        for k, n in norms.items():
            params[k] = {
                "scale": 1 + 0.2 * rng.standard_normal(n),
                "bias": 0.3 * rng.standard_normal(n),
            }
            stats[k] = {"mean": 0.3 * rng.standard_normal(n), "var": 1 + 0.5 * rng.random(n)}
        return params, stats

    def run(params: Any, stats: Any, x: Any, train: bool) -> Any:
        new: dict[str, Any] = {}

        def norm(k: str, z: Any) -> Any:
            z, new[k] = batch_norm(params[k], stats[k], z, train)
            return z

        return forward(params, stats, x, norm), new

    return Network(
        name,
        shape,
        3,
        init,
        lambda p, s, x: run(p, s, x, False)[0],
        lambda p, s, x, key: run(p, s, x, True),
    )


def _conv4(p: Any, s: Any, x: Any, norm: Any, padding: str) -> Any:
    x = relu(conv(p["conv_1"], x, padding=padding))
    x = max_pool(relu(conv(p["conv_2"], x, padding=padding)), 2)
    x = relu(dense(p["dense_1"], flat(x)))
    return dense(p["dense_2"], x)


def conv4(padding: str = "VALID") -> Network:
    """Two convolutions, pooling, a flattening, two dense layers."""
    places = 1 if padding == "VALID" else 9
    kernels = {"conv_1": (3, 3, 2, 5), "conv_2": (3, 3, 5, 6)}
    kernels |= {"dense_1": (6 * places, 7), "dense_2": (7, 3)}
    return _network(f"conv4-{padding}", kernels, lambda *a: _conv4(*a, padding=padding))


def flattened() -> Network:
    """A map of 3 x 2 positions and 4 channels is flattened; asymmetric, so that orders show."""

    def forward(p: Any, s: Any, x: Any, norm: Any) -> Any:
        x = relu(conv(p["conv_1"], x, padding="VALID"))
        return dense(p["dense_2"], relu(dense(p["dense_1"], flat(x))))

    kernels = {"conv_1": (3, 3, 2, 4), "dense_1": (24, 5), "dense_2": (5, 3)}
    return _network("flattened", kernels, forward, shape=(5, 4, 2))


def vgg(bias: bool = True) -> Network:
    """Convolution, norm, ReLU, pooling, twice; average pooling before the head."""

    def forward(p: Any, s: Any, x: Any, norm: Any) -> Any:
        x = max_pool(relu(norm("bn_1", conv(p["conv_1"], x, padding="VALID"))), 2)
        x = relu(norm("bn_2", conv(p["conv_2"], x, padding=0)))
        x = relu(norm("bn_3", conv(p["conv_3"], x, padding=0)))
        return dense(p["dense_1"], flat(average_pool(x, 2)))

    kernels = {"conv_1": (3, 3, 2, 5), "conv_2": (1, 1, 5, 6), "conv_3": (1, 1, 6, 5)}
    return _network(
        "vgg", {**kernels, "dense_1": (5, 3)}, forward, {"bn_1": 5, "bn_2": 6, "bn_3": 5}, bias
    )


def residual(padding: int = 0) -> Network:
    """Two blocks on one stream, then a projecting one; windows of 1 or 3."""
    k = 1 + 2 * padding

    def forward(p: Any, s: Any, x: Any, norm: Any) -> Any:
        x = relu(norm("bn_0", conv(p["stem"], x, padding=padding)))
        for b in ("a", "b"):
            h = relu(norm(f"bn_{b}1", conv(p[f"{b}1"], x, padding=padding)))
            x = relu(x + norm(f"bn_{b}2", conv(p[f"{b}2"], h, padding=padding)))
        h = relu(norm("bn_c1", conv(p["c1"], x, 2, padding=padding)))
        h = norm("bn_c2", conv(p["c2"], h, padding=padding))
        x = relu(h + norm("bn_s", conv(p["shortcut"], x, 2, padding=0)))
        return dense(p["dense_1"], global_average_pool(x))

    kernels = {"stem": (k, k, 2, 5)}
    kernels |= dict.fromkeys(("a1", "a2", "b1", "b2"), (k, k, 5, 5))
    kernels |= {"c1": (k, k, 5, 6), "c2": (k, k, 6, 7), "shortcut": (1, 1, 5, 7)}
    norms = {"bn_0": 5, "bn_a1": 5, "bn_a2": 5, "bn_b1": 5, "bn_b2": 5}
    norms |= {"bn_c1": 6, "bn_c2": 7, "bn_s": 7}
    return _network("residual", {**kernels, "dense_1": (7, 3)}, forward, norms, bias=False)


def mobile() -> Network:
    """A stem, a depthwise convolution without padding, a pointwise one, once more; the head."""

    def forward(p: Any, s: Any, x: Any, norm: Any) -> Any:
        x = relu(norm("bn_0", conv(p["stem"], x, padding=0)))
        for b in ("a", "b"):
            x = conv(p[f"{b}_depthwise"], x, padding="VALID", groups=x.shape[-1])
            x = relu(norm(f"bn_{b}1", x))
            x = relu(norm(f"bn_{b}2", conv(p[f"{b}_pointwise"], x, padding=0)))
        return dense(p["dense_1"], global_average_pool(x))

    kernels = {
        "stem": (1, 1, 2, 5),
        "a_depthwise": (3, 3, 1, 5),
        "a_pointwise": (1, 1, 5, 7),
        "b_depthwise": (3, 3, 1, 7),
        "b_pointwise": (1, 1, 7, 6),
        "dense_1": (6, 3),
    }
    norms = {"bn_0": 5, "bn_a1": 5, "bn_a2": 7, "bn_b1": 7, "bn_b2": 6}
    return _network("mobile", kernels, forward, norms, bias=False)


def joined() -> Network:
    """Two convolutions beside each other, concatenated, and a grouped one behind them."""

    def forward(p: Any, s: Any, x: Any, norm: Any) -> Any:
        x = jnp.concatenate([conv(p["conv_1"], x), conv(p["conv_2"], x)], axis=-1)
        x = relu(conv(p["conv_3"], relu(x), groups=2))
        return dense(p["dense_1"], global_average_pool(x))

    kernels = {"conv_1": (3, 3, 2, 3), "conv_2": (1, 1, 2, 3), "conv_3": (3, 3, 3, 4)}
    return _network("joined", {**kernels, "dense_1": (4, 3)}, forward)


@dataclass(frozen=True)
class Case:
    """A network with weights, statistics and a mask, all numpy."""

    network: Network
    params: Any
    stats: Any
    mask: Any

    @property
    def whole(self) -> Any:
        """mask * params."""
        pairs = zip(flatten(self.params).items(), flatten(self.mask).values(), strict=True)
        flat_ = {k: p if m is None else np.where(m, p, 0) for (k, p), m in pairs}
        return unflatten(flat_, self.params)


def usual(net: Network, seed: int) -> Any:
    """Parameters and statistics of a built-in network as they start, without compiling its init."""
    rng = np.random.default_rng(seed)
    given = jax.eval_shape(net.init, jax.random.key(0))
    flat_ = {k: np.zeros(v.shape) for k, v in flatten(given).items()}
    for k, v in flat_.items():
        if k.endswith(("/scale", "/var")):
            flat_[k] = np.ones(v.shape)
        elif k.endswith("/kernel"):
            flat_[k] = rng.standard_normal(v.shape) * np.sqrt(2 / np.prod(v.shape[:-1]))
    return unflatten(flat_, given)


def case(
    net: Network, seed: int, density: float = 0.5, dead: float = 0.35, drawn: Any = None
) -> Case:
    """A sparse mask under which whole rows and columns are empty."""
    rng = np.random.default_rng(seed)
    drawn = net.init(jax.random.key(seed)) if drawn is None else drawn
    dtype = jnp.result_type(float)
    params, stats = jax.tree.map(lambda a: np.asarray(a, dtype), drawn)
    masks: dict[str, Any] = {}
    for k, p in flatten(params).items():
        masks[k] = None
        if k.endswith("/kernel"):
            m = rng.random(p.shape) < density
            m[..., rng.random(p.shape[-1]) < (0 if k == "dense_2/kernel" else dead)] = False
            if p.shape[-2] > 1:
                m[..., rng.random(p.shape[-2]) < dead, :] = False
            masks[k] = m
    return Case(net, params, stats, unflatten(masks, params))


def inputs(net: Network, n: int = 4, seed: int = 0) -> Any:
    drawn = np.random.default_rng(seed).standard_normal((n, *net.input_shape))
    return jnp.asarray(drawn)
