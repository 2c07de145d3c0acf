"""Magnitude pruning: counts of the papers' tables, ties, scopes, and what has no rank."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.core.errors import SecateurError
from secateur.core.trees import alive, flatten
from secateur.prune.magnitude import keep_largest, prune, rank, removed

LENET = {"dense_1": (784, 300), "dense_2": (300, 100), "dense_3": (100, 10)}
PAPER = {"dense_1/kernel": 0.2, "dense_2/kernel": 0.2, "dense_3/kernel": 0.1}

# Survivors of fc1, fc2, out and all, levels 0 to 25: Frankle & Carbin's rates, 20 % and 10 % at the
# output, half to even. 51.3, 21.1, 13.5, 7.0, 3.6, 2.9, 1.9 % are levels 3, 7, 9, 12, 15, 16, 18.
TABLE = """
235200 30000 1000 266200   188160 24000 900 213060   150528 19200 810 170538
120422 15360 729 136511    96338 12288 656 109282    77070 9830 590 87490
61656 7864 531 70051       49325 6291 478 56094      39460 5033 430 44923
31568 4026 387 35981       25254 3221 348 28823      20203 2577 313 23093
16162 2062 282 18506       12930 1650 254 14834      10344 1320 229 11893
8275 1056 206 9537         6620 845 185 7650         5296 676 167 6139
4237 541 150 4928          3390 433 135 3958         2712 346 121 3179
2170 277 109 2556          1736 222 98 2056          1389 178 88 1655
1111 142 79 1332           889 114 71 1074
"""
LEVELS = np.array(TABLE.split(), int).reshape(26, 4)

# Global 20 % of all 266,200: the levels that the reference lists.
GLOBAL = {0: 266200, 1: 212960, 2: 170368, 3: 136294, 7: 55826, 15: 9366, 25: 1006}


def lenet(kind: str):
    rng = np.random.default_rng(0)
    draw = {
        "normal": lambda shape: rng.standard_normal(shape).astype(np.float32),
        "constant": lambda shape: np.full(shape, -0.25, np.float32),
        "rounded": lambda shape: np.round(rng.standard_normal(shape), 1).astype(np.float32),
    }[kind]
    params = {k: {"kernel": draw(s), "bias": draw(s[1:])} for k, s in LENET.items()}
    mask = {k: {"kernel": np.ones(s, bool), "bias": None} for k, s in LENET.items()}
    return params, mask


@pytest.mark.parametrize("kind", ["normal", "constant", "rounded"])
def test_every_level_has_the_counts_of_the_table(kind):
    """Ties or not: open_lth prunes k + 1 and all ties, google-research's code k + 1 a layer."""
    params, mask = lenet(kind)
    for level, (fc1, fc2, out, total) in enumerate(LEVELS):
        if level:
            before, mask = mask, prune(params, mask, PAPER)
            for k, m in flatten(mask).items():
                assert m is None or not np.any(m & ~flatten(before)[k])  # nested
        assert list(alive(mask).values()) == [fc1, fc2, out]
        assert sum(alive(mask).values()) == total
    shares = {3: 51.3, 7: 21.1, 9: 13.5, 12: 7.0, 15: 3.6, 16: 2.9, 18: 1.9}
    assert {l: round(100 * LEVELS[l, 3] / 266200, 1) for l in shares} == shares


@pytest.mark.parametrize("kind", ["normal", "constant"])
def test_one_ranking_over_all_layers_has_the_counts_of_the_table(kind):
    params, mask = lenet(kind)
    rates = dict.fromkeys(PAPER, 0.2)
    for level in range(26):
        if level:
            mask = prune(params, mask, rates, "global")
        if level in GLOBAL:
            assert sum(alive(mask).values()) == GLOBAL[level]


def test_of_equal_weights_the_first_survive():
    """A fixed order, so that every process and device holds one mask (sparseml#429)."""
    params, mask = lenet("constant")
    found = prune(params, mask, PAPER)
    for m in flatten(found).values():
        if m is not None:
            keep = m.sum()
            assert m.ravel()[:keep].all()
    joint = flatten(prune(params, mask, dict.fromkeys(PAPER, 0.2), "global"))
    kept = np.concatenate([m.ravel() for m in joint.values() if m is not None])
    assert kept[: kept.sum()].all()


def test_the_magnitude_counts_and_not_the_value():
    params = {"kernel": np.array([[-3.0, 0.1], [2.0, -0.2]]), "bias": np.zeros(2)}
    mask = {"kernel": np.ones((2, 2), bool), "bias": None}
    found = prune(params, mask, {"kernel": 0.5})
    assert found["kernel"].tolist() == [[True, False], [True, False]]
    assert found["bias"] is None


@pytest.mark.parametrize(
    ("rate", "count", "gone"),
    [
        (0.5, 5, 2),
        (0.5, 7, 4),
        (0.1, 25, 2),
        (0.1, 35, 4),
        (0.575, 100, 58),
        (0.2, 1, 0),
        (0, 9, 0),
    ],
)
def test_halves_go_to_even(rate, count, gone):
    """0.575 * 100 is 57.49999999999999 in floating point: the rule is exact, so it is 57.5."""
    assert removed(rate, count) == gone


@given(st.integers(0, 999), st.integers(0, 10**6))
def test_counts_are_those_of_decimal_arithmetic(thousandths, count):
    rate = thousandths / 1000
    exact = Decimal(thousandths) / 1000 * count
    assert removed(rate, count) == int(exact.quantize(Decimal(1), ROUND_HALF_EVEN))
    assert removed(np.float64(rate), count) == removed(rate, count)


WEIGHTS = st.sampled_from([0.0, -1.0, 1.0, 2.0, -2.0, 0.5, 3.0])  # many ties
LAYER = st.lists(st.tuples(WEIGHTS, st.booleans()), min_size=1, max_size=8)


def layers(drawn):
    params = {f"l{i}": {"kernel": np.array([w for w, _ in d])} for i, d in enumerate(drawn)}
    mask = {f"l{i}": {"kernel": np.array([m for _, m in d])} for i, d in enumerate(drawn)}
    return params, mask


@given(st.lists(LAYER, min_size=1, max_size=4), st.sampled_from([0.2, 0.5, 0.9]), st.data())
def test_a_ranking_over_all_layers_is_a_full_sort_of_the_survivors(drawn, rate, data):
    """By hand: survivors of the ranked layers by falling magnitude, then by layer and place."""
    spared = data.draw(st.sets(st.integers(0, len(drawn) - 1), max_size=len(drawn) - 1))
    params, mask = layers(drawn)
    rates = {f"l{i}/kernel": 0.0 if i in spared else rate for i in range(len(drawn))}
    listed = [
        (-abs(w), i, k)
        for i, d in enumerate(drawn)
        for k, (w, m) in enumerate(d)
        if m and i not in spared
    ]
    keep = sorted(listed)[: len(listed) - removed(rate, len(listed))]
    found = prune(params, mask, rates, "global")
    for i, d in enumerate(drawn):
        if i in spared:
            expected = [m for _, m in d]
        else:
            expected = [(-abs(w), i, k) in keep for k, (w, m) in enumerate(d)]
        assert found[f"l{i}"]["kernel"].tolist() == expected


@given(LAYER, st.integers(0, 8))
def test_a_ranking_in_a_layer_is_a_full_sort_of_its_survivors(drawn, keep):
    params, mask = layers([drawn])
    survivors = [(-abs(w), k) for k, (w, m) in enumerate(drawn) if m]
    if keep > len(survivors):
        with pytest.raises(SecateurError, match="cannot be kept where"):
            keep_largest(params, mask, {"l0/kernel": keep})
        return
    kept = {k for _, k in sorted(survivors)[:keep]}
    found = keep_largest(params, mask, {"l0/kernel": keep})["l0"]["kernel"]
    assert set(np.flatnonzero(found)) == kept


@pytest.mark.parametrize("value", [0.0, 1e9, np.nan, np.inf])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_pruned_weight_never_comes_back_whatever_stands_there(value, scope):
    """Synaptic-Flow revives thousands. A NaN under the mask is no weight."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((20, 10))
    mask = rng.random((20, 10)) < 0.4
    kernel[~mask] = value
    found = prune({"kernel": kernel}, {"kernel": mask}, {"kernel": 0.2}, scope)["kernel"]
    assert not np.any(found & ~mask)
    assert found.sum() == mask.sum() - removed(0.2, int(mask.sum()))
    clean = prune({"kernel": np.where(mask, kernel, 0)}, {"kernel": mask}, {"kernel": 0.2}, scope)
    np.testing.assert_array_equal(found, clean["kernel"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_survivor_without_a_rank_is_an_error_that_names_its_layer(bad, scope):
    params, mask = layers([[(1.0, True)], [(2.0, True), (3.0, True)]])
    params["l1"]["kernel"][1] = bad
    with pytest.raises(SecateurError, match="some weights of l1/kernel are NaN or infinite"):
        prune(params, mask, {"l0/kernel": 0.2, "l1/kernel": 0.2}, scope)


def test_scores_that_are_nan_have_no_rank():
    with pytest.raises(SecateurError, match="some scores are NaN"):
        rank(np.array([1.0, np.nan]), np.array([True, True]), 1)
    assert rank(np.array([1.0, np.nan]), np.array([True, False]), 1).tolist() == [True, False]


@pytest.mark.parametrize(
    ("rates", "scope", "said"),
    [
        ({"l0/kernel": 0.2, "l1/kernel": 0.1}, "global", "one ranking over all layers has one"),
        ({"l0/kernel": 0.2, "l1/kernel": 0.2}, "local", "scope is one of layer, global"),
    ],
)
def test_what_cannot_be_ranked_is_refused(rates, scope, said):
    params, mask = layers([[(1.0, True)], [(2.0, True)]])
    with pytest.raises(SecateurError, match=said):
        prune(params, mask, rates, scope)


def test_pruning_changes_neither_weights_nor_the_mask_it_is_given():
    params, mask = lenet("normal")
    weights = flatten(params)["dense_2/kernel"].copy()
    prune(params, mask, PAPER)
    assert flatten(mask)["dense_2/kernel"].all()
    np.testing.assert_array_equal(flatten(params)["dense_2/kernel"], weights)
