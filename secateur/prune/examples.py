"""The examples that a method is scored on: of a data set, of arrays, or batches as they come."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.keys import Key, fold
from secateur.core.network import Network
from secateur.core.trees import Params
from secateur.data.augment import fitted, normalise
from secateur.data.examples import Dataset, Examples, Sets
from secateur.prune.criterion import Construction, Criterion

MOST_BYTES = 2**28  # of larger data a subset is drawn on the host
MOST_COLLECTED = 10_000  # examples read from an iterable, at most


@dataclass(frozen=True)
class Normalise:
    """Stored images -> inputs: ``(x / 255 - mean) / std`` in the program. Hashable by value.

    Of images larger than ``shape`` (height, width, channels) the centre is taken, as in training.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str
    shape: tuple[int, ...] = ()

    def __call__(self, images: jax.Array) -> jax.Array:
        if self._larger(images.shape):
            images = fitted(images, self.shape)
        mean, std = jnp.asarray(self.mean), jnp.asarray(self.std)
        return normalise(images, mean, std, self.dtype)

    def _larger(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 4 == len(self.shape) + 1 and (
            shape[3] == self.shape[2] and shape[1] >= self.shape[0] and shape[2] >= self.shape[1]
        )


@dataclass(frozen=True)
class Cast:
    """Floats in the precision of the weights; whole numbers as they are."""

    dtype: str

    def __call__(self, images: jax.Array) -> jax.Array:
        floats = jnp.issubdtype(images.dtype, jnp.floating)
        return images.astype(self.dtype) if floats else images


@dataclass(frozen=True)
class Source:
    """What a problem is made of, and what the provenance says of it."""

    images: Any
    labels: Any
    prepare: Any
    record: dict[str, Any]


def gather(
    network: Network,
    params: Params,
    data: Any,
    name: str,
    method: Criterion | Construction,
    rounds: int,
    key: Key,
) -> Source:
    """The examples of ``data`` as arrays for a program.

    Raises:
        SecateurError: where the method needs examples or labels and there are none, or they do not
            fit the network.
    """
    dtypes = (x.dtype for x in jax.tree.leaves(params))
    dtype = str(jnp.result_type(*(d for d in dtypes if jnp.issubdtype(d, jnp.floating))))
    nothing = Source(None, None, Cast(dtype), {})
    if "images" not in method.needs:
        return nothing
    if data is None:
        words = "examples and labels" if "labels" in method.needs else "examples"
        raise SecateurError(f"{name} scores weights on {words}; give data.")
    images, labels, prepare, record = _arrays(
        data, dtype, _wanted(method, network, rounds), tuple(network.input_shape)
    )
    seen = jax.eval_shape(prepare, jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype))
    if seen.shape[1:] != network.input_shape:
        raise SecateurError(
            f"the examples have shape {tuple(seen.shape[1:])} each, but {network.name} takes "
            f"{network.input_shape}; give examples of that shape (height, width, channels)."
        )
    if "labels" in method.needs:
        if labels is None:
            raise SecateurError(
                f"{name} needs labels, and the data have none; give (images, labels)."
            )
        if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
            raise SecateurError(
                f"labels are whole numbers, one an example, not {labels.dtype} of shape "
                f"{labels.shape}; of one-hot rows give labels.argmax(1)."
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < network.outputs:
            raise SecateurError(
                f"labels go from {labels.min()} to {labels.max()}, but {network.name} has "
                f"{network.outputs} outputs, 0 to {network.outputs - 1}."
            )
    if len(images) == 0:
        raise SecateurError("the data hold no examples; give at least one.")
    record["examples"] = len(images)
    size = images.nbytes // len(images)
    if images.nbytes > MOST_BYTES:
        kept = max(1, MOST_BYTES // size)
        seed = [int(x) for x in np.asarray(jax.random.key_data(fold(key, "subset"))).ravel()]
        rows = np.sort(np.random.default_rng(seed).choice(len(images), kept, replace=False))
        images = np.asarray(images[rows])
        labels = None if labels is None else labels[rows]
        record["drawn"] = kept
    per_class = getattr(method, "per_class", None)
    if per_class and labels is not None:
        counts = np.bincount(labels, minlength=network.outputs)
        fewest = int(np.argmin(counts))
        if counts[fewest] < per_class:
            raise SecateurError(
                f"{name} scores {per_class} examples of each class, and class {fewest} has "
                f"{counts[fewest]}; set per_class to {counts[fewest]} or less, or to None for "
                "examples of any class."
                if counts[fewest]
                else f"{name} scores examples of each of {network.outputs} classes, and the data "
                f"have none of class {fewest}; give some, or set per_class to None."
            )
    on_device = None if labels is None else jnp.asarray(labels, jnp.int32)
    return Source(jnp.asarray(images), on_device, prepare, record)


def _wanted(method: Any, network: Network, rounds: int) -> int:
    """How many examples to collect from batches: fresh ones for each draw, within reason."""

    def number(option: str, otherwise: int) -> int:
        value = getattr(method, option, None)
        return value if isinstance(value, int) and value > 0 else otherwise

    one = max(
        number("examples", 128),
        number("batch", 0),
        number("per_class", 0) * network.outputs * 4,  # some classes come late
    )
    return min(MOST_COLLECTED, one * rounds * number("batches", 1))


def _arrays(
    data: Any, dtype: str, wanted: int, shape: tuple[int, ...]
) -> tuple[Any, np.ndarray | None, Any, dict[str, Any]]:
    if isinstance(data, Sets | Dataset):
        record: dict[str, Any] = {
            "name": data.name,
            "part": "train",
            "sha256": data.sha256,
            "normalised": {"mean": list(data.mean), "std": list(data.std)},
        }
        if isinstance(data, Sets):
            record["split"] = data.split
        prepare = Normalise(data.mean, data.std, dtype, shape)
        return data.train.images, data.train.labels, prepare, record
    if isinstance(data, str):
        raise SecateurError(
            f"data is what secateur.load returns, arrays or batches, not the name {data!r}; give "
            f"secateur.split(secateur.load({data!r}), validation=...)."
        )
    if isinstance(data, Examples):
        data = (data.images, data.labels)
    record = {"name": "arrays"}
    if _is_array(data):
        images, labels = np.asarray(data), None
    elif isinstance(data, tuple | list) and len(data) == 2 and _is_array(data[0]) and (
        data[1] is None or _is_array(data[1])
    ):  # fmt: skip
        images, labels = np.asarray(data[0]), None if data[1] is None else np.asarray(data[1])
    elif isinstance(data, Iterable) and not isinstance(data, Mapping):
        images, labels, batches = _collect(data, wanted)
        record = {"name": "batches", "batches": batches}
    else:
        raise SecateurError(
            f"data is a {type(data).__name__}; give Sets, a pair of arrays (images, labels), or "
            "an iterable of such pairs."
        )
    if images.ndim == 0:
        raise SecateurError("the examples are a single number; the first axis counts examples.")
    if labels is not None and len(labels) != len(images):
        raise SecateurError(
            f"there are {len(images)} examples but {len(labels)} labels; give one label for each."
        )
    record["sha256"] = _hash(images, labels)
    if images.dtype == np.uint8:
        if images.ndim == 3:
            images = images[..., None]
        axes = tuple(range(images.ndim - 1))
        mean = np.mean(images, axes, dtype=np.float64) / 255
        std = np.std(images, axes, dtype=np.float64) / 255
        std = np.where(std > 0, std, 1.0)
        prepare = Normalise(
            tuple(np.ravel(mean).tolist()), tuple(np.ravel(std).tolist()), dtype, shape
        )
        record["normalised"] = {"mean": list(prepare.mean), "std": list(prepare.std), "own": True}
        return images, labels, prepare, record
    if np.issubdtype(images.dtype, np.floating) and not np.isfinite(images).all():
        bad = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(1))
        raise SecateurError(
            f"{len(bad)} examples hold NaN or infinity, the first is number {bad[0]}; remove or "
            "repair them."
        )
    return images, labels, Cast(dtype), record


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


_INPUTS, _LABELS = ("images", "image", "inputs", "x"), ("labels", "label", "targets", "y")


def _collect(batches: Iterable[Any], wanted: int) -> tuple[np.ndarray, np.ndarray | None, int]:
    """The first batches of an iterable, until there are ``wanted`` examples."""
    xs: list[np.ndarray] = []
    ys: list[np.ndarray] = []
    have, labelled = 0, True
    for batch in batches:
        if isinstance(batch, Mapping):
            x = next((batch[k] for k in _INPUTS if k in batch), None)
            y = next((batch[k] for k in _LABELS if k in batch), None)
        elif _is_array(batch):
            x, y = batch, None
        elif isinstance(batch, tuple | list) and len(batch) in (1, 2):
            x, y = batch[0], batch[1] if len(batch) == 2 else None
        else:
            x = y = None
        if x is None:
            raise SecateurError(
                f"a batch of the data is a {type(batch).__name__}; give pairs (images, labels), "
                "or dicts with 'images' and 'labels'."
            )
        xs.append(np.asarray(x))
        labelled = labelled and y is not None
        ys.append(np.asarray(y))
        have += len(xs[-1])
        if have >= wanted:
            break
    if not xs:
        raise SecateurError("the data hold no batches; give at least one.")
    return np.concatenate(xs), np.concatenate(ys) if labelled else None, len(xs)


def _hash(images: np.ndarray, labels: np.ndarray | None) -> str:
    digest = hashlib.sha256()
    for array in (images, labels):
        if array is not None:
            if np.issubdtype(array.dtype, np.integer) and array.dtype != np.uint8:
                array = array.astype("<i8")  # labels of any width are the same labels
            digest.update(f"{array.dtype.str}:{array.shape};".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
