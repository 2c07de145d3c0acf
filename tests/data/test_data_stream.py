"""Reading ahead: the order is decided before, errors arrive, and no thread stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from published import random_examples

from secateur.core.keys import key
from secateur.data.stream import Prefetched, batches
from secateur.train.order import Order


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


DATA = random_examples(37, (4, 5, 3), 0)


def test_batches_are_those_of_the_order() -> None:
    """Three epochs that do not end where batches do."""
    order = Order(key(3), 37, 8)
    wanted = Order(key(3), 37, 8).indices(0, 15)
    with batches(DATA, order, steps=15) as stream:
        found = list(stream)
    assert len(found) == 15
    for batch, rows in zip(found, wanted):
        np.testing.assert_array_equal(batch.images, DATA.images[rows])
        np.testing.assert_array_equal(batch.labels, DATA.labels[rows])


@pytest.mark.parametrize("first", [0, 1, 6, 14, 15])
def test_a_stream_begins_at_any_step(first: int) -> None:
    with batches(DATA, Order(key(3), 37, 8), steps=15) as stream:
        whole = list(stream)
    with batches(DATA, Order(key(3), 37, 8), steps=15, first=first, ahead=5) as stream:
        rest = list(stream)
    assert len(rest) == 15 - first
    for a, b in zip(rest, whole[first:]):
        np.testing.assert_array_equal(a.images, b.images)


def test_keys_decide() -> None:
    with batches(DATA, Order(key(3), 37, 8), 4) as one, batches(DATA, Order(key(4), 37, 8), 4) as b:
        assert not all(np.array_equal(x.labels, y.labels) for x, y in zip(one, b, strict=True))


def test_no_more_is_made_than_may_wait() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for k in range(100):
            made.append(k)
            yield k

    with Prefetched(items(), ahead=3) as ready:
        assert next(ready) == 0
        deadline = time.monotonic() + 5
        while len(made) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        # One taken, three waiting, one in the thread's hands.
        assert made == [0, 1, 2, 3, 4]
        assert next(ready) == 1


def test_items_are_made_while_others_are_used() -> None:
    """An item waits already while its predecessor is in use."""
    begun = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        begun.set()
        yield 1

    with Prefetched(items()) as ready:
        assert next(ready) == 0
        assert begun.wait(5), "the second item is made without being asked for"


def test_an_error_comes_where_its_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield 0
        yield 1
        raise OSError("the disk is gone")

    with Prefetched(items()) as ready:
        assert [next(ready), next(ready)] == [0, 1]
        with pytest.raises(OSError, match="the disk is gone"):
            next(ready)


def test_an_index_beyond_the_data_is_an_error_of_the_loop() -> None:
    class Beyond:
        def indices(self, first: int, steps: int) -> np.ndarray:
            return np.full((steps, 2), 36 + first)

    with batches(DATA, Beyond(), steps=3) as stream:
        assert len(next(stream)) == 2
        with pytest.raises(IndexError):
            next(stream)


def test_leaving_early_ends_the_thread() -> None:
    """The fixture sees whether it did: with a full queue, and with an item that never ends."""

    def endless() -> Iterator[int]:
        k = 0
        while True:
            yield k
            k += 1

    with Prefetched(endless(), ahead=1) as ready:
        assert next(ready) == 0
    with pytest.raises(ZeroDivisionError), Prefetched(endless()):
        raise ZeroDivisionError
