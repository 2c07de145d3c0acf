"""Progress is honest: measured, weighted by cost, never below the longest chain."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import standin_study

from secateur.lab.progress import Progress, _spoken


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("secateur.lab.progress.time.monotonic", lambda: now[0])
    return now


def cells(costs):
    first = standin_study.cells(1, 0)[0]
    return [replace(first, seed=n, cost=cost) for n, cost in enumerate(costs)]


def test_the_estimate_is_weighted_by_cost(clock):
    progress = Progress(quiet=True)
    these = cells([10, 30, 60])
    progress.begin(these, these)
    assert progress.seconds_left() is None
    progress.began(these[0])
    clock[0] = 20.0
    progress.done(these[0], 20.0)
    assert progress.seconds_left() == pytest.approx(180.0)
    progress.began(these[1])
    clock[0] = 50.0
    progress.tick(these[1], 0, 100)
    progress.tick(these[1], 50, 100)
    assert progress.seconds_left() == pytest.approx(75 / (25 / 50))


def test_cells_from_the_store_make_no_promise(clock):
    progress = Progress(quiet=True)
    these = cells([10, 10, 10])
    progress.begin(these[1:], these)
    assert (progress.count, progress.total) == (1, 3)
    clock[0] = 10.0
    assert progress.seconds_left() is None
    progress.done(these[1], 10.0)
    assert progress.seconds_left() == pytest.approx(10.0)


def test_a_resumed_cell_counts_only_what_is_done_now(clock):
    progress = Progress(quiet=True)
    these = cells([100, 100])
    progress.begin(these, these)
    progress.began(these[0])
    clock[0] = 1.0
    progress.tick(these[0], 80, 100)  # 80 were in the checkpoint
    clock[0] = 11.0
    progress.tick(these[0], 90, 100)
    assert progress.seconds_left() == pytest.approx(110 / (10 / 11))


def test_a_chain_cannot_be_shared(clock):
    """Two workers, but what is left must be done in a row."""
    progress = Progress(quiet=True)
    progress.workers = 2
    alone = standin_study.cells(1, 0)[0]
    row = [replace(alone, place={"level": 1})]
    for level in range(2, 5):
        row.append(replace(alone, place={"level": level}, needs={"previous": row[-1]}))
    side = [replace(alone, place={"side": n}) for n in range(4)]
    progress.begin([*side, *row], [*side, *row])
    clock[0] = 20.0
    for cell in side:
        progress.done(cell, 10.0)
    assert progress.seconds_left() == pytest.approx(40.0), "not 20: each step of the row takes 10 s"


def test_plain_lines_are_rare_and_say_what_is_going_on(clock):
    said = io.StringIO()
    progress = Progress(said)
    these = cells([1] * 4)
    progress.begin(these[1:], these)
    progress.began(these[1])
    for step in range(100):
        clock[0] += 0.31
        progress.tick(these[1], step, 100)
    progress.say("a sentence")
    lines = said.getvalue().splitlines()
    assert lines[0] == "4 cells, 1 of them in the store"
    assert len(lines) == 4
    assert lines[1].startswith("1 of 4 cells, about ")
    assert lines[1].endswith(" left; now dense level 0, seed 1")
    assert lines[-1] == "a sentence"


def test_a_terminal_gets_a_live_bar():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    said = Terminal()
    progress = Progress(said)
    these = cells([1, 1])
    progress.begin(these, these)
    progress.began(these[0])
    progress.tick(these[0], 1, 2)
    progress.say("[bold] is no markup here")
    progress.done(these[0], 1.0)
    progress.close()
    assert "[bold] is no markup here" in said.getvalue()
    assert "1/2 cells" in said.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "measuring"),
        (1, "about 5 s left"),
        (130, "about 2 min left"),
        (9e3, "about 2.5 h left"),
    ],
)
def test_durations_are_spoken(seconds, words):
    assert _spoken(seconds) == words
