"""Examples that do not fit the device: read in order, ahead of whoever uses them.

Which examples come when is decided before anything is read (by an order with ``indices``, such as
`secateur.train.order.Order`), so that a stream is the same on every machine, begins at any step and
does not depend on how fast the disk is.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Generic, Protocol, TypeVar

import numpy as np

from secateur.data.examples import Examples

T = TypeVar("T")
AHEAD = 2  # items made before they are asked for


class Indices(Protocol):
    """Which examples each step takes."""

    def indices(self, first: int, steps: int) -> np.ndarray:
        """int (steps, batch): of steps ``first`` to ``first + steps - 1``."""


class Prefetched(Generic[T]):
    """The items of an iterable, made by a thread ahead of their use, in their order.

    At most ``ahead`` items wait, and one is being made. An exception in the iterable is raised
    where its item would have come. Leaving the ``with`` block ends the thread and waits for it,
    whether or not all items were taken::

        with Prefetched(items) as ready:
            for item in ready:
                ...
    """

    def __init__(self, items: Iterable[T], ahead: int = AHEAD) -> None:
        self._items = items
        self._queue: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(max(1, ahead))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="secateur-prefetch", daemon=True)

    def __enter__(self) -> Iterator[T]:
        self._thread.start()
        return self._taken()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            with suppress(queue.Empty):  # makes room for a thread that waits to put
                self._queue.get_nowait()
            self._thread.join(0.01)

    def _work(self) -> None:
        try:
            for item in self._items:
                if not self._put("item", item):
                    return
            self._put("end", None)
        except BaseException as error:
            self._put("error", error)

    def _put(self, kind: str, value: T | BaseException | None) -> bool:
        """False where nobody will take it any more."""
        while not self._stop.is_set():
            try:
                self._queue.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _taken(self) -> Iterator[T]:
        while True:
            kind, value = self._queue.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            yield value  # type: ignore[misc]


@contextmanager
def batches(
    examples: Examples, order: Indices, steps: int, first: int = 0, ahead: int = AHEAD
) -> Iterator[Iterator[Examples]]:
    """The batches of steps ``first`` to ``steps - 1``, read ahead by a thread.

    ::

        with batches(data.train, Order(key, len(data.train), 128), steps=1000) as stream:
            for batch in stream:
                ...  # batch.images uint8 (128, height, width, channels), batch.labels (128,)

    A stream begun at ``first`` gives what one from 0 gives from there on, so a loop that saved its
    step and its weights goes on as if it had not been stopped.
    """

    def made() -> Iterator[Examples]:
        for step in range(first, steps):
            rows = order.indices(step, 1)[0]
            yield Examples(examples.images[rows], examples.labels[rows])

    with Prefetched(made(), ahead) as ready:
        yield ready
