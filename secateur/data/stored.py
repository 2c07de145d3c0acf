"""Images in a memory-mapped file, read when they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class Stored:
    """uint8 images ``(n, height, width, channels)`` in a file, seen through a choice of rows.

    To whoever holds a set of examples it is a read-only array: ``shape``, ``dtype``, ``len``, and
    indexing by a number, a slice or an array of rows, which reads just these. ``np.asarray`` reads
    them all. Pickled, and sent to another process, it is its path and not its pixels.

    Args:
        path: a file of raw bytes, one image after the other in C order.
        shape: of all images in the file.
        rows: which of them, in which order; all by default.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self, path: Path, shape: tuple[int, int, int, int], rows: np.ndarray | None = None
    ) -> None:
        self.path, self._whole = path, shape
        self._rows = np.arange(shape[0]) if rows is None else np.asarray(rows)
        self._map: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self._rows), *self._whole[1:])

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """A copy of the images at ``rows``; read in the order of the file, which disks like."""
        if self._map is None:
            self._map = np.memmap(self.path, np.uint8, "r", shape=self._whole)
        wanted = self._rows[rows]
        if wanted.ndim == 0:
            return np.array(self._map[wanted])
        flat = wanted.ravel()
        order = np.argsort(flat, kind="stable")
        found = np.empty((len(flat), *self._whole[1:]), np.uint8)
        found[order] = self._map[flat[order]]
        return found.reshape(*wanted.shape, *self._whole[1:])

    def view(self, rows: np.ndarray) -> Stored:
        """The images at ``rows``, still in the file."""
        return Stored(self.path, self._whole, self._rows[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        every = self[:]
        return every if dtype is None else every.astype(dtype)

    def __reduce__(self) -> Any:
        return Stored, (self.path, self._whole, self._rows)
