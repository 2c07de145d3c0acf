"""Executors: one signature, chosen by name; a study does not know which one runs it.

An executor is called with the book of the run and the study's work function, and returns when
nothing is left to be taken.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Protocol

from secateur.core.errors import SecateurError, lookup
from secateur.lab.cells import Cell, Work
from secateur.lab.jobs import Jobs
from secateur.lab.machine import cores, has_gpu


class Executor(Protocol):
    """Computes what a run's book gives out."""

    name: str
    workers: int

    def __call__(self, jobs: Jobs, work: Work) -> None:
        """Returns when `jobs.finished()`."""
        ...


def _make(module: str, name: str) -> Callable[[int | None], Executor]:
    """A factory that imports its module when it is called: `--help` needs none of them."""

    def factory(workers: int | None = None) -> Executor:
        made: Executor = getattr(importlib.import_module(f"secateur.lab.executors.{module}"), name)(
            workers
        )
        return made

    return factory


EXECUTORS: dict[str, Callable[[int | None], Executor]] = {
    "serial": _make("serial", "Serial"),
    "processes": _make("processes", "Processes"),
    "lanes": _make("lanes", "Lanes"),
    "ray": _make("ray", "Ray"),
}


def make_executor(name: str, workers: int | None = None) -> Executor:
    """The executor of a name.

    Args:
        workers: processes, lanes or Ray tasks at once; None chooses.

    Raises:
        SecateurError: for an unknown name, or fewer than one worker.
    """
    if workers is not None and workers < 1:
        raise SecateurError(f"an executor needs at least 1 worker, not {workers}")
    return lookup("executor", name, EXECUTORS)(workers)


def default_executor(cells: Sequence[Cell] = (), workers: int | None = None) -> Executor:
    """Lanes on a GPU, else one process a core; serial where there is one core or one cell."""
    if has_gpu():
        return make_executor("lanes", workers)
    if (cores() if workers is None else workers) == 1 or len(cells) == 1:
        return make_executor("serial")
    return make_executor("processes", workers)
