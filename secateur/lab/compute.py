"""Carries one cell out: drives its generator and gives the trainings it asks for to `fit`."""

from __future__ import annotations

import importlib
import time
import traceback
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from secateur.core.errors import SecateurError
from secateur.lab.cells import Cell, Result, Work, not_finite, plain
from secateur.lab.machine import environment, make_room_for_programs
from secateur.lab.watch import CellWatch

TRAINER = "secateur.train.fit"  # a module with `fit` and `fit_lanes`


@dataclass(frozen=True)
class Task:
    """A cell to be computed now.

    Attributes:
        inputs: role -> result of the earlier cell.
        tries: how many workers it has killed before.
    """

    cell: Cell
    inputs: Mapping[str, Result]
    tries: int = 0


@dataclass(frozen=True)
class Failure:
    """Why a cell came to nothing: one sentence, and the traceback."""

    sentence: str
    traceback: str = ""
    cell: Cell | None = field(default=None, compare=False)


def begin(work: Work, task: Task) -> Generator[Any, Any, Result]:
    """The generator of a cell, in a process that has room for its programs."""
    make_room_for_programs()
    generator = work(task.cell, task.inputs)
    if not isinstance(generator, Generator):
        raise SecateurError(
            f"the work of study {task.cell.study} returned a {type(generator).__name__}: it must "
            "be a generator function that yields trainings and returns a Result"
        )
    return generator


def compute(work: Work, task: Task, watch: CellWatch, trainer: str = TRAINER) -> Result:
    """The result of a cell, its trainings done one after the other in this process."""
    generator = begin(work, task)
    try:
        training = next(generator)
        while True:
            fit = importlib.import_module(trainer).fit
            training = generator.send(fit(training, watch.training()))
    except StopIteration as stop:
        return returned(task.cell, stop.value)
    finally:
        generator.close()


def returned(cell: Cell, value: object) -> Result:
    """What a generator returned, if it may be kept.

    Raises:
        SecateurError: no Result, a value that is NaN or infinite, a check that did not hold.
    """
    if not isinstance(value, Result):
        raise SecateurError(
            f"the work of study {cell.study} ended with a {type(value).__name__}: "
            "it must return a Result"
        )
    result = Result(plain(value.values), value.arrays, plain(value.checks))
    if where := not_finite(result.values):
        raise SecateurError(f"the value {where} is not finite")
    failed = [name for name, held in result.checks.items() if not held]
    if failed:
        word = "check" if len(failed) == 1 else "checks"
        raise SecateurError(f"the {word} {', '.join(map(repr, failed))} failed")
    return result


def made(watch: CellWatch, executor: str, **more: object) -> dict[str, Any]:
    """How a result was made, for its record: versions, device, threads, seconds."""
    spent = watch.spent()
    return {
        **environment(),
        "executor": executor,
        "seconds_cpu": round(spent["cpu"], 3),
        "seconds_wall": round(spent["wall"], 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **more,
    }


def failure(error: BaseException) -> Failure:
    """An exception as one sentence and its traceback."""
    text = "".join(traceback.format_exception(error))
    if isinstance(error, SecateurError):
        return Failure(str(error), text)
    first = (str(error).strip() or "no message").splitlines()[0]
    return Failure(f"{type(error).__name__}: {first}", text)
