"""Teachers, Gaussian inputs and XORD."""

from __future__ import annotations

import itertools
from math import comb

import jax
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.quadratic import Quadratic
from secateur.data import toys


def test_gaussian_inputs_have_variance_one_over_d():
    x = np.asarray(jax.jit(lambda key: toys.gaussian(key, 4000, 5))(jax.random.key(0)))
    assert x.shape == (4000, 5)
    np.testing.assert_allclose(x.T @ x / 4000, np.eye(5) / 5, atol=5 * (2 / 4000) ** 0.5 / 5)


def test_moments_of_a_quadratic_function(x64):
    """By Isserlis' theorem written out as sums over indices, and by sampling."""
    d, rng = 3, np.random.default_rng(0)
    b = rng.standard_normal((d, d))
    y = Quadratic(rng.standard_normal(d), (b + b.T) / 2)
    a, b = y.linear, y.quadratic
    same = lambda i, j: float(i == j)
    square = a @ a / d
    for i, j, k, l in itertools.product(range(d), repeat=4):
        pairs = same(i, j) * same(k, l) + same(i, k) * same(j, l) + same(i, l) * same(j, k)
        square += b[i, j] * b[k, l] * pairs / d**2
    assert float(y.square().total) == pytest.approx(square, rel=1e-12)
    x = rng.standard_normal((200_000, d)) / d**0.5
    values = np.asarray(y(x))
    assert abs(float(y.mean()) - values.mean()) < 5 * values.std() / len(x) ** 0.5
    assert float(y.variance()) == pytest.approx(values.var(), rel=0.03)
    three = y.scaled(3.0) - Quadratic.zero(d)
    assert float(three.variance()) == pytest.approx(9 * float(y.variance()))
    # Slopes: of E y^2 / 2 by every coefficient.
    by = jax.jit(jax.grad(lambda f: f.square().total / 2))(y)
    np.testing.assert_allclose(y.slopes().linear, by.linear, rtol=1e-12)
    np.testing.assert_allclose(y.slopes().quadratic, by.quadratic, rtol=1e-12)


def test_the_committee_teacher_is_a_committee_with_scales_of_its_own():
    key = jax.random.key(4)
    draw = lambda key: toys.committee_teacher(key, 6, 3, alpha=2.0, epsilon=0.9)
    y, w = jax.jit(lambda key: (draw(key), jax.random.normal(key, (6, 3))))(key)
    w = np.asarray(w, np.float64)
    x = np.random.default_rng(0).standard_normal((10, 6))
    h = x @ w
    by_hand = 2.0 / 3 * np.sum(h + 0.45 * h**2, axis=1)
    np.testing.assert_allclose(y(x.astype(np.float32)), by_hand, rtol=1e-4, atol=1e-5)
    assert np.linalg.matrix_rank(np.asarray(y.quadratic), tol=1e-4) == 3


def test_the_single_index_teacher():
    y = toys.single_index(jax.random.key(0), 6)
    x = np.random.default_rng(0).standard_normal((10, 6)).astype(np.float32)
    beta = np.linalg.eigh(np.asarray(y.quadratic, np.float64))
    assert np.sum(np.abs(beta[0]) > 1e-5) == 1  # one direction
    along = x @ beta[1][:, -1]
    np.testing.assert_allclose(y(x), beta[0][-1] * along**2, rtol=1e-4, atol=1e-5)


def rules(x):
    """Label and diversity of an input of XORD, from the definition."""
    seen = {tuple(int(v) for v in pair) for pair in x}
    label = 1 if seen & {(1, 1), (-1, -1)} else -1
    wanted = {(1, -1), (-1, 1)} | ({(1, 1), (-1, -1)} if label > 0 else set())
    return label, wanted <= seen


def test_labels_and_diversity_follow_the_definition():
    @jax.jit
    def drawn(key):
        x, y = toys.xord(key, 200, 5, 0.6)
        has = toys.present(x)
        return x, y, has, toys.present(toys.condensed(has))

    x, y, has, again = map(np.asarray, drawn(jax.random.key(0)))
    assert set(np.unique(x)) == {-1, 1}
    told = [rules(each) for each in x]
    np.testing.assert_array_equal(y, [label for label, _ in told])
    np.testing.assert_array_equal(toys.labels_of(has), y)
    np.testing.assert_array_equal(toys.is_diverse(has), [diverse for _, diverse in told])
    assert np.sum(y > 0) == 100
    share = np.mean([diverse for _, diverse in told])
    assert abs(share - 0.6) < 4 * (0.6 * 0.4 / 200) ** 0.5
    np.testing.assert_array_equal(again, has)


def onto(n, m):
    """How many sequences of n hold each of m patterns."""
    return sum((-1) ** i * comb(m, i) * (m - i) ** n for i in range(m + 1))


def test_types_are_as_likely_as_inclusion_and_exclusion_say():
    pairs, diverse = 6, 0.7
    expected = np.zeros(15)
    for side, whole in ((1, 4**pairs - 2**pairs), (-1, 2**pairs)):
        full = onto(pairs, 4 if side > 0 else 2)
        for t, has in enumerate(toys.TYPES):
            if toys.labels_of(has) == side:
                n = onto(pairs, int(has.sum()))
                if toys.is_diverse(has):
                    assert n == full
                    expected[t] = diverse / 2
                else:
                    expected[t] = (1 - diverse) / 2 * n / (whole - full)
    found = toys.type_probabilities(pairs, diverse)
    np.testing.assert_allclose(found, expected, atol=1e-12)

    draws = 6000
    has = jax.jit(lambda key: toys.present(toys.xord(key, draws, pairs, diverse)[0]))
    kinds = np.asarray(has(jax.random.key(1))) @ (1 << np.arange(4)) - 1
    counted = np.bincount(kinds, minlength=15) / draws
    assert np.all(np.abs(counted - found) < 5 * np.sqrt(found / draws) + 1e-9)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(SecateurError, match="expected 4 to 8"):
        toys.xord(jax.random.key(0), 4, pairs=3)
    with pytest.raises(SecateurError, match="expected 4 to 8"):
        toys.type_probabilities(9)
