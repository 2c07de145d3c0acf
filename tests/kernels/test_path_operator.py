"""The path kernel's dual against all paths one by one, its spectrum, its rank, its laws."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from pathwise import Oracle, enumerated, mixed, mixed_paths
from test_path import drawn

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.core.trees import flatten, map_mask, ones_mask, unflatten
from secateur.kernels.path import path_product
from secateur.kernels.path_operator import path_kernel
from secateur.kernels.path_rank import path_rank
from secateur.networks import layers
from secateur.networks.mlp import mlp

WIDTHS = (4, 5, 3, 2)  # 120 paths


def dual(net: Network, params: Any, mask: Any, paths: Any) -> tuple[Any, np.ndarray]:
    """The kernel, and D over kept weights by enumeration."""
    columns = paths.jacobian[:, paths.kept]
    return path_kernel(net, params, {}, mask), columns.T @ columns


@pytest.mark.parametrize("seed", [4, pytest.param(1, marks=pytest.mark.long)])
def test_it_is_the_enumerated_kernel(x64: None, seed: int) -> None:
    net, params, mask, paths = drawn(seed, WIDTHS, 0.6)
    found, exact = dual(net, params, mask, paths)
    scale = np.exp(found.log)
    close = {"rtol": 1e-12, "atol": 1e-13 * exact.max()}
    live = np.ix_(found.edges, found.edges)
    assert sum(found.leaves.values()) == found.operator.size == paths.kept.sum()
    np.testing.assert_allclose(found.diagonal * scale, np.diag(exact), **close)
    np.testing.assert_allclose(found.matrix() * scale, exact[live], **close)
    rows = np.stack([found.operator.matvec(row) for row in np.eye(len(exact))])
    np.testing.assert_allclose(rows * scale, exact, **close)
    np.testing.assert_allclose(found.log_trace, np.log(np.trace(exact)), atol=1e-13)
    np.testing.assert_allclose(sum(found.shares.values()), 1, rtol=1e-13)
    primal = np.linalg.eigvalsh(paths.jacobian @ paths.jacobian.T)[::-1]
    rank = np.linalg.matrix_rank(paths.jacobian)
    assert found.rank == rank
    every = found.eigenvalues()
    np.testing.assert_allclose(np.exp(every.log), primal[:rank], rtol=1e-10, atol=1e-13)
    seen = found.spectrum()
    assert seen.rank == rank
    np.testing.assert_allclose(seen.stable_rank, primal.sum() / primal[0], rtol=1e-12)
    np.testing.assert_allclose(
        seen.participation, primal.sum() ** 2 / (primal**2).sum(), rtol=1e-12
    )


def test_the_largest_eigenvalue_three_ways(x64: None) -> None:
    net, params, mask, paths = drawn(4, WIDTHS, 0.6)
    found, exact = dual(net, params, mask, paths)
    largest = np.linalg.eigvalsh(exact)[::-1]
    top = found.top(3)
    np.testing.assert_allclose(np.exp(top.log), largest[:3], rtol=1e-10)
    assert (top.errors <= 1e-6).all()
    linear = scipy.sparse.linalg.aslinearoperator(found.operator)
    (arpack,) = scipy.sparse.linalg.eigsh(linear, 1, return_eigenvectors=False, tol=1e-14)
    np.testing.assert_allclose(np.log(arpack) + found.log, np.log(largest[0]), atol=1e-10)

    @jax.jit
    def step(x: Any) -> tuple[Any, jax.Array]:
        y, log = path_product(net, params, {}, mask, x)
        size = jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(y)))
        return jax.tree.map(lambda leaf: leaf / size, y), jnp.log(size) + log

    x = params
    for _ in range(100):
        x, log = step(x)
    np.testing.assert_allclose(log, np.log(largest[0]), atol=1e-10)


@pytest.mark.long
def test_beyond_what_is_formed_the_spectrum_comes_from_products(
    x64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, params, mask, _ = drawn(0, (14, 14, 10, 4), 0.8)
    found = path_kernel(net, params, {}, mask)
    every = np.exp(found.eigenvalues().log - found.log)
    monkeypatch.setattr("secateur.kernels.path_operator.DENSE", 100)
    with pytest.raises(SecateurError, match="would be a matrix"):
        found.matrix()
    seen = found.spectrum()
    assert seen.method == "deflated"
    np.testing.assert_allclose(seen.largest, every[0], rtol=1e-6)
    participation = every.sum() ** 2 / (every**2).sum()
    error = seen.error_of("participation")
    assert abs(seen.participation - participation) <= 4 * error + 1e-6 * participation


def mixed_mask(net: Network, params: Any, density: float, bias: bool) -> Any:
    rng = np.random.default_rng(3)
    names = {"a/bias", "c/bias", "conv/bias"} if bias else set()
    flat = flatten(params)
    draw = lambda k, leaf: rng.random(leaf.shape) < (1 if k in names else density)
    kept = {k: draw(k, p) if k in names or k.endswith("kernel") else None for k, p in flat.items()}
    return unflatten(kept, params)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.long
def test_convolution_norm_pooling_and_residual_as_enumerated(x64: None, bias: bool) -> None:
    net = mixed()
    params, stats = net.init(None)
    mask = mixed_mask(net, params, 0.5, bias)
    flat = {k: np.asarray(p) for k, p in flatten(params).items()}
    oracle = Oracle.of(mixed_paths(params, stats, bias), flat, flatten(mask))
    found = path_kernel(net, params, stats, mask, keep_bias=bias)
    exact, live = oracle.dual, np.ix_(found.edges, found.edges)
    np.testing.assert_allclose(found.log_trace, np.log(np.trace(exact)), atol=1e-12)
    close = {"rtol": 1e-10, "atol": 1e-13 * exact.max()}
    np.testing.assert_allclose(found.matrix() * np.exp(found.log), exact[live], **close)
    np.testing.assert_allclose(exact.sum(), exact[live].sum(), rtol=1e-13)
    rank = np.linalg.matrix_rank(oracle.j_pi)
    assert len(found.eigenvalues().log) == rank
    if not bias:
        assert found.rank == rank


def test_the_rank_is_edges_less_hidden_units(x64: None) -> None:
    """Random masks at all densities, kept weights of 0, cut networks."""
    ranks = []
    for seed, density in enumerate((1.0, 0.8, 0.6, 0.6, 0.5, 0.4, 0.4, 0.3, 0.2)):
        net, params, mask, paths = drawn(seed, (3, 4, 4, 2), density)
        if seed % 2:
            params["dense_2"]["kernel"] = params["dense_2"]["kernel"].at[:, 1].set(0)
            params["dense_3"]["kernel"] = params["dense_3"]["kernel"].at[2, 0].set(0)
        flat = {k: np.asarray(p) for k, p in flatten(params).items()}
        again = type(paths)(list(flat.values()), list(flatten(mask).values()))
        ranks.append(np.linalg.matrix_rank(again.jacobian))
        assert path_rank(net, params, {}, mask) == ranks[-1], (seed, ranks)
    assert len(set(ranks)) > 4


def residual() -> Network:
    """Of two blocks beside a stream, the first around nothing, the stream left and taken up."""

    def init(key: Any) -> Any:
        rng = np.random.default_rng(2)
        shapes = {"a": (3, 4), "b": (4, 4), "c": (4, 4), "d": (4, 2)}
        return {k: {"kernel": jnp.asarray(rng.standard_normal(s))} for k, s in shapes.items()}, {}

    def apply(p: Any, s: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ p["a"]["kernel"])
        h = h + jax.nn.relu(h @ p["b"]["kernel"])
        return (h + h @ p["c"]["kernel"]) @ p["d"]["kernel"]

    return Network("residual", (3,), 2, init, apply, lambda p, s, x, key: (apply(p, s, x), s))


def test_units_that_a_shortcut_ties_count_once(x64: None) -> None:
    net = residual()
    params, _ = net.init(None)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        drawn_ = {k: rng.random(p.shape) < 0.7 - 0.07 * seed for k, p in flatten(params).items()}
        mask = unflatten(drawn_, params)
        x = enumerated.start((3,), np.ones(3))
        for name in "abc":
            y = enumerated.dense(x, f"{name}/kernel", 4)
            x = y if name == "a" else enumerated.added(x, y)
        ends = enumerated.dense(x, "d/kernel", 2)
        flat = {k: np.asarray(p) for k, p in flatten(params).items()}
        oracle = Oracle.of(ends, flat, flatten(mask))
        assert path_rank(net, params, {}, mask) == np.linalg.matrix_rank(oracle.j_pi), seed


def test_rescaling_a_unit_changes_the_kernel_and_permuting_units_does_not(x64: None) -> None:
    """In by 4, out by 1/4: D_ef / (scale_e scale_f), though the network computes the same."""
    net, params, mask, _ = drawn(4, WIDTHS, 0.7)
    scales = {k: np.ones(p["kernel"].shape) for k, p in params.items()}
    scales["dense_1"][:, 2], scales["dense_2"][2] = 4, 0.25
    scaled = {k: {"kernel": p["kernel"] * scales[k]} for k, p in params.items()}
    x = np.random.default_rng(0).standard_normal((5, 4))
    outputs = jax.jit(net.apply)
    np.testing.assert_allclose(outputs(scaled, {}, x), outputs(params, {}, x), rtol=1e-12)
    one, other = path_kernel(net, params, {}, mask), path_kernel(net, scaled, {}, mask)
    by = np.concatenate([scales[k][mask[k]["kernel"]] for k in scales])[one.edges]
    np.testing.assert_allclose(
        other.matrix() * np.exp(other.log - one.log), one.matrix() / np.outer(by, by), rtol=1e-12
    )
    assert abs(other.log_trace - one.log_trace) > 0.1
    assert other.rank == one.rank

    order = np.array([3, 0, 4, 2, 1])
    turn = lambda tree: {
        "dense_1": {"kernel": tree["dense_1"]["kernel"][:, order]},
        "dense_2": {"kernel": tree["dense_2"]["kernel"][order]},
        "dense_3": tree["dense_3"],
    }
    turned = path_kernel(net, turn(params), {}, turn(mask))
    np.testing.assert_allclose(turned.eigenvalues().log, one.eigenvalues().log, atol=1e-9)
    np.testing.assert_allclose(turned.log_trace, one.log_trace, atol=1e-13)


@pytest.mark.parametrize("depth", [8, pytest.param(60, marks=pytest.mark.long)])
def test_a_deep_network_in_single_precision(depth: int) -> None:
    """Trace and top eigenvalue against products of matrices with their logarithms beside them."""
    net = mlp(*[6] * (depth - 1), input_shape=(6,), outputs=6, bias=False)
    rng = np.random.default_rng(0)
    w = [(1e9 * rng.standard_normal((6, 6))).astype(np.float32) for _ in range(depth)]
    params = {f"dense_{l}": {"kernel": jnp.asarray(leaf)} for l, leaf in enumerate(w, start=1)}
    mask = ones_mask(net.prunable(params))
    found = path_kernel(net, params, {}, mask)
    squares = [leaf.astype(np.float64) ** 2 / 1e18 for leaf in w]
    ahead = list(itertools.accumulate(squares, lambda f, a: f @ a, initial=np.ones(6)))
    behind = list(itertools.accumulate(squares[::-1], lambda b, a: a @ b, initial=np.ones(6)))
    t = [np.outer(ahead[l], behind[depth - 1 - l]) for l in range(depth)]
    exact = np.log(np.sum(t)) + (depth - 1) * np.log(1e18)
    assert exact > 250  # float32 ends at 88
    np.testing.assert_allclose(found.log_trace, exact, atol=1e-4)
    assert found.operator.dtype == np.float32
    if depth == 60:  # there are only 36 edges a layer: one eigenvalue is at least the mean
        largest = found.top(1, tolerance=1e-4).log[0]
        assert found.log_trace - np.log(found.rank) <= largest <= found.log_trace


def pooled() -> Network:
    def init(key: Any) -> Any:
        rng = np.random.default_rng(0)
        return {"d": {"kernel": jnp.asarray(rng.standard_normal((4, 2)))}}, {}

    apply = lambda p, s, x: layers.flat(layers.max_pool(x, 2)) @ p["d"]["kernel"]
    return Network("pooled", (4, 4, 1), 2, init, apply, lambda p, s, x, key: (apply(p, s, x), s))


def test_max_pooling_is_refused_or_summed(x64: None) -> None:
    net = pooled()
    params, stats = net.init(None)
    mask = ones_mask(net.prunable(params))
    with pytest.raises(SecateurError, match='pooling="sum"'):
        path_kernel(net, params, stats, mask)
    found = path_kernel(net, params, stats, mask, pooling="sum")
    assert found.log_trace == pytest.approx(np.log(4 * 8))  # 4 places to each of 8 weights


def test_without_a_path_there_is_no_kernel(x64: None) -> None:
    net, params, mask, _ = drawn(4, WIDTHS, 0.7)
    cut = map_mask(lambda m: m.copy(), mask)
    cut["dense_2"]["kernel"][:] = False
    with pytest.raises(SecateurError, match="no path of kept weights"):
        path_kernel(net, params, {}, cut)
    found = path_kernel(net, params, {}, mask, v=np.array([1.0, 0, 1, 1]))
    with pytest.raises(SecateurError, match="counted for paths from all inputs"):
        _ = found.rank
    with pytest.raises(SecateurError, match="ask for 1 to"):
        found.top(10_000)
