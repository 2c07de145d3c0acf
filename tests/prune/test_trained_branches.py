"""Whole branches, really trained: generator against study, smaller networks against full."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import msgspec
import numpy as np
import pytest
from scipy import stats as distributions

from secateur.core.trees import fingerprint, flatten
from secateur.lab.progress import Progress
from secateur.lab.run import run
from secateur.lab.store import Store
from secateur.networks.mlp import mlp
from secateur.prune.branches import BRANCHES
from secateur.prune.lottery import (
    Before,
    Dense,
    Start,
    begin,
    lottery,
    rates_of,
    start,
    training,
)
from secateur.studies import lottery as study
from secateur.studies import trained
from secateur.train.fit import fit, fit_lanes
from secateur.train.recipes import Recipe
from secateur.train.training import Fitted, Training

TINY = msgspec.structs.replace(
    study.presets["quick"],
    steps=40,
    evaluate_every=20,
    levels=2,
    hidden=(20, 10),
    branches=tuple(BRANCHES),
    rewind_step=20,
)


@pytest.fixture(scope="module")
def from_the_lab(tmp_path_factory: pytest.TempPathFactory, mnist5k_sets: Any) -> Any:
    cells = study.cells(TINY, [5], mnist5k_sets.sha256)
    store = Store(tmp_path_factory.mktemp("store"))
    run(cells, study.work, store, "serial", progress=Progress(quiet=True))
    return {(c.place["branch"], c.place["level"]): store.read(c) for c in cells}


@pytest.mark.parametrize("name", BRANCHES)
def test_the_generator_and_the_study_give_the_same_bits(
    name: str, from_the_lab: Any, mnist5k_sets: Any
) -> None:
    """Through cells, store and back or in one loop: every weight, mask and number."""
    network = mlp(20, 10)
    recipe = Recipe(steps=40, evaluate_every=20)
    levels = lottery(
        network,
        mnist5k_sets,
        recipe,
        branch=name,
        levels=2,
        rate=TINY.prune,
        output_rate=TINY.prune_output,
        rewind_step=20,
        seed=5,
    )
    for level, begins, fitted in levels:
        stored = from_the_lab[name if level else "dense", level]
        assert stored.values["hashes"]["mask"] == fingerprint(begins.mask)
        assert stored.values["hashes"]["start"] == fingerprint(begins.params)
        _, weights = trained.unpack(stored, fitted.params)
        assert fingerprint(weights) == fingerprint(fitted.params)
        assert stored.values["best"] == fitted.best
        assert stored.values["last"] == fitted.last
        for k, v in fitted.curve.items():
            assert stored.values["curve"][k] == v.tolist()
    assert level == 2


# ---------------------------------------------------------------- the smaller network, every branch

RECIPE = Recipe("adam", 1.2e-3, batch=20, steps=200, evaluate_every=50)
RATE, REWIND = 0.85, 50  # two levels leave 2 % of the weights


def far(a: Fitted, b: Fitted) -> float:
    pairs = zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True)
    return max(float(np.max(np.abs(x - y)) / (np.max(np.abs(y)) + 1e-30)) for x, y in pairs)


def test_smaller_networks_are_the_full_ones_on_every_branch_in_float64(mnist5k_sets: Any) -> None:
    """Level 2 of every branch, 200 steps to 1e-9; as lanes, the branches share programs."""
    few = lambda e: replace(e, images=e.images[::5], labels=e.labels[::5])
    data = replace(
        mnist5k_sets,
        train=few(mnist5k_sets.train),
        validation=few(mnist5k_sets.validation),
        test=few(mnist5k_sets.test),
        sha256="few",
    )
    names = [n for n in BRANCHES if n != "late"]
    with jax.enable_x64(True):
        network = mlp(40, 24)
        initial, stats, ones = begin(network, 0)
        rates = rates_of(network, RATE, RATE)

        def asked(name: str, level: int, begins: Start, shrink: bool, **options: Any) -> Training:
            branch = BRANCHES.get(name)
            return training(
                branch,
                level,
                0,
                network,
                data,
                RECIPE,
                begins,
                shrink=shrink,
                grain=8,
                siblings=10**9,
                **options,
            )

        begins = Start(ones, initial, stats, 0)
        first = fit(asked("dense", 0, begins, False, keep_at=(REWIND,)))
        dense = Dense(initial, stats, first.params, first.kept[REWIND])
        level_0 = Before(ones, first.params, stats)
        before = dict.fromkeys(BRANCHES, level_0)
        for level in (1, 2):
            begun = {}
            for name, branch in BRANCHES.items():
                follows = {"own": before[name], "ticket": before["rewind"], "dense": level_0}
                previous = follows[branch.follows]
                begun[name] = start(
                    branch, level, 0, network, dense, previous, rates, "layer", REWIND
                )
            # late begins at step 50, so it is no lane; keep_at lets it share the dense program
            late = asked("late", level, begun["late"], False, keep_at=(100,))
            full = dict(
                zip(
                    names, fit_lanes([asked(n, level, begun[n], False) for n in names]), strict=True
                )
            ) | {"late": fit(late)}
            before = {n: Before(begun[n].mask, f.params, stats) for n, f in full.items()}
        small = dict(
            zip(names, fit_lanes([asked(n, 2, begun[n], True) for n in names]), strict=True)
        ) | {"late": fit(replace(late, shrink=True))}
    for name in BRANCHES:
        assert not full[name].widths
        widths = small[name].widths
        assert widths["input"]["trained"] < 784
        assert far(small[name], full[name]) < 1e-9, name
        np.testing.assert_allclose(
            small[name].curve["validation_loss"], full[name].curve["validation_loss"], rtol=1e-9
        )
        assert small[name].best["step"] == full[name].best["step"]
        assert small[name].last["test_accuracy"] == full[name].last["test_accuracy"]
        assert all(small[name].checks.values())
        for m, p in zip(
            flatten(begun[name].mask).values(), flatten(small[name].params).values(), strict=True
        ):
            assert m is None or np.all(p[~m] == 0)


@pytest.mark.long
@pytest.mark.parametrize("name", ["rewind", "control", "none", "shuffled"])
def test_final_accuracies_of_smaller_networks_are_those_of_full_ones(
    name: str, mnist5k_sets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32, 5 seeds, 400 steps a level down to 0.4 %: paired differences within their interval.

    A 99.9 % interval: a false alarm in 1,000 a level where the two differ by rounding alone. And
    no difference of means beyond one point, so that a wide interval hides nothing.
    """
    from secateur.prune import lottery as prune
    from secateur.train import fit as loop

    recipe = Recipe(steps=400, evaluate_every=100)
    found: dict[bool, list[list[float]]] = {}
    for shrink in (True, False):
        kind = lambda t, shrink=shrink: loop.fit(
            replace(t, shrink=shrink, grain=128, siblings=10**9)
        )
        monkeypatch.setattr(prune, "fit", kind)
        found[shrink], narrow = [], 0
        for seed in range(5):
            levels = list(
                lottery(mlp(100, 60), mnist5k_sets, recipe, name, 8, 0.5, 0.25, seed=seed)
            )
            found[shrink].append([l.fitted.last["test_accuracy"] for l in levels])
            narrow += sum(bool(l.fitted.widths) for l in levels)
        assert bool(narrow) == shrink
    differences = np.array(found[True]) - np.array(found[False])  # (seeds, levels)
    t = distributions.t.ppf(0.9995, 4)
    for level, d in enumerate(differences.T):
        half = t * d.std(ddof=1) / np.sqrt(5)
        assert abs(d.mean()) <= half + 1e-12, (level, d)
        assert abs(d.mean()) < 0.01, (level, d)
