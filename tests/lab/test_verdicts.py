"""Verdicts are given only where the seeds decide; the interval covers what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from secateur.core.errors import SecateurError
from secateur.lab.verdicts import (
    NOT_REPRODUCED,
    REPRODUCED,
    TOO_FEW,
    Claim,
    interval,
    judge,
    lighter_settings,
    paired_t,
    verdict,
)


def test_the_interval_is_scipy_s():
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 30):
        a, b = rng.normal(size=n), rng.normal(size=n)
        told = paired_t(list(a), list(b))
        theirs = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert (told.low, told.high) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize("n", [2, 5])
def test_the_interval_covers_95_percent(n):
    """20,000 simulated studies; a binomial's four standard deviations around 0.95."""
    rng = np.random.default_rng(n)
    times = 20_000
    draws = rng.normal(0.3, 2.0, (times, n))
    inside = sum(t.low <= 0.3 <= t.high for t in (interval(row.tolist()) for row in draws))
    assert abs(inside / times - 0.95) < 4 * math.sqrt(0.95 * 0.05 / times)


def test_false_verdicts_are_as_rare_as_promised():
    """Nothing there: at most 2.5 % say "reproduced", and as many "not reproduced"."""
    rng = np.random.default_rng(3)
    words = [verdict(rng.normal(size=5).tolist()).word for _ in range(8000)]
    for word in (REPRODUCED, NOT_REPRODUCED):
        assert abs(words.count(word) / 8000 - 0.025) < 4 * math.sqrt(0.025 * 0.975 / 8000)


@pytest.mark.parametrize(
    ("values", "comparison", "margin", "word"),
    [
        ([1.0, 1.1, 0.9], "above", 0.0, REPRODUCED),
        ([1.0, 1.1, 0.9], "above", 2.0, NOT_REPRODUCED),
        ([1.0, 1.1, 0.9], "above", 1.0, TOO_FEW),
        ([1.0, 1.1, 0.9], "below", 2.0, REPRODUCED),
        ([1.0, 1.1, 0.9], "below", 0.0, NOT_REPRODUCED),
        ([-1.0, -1.1, -0.9], "below", 0.0, REPRODUCED),
        ([0.1, -0.1, 0.0], "within", 0.5, REPRODUCED),
        ([1.0, 1.1, 0.9], "within", 0.5, NOT_REPRODUCED),
        ([-1.0, -1.1, -0.9], "within", 0.5, NOT_REPRODUCED),
        ([0.5, 0.6, 0.4], "within", 0.5, TOO_FEW),
        ([0.7, 0.7, 0.7], "above", 0.0, REPRODUCED),
        ([0.0, 0.0, 0.0], "above", 0.0, TOO_FEW),
        ([5.0], "above", 0.0, TOO_FEW),
        ([], "above", 0.0, TOO_FEW),
    ],
)
def test_words(values, comparison, margin, word):
    assert verdict(values, comparison, margin).word == word


def test_needed_seeds_are_the_smallest_number_that_decides():
    rng = np.random.default_rng(0)
    for _ in range(30):
        values = rng.normal(0.3, 1.0, 5)
        told = verdict(values.tolist())
        if told.word != TOO_FEW or told.needed is None:
            continue
        sd, mean = values.std(ddof=1), abs(values.mean())
        half = lambda n, sd=sd: stats.t.ppf(0.975, n - 1) * sd / math.sqrt(n)
        assert half(told.needed) < mean <= half(told.needed - 1)


def test_two_seeds_ask_for_more_without_a_crash():
    assert verdict([0.0, 1.0]).needed == 11
    assert verdict([1.0, -1.0]).needed is None
    assert verdict([1.0]).needed is None
    assert "no number is known" in verdict([1.0]).sentence


def test_pairs_are_by_seed():
    told = paired_t({0: 1.0, 1: 2.0, 2: 9.0}, {1: 1.5, 0: 0.0, 5: 7.0})
    assert (told.n, told.mean) == (2, 0.75)
    with pytest.raises(SecateurError, match="paired by seed"):
        paired_t([1.0, 2.0], [1.0])


def test_a_lighter_run_is_called_so():
    claim = Claim(
        "x", "a paper", "a statement", "a measure",
        needs_settings={"steps": 50_000, "data": "mnist", "rate": 1.2e-3},
    )  # fmt: skip
    told = judge(claim, [1.0, 1.1], {"steps": 400, "data": "mnist5k", "rate": 1.2e-3})
    assert told.lighter == ("steps 400 of 50000", "data mnist5k instead of mnist")
    assert told.sentence.endswith(
        "lighter than the paper: steps 400 of 50000, data mnist5k instead of mnist"
    )
    assert lighter_settings({"steps": 5, "flag": True}, {"steps": 6, "flag": True}) == []
    assert lighter_settings({"steps": 5}, {}) == ["steps None instead of 5"]
    assert lighter_settings({"hidden": [300, 100]}, {"hidden": (300, 100)}) == []


def test_an_unknown_comparison_is_named():
    with pytest.raises(SecateurError, match="Did you mean 'above'"):
        Claim("x", "p", "s", "m", comparison="abov")
