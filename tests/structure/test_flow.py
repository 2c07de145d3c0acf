"""Flows against paths enumerated one by one, at every form a network may be written in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import enumerated as paths
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import network

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.core.trees import flatten, ones_mask, unflatten
from secateur.networks import layers
from secateur.networks.mlp import mlp
from secateur.structure.flow import flow, log_flow, reachable

RNG = np.random.default_rng(0)


def small_conv() -> Network:
    """conv, norm, relu, max-pool, skip around (depthwise conv, leaky relu), average, flat, dense.

    With everything that R must raise to the power q, and shifts that it must leave out.
    """

    def init(key: Any) -> Any:
        draw = lambda *shape: jnp.asarray(RNG.standard_normal(shape))
        params = {
            "conv": {"kernel": draw(3, 3, 2, 2), "bias": draw(2)},
            "norm": {"scale": draw(2), "bias": draw(2)},
            "deep": {"kernel": draw(3, 3, 1, 2)},
            "dense": {"kernel": draw(2, 2), "bias": draw(2)},
        }
        return params, {"norm": {"mean": draw(2), "var": draw(2) ** 2}}

    def apply(p: Any, stats: Any, x: Any) -> Any:
        x = layers.conv(p["conv"], x)
        x = jax.nn.relu(layers.batch_norm(p["norm"], stats["norm"], x, False)[0])
        x = layers.max_pool(x, 2)
        x = x - 0.5 * jax.nn.leaky_relu(layers.conv(p["deep"], x, groups=2))
        return layers.dense(p["dense"], layers.flat(layers.average_pool(x, 2)))

    return Network("small", (4, 4, 2), 2, init, apply, lambda p, s, x, key: (apply(p, s, x), s))


def enumerate_small_conv(params: Any, stats: Any, v: np.ndarray) -> np.ndarray:
    x = paths.conv(paths.start((4, 4, 2), v), "conv/kernel", 3, 2)
    norm = params["norm"]["scale"] / np.sqrt(stats["norm"]["var"] + layers.EPSILON)
    x = paths.windows(paths.times(x, norm), 2)
    x = paths.added(x, paths.times(paths.conv(x, "deep/kernel", 3, 2, groups=2), 0.5))
    x = paths.times(paths.windows(x, 2), 0.25)
    return paths.dense(x.ravel(), "dense/kernel", 2)


def draw(net: Network, params: Any, density: float, power: int, seed: int = 0) -> tuple[Any, Any]:
    """A random mask and u = (m |theta|)^q, as trees."""
    rng = np.random.default_rng(seed)
    mask = {
        k: None if m is None else rng.random(m.shape) < density
        for k, m in flatten(net.prunable(params)).items()
    }
    flat = flatten(params)
    u = {k: None if m is None else jnp.abs(flat[k] * m) ** power for k, m in mask.items()}
    return unflatten(mask, params), unflatten(u, params)


def known(tree: Any) -> dict[str, np.ndarray]:
    return {k: np.asarray(leaf) for k, leaf in flatten(tree).items() if leaf is not None}


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.long
def test_a_convolutional_flow_is_the_sum_over_its_paths(x64: None, power: int) -> None:
    net = small_conv()
    params, stats = net.init(None)
    v = RNG.random(net.input_shape)
    outputs = enumerate_small_conv(params, stats, v)
    _, u = draw(net, params, 0.6, power)
    r = lambda u: flow(net, params, stats, u, v**power, power=power)
    log_r = lambda u: log_flow(net, params, stats, u, v**power, power=power)
    ((value, exponent), slope), (log, q) = jax.jit(
        lambda u: (
            (r(u), jax.grad(r, has_aux=True)(u)[0]),
            jax.value_and_grad(log_r)(u),
        )
    )(u)
    expected, slopes = paths.flow(outputs, known(u), power)
    np.testing.assert_allclose(value * 2.0**exponent, expected, rtol=1e-13)
    np.testing.assert_allclose(log, np.log(expected), rtol=1e-14)
    for name, exact in slopes.items():
        close = {"rtol": 1e-12, "atol": 1e-14 * abs(exact).max()}
        found = known(slope)[name] * 2.0 ** np.asarray(exponent)
        np.testing.assert_allclose(found, exact, **close)
        np.testing.assert_allclose(known(q)[name] * expected, exact, **close)


def test_reachable_weights_are_those_on_a_kept_path() -> None:
    net = small_conv()
    params, stats = net.init(None)
    outputs = enumerate_small_conv(params, stats, np.ones(net.input_shape))
    for seed, density in enumerate((0.7, 0.4, 0.25, 0.25, 0.1, 0.1)):
        mask, _ = draw(net, params, density, 1, seed)
        reach = reachable(net, params, stats, mask)
        expected = paths.on_paths(outputs, known(mask))
        for name, on in expected.items():
            np.testing.assert_array_equal(known(reach.effective)[name], on)
            np.testing.assert_array_equal(reach.units[name], on.any(axis=tuple(range(on.ndim - 1))))


def test_entries_that_see_padding_alone_are_on_no_path() -> None:
    net = network(
        {"conv": (3, 3, 1, 1)},
        lambda p, x: layers.flat(layers.conv({"kernel": p["conv"]}, x)),
        (1, 1, 1),
        1,
    )
    params, _ = net.init(jax.random.key(0))
    effective = reachable(net, params, {}, ones_mask(net.prunable(params))).effective["conv"]
    assert np.argwhere(np.asarray(effective)).tolist() == [[1, 1, 0, 0]]


def test_reach_neither_over_nor_underflows_in_depth() -> None:
    net = mlp(*[64] * 30, input_shape=(64,), outputs=10, bias=False)
    params = jax.tree.map(
        lambda a: np.zeros(a.shape, a.dtype), jax.eval_shape(net.init, jax.random.key(0))[0]
    )
    full = ones_mask(net.prunable(params))
    assert all(np.all(m) for m in jax.tree.leaves(reachable(net, params, {}, full).effective))
    cut = full | {"dense_9": {"kernel": np.zeros((64, 64), bool)}}
    assert not any(np.any(m) for m in jax.tree.leaves(reachable(net, params, {}, cut).effective))


SHAPES = {"a": (6, 5), "b": (5, 5), "c": (5, 2)}
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "jax.nn.relu": jax.nn.relu,
    "maximum": lambda z: jnp.maximum(z, 0),
    "maximum, turned": lambda z: jnp.maximum(0.0, z),
    "where": lambda z: jnp.where(z > 0, z, 0),
    "where, turned": lambda z: jnp.where(z <= 0, 0.0, z),
    "leaky relu": jax.nn.leaky_relu,
    "leaky relu by hand": lambda z: jnp.where(jnp.less(0, z), z, 0.3 * z),
    "relu6": jax.nn.relu6,
    "clip": lambda z: jnp.clip(z, 0, 1),
    "tanh": jnp.tanh,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "rematerialised": jax.checkpoint(jax.nn.relu),
    "compiled": jax.jit(lambda z: jnp.maximum(z, 0)),
    "half precision": lambda z: jax.nn.relu(z.astype(jnp.bfloat16)).astype(z.dtype),
}


@pytest.mark.parametrize("form", ACTIVATIONS)
def test_an_activation_is_the_identity_however_it_is_written(x64: None, form: str) -> None:
    phi = ACTIVATIONS[form]
    net = network(SHAPES, lambda p, x: phi(phi(x @ p["a"] - 0.3) @ p["b"] / 2) @ p["c"])
    u = {k: jnp.asarray(RNG.random(shape)) for k, shape in SHAPES.items()}
    expected = (np.ones(6) @ u["a"] @ u["b"] @ u["c"]).sum()
    for power in (1, 2):
        r, exponent = flow(net, u, {}, u, power=power)
        np.testing.assert_allclose(r * 2.0**exponent, expected / 2**power, rtol=1e-14)


def test_a_kernel_that_may_not_be_pruned_is_a_coefficient(x64: None) -> None:
    net = network(SHAPES, lambda p, x: (x @ p["a"]) @ p["b"] @ p["c"])
    w = {k: jnp.asarray(RNG.standard_normal(shape)) for k, shape in SHAPES.items()}
    u = {k: None if k == "b" else w[k] ** 2 for k in w}
    r, exponent = flow(net, w, {}, u, power=2)
    expected = (np.ones(6) @ (w["a"] ** 2) @ (w["b"] ** 2) @ (w["c"] ** 2)).sum()
    np.testing.assert_allclose(r * 2.0**exponent, expected, rtol=1e-14)


POOLS: dict[str, Callable[[Any], Any]] = {
    "slices": lambda x: layers.max_pool(x, 2),
    "window": lambda x: jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    ),
    "reshaped": lambda x: x.reshape(x.shape[0], 2, 2, 2, 2, x.shape[-1]).max(axis=(2, 4)),
}


@pytest.mark.parametrize("pool", POOLS)
def test_max_pooling_is_a_sum_or_as_it_is(x64: None, pool: str) -> None:
    w = jnp.asarray(RNG.random((4, 3)))
    net = network({"w": (4, 3)}, lambda p, x: layers.flat(POOLS[pool](x)) @ p["w"], (4, 4, 1), 3)
    v = RNG.random((4, 4, 1))
    patches = v.reshape(2, 2, 2, 2)
    for pooling, pooled in (("sum", patches.sum((1, 3))), ("as_is", patches.max((1, 3)))):
        r, exponent = flow(net, {"w": w}, {}, {"w": w}, v, pooling=pooling)
        np.testing.assert_allclose(r * 2.0**exponent, (pooled.ravel() @ w).sum(), rtol=1e-14)


def test_overlapping_and_padded_windows_are_summed(x64: None) -> None:
    w = jnp.asarray(RNG.random((9, 3)))
    pool = lambda x: layers.max_pool(x, 3, stride=2, padding=1)
    net = network({"w": (9, 3)}, lambda p, x: layers.flat(pool(x)) @ p["w"], (5, 5, 1), 3)
    padded = np.pad(RNG.random((5, 5)), 1)
    sums = [padded[i : i + 3, j : j + 3].sum() for i in (0, 2, 4) for j in (0, 2, 4)]
    r, exponent = flow(net, {"w": w}, {}, {"w": w}, padded[1:6, 1:6, None])
    np.testing.assert_allclose(r * 2.0**exponent, (np.array(sums) @ w).sum(), rtol=1e-14)


def test_as_it_is_with_shifts_is_the_network_at_absolute_values(x64: None) -> None:
    """The published form of SynFlow, by running the network itself."""

    def apply(p: Any, x: Any) -> Any:
        x = jax.nn.relu(layers.conv({"kernel": p["a"], "bias": p["shift"]}, x))
        return layers.flat(layers.max_pool(x, 2)) @ p["c"]

    shapes = {"a": (3, 3, 1, 2), "shift": (2,), "c": (8, 2)}
    net = network(shapes, apply, (4, 4, 1))
    w = {k: jnp.asarray(RNG.random(shape)) for k, shape in shapes.items()}
    u = {k: None if k == "shift" else w[k] for k in w}
    r = lambda u: log_flow(net, w, {}, u, pooling="as_is", keep_bias=True)
    plain = lambda u: jnp.log(apply(u | {"shift": w["shift"]}, jnp.ones((1, 4, 4, 1))).sum())
    log, q = jax.jit(jax.value_and_grad(r))(u)
    expected, slope = jax.jit(jax.value_and_grad(plain))({k: u[k] for k in ("a", "c")})
    np.testing.assert_allclose(log, expected, rtol=1e-14)
    for k in slope:
        np.testing.assert_allclose(q[k], slope[k], rtol=1e-13)


@pytest.mark.parametrize("depth", [10, pytest.param(60, marks=pytest.mark.long)])
def test_float32_follows_a_deep_chain_as_float64_does(depth: int) -> None:
    net = mlp(*[64] * (depth - 1), input_shape=(64,), outputs=64, bias=False)
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        double = {
            f"dense_{l}": {"kernel": jnp.asarray(np.abs(rng.standard_normal((64, 64))) * 1e3)}
            for l in range(1, depth + 1)
        }
        shares = jax.jit(jax.value_and_grad(lambda u: log_flow(net, u, {}, u)))
        log, expected = shares(double)
        found, q = shares(jax.tree.map(lambda a: a.astype(jnp.float32), double))
    assert found.dtype == jnp.float32
    assert float(log) > 100  # R itself is far above float32's largest number
    np.testing.assert_allclose(found, log, rtol=1e-6)
    for k in double:
        np.testing.assert_allclose(q[k]["kernel"], expected[k]["kernel"], rtol=2e-4)


def test_branches_of_very_different_scale_are_added_exactly(x64: None) -> None:
    """The sum of a branch and a skip takes the larger exponent, and every path the same factor."""

    def apply(p: Any, x: Any) -> Any:
        for k in "abc":
            x = x + jax.nn.relu(x @ p[k])
        return x @ p["d"]

    net = network(dict.fromkeys("abcd", (4, 4)), apply, (4,), 4)
    u = {k: jnp.asarray(RNG.random((4, 4))) * s for k, s in zip("abcd", (1e-9, 1e9, 1e-6, 1e-250))}
    eye = np.eye(4)
    middle = np.ones(4) @ (eye + u["a"]) @ (eye + u["b"]) @ (eye + u["c"])
    expected = np.log((middle @ (u["d"] * 1e250)).sum()) - 250 * np.log(10)
    np.testing.assert_allclose(log_flow(net, u, {}, u), expected, rtol=1e-14)
    q = jax.jit(jax.grad(lambda u: log_flow(net, u, {}, u)))(u)
    share = (
        (np.ones(4) @ (eye + u["a"]))[:, None]
        * ((eye + u["c"]) @ u["d"] @ np.ones(4) * 1e250)
        / (middle @ u["d"] * 1e250).sum()
    )
    np.testing.assert_allclose(q["b"], share, rtol=1e-12)


def test_a_dead_branch_has_no_scale_of_its_own() -> None:
    def apply(p: Any, x: Any) -> Any:
        tiny = x
        for _ in range(5):
            tiny = tiny * p["scale"]
        return (x @ p["a"]) @ p["b"] + tiny @ p["c"]

    net = network({"a": (4, 4), "b": (4, 2), "c": (4, 2), "scale": (4,)}, apply, (4,))
    u = {"a": jnp.zeros((4, 4)), "b": jnp.ones((4, 2)), "c": jnp.ones((4, 2)), "scale": None}
    both = jax.jit(jax.value_and_grad(lambda u, p: log_flow(net, p, {}, u)))
    log, q = both(u, u | {"scale": jnp.full(4, 1e-20)})
    np.testing.assert_allclose(log, np.log(8) - 100 * np.log(10), rtol=1e-5)
    np.testing.assert_allclose(q["c"], 1 / 8, rtol=1e-6)


def test_without_a_path_the_log_is_minus_infinity_and_its_gradient_0() -> None:
    net = mlp(4, input_shape=(3,), outputs=2)
    params, _ = net.init(jax.random.key(0))
    u = {k: {"kernel": jnp.zeros_like(p["kernel"]), "bias": None} for k, p in params.items()}
    log, q = jax.jit(jax.value_and_grad(lambda u: log_flow(net, params, {}, u)))(u)
    assert log == -np.inf
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(q))


def _scan(p: Any, x: Any) -> Any:
    return jax.lax.scan(lambda h, w: (h @ w, None), x @ p["a"], p["b"][None])[0] @ p["c"]


UNREADABLE: dict[str, tuple[Callable[[Any, Any], Any], tuple[str, ...]]] = {
    "gate": (
        lambda p, x: ((x @ p["a"]) * jax.nn.sigmoid(x @ p["a"])) @ p["c"],
        ("'logistic'", "'a'"),
    ),
    "product": (lambda p, x: ((x @ p["a"]) * (x @ p["a"])) @ p["c"], ("'mul'", "'a'")),
    "layer norm": (
        lambda p, x: jax.nn.standardize(x @ p["a"]) @ p["c"],
        ("'square'", "after 'a'"),
    ),
    "scan": (_scan, ("'scan'", "'a'")),
    "tied": (lambda p, x: x @ p["a"] @ p["b"] @ p["b"] @ p["c"], ("'dot_general'", "twice")),
    "at the input": (lambda p, x: jnp.exp(x) @ p["a"] @ p["c"], ("'exp'", "at the input")),
    "weight norm": (
        lambda p, x: x @ (p["a"] / jnp.sqrt(jnp.sum(p["a"] ** 2))) @ p["c"],
        ("'a'",),
    ),
    "maxout": (lambda p, x: jnp.maximum(x @ p["a"], -x @ p["a"]) @ p["c"], ("'max'", "max_pool")),
    "shifted kernel": (lambda p, x: x @ (p["a"] + 1) @ p["c"], ("'add'", "'a'")),
    "no input": (lambda p, x: jnp.zeros((len(x), 2)), ("output",)),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_is_refused_by_name(case: str) -> None:
    apply, words = UNREADABLE[case]
    net = network(SHAPES, apply)
    params, _ = net.init(jax.random.key(0))
    with pytest.raises(SecateurError) as error:
        log_flow(net, params, {}, params)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_flows_may_be_mapped_and_compiled(x64: None) -> None:
    net = mlp(4, input_shape=(3,), outputs=2)
    params, _ = net.init(jax.random.key(0))
    us = [draw(net, params, 0.8, 1, seed)[1] for seed in range(3)]
    one = jax.jit(jax.grad(lambda u: log_flow(net, params, {}, u)))
    many = jax.jit(jax.vmap(one))(jax.tree.map(lambda *a: jnp.stack(a), *us))
    for i, u in enumerate(us):
        for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one(u)), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-12, atol=1e-15)
