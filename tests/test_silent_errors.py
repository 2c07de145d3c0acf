"""Errors that were found in published pruning code and change the science without a word.

Each test names the repository whose error it guards against (LTH-rv is
rahulvigneswaran/Lottery-Ticket-Hypothesis-in-Pytorch, NTT fmi-basel/neural-tangent-transfer). Laws
of the same things over all branches and optimisers are in tests/prune and tests/train.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from secateur.core.keys import key
from secateur.core.network import kernels_only
from secateur.core.trees import alive, density, fingerprint, flatten, ones_mask
from secateur.data.examples import Examples, Sets
from secateur.data.registry import DATASETS
from secateur.networks.mlp import mlp
from secateur.prune import lottery as tickets
from secateur.prune.branches import BRANCHES
from secateur.prune.lottery import Before, Dense, Level, begin, lottery, rates_of, start
from secateur.prune.magnitude import prune
from secateur.studies.lottery import presets
from secateur.train.fit import fit
from secateur.train.masked import masked
from secateur.train.order import Order
from secateur.train.recipes import Recipe
from secateur.train.training import Training

RECIPE = Recipe("adam", 1.2e-3, batch=60, steps=40, evaluate_every=20)
KERNELS = ["dense_1/kernel", "dense_2/kernel", "dense_3/kernel"]


def net() -> Any:
    return mlp(20, 10)


def levels(data: Sets, branch: str = "rewind", seed: int = 0, **options: Any) -> Iterator[Level]:
    return lottery(net(), data, RECIPE, branch, 2, 0.2, 0.1, seed=seed, **options)


@pytest.fixture(scope="module")
def ticket(mnist5k_sets: Sets) -> list[Level]:
    """Levels 0, 1, 2 of a rewound ticket on real digits."""
    return list(levels(mnist5k_sets))


def asked(data: Sets, level: Level, recipe: Recipe = RECIPE, **options: Any) -> Training:
    """The training of a level as a user would ask for it."""
    begins = level.start
    return Training(net(), begins.params, {}, data, recipe, begins.mask, key(0, "train"), **options)


def predicted(params: Any, data: Sets, examples: Examples) -> np.ndarray:
    """Logits by hand, in float64."""
    x = (examples.images.reshape(len(examples.labels), -1) / 255.0 - data.mean[0]) / data.std[0]
    p = {k: np.asarray(v, np.float64) for k, v in flatten(params).items()}
    for l in (1, 2, 3):
        x = x @ p[f"dense_{l}/kernel"] + p[f"dense_{l}/bias"]
        x = np.maximum(x, 0) if l < 3 else x
    return x


def losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]


def surviving(level: Level) -> dict[str, np.ndarray]:
    return {k: np.asarray(flatten(level.start.mask)[k]) for k in KERNELS}


# ------------------------------------------------------------------------------- what may learn


def test_negative_weights_learn(ticket: list[Level]) -> None:
    """LTH-rv freezes where ``weight < 1e-6`` instead of ``|weight|``: half of the network."""
    level = ticket[2]
    for k in KERNELS[1:]:  # every weight behind the input layer has a gradient
        w, after = flatten(level.start.params)[k], flatten(level.fitted.params)[k]
        moved = {s: np.mean((after != w)[surviving(level)[k] & (np.sign(w) == s)]) for s in (-1, 1)}
        assert moved[-1] > 0.9
        assert abs(moved[-1] - moved[1]) < 0.1
        far = {
            s: np.abs(after - w)[surviving(level)[k] & (np.sign(w) == s)].mean() for s in (-1, 1)
        }
        assert 0.5 < far[-1] / far[1] < 2


def test_zero_gradient_plus_weight_decay_does_not_move_a_pruned_weight() -> None:
    """LTH-rv zeroes gradients before Adam with L2 inside: -0.05 reaches -0.0008 in 60 steps.

    The same optimiser without `masked` does so here too, which is what makes the test one.
    """
    inner = Recipe(weight_decay=1e-4).transformation(1e-4)
    ends = {}
    for name, optimiser in {
        "bare": inner,
        "masked": masked(inner, {"kernel": np.array([False])}),
    }.items():
        w = {"kernel": jnp.array([-0.05])}
        state = optimiser.init(w)
        for _ in range(60):
            direction, state = optimiser.update({"kernel": jnp.zeros(1)}, state, w)
            w = jax.tree.map(lambda p, d: p - 1.2e-3 * d, w, direction)
        ends[name] = float(w["kernel"][0])
    assert abs(ends["bare"]) < 0.005
    assert ends["masked"] == np.float32(-0.05)


def test_gradients_of_pruned_weights_do_not_reach_the_moments() -> None:
    """jaxpruner lets them in unless ``is_sparse_gradients=True``."""
    mask = {"kernel": np.array([True, False]), "bias": None}
    params = {"kernel": jnp.array([0.5, 0.0]), "bias": jnp.zeros(2)}
    for inner in (optax.scale_by_adam(), optax.trace(0.9), optax.trace(0.9, nesterov=True)):
        optimiser = masked(inner, mask)
        state = optimiser.init(params)
        for _ in range(3):
            updates, state = optimiser.update(jax.tree.map(jnp.ones_like, params), state, params)
        assert float(updates["kernel"][1]) == 0
        moments = [leaf for leaf in jax.tree.leaves(state) if jnp.ndim(leaf) == 1]
        pairs = [m for m in moments if float(m[0]) != float(m[1])]
        assert pairs  # the kernel's: its survivor moved
        assert all(float(m[1]) == 0 for m in pairs)


# ------------------------------------------------------------------------------- what is rewound


def test_biases_are_rewound_and_the_stored_copy_is_never_changed_in_place(
    mnist5k_sets: Sets,
) -> None:
    """LTH-rv rewinds biases by alias: from round two on they are "rewound" to trained values."""
    found = list(levels(mnist5k_sets, "late", rewind_step=20))
    kept = flatten(found[0].fitted.kept[20][0])
    for level in found[1:]:
        for l in (1, 2, 3):
            bias = f"dense_{l}/bias"
            assert np.any(kept[bias] != 0)
            np.testing.assert_array_equal(flatten(level.start.params)[bias], kept[bias])
            assert np.any(flatten(level.fitted.params)[bias] != kept[bias])


def test_training_changes_no_array_that_it_is_given(mnist5k_sets: Sets) -> None:
    """LTH-rv's optimiser writes into the stored initial weights; checked by hash, as R6 asks."""
    initial, _, ones = begin(net(), 0)
    mine = jax.tree.map(np.array, initial)  # a user's own, writable
    before = fingerprint(mine), fingerprint(ones)
    t = Training(net(), mine, {}, mnist5k_sets, RECIPE, ones, key(0, "train"))
    first, second = fit(t), fit(t)
    assert (fingerprint(mine), fingerprint(ones)) == before
    assert fingerprint(first.params) == fingerprint(second.params) != before[0]


def test_batch_statistics_are_rewound_with_the_weights() -> None:
    """Synaptic-Flow resets only tensors called weight or bias; running statistics stay trained."""
    network = net()
    initial, _, ones = begin(network, 0)
    at = {name: {"mean": np.full(3, float(i))} for i, name in enumerate(("init", "k", "end"))}
    dense = Dense(initial, at["init"], initial, (initial, at["k"]))
    previous = Before(ones, initial, at["end"])
    rates = rates_of(network, 0.2, 0.1)
    expected = {"initial": "init", "late": "k", "trained": "end", "fresh": None, "same-sign": None}
    for branch in BRANCHES.values():
        begins = start(branch, 1, 0, network, dense, previous, rates, "layer", 20)
        wanted = expected[branch.weights]
        assert begins.stats == ({} if wanted is None else at[wanted])  # a new draw brings its own


def test_level_0_uses_the_same_rate_as_later_levels(
    mnist5k_sets: Sets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LTH-rv trains round 0 with Adam's default 1e-3 and later rounds with ``--lr``."""
    asked_for = []
    monkeypatch.setattr(tickets, "fit", lambda t: asked_for.append(t.recipe) or fit(t))
    recipe = replace(RECIPE, rate=3.7e-3)
    list(lottery(net(), mnist5k_sets, recipe, "control", 2))
    assert asked_for == [recipe] * 4  # dense, control and ticket of level 1, control of level 2
    sgd = replace(RECIPE, optimiser="sgd", rate=3.7e-3, batch=60, steps=20)
    # ... and the rate is applied: one long step of plain SGD is rate times gradient.
    assert sgd.rates(np.arange(20)).tolist() == [3.7e-3] * 20


# --------------------------------------------------------------------------------- what is pruned


@pytest.mark.parametrize("kind", ["different", "tied"])
def test_counts_are_not_one_off_and_ties_do_not_all_go(kind: str) -> None:
    """open_lth prunes 201 of 1,000 where 200 are asked, and with ties everything."""
    rng = np.random.default_rng(0)
    w = {"kernel": rng.standard_normal(1000) if kind == "different" else np.ones(1000)}
    mask = {"kernel": np.ones(1000, bool)}
    for scope in ("layer", "global"):
        assert alive(prune(w, mask, {"kernel": 0.2}, scope)) == {"kernel": 800}


def test_spared_layer_is_not_charged_to_others() -> None:
    """open_lth counts the ignored layers in k and takes their share from the rest."""
    rng = np.random.default_rng(0)
    w = {"a": rng.standard_normal(1000), "spared": rng.standard_normal(9000)}
    mask = {k: np.ones(v.shape, bool) for k, v in w.items()}
    found = alive(prune(w, mask, {"a": 0.2, "spared": 0.0}, "global"))
    assert found == {"a": 800, "spared": 9000}


def test_amount_is_of_survivors() -> None:
    """As in torch.nn.utils.prune: 0.2 twice leaves 0.64. A pruned weight counts for nothing."""
    w, mask = {"kernel": np.arange(1.0, 1001.0)}, {"kernel": np.ones(1000, bool)}
    for expected in (0.8, 0.64, 0.512):
        mask = prune(w, mask, {"kernel": 0.2})
        assert density(mask) == expected


def test_global_magnitude_does_not_divide_by_layer_norms() -> None:
    """jaxpruner does by default, and keeps a weight a layer: 10:1 in scale, 80 % off, .4 and 0."""
    rng = np.random.default_rng(0)
    w = {"large": rng.uniform(9, 10, 500), "small": rng.uniform(0.9, 1, 500)}
    mask = {k: np.ones(500, bool) for k in w}
    found = alive(prune(w, mask, {"large": 0.8, "small": 0.8}, "global"))
    assert found == {"large": 200, "small": 0}


def test_density_is_kept_over_all_and_random_pruning_keeps_the_density() -> None:
    """Synaptic-Flow calls the density sparsity; open_lth's ``even`` keeps the sparsity's share."""
    network = net()
    initial, stats, ones = begin(network, 0)
    dense = Dense(initial, stats, initial, (initial, stats))
    rates = rates_of(network, 0.2, 0.2)
    assert density(ones) == 1.0
    found = start(BRANCHES["random"], 1, 0, network, dense, Before(ones, initial, stats), rates)
    assert density(found.mask) == pytest.approx(0.8, abs=1e-3)


def test_biases_and_norms_are_never_pruned(ticket: list[Level]) -> None:
    """LTH-rv selects by ``'weight' in name``, which takes BatchNorm's scales."""
    params = {"norm": {"weight": np.ones(4), "scale": np.ones(4)}, "kernel": np.ones((4, 4))}
    assert [k for k, m in flatten(kernels_only(params)).items() if m is not None] == ["kernel"]
    for level in ticket:
        masks = flatten(level.start.mask)
        assert [k for k, m in masks.items() if m is not None] == KERNELS


def test_the_output_layer_goes_at_half_the_rate(ticket: list[Level]) -> None:
    """LTH-rv prunes it like the others: 10 % of what remains, not 20 % of half of it."""
    assert [alive(level.start.mask)[KERNELS[2]] for level in ticket] == [100, 90, 81]
    assert [alive(level.start.mask)[KERNELS[1]] for level in ticket] == [200, 160, 128]


def test_pruned_weights_never_revive(ticket: list[Level]) -> None:
    """Synaptic-Flow's iterative random, SNIP and GraSP revive thousands."""
    for before, level in itertools.pairwise(ticket):
        for k in KERNELS:
            assert not np.any(surviving(level)[k] & ~surviving(before)[k])
            assert np.all(flatten(level.fitted.params)[k][~surviving(level)[k]] == 0)


def test_nothing_has_to_be_called_for_pruning_to_happen(ticket: list[Level]) -> None:
    """jaxpruner with ``wrap_optax`` alone leaves 0 % zeros, without a warning."""
    for level in ticket[1:]:
        zeros = sum(int(np.sum(flatten(level.fitted.params)[k] == 0)) for k in KERNELS)
        assert zeros >= sum(int(np.sum(~m)) for m in surviving(level).values()) > 0


def test_end_state_is_sparse_also_with_momentum(mnist5k_sets: Sets, ticket: list[Level]) -> None:
    """open_lth masks in the forward pass alone; momentum and decay move what is saved.

    So do filter-pruning-geometric-median's (#47) and tfmot's (#206) checkpoints.
    """
    recipe = replace(RECIPE, optimiser="momentum", rate=0.02, weight_decay=1e-3)
    found = fit(asked(mnist5k_sets, ticket[2], recipe, keep_at=(20,)))
    for params in (found.params, found.best_params, found.kept[20][0]):
        for k, m in surviving(ticket[2]).items():
            assert np.all(flatten(params)[k][~m] == 0)
            assert np.any(flatten(params)[k][m] != flatten(ticket[2].start.params)[k][m])
    assert all(found.checks.values())


def test_a_pruned_network_that_trains_on_stays_pruned(mnist5k_sets: Sets) -> None:
    """torch's ``prune.remove`` holds nothing at zero; CoursIA#16192 retrained to 98 %."""
    for level in levels(mnist5k_sets, "none"):
        kernels = {k: flatten(level.fitted.params)[k] for k in KERNELS}
        kept = sum(int(np.count_nonzero(v)) for v in kernels.values())
        assert kept / sum(v.size for v in kernels.values()) <= density(level.start.mask)


def test_mask_survives_nan_in_a_pruned_place(mnist5k_sets: Sets, ticket: list[Level]) -> None:
    """jaxpruner's ``param * mask`` keeps a NaN a NaN."""
    t = asked(mnist5k_sets, ticket[2])
    flat = {k: np.array(v) for k, v in flatten(t.start).items()}
    for k, m in surviving(ticket[2]).items():
        flat[k][~m] = np.nan
    dirty = {
        f"dense_{l}": {n: flat[f"dense_{l}/{n}"] for n in ("kernel", "bias")} for l in (1, 2, 3)
    }
    found = fit(replace(t, start=dirty))
    assert all(found.checks.values())
    assert fingerprint(found.params) == fingerprint(fit(t).params)


# -------------------------------------------------------------------------------- what is a control


def test_shuffle_really_shuffles(ticket: list[Level]) -> None:
    """Synaptic-Flow's ``Pruner.shuffle()`` rebinds a local name; the masks stay as they were."""
    mask = ticket[2].start.mask
    found = tickets.shuffle_within_layers(mask, 0, "mask")
    assert alive(found) == alive(mask)
    for k in KERNELS:
        m, shuffled = flatten(mask)[k], flatten(found)[k]
        share = m.mean()  # places that agree by chance: share^2 + (1 - share)^2
        assert np.mean(m == shuffled) == pytest.approx(share**2 + (1 - share) ** 2, abs=0.15)


def test_random_is_uniform_not_the_magnitude_mask_shuffled(ticket: list[Level]) -> None:
    """NTT's "random" shuffles the magnitude mask along axis 0: every unit keeps its count."""
    network = net()
    initial, stats, ones = begin(network, 0)
    trained = ticket[0].fitted.params
    dense = Dense(initial, stats, trained, (initial, stats))
    found = start(
        BRANCHES["random"],
        1,
        0,
        network,
        dense,
        Before(ones, trained, stats),
        rates_of(network, 0.2, 0.1),
    )
    assert alive(found.mask) == alive(ticket[1].start.mask)
    for k in KERNELS[:2]:
        m, magnitude = flatten(found.mask)[k], surviving(ticket[1])[k]
        for axis in (0, 1):
            assert np.any(m.sum(axis) != magnitude.sum(axis))


def test_random_masks_of_two_seeds_and_two_layers_differ() -> None:
    """jaxpruner's default seed is 8 for every pruner; NTT uses one key for all layers and runs."""
    network = mlp(784, input_shape=(784,), outputs=784)
    shapes = jax.eval_shape(network.init, jax.random.key(0))[0]
    ones = ones_mask(network.prunable(shapes))
    drawn = [tickets._noise(ones, seed, "mask", "random", 1) for seed in (0, 1)]
    layers = [flatten(d)[k] for d in drawn for k in ("dense_1/kernel", "dense_2/kernel")]
    for i, a in enumerate(layers):
        for b in layers[:i]:
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / 784


# ------------------------------------------------------------------------------ what is reported


def test_no_test_example_is_dropped(mnist5k_sets: Sets, ticket: list[Level]) -> None:
    """LTH-rv drops the last batch and divides by all: at most 99.60 %. shrinkbench divides every
    batch by the nominal size: a perfect network reports 98.89 %, and losses 128 times too small."""
    few = lambda e, n: replace(e, images=e.images[:n], labels=e.labels[:n])
    joined = Examples(
        np.concatenate([mnist5k_sets.test.images, mnist5k_sets.validation.images[:97]]),
        np.concatenate([mnist5k_sets.test.labels, mnist5k_sets.validation.labels[:97]]),
    )
    for test in (joined, few(mnist5k_sets.test, 7)):  # one block and a bit; less than a batch
        data = replace(mnist5k_sets, test=test, sha256="odd")
        found = fit(asked(data, ticket[1]))
        logits = predicted(found.params, data, test)
        right = int(np.sum(np.argmax(logits, axis=1) == test.labels))
        assert found.last["test_accuracy"] == right / len(test.labels)
        expected = losses(logits, test.labels).mean()
        assert found.last["test_loss"] == pytest.approx(expected, rel=1e-4)
        own = replace(test, labels=np.argmax(logits, axis=1).astype(np.int32))
        perfect = fit(asked(replace(data, test=own, sha256="own"), ticket[1]))
        assert perfect.last["test_accuracy"] == 1.0


def test_reported_accuracy_is_not_the_best_on_test(ticket: list[Level], mnist5k_sets: Sets) -> None:
    """LTH-rv and Synaptic-Flow report the maximum over epochs of test accuracy."""
    for level in ticket:
        fitted = level.fitted
        # Test accuracy is known at two points only, so that no maximum over it can be taken.
        assert set(fitted.curve) == {"step", "validation_loss", "validation_accuracy"}
        assert (
            fitted.best["step"] == fitted.curve["step"][np.argmin(fitted.curve["validation_loss"])]
        )
        for point, params in ((fitted.best, fitted.best_params), (fitted.last, fitted.params)):
            logits = predicted(params, mnist5k_sets, mnist5k_sets.test)
            right = np.mean(np.argmax(logits, axis=1) == mnist5k_sets.test.labels)
            assert point["test_accuracy"] == right


def test_the_state_after_the_last_step_is_evaluated(
    ticket: list[Level], mnist5k_sets: Sets
) -> None:
    """LTH-rv evaluates before each epoch's training, so the end of training is never seen."""
    fitted = ticket[1].fitted
    assert fitted.curve["step"].tolist() == [0, 20, 40]
    assert fitted.last["step"] == RECIPE.steps
    labels = mnist5k_sets.validation.labels
    logits = predicted(fitted.params, mnist5k_sets, mnist5k_sets.validation)
    assert fitted.curve["validation_loss"][-1] == pytest.approx(
        losses(logits, labels).mean(), rel=1e-4
    )
    assert fitted.curve["validation_accuracy"][-1] == np.mean(np.argmax(logits, axis=1) == labels)


def test_weights_are_ranked_at_the_end_and_not_at_early_stopping(mnist5k_sets: Sets) -> None:
    """Frankle & Carbin prune the weights of the last step; accuracy is quoted at early stopping."""
    recipe = replace(RECIPE, drops=((20, 1000.0),))  # spoilt after the best step
    found = list(lottery(net(), mnist5k_sets, recipe, "rewind", 1, 0.2, seed=3))
    fitted, mask = found[0].fitted, surviving(found[1])
    assert fitted.best["step"] < fitted.last["step"]
    for k in KERNELS:
        w = np.abs(flatten(fitted.params)[k])
        assert w[mask[k]].min() >= w[~mask[k]].max()
    at_best = [np.abs(flatten(fitted.best_params)[k]) for k in KERNELS]
    assert any(w[mask[k]].min() < w[~mask[k]].max() for k, w in zip(KERNELS, at_best, strict=True))


def test_each_data_set_is_normalised_with_its_own_mean_and_deviation() -> None:
    """LTH-rv normalises CIFAR with MNIST's numbers."""
    own = {name: (e.mean, e.std) for name, e in DATASETS.items() if name != "mnist5k"}
    assert len(set(own.values())) == len(own)
    assert all(len(mean) == DATASETS[n].shape[-1] == len(std) for n, (mean, std) in own.items())


# --------------------------------------------------------------------------------- what is seeded


def test_seed_changes_init_and_order_and_nothing_is_unseeded(mnist5k_sets: Sets) -> None:
    """LTH-rv has no seed; open_lth none for weights; shrinkbench sets it after the weights."""

    def run(seed: int, disturbance: int) -> list[Level]:
        np.random.seed(disturbance)
        random.seed(disturbance)
        return list(levels(mnist5k_sets, "shuffled", seed))

    one, again, other = run(0, 1), run(0, 2), run(1, 1)
    for a, b, c in zip(one, again, other, strict=True):
        assert fingerprint(a.fitted.params) == fingerprint(b.fitted.params)
        assert fingerprint(a.start.mask) == fingerprint(b.start.mask)
        assert fingerprint(a.start.params) != fingerprint(c.start.params)
        assert fingerprint(a.fitted.params) != fingerprint(c.fitted.params)
    # the order alone: the same start, another key
    t = asked(mnist5k_sets, one[1])
    assert fingerprint(fit(t).params) != fingerprint(fit(replace(t, key=key(1, "train"))).params)


def test_replicates_do_not_share_epoch_orders() -> None:
    """open_lth shuffles epoch e with seed + e: replicates 0 and 1 share all orders but one."""
    orders = {
        (seed, epoch): tuple(
            Order(key(seed, "train", "rewind", 1), 60, 60).indices(epoch, 1).ravel().tolist()
        )
        for seed in range(6)
        for epoch in range(6)
    }
    assert len(set(orders.values())) == 36
    assert all(sorted(order) == list(range(60)) for order in orders.values())


def test_the_papers_presets_are_the_papers() -> None:
    """open_lth's MNIST recipe is not the paper's, so curves of the two cannot be compared."""
    paper, open_lth = presets["paper"], presets["open-lth"]
    assert (paper.optimiser, paper.learning_rate, paper.batch, paper.steps) == (
        "adam",
        1.2e-3,
        60,
        50_000,
    )
    assert (paper.prune, paper.prune_output, paper.scope) == (0.2, 0.1, "layer")
    assert (paper.initialiser, paper.hidden, paper.validation) == (
        "glorot_normal",
        (300, 100),
        5000,
    )
    assert (open_lth.optimiser, open_lth.learning_rate, open_lth.batch) == ("sgd", 0.1, 128)
    assert (open_lth.steps, open_lth.prune_output, open_lth.scope) == (40 * 469, 0.0, "global")
    assert open_lth.initialiser == "kaiming_normal"
