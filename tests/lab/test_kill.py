"""Killed at any moment, a run goes on and ends with the very numbers of an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import standin_study
from killing import Command, forget, kill, kill_at_random, numbers, tiny, wait_for

from secateur.lab.store import Store

POINTS = [
    f"{kind}.{step}"
    for kind in ("cell", "checkpoint")
    for step in ("write", "flush", "rename", "renamed")
] + ["claim.write", "claim.flush", "claim.link", "claim.linked"]


def study() -> tuple[Command, float]:
    """The command to be killed and the seconds that it takes at most.

    The stand-in by default. SECATEUR_KILL names another, as JSON: {"words": ["secateur", "run",
    "lottery", "--store", "{store}", ...], "seconds": 60}.
    """
    if given := os.environ.get("SECATEUR_KILL"):
        told = json.loads(given)
        return Command(told["words"]), float(told["seconds"])
    return tiny("--levels", "2", steps=40, pause=0.01, trainings=2), 1.5


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The numbers of an uninterrupted run."""
    store = tmp_path_factory.mktemp("whole") / "store"
    study()[0].finish(store)
    return numbers(store)


def test_ten_kills_at_random_moments(tmp_path, whole):
    command, seconds = study()
    hits = kill_at_random(command, tmp_path / "store", 10, seed=1, longest=seconds)
    assert hits > 3, "most kills came too late"
    command.finish(tmp_path / "store")
    assert numbers(tmp_path / "store") == whole
    nothing_left(tmp_path / "store")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_hundred_kills(tmp_path, whole):
    """At random moments, and inside each write, flush and rename; a line of JSON sums it up."""
    command, seconds = study()
    points, rng, hits = dict.fromkeys(POINTS, 0), random.Random(0), 0

    def ends_well(store: Path) -> None:
        command.finish(store)
        assert numbers(store) == whole
        nothing_left(store)

    for point in POINTS:
        store = tmp_path / point
        for _ in range(8):
            process = command.start(store, SECATEUR_FAULT=f"{point}:{rng.randint(1, 4)}")
            process.communicate(timeout=600)
            points[point] += process.returncode == -signal.SIGKILL
            if process.returncode == 0:
                forget(store, rng)
        ends_well(store)
    for round_ in range(60):
        if hits + sum(points.values()) >= 200:
            break
        store = tmp_path / f"random{round_}"
        hits += kill_at_random(command, store, 12, seed=100 + round_, longest=seconds)
        ends_well(store)
    kills = hits + sum(points.values())
    print(json.dumps({"kills": kills, "random": hits, **points, "every number equal": True}))
    assert min(points.values()) > 0
    assert kills >= 200


def test_kills_inside_writes(tmp_path, whole):
    command = study()[0]
    for point in ["cell.write:2", "checkpoint.rename:3", "cell.rename:1", "claim.link:2"]:
        process = command.start(tmp_path, SECATEUR_FAULT=point)
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL
        assert os.listdir(tmp_path / "partial"), "it was killed before or after the write"
    command.finish(tmp_path)
    assert numbers(tmp_path) == whole
    nothing_left(tmp_path)


def nothing_left(store: Path) -> None:
    """No half-written file, no claim, no checkpoint outlives a finished study."""
    assert os.listdir(store / "partial") == []
    assert [name for name in os.listdir(store / "claims") if name.endswith(".json")] == []
    assert os.listdir(store / "checkpoints") == []


def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path):
    """One training of 60 chunks, killed after its 20th checkpoint: 20 chunks are not done again."""
    command = tiny("--seeds", "1", "--levels", "0", steps=600)
    process = command.start(tmp_path, SECATEUR_FAULT="checkpoint.renamed:20")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    once = command.start(tmp_path, SECATEUR_FAULT="checkpoint.renamed:41")
    once.communicate(timeout=60)
    assert once.returncode == 0, "the second run did more than the 40 chunks that were left"


def test_the_driver_of_processes_is_killed(tmp_path, whole):
    """Its workers notice that they are alone and go; the next run takes the cells over."""
    both = ("--executor", "processes", "--workers", "2")
    slow = tiny("--levels", "2", *both, steps=40, pause=0.01, trainings=2)
    process = slow.start(tmp_path)
    wait_for(lambda: len(list((tmp_path / "cells").glob("*/*"))) >= 3)
    workers = children(process.pid)
    assert len(workers) == 2
    kill(process)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    slow.finish(tmp_path)
    assert numbers(tmp_path) == whole


def children(pid: int) -> list[int]:
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in told.split()]


def test_a_killed_worker_is_replaced_and_its_cell_tried_again(tmp_path):
    whole = tmp_path / "whole"
    tiny().finish(whole)
    store, count = tmp_path / "store", tmp_path / "count"
    sabotage = f"rewind level 2, seed 1|after|{count}|2"
    text = tiny("--executor", "processes", "--workers", "2").finish(store, STANDIN_KILL=sabotage)
    assert "rewind level 2, seed 1 was killed (signal 9" in text
    assert "(1 of 2)" in text
    assert "(2 of 2)" in text
    assert numbers(store) == numbers(whole)


def test_a_cell_that_kills_every_worker_fails_alone(tmp_path):
    sabotage = f"rewind level 2, seed 1|before|{tmp_path / 'count'}|99"
    command = tiny("--executor", "processes", "--workers", "2")
    process = command.start(tmp_path / "store", STANDIN_KILL=sabotage)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "rewind level 2, seed 1 failed: its worker died 3 times" in text
    assert "Traceback" not in text
    assert (tmp_path / "count").stat().st_size == 3
    done = {e.label for e in Store(tmp_path / "store", create=False).entries()}
    all_ = {cell.label for cell in standin_study.cells()}
    lost = {"rewind level 2", "control level 2", "rewind level 3", "control level 3"}
    assert done == all_ - {f"{name}, seed 1" for name in lost}


# -- asked to stop -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("executor", "number"),
    [
        ("serial", signal.SIGINT),
        ("processes", signal.SIGTERM),
        ("processes", signal.SIGINT),
        ("lanes", signal.SIGINT),
    ],
)
def test_a_polite_stop_publishes_and_says_how_to_go_on(tmp_path, executor, number):
    """The interval is an hour: what is there after the stop was published because of it."""
    command = tiny("--executor", executor, "--levels", "1", interval=3600.0, steps=2000, pause=0.02)
    process = command.start(tmp_path)
    wait_for(lambda: list((tmp_path / "claims").glob("*.json")))
    try:
        process.communicate(timeout=1.5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, number)  # as a terminal does: to the driver and to its workers
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "give the same command again" in text
    assert "Traceback" not in text
    assert len(list((tmp_path / "checkpoints").glob("*.safetensors"))) >= 1
    assert list((tmp_path / "claims").glob("*.json")) == []


# -- full disk ---------------------------------------------------------------------------------


def limited(command: Command, store: Path, limit: int) -> subprocess.CompletedProcess[str]:
    """The command where no file may grow beyond `limit` bytes."""
    code = (
        "import os, resource, sys; n = int(sys.argv[1]); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); os.execv(sys.argv[2], sys.argv[2:])"
    )
    words = [word.replace("{store}", str(store)) for word in command.words]
    return subprocess.run(
        [sys.executable, "-c", code, str(limit), shutil.which(words[0]) or words[0], *words[1:]],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("limit", [700, 20_000])
def test_files_may_not_grow(tmp_path, whole, limit):
    """RLIMIT_FSIZE stands in for a quota: the command ends with a sentence, and can go on later."""
    command = study()[0]
    done = limited(command, tmp_path, limit)
    assert done.returncode == (2 if limit < 1000 else 0)
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert "File too large" in done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith("Error: cannot write")
    assert numbers(tmp_path).items() <= whole.items()
    command.finish(tmp_path)
    assert numbers(tmp_path) == whole


def test_the_limit_is_felt(tmp_path):
    """Otherwise the test above would pass for nothing."""
    process = limited(tiny(size=2000), tmp_path, 3000)
    assert process.returncode == 2, process.stderr
    assert "could not write a checkpoint" in process.stderr
    assert "File too large" in process.stderr
    assert sys.platform != "linux" or numbers(tmp_path) == {}
