"""The study `lottery`, through the command: damage, two commands at once, lanes, a lost worker."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from killing import HERE, Command, numbers, wait_for
from lottery_command import CELLS, SERIAL, cell_folders, descendants, lottery
from test_kill import nothing_left

from secateur.lab.store import Entry, Store


def test_damaged_results_are_named_and_computed_to_the_same_bits(tmp_path, lottery_store):
    """A flipped bit, a lost end, a lost file and a changed sum, each in a cell of its own."""
    store, rng = tmp_path / "store", random.Random(2)
    shutil.copytree(lottery_store, store)
    folders = rng.sample(cell_folders(store), 4)
    hurt = [
        folders[0] / "arrays.safetensors",
        folders[1] / "cell.json",
        folders[2] / "arrays.safetensors",
        folders[3] / "checksums.json",
    ]
    flip(hurt[0], rng)
    hurt[1].write_bytes(hurt[1].read_bytes()[:-40])
    hurt[2].unlink()
    flip(hurt[3], rng)
    text = SERIAL.finish(store)
    # Each once: they were told twice when both the progress and the command said them.
    for path in hurt[:3]:
        assert text.count(f"{path} is damaged") == 1, text
    # Of a sum and the file that it stands for nobody can tell which one changed.
    assert text.count(f"{hurt[3].parent}{os.sep}") == 1, text
    assert text.count("computed again") == 4
    assert len(os.listdir(store / "damaged")) == 4
    assert numbers(store) == numbers(lottery_store)
    assert "is damaged" not in SERIAL.finish(store)


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@pytest.mark.long  # tests/lab/test_claims.py does so with a stand-in, each time
def test_two_commands_share_one_store(tmp_path, lottery_store):
    """They begin together: each cell is computed once, by one of them, and both write the page."""
    store, counted = tmp_path / "store", tmp_path / "counted"
    # Two seeds: neither has to wait for the other's dense network, so that both have work.
    words = [sys.executable, str(HERE / "counted.py"), *SERIAL.words[3:], "--seeds", "2"]
    command = Command(
        words,
        {**SERIAL.environment, "SECATEUR_COUNTED": str(counted), "SECATEUR_TOGETHER": "2"},
    )
    both = [command.start(store) for _ in range(2)]
    for process in both:
        text, _ = process.communicate(timeout=300)
        assert process.returncode == 0, text
        assert f"page     {tmp_path / 'store-lottery.html'}" in text
    lines = [line.split() for line in counted.read_text().splitlines()]
    found = numbers(store)
    assert len(found) == 2 * CELLS
    assert sorted(address for _, address in lines) == sorted(found)
    assert {int(pid) for pid, _ in lines} == {process.pid for process in both}
    assert numbers(lottery_store).items() <= found.items()
    assert (tmp_path / "store-lottery.html").stat().st_size > 100_000
    nothing_left(store)


FEW = ("hidden=12,8", "steps=40", "evaluate_every=20", "levels=2")


@pytest.mark.long
@pytest.mark.parametrize("x64", [False, True])
def test_lanes_agree_with_one_after_the_other(tmp_path, x64):
    """The first 40 steps: masks the same, numbers as near as sums in another order are."""
    environment = {"JAX_ENABLE_X64": "1"} if x64 else {}
    near, apart = (1e-9, 0.0) if x64 else (2e-3, 2e-3)
    for name in ("serial", "lanes"):
        lottery("--executor", name, sets=FEW, **environment).finish(tmp_path / name / "store")
    alone, lanes = (by_label(tmp_path / name / "store") for name in ("serial", "lanes"))
    assert alone.keys() == lanes.keys()
    assert len(lanes) == CELLS
    assert max(entry.made["lanes"] for entry in lanes.values()) >= 4
    for label, one in alone.items():
        other = lanes[label]
        assert all(other.checks.values())
        assert other.checks.keys() == one.checks.keys()
        for name in ("alive_by_layer", "density", "total_steps"):
            assert other.values[name] == one.values[name], label
        for name, value in one.values["last"].items():
            assert other.values["last"][name] == pytest.approx(value, abs=near), (label, name)
        results = [
            Store(tmp_path / name / "store", create=False).load(entry).arrays
            for name, entry in (("serial", one), ("lanes", other))
        ]
        for name, array in results[0].items():
            if name.startswith("mask:"):
                # In float32 a weight at the threshold may fall on the other side, hardly more.
                assert np.mean(array != results[1][name]) <= apart, (label, name)


def by_label(store: Path) -> dict[str, Entry]:
    return {entry.label: entry for entry in Store(store, create=False).entries("lottery")}


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra 'ray')"
)
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_ray_worker(tmp_path, lottery_store):
    """A local Ray of two workers: one is killed while it computes a cell."""
    store = tmp_path / "store"
    process = lottery("--executor", "ray", "--workers", "2").start(store)

    def busy() -> list[int]:
        return [p for p, line in descendants(process.pid).items() if "_carry_out" in line]

    wait_for(lambda: len(cell_folders(store)) >= 2 and busy(), 300)
    os.kill(busy()[0], signal.SIGKILL)
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text
    assert "was lost (WorkerCrashedError); trying again (1 of 2)" in text
    assert "Traceback" not in text
    assert numbers(store) == numbers(lottery_store)
    nothing_left(store)
    assert {e.made["executor"] for e in by_label(store).values()} == {"ray"}
