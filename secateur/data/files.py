"""Readers of the publishers' own files: idx, CIFAR's Python pickles, SVHN's MATLAB files.

Reading has two halves. The first gives the bytes of a published file, whatever it is packed in
(`read_file`, `read_tar`), so that a hash can be checked before anything is interpreted. The second
interprets the bytes (`idx_array`, `cifar_examples`, `svhn_examples`). All images come out as uint8
``(n, height, width, channels)``. Whatever is wrong with a file is one SecateurError sentence.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from secateur.core.errors import SecateurError
from secateur.data.examples import Examples

REPLACE = "delete it and get it again from its publisher"


class Raw(NamedTuple):
    """The bytes of a published file, uncompressed, and where they were read, for messages."""

    where: str
    data: bytes


def read_file(path: Path) -> Raw:
    """The bytes of a file; one that is gzip by its first two bytes is uncompressed.

    Raises:
        SecateurError: the file cannot be read, or its gzip stream ends early or is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SecateurError(
            f"cannot read {path}: {error.strerror or error}; check that it is a readable file."
        ) from error
    if data[:2] != b"\x1f\x8b":
        return Raw(str(path), data)
    try:
        return Raw(str(path), gzip.decompress(data))
    except (EOFError, OSError, zlib.error) as error:
        raise SecateurError(_damaged(path, len(data), error)) from error


def read_tar(path: Path, names: Sequence[str]) -> dict[str, Raw]:
    """The bytes of the files called ``names`` inside a tar archive, gzip or not, in one pass.

    Nothing is extracted to disk.

    Raises:
        SecateurError: the archive is damaged, or does not hold one of the files.
    """
    found: dict[str, Raw] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if name in names and (stream := archive.extractfile(member)):
                    found[name] = Raw(f"{path} ({name})", stream.read())
    except (EOFError, OSError, tarfile.TarError, zlib.error) as error:
        size = path.stat().st_size if path.exists() else 0
        raise SecateurError(_damaged(path, size, error)) from error
    for name in names:
        if name not in found:
            raise SecateurError(
                f"{path} holds no {name}, so it is not the published archive: {REPLACE}."
            )
    return found


def _brief(error: Exception) -> str:
    """The first line and sentence of what a library says, so that ours remains one sentence."""
    text = str(error).split("\n")[0].split(". ")[0].rstrip(".:")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _damaged(path: Path, size: int, error: Exception) -> str:
    early = isinstance(error, EOFError) or "unexpected end" in str(error)
    what = "ends early" if early else f"is damaged ({_brief(error)})"
    return f"{path} ({size:,} bytes) {what}: {REPLACE}."


# --- idx: MNIST and Fashion-MNIST -----------------------------------------------------------------


def idx_array(raw: Raw) -> np.ndarray:
    """The array of an idx file of unsigned bytes, any number of axes; read-only, no copy.

    The format: two zero bytes, the type (8 = unsigned byte), the number of axes, one big-endian
    uint32 an axis, then the values in C order.
    """
    where, data = raw
    if len(data) < 4 or data[:2] != b"\0\0":
        start = data[:4].hex(" ") or "nothing"
        raise SecateurError(
            f"{where} is not an idx file: it begins with {start}, expected 00 00 08 and the number "
            f"of axes; {REPLACE}."
        )
    kind, axes = data[2], data[3]
    if kind != 8 or axes == 0:
        raise SecateurError(
            f"{where} is an idx file of type {kind:#04x} with {axes} axes, expected unsigned bytes "
            f"(0x08) with at least one; {REPLACE}."
        )
    head = 4 + 4 * axes
    shape = tuple(int(n) for n in np.frombuffer(data[4:head], ">u4"))
    promised = head + int(np.prod(shape, dtype=object)) if len(shape) == axes else head
    if len(data) != promised:
        raise SecateurError(
            f"{where} has {len(data):,} bytes (uncompressed) where its header promises "
            f"{promised:,}: {REPLACE}."
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def idx_examples(images: Raw, labels: Raw) -> Examples:
    """Examples from a pair of idx files: images ``(n, height, width)`` and labels ``(n,)``."""
    pixels, classes = idx_array(images), idx_array(labels)
    if pixels.ndim != 3:
        raise SecateurError(
            f"{images.where} holds an array of shape {pixels.shape}, expected images (n, height, "
            f"width); are images and labels swapped?"
        )
    if classes.shape != pixels.shape[:1]:
        raise SecateurError(
            f"{labels.where} holds labels of shape {classes.shape}, expected one for each of the "
            f"{len(pixels):,} images of {images.where}."
        )
    return Examples(pixels[..., None], classes.astype(np.int32))


def read_idx(images: Path, labels: Path) -> Examples:
    """Examples from a pair of idx files, each compressed (gzip) or not.

    Returns:
        images uint8 ``(n, height, width, 1)``, labels int32 ``(n,)``.
    """
    return idx_examples(read_file(images), read_file(labels))


# --- CIFAR-10 and CIFAR-100 -----------------------------------------------------------------------

# The one function that numpy's arrays are rebuilt with; asked of an array, because the module that
# it lives in was renamed (numpy.core.multiarray, numpy._core.multiarray).
_reconstruct: Any = np.empty(0).__reduce__()[0]


def _latin1(text: str, encoding: str) -> bytes:
    """What Python 3 writes bytes as in protocol 2: ``_codecs.encode(text, "latin1")``, no other."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"_codecs.encode with encoding {encoding!r}")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    """Rebuilds plain Python values and numpy arrays, and nothing else: no code can run."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def unpickle(raw: Raw) -> Any:
    """The value of a Python 2 pickle of plain values and numpy arrays; its strings become bytes.

    Raises:
        SecateurError: the pickle is damaged, or asks for anything but plain values and arrays.
    """
    try:
        return _Unpickler(io.BytesIO(raw.data), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise SecateurError(
            f"{raw.where} is refused: {error}, where only plain values and numpy arrays are "
            f"admitted; {REPLACE}."
        ) from error
    # A damaged pickle fails in as many ways as there are opcodes: all of them mean one thing.
    except Exception as error:
        raise SecateurError(
            f"{raw.where} ({len(raw.data):,} bytes) is not a whole pickle "
            f"({_brief(error)}): {REPLACE}."
        ) from error


def cifar_examples(raw: Raw, labels: str = "labels") -> Examples:
    """Examples of one CIFAR batch file.

    A row of ``data`` is 1024 red, 1024 green and 1024 blue values, each plane row by row.

    Args:
        labels: key of the labels: ``"labels"`` (CIFAR-10), ``"fine_labels"`` (CIFAR-100).

    Returns:
        images uint8 ``(n, 32, 32, 3)``, labels int32 ``(n,)``.
    """
    batch = unpickle(raw)
    if not isinstance(batch, dict) or b"data" not in batch or labels.encode() not in batch:
        found = sorted(map(str, batch)) if isinstance(batch, dict) else type(batch).__name__
        raise SecateurError(
            f"{raw.where} is not a CIFAR batch: it holds {found}, expected a dictionary with data "
            f"and {labels}; {REPLACE}."
        )
    data, classes = batch[b"data"], batch[labels.encode()]
    if not (
        isinstance(data, np.ndarray)
        and data.dtype == np.uint8
        and data.ndim == 2
        and data.shape[1] == 3072
        and isinstance(classes, list)
        and len(classes) == len(data)
        and all(isinstance(label, int) for label in classes)
    ):
        shape = (
            f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        )
        raise SecateurError(
            f"{raw.where} holds data {shape}, expected uint8 (n, 3072) with a list of n integer "
            f"{labels}; {REPLACE}."
        )
    images = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Examples(np.ascontiguousarray(images), np.asarray(classes, np.int32))


def read_cifar(path: Path, names: Sequence[str], labels: str = "labels") -> Examples:
    """Examples of the batch files ``names``, one after another.

    Args:
        path: the folder that the archive unpacks to, or the archive (``cifar-10-python.tar.gz``).
        names: inside the archive with their folder, ``"cifar-10-batches-py/data_batch_1"``; in
            the folder only the last part counts.
    """
    if path.is_dir():
        raws = [read_file(path / name.split("/")[-1]) for name in names]
    else:
        held = read_tar(path, names)
        raws = [held[name] for name in names]
    return concatenate([cifar_examples(raw, labels) for raw in raws])


def concatenate(parts: Sequence[Examples]) -> Examples:
    """All examples of ``parts``, one after another."""
    images = np.concatenate([part.images for part in parts])
    return Examples(images, np.concatenate([part.labels for part in parts]))


# --- SVHN -----------------------------------------------------------------------------------------


def svhn_examples(raw: Raw) -> Examples:
    """Examples of SVHN's cropped digits: MATLAB v5, X ``(32, 32, 3, n)`` and y ``(n, 1)``.

    The digit 0 is published as label 10 and becomes 0.

    Returns:
        images uint8 ``(n, 32, 32, 3)``, labels int32 ``(n,)``.
    """
    from scipy.io import loadmat  # slow to import, and only SVHN needs it

    try:
        held = loadmat(io.BytesIO(raw.data), variable_names=["X", "y"])
    # scipy's reader has no error of its own: a damaged file fails as almost anything.
    except Exception as error:
        raise SecateurError(
            f"{raw.where} ({len(raw.data):,} bytes) is not a whole MATLAB v5 file "
            f"({_brief(error)}): {REPLACE}."
        ) from error
    x, y = held.get("X"), held.get("y")
    if (
        x is None
        or y is None
        or x.dtype != np.uint8
        or x.ndim != 4
        or x.shape[:3] != (32, 32, 3)
        or y.size != x.shape[3]
    ):
        found = {name: f"{v.dtype} {v.shape}" for name, v in held.items() if name in ("X", "y")}
        raise SecateurError(
            f"{raw.where} holds {found or 'neither X nor y'}, expected X uint8 (32, 32, 3, n) and "
            f"y (n, 1); {REPLACE}."
        )
    images = np.ascontiguousarray(np.moveaxis(x, -1, 0))
    return Examples(images, (y.ravel() % 10).astype(np.int32))


def read_svhn(path: Path) -> Examples:
    """Examples of one of SVHN's ``.mat`` files of cropped digits."""
    return svhn_examples(read_file(path))
