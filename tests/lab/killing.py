"""Kills a command again and again, lets it go on, and reads every number that came of it.

Works on any command that fills a store, `secateur run` included.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.lab.store import Store

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Command:
    """A command line with ``{store}`` in it, and its environment beyond ours."""

    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self, store: Path, **more: str) -> subprocess.Popen[str]:
        """Begins it; standard output and error can be read together."""
        words = [word.replace("{store}", str(store)) for word in self.words]
        environment = {**os.environ, **self.environment, **more}
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(HERE), *filter(None, [environment.get("PYTHONPATH")])]
        )
        return subprocess.Popen(
            words,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def finish(self, store: Path, **more: str) -> str:
        """Runs it to its end, which must be a good one; what it printed."""
        process = self.start(store, **more)
        text, _ = process.communicate(timeout=600)
        assert process.returncode == 0, text
        return text


def tiny(*options: str, interval: float = 0.0, **fields: Any) -> Command:
    """The stand-in study as a command."""
    script = str(HERE / "standin_study.py")
    given = ["--interval", str(interval), "--fields", repr(fields), *options]
    return Command([sys.executable, script, "{store}", *given])


def numbers(store: Path) -> dict[str, Any]:
    """Every value, check and byte of every array, by address; all sums are checked on the way."""
    looked = Store(store, create=False)
    found = {}
    for entry in looked.entries():
        result = looked.load(entry)
        arrays = {
            name: (str(array.dtype), array.shape, array.tobytes())
            for name, array in result.arrays.items()
        }
        found[entry.address] = (result.values, result.checks, arrays)
    return found


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the command alone: its workers must notice by themselves."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


def kill_at_random(command: Command, store: Path, times: int, seed: int, longest: float) -> int:
    """Starts and kills a command `times` times, each after up to `longest` seconds.

    A run that ends before its kill has finished the study: its store is emptied of one cell, so
    that there is something left to do. Returns how many kills hit a running command.
    """
    rng, hits = random.Random(seed), 0
    for _ in range(times):
        process = command.start(store)
        try:
            process.communicate(timeout=rng.random() * longest)
        except subprocess.TimeoutExpired:
            hits += 1
        kill(process)
        if process.returncode == 0:
            forget(store, rng)
    return hits


def forget(store: Path, rng: random.Random) -> None:
    """Removes the result of one cell (a user may do so at any time)."""
    import shutil

    folders = sorted(path for path in (store / "cells").glob("*/*") if path.is_dir())
    if folders:
        shutil.rmtree(rng.choice(folders))


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    """Waits until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
