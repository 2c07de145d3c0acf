"""A tiny study shaped like lottery tickets: levels in chains, branches that share level 0.

As a command, `python standin_study.py STORE [options]`, it stands in for `secateur run`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from standin_trainer import Fitted, Training

from secateur.core.errors import SecateurError
from secateur.lab.cells import Cell, Result


def cells(seeds: int = 2, levels: int = 3, **fields: Any) -> list[Cell]:
    """Level 0 of each seed, then `levels` levels of two branches; `control` needs the ticket."""
    settings = {"steps": 40, "pause": 0.0, "trainings": 1, "size": 12, **fields}
    made = []
    for seed in range(seeds):

        def cell(needs: dict[str, Cell], seed: int = seed, **place: Any) -> Cell:
            return Cell("tiny", 1, settings, seed, place, "d" * 64, needs, settings["steps"])

        dense = cell({}, branch="dense", level=0)
        made.append(dense)
        previous = dense
        for level in range(1, levels + 1):
            previous = cell({"previous": previous}, branch="rewind", level=level)
            ticket = {"ticket": previous, "dense": dense}
            made += [previous, cell(ticket, branch="control", level=level)]
    return made


def work(cell: Cell, inputs: Mapping[str, Result]) -> Generator[Training, Fitted, Result]:
    """Prunes the smallest of the previous level's numbers and walks on from the rest."""
    fields, level = cell.fields, cell.place["level"]
    start = np.random.default_rng([cell.seed, 7]).random(fields["size"])
    mask = np.ones(fields["size"], bool)
    for earlier in inputs.values():
        mask &= earlier.arrays["mask"]
        start = (start + earlier.arrays["x"]) / 2
    mask[np.argsort(start)[:level]] = False
    sabotage(cell, "before")
    fitted = None
    for number in range(fields["trainings"]):
        seed = 1000 * cell.seed + 10 * level + number
        fitted = yield Training(
            start * mask, fields["steps"], seed, pause=fields["pause"], kind=cell.place["branch"]
        )
        start = fitted.params
    assert fitted is not None
    sabotage(cell, "after")
    values = {
        "mean": float(fitted.params.mean()),
        "alive": int(mask.sum()),
        "curve": {"mean": fitted.curve["mean"].tolist()},
        "nested": {"level": level, "of": {"seed": cell.seed}},
    }
    checks = {"mask nested": True, "finite": True}
    if fields.get("break") == cell.label:
        how = fields["how"]
        if how == "check":
            checks["finite"] = False
        elif how == "nan":
            values["mean"] = float("nan")
        elif how == "sentence":
            raise SecateurError("this cell has no weights left: use a higher density")
        else:
            raise ZeroDivisionError("on purpose\nsecond line")
    return Result(values, {"x": fitted.params, "mask": mask, "scalar": np.float32(level)}, checks)


def sabotage(cell: Cell, when: str) -> None:
    """Kills the process that computes a cell, as often as STANDIN_KILL says: ``LABEL|WHEN|FILE|N``.

    The file counts the kills over processes.
    """
    label, at, file, times = os.environ.get("STANDIN_KILL", "||x|0").split("|")
    if label == cell.label and at == when:
        done = Path(file).stat().st_size if Path(file).exists() else 0
        if done < int(times):
            with open(file, "a") as count:
                count.write("x")
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """The command; exit status 2 with one sentence where something is wrong."""
    parse = argparse.ArgumentParser()
    parse.add_argument("store")
    parse.add_argument("--executor", default="serial")
    parse.add_argument("--workers", type=int)
    parse.add_argument("--seeds", type=int, default=2)
    parse.add_argument("--levels", type=int, default=3)
    parse.add_argument("--interval", type=float, default=0.0)
    parse.add_argument("--fields", type=eval, default={})
    options = parse.parse_args()
    from secateur.lab.executors import make_executor
    from secateur.lab.run import run
    from secateur.lab.store import Store

    try:
        outcome = run(
            cells(options.seeds, options.levels, **options.fields),
            work,
            Store(options.store),
            make_executor(options.executor, options.workers),
            interval=options.interval,
            trainer="standin_trainer",
        )
    except SecateurError as error:
        print(f"Error: {error}", file=sys.stderr)
        return getattr(error, "status", 2)
    print(f"computed {len(outcome.computed)} shared {len(outcome.shared)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
