"""Three sets out of two: cutting a validation set, and taking in a user's own arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from secateur.core.errors import SecateurError
from secateur.data.examples import Dataset, Examples, Sets, hash_examples

Pair = Examples | tuple[Any, Any]  # examples, or (images, labels) as anything numpy takes


def split(dataset: Dataset, validation: int, seed: int = 0) -> Sets:
    """Cut ``validation`` examples from the training part; the test part is untouched.

    Each class gives its share, rounded by the largest remainder, so that the numbers add up.
    Which examples go is decided by ``seed`` alone, the same on every machine and numpy version.
    Both parts keep the order of the published file.

    Raises:
        SecateurError: ``validation`` is not between 1 and the number of training examples less one.
    """
    kept, cut = _cut(dataset.train.labels, validation, seed, dataset.name)
    return Sets(
        name=dataset.name,
        train=dataset.train.take(kept),
        validation=dataset.train.take(cut),
        test=dataset.test,
        classes=dataset.classes,
        mean=dataset.mean,
        std=dataset.std,
        sha256=dataset.sha256,
        source=dataset.source,
        title=dataset.title,
        split=_record(validation, seed),
    )


def from_arrays(
    name: str,
    train: Pair,
    validation: Pair | int,
    test: Pair,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Sets:
    """The three sets of a user's own arrays.

    Args:
        train, validation, test: Examples, or pairs (images, labels). Images are uint8 (0 to 255,
            ``(n, height, width[, channels])``) or floats of any shape ``(n, ...)``; labels are
            whole numbers from 0. ``validation`` may be a number: so many are cut from ``train``,
            as `split` does, by ``seed``.
        mean, std: of each channel (the last of four axes; otherwise one number for all), for uint8
            on the [0, 1] scale; by default those of the training set. A channel that is constant
            in the training set gets ``std`` 1.
        classes: names of the classes; by default ``"0"``, ``"1"``, ... up to the largest label.

    Raises:
        SecateurError: the arrays do not fit together, are empty, hold NaN or infinity, or the
            labels are no class numbers.
    """
    train, test = _examples("train", train), _examples("test", test)
    if isinstance(validation, (int, np.integer)):
        validation = int(validation)
        kept, cut = _cut(train.labels, validation, seed, name)
        record = _record(validation, seed)
        train, validation = train.take(kept), train.take(cut)
    else:
        validation = _examples("validation", validation)
        record = {"validation": len(validation), "given": True}
    parts = {"train": train, "validation": validation, "test": test}
    for which, part in parts.items():
        if (part.images.shape[1:], part.images.dtype) != (
            train.images.shape[1:],
            train.images.dtype,
        ):
            raise SecateurError(
                f"the {which} images are {part.images.dtype} {part.images.shape[1:]} each, the "
                f"train images {train.images.dtype} {train.images.shape[1:]}; give all three sets "
                f"the same."
            )
    top = max(int(part.labels.max()) for part in parts.values())
    if classes is not None and top >= len(classes):
        raise SecateurError(
            f"a label is {top}, but there are {len(classes)} classes (labels 0 to "
            f"{len(classes) - 1}); name all classes or correct the labels."
        )
    channels = train.images.shape[-1] if train.images.ndim == 4 else 1
    own_mean, own_std = _moments(np.asarray(train.images), channels)
    return Sets(
        name=name,
        train=train,
        validation=validation,
        test=test,
        classes=tuple(classes) if classes is not None else tuple(map(str, range(top + 1))),
        mean=own_mean if mean is None else _per_channel("mean", mean, channels),
        std=own_std if std is None else _per_channel("std", std, channels),
        sha256=hash_examples(parts),
        source="arrays given by the user",
        title=name,
        split=record,
    )


def _record(validation: int, seed: int) -> dict[str, Any]:
    return {"validation": validation, "seed": seed, "stratified": True}


def quotas(counts: np.ndarray, wanted: int) -> np.ndarray:
    """``wanted`` shared out in proportion to ``counts``, each within 1 of its exact share.

    Largest remainder, in whole numbers; of equal remainders the earlier class is first. No quota is
    above its count while ``wanted`` is not above their sum.
    """
    total = int(counts.sum())
    exact = [int(count) * wanted for count in counts]  # in units of 1/total
    shares = np.array([share // total for share in exact])
    remainders = np.array([share % total for share in exact])
    shares[np.argsort(-remainders, kind="stable")[: wanted - int(shares.sum())]] += 1
    return shares


def _cut(labels: np.ndarray, wanted: int, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows to keep and rows to cut, both ascending."""
    if not 1 <= wanted < len(labels):
        raise SecateurError(
            f"a validation set of {wanted} cannot be cut from the {len(labels)} training examples "
            f"of {name}; ask for 1 to {len(labels) - 1}."
        )
    if seed < 0:
        raise SecateurError(f"the seed of the split is {seed}; give a whole number from 0.")
    # Philox's raw stream is fixed by its definition; what numpy makes of it (permutation, choice)
    # may change between its versions.
    draws = np.random.Philox(key=seed).random_raw(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    cut = np.zeros(len(labels), bool)
    for label, quota in zip(classes, quotas(counts, wanted)):
        rows = np.flatnonzero(labels == label)
        cut[rows[np.argsort(draws[rows], kind="stable")[:quota]]] = True
    return np.flatnonzero(~cut), np.flatnonzero(cut)


def _examples(which: str, pair: Pair) -> Examples:
    """A user's pair as Examples, or one sentence that says what is wrong with it."""
    given = (pair.images, pair.labels) if isinstance(pair, Examples) else pair
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise SecateurError(
            f"the {which} set is a {type(pair).__name__}, expected a pair (images, labels)."
        )
    images, labels = np.asarray(given[0]), np.asarray(given[1])
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise SecateurError(
            f"the {which} images are {images.dtype}; give uint8 from 0 to 255, or floats."
        )
    if images.ndim < 2:
        raise SecateurError(
            f"the {which} images have shape {images.shape}; the first axis must count examples and "
            f"at least one more must follow."
        )
    if labels.ndim != 1 or len(labels) != len(images):
        raise SecateurError(
            f"the {which} set has images of shape {images.shape} and labels of shape "
            f"{labels.shape}; give one label for each of the {len(images)} images."
        )
    if images.size == 0:
        raise SecateurError(
            f"the {which} set is empty (images of shape {images.shape}); each of the three sets "
            f"needs at least one example."
        )
    if images.dtype != np.uint8 and not np.isfinite(images).all():
        bad = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(1))
        raise SecateurError(
            f"{len(bad)} of the {which} images hold NaN or infinity, the first at row {bad[0]}; "
            f"remove or repair them."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise SecateurError(
            f"the {which} labels are {labels.dtype}; give whole numbers from 0, one a class "
            f"(of one-hot rows labels.argmax(1))."
        )
    if labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
        bad_label = labels.min() if labels.min() < 0 else labels.max()
        raise SecateurError(
            f"a {which} label is {bad_label}; classes are numbered from 0 to their number less one."
        )
    if images.dtype == np.uint8 and images.ndim == 3:
        images = images[..., None]
    return Examples(images, labels.astype(np.int32))


def _moments(images: np.ndarray, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel; of uint8 on the [0, 1] scale."""
    values = images.reshape(-1, channels)
    if images.dtype == np.uint8:
        # By counting: exact, and without a float copy of all images.
        levels = np.arange(256) / 255
        counts = np.stack([np.bincount(values[:, c], minlength=256) for c in range(channels)])
        mean = counts @ levels / len(values)
        std = np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(1) / len(values))
    else:
        mean = values.mean(0, dtype=np.float64)
        std = values.std(0, dtype=np.float64)
    # A constant channel becomes 0, not NaN; rounding leaves its deviation just above 0.
    std = np.where(std > 1e-12 * np.maximum(1, np.abs(mean)), std, 1.0)
    return tuple(map(float, mean)), tuple(map(float, std))


def _per_channel(which: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    array = np.atleast_1d(np.asarray(values, float))
    if array.shape != (channels,) or not np.isfinite(array).all():
        raise SecateurError(
            f"{which} is {values!r}; give {channels} finite number{'s' if channels > 1 else ''}, "
            f"one for each channel."
        )
    if which == "std" and array.min() <= 0:
        raise SecateurError(f"std is {values!r}; each must be above 0.")
    return tuple(map(float, array))
