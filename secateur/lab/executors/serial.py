"""One cell after the other, in this process, with all its threads."""

from __future__ import annotations

import time

from secateur.lab.cells import Work
from secateur.lab.compute import compute, failure, made
from secateur.lab.files import StoreError
from secateur.lab.jobs import Jobs
from secateur.lab.machine import keep_compiled_programs
from secateur.lab.watch import CellWatch, Stopped


class Serial:
    """See `Executor`. `workers` is not used: there is one."""

    name = "serial"

    def __init__(self, workers: int | None = None) -> None:
        self.workers = 1

    def __call__(self, jobs: Jobs, work: Work) -> None:
        """Returns when nothing is left to be taken."""
        keep_compiled_programs()
        last: str | None = None
        while not jobs.finished():
            task = jobs.take(last)
            if task is None:  # the rest is being computed by another command
                time.sleep(0.1)
                continue
            watch = jobs.watch(task, CellWatch)
            try:
                result = compute(work, task, watch, jobs.trainer)
            except Stopped:
                jobs.stopped(task)
                return
            except StoreError:
                raise
            except Exception as error:
                jobs.failed(task, failure(error))
                continue
            jobs.done(task, result, made(watch, self.name))
            last = task.cell.address
