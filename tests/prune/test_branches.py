"""Laws of every way to go on from a pruned network."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import jax
import numpy as np
import pytest
from chains import LEVELS, REWIND, chain, net
from scipy import stats as distributions

from secateur.core.errors import SecateurError
from secateur.core.trees import alive, fingerprint, flatten, sizes
from secateur.networks.mlp import lenet_300_100, mlp
from secateur.prune.branches import BRANCHES
from secateur.prune.lottery import Start, begin, lottery, rates_of, shuffle_within_layers, training
from secateur.prune.magnitude import prune
from secateur.train.recipes import Recipe

NAMES = list(BRANCHES)
REWOUND = [b for b in NAMES if BRANCHES[b].weights in ("initial", "late")]
FRESH = [b for b in NAMES if BRANCHES[b].weights in ("fresh", "same-sign")]
KERNELS = [f"dense_{l}/kernel" for l in (1, 2, 3)]


def bits(a):
    return np.asarray(a).view(np.uint32)


def kernels(tree):
    flat = flatten(tree)
    return [np.asarray(flat[k]) for k in KERNELS]


def test_every_branch_is_in_one_of_the_tables():
    going_on = [b for b in NAMES if BRANCHES[b].weights == "trained"]
    assert set(REWOUND) == {"rewind", "late", "one-shot", "random", "shuffled"}
    assert set(FRESH) == {"control", "chain", "same-sign"}
    assert set(going_on) == {"none", "rate-rewind"}


# --------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("name", NAMES)
def test_every_level_of_every_branch_has_exactly_the_rules_counts(name):
    """Half to even of what survives, 30 % and 15 % at the output, level by level."""
    counts = {k: int(m.size) for k, m in zip(KERNELS, kernels(chain(name).ones), strict=True)}
    rates = dict(zip(KERNELS, ("0.3", "0.3", "0.15"), strict=True))
    for one in chain(name).starts:
        counts = {k: n - round(Fraction(rates[k]) * n) for k, n in counts.items()}
        assert alive(one.mask) == counts


@pytest.mark.parametrize("name", NAMES)
def test_one_ranking_over_all_layers_has_exact_totals_on_every_branch(name):
    """The output layer is spared: it is neither pruned nor charged to the others."""
    found = chain(name, scope="global")
    total = sum(m.size for m in kernels(found.ones)[:2])
    for one in found.starts:
        total -= round(Fraction("0.3") * total)
        first, second, output = (int(m.sum()) for m in kernels(one.mask))
        assert first + second == total
        assert output == sizes(one.mask)[KERNELS[2]]


@pytest.mark.parametrize("name", [b for b in NAMES if b != "one-shot"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_level_takes_from_each_layer_what_its_magnitudes_say(name, scope):
    """Also where the places are random: of one ranking the layers lose unequal shares."""
    found = chain(name, scope=scope)
    rates = rates_of(net(), 0.3, 0.15 if scope == "layer" else 0.0)
    for one, previous in zip(found.starts, found.previous, strict=True):
        assert alive(one.mask) == alive(prune(previous.trained, previous.mask, rates, scope))
        by_layer = alive(prune(previous.trained, previous.mask, rates))
        assert (alive(one.mask) == by_layer) == (scope == "layer")


@pytest.mark.parametrize("name", [b for b in NAMES if b != "shuffled"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_masks_are_nested_in_the_level_they_follow(name, scope):
    found = chain(name, scope=scope)
    for one, previous in zip(found.starts, found.previous, strict=True):
        for m, before in zip(kernels(one.mask), kernels(previous.mask), strict=True):
            assert not np.any(m & ~before)
    masks = [found.ones, *(one.mask for one in found.starts)]
    for outer, inner in itertools.pairwise(masks):
        for m, before in zip(kernels(inner), kernels(outer), strict=True):
            assert not np.any(m & ~before)


@pytest.mark.parametrize("name", NAMES)
def test_pruned_weights_start_at_exactly_zero_and_the_others_do_not(name):
    for one in chain(name).starts:
        for p, m in zip(kernels(one.params), kernels(one.mask), strict=True):
            assert np.all(bits(p[~m]) == 0)
            assert np.all(p[m] != 0)


@pytest.mark.parametrize("name", ["control", "same-sign"])
def test_a_re_initialised_control_has_exactly_the_tickets_mask(name):
    for level in range(LEVELS):
        ticket = chain("rewind").starts[level].mask
        assert fingerprint(chain(name).starts[level].mask) == fingerprint(ticket)


@pytest.mark.parametrize("name", ["chain", "late", "none", "rate-rewind", "random", "shuffled"])
def test_other_branches_have_masks_of_their_own(name):
    """From level 2 on; the first mask is the dense network's in all that rank its weights."""
    for level in range(1, LEVELS):
        ticket = chain("rewind").starts[level].mask
        assert fingerprint(chain(name).starts[level].mask) != fingerprint(ticket)
    ranked = BRANCHES[name].masks == "own"
    first = fingerprint(chain("rewind").starts[0].mask) == fingerprint(chain(name).starts[0].mask)
    assert first == ranked


def test_the_mask_is_that_of_the_smallest_trained_weights():
    """Of the level before, of the weights at the end of its training, by magnitude."""
    found = chain("rewind")
    for one, previous in zip(found.starts, found.previous, strict=True):
        for m, before, w in zip(
            kernels(one.mask), kernels(previous.mask), kernels(previous.trained), strict=True
        ):
            assert np.abs(w[m]).min() > np.abs(w[before & ~m]).max()


def test_pruning_once_ranks_the_dense_weights_at_every_level():
    found = chain("one-shot")
    for one in found.starts:
        for m, w in zip(kernels(one.mask), kernels(found.dense.trained), strict=True):
            assert np.abs(w[m]).min() > np.abs(w[~m]).max()


# ------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("name", REWOUND)
def test_rewound_weights_are_mask_times_the_weights_at_the_rewind_step_bit_for_bit(name):
    found = chain(name)
    late = BRANCHES[name].weights == "late"
    reference = flatten(found.dense.at_rewind[0] if late else found.dense.initial)
    for one in found.starts:
        assert one.first_step == (REWIND if late else 0)
        for k, p in flatten(one.params).items():
            m = flatten(one.mask)[k]
            expected = reference[k] if m is None else np.where(m, reference[k], np.float32(0))
            np.testing.assert_array_equal(bits(p), bits(expected))


@pytest.mark.parametrize("name", ["none", "rate-rewind"])
def test_weights_that_are_not_rewound_are_the_trained_ones_masked(name):
    found = chain(name)
    for one, previous in zip(found.starts, found.previous, strict=True):
        assert one.first_step == 0
        for k, p in flatten(one.params).items():
            m, w = flatten(one.mask)[k], flatten(previous.trained)[k]
            np.testing.assert_array_equal(
                bits(p), bits(w if m is None else np.where(m, w, np.float32(0)))
            )


@pytest.mark.parametrize("name", FRESH)
def test_re_initialised_weights_differ_from_the_initial_and_are_reproducible(name):
    found = chain(name)
    initial = kernels(found.dense.initial)
    for one in found.starts:
        for p, m, old in zip(kernels(one.params), kernels(one.mask), initial, strict=True):
            assert np.mean(p[m] == old[m]) < 0.001
        for k, p in flatten(one.params).items():
            assert "bias" not in k or np.all(p == 0)  # as they are drawn
    chain.cache_clear()
    again = chain(name)
    for a, b in zip(found.starts, again.starts, strict=True):
        assert fingerprint(a.params) == fingerprint(b.params)


def test_every_re_initialisation_is_a_draw_of_its_own():
    """No two of 3 branches, 4 levels and 3 seeds share their weights (jaxpruner's default seed)."""
    draws = [
        (name, level, seed, np.abs(kernels(chain(name, seed).starts[level].params)[0]))
        for name in FRESH
        for level in range(LEVELS)
        for seed in range(3)
    ]
    for (*a, p), (*b, q) in itertools.combinations(draws, 2):
        both = (p != 0) & (q != 0)
        assert both.sum() > 30
        assert np.mean(p[both] == q[both]) < 0.01, (a, b)


def test_re_initialised_weights_have_the_initial_distribution():
    """Variance of the dense layer's fan-in, not of the mask's; 4.5 sigma, 1 in 100,000."""
    for name in FRESH:
        for one in chain(name).starts:
            w, m = kernels(one.params)[0], kernels(one.mask)[0]
            variance = 2 / (64 + 30)
            spread = variance * math.sqrt(2 / m.sum())
            assert abs(np.mean(w[m].astype(float) ** 2) - variance) < 4.5 * spread


def test_same_sign_has_the_initial_signs_at_every_survivor_and_other_magnitudes():
    found = chain("same-sign")
    for one in found.starts:
        for p, m, old in zip(
            kernels(one.params), kernels(one.mask), kernels(found.dense.initial), strict=True
        ):
            np.testing.assert_array_equal(np.sign(p[m]), np.sign(old[m]))
            assert np.mean(np.abs(p[m]) == np.abs(old[m])) < 0.001
    # and the signs of plain re-initialisation are a coin's; 4.5 sigma
    one = chain("control").starts[0]
    p, m, old = kernels(one.params)[0], kernels(one.mask)[0], kernels(found.dense.initial)[0]
    agree = np.mean(np.sign(p[m]) == np.sign(old[m]))
    assert abs(agree - 0.5) < 4.5 * 0.5 / math.sqrt(m.sum())


@pytest.mark.parametrize("name", [b for b in NAMES if BRANCHES[b].weights != "trained"])
def test_no_branch_but_those_that_go_on_starts_from_trained_weights(name):
    found = chain(name)
    for one, previous in zip(found.starts, found.previous, strict=True):
        for p, m, w in zip(
            kernels(one.params), kernels(one.mask), kernels(previous.trained), strict=True
        ):
            assert np.mean(p[m] == w[m]) < 0.001


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shared_is_never_changed(name):
    """LTH-rv rewinds biases by alias, and the optimiser then changes the stored ones."""
    fresh = begin(net(), 0)[0]
    found = chain(name)
    assert fingerprint(found.dense.initial) == fingerprint(fresh)
    for one in found.starts:
        for p, stored in zip(
            jax.tree.leaves(one.params), jax.tree.leaves(found.dense.initial), strict=True
        ):
            assert not stored.flags.writeable or not np.shares_memory(p, stored)


@pytest.mark.parametrize("name", NAMES)
def test_seeds_give_other_starts_and_the_same_seed_the_same(name):
    starts = [chain(name, seed).starts for seed in range(3)]
    for level in range(LEVELS):
        assert len({fingerprint(s[level].params) for s in starts}) == 3
        assert len({fingerprint(s[level].mask) for s in starts}) == 3


# --------------------------------------------------------------------- random masks are random


def uniformity(mask: np.ndarray, axis: int) -> tuple[float, int]:
    """Chi-square of the survivors along an axis, given their number; and its degrees of freedom.

    Under a mask drawn uniformly among those of n survivors, the counts of C columns of R places are
    hypergeometric: sum((count - n/C)^2) / (variance) * (C - 1)/C is chi-square with C - 1.
    """
    counts = mask.sum(axis=axis)
    places, n, columns = mask.size, int(mask.sum()), len(counts)
    high = places // columns
    variance = high * (n / places) * (1 - n / places) * (places - high) / (places - 1)
    statistic = float(np.sum((counts - n / columns) ** 2) / variance) * (columns - 1) / columns
    return statistic, columns - 1


def tails(masks: list[np.ndarray], axis: int) -> float:
    """Two-sided p-value that the masks are uniform along an axis: too uneven, or too even."""
    found = [uniformity(m, axis) for m in masks]
    total, freedom = sum(s for s, _ in found), sum(d for _, d in found)
    upper = distributions.chi2.sf(total, freedom)
    return 2 * min(upper, 1 - upper)


def masks_of(name: str, layer: int, level: int) -> list[np.ndarray]:
    return [kernels(chain(name, seed).starts[level].mask)[layer] for seed in range(12)]


@pytest.mark.parametrize("name", ["random", "shuffled"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_random_masks_are_uniform_over_units(name, layer, axis):
    """12 seeds; false alarm 1 in 100,000 a case."""
    for level in (0, LEVELS - 1):
        assert tails(masks_of(name, layer, level), axis) > 1e-5


def test_the_test_of_uniformity_sees_what_it_is_for():
    """The ticket's mask favours units, and NTT's "random", a shuffle along axis 0, keeps that:
    each unit has its count of before. So would a mask of equal counts be found out."""
    tickets = masks_of("rewind", 0, LEVELS - 1)
    assert tails(tickets, 0) < 1e-9
    rng = np.random.default_rng(0)
    ntt = [rng.permutation(m, axis=0) for m in tickets]
    np.testing.assert_array_equal(ntt[0].sum(axis=0), tickets[0].sum(axis=0))
    assert tails(ntt, 0) < 1e-9
    even = np.zeros((64, 30), bool)
    even[:20] = True
    assert tails([rng.permuted(even, axis=0) for _ in range(12)], 0) < 1e-9


@pytest.mark.parametrize("name", ["random", "shuffled"])
def test_random_masks_overlap_with_the_tickets_by_chance_only(name):
    """Hypergeometric: z below 4.5 in each of 12 seeds, 2 layers, 2 levels: 1 alarm in 3,000."""
    for layer in (0, 1):
        for level in (0, LEVELS - 1):
            for a, b in zip(
                masks_of(name, layer, level), masks_of("rewind", layer, level), strict=True
            ):
                n, places = int(a.sum()), a.size
                assert n == b.sum()
                mean = n * n / places
                deviation = math.sqrt(mean * (1 - n / places) ** 2 * places / (places - 1))
                assert abs(int((a & b).sum()) - mean) < 4.5 * deviation


def test_shuffled_masks_differ_between_levels_seeds_and_layers_and_keep_counts():
    """Synaptic-Flow's ``--shuffle`` leaves the mask as it was."""
    for one, ticket in zip(chain("shuffled").starts, chain("rewind").starts, strict=True):
        assert alive(one.mask) == alive(ticket.mask)
        for m, t in zip(kernels(one.mask), kernels(ticket.mask), strict=True):
            assert np.any(m != t)
    square = {"a": np.arange(100).reshape(10, 10) < 30, "b": np.arange(100).reshape(10, 10) < 30}
    found = shuffle_within_layers({**square, "c": None}, 0, "mask")
    assert found["c"] is None
    assert np.any(found["a"] != found["b"])
    draws = {
        fingerprint(shuffle_within_layers(square, seed, "mask", level))
        for seed in range(5)
        for level in range(5)
    }
    assert len(draws) == 25


def test_random_masks_do_not_follow_the_weights():
    """Random pruning ranks noise: what goes is as large as what stays. 4.5 sigma a seed."""
    for seed in range(12):
        found = chain("random", seed)
        w, m = np.abs(kernels(found.previous[0].trained)[0]), kernels(found.starts[0].mask)[0]
        ranks = distributions.rankdata(w).reshape(w.shape)
        n, gone = w.size, int((~m).sum())
        mean = (n + 1) / 2
        deviation = math.sqrt((n + 1) * (n - gone) / (12 * gone))
        assert abs(ranks[~m].mean() - mean) < 4.5 * deviation


# ------------------------------------------------------------------------------------ trainings


def test_every_level_trains_with_a_key_of_its_own_and_the_papers_schedule():
    recipe = Recipe(
        "sgd", 0.1, steps=100, evaluate_every=50, drops=((40, 0.1), (80, 0.1)), warmup=5
    )
    network = net()
    initial, stats, ones = begin(network, 0)
    keys = set()
    for name, level, seed in itertools.product(NAMES, range(1, 4), range(2)):
        begins = Start(ones, initial, stats, 0)
        t = training(BRANCHES[name], level, seed, network, None, recipe, begins)  # type: ignore[arg-type]
        keys.add(tuple(np.asarray(jax.random.key_data(t.key)).tolist()))
        if name == "none":  # fine-tuning: the last rate, all the time
            np.testing.assert_allclose(t.recipe.rates(np.arange(100)), 0.001)
        else:
            assert t.recipe == recipe
    assert len(keys) == len(NAMES) * 3 * 2
    dense = training(None, 0, 0, network, None, recipe, Start(ones, initial, stats, 0))  # type: ignore[arg-type]
    assert tuple(np.asarray(jax.random.key_data(dense.key)).tolist()) not in keys
    assert dense.recipe == recipe


# ---------------------------------------------------------------------------------------- rates


def test_the_output_layer_has_its_own_rate_whatever_the_network_is_called():
    assert rates_of(lenet_300_100(), 0.2, 0.1) == {
        "dense_1/kernel": 0.2,
        "dense_2/kernel": 0.2,
        "dense_3/kernel": 0.1,
    }
    assert rates_of(mlp(), 0.2, 0.1) == {"dense_1/kernel": 0.1}


def test_the_output_layer_is_found_behind_a_softmax():
    """Or the ticket would be pruned at the wrong rate, or not at all."""
    network = net()
    soft = replace(network, apply=lambda p, s, x: jax.nn.log_softmax(network.apply(p, s, x)))
    assert rates_of(soft, 0.2, 0.1)["dense_3/kernel"] == 0.1


def test_without_an_output_layer_there_is_no_output_rate():
    network = net()
    hidden = replace(network, apply=lambda p, s, x: jax.numpy.sort(network.apply(p, s, x), axis=-1))
    assert set(rates_of(hidden, 0.2, 0.2).values()) == {0.2}
    with pytest.raises(SecateurError, match="no output layer was found"):
        rates_of(hidden, 0.2, 0.1)


@pytest.mark.parametrize(("rate", "output"), [(1.0, 0.1), (-0.1, 0.1), (0.2, 1.5)])
def test_impossible_rates_are_refused(rate, output):
    with pytest.raises(SecateurError, match="fraction pruned at a level"):
        rates_of(net(), rate, output)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"branch": "rewnd"}, "Did you mean 'rewind'"),
        ({"scope": "globl"}, "Did you mean 'global'"),
        ({"rate": 1.0}, "fraction pruned at a level"),
        ({"rewind_step": 30}, "not at step 30"),
        ({"rewind_step": 80}, "each 20 steps from 0 to 40, not at step 80"),
        ({"rewind_step": -20}, "not at step -20"),
    ],
)
def test_a_lottery_that_cannot_run_is_refused_before_anything_is_trained(
    change, said, mnist5k_sets
):
    recipe = Recipe(steps=40, evaluate_every=20)
    with pytest.raises(SecateurError, match=said):
        next(lottery(mlp(20, 10), mnist5k_sets, recipe, **{"branch": "late", **change}))
