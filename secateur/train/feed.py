"""Sets that are too large for the device: their images come in pieces, read ahead by a thread.

Where each step's examples come from is decided by `train.order`, as for sets on the device, so the
weights that come out are the same. While the device computes the steps of one piece, the next is
read from the disk. Validation and test sets are read in order, a block at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError
from secateur.data import examples as sets
from secateur.data.stream import Indices, Prefetched
from secateur.train.program import BLOCK, Examples, nothing
from secateur.train.recipes import Recipe

WHOLE = 2**32  # bytes of images (all three sets) up to which they are put on the device
PIECE = 2**28  # bytes of images sent at once; two or three pieces are in memory


class Piece(NamedTuple):
    """The examples of some steps, and which of them each step takes."""

    step: int  # the first of the steps
    order: np.ndarray  # int32 (lanes, steps, batch), into the examples of the piece
    examples: sets.Examples


def whole_bytes() -> int:
    """The budget: `WHOLE`, or the number in the environment variable ``SECATEUR_DEVICE_BYTES``.

    Raises:
        SecateurError: the variable is no whole number.
    """
    given = os.environ.get("SECATEUR_DEVICE_BYTES")
    if given is None:
        return WHOLE
    try:
        return int(given)
    except ValueError:
        raise SecateurError(
            f"SECATEUR_DEVICE_BYTES is {given!r}; give the bytes of images that may lie on the "
            f"device, e.g. {WHOLE}."
        ) from None


def streams(data: sets.Sets) -> bool:
    """Whether the images of the three sets are over the budget, and come in pieces."""
    parts = (data.train, data.validation, data.test)
    return sum(part.images.nbytes for part in parts) > whole_bytes()


def steps_at_once(recipe: Recipe, lanes: int, data: sets.Sets) -> int:
    """Steps of one piece: a divisor of ``evaluate_every``, so that all pieces have one shape."""
    image = data.train.images.nbytes // len(data.train)
    most = max(1, PIECE // (recipe.batch * lanes * image))
    every = recipe.evaluate_every
    return max(d for d in range(1, min(most, every) + 1) if every % d == 0)


@contextmanager
def pieces(
    data: sets.Sets, recipe: Recipe, orders: Sequence[Indices], first: int
) -> Iterator[Iterator[Piece]]:
    """The pieces from step ``first`` to the end, read ahead; lanes have an order each."""
    train = data.train
    at_once = steps_at_once(recipe, len(orders), data)

    def read() -> Iterator[Piece]:
        for step in range(first, recipe.steps, at_once):
            rows = np.stack([order.indices(step, at_once) for order in orders])
            order = np.arange(rows.size, dtype=np.int32).reshape(rows.shape)
            yield Piece(step, order, _read(train, rows.ravel()))

    with Prefetched(read(), ahead=1) as ready:
        yield ready


def _read(examples: sets.Examples, rows: np.ndarray) -> sets.Examples:
    """A copy of the examples at ``rows`` in memory."""
    return sets.Examples(examples.images[rows], examples.labels[rows])


def on_device(examples: sets.Examples, data: sets.Sets) -> Examples:
    """A piece as programs take it."""
    dtype = jnp.result_type(float)
    return Examples(
        jnp.asarray(np.asarray(examples.images)),
        jnp.asarray(examples.labels),
        jnp.asarray(data.mean, dtype),
        jnp.asarray(data.std, dtype),
    )


def evaluate(
    run: dict[str, Any],
    given: Any,
    params: Any,
    stats: Any,
    examples: sets.Examples,
    data: sets.Sets,
    lanes: bool,
) -> tuple[jax.Array, jax.Array]:
    """Mean loss over a set that comes in blocks, and how many are right, of each lane."""
    count = len(examples)
    block = min(BLOCK, count)

    def read() -> Iterator[tuple[int, sets.Examples]]:
        for start in range(0, count, block):
            rows = np.arange(start, start + block)
            inside = int(np.sum(rows < count))
            yield inside, _read(examples, np.minimum(rows, count - 1))

    total = jax.vmap(nothing)(params) if lanes else nothing(params)
    with Prefetched(read(), ahead=1) as ready:
        for inside, held in ready:
            filled = np.int32(inside)  # an array: a number would be a program of its own
            total = run["sums"](given, params, stats, on_device(held, data), filled, total)
    return total[0] / count, total[1]
