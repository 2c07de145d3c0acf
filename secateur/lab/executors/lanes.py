"""Many cells at once on one device: trainings of one program run as lanes of one compiled loop."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections import defaultdict
from collections.abc import Generator, Hashable, Iterator, Sequence
from typing import Any

from secateur.lab.cells import Result, Work
from secateur.lab.compute import Task, begin, failure, made, returned
from secateur.lab.files import StoreError
from secateur.lab.jobs import Jobs
from secateur.lab.machine import keep_compiled_programs
from secateur.lab.watch import CellWatch, State, Stopped

LANES = 64  # trainings at once; on a GPU tens of small networks cost about as much as one


class Lanes:
    """See `Executor`.

    Args:
        workers: lanes at once; None takes `LANES`.
    """

    name = "lanes"

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or LANES

    def __call__(self, jobs: Jobs, work: Work) -> None:
        """Returns when nothing is left to be taken."""
        keep_compiled_programs()
        open_: list[_Open] = []
        try:
            while not jobs.finished():
                while len(open_) < self.workers and (task := jobs.take()) is not None:
                    one = _Open(task, jobs.watch(task, _LaneWatch))
                    if self._advance(jobs, one, work):
                        open_.append(one)
                if not open_:
                    time.sleep(0.1)
                    continue
                group = _group(jobs, open_)
                for one, came in zip(group, _fit_lanes(jobs.trainer, group)):
                    one.lanes = len(group)
                    if not self._advance(jobs, one, work, came):
                        open_.remove(one)
        except Stopped:
            pass
        finally:
            for one in open_:
                if one.generator is not None:
                    one.generator.close()
                if one.task.cell.address in jobs.running:
                    jobs.stopped(one.task)

    def _advance(self, jobs: Jobs, one: _Open, work: Work, came: Any = None) -> bool:
        """Runs a cell up to its next training; False where it is finished, for better or worse."""
        try:
            with one.watch.alone():
                one.step(work, came)
                one.program = one.training.program()
            one.watch_now = one.watch.training()
            one.number += 1
            return True
        except StopIteration as stop:
            try:
                result: Result = returned(one.task.cell, stop.value)
            except Exception as error:
                jobs.failed(one.task, failure(error))
                return False
            jobs.done(one.task, result, made(one.watch, self.name, lanes=one.lanes))
            return False
        except StoreError:
            raise
        except Exception as error:
            jobs.failed(one.task, failure(error))
            return False


class _LaneWatch(CellWatch):
    """The watch of a cell that shares its process, and its compiled loop, with others.

    Its seconds are its share; asked to stop, it publishes, and only when all lanes of the group
    have done so does one of them end the loop.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        self._sum, self._share, self._since = (0.0, 0.0), 0.0, (0.0, 0.0)
        self.group: list[_LaneWatch] = []
        self.ready_to_stop = False
        super().__init__(*given, **{**named, "clock": self._time})

    @contextlib.contextmanager
    def alone(self, share: float = 1.0) -> Iterator[None]:
        """Counts this share of the process's time for this cell."""
        self._share, self._since = share, _clock()
        try:
            yield
        finally:
            self._sum, self._share = self._time(), 0.0

    def _time(self) -> tuple[float, float]:
        now = _clock()
        cpu = self._sum[0] + self._share * (now[0] - self._since[0])
        return cpu, self._sum[1] + self._share * (now[1] - self._since[1])

    def tick(self, number: int, step: int, steps: int, state: State) -> None:
        """See CellWatch."""
        again = self.ready_to_stop
        try:
            super().tick(number, step, steps, state)
        except Stopped:
            self.ready_to_stop = True
            # `again`: the others tick no more, whatever the reason.
            if again or all(one.ready_to_stop for one in self.group):
                raise


class _Open:
    """A cell under way."""

    def __init__(self, task: Task, watch: _LaneWatch) -> None:
        self.task, self.watch = task, watch
        self.generator: Generator[Any, Any, Result] | None = None
        self.training: Any = None
        self.program: Hashable = None
        self.watch_now: Any = None
        self.number = -1  # of the training, in this cell
        self.lanes = 1

    def step(self, work: Work, came: Any) -> None:
        """Runs up to the next training; raises StopIteration at the end."""
        if self.generator is None:
            self.generator = begin(work, self.task)
            self.training = next(self.generator)
        elif isinstance(came, Exception):
            self.training = self.generator.throw(came)
        else:
            self.training = self.generator.send(came)


def _clock() -> tuple[float, float]:
    return time.process_time(), time.monotonic()


def _group(jobs: Jobs, open_: Sequence[_Open]) -> list[_Open]:
    """The cells whose trainings share a program and a step to go on from: the largest such group.

    After a kill between the writes of two lanes their last checkpoints differ by one interval; then
    all go on from the one before, so that they stay together.
    """
    by_program: defaultdict[Hashable, list[_Open]] = defaultdict(list)
    for one in open_:
        by_program[one.program].append(one)
    group = max(by_program.values(), key=len)
    steps = {}
    for one in group:
        found = jobs.checkpoints.steps(one.task.cell.address, one.number)
        # Before the first checkpoint there was the start.
        steps[one.task.cell.address] = found if len(found) > 1 else [*found, 0]
    common = set.intersection(*map(set, steps.values()))
    if common:
        for one in group:
            one.watch.resume_at = max(common)
        return group
    by_step: defaultdict[int, list[_Open]] = defaultdict(list)
    for one in group:
        one.watch.resume_at = max(steps[one.task.cell.address])
        by_step[one.watch.resume_at].append(one)
    return max(by_step.values(), key=len)


def _fit_lanes(trainer: str, group: Sequence[_Open]) -> list[Any]:
    """What came of each training: what was fitted, or the exception it met.

    A group that fails (memory, or one bad lane) is tried again in halves, down to the lanes that
    fail by themselves.
    """
    module = importlib.import_module(trainer)
    watches = [one.watch for one in group]
    for watch in watches:
        watch.group = watches
    try:
        with contextlib.ExitStack() as shares:
            for watch in watches:
                shares.enter_context(watch.alone(1 / len(group)))
            trainings = [one.training for one in group]
            return list(module.fit_lanes(trainings, [one.watch_now for one in group]))
    except (Stopped, StoreError):
        raise
    except Exception as error:
        if len(group) == 1:
            return [error]
        half = len(group) // 2
        return [*_fit_lanes(trainer, group[:half]), *_fit_lanes(trainer, group[half:])]
