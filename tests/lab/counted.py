"""The command `secateur`, writing down which cells it computes: one line ``PID ADDRESS`` a cell.

SECATEUR_COUNTED names the file; it begins when as many commands as SECATEUR_TOGETHER have come.
"""

from __future__ import annotations

import os
import time
from typing import Any

import secateur.train.fit  # noqa: F401 - the slow import, before the start together
from secateur.cli import main
from secateur.lab.compute import Task
from secateur.lab.jobs import Jobs

_done = Jobs.done


def _counting(jobs: Jobs, task: Task, *came: Any) -> None:
    """As `Jobs.done`; appended in one write, so that lines of two processes do not mix."""
    with open(os.environ["SECATEUR_COUNTED"], "ab", buffering=0) as file:
        file.write(f"{os.getpid()} {task.cell.address}\n".encode())
    _done(jobs, task, *came)


Jobs.done = _counting  # type: ignore[method-assign]

if __name__ == "__main__":
    came = os.environ["SECATEUR_COUNTED"] + ".came"
    with open(came, "ab", buffering=0) as file:
        file.write(b"x")
    while os.stat(came).st_size < int(os.environ["SECATEUR_TOGETHER"]):
        time.sleep(0.01)
    main()
