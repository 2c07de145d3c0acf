"""The study `lottery`, through the command: killed again and again, it ends with the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from killing import forget, numbers, wait_for
from lottery_command import (
    CELLS,
    PROCESSES,
    SERIAL,
    cell_folders,
    descendants,
    kill_often,
    lottery,
    make_room,
)
from test_kill import POINTS, nothing_left


@pytest.fixture(scope="module")
def whole(lottery_store: Path) -> dict[str, Any]:
    """Every number of the uninterrupted run."""
    found = numbers(lottery_store)
    assert len(found) == CELLS
    assert all(all(checks.values()) for _, checks, _ in found.values())
    return found


@pytest.fixture(scope="module")
def seconds(lottery_timed: tuple[Path, float]) -> float:
    """About how long a command takes here whose programs were compiled by an earlier one."""
    return 0.6 * lottery_timed[1]


def test_ten_kills_of_the_real_study(tmp_path, whole, seconds):
    """Commands of one process and one with workers, in one store."""
    store = tmp_path / "store"
    commands = [SERIAL, PROCESSES, SERIAL]
    hits = kill_often(commands, store, 10, seed=3, longest=seconds)
    print(json.dumps(hits))
    assert sum(hits.values()) > 3, "most kills came too late"
    SERIAL.finish(store)
    assert numbers(store) == whole
    nothing_left(store)


@pytest.mark.long  # tests/lab/test_kill.py does so with a stand-in, each time
@pytest.mark.parametrize("point", ["checkpoint.write:5", "cell.write:5"])
def test_a_kill_inside_a_write_of_the_real_study(tmp_path, whole, point):
    process = SERIAL.start(tmp_path / "store", SECATEUR_FAULT=point)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path / "store" / "partial")
    if point.startswith("checkpoint"):
        kept = os.listdir(tmp_path / "store" / "checkpoints")
        assert len(kept) == 2, "the last checkpoint and the one before"
    (PROCESSES if point.startswith("cell") else SERIAL).finish(tmp_path / "store")
    assert numbers(tmp_path / "store") == whole
    nothing_left(tmp_path / "store")


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_two_hundred_kills_of_the_real_study(tmp_path, whole, seconds):
    """At random moments, and inside each write, flush and rename; a line of JSON sums it up.

    SECATEUR_KILLS is the number of kills (200); SECATEUR_KILL_SECONDS ends it early, with the
    number of kills that was reached.
    """
    wanted = int(os.environ.get("SECATEUR_KILLS", "200"))
    end = time.monotonic() + float(os.environ.get("SECATEUR_KILL_SECONDS", "inf"))
    rng, random_hits, workers = random.Random(0), Counter[str](), 0
    points = dict.fromkeys([*POINTS, "claim.replace", "*"], 0)
    compared, begin = 0, time.monotonic()

    def kills() -> int:
        return sum(points.values()) + sum(random_hits.values()) + workers

    def ends_well(store: Path) -> None:
        nonlocal compared
        [SERIAL, PROCESSES][compared % 2].finish(store)
        assert numbers(store) == whole
        nothing_left(store)
        compared += 1

    def tell() -> None:
        told = {
            "name": "kills of the study lottery",
            "kills": kills(),
            "at random moments": dict(sorted(random_hits.items())),
            "of a worker alone": workers,
            "at a point": points,
            "finished studies compared": compared,
            "every number equal": True,
            "seconds": round(time.monotonic() - begin),
        }
        print(json.dumps(told), flush=True)

    each = max(1, round(wanted * 0.4 / len(points)))
    for point in points:
        store = tmp_path / point.replace("*", "any")
        if point == "claim.replace":  # only a command that comes after a dead one passes here
            process = SERIAL.start(store, SECATEUR_FAULT="claim.linked:1")
            process.communicate(timeout=600)
            points["claim.linked"] += process.returncode == -signal.SIGKILL
        for _ in range(each):
            most = {"claim.replace": 1, "*": 40}.get(point, 4)
            process = SERIAL.start(store, SECATEUR_FAULT=f"{point}:{rng.randint(1, most)}")
            text, _ = process.communicate(timeout=600)
            assert "Traceback" not in text, text
            points[point] += process.returncode == -signal.SIGKILL
            if process.returncode == 0:
                make_room(store, rng)
        ends_well(store)
        tell()
        if time.monotonic() > end:
            break
    round_ = 0
    while kills() < wanted and time.monotonic() < end:
        store = tmp_path / f"random{round_}"
        workers += kill_a_worker(store)
        random_hits += kill_often([SERIAL, PROCESSES], store, 13, 100 + round_, seconds)
        ends_well(store)
        round_ += 1
        tell()
    assert min(points.values()) > 0


def kill_a_worker(store: Path) -> int:
    """Kills one of two workers once a cell is there; the command must end well all the same."""
    process = PROCESSES.start(store)
    wait_for(lambda: len(cell_folders(store)) >= 2, 120)
    below = [p for p, line in descendants(process.pid).items() if "executors.worker" in line]
    assert len(below) in (1, 2)
    os.kill(below[0], signal.SIGKILL)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert "Traceback" not in text
    forget(store, random.Random(0))
    return 1


# -- asked to stop -----------------------------------------------------------------------------


@pytest.mark.parametrize("executor", [pytest.param("serial", marks=pytest.mark.long), "processes"])
def test_ctrl_c_is_one_sentence_and_loses_nothing(tmp_path, whole, executor):
    """The interval is an hour: the checkpoints were published because of the stop."""
    store = tmp_path / "store"
    command = lottery("--executor", executor, "--workers", "2", interval=3600.0)
    process = command.start(store)
    wait_for(lambda: cell_folders(store), 120)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the driver and its workers
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130, text
    assert "Traceback" not in text
    said = [line for line in text.splitlines() if line.startswith("secateur: ")]
    assert len(said) == 1
    assert "give the same command again" in said[0]
    assert 1 <= len(cell_folders(store)) < CELLS
    assert [p for p in (store / "claims").iterdir() if p.suffix == ".json"] == []
    before = {path: path.stat().st_mtime_ns for path in store.glob("cells/*/*/cell.json")}
    command.finish(store)
    assert {p: p.stat().st_mtime_ns for p in before} == before, "a finished cell was done again"
    assert numbers(store) == whole


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("executor", [pytest.param("serial", marks=pytest.mark.long), "processes"])
def test_ctrl_c_at_any_moment(tmp_path, whole, seconds, executor):
    """While it imports, plans, computes or writes its page: never a traceback."""
    store, rng = tmp_path / "store", random.Random(5)
    command = lottery("--executor", executor, "--workers", "2")
    for number in range(12):
        process = command.start(store)
        # Python's own start, before a line of ours has run, is Python's.
        wait_for(lambda pid=process.pid: "msgspec" in Path(f"/proc/{pid}/maps").read_text())
        time.sleep((number + rng.random()) / 12 * seconds)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        text, _ = process.communicate(timeout=60)
        assert "Traceback" not in text, text
        assert process.returncode in (0, 130), text
        if process.returncode == 0:
            make_room(store, rng)
    command.finish(store)
    assert numbers(store) == whole


@pytest.mark.parametrize("given", ["often", "-1", "nan"])
def test_an_interval_that_is_none_is_refused(tmp_path, given):
    process = lottery(SECATEUR_INTERVAL=given).start(tmp_path / "store")
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert text.startswith("secateur: SECATEUR_INTERVAL is the number of seconds")
    assert not (tmp_path / "store").exists()
