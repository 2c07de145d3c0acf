"""What a run computes, in which order, and what it says of cells that fail."""

from __future__ import annotations

import functools
import io
import os
import random
import sys
from typing import Any

import numpy as np
import pytest
import standin_study
import standin_trainer
from killing import numbers

from secateur.core.errors import SecateurError
from secateur.lab.cells import Cell, Result
from secateur.lab.checkpoints import Checkpoints
from secateur.lab.executors import make_executor
from secateur.lab.jobs import Jobs
from secateur.lab.progress import Progress
from secateur.lab.run import CellsFailed, run
from secateur.lab.store import Store
from secateur.lab.watch import CellWatch


def go(store: Store, cells: Any = None, executor: Any = "serial", work: Any = None, **named: Any):
    return run(
        standin_study.cells() if cells is None else cells,
        work or standin_study.work,
        store,
        executor,
        progress=named.pop("progress", Progress(quiet=True)),
        trainer="standin_trainer",
        **named,
    )


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.mark.parametrize("executor", ["processes", "lanes"])
def test_every_executor_gives_the_same(tmp_path, executor):
    cells = standin_study.cells(trainings=2)
    for name in ("serial", executor):
        outcome = go(Store(tmp_path / name), cells, make_executor(name, 2))
        assert len(outcome.computed) == 14
    assert numbers(tmp_path / "serial") == numbers(tmp_path / executor)


def test_only_what_is_missing_is_computed(store):
    go(store, standin_study.cells(levels=1))
    outcome = go(store, standin_study.cells(levels=2))
    assert len(outcome.reused) == 6
    assert len(outcome.computed) == 4
    again = go(store, standin_study.cells(levels=2))
    assert again.computed == []
    assert len(again.reused) == 10


def test_needs_are_computed_though_nobody_asked(store):
    wanted = [cell for cell in standin_study.cells() if cell.label == "control level 3, seed 1"]
    assert len(go(store, wanted).computed) == 5


def test_what_a_card_says(store):
    go(store, standin_study.cells(1, 0))
    made = store.entries()[0].made
    assert made["versions"].keys() >= {"secateur", "python", "numpy", "jax", "jaxlib"}
    assert made["executor"] == "serial"
    assert made["threads"] >= 1
    assert made["seconds_wall"] > 0
    assert made["command"]
    assert made["finished"].endswith("Z")


def test_workers_have_one_thread(store):
    go(store, standin_study.cells(1, 1), make_executor("processes", 1))
    assert {entry.made["threads"] for entry in store.entries()} == {1}


FAILURES = {
    "check": "the check 'finite' failed",
    "nan": "the value mean is not finite",
    "raise": "ZeroDivisionError: on purpose",
    "sentence": "this cell has no weights left: use a higher density",
}


@pytest.mark.parametrize(
    ("executor", "how"),
    [
        *((executor, how) for executor in ("serial", "lanes") for how in FAILURES),
        ("processes", "raise"),
    ],
)
def test_a_failed_cell_fails_loudly_and_alone(store, executor, how):
    sentence = FAILURES[how]
    fields = {"break": "rewind level 2, seed 0", "how": how}
    cells = standin_study.cells(**fields)
    said = io.StringIO()
    with pytest.raises(CellsFailed) as error:
        go(store, cells, make_executor(executor, 2), progress=Progress(said))
    assert f"tiny rewind level 2, seed 0 failed: {sentence}" in str(error.value)
    assert "3 cells need them" in str(error.value)
    assert str(error.value).count("\n") == 0
    assert said.getvalue().count(sentence) == 1
    outcome = error.value.outcome
    assert len(outcome.computed) == 10
    assert len(outcome.blocked) == 3
    (failed,) = [c for c in cells if c.label == "rewind level 2, seed 0"]
    text = (store.path / "failures" / "tiny" / f"{failed.slug}.txt").read_text()
    assert sentence in text
    assert "Traceback" in text
    assert os.listdir(store.path / "claims") == []
    assert not store.has(failed)


def test_a_cell_that_works_the_next_time_forgets_its_failure(store, monkeypatch):
    cells = standin_study.cells(1, 0)

    def broken(cell: Cell, inputs: Any) -> Any:
        raise KeyError("gone tomorrow")
        yield

    with pytest.raises(CellsFailed, match="KeyError: 'gone tomorrow'"):
        go(store, cells, work=broken)
    assert os.listdir(store.path / "failures" / "tiny")
    go(store, cells)
    assert os.listdir(store.path / "failures" / "tiny") == []


@pytest.mark.parametrize(
    ("work", "sentence"),
    [
        (lambda cell, inputs: Result({}), "must be a generator function"),
        (lambda cell, inputs: (x for x in ()), "it must return a Result"),
    ],
)
def test_work_of_the_wrong_kind_is_named(store, work, sentence):
    with pytest.raises(CellsFailed, match=sentence):
        go(store, standin_study.cells(1, 0), work=work)


def test_work_that_cannot_travel_is_one_sentence(store):
    with pytest.raises(SecateurError, match="at the top of a module"):
        go(store, executor=make_executor("processes", 1), work=lambda cell, inputs: None)


def test_work_may_be_a_partial(store):
    work = functools.partial(standin_study.work)
    assert len(go(store, standin_study.cells(1, 0), make_executor("processes", 1), work).computed)


def test_no_trainings_at_all_is_fine(store):
    def work(cell: Cell, inputs: Any) -> Any:
        return Result({"n": len(inputs)})
        yield

    assert len(go(store, work=work).computed) == 14


def test_work_may_catch_a_failed_training(store):
    def work(cell: Cell, inputs: Any) -> Any:
        try:
            yield standin_trainer.Training(np.ones(2), 10, cell.seed)
            yield standin_trainer.Training(np.ones(2), 10, -cell.seed)  # no seed is negative
        except ValueError:
            return Result({"caught": True})
        return Result({"caught": False})

    go(store, standin_study.cells(3, 0), "lanes", work)
    assert [entry.values["caught"] for entry in store.entries()] == [False, True, True]


@pytest.mark.parametrize("executor", ["serial", "lanes"])
def test_a_training_of_the_wrong_kind_fails_its_cell(store, executor):
    def work(cell: Cell, inputs: Any) -> Any:
        yield "no training"

    with pytest.raises(CellsFailed, match="has no attribute"):
        go(store, standin_study.cells(1, 0), executor, work)


# -- lanes -------------------------------------------------------------------------------------


def test_lanes_run_equal_programs_together(store):
    standin_trainer.CALLS.clear()
    go(store, standin_study.cells(seeds=4, levels=2), "lanes")
    lanes = [n for kind, n in standin_trainer.CALLS if kind == "lanes"]
    assert sum(lanes) == 20
    assert lanes == [4, 4, 4, 8], "the seeds side by side; at the end both levels of control too"
    told = store.entries()
    assert sorted(entry.made["lanes"] for entry in told) == [4] * 12 + [8] * 8


def test_no_more_lanes_than_allowed(store):
    standin_trainer.CALLS.clear()
    go(store, standin_study.cells(seeds=4, levels=1), make_executor("lanes", 3))
    assert max(n for _, n in standin_trainer.CALLS) == 3


def test_lanes_that_do_not_fit_are_halved(store, monkeypatch):
    monkeypatch.setenv("STANDIN_LANES", "2")
    outcome = go(store, standin_study.cells(seeds=5, levels=1), "lanes")
    assert len(outcome.computed) == 15


def test_lanes_go_on_from_a_common_step(store):
    """Killed between the checkpoints of two lanes: one has gone a chunk further than the other."""
    cells = standin_study.cells(seeds=2, levels=0, steps=200)
    whole = Store(store.path.parent / "whole")
    go(whole, cells)
    for cell, stop in zip(cells, (5, 4)):
        ticks = [0]

        def stopping(ticks=ticks, stop=stop):
            ticks[0] += 1
            return ticks[0] == stop

        watch = CellWatch(Checkpoints(store.path), cell.address, 0.0, stopping=stopping)
        generator = standin_study.work(cell, {})
        with pytest.raises(SecateurError):
            standin_trainer.fit(next(generator), watch.training())
    checkpoints = Checkpoints(store.path)
    assert [checkpoints.steps(c.address, 0) for c in cells] == [[50, 40], [40, 30]]
    standin_trainer.CALLS.clear()
    go(store, cells, "lanes", interval=3600.0)
    assert standin_trainer.CALLS == [("lanes", 2)]
    assert numbers(store.path) == numbers(whole.path)


# -- checkpoints -------------------------------------------------------------------------------


class Asked:
    """Counts what a watch publishes."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int], Any] = {}
        self.times = 0

    def publish(self, address: str, number: int, arrays: Any, note: Any) -> None:
        self.times += 1
        self.kept[address, number] = arrays, note

    def load(self, address: str, number: int, warn: Any, step: Any = None) -> Any:
        return self.kept.get((address, number))


def test_checkpoints_are_as_rare_as_asked(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("secateur.lab.watch.time.monotonic", lambda: now[0])
    asked, states = Asked(), 0

    def state() -> dict[str, np.ndarray]:
        nonlocal states
        states += 1
        return {}

    watch = CellWatch(asked, "a", interval=30.0).training()
    for step in range(1, 1001):
        now[0] += 1.0
        watch.tick(step, 2000, state)
    assert asked.times == states == 33


def test_trainings_that_ended_are_published_with_the_next(monkeypatch):
    """A cell of many short trainings loses no more than a cell of one long training."""
    now = [0.0]
    monkeypatch.setattr("secateur.lab.watch.time.monotonic", lambda: now[0])
    asked = Asked()
    cell = CellWatch(asked, "a", interval=30.0)
    for number in range(5):
        watch = cell.training()
        for step in (1, 2):
            now[0] += 5.0
            watch.tick(step, 2, lambda n=number, s=step: {"x": np.array([n, s])})
    assert sorted(number for _, number in asked.kept) == [0, 1, 2]
    assert asked.kept["a", 0][0]["x"].tolist() == [0, 2]
    assert asked.kept["a", 0][1]["step"] == 2


def test_seconds_of_earlier_tries_count(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("secateur.lab.watch.time.monotonic", lambda: now[0])
    asked = Asked()
    first = CellWatch(asked, "a", interval=10.0)
    now[0] = 12.0
    first.training().tick(1, 9, dict)
    now[0] = 100.0
    second = CellWatch(asked, "a")
    assert second.training().load() == {}
    now[0] = 105.0
    assert second.spent()["wall"] == 17.0


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_checkpoint_is_ignored_with_a_warning(store, seed):
    """The one before it serves; where that is damaged too, the cell starts from the beginning."""
    (cell,) = standin_study.cells(1, 0, steps=400)
    rng, checkpoints = random.Random(seed), Checkpoints(store.path)
    ticks = [0]

    def stopping() -> bool:
        ticks[0] += 1
        return ticks[0] == 10

    watch = CellWatch(checkpoints, cell.address, 0.0, stopping=stopping)
    with pytest.raises(SecateurError):
        standin_trainer.fit(next(standin_study.work(cell, {})), watch.training())
    last, before = checkpoints.paths(cell.address, 0)
    warnings: list[str] = []
    for path, step in ((last, 90), (before, None)):
        data = bytearray(path.read_bytes())
        if seed % 2:
            del data[rng.randrange(len(data)) :]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        found = checkpoints.load(cell.address, 0, warnings.append)
        assert (None if found is None else found[1]["step"]) == step
    assert len(warnings) == 3
    assert all("is not used" in warning for warning in warnings)
    outcome = go(store, [cell])
    assert len(outcome.warnings) == 2
    go(whole := Store(store.path.parent / "whole"), [cell])
    assert numbers(store.path) == numbers(whole.path)


def test_a_checkpoint_of_another_version_is_not_used(store, monkeypatch):
    checkpoints = Checkpoints(store.path)
    checkpoints.publish("a", 0, {"x": np.ones(2)}, {"step": 1})
    monkeypatch.setattr("secateur.__version__", "0.0.9")
    warnings: list[str] = []
    assert checkpoints.load("a", 0, warnings.append) is None
    assert "made by secateur 0.1.0" in warnings[0]


# -- the book ----------------------------------------------------------------------------------


def test_a_chain_is_continued_unless_a_longer_one_waits(store):
    cells = standin_study.cells(seeds=2, levels=3)
    jobs = Jobs(cells, store)
    first = jobs.take()
    second = jobs.take()
    assert first is not None
    assert second is not None
    assert {first.cell.label, second.cell.label} == {
        "dense level 0, seed 0",
        "dense level 0, seed 1",
    }
    assert jobs.take() is None
    x = {"x": np.zeros(12), "mask": np.ones(12, bool)}
    for task in (first, second):
        jobs.done(task, Result({}, x), {})
    for task in (second, first):
        after = jobs.take(task.cell.address)
        assert after is not None
        assert after.cell.label == f"rewind level 1, seed {task.cell.seed}"
        assert after.inputs.keys() == {"previous"}
    jobs.close()


def test_a_need_that_is_damaged_on_the_way_is_computed_again(store):
    """Found good at the start, damaged when it is needed."""
    cells = standin_study.cells(1, 2)
    go(store, cells[:1])
    jobs = Jobs(cells, store)
    jobs._recent.clear()
    path = store.folder(cells[0]) / "arrays.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    task = jobs.take()
    assert task is not None
    assert task.cell == cells[0]
    assert "computed again" in jobs.warnings[0]
    jobs.close()


def test_the_state_of_a_worker_s_module_search_is_ours():
    """Workers find what this process finds: the tests' folder is on the path of none but pytest."""
    assert any(os.path.samefile(path, os.path.dirname(__file__)) for path in sys.path if path)
