"""The real study as a command small enough to be killed often: nine cells of a tiny network.

A training has seven chunks, so that with a checkpoint at every chunk a kill finds most of them
inside a cell.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from killing import Command

SETS = ("hidden=12,8", "steps=3500", "evaluate_every=500", "levels=2")
CELLS = 9  # dense, and two levels of rewind, control, chain and none


def lottery(
    *options: str, interval: float = 0.0, sets: tuple[str, ...] = SETS, **environment: str
) -> Command:
    """`secateur run lottery` of one seed."""
    words = [sys.executable, "-m", "secateur.cli", "run", "lottery", "--seeds", "1"]
    words += [word for text in sets for word in ("--set", text)]
    return Command(
        [*words, "--store", "{store}", *options],
        {
            "SECATEUR_INTERVAL": str(interval),
            # Every compiled program is kept: a command that starts again computes soon.
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **environment,
        },
    )


SERIAL = lottery("--executor", "serial")
PROCESSES = lottery("--executor", "processes", "--workers", "2")


def left_by_kill(store: Path) -> str:
    """Where a kill found the command, by what it left behind."""

    def there(room: str) -> list[str]:
        return os.listdir(store / room) if (store / room).is_dir() else []

    if there("partial"):
        return "inside a write"
    if there("checkpoints"):
        return "inside a cell, with a checkpoint"
    if any(name.endswith(".json") for name in there("claims")):
        return "inside a cell, before its first checkpoint"
    if there("cells") and len(cell_folders(store)) == CELLS:
        return "after the last cell"
    return "before or between cells"


def cell_folders(store: Path) -> list[Path]:
    return sorted(path for path in (store / "cells").glob("*/*") if path.is_dir())


def make_room(store: Path, rng: random.Random, cells: int = 4) -> None:
    """Forgets some cells of a finished study, so that there is something to do."""
    folders = cell_folders(store)
    for folder in rng.sample(folders, min(cells, len(folders))):
        shutil.rmtree(folder)


def kill_often(
    commands: list[Command], store: Path, times: int, seed: int, longest: float
) -> Counter[str]:
    """Kills one command after the other in one store, at moments spread over [0, longest] seconds.

    Returns how many kills hit a running command, by where they hit.
    """
    rng, found = random.Random(seed), Counter[str]()
    for number in range(times):
        process = commands[number % len(commands)].start(store)
        # One moment in each of `times` equal parts of the run, in a random order of parts.
        part = (number * 7 + seed) % times
        try:
            text, _ = process.communicate(timeout=(part + rng.random()) / times * longest)
            assert process.returncode == 0, text
            make_room(store, rng)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            text, _ = process.communicate()
            assert "Traceback" not in text, text
            if process.returncode == -signal.SIGKILL:
                found[left_by_kill(store)] += 1
    return found


def descendants(pid: int) -> dict[int, str]:
    """The processes below one, and their command lines."""
    parents, found = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat = (path / "stat").read_text()
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it has gone
        parents[int(path.name)] = (int(stat.rpartition(")")[2].split()[1]), line)
    open_ = {pid}
    while open_:
        below = {child for child, (parent, _) in parents.items() if parent in open_}
        found |= {child: parents[child][1] for child in below}
        open_ = below
    return found
