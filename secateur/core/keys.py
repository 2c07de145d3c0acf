"""Random streams by name, so that no two uses of randomness share a key by accident."""

from __future__ import annotations

import zlib
from typing import Any

import jax

from secateur.core.errors import SecateurError

Key = Any  # a typed JAX key, jax.random.key


def key(seed: int, *path: str | int) -> Key:
    """The key of the stream named by ``path`` under ``seed``.

    ``key(3, "order", "rewind", 7)`` is the data order of level 7 of branch ``rewind`` of seed 3.
    Strings are folded in by their CRC-32, integers as they are.

    Raises:
        SecateurError: for a seed that JAX would cut to 32 bits, so that two seeds were one.
    """
    if not 0 <= seed < 2**32:
        raise SecateurError(f"a seed is a whole number from 0 to 2**32 - 1, not {seed}.")
    return fold(jax.random.key(seed), *path)


def fold(start: Key, *path: str | int) -> Key:
    """The stream named by ``path`` below the key ``start``."""
    for part in path:
        start = jax.random.fold_in(
            start, zlib.crc32(part.encode()) if isinstance(part, str) else part
        )
    return start
