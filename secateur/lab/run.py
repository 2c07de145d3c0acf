"""Runs cells: asks the store for each, computes what is missing, keeps what comes."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from secateur.core.errors import SecateurError
from secateur.lab.cells import Cell, Work
from secateur.lab.compute import TRAINER, Failure
from secateur.lab.executors import Executor, default_executor, make_executor
from secateur.lab.jobs import Jobs
from secateur.lab.progress import Progress
from secateur.lab.store import Store
from secateur.lab.watch import INTERVAL


@dataclass(frozen=True)
class Outcome:
    """What a run did.

    Attributes:
        computed: addresses of the cells computed here.
        reused: those that the store had.
        shared: those that another command computed meanwhile.
        blocked: those that need a failed cell.
        warnings: sentences (damaged results, checkpoints that could not be written).
        seconds: wall seconds.
    """

    store: Path
    computed: list[str]
    reused: list[str]
    shared: list[str]
    failures: list[Failure] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0


class CellsFailed(SecateurError):
    """Some cells could not be computed; the others are in the store. `outcome` says which."""

    def __init__(self, sentence: str, outcome: Outcome) -> None:
        super().__init__(sentence)
        self.outcome = outcome


class Interrupted(SecateurError):
    """The run was asked to stop (Ctrl-C, SIGTERM). `status` is the exit status: 130 or 143."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


def run(
    cells: Sequence[Cell],
    work: Work,
    store: Store,
    executor: Executor | str | None = None,
    *,
    progress: Progress | None = None,
    interval: float = INTERVAL,
    trainer: str = TRAINER,
) -> Outcome:
    """Computes the cells that the store lacks, their needs first.

    Args:
        executor: one of `EXECUTORS` by name or made; None suits the machine.
        interval: seconds between checkpoints inside a cell.
        trainer: the module that has `fit` and `fit_lanes`.

    Raises:
        CellsFailed: after everything else is done, where cells failed.
        Interrupted: Ctrl-C or SIGTERM, after checkpoints are published.
        StoreError: the store cannot be written.
    """
    start = time.monotonic()
    progress = progress or Progress()
    store.check_writable()
    store.clean()
    jobs = Jobs(cells, store, progress, interval, trainer)
    try:
        chosen = _executor(executor, [c for c in jobs.order if c.address in jobs.missing])
        progress.workers = chosen.workers
        with _signals(jobs):
            if not jobs.finished():
                chosen(jobs, work)
    except KeyboardInterrupt:
        raise Interrupted(_stopped_at_once(store), 130) from None
    finally:
        progress.close()
        jobs.close()
    if jobs.stopping:
        left = len(jobs.missing)
        raise Interrupted(
            f"stopped with {left} of {len(jobs.order)} cells left; results and checkpoints are in "
            f"{store.path}: give the same command again, and it goes on from there",
            128 + jobs.stopping,
        )
    outcome = Outcome(
        store.path,
        jobs.computed,
        jobs.reused,
        jobs.shared,
        list(jobs.failures.values()),
        sorted(jobs.blocked),
        jobs.warnings,
        time.monotonic() - start,
    )
    if jobs.failures:
        raise CellsFailed(_failed(outcome), outcome)
    count = len(jobs.order)
    progress.say(f"{count} {'cell is' if count == 1 else 'cells are'} in {store.path}")
    return outcome


def _executor(given: Executor | str | None, missing: list[Cell]) -> Executor:
    if given is None:
        return default_executor(missing)
    return make_executor(given) if isinstance(given, str) else given


@contextlib.contextmanager
def _signals(jobs: Jobs) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks for a checkpoint and a stop; the second stops at once."""

    def asked(number: int, frame: FrameType | None) -> None:
        if jobs.stopping:
            raise KeyboardInterrupt
        jobs.stopping = number

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped_at_once(store: Store) -> str:
    return (
        f"stopped at once; results and the last checkpoints are in {store.path}: give the same "
        "command again, and it goes on from there"
    )


def _failed(outcome: Outcome) -> str:
    first = outcome.failures[0]
    assert first.cell is not None
    name = f"{first.cell.study} {first.cell.label}"
    number = len(outcome.failures)
    others = f" and {number - 1} more" if number > 1 else ""
    blocked = f"; {len(outcome.blocked)} cells need them" if outcome.blocked else ""
    where = outcome.store / "failures"
    return f"{name}{others} failed: {first.sentence}{blocked} (tracebacks are in {where})"
