"""The types of data: examples, a data set as published, and the three sets that training sees."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.data.stored import Stored

Images = np.ndarray | Stored


@dataclass(frozen=True)
class Examples:
    """Images and their labels.

    Attributes:
        images: uint8 ``(n, height, width, channels)`` as published, 0 to 255; of a user's own
            arrays also floats of any shape ``(n, ...)``, taken as they are. Of a decoded folder a
            `Stored`, which reads them from a file when it is indexed.
        labels: int32 ``(n,)``.
    """

    images: Images
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> Examples:
        """The examples at ``rows``, in that order, as a copy; of stored images, still stored."""
        stored = isinstance(self.images, Stored)
        images = self.images.view(rows) if stored else self.images[rows]
        return Examples(images, self.labels[rows])


@dataclass(frozen=True)
class Dataset:
    """A data set as published: two parts, not yet cut into three.

    Attributes:
        mean, std: of each channel of the training part, on the [0, 1] scale.
        sha256: over the name and the publisher's uncompressed files, so that it does not depend on
            how the files are packed.
        source: the directory it was found in, or ``"inside the package"``.
    """

    name: str
    train: Examples
    test: Examples
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    source: str
    citation: str
    licence: str
    title: str


@dataclass(frozen=True)
class Sets:
    """What training sees: always three sets.

    Attributes:
        sha256: of the data before they were cut (`Dataset.sha256`); for a user's own arrays, over
            all three sets. The cut itself is in ``split``.
        split: how the validation set came about, e.g. ``{"validation": 5000, "seed": 0,
            "stratified": True}``; JSON-able.
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    source: str
    title: str
    split: dict[str, Any]


def hash_examples(parts: Mapping[str, Examples]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all arrays: equal for equal data."""
    digest = hashlib.sha256()
    for name, part in parts.items():
        for kind, array in (("images", part.images), ("labels", part.labels)):
            little = np.ascontiguousarray(np.asarray(array), array.dtype.newbyteorder("<"))
            digest.update(f"{name}/{kind}:{little.dtype.str}:{little.shape};".encode())
            digest.update(little.data)
    return digest.hexdigest()
