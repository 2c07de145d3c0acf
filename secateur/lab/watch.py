"""What the lab gives to a training: it reports progress, publishes checkpoints, and can stop it.

A checkpoint is published at most every 30 seconds. The environment variable SECATEUR_INTERVAL gives
`secateur run` another number of seconds; 0 publishes at every tick (the reliability tests do so).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from secateur.core.errors import SecateurError

if TYPE_CHECKING:
    import numpy as np

    from secateur.lab.checkpoints import Publisher

State: TypeAlias = "Callable[[], dict[str, np.ndarray]]"
INTERVAL = 30.0  # seconds between checkpoints


def interval_from_environment() -> float:
    """Seconds between checkpoints: SECATEUR_INTERVAL, else `INTERVAL`.

    Raises:
        SecateurError: for anything but a finite number of at least 0.
    """
    text = os.environ.get("SECATEUR_INTERVAL", "")
    try:
        seconds = float(text or INTERVAL)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise SecateurError(
            "SECATEUR_INTERVAL is the number of seconds between checkpoints, 0 or more, "
            f"not {text!r}."
        )
    return seconds


class Watch(Protocol):
    """What `fit` may ask and tell."""

    def load(self) -> dict[str, np.ndarray] | None:
        """The last published state of this training; it may be that of its last step."""
        ...

    def tick(self, step: int, steps: int, state: State) -> None:
        """Called at the end of every chunk; may call `state()` and keep what it gives."""
        ...


class Stopped(SecateurError):
    """The run was asked to stop; the cell's checkpoint is published."""


class CellWatch:
    """The watches of one cell, which may train several times.

    Args:
        publisher: where checkpoints go.
        address: the cell's.
        interval: seconds between checkpoints, at most one in so many.
        tell: called with (step, steps) at every tick.
        warn: called with a sentence.
        stopping: asked at every tick whether to publish and stop.
        clock: CPU and wall seconds of this process; lanes count their share instead.
    """

    def __init__(
        self,
        publisher: Publisher,
        address: str,
        interval: float = INTERVAL,
        tell: Callable[[int, int], None] = lambda step, steps: None,
        warn: Callable[[str], None] = lambda sentence: None,
        stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], tuple[float, float]] = lambda: (time.process_time(), time.monotonic()),
    ) -> None:
        self.publisher, self.address, self.interval = publisher, address, interval
        self.tell, self.warn, self.stopping = tell, warn, stopping
        self.earlier = {"cpu": 0.0, "wall": 0.0}  # seconds spent by tries before this one
        self.clock, self._began = clock, clock()
        self.resume_at: int | None = None  # where set, only the checkpoint of this step is used
        self._last = time.monotonic()
        self._count = 0
        # Trainings of this cell that ended since the last publication: number -> state, last step.
        self._ended: dict[int, tuple[dict[str, np.ndarray], int]] = {}

    def training(self) -> Watch:
        """The watch of the cell's next training."""
        self._count += 1
        return _TrainingWatch(self, self._count - 1)

    def spent(self) -> dict[str, float]:
        """CPU and wall seconds of this cell so far, earlier tries included."""
        now = self.clock()
        return {
            "cpu": self.earlier["cpu"] + now[0] - self._began[0],
            "wall": self.earlier["wall"] + now[1] - self._began[1],
        }

    def load(self, number: int) -> dict[str, np.ndarray] | None:
        """The published state of training `number`; a damaged one is ignored, with a warning."""
        found = self.publisher.load(self.address, number, self.warn, self.resume_at)
        if found is None:
            return None
        state, note = found
        self.earlier = {name: float(note.get(name, 0.0)) for name in self.earlier}
        return state

    def tick(self, number: int, step: int, steps: int, state: State) -> None:
        """Reports; publishes where the interval has passed or the run is asked to stop.

        Raises:
            Stopped: published, as asked.
        """
        self.tell(step, steps)
        stop = self.stopping()
        due = time.monotonic() - self._last >= self.interval
        # The state of a training that has ended is kept until it is published: its cell may train
        # again, and then losing the first training would cost more than one interval.
        if step >= steps and not due:
            self._ended[number] = state(), step
        if stop or due:
            now = {**self._ended, number: (state(), step)}
            self._ended = {}
            for which, (arrays, at) in now.items():
                note = {**self.spent(), "step": at}
                if trouble := self.publisher.publish(self.address, which, arrays, note):
                    self.warn(trouble)
            self._last = time.monotonic()
        if stop:
            raise Stopped("stopped")


class _TrainingWatch:
    """One training of a cell."""

    def __init__(self, cell: CellWatch, number: int) -> None:
        self.cell, self.number = cell, number

    def load(self) -> dict[str, Any] | None:
        return self.cell.load(self.number)

    def tick(self, step: int, steps: int, state: State) -> None:
        self.cell.tick(self.number, step, steps, state)
