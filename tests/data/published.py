"""Small files in the publishers' own formats, written from their descriptions."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from secateur.data import Examples
from secateur.data.fetch import Download


def idx(array: np.ndarray) -> bytes:
    """An idx file of unsigned bytes."""
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


def packed(data: bytes) -> bytes:
    return gzip.compress(data, 6, mtime=0)


def python2_pickle(value: Any) -> bytes:
    """A pickle of protocol 2 as Python 2 with an old numpy wrote it: str as BINSTRING opcodes."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: Any) -> bytes:
    if isinstance(value, bytes):
        if len(value) < 256:
            return b"U" + bytes([len(value)]) + value
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, dict):
        pairs = b"".join(_python2(k) + _python2(v) for k, v in value.items())
        return b"}(" + pairs + b"u"
    assert isinstance(value, np.ndarray)
    assert value.dtype == np.uint8
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    unset = b"J" + struct.pack("<i", -1)
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN" + unset + unset + b"K\x00tb"
    shape = b"(" + b"".join(map(_python2, value.shape)) + b"t"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + _python2(value.tobytes()) + b"tb"


def cifar_batch(images: np.ndarray, labels: np.ndarray, key: bytes = b"labels") -> bytes:
    """A CIFAR batch of images (n, 32, 32, 3): rows of three planes, red, green, blue."""
    rows = np.stack([images[..., c].reshape(len(images), 1024) for c in range(3)], 1)
    names = [b"image_%d.png" % i for i in range(len(images))]
    return python2_pickle(
        {
            b"batch_label": b"training batch 1 of 5",
            key: [int(label) for label in labels],
            b"data": rows.reshape(len(images), 3072),
            b"filenames": names,
        }
    )


def tar_gz(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def mat(images: np.ndarray, labels: np.ndarray) -> bytes:
    """An SVHN file: X (32, 32, 3, n), y (n, 1) with the digit 0 as 10."""
    from scipy.io import savemat

    out = io.BytesIO()
    digits = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
    savemat(out, {"X": np.moveaxis(images, 0, -1), "y": digits}, do_compression=True)
    return out.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def random_examples(n: int, shape: tuple[int, ...], seed: int, classes: int = 10) -> Examples:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    return Examples(images, rng.integers(0, classes, n).astype(np.int32))


@dataclasses.dataclass(frozen=True)
class Small:
    """A data set of the registry with few examples: its files, and what must be read from them."""

    train: Examples
    test: Examples
    files: dict[str, bytes]  # as published, uncompressed
    offered: dict[str, bytes]  # as downloaded


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def offer(name: str, data: bytes, *mirrors: str) -> Download:
    return Download(name, len(data), sha256(data), mirrors)
