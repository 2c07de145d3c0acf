"""XORD: the network, its descent, and what is read off its filters."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.data import toys
from secateur.features import xord as measures
from secateur.networks import xord as network
from secateur.train import xord as training

V = toys.PATTERNS.T.astype(np.float64)  # columns v_1 .. v_4


MISTAKEN, ANGLES = jax.jit(measures.mistaken), jax.jit(measures.angles)


def filters(plus, minus):
    return {
        side: {"kernel": np.asarray(kernel, np.float32)}
        for side, kernel in (("for", plus), ("against", minus))
    }


RIGHT = filters(3 * V[:, [0, 2]], V[:, [1, 3]])  # N = 8 on diverse positives


def by_hand(params, x):
    total = 0.0
    for side, sign in (("for", 1), ("against", -1)):
        for w in np.asarray(params[side]["kernel"], np.float64).T:
            total += sign * max(max(float(w @ pair), 0.0) for pair in x)
    return total


def test_the_network_is_the_formula():
    net = network.xord(6, 5, deviation=1.0)
    x = toys.PATTERNS[np.random.default_rng(0).integers(0, 4, (20, 6))]

    @jax.jit
    def all_at_once(key):
        params, stats = net.init(key)
        same = network.function(params, toys.condensed(toys.present(x)))
        return params, net.apply(params, stats, x), same

    params, found, same = jax.tree.map(np.asarray, all_at_once(jax.random.key(0)))
    assert found.shape == (20, 1)
    np.testing.assert_allclose(found[:, 0], [by_hand(params, each) for each in x], rtol=1e-5)
    np.testing.assert_allclose(same, found[:, 0], rtol=1e-5)  # what repeats adds nothing
    drawn = network.draw(jax.random.key(0), 4000)["for"]["kernel"]
    assert np.std(drawn) == pytest.approx(network.small_deviation(4000), rel=0.05)
    with pytest.raises(SecateurError, match="at least one"):
        network.xord(6, 0)


def test_the_hinge_is_the_papers():
    params = filters(V[:, [0]], 0.3 * V[:, [1]])  # N = 2 - 0.6, 2, 0, -0.6 on what follows
    x = np.stack([V.T[[0, 1]], V.T[[0, 0]], V.T[[3, 3]], V.T[[1, 3]]])
    y = np.array([1, 1, -1, -1])
    hinge = jax.jit(training.hinge)
    expected = ((8 - 1.4) + (8 - 2)) / 2 + (1 + 0.4) / 2
    assert float(hinge(params, x, y, 8.0)) == pytest.approx(expected, rel=1e-6)
    assert float(hinge(params, x, y, 1.0)) == pytest.approx(0.7, rel=1e-6)


def test_four_filters_are_enough_and_each_is_needed():
    assert not np.any(MISTAKEN(RIGHT))
    blind = filters(3 * V[:, [0, 0]], V[:, [1, 3]])  # never saw v_3
    wrong = np.asarray(MISTAKEN(blind))
    has = toys.TYPES
    np.testing.assert_array_equal(wrong, has[:, 2] & ~has[:, 0])
    # All 4096 inputs of six pairs, one by one.
    chances = toys.type_probabilities(6, 0.98)
    inputs = np.array(list(itertools.product(toys.PATTERNS, repeat=6)))
    present = np.asarray(jax.jit(toys.present)(inputs))
    labels, diverse = toys.labels_of(present), toys.is_diverse(present)
    outputs = np.asarray(jax.jit(network.function)(blind, inputs))
    expected = 0.0
    for side, whole in itertools.product((1, -1), (True, False)):
        members = (labels == side) & (diverse == whole)
        expected += (0.98 if whole else 0.02) / 2 * np.mean(side * outputs[members] <= 0)
    assert float(jax.jit(measures.error_rate)(blind, chances)) == pytest.approx(expected, rel=1e-5)


def test_angles_and_exploration_by_brute_force():
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((2, 200)).astype(np.float32)
    exact = kernel.astype(np.float64)
    cosines = V.T @ (exact / np.linalg.norm(exact, axis=0)) / np.sqrt(2)
    expected = np.degrees(np.arccos(cosines.max(axis=0)))
    np.testing.assert_allclose(ANGLES(kernel), expected, atol=1e-4)
    np.testing.assert_array_equal(measures.nearest(kernel), cosines.argmax(axis=0))
    np.testing.assert_array_equal(ANGLES(np.zeros((2, 200), np.float32)), 45)

    assert bool(measures.explored(RIGHT))
    assert not bool(measures.explored(filters(V[:, [0, 1]], V[:, [1, 3]])))
    assert measures.chance_explored(2) == pytest.approx(1 / 64)
    for k in (2, 5):  # by listing what each filter may be nearest to
        each = list(itertools.product(range(4), repeat=k))
        share = np.mean([{0, 2} <= set(one) for one in each])
        assert measures.chance_explored(k) == pytest.approx(share**2)


def test_gathered_filters_are_told_apart_from_small_ones():
    kernel = np.concatenate([5 * V[:, [0, 0, 2]], 0.1 * np.array([[1.0], [0.0]])], axis=1)
    gathered = jax.jit(measures.gathered)
    found = gathered(kernel.astype(np.float32), 0.2)
    assert int(found.large) == 3
    assert float(found.angle) == pytest.approx(0, abs=1e-4)
    np.testing.assert_allclose(found.shares, [2 / 3, 0, 1 / 3, 0], rtol=1e-6)
    every = gathered(kernel.astype(np.float32), 0.0)
    assert float(every.widest) == pytest.approx(45)
    assert float(every.angle) == pytest.approx(45 / 4)


def test_descent_stops_where_nothing_moves_and_takes_every_step_before():
    k, rate, steps = 8, 0.01, 120
    rng = np.random.default_rng(0)
    start = filters(0.05 * rng.standard_normal((2, k)), 0.05 * rng.standard_normal((2, k)))
    x = toys.PATTERNS[rng.integers(0, 4, (12, 6))]
    x[6:] = toys.PATTERNS[1 + 2 * rng.integers(0, 2, (6, 6))]
    y = np.repeat([1, -1], 6)
    mask = jax.tree.map(lambda a: np.arange(a.size).reshape(a.shape) % 5 > 0, start)
    found = training.separate(start, x, y, rate=rate, steps=steps, mask=mask, rows=4)
    params = jax.tree.map(lambda p, m: p * m, start, mask)

    @jax.jit
    def step(params):
        slope = jax.grad(training.hinge)(params, x, y)
        return jax.tree.map(lambda p, g, m: p - rate * g * m, params, slope, mask)

    for _ in range(steps):
        params = step(params)
    for a, b, m in zip(*map(jax.tree.leaves, (found.params, params, mask))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert np.all(np.asarray(a)[~np.asarray(m)] == 0)
    assert found.path["for"]["kernel"].shape == (5, 2, k)
    np.testing.assert_array_equal(found.path["for"]["kernel"][-1], found.params["for"]["kernel"])
    # From the solution itself no step is taken.
    right = jax.tree.map(lambda w: np.pad(w, ((0, 0), (0, k - 2))), RIGHT)
    every = jax.tree.map(lambda w: np.ones(w.shape, bool), right)
    whole = toys.PATTERNS[[[0, 1, 2, 3, 0, 1]] * 6 + [[1, 3, 1, 3, 1, 3]] * 6]
    done = training.separate(right, whole, y, rate=rate, steps=steps, mask=every, rows=4)
    assert int(done.steps) == 0
    assert bool(done.fitted)


@partial(jax.jit, static_argnames=["widest"])
def world(keys, filters, widest):
    """Starts of so many filters, those beyond them 0, and 12 examples, one lane a key."""

    def one(key, k):
        a, b = jax.random.split(key)
        start = network.draw(a, widest, 1 / (410 * 16 * k**1.5))
        start = jax.tree.map(lambda w: jnp.where(jnp.arange(widest) < k, w, 0), start)
        return start, *toys.xord(b, 12)

    return jax.vmap(one)(keys, filters)


def outcome(widths, seeds, steps=training.STEPS):
    """Whether seeds of each width fit, whether they err, mean angles: each (widths, seeds)."""
    lanes = np.repeat(np.array(widths, np.float32), seeds)
    keys = jax.random.split(jax.random.key(0), len(lanes))
    starts, x, y = world(keys, lanes, max(widths))
    run = training.separate_lanes(starts, x, y, rates=4 / (410 * lanes), steps=steps)

    @jax.jit
    @jax.vmap
    def read(params):
        angle = measures.gathered(params["for"]["kernel"]).angle
        return jnp.any(measures.mistaken(params)), angle

    found = run.fitted, *read(run.params)
    return [np.asarray(each).reshape(len(widths), seeds) for each in found]


def test_wide_networks_that_fit_err_less_often():
    """Few seeds and a twentieth of the steps; both widths are lanes of one program."""
    fitted, wrong, angle = outcome((2, 16), 32, steps=1200)
    assert np.all(fitted.sum(axis=1) >= 16)
    narrow, wide = (wrong[i][fitted[i]].mean() for i in range(2))
    assert narrow > 0.8
    assert wide < 0.5
    assert angle[1][fitted[1]].mean() < 2


@pytest.mark.long
def test_lanes_that_rest_are_taken_out_and_come_back_in_their_places():
    keys = jax.random.split(jax.random.key(0), 3)
    starts, x, y = world(keys, np.full(3, 4, np.float32), 4)
    starts = jax.tree.map(lambda w: 300 * w, starts)
    told = {"rates": np.array([0.05, 0.02, 0.001], np.float32), "steps": 400}
    whole = training.separate_lanes(starts, x, y, **told, stage=400)
    parts = training.separate_lanes(starts, x, y, **told, stage=100)
    np.testing.assert_array_equal(whole.steps, parts.steps)
    assert whole.steps[0] < 300 < whole.steps[2] == 400
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole.loss, parts.loss, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_the_chance_of_having_explored():
    k, seeds = 5, 3000
    starts, _, _ = world(jax.random.split(jax.random.key(7), seeds), np.full(seeds, k, float), k)
    share = float(jnp.mean(jax.jit(jax.vmap(measures.explored))(starts)))
    chance = measures.chance_explored(k)
    assert abs(share - chance) < 4 * np.sqrt(chance * (1 - chance) / seeds)


@pytest.mark.long
def test_the_law_of_width_over_200_seeds():
    """P(test error > 0 | fit): above .8 at k = 2, falling, below .3 at k = 32."""
    found = {}
    for k in (2, 8, 32):
        fitted, wrong, _ = outcome((k,), 200)
        found[k] = wrong[fitted].mean()
    narrow, middle, wide = found.values()
    assert narrow > 0.8
    assert narrow > middle > wide
    assert wide < 0.3
