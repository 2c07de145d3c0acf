"""The study `connectivity`: its cells, what it asks to be trained, its claims on known rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.trees import alive, apply_mask, fingerprint, flatten
from secateur.data.registry import DATASETS
from secateur.lab.cells import Cell, Result, closure, rows_of
from secateur.lab.progress import Progress
from secateur.lab.run import run
from secateur.lab.store import Store
from secateur.lab.verdicts import NOT_REPRODUCED, REPRODUCED
from secateur.studies import connectivity
from secateur.studies import connectivity_claims as said
from secateur.train.training import Fitted, Training

DATA = DATASETS["mnist5k"].sha256
TINY = msgspec.structs.replace(
    connectivity.presets["quick"],
    hidden=(10,),
    steps=40,
    rewinds=(20,),
    levels=2,
    points=5,
    compared=50,
)


def test_every_preset_is_possible_and_every_cell_its_own() -> None:
    assert set(connectivity.presets) == set(connectivity.seeds)
    for fields in connectivity.presets.values():
        connectivity.check(fields)
        cells = connectivity.cells(fields, range(2), DATA)
        assert len(cells) == len({c.address for c in cells})
        assert closure(cells) == cells
        assert connectivity.takes(fields)["steps"] > 0


def test_more_rewinds_and_fewer_controls_change_no_other_cell() -> None:
    few = msgspec.structs.replace(TINY, controls=("random",))
    more = msgspec.structs.replace(TINY, rewinds=(20, 0 + TINY.steps // 2), controls=("random",))
    at = lambda fields: {c.address for c in connectivity.cells(fields, (0,), DATA)}
    assert at(few) < at(TINY)
    assert at(more) == at(few), "one step asked for twice is one cell"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rewinds": (30,)}, r"multiples of evaluate_every \(20\)"),
        ({"rewinds": (40,)}, "below steps"),
        ({"rewinds": (0,)}, "step 0 is always there"),
        ({"controls": ("shufled",)}, "shuffled"),
        ({"points": 2}, "at least 3 points"),
        ({"compared": 0}, "1 example"),
        ({"levels": 0}, "at least 1"),
        ({"steps": 50}, "multiple of evaluate_every"),
        ({"prune": 0.9, "levels": 9}, "no weight left"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SecateurError, match=words):
        connectivity.check(msgspec.structs.replace(TINY, **change))


def drift(training: Training) -> Fitted:
    """In place of a training: the start and some noise of its key, inside the mask."""
    words = np.asarray(jax.random.key_data(training.key)).ravel().tolist()
    rng = np.random.default_rng(words)
    noisy = lambda p: np.asarray(p) + rng.normal(0, 0.1, np.shape(p)).astype(np.float32)
    params = apply_mask(training.mask, jax.tree.map(noisy, training.start))
    point = {"test_accuracy": 0.5, "train_accuracy": 0.5, "test_loss": 1.0, "step": 40}
    none: dict[str, Any] = {}
    return Fitted(params, none, params, none, {}, none, point, point, none, none, {"finite": True})


def driven(cell: Cell, inputs: Mapping[str, Result]) -> tuple[list[Training], Result]:
    """What a cell asks for, and what it makes of drifting weights."""
    asked: list[Training] = []
    work = connectivity.work(cell, inputs)
    try:
        training = next(work)
        while True:
            asked.append(training)
            training = work.send(drift(training))
    except StopIteration as stop:
        return asked, stop.value


def test_copies_share_start_and_mask_and_no_order() -> None:
    cells = {c.place["branch"]: c for c in connectivity.cells(TINY, (0,), DATA)}
    asked: dict[str, list[Training]] = {}
    ticket: Result | None = None
    rows = {}
    for branch, cell in cells.items():
        inputs = {"ticket": ticket} if cell.needs and ticket is not None else {}
        asked[branch], result = driven(cell, inputs)
        ticket = result if branch == "rewind" else ticket
        assert all(result.checks.values())
        rows[branch] = rows_of(result.values)

    late = asked["late"]
    parent, late = late[0], late[1:]
    assert (parent.first_step, parent.recipe.steps) == (0, 20)
    assert {t.first_step for t in late} == {20}
    mine = drift(parent).params
    for t in late:
        assert fingerprint(t.start) == fingerprint(apply_mask(t.mask, mine)), "weights of step 20"
    keys = set()
    for branch, trainings in {**asked, "late": late}.items():
        for one, other in zip(trainings[::2], trainings[1::2], strict=True):
            assert fingerprint(one.start) == fingerprint(other.start)
            assert fingerprint(one.mask) == fingerprint(other.mask)
            keys |= {(branch, *np.asarray(jax.random.key_data(t.key))) for t in (one, other)}
        hashes = [row["hashes"]["mask"] for row in rows[branch]]
        assert hashes == [fingerprint(t.mask) for t in trainings[::2]]
    assert len(keys) == sum(map(len, asked.values())) - 1, "an order of its own for each"

    # The first copy says what goes: the smallest of what it has come to, layer by layer.
    for level in (1, 2):
        before = asked["rewind"][2 * level - 2]
        kept = flatten(asked["rewind"][2 * level].mask)
        for name, w in flatten(drift(before).params).items():
            if kept[name] is not None:
                here = np.asarray(flatten(before.mask)[name])
                lost = np.abs(np.asarray(w))[here & ~kept[name]]
                assert len(lost)
                assert lost.max() <= np.abs(np.asarray(w))[kept[name]].min()
        counts = alive(asked["rewind"][2 * level].mask)
        for branch in said.CONTROLS:
            own = asked[branch][2 * level - 2].mask
            assert alive(own) == counts, "density for density"
            same = fingerprint(own) == fingerprint(asked["rewind"][2 * level].mask)
            assert same == (branch == "control")
    start = flatten(asked["rewind"][0].start)["dense_1/kernel"]
    for branch in said.CONTROLS:
        w = np.asarray(flatten(asked[branch][0].start)["dense_1/kernel"])
        own = bool(np.all((w == 0) | (w == np.asarray(start))))
        assert own == (branch != "control"), "only the control has new weights"


def test_a_cell_through_the_lab(tmp_path: Path) -> None:
    fields = msgspec.structs.replace(TINY, rewinds=(), controls=(), levels=1)
    store, cells = Store(tmp_path), connectivity.cells(fields, (0,), DATA)
    run(cells, connectivity.work, store, "serial", progress=Progress(quiet=True))
    result = store.read(cells[0])
    rows = rows_of(result.values)
    assert [r["level"] for r in rows] == [0, 1]
    assert result.checks["both copies have one start and one mask, level 1"]
    for row in rows:
        ends = [row["last"]["test_accuracy"], row["second"]["last"]["test_accuracy"]]
        assert row["accuracy"] == pytest.approx(np.mean(ends))
        # The mean of the ends lies half their difference below the worse one.
        assert row["barrier"]["test_error"] >= abs(ends[0] - ends[1]) / 2 - 1e-6
        assert row["stable"] == (row["barrier"]["test_error"] < 0.02)
        assert 0 < row["apart"] < 2


def made(branch: str, level: int, barrier: float, accuracy: float, seed: int) -> dict[str, Any]:
    """A row of a level: barrier in points, accuracy in %."""
    return {
        "seed": seed,
        "branch": branch,
        "level": level,
        "step": int(branch.split()[1]) if branch.startswith("step") else 0,
        "density": (1.0, 0.036, 0.08, 0.019)[level],
        "barrier": {"test_error": barrier / 100},
        "accuracy": accuracy / 100,
        "stable": barrier < 2,
    }


def judged(table: Mapping[tuple[str, int], tuple[float, float]]) -> dict[str, str]:
    """The verdicts on three seeds that differ a little; (branch, level) -> (barrier, accuracy)."""
    rows = [
        made(branch, level, barrier * (1 + 0.01 * seed), accuracy, seed)
        for seed in range(3)
        for (branch, level), (barrier, accuracy) in table.items()
    ]
    found = {m.claim.id: m.verdict(rows, {}) for m in connectivity.claims}
    return {name: verdict.word for name, verdict in found.items() if verdict}


GOOD = {
    ("rewind", 0): (1.0, 95.0),
    ("step 100", 0): (0.5, 95.0),
    ("rewind", 1): (0.5, 95.2),
    ("step 100", 1): (0.2, 95.3),
    ("control", 1): (3.0, 90.0),
    ("shuffled", 1): (4.0, 85.0),
    ("random", 1): (5.0, 80.0),
}
BAD = {
    ("rewind", 0): (9.0, 95.0),
    ("step 100", 0): (9.5, 95.0),
    ("rewind", 1): (5.0, 95.2),
    ("step 100", 1): (6.0, 95.3),
    ("control", 1): (3.0, 90.0),
    ("shuffled", 1): (2.5, 85.0),
    ("random", 1): (1.0, 80.0),
}


def test_claims_judge_rows_of_both_kinds() -> None:
    every = {m.claim.id for m in connectivity.claims}
    unstable = {("rewind", 2): (2.5, 90.0)}  # a ticket that is neither stable nor matching
    last = {place: (v, a) for place, (v, a) in GOOD.items() if place[1]}
    last = {(branch, 3): numbers for (branch, _), numbers in last.items()}
    assert judged(GOOD | unstable | last) == dict.fromkeys(every, REPRODUCED)
    last = {(branch, 3): numbers for (branch, level), numbers in BAD.items() if level}
    assert judged(BAD | last) == dict.fromkeys(every, NOT_REPRODUCED)


def test_what_is_missing_is_not_judged() -> None:
    dense = {("rewind", 0): GOOD["rewind", 0]}
    assert set(judged(dense)) == {"LMC-1"}
    stable = {place: (0.1, value) for place, (_, value) in GOOD.items()}
    found = set(judged(stable))
    assert not found & {"MATCH-1", "MATCH-1b", "MATCH-2"}, "no unstable network to compare with"
    assert "MATCH-3" not in found, "all barriers are equal"
    notes = connectivity.notes([made("rewind", 0, 1, 95, 0), made("rewind", 1, 1, 95, 0)], TINY)
    assert "0 of 1 tickets are not stable, so that" in notes[-1]


def test_rank_correlation_by_hand() -> None:
    # Ranks 1 2.5 2.5 4 and 1 2 3 4: covariance 4.5, variances 4.5 and 5.
    assert said.rank_correlation([0, 1, 1, 7], [0, 1, 2, 3]) == pytest.approx(4.5 / 22.5**0.5)
    assert said.rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert said.rank_correlation([1, 1, 1], [3, 2, 1]) is None
    assert said.rank_correlation([1, 2], [3, 2]) is None


def test_the_page_says_what_was_found() -> None:
    rows = [made(b, level, *numbers, 0) for (b, level), numbers in GOOD.items()]
    words = connectivity.sentence(rows, TINY, "MNIST, 5,000 images")
    assert "dense (1.0), ticket (0.5), re-initialised (3.0), mask shuffled (4.0)" in words
    assert connectivity.sentence([], TINY, "MNIST").endswith("Data: MNIST.")


GOLDEN = {  # (branch, level) -> accuracy, barrier in test loss, how far the copies part
    ("rewind", 0): (0.4935, 0.0123, 0.417),
    ("rewind", 2): (0.527, 0.0005, 0.314),
    ("step 20", 2): (0.4065, 0.0021, 0.600),
    ("control", 2): (0.341, 0.0091, 0.350),
    ("shuffled", 1): (0.4655, 0.0598, 0.468),
    ("random", 2): (0.3715, 0.0088, 0.374),
}


@pytest.mark.long
def test_cells_have_the_numbers_that_the_meaning_stands_for(tmp_path: Path) -> None:
    """If it fails, results changed meaning: raise ``meaning`` and renew these numbers."""
    assert connectivity.meaning == 1
    store, cells = Store(tmp_path), connectivity.cells(TINY, (0,), DATA)
    run(cells, connectivity.work, store, "serial", progress=Progress(quiet=True))
    rows = [r for cell in cells for r in rows_of(store.read(cell).values)]
    found = {(r["branch"], r["level"]): r for r in rows}
    own, controls = ("rewind", "step 20"), said.CONTROLS
    assert set(found) == {(b, k) for b in (*own, *controls) for k in (0, 1, 2) if k or b in own}
    for place, numbers in GOLDEN.items():
        row = found[place]
        got = (row["accuracy"], row["barrier"]["test_loss"], row["apart"])
        assert got == pytest.approx(numbers, abs=3e-3), place
