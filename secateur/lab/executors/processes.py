"""Cells in processes of this machine, one thread each; the default on a CPU.

Workers are fresh interpreters (never forks: jax has threads), live long, and take many cells. They
send results back; this process writes the store. Checkpoints they write themselves.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from secateur.core.errors import SecateurError
from secateur.lab.cells import Work
from secateur.lab.compute import Task
from secateur.lab.executors import worker as worker_side
from secateur.lab.jobs import Jobs
from secateur.lab.machine import cores, worker_environment

_GRACE = 60.0  # seconds that workers have to publish a checkpoint when the run is asked to stop
_LOOK = 0.25  # seconds between looks at what other commands have finished


class Processes:
    """See `Executor`.

    Args:
        workers: processes; None takes one a core that this process may use.
    """

    name = "processes"

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or cores()

    def __call__(self, jobs: Jobs, work: Work) -> None:
        """Returns when nothing is left to be taken, and all workers have gone."""
        try:
            setting = worker_side.setting(
                work, str(jobs.store.path), jobs.interval, jobs.trainer, self.name
            )
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise SecateurError(
                "the work function cannot be sent to other processes: define it at the top of a "
                "module, or use the serial executor"
            ) from error
        workers: list[_Worker] = []
        try:
            while not jobs.finished():
                self._give(jobs, workers, setting)
                self._hear(jobs, workers)
            self._stop(jobs, workers)
        finally:
            for one in workers:
                one.end()

    def _give(self, jobs: Jobs, workers: list[_Worker], setting: dict[str, Any]) -> None:
        """Cells to idle workers; a new worker where there is a cell and room for one."""
        for one in [w for w in workers if w.task is None]:
            task = jobs.take(one.last)
            if task is None:
                return
            if not one.give(task):
                workers.remove(one)
                jobs.died(task, one.how())
        while len(workers) < self.workers and (task := jobs.take()) is not None:
            one = _Worker(setting)
            if one.give(task):
                workers.append(one)
            else:
                jobs.died(task, one.how())

    def _hear(self, jobs: Jobs, workers: list[_Worker]) -> None:
        """Waits for messages, and takes note of workers that have died."""
        pipes = {one.pipe: one for one in workers}
        if not pipes:
            time.sleep(_LOOK)
            return
        for pipe in wait(list(pipes), timeout=_LOOK):
            assert isinstance(pipe, Connection)
            one = pipes[pipe]
            try:
                message = one.pipe.recv()
            except (EOFError, OSError, pickle.UnpicklingError):
                workers.remove(one)
                if one.task is not None:
                    jobs.died(one.task, one.how())
                one.end()
                continue
            self._note(jobs, one, message)

    def _note(self, jobs: Jobs, one: _Worker, message: tuple[Any, ...]) -> None:
        kind, *content = message
        if kind == "warn":
            jobs.warn(content[0])
            return
        if kind == "unusable":  # the study's module cannot be imported there
            raise SecateurError(f"a worker could not start: {content[0].sentence}")
        task = one.task
        if task is None:
            return
        if kind == "tick":
            jobs.tick(task.cell.address, *content)
            return
        one.task, one.last = None, task.cell.address
        if kind == "done":
            jobs.done(task, *content)
        elif kind == "failed":
            jobs.failed(task, *content)
        else:
            jobs.stopped(task)

    def _stop(self, jobs: Jobs, workers: list[_Worker]) -> None:
        """Asked to stop: every worker publishes its checkpoint first. Otherwise all are idle."""
        busy = [one for one in workers if one.task is not None]
        for one in busy:
            one.send("stop")
        end = time.monotonic() + _GRACE
        while any(one.task is not None for one in workers) and time.monotonic() < end:
            self._hear(jobs, workers)


class _Worker:
    """A worker process as the driver sees it."""

    def __init__(self, setting: dict[str, Any]) -> None:
        self.task: Task | None = None
        self.last: str | None = None
        self.pipe, theirs = Pipe()
        # What jax and the system say on the way is of interest only where the worker dies.
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "secateur.lab.executors.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=_with_package(worker_environment()),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        theirs.close()
        self.send("setting", setting)

    def send(self, kind: str, content: object = None) -> bool:
        """Whether the worker could be told."""
        try:
            self.pipe.send((kind, content))
        except OSError:
            return False
        return True

    def give(self, task: Task) -> bool:
        """Hands a cell over."""
        self.task = task
        return self.send("task", pickle.dumps(task))

    def how(self) -> str:
        """How it died, in words."""
        self.pipe.close()
        try:
            status = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        if status == -signal.SIGKILL:
            return "was killed (signal 9; often because memory ran out)"
        if status < 0:
            return f"was killed (signal {-status})"
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        last = f": {lines[-1]}" if lines else ""
        return f"ended with status {status}{last}"

    def end(self) -> None:
        """Closes the pipe; the worker notices and goes, at once or by force."""
        with contextlib.suppress(OSError):
            self.pipe.close()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def _with_package(environment: dict[str, str]) -> dict[str, str]:
    """The environment, with this very package importable by the new interpreter."""
    import secateur

    here = os.path.dirname(os.path.dirname(os.path.abspath(secateur.__file__)))
    paths = [here, *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}
