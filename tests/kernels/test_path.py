"""The path kernel by its definition: one column of a matrix for each path, on small networks."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.network import Network
from secateur.core.trees import flatten, unflatten
from secateur.kernels.path import path_saliency, path_trace, path_trace_drops
from secateur.networks.mlp import mlp


class Paths:
    """All paths of a bias-free MLP: values, their derivatives by the weights, activations."""

    def __init__(self, weights: list[np.ndarray], masks: list[np.ndarray]) -> None:
        self.w, self.m = weights, masks
        sizes = [w.shape[0] for w in weights] + [weights[-1].shape[1]]
        offsets = np.concatenate([[0], np.cumsum([w.size for w in weights])])
        self.units = list(itertools.product(*map(range, sizes)))
        self.kept = np.concatenate([m.ravel() for m in masks])
        self.edges = [
            [
                int(offsets[l]) + a * w.shape[1] + b
                for l, (w, a, b) in enumerate(zip(weights, p, p[1:]))
            ]
            for p in self.units
        ]
        theta = np.concatenate([(w * m).ravel() for w, m in zip(weights, masks)])
        self.jacobian = np.zeros((len(self.edges), theta.size))  # of path values by kept weights
        self.values = np.array([np.prod(theta[e]) for e in self.edges])
        for p, edges in enumerate(self.edges):
            for e in edges:
                self.jacobian[p, e] = self.kept[e] * np.prod([theta[o] for o in edges if o != e])

    def of_data(self, x: np.ndarray, relu: bool) -> np.ndarray:
        """J_v, (examples * outputs, paths): f = J_v pi. Gebhart et al. 2021, section 3."""
        active, h = [], x
        for w, m in zip(self.w[:-1], self.m[:-1]):
            z = h @ (w * m)
            active.append(z > 0 if relu else np.ones_like(z))
            h = z * active[-1]
        rows = np.zeros((len(x), self.w[-1].shape[1], len(self.units)))
        for p, units in enumerate(self.units):
            on = np.prod([a[:, u] for a, u in zip(active, units[1:-1])], axis=0)
            rows[:, units[-1], p] = on * x[:, units[0]]
        return rows.reshape(-1, len(self.units))


# One object for all draws: what is compiled for a network is found again.
network_of = functools.cache(mlp)


def drawn(seed: int, widths: tuple[int, ...], density: float) -> tuple[Network, Any, Any, Paths]:
    rng = np.random.default_rng(seed)
    net = network_of(*widths[1:-1], input_shape=widths[:1], outputs=widths[-1], bias=False)
    weights = [rng.standard_normal(shape) for shape in itertools.pairwise(widths)]
    masks = [rng.random(w.shape) < density for w in weights]
    tree = lambda leaves: {f"dense_{l}": {"kernel": a} for l, a in enumerate(leaves, start=1)}
    params = jax.tree.map(jnp.asarray, tree(weights))
    return net, params, tree(masks), Paths(weights, masks)


def jacobian(net: Network, params: Any, mask: Any, x: np.ndarray) -> np.ndarray:
    """Of the outputs by the kept weights."""
    j = jax.jacobian(
        lambda p: net.apply(jax.tree.map(lambda w, m: w * m, p, mask), {}, jnp.asarray(x)).ravel()
    )(params)
    return np.concatenate(
        [np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(j)], axis=1
    )


@pytest.mark.parametrize("density", [0.7, pytest.param(1.0, marks=pytest.mark.long)])
def test_the_trace_is_that_of_the_enumerated_kernel(x64: None, density: float) -> None:
    for seed in range(3):
        net, params, mask, paths = drawn(seed, (3, 4, 4, 2), density)
        if seed == 1:  # a kept weight of 0 has paths, too
            params["dense_2"]["kernel"] = params["dense_2"]["kernel"].at[0, 0].set(0.0)
            paths = Paths(
                [np.asarray(params[k]["kernel"]) for k in sorted(params)],
                [mask[k]["kernel"] for k in sorted(mask)],
            )
        found = path_trace(net, params, {}, mask)
        kernel = paths.jacobian @ paths.jacobian.T
        np.testing.assert_allclose(np.exp(found.log), np.trace(kernel), rtol=1e-13)
        t, log = path_saliency(net, params, {}, mask)
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t)]) * np.exp(log)
        np.testing.assert_allclose(flat[paths.kept], (paths.jacobian**2).sum(0)[paths.kept], 1e-13)
        parts = np.split((paths.jacobian**2).sum(0), np.cumsum([w.size for w in paths.w])[:-1])
        expected = [part.sum() / np.trace(kernel) for part in parts]
        np.testing.assert_allclose(list(found.shares.values()), expected, rtol=1e-12)


@pytest.mark.long
def test_the_network_factors_into_data_and_paths(x64: None) -> None:
    """f = J_v pi, J = J_v J_pi, and the bounds of the NTK's trace: the oracle is the right one."""
    rng = np.random.default_rng(5)
    net, params, mask, paths = drawn(3, (3, 4, 4, 2), 0.8)
    x = rng.standard_normal((6, 3))
    data = paths.of_data(x, relu=True)
    masked = jax.tree.map(lambda w, m: w * m, params, mask)
    outputs = np.asarray(net.apply(masked, {}, jnp.asarray(x))).ravel()
    np.testing.assert_allclose(data @ paths.values, outputs, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(
        data @ paths.jacobian, jacobian(net, params, mask, x), rtol=1e-12, atol=1e-13
    )
    kernel = paths.jacobian @ paths.jacobian.T
    ntk = np.trace(data @ kernel @ data.T)
    sigma = np.linalg.svd(data, compute_uv=False) ** 2
    spectrum = np.sort(np.linalg.eigvalsh(kernel))[::-1]
    neumann = (spectrum[: len(sigma)] * sigma).sum()
    trace = float(np.exp(path_trace(net, params, {}, mask).log))
    assert ntk <= neumann <= sigma[0] * trace * (1 + 1e-12)


def test_each_drop_is_the_difference_of_two_traces(x64: None) -> None:
    net, params, mask, _ = drawn(2, (3, 4, 4, 2), 0.75)
    drops, log = path_trace_drops(net, params, {}, mask)
    trace = jax.jit(lambda mask: jnp.exp(path_trace(net, params, {}, mask).log))
    whole = float(trace(mask))
    flat_mask, flat = flatten(mask), flatten(drops)
    for name, m in flat_mask.items():
        for place in np.argwhere(m):
            without = m.copy()
            without[tuple(place)] = False
            fall = whole - float(trace(unflatten(flat_mask | {name: without}, mask)))
            found = float(flat[name][tuple(place)] * np.exp(log))
            np.testing.assert_allclose(found, fall, rtol=1e-12, atol=1e-12 * whole)
        assert (np.asarray(flat[name])[~m] == 0).all()
    total = sum(float(leaf.sum()) for leaf in flat.values()) * np.exp(log)
    np.testing.assert_allclose(total, 3 * whole, rtol=1e-12)  # L Tr Pi


@pytest.mark.parametrize(
    ("activation", "factor"), [("relu", 0.25), pytest.param("linear", 1.0, marks=pytest.mark.long)]
)
def test_the_data_weighted_trace_is_the_ntk_averaged_over_signs(
    x64: None, activation: str, factor: float
) -> None:
    """All 2^12 signs of a 2-2-2-2 network: mean Tr Theta(x, x) = 2^(1 - L) Tr_x Pi with relu."""
    net = mlp(2, 2, input_shape=(2,), outputs=2, bias=False, activation=activation)
    rng = np.random.default_rng(0)
    sizes, x = np.abs(rng.standard_normal((3, 2, 2))), rng.standard_normal(2)

    def ntk(signs: jax.Array) -> jax.Array:
        w = signs.reshape(3, 2, 2) * sizes
        f = lambda w: net.apply(
            {f"dense_{l + 1}": {"kernel": w[l]} for l in range(3)}, {}, jnp.asarray(x)[None]
        )[0]
        return jnp.sum(jax.jacobian(f)(w) ** 2)

    signs = jnp.asarray(list(itertools.product((-1.0, 1.0), repeat=12)))
    mean = jnp.mean(jax.jit(jax.vmap(ntk))(signs))
    params = {f"dense_{l + 1}": {"kernel": jnp.asarray(sizes[l])} for l in range(3)}
    mask = jax.tree.map(lambda w: np.ones(w.shape, bool), params)
    trace = jnp.exp(path_trace(net, params, {}, mask, jnp.asarray(x) ** 2).log)
    np.testing.assert_allclose(mean / trace, factor, rtol=1e-12)


def test_large_traces_are_finite_and_right_in_float32() -> None:
    net = mlp(*[16] * 7, input_shape=(16,), outputs=16, bias=False)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        params = {
            f"dense_{l}": {"kernel": jnp.asarray(1e3 * rng.standard_normal((16, 16)))}
            for l in range(1, 9)
        }
        mask = jax.tree.map(lambda w: rng.random(w.shape) < 0.5, params)
        both = jax.jit(lambda p: (path_trace(net, p, {}, mask), path_trace_drops(net, p, {}, mask)))
        exact, exact_drops = jax.tree.map(np.asarray, both(params))
        found, drops = jax.tree.map(
            np.asarray, both(jax.tree.map(lambda w: w.astype(jnp.float32), params))
        )
    assert found.log.dtype == np.float32
    assert exact.log > 100  # beyond float32
    np.testing.assert_allclose(found.log, exact.log, rtol=1e-6)
    np.testing.assert_allclose(list(found.shares.values()), list(exact.shares.values()), rtol=1e-4)
    for a, b in zip(jax.tree.leaves(drops.tree), jax.tree.leaves(exact_drops.tree), strict=True):
        np.testing.assert_allclose(a * np.exp(drops.log - exact_drops.log), b, rtol=1e-3)


def test_a_cut_network_has_no_trace() -> None:
    net, params, mask, _ = drawn(0, (3, 4, 4, 2), 1.0)
    mask["dense_2"]["kernel"][:] = False
    params = jax.tree.map(lambda w: w.astype(jnp.float32), params)
    found = jax.jit(lambda p: path_trace(net, p, {}, mask))(params)
    assert found.log == -np.inf
    assert all(share == 0 for share in found.shares.values())


def test_a_head_that_starts_at_0_has_a_trace(x64: None) -> None:
    """R is 0 and its derivatives are not: of the last weights alone."""
    net, params, mask, paths = drawn(2, (3, 4, 4, 2), 0.75)
    params["dense_3"]["kernel"] = jnp.zeros((4, 2))
    paths = Paths([np.asarray(p["kernel"]) for p in params.values()], paths.m)
    log, shares = path_trace(net, params, {}, mask)
    np.testing.assert_allclose(np.exp(log), (paths.jacobian**2).sum(), rtol=1e-13)
    assert shares["dense_3/kernel"] == 1
