"""NTK-SAP: conservation laws of every estimator, what its draws estimate, the limit of many draws.

Identities hold in double precision; what is random is compared with its standard error.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.core.trees import flatten, map_mask
from secateur.networks.layers import average_pool, batch_norm, conv, dense, flat, max_pool
from secateur.networks.mlp import mlp
from secateur.prune.criteria.ntk_sap import NtkSap
from secateur.prune.problem import Problem

KEY = 11
GIVEN: dict[str, Any] = {"theta": "fixed", "inputs": "data"}  # programs that compile quickly


def long(*values: Any) -> Any:
    """A case that takes a while, most of it to compile, and says what another says."""
    return pytest.param(*values, marks=pytest.mark.long)


def net_of(shapes: dict[str, tuple[int, ...]], apply: Any, input_shape: tuple[int, ...]) -> Network:
    """A network of kernels ~ N(0, 2 / fan-in) alone; ``apply(params, x)``."""

    def init(key: Any) -> Any:
        return {
            name: {
                "kernel": jax.random.normal(jax.random.fold_in(key, i), shape)
                * np.sqrt(2 / np.prod(shape[:-1]))
            }
            for i, (name, shape) in enumerate(shapes.items())
        }, {}

    run = lambda p, stats, x: apply(p, x)
    outputs = shapes[list(shapes)[-1]][-1]
    train = lambda p, stats, x, key: (apply(p, x), stats)
    return Network("net", input_shape, outputs, init, run, train)


@cache
def dense_net() -> Network:
    return mlp(9, 8, input_shape=(6,), outputs=4, bias=False, initialiser="kaiming_normal")


@cache
def pooled_net() -> Network:
    """Convolutions, max- and average-pooling, leaky and plain ReLU: homogeneous, without biases."""

    def apply(p: Any, x: Any) -> Any:
        h = max_pool(jax.nn.relu(conv(p["conv_1"], x)), 2)
        h = average_pool(jax.nn.leaky_relu(conv(p["conv_2"], h)), 2)
        return dense(p["dense_1"], flat(h))

    shapes = {"conv_1": (3, 3, 2, 4), "conv_2": (3, 3, 4, 5), "dense_1": (5, 3)}
    return net_of(shapes, apply, (4, 4, 2))


@cache
def plain_conv_net() -> Network:
    """What the closed form covers: convolutions, ReLU, a dense head on the flattened map."""

    def apply(p: Any, x: Any) -> Any:
        h = jax.nn.relu(conv(p["conv_1"], x))
        h = jax.nn.relu(conv(p["conv_2"], h, stride=2))
        return dense(p["dense_1"], flat(h))

    shapes = {"conv_1": (3, 3, 2, 4), "conv_2": (3, 3, 4, 5), "dense_1": (20, 3)}
    return net_of(shapes, apply, (4, 4, 2))


@cache
def residual_net() -> Network:
    """Stem, a branch of two layers beside the identity, head."""

    def apply(p: Any, x: Any) -> Any:
        h = jax.nn.relu(dense(p["stem"], x))
        h = h + dense(p["two"], jax.nn.relu(dense(p["one"], h)))
        return dense(p["head"], h)

    return net_of({"stem": (6, 7), "one": (7, 8), "two": (8, 7), "head": (7, 3)}, apply, (6,))


@cache
def norm_net(phi: Any = jax.nn.relu) -> Network:
    """Two layers with batch norm and a head without."""
    straight = mlp(9, 8, input_shape=(6,), outputs=4, bias=False)

    def init(key: Any) -> Any:
        params, stats = straight.init(key)[0], {}
        for l, width in ((1, 9), (2, 8)):
            params[f"bn_{l}"] = {"scale": jnp.ones(width), "bias": jnp.zeros(width)}
            stats[f"bn_{l}"] = {"mean": jnp.zeros(width), "var": jnp.ones(width)}
        return params, stats

    def run(p: Any, stats: Any, x: Any, train: bool) -> Any:
        new = {}
        for l in (1, 2):
            z, new[f"bn_{l}"] = batch_norm(
                p[f"bn_{l}"], stats[f"bn_{l}"], dense(p[f"dense_{l}"], x), train
            )
            x = phi(z)
        return dense(p["dense_3"], x), new

    return Network(
        "normed",
        (6,),
        4,
        init,
        lambda p, stats, x: run(p, stats, x, False)[0],
        lambda p, stats, x, key: run(p, stats, x, True),
    )


@cache
def begun(network: Network, dtype: Any) -> tuple[Any, Any]:
    """Weights and statistics, once for each precision."""
    return network.init(jax.random.key(1))


def start(network: Network) -> tuple[Any, Any]:
    return begun(network, jnp.result_type(float))


def masked(network: Network, density: float = 0.4) -> Any:
    """A random mask, the same for a network and a density."""
    rng = np.random.default_rng(3)
    like = network.prunable(start(network)[0])
    return map_mask(lambda m: None if m is None else rng.random(m.shape) < density, like)


def signed(sap: NtkSap, network: Network, mask: Any, key: int = KEY, **given: Any) -> Any:
    """The estimate and the signed scores by leaf, compiled."""
    params, stats = start(network)
    run = jax.jit(sap.saliency)
    value, scores = run(Problem(network, stats, **given), params, mask, jax.random.key(key))
    return float(value), {k: np.asarray(s) for k, s in flatten(scores).items() if s is not None}


def layer_sums(sap: NtkSap, network: Network, mask: Any) -> list[float]:
    """Sums of signed scores of each layer over twice the estimate, in the network's order."""
    value, scores = signed(sap, network, mask)
    return [float(s.sum()) / (2 * value) for s in scores.values()]


# -- identities: ntk_pruning.md, section 1.5 ----------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("estimator", ["fd", "limit", *map(long, ("jvp", "vjp", "exact"))])
@pytest.mark.long
def test_layers_and_units_of_a_dense_net_conserve_the_score(estimator: str) -> None:
    theta = "redrawn" if estimator == "limit" else "fixed"
    options = {**GIVEN, "theta": theta}
    sap = NtkSap(estimator=estimator, draws=1, examples=5, sigma=0.7, **options)
    mask = masked(dense_net())
    images = jnp.asarray(np.random.default_rng(0).standard_normal((5, 6)))
    value, scores = signed(sap, dense_net(), mask, images=images)
    layers = list(scores.values())
    for name, s in scores.items():
        m = np.asarray(flatten(mask)[name])
        assert s.sum() == pytest.approx(2 * value, rel=1e-10)
        assert np.all(s[~m] == 0)  # exactly
        assert np.abs(s).sum() / m.sum() >= 2 * value / m.sum() * (1 - 1e-12)
    for below, above in pairwise(layers):
        np.testing.assert_allclose(below.sum(0), above.sum(1), rtol=1e-9, atol=1e-10 * value)
    if estimator == "limit":
        return
    # Scaling the gates of a layer by c scales the estimate and all scores by c^2.
    gates = map_mask(lambda m: m * 1.0, mask)
    gates["dense_2"] = {"kernel": 3 * gates["dense_2"]["kernel"]}
    more, scaled = signed(sap, dense_net(), gates, images=images)
    assert more == pytest.approx(9 * value, rel=1e-10)
    for name, s in scores.items():
        np.testing.assert_allclose(scaled[name], 9 * s, rtol=1e-9, atol=1e-9 * value)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("estimator", ["vjp", *map(long, ("fd", "jvp", "exact"))])
@pytest.mark.long
def test_layers_and_channels_of_a_pooled_convolution_conserve_the_score(estimator: str) -> None:
    sap = NtkSap(estimator=estimator, draws=1, examples=3, sigma=0.7, form="examples", **GIVEN)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 4, 2)))
    value, scores = signed(sap, pooled_net(), masked(pooled_net(), 0.7), images=images)
    for s in scores.values():
        assert s.sum() == pytest.approx(2 * value, rel=1e-10)
    into = [s.reshape(-1, s.shape[-1]).sum(0) for s in scores.values()]
    for below, above in pairwise(scores):
        out_of = scores[above].sum(
            axis=tuple(k for k in range(scores[above].ndim) if k != scores[above].ndim - 2)
        )
        np.testing.assert_allclose(
            into[list(scores).index(below)], out_of, rtol=1e-9, atol=1e-10 * value
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.long
def test_each_layer_carries_the_whole_function() -> None:
    """Euler: sum over a layer of w df/dw is f."""
    network, (params, _) = pooled_net(), start(pooled_net())
    x = jax.random.normal(jax.random.key(5), (3, *network.input_shape))
    f = lambda w: network.apply(w, {}, x)
    for name in params:
        along = {k: jax.tree.map(jnp.zeros_like, v) if k != name else v for k, v in params.items()}
        out, moved = jax.jvp(f, (params,), (along,))
        np.testing.assert_allclose(moved, out, rtol=1e-10, atol=1e-12)


@pytest.mark.long
@pytest.mark.usefixtures("x64")
def test_biases_leave_only_the_last_layer_conserved_and_zero_biases_all() -> None:
    straight = mlp(9, 8, input_shape=(6,), outputs=4)
    network = replace(
        straight,
        init=lambda key: (
            {
                k: {**p, "bias": 0.3 * jax.random.normal(key, p["bias"].shape)}
                for k, p in straight.init(key)[0].items()
            },
            {},
        ),
    )
    mask = masked(network, 1.0)
    sap = NtkSap(estimator="vjp", draws=1, examples=40)
    first, second, last = layer_sums(sap, network, mask)
    assert last == pytest.approx(1, rel=1e-10)
    assert abs(first - 1) > 1e-3
    assert abs(second - 1) > 1e-3
    zero = layer_sums(replace(sap, biases="zero"), network, mask)
    np.testing.assert_allclose(zero, 1, rtol=1e-10)
    value = signed(replace(sap, estimator="limit", biases="zero"), network, mask)[0]
    assert value == 1
    with pytest.raises(SecateurError, match='give biases="zero"'):
        signed(replace(sap, estimator="limit"), network, mask)


@pytest.mark.long
@pytest.mark.usefixtures("x64")
def test_a_branch_beside_the_identity_carries_less_and_the_same_in_both_layers() -> None:
    sap = NtkSap(estimator="vjp", draws=1, examples=40)
    head, one, stem, two = layer_sums(sap, residual_net(), masked(residual_net(), 1.0))
    np.testing.assert_allclose([stem, head], 1, rtol=1e-10)
    assert one == pytest.approx(two, rel=1e-10)
    assert 0.2 < one < 0.9


@pytest.mark.usefixtures("x64")
@pytest.mark.long
def test_the_mode_of_batch_norm_decides_what_the_score_means() -> None:
    mask = masked(norm_net(), 1.0)
    sap = NtkSap(estimator="vjp", draws=1, examples=40)
    np.testing.assert_allclose(layer_sums(replace(sap, bn="init"), norm_net(), mask), 1, rtol=1e-10)
    first, second, last = layer_sums(replace(sap, bn="frozen-batch"), norm_net(), mask)
    assert last == pytest.approx(1, rel=1e-10)
    assert abs(first - 1) > 0.01  # the mean does not scale with the mask
    assert abs(second - 1) > 0.01
    first, second, last = layer_sums(replace(sap, bn="batch"), norm_net(), mask)
    assert last == pytest.approx(1, rel=1e-10)
    np.testing.assert_allclose([first, second], 0, atol=1e-3)  # epsilon alone is left


@pytest.mark.long
@pytest.mark.usefixtures("x64")
def test_the_exact_trace_where_examples_share_statistics_is_the_mean_of_signs() -> None:
    """bn="batch": one Jacobian over the batch; its sums per layer are those of the mode."""
    sap = NtkSap(estimator="exact", draws=1, examples=6, bn="batch")
    first, second, last = layer_sums(sap, norm_net(), masked(norm_net(), 1.0))
    assert last == pytest.approx(1, rel=1e-10)
    np.testing.assert_allclose([first, second], 0, atol=1e-3)


# -- the finite difference and its derivative: section 1.4 --------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["tanh", long("gelu with batch norm")])
@pytest.mark.long
def test_the_finite_difference_tends_to_the_derivative_at_order_one_where_f_is_smooth(
    kind: str,
) -> None:
    """On ReLU it does not; with batch norm it would not if statistics were taken twice."""
    if kind == "tanh":
        network = mlp(9, 8, input_shape=(6,), outputs=4, activation="tanh")
    else:
        network = norm_net(jax.nn.gelu)
    mask, errors = masked(network, 0.8), []
    sap = NtkSap(draws=1, examples=12)
    exact = signed(replace(sap, estimator="jvp"), network, mask)[1]
    norm = np.sqrt(sum(np.sum(s**2) for s in exact.values()))
    sigmas = np.array([1e-3, 1e-5])
    for sigma in sigmas:
        found = signed(replace(sap, sigma=float(sigma)), network, mask)[1]
        errors.append(np.sqrt(sum(np.sum((found[k] - exact[k]) ** 2) for k in exact)) / norm)
    slope = np.polyfit(np.log(sigmas), np.log(errors), 1)[0]
    assert 0.9 < slope < 1.1
    assert errors[0] < 0.1


def scores_of_draws(sap: NtkSap, network: Network, mask: Any, draws: int, **given: Any) -> Any:
    """Estimates (draws,) and signed scores by leaf (draws, ...), one draw each."""
    params, stats = start(network)
    one = replace(sap, draws=1)
    problem = Problem(network, stats, **given)
    keys = jax.random.split(jax.random.key(KEY), draws)
    run = jax.jit(
        lambda keys: jax.lax.map(
            lambda key: one.saliency(problem, params, mask, key), keys, batch_size=250
        )
    )
    values, scores = run(keys)
    leaves = {k: np.asarray(s, float) for k, s in flatten(scores).items() if s is not None}
    return np.asarray(values, float), leaves


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("estimator", "trace"),
    [long("vjp", "masked"), long("vjp", "full"), long("jvp", "masked"), long("jvp", "full")],
)
def test_random_directions_estimate_the_exact_trace_and_its_scores(
    estimator: str, trace: str
) -> None:
    images = jax.random.normal(jax.random.key(2), (3, 6))
    sap = NtkSap(estimator=estimator, examples=3, theta="fixed", inputs="data", trace=trace)
    mask = masked(dense_net(), 0.7)
    value, exact = signed(replace(sap, estimator="exact"), dense_net(), mask, images=images)
    values, scores = scores_of_draws(sap, dense_net(), mask, 3000, images=images)
    z = (values.mean() - value) / (values.std() / np.sqrt(len(values)))
    assert abs(z) < 4
    z = []
    for name, s in scores.items():
        error = s.std(0) / np.sqrt(len(s))
        still = error == 0  # pruned, or on no live path
        np.testing.assert_array_equal(exact[name][still], 0)
        z.append(((s.mean(0) - exact[name]) / np.where(still, 1, error))[~still])
    z = np.concatenate(z)
    assert np.abs(z).max() < 5  # over about 120 weights
    assert 0.6 < z.std() < 1.4


# -- the limit of many draws: section 1.6 -------------------------------------------------------


def paths(network: Network, mask: Any, x: Any) -> float:
    """sum over inputs and paths of q * product of the mask: on it, ReLU is the identity."""
    ones = map_mask(lambda m: np.asarray(m, np.float32), mask)
    q = jnp.sum(jnp.asarray(x, jnp.float32) ** 2, axis=0)[None]
    return float(jnp.sum(network.apply(ones, {}, q)))


@pytest.mark.parametrize("make", [dense_net, long(plain_conv_net)])
@pytest.mark.long
def test_the_mean_trace_over_random_weights_is_the_sum_over_paths(make: Any) -> None:
    """E tr = 2^(1-L) prod var sum 1/var P, for any mask and fixed inputs of unequal size."""
    network = make()
    mask = masked(network, 0.6)
    x = np.random.default_rng(0).random((2, *network.input_shape)).astype(np.float32)
    shapes = [p["kernel"].shape for p in start(network)[0].values()]
    variances = np.array([2 / np.prod(shape[:-1]) for shape in shapes])
    wanted = 2.0 ** (1 - len(shapes)) * variances.prod() * (1 / variances).sum()
    wanted *= paths(network, mask, x)
    sap = NtkSap(estimator="vjp", examples=2, inputs="data")
    values, scores = scores_of_draws(sap, network, mask, 6000, images=jnp.asarray(x))
    error = values.std() / np.sqrt(len(values))
    assert error < 0.03 * wanted
    assert abs(values.mean() - wanted) / error < 4
    _, limit = signed(replace(sap, estimator="limit"), network, mask, images=jnp.asarray(x))
    for name, s in scores.items():
        live = np.asarray(flatten(mask)[name])
        z = (s.mean(0) - wanted * limit[name])[live] / (s.std(0)[live] / np.sqrt(len(s)) + 1e-9)
        assert np.abs(z).max() < 5
        assert s.mean(0)[live].std() < 10 * limit[name][live].std() * wanted + 1e-6


@cache
def averaged_net() -> Network:
    def apply(p: Any, x: Any) -> Any:
        return dense(p["dense_1"], jax.nn.relu(conv(p["conv_1"], x)).mean((1, 2)))

    return net_of({"conv_1": (3, 3, 2, 4), "dense_1": (4, 3)}, apply, (4, 4, 2))


@pytest.mark.long
def test_with_global_average_pooling_the_sum_over_paths_is_not_the_mean() -> None:
    network = averaged_net()
    x = np.random.default_rng(0).random((2, 4, 4, 2)).astype(np.float32)
    mask = masked(network, 1.0)
    sap = NtkSap(estimator="vjp", examples=2, inputs="data")
    values, _ = scores_of_draws(sap, network, mask, 500, images=jnp.asarray(x))
    variances = np.array([2 / 18, 2 / 4])
    # Coefficients 1/16 of the mean, squared.
    naive = 0.5 * variances.prod() * (1 / variances).sum() * paths(network, mask, x) / 16
    assert values.mean() > 2 * naive


@pytest.mark.long
def test_within_a_layer_the_scores_even_out_as_one_over_the_root_of_the_draws() -> None:
    network = mlp(30, 20, input_shape=(15,), outputs=8, bias=False)
    mask = masked(network, 2.0)
    _, scores = scores_of_draws(NtkSap(estimator="vjp", examples=16), network, mask, 2000)
    draws = np.array([10, 40, 160, 640])
    for s in scores.values():
        spread = [
            np.mean(
                [
                    part.mean(0).std() / part.mean()
                    for part in np.split(s[: 2000 // r * r], 2000 // r)
                ]
            )
            for r in draws
        ]
        assert np.polyfit(np.log(draws), np.log(spread), 1)[0] == pytest.approx(-0.5, abs=0.1)


def test_the_limit_ties_within_a_dense_layer_and_the_key_alone_breaks_the_ties() -> None:
    network = dense_net()
    mask, (params, _) = masked(network, 2.0), start(network)
    sap = NtkSap(estimator="limit")
    score = jax.jit(sap.score)
    one, same, other = (
        [np.asarray(s) for s in jax.tree.leaves(score(Problem(network, {}), params, mask, key))]
        for key in map(jax.random.key, (1, 1, 2))
    )
    for a, b, c in zip(one, same, other):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, 2 / a.size, rtol=1e-4)
        assert len(np.unique(a)) > 0.7 * a.size  # what still ties, `select` draws
        rank = lambda s: np.argsort(np.argsort(s.ravel()))
        assert abs(np.corrcoef(rank(a), rank(c))[0, 1]) < 0.6


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (mlp(5, input_shape=(6,), outputs=3, activation="tanh"), "goes through tanh"),
        (pooled_net(), "goes through max_pool"),
        (residual_net(), "two branches of it meet in add"),
        (norm_net(), "goes through sub"),
        (averaged_net(), "goes through reduce_sum"),
    ],
)
@pytest.mark.long
def test_the_limit_refuses_what_it_is_not_known_for(network: Network, why: str) -> None:
    with pytest.raises(SecateurError, match=re.escape(why)) as caught:
        signed(NtkSap(estimator="limit"), network, masked(network))
    assert "\n" not in str(caught.value)


# -- options ------------------------------------------------------------------------------------


@pytest.mark.long
def test_scores_are_of_the_key_and_not_of_the_weights_unless_they_are_fixed() -> None:
    params, _ = start(dense_net())
    other = jax.tree.map(lambda p: 2 * p, params)
    problem, mask = Problem(dense_net(), {}), masked(dense_net())

    def scored(run: Any, p: Any, k: int) -> Any:
        found = jax.tree.leaves(run(problem, p, mask, jax.random.key(k)))
        return np.concatenate([np.ravel(s) for s in found])

    for sap, differs in ((NtkSap(examples=4), False), (NtkSap(examples=4, theta="fixed"), True)):
        at = partial(scored, jax.jit(sap.score))
        first = at(params, 1)
        assert first.dtype == np.float32
        np.testing.assert_array_equal(first, at(params, 1))
        assert not np.array_equal(first, at(params, 2))
        assert np.array_equal(first, at(other, 1)) != differs


@pytest.mark.long
def test_new_input_new_weight_draws_weights_for_every_batch() -> None:
    """On the same inputs, batches that share weights are the same batch."""
    images = jax.random.normal(jax.random.key(2), (3, 6))
    sap = NtkSap(estimator="exact", draws=1, examples=3, inputs="data")
    mask = masked(dense_net())
    at = lambda sap: signed(sap, dense_net(), mask, images=images)[0]
    one = at(sap)
    assert at(replace(sap, batches=3, new_weights=False)) == pytest.approx(one, rel=1e-6)
    assert at(replace(sap, batches=3)) != pytest.approx(one, rel=1e-2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"estimator": "vjq"}, "Did you mean 'vjp'"),
        ({"trace": "ful"}, "Did you mean 'full'"),
        ({"biases": "none"}, "kind of biases"),
        ({"theta": "fix"}, "Did you mean 'fixed'"),
        ({"bn": "frozen"}, "Did you mean 'frozen-batch'"),
        ({"draws": 0}, "at least 1"),
        ({"sigma": 0.0}, "positive standard deviation"),
        ({"estimator": "limit", "trace": "full"}, "masked trace"),
        ({"estimator": "limit", "theta": "fixed"}, "redrawn weights"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SecateurError, match=re.escape(said)):
        NtkSap(**options)
