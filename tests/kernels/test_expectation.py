"""Means over random weights: the closed form against sums over all signs, draws against both.

Weights of independent fair signs are symmetric, so the closed form holds for them, and the mean
over all of them is a finite sum. Real gates of unequal size leave no sum at 0 by accident.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.core.trees import flatten, unflatten
from secateur.kernels.ensemble import DenseEnsemble
from secateur.kernels.expectation import expected_trace, kernel_draws, mean_kernel, over_width
from secateur.kernels.infinite import analytic_kernels, masked_kernels
from secateur.networks.layers import conv, dense, flat, max_pool
from secateur.networks.mlp import mlp

pytestmark = pytest.mark.usefixtures("x64")

X = np.array([[1.0, -0.5, 0.3], [0.2, 0.8, -1.1]])


def of_kernels(name: str, shapes: dict[str, Any], apply: Any, input_shape: Any) -> Network:
    init = lambda key: ({k: {"kernel": jnp.ones(s)} for k, s in shapes.items()}, {})
    outputs = list(shapes.values())[-1][-1]
    run = lambda p, stats, x: apply(p, x)
    return Network(name, input_shape, outputs, init, run, lambda p, s, x, k: (apply(p, x), s))


def convolutions(p: Any, x: Any) -> Any:
    h = jax.nn.relu(conv(p["conv_1"], x))  # zero padding: places with fewer paths
    return dense(p["dense_1"], flat(h))


def linear_between(p: Any, x: Any) -> Any:
    h = jax.nn.relu(dense(p["dense_2"], dense(p["dense_1"], x)))
    return dense(p["dense_3"], h)


NETWORKS = {
    "dense": lambda: mlp(2, 2, input_shape=(2,), outputs=1),
    "free": lambda: mlp(2, 2, input_shape=(2,), outputs=2, bias=False),
    "convolution": lambda: of_kernels(
        "conv", {"conv_1": (2, 1, 1, 2), "dense_1": (6, 1)}, convolutions, (3, 1, 1)
    ),
    "linear between": lambda: of_kernels(
        "gap", {"dense_1": (2, 2), "dense_2": (2, 2), "dense_3": (2, 2)}, linear_between, (2,)
    ),
}


REST = ("free", "linear between")


def mean_over_signs(network: Network, scale: Any, gates: Any, x: Any) -> dict[str, float]:
    """E of each leaf's part of tr Theta over the signs of all weights of these sizes, in full."""
    flat_scale, tree = jax.tree.flatten(scale)
    sizes = [s.size for s in flat_scale]

    def parts(signs: Any) -> Any:
        drawn = jnp.split(signs, np.cumsum(sizes)[:-1])
        theta = tree.unflatten([d.reshape(s.shape) * s for d, s in zip(drawn, flat_scale)])
        through = lambda theta: network.apply(jax.tree.map(jnp.multiply, gates, theta), {}, x)
        return jax.tree.map(lambda j: jnp.sum(j**2), jax.jacrev(through)(theta))

    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=sum(sizes))))
    found = jax.jit(lambda signs: jax.lax.map(parts, signs, batch_size=512))(signs)
    return {name: float(np.mean(part)) for name, part in flatten(found).items()}


@pytest.mark.parametrize(
    "name",
    ["dense", "convolution", *(pytest.param(n, marks=pytest.mark.long) for n in REST)],
)
def test_the_mean_trace_is_the_mean_over_all_signs(name: str) -> None:
    network, rng = NETWORKS[name](), np.random.default_rng(5)
    shapes = {k: s.shape for k, s in flatten(jax.eval_shape(network.init, KEY)[0]).items()}
    variances = {k: rng.uniform(0.5, 2) for k in shapes}
    gates = {k: rng.uniform(0.5, 1.5, s) for k, s in shapes.items()}
    gates[min(shapes, key=lambda k: "kernel" not in k)].flat[0] = 0  # of the first kernel
    x = rng.uniform(-1, 1, (2, *network.input_shape))
    like = jax.eval_shape(network.init, KEY)[0]
    scale = unflatten({k: np.full(s, math.sqrt(variances[k])) for k, s in shapes.items()}, like)
    mask = unflatten(gates, like)
    wanted = mean_over_signs(network, scale, mask, x)
    found = expected_trace(network, variances, x, mask=mask)
    total = sum(wanted.values())
    assert found.value == pytest.approx(total, rel=1e-12)
    assert found.shares == pytest.approx({k: w / total for k, w in wanted.items()}, rel=1e-12)
    first = "conv_1/kernel" if name == "convolution" else "dense_1/kernel"
    some = expected_trace(network, variances, x, mask=mask, counted=lambda k: k == first)
    assert some.shares == {first: 1}
    assert some.value == pytest.approx(wanted[first], rel=1e-12)


KEY = jax.random.key(0)


@pytest.mark.parametrize("s_b", [0.3, pytest.param(0.0, marks=pytest.mark.long)])
def test_the_mean_trace_is_that_of_the_recursions(s_b: float) -> None:
    """Two ways to it: paths through the network's program, and second moments unit by unit."""
    of = DenseEnsemble(3, (6, 5), 2, (1.5, 1.8, 2.1), s_b)
    network, rng = of.network(), np.random.default_rng(2)
    whole = expected_trace(network, of.variances(), X)
    diagonal = np.trace(analytic_kernels(of, X).ntk)
    assert whole.value == pytest.approx(2 * diagonal, rel=1e-12)
    kernels = {f"dense_{l}": rng.random(s) < 0.6 for l, s in enumerate(WIDTHS, start=1)}
    mask = {name: {"kernel": m, "bias": None} for name, m in kernels.items()}
    found = expected_trace(network, of.variances(), X, mask=mask)
    units = np.einsum("nnc->", masked_kernels(of, mask, X).ntk)
    assert found.value == pytest.approx(units, rel=1e-12)
    assert found.value < whole.value


WIDTHS = [(3, 6), (6, 5), (5, 2)]


def test_without_biases_it_is_the_number_of_kept_paths_and_no_depth_overflows() -> None:
    """2^(1 - L) prod sigma_l^2 sum sigma_l^-2 sum_s q_s P_s, as logarithms add up."""
    layers, variance = 9, 1e60
    network = mlp(*[4] * (layers - 1), input_shape=(3,), outputs=4, bias=False)
    rng = np.random.default_rng(0)
    variances = {f"dense_{l}/kernel": variance * l for l in range(1, layers + 1)}
    kernels = {k: rng.random((3 if "_1/" in k else 4, 4)) < 0.7 for k in variances}
    mask = unflatten(kernels, jax.eval_shape(network.init, KEY)[0])
    paths = (X**2).sum(axis=0)
    for m in kernels.values():
        paths = paths @ m
    log = math.log(paths.sum()) + sum(math.log(v) for v in variances.values())
    log += math.log(sum(1 / v for v in variances.values())) - (layers - 1) * math.log(2)
    found = expected_trace(network, variances, X, mask=mask)
    assert found.log == pytest.approx(log, rel=1e-14)
    assert found.value == math.inf
    inverse = {k: 1 / v for k, v in variances.items()}
    assert found.shares == pytest.approx(
        {k: v / sum(inverse.values()) for k, v in inverse.items()}, rel=1e-12
    )


def test_a_mask_without_paths_has_no_trace() -> None:
    network = mlp(3, input_shape=(3,), outputs=2, bias=False)
    mask = {"dense_1": {"kernel": np.ones((3, 3))}, "dense_2": {"kernel": np.zeros((3, 2))}}
    variances = {"dense_1/kernel": 1.0, "dense_2/kernel": 1.0}
    found = expected_trace(network, variances, X, mask=mask)
    assert (found.log, found.value) == (-math.inf, 0)
    assert set(found.shares.values()) == {0}


# -- draws ---------------------------------------------------------------------------------------


def agree(mean: np.ndarray, error: np.ndarray, wanted: np.ndarray) -> None:
    """Within 4 standard errors, which are small beside the values: the comparison can fail."""
    assert np.all(np.abs(mean - wanted) < 4 * error)
    assert np.sqrt(np.mean(error**2)) < 0.05 * np.sqrt(np.mean(wanted**2))


@pytest.mark.long
@pytest.mark.parametrize(
    "parametrisation", ["standard", pytest.param("ntk", marks=pytest.mark.long)]
)
def test_with_one_hidden_layer_draws_mean_the_analytic_kernel(
    parametrisation: str, getkey: Any
) -> None:
    of = DenseEnsemble(3, (48,), 2, (1.7, 1.9), (0.2, 0.1), parametrisation)
    wanted = analytic_kernels(of, X)
    found = mean_kernel(of.network(), X, key=getkey(), draws=100)
    full = wanted.full(2)
    own = full > 0
    agree(found.values[own], found.errors[own], full[own])
    assert np.all(np.abs(found.values[~own]) < 4 * found.errors[~own])  # between outputs
    agree(np.array(found.trace), np.array(found.trace_error), 2 * np.trace(wanted.ntk))


@pytest.mark.long
def test_draws_of_a_masked_deep_network_mean_the_closed_form(getkey: Any) -> None:
    """The trace, at any width; the kernel within the errors, too, as 1 / width is below them."""
    of = DenseEnsemble(3, (48, 40), 2, 4.0)
    network, rng = of.network(), np.random.default_rng(4)
    x = rng.normal(size=(16, 3))  # so many that all units are live at all weights: one program
    like = jax.eval_shape(network.init, KEY)[0]
    shapes = {k: s.shape for k, s in flatten(like).items()}
    kept = lambda k: rng.random(shapes[k]) < 0.5 if "kernel" in k else None
    mask = unflatten({k: kept(k) for k in shapes}, like)
    counted = lambda name: "kernel" in name
    wanted = expected_trace(network, of.variances(), x, mask=mask, counted=counted)
    options = {"mask": mask, "counted": counted, "outputs": "trace"}
    found = mean_kernel(network, x, key=getkey(), draws=150, **options)
    agree(np.array(found.trace), np.array(found.trace_error), np.array(wanted.value))
    free = DenseEnsemble(3, (48, 40), 2, 4.0, biases=False)  # biases begin at 0: none to be seen
    weights = {name: {"kernel": layer["kernel"]} for name, layer in mask.items()}
    kernel = masked_kernels(free, weights, x).ntk.sum(axis=2)
    assert np.trace(kernel) == pytest.approx(wanted.value, rel=1e-12)
    assert np.all(np.abs(found.values - kernel) < 4 * found.errors)


@pytest.mark.long
def test_the_mean_and_its_errors_are_those_of_the_draws(getkey: Any) -> None:
    network, key = DenseEnsemble(3, (4,), 2).network(), getkey()
    kernels = np.stack(list(kernel_draws(network, X, key=key, draws=5)))
    found = mean_kernel(network, X, key=key, draws=5)
    np.testing.assert_allclose(found.values, kernels.mean(axis=0), rtol=1e-13, atol=1e-13)
    error = kernels.std(axis=0, ddof=1) / math.sqrt(5)
    np.testing.assert_allclose(found.errors, error, rtol=1e-12, atol=1e-13)
    traces = np.einsum("kncnc->k", kernels)
    assert found.trace == pytest.approx(traces.mean(), rel=1e-13)
    assert found.trace_error == pytest.approx(traces.std(ddof=1) / math.sqrt(5), rel=1e-12)


@pytest.mark.long
def test_between_different_examples_it_is_a_part_of_the_whole_and_has_no_trace(getkey: Any) -> None:
    network, key = DenseEnsemble(3, (4,), 2).network(), getkey()
    found = mean_kernel(network, X, key=key, draws=3)
    across = mean_kernel(network, X, X[:1], key=key, draws=3)
    np.testing.assert_allclose(across.values, found.values[:, :, :1], rtol=1e-12, atol=1e-13)
    assert across.trace is across.trace_error is None


@pytest.mark.long
def test_a_single_draw_lies_about_the_analytic_kernel_by_one_over_root_width(getkey: Any) -> None:
    """With one hidden layer, in the NTK parametrisation, the kernel is the mean of as many
    independent terms as there are units: the exponent is -1/2 exactly, and the mean has no bias."""
    of = DenseEnsemble(3, (1,), 1, parametrisation="ntk", biases=False)
    widths = [8, 512]
    rows = over_width(of, widths, X, key=getkey(), draws=48)
    assert [row["width"] for row in rows] == widths
    assert rows[1]["weights"] == 512 * 4
    for name in ("draw_to_analytic", "draw_to_mean"):
        log = np.log(widths) - np.mean(np.log(widths))
        y = np.log([row[name] for row in rows])
        error = np.array([row[f"{name}_error"] / row[name] for row in rows])
        slope, slope_error = log @ y / (log @ log), np.linalg.norm(log * error) / (log @ log)
        assert slope_error < 0.08
        assert abs(slope + 0.5) < 3 * slope_error
    for row in rows:
        # Squared, the distance of a mean of draws is noise: a weighed chi-squared of mean 1.
        assert row["mean_to_analytic"] < 3 * row["mean_to_analytic_noise"]
        assert abs(row["trace"] - 1) < 4 * row["trace_error"]
        assert row["draw_to_analytic"] == pytest.approx(row["draw_to_mean"], rel=0.1)


@pytest.mark.long
def test_over_width_under_a_mask_it_is_the_surviving_weights_kernel(getkey: Any) -> None:
    """With one hidden layer the masked recursion is the mean, too, so that noise alone is left."""
    of, key = DenseEnsemble(3, (1,), 1, parametrisation="ntk", biases=False), getkey()
    like = lambda network, keep: jax.tree.map(
        lambda s: keep(s.shape), jax.eval_shape(network.init, KEY)[0]
    )
    rng = np.random.default_rng(7)
    some = lambda network: like(network, lambda shape: rng.random(shape) < 0.6)
    (row,) = over_width(of, [64], X, key=key, draws=48, mask=some)
    assert 0.5 * 256 < row["weights"] < 0.7 * 256
    assert row["mean_to_analytic"] < 3 * row["mean_to_analytic_noise"]
    assert abs(row["trace"] - 1) < 4 * row["trace_error"]
    (whole,) = over_width(of, [64], X, key=key, draws=4)
    every = lambda network: like(network, lambda shape: np.ones(shape, bool))
    (same,) = over_width(of, [64], X, key=key, draws=4, mask=every)
    assert same == pytest.approx(whole, rel=1e-10)


@pytest.mark.long
def test_with_more_layers_the_mean_comes_to_the_analytic_kernel_by_one_over_width(
    getkey: Any,
) -> None:
    """Of two examples far apart; the diagonal is there at once. By Jacobians of 20,000 draws."""
    x = np.array([[1.0, 0.0, 0.0], [-0.8, 0.6, 0.0]])
    missing = []
    for width in (4, 32):
        of = DenseEnsemble(3, (width,) * 3, 1, parametrisation="ntk", biases=False)
        network = of.network()

        def one(key: Any, network: Network = network) -> Any:
            through = lambda p: network.apply(p, {}, x)[:, 0]
            leaves = jax.tree.leaves(jax.jacrev(through)(network.init(key)[0]))
            return sum(jnp.einsum("nij,mij->nm", j, j) for j in leaves)

        keys = jax.random.split(getkey(), 20_000)
        kernels = jax.jit(lambda keys, one=one: jax.lax.map(one, keys, batch_size=500))(keys)
        share = np.asarray(kernels) / analytic_kernels(of, x).ntk
        error = share.std(axis=0) / math.sqrt(len(keys))
        short = 1 - share.mean(axis=0)
        assert np.all(np.abs(np.diag(short)) < 4 * np.diag(error))
        missing.append((short[0, 1], error[0, 1]))
    (narrow, error), (wide, wide_error) = missing
    assert narrow > 4 * error
    assert abs(wide - narrow / 8) < 3 * math.hypot(wide_error, error / 8)
    assert wide_error < narrow / 16


def pooled() -> Network:
    def apply(p: Any, x: Any) -> Any:
        return dense(p["dense_1"], flat(max_pool(jax.nn.relu(conv(p["conv_1"], x)), 2)))

    return of_kernels("pooled", {"conv_1": (1, 1, 1, 2), "dense_1": (2, 1)}, apply, (2, 2, 1))


FREE = {"dense_1/kernel": 1.0, "dense_2/kernel": 1.0}


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: expected_trace(pooled(), {}, np.ones((1, 2, 2, 1))), "max_pool; take mean_kernel"),
        (
            lambda: expected_trace(small(), {"dense_1/kernel": 1.0}, X),
            "'dense_2/kernel' is missing",
        ),
        (lambda: expected_trace(small(), FREE | {"dense_3/kernel": 1.0}, X), "draws"),
        (lambda: expected_trace(small(), FREE | {"dense_1/kernel": 0.0}, X), "positive number"),
        (lambda: expected_trace(small(), FREE, X, counted=lambda k: False), "no leaf is counted"),
        (lambda: mean_kernel(small(), X, key=KEY, draws=1), "at least 2 draws"),
        (lambda: over_width(DenseEnsemble(3, ()), [4], X, key=KEY), "1 hidden layer"),
    ],
)
def test_what_is_refused(make: Any, why: str) -> None:
    with pytest.raises(SecateurError, match=why):
        make()


def small() -> Network:
    return mlp(2, input_shape=(3,), outputs=2)
