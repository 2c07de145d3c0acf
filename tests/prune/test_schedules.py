"""Densities on the way down, and exact counts: criteria.md's numbers."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.prune.schedules import SCHEDULES, counts, densities

DENSITIES = (0.9, 0.5, 0.3, 0.1, 0.05, 0.03, 0.01)


@pytest.mark.parametrize("n", [10, 37, 100, 999, 1000])
@pytest.mark.parametrize("d", DENSITIES)
def test_exact_counts(n: int, d: float) -> None:
    exact = math.floor(Fraction(str(d)) * n + Fraction(1, 2))
    if exact >= 1:
        assert counts([d], n) == [exact]
    else:
        with pytest.raises(SecateurError, match="less than one of the"):
            counts([d], n)


def test_nine_tenths_of_ten_is_nine() -> None:
    assert counts([0.9], 10) == [9]
    assert int((1 - 0.9) * 10) == 0  # the trap


@pytest.mark.parametrize(
    ("code", "n", "d", "kept"),
    [
        ("synaptic-flow", 1000, 0.9, 901),
        ("synaptic-flow", 1000, 0.1, 100),
        ("half-even", 5, 0.5, 2),
        ("nearest", 5, 0.5, 3),
        ("floor", 37, 0.1, 3),
        ("ceil", 37, 0.1, 4),
        ("grasp", 1000, 0.25, 251),  # one weight too many
        ("effective-sparsity", 37, 0.1, 4),
    ],
)
def test_counts_of_published_codes(code: str, n: int, d: float, kept: int) -> None:
    assert counts([d], n, code) == [kept]


@pytest.mark.parametrize("d", [0.5, 0.1, 0.07])
def test_counts_of_codes_that_cut_at_a_quantile(d: float) -> None:
    """The codes' own rules, run on scores without ties."""
    scores = np.random.default_rng(0).normal(size=317)
    kept = (scores >= np.quantile(scores, 1 - d)).sum()
    assert counts([d], 317, "shrinkbench") == [kept]
    kept = (scores > np.percentile(scores, 100 * (1 - d))).sum()
    assert counts([d], 317, "phew") == [kept]
    j = int((1 - d) * 317)  # Synaptic-Flow: drop score <= j-th smallest
    assert counts([d], 317, "synaptic-flow") == [(scores > np.sort(scores)[j - 1]).sum()]
    r = int(317 * (1 - d))  # GraSP: keep -score <= r-th largest of -score
    assert counts([d], 317, "grasp") == [(-scores <= np.sort(-scores)[::-1][r - 1]).sum()]


@pytest.mark.parametrize("name", [k for k in SCHEDULES if k != "one-shot"])
@pytest.mark.parametrize("d", [1.0, 0.3, 0.01])
def test_schedules_fall_to_the_density(name: str, d: float) -> None:
    steps = densities(name, d, 7)
    assert len(steps) == 7
    assert steps[-1] == d
    assert all(b <= a <= 1 for a, b in pairwise(steps))
    kept = counts(steps, 12_345)
    assert all(b <= a for a, b in pairwise(kept))
    assert kept[-1] == counts([d], 12_345)[0]


def test_each_by_its_formula() -> None:
    ratio = [b / a for a, b in pairwise([1.0, *densities("exponential", 0.02, 10)])]
    np.testing.assert_allclose(ratio, 0.02**0.1, rtol=1e-14)
    np.testing.assert_allclose(np.diff([1.0, *densities("linear", 0.2, 8)]), -0.1, rtol=1e-12)
    found = densities("inverse", 0.1, 4)
    np.testing.assert_allclose(found, [1 - 0.9 ** (4 / k) for k in (1, 2, 3, 4)], rtol=1e-14)
    # cubic: sparsity s_f + (0 - s_f)(1 - t)^3: 0 at the start, s_f at the end, flat there
    found = densities("cubic", 0.1, 1000)
    assert found[0] == pytest.approx(1, abs=0.003)
    assert found[-2] == pytest.approx(0.1, abs=1e-8)
    assert found[499] == pytest.approx(1 - 0.9 * (1 - 0.125))


@pytest.mark.parametrize(
    ("schedule", "density", "rounds", "word"),
    [
        ("exponential", 0, 3, "above 0 and at most 1"),
        ("exponential", 1.2, 3, "above 0 and at most 1"),
        ("exponential", float("nan"), 3, "above 0 and at most 1"),
        ("exponential", 0.1, 0, "at least 1, not 0"),
        ("exponentail", 0.1, 3, "Did you mean 'exponential'"),
        ("one-shot", 0.1, 3, "one round, not 3"),
        ([0.5, 0.6], None, None, "must not rise"),
        ([0.5, 0.2], 0.1, None, "ends at density 0.2"),
        ([0.5, 0.2], None, 3, "has 2 densities"),
        ([], None, None, "at least one"),
    ],
)
def test_refusals(schedule: object, density: float, rounds: int, word: str) -> None:
    with pytest.raises(SecateurError, match=word):
        densities(schedule, density, rounds)  # type: ignore[arg-type]
