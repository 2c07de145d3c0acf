"""Cells on a Ray cluster, or on a local Ray; nothing home-made beyond one machine.

No shared disk is needed: results return to this process, which writes the store; checkpoints go to
a small actor on this node, which writes them beside it, and travel back with the cell.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from secateur.core.errors import SecateurError
from secateur.lab.cells import Work
from secateur.lab.checkpoints import Checkpoints, Warn, opened, packed
from secateur.lab.compute import Task, compute, failure, made
from secateur.lab.executors import worker as worker_side
from secateur.lab.jobs import Jobs
from secateur.lab.machine import cores, worker_environment
from secateur.lab.watch import CellWatch, Stopped

if TYPE_CHECKING:
    import numpy as np

_LOOK = 0.25  # seconds between looks at progress and finished tasks
_GRACE = 60.0  # seconds for checkpoints when the run is asked to stop
_STORE = 256 * 2**20  # bytes of shared memory of a local Ray: results are small


class Ray:
    """See `Executor`.

    Args:
        workers: tasks at once; None takes one a core of the machine or the cluster.
        address: of a running cluster; None takes RAY_ADDRESS, else starts a local Ray.
    """

    name = "ray"

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        self.address = address or os.environ.get("RAY_ADDRESS")
        self.given = workers
        self.workers = workers or cores()

    def __call__(self, jobs: Jobs, work: Work) -> None:
        """Returns when nothing is left to be taken; a Ray started here is shut down."""
        ray = _import_ray()
        mine = not ray.is_initialized()
        if mine:
            self._start(ray)
        if self.address and not self.given:
            self.workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
        jobs.progress.workers = self.workers
        setting = worker_side.setting(
            work, str(jobs.store.path), jobs.interval, jobs.trainer, self.name
        )
        try:
            _Session(ray, jobs, setting, self.workers).run()
        finally:
            if mine:
                ray.shutdown()

    def _start(self, ray: Any) -> None:
        """Connects or starts, quietly, without Ray's usage reports."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        named = {
            "address": self.address,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "runtime_env": {"env_vars": _changed(worker_environment())},
        }
        if not self.address:
            named.update(num_cpus=self.workers, include_dashboard=False, object_store_memory=_STORE)
        try:
            ray.init(**named)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"the Ray cluster at {self.address}" if self.address else "a local Ray"
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SecateurError(f"cannot use {where}: {first}") from error


class _Session:
    """One run on Ray."""

    def __init__(self, ray: Any, jobs: Jobs, setting: dict[str, Any], workers: int) -> None:
        self.ray, self.jobs, self.setting, self.workers = ray, jobs, setting, workers
        here = ray.get_runtime_context().get_node_id()
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        pinned = strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        self.mailbox = (
            ray.remote(_Mailbox)
            .options(num_cpus=0, scheduling_strategy=pinned, max_restarts=-1)
            .remote(setting["store"])
        )
        # This run decides itself what is tried again: from the checkpoint, not from the start.
        self.remote = ray.remote(_carry_out).options(num_cpus=1, max_retries=0)
        self.running: dict[Any, Task] = {}

    def run(self) -> None:
        """Gives cells out and takes results until nothing is left."""
        while not self.jobs.finished():
            while len(self.running) < self.workers and (task := self.jobs.take()) is not None:
                self._give(task)
            self._hear()
        if self.running:  # asked to stop
            self.ray.get(self.mailbox.stop.remote())
            end = time.monotonic() + _GRACE
            while self.running and time.monotonic() < end:
                self._hear()

    def _give(self, task: Task) -> None:
        saved = {}
        for number in range(1000):  # trainings of one cell
            paths = self.jobs.checkpoints.paths(task.cell.address, number)
            states = [path.read_bytes() for path in paths if path.exists()]
            if not states:
                break
            saved[number] = states
        content = pickle.dumps(task)
        reference = self.remote.remote(self.setting, content, saved, self.mailbox)
        self.running[reference] = task

    def _hear(self) -> None:
        if not self.running:
            time.sleep(_LOOK)
            return
        ready, _ = self.ray.wait(list(self.running), timeout=_LOOK)
        for reference in ready:
            task = self.running.pop(reference)
            try:
                kind, *content = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                self.jobs.died(task, f"was lost ({type(error).__name__})")
                continue
            if kind == "done":
                self.jobs.done(task, *content)
            elif kind == "failed":
                self.jobs.failed(task, *content)
            else:
                self.jobs.stopped(task)
        for kind, *content in self._letters():
            if kind == "tick":
                self.jobs.tick(*content)
            else:
                self.jobs.warn(*content)

    def _letters(self) -> list[tuple[Any, ...]]:
        try:
            letters: list[tuple[Any, ...]] = self.ray.get(self.mailbox.empty.remote(), timeout=5)
        except self.ray.exceptions.RayError:
            return []  # it is being started again
        return letters


class _Mailbox:
    """The actor on the driver's node: keeps checkpoints, gathers progress, says when to stop."""

    def __init__(self, store: str) -> None:
        self.checkpoints = Checkpoints(store)
        self.letters: list[tuple[Any, ...]] = []
        self.stopped = False

    def publish(self, address: str, number: int, data: bytes) -> str | None:
        """Writes a checkpoint into the store's folder."""
        return self.checkpoints.put(address, number, data)

    def tell(self, *letter: Any) -> bool:
        """Takes a letter for the driver; says whether to stop."""
        self.letters.append(letter)
        return self.stopped

    def empty(self) -> list[tuple[Any, ...]]:
        """The letters since the last time."""
        letters, self.letters = self.letters, []
        return letters

    def stop(self) -> None:
        """From now on everyone is told to stop."""
        self.stopped = True


class _Post:
    """A publisher that sends checkpoints to the mailbox and reads those that came with the task."""

    def __init__(self, ray: Any, mailbox: Any, saved: Mapping[int, list[bytes]]) -> None:
        self.ray, self.mailbox, self.saved = ray, mailbox, saved
        self.stopping = False

    def publish(
        self, address: str, number: int, arrays: Mapping[str, np.ndarray], note: dict[str, Any]
    ) -> str | None:
        """See Publisher."""
        data = packed(arrays, note)
        try:
            trouble: str | None = self.ray.get(self.mailbox.publish.remote(address, number, data))
        except self.ray.exceptions.RayError as error:
            return f"could not send a checkpoint ({type(error).__name__})"
        return trouble

    def load(
        self, address: str, number: int, warn: Warn, step: int | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """See Publisher."""
        for data in self.saved.get(number, []):
            found = opened(data)
            if isinstance(found, str):
                warn(f"a checkpoint of {address[:16]} is not used: {found}")
            elif step is None or found[1].get("step") == step:
                return found
        return None

    def teller(self, address: str) -> Callable[[int, int], None]:
        """Tells progress, and learns whether to stop, about once a second."""
        last = [0.0]

        def tell(step: int, steps: int) -> None:
            now = time.monotonic()
            if now - last[0] >= 1.0:
                last[0] = now
                try:
                    letter = self.mailbox.tell.remote("tick", address, step, steps)
                    self.stopping = self.ray.get(letter, timeout=5)
                except self.ray.exceptions.RayError:
                    return

        return tell


def _carry_out(
    setting: dict[str, Any], content: bytes, saved: Mapping[int, list[bytes]], mailbox: Any
) -> tuple[Any, ...]:
    """A cell on a Ray worker; the same messages as a worker process sends."""
    ray = _import_ray()
    try:
        work = worker_side.prepare(setting)
        task: Task = pickle.loads(content)
        post = _Post(ray, mailbox, saved)
        watch = CellWatch(
            post,
            task.cell.address,
            setting["interval"],
            tell=post.teller(task.cell.address),
            warn=lambda sentence: mailbox.tell.remote("warn", sentence),
            stopping=lambda: post.stopping,
        )
        result = compute(work, task, watch, setting["trainer"])
        return "done", result, made(watch, setting["executor"])
    except Stopped:
        return ("stopped",)
    except Exception as error:
        return "failed", failure(error)


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise SecateurError(
            "the executor 'ray' needs Ray, which is not installed: pip install 'secateur[ray]'"
        ) from None


def _changed(environment: Mapping[str, str]) -> dict[str, str]:
    """What a worker's environment has beyond this process's, and where to find our modules."""
    new = {name: v for name, v in environment.items() if os.environ.get(name) != v}
    return {**new, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
