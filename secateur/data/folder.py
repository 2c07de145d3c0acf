"""Folders of images: which images there are and which class each has, from a directory or a zip.

Two layouts are understood. The usual one of ImageNet: ``train/CLASS/...`` and ``val/CLASS/...``
(or ``test/CLASS/...``), images at any depth below the class. Tiny-ImageNet's own:
``train/WNID/images/*.JPEG``, ``val/images/*.JPEG`` with the classes in ``val/val_annotations.txt``,
and ``wnids.txt``. The classes are the folders of ``train`` in the order of their names, as
torchvision and all published pruning codes number them; ``words.txt`` (``WNID<tab>words``), where
there is one, gives them names. `secateur.data.decode` makes pixels of what is listed here.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from secateur.core.errors import SecateurError

ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".webp", ".gif", ".tif", ".tiff")


class Source(Protocol):
    """Files by their path below the root, with slashes."""

    where: Path

    def files(self) -> Iterable[tuple[str, int]]:
        """(path, bytes) of every file, in any order."""

    def read(self, path: str) -> bytes:
        """The bytes of one file; may be called from several threads."""


class Directory:
    """A directory as a source."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def files(self) -> Iterable[tuple[str, int]]:
        pending = [(self.where, "")]
        while pending:
            directory, prefix = pending.pop()
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_dir():
                        pending.append((directory / entry.name, f"{prefix}{entry.name}/"))
                    else:
                        yield prefix + entry.name, _size(entry)

    def read(self, path: str) -> bytes:
        return (self.where / path).read_bytes()


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link to nowhere: named as damaged when it is read
        return -1


class Archive:
    """The folder ``inside`` of a zip file as a source; nothing is extracted to disk."""

    def __init__(self, where: Path, inside: str) -> None:
        self.where, self._inside = where, f"{inside}/"
        try:
            self._zip = zipfile.ZipFile(where)
        except (zipfile.BadZipFile, OSError) as error:
            raise SecateurError(
                f"{where} is not a whole zip file ({error}): delete it and get it again."
            ) from error
        self._lock = threading.Lock()  # a ZipFile has one position in its file

    def files(self) -> Iterable[tuple[str, int]]:
        for member in self._zip.infolist():
            if member.filename.startswith(self._inside) and not member.is_dir():
                yield member.filename.removeprefix(self._inside), member.file_size

    def read(self, path: str) -> bytes:
        with self._lock:
            return self._zip.read(self._inside + path)


@dataclass(frozen=True)
class Listing:
    """The images of a folder, training ones first, each part by class and name.

    Attributes:
        files: paths below the root.
        labels: int32 ``(n,)``; classes are numbered in the order of their folders' names.
        sizes: int64 ``(n,)``, bytes of each file.
        train: how many of them are training images.
        classes: names; those of ``words.txt`` where there is one.
        ignored: files in class folders that do not end like an image.
    """

    files: tuple[str, ...]
    labels: np.ndarray
    sizes: np.ndarray
    train: int
    classes: tuple[str, ...]
    ignored: int

    @cached_property
    def names(self) -> str:
        """SHA-256 over all paths and labels: which images there are, whatever they hold."""
        return self._digest(False, 0, len(self.files))

    def stamp(self, start: int, stop: int) -> str:
        """SHA-256 over paths, labels and sizes of some of the files: notices a file replaced."""
        return self._digest(True, start, stop)

    def _digest(self, sizes: bool, start: int, stop: int) -> str:
        digest = hashlib.sha256()
        for k in range(start, stop):
            size = f" {self.sizes[k]}" if sizes else ""
            digest.update(f"{self.files[k]} {self.labels[k]}{size}\n".encode())
        return digest.hexdigest()


def listing(source: Source, test: str | None = None) -> Listing:
    """What a folder holds.

    Args:
        test: name of the folder with the test images; by default ``val``, or ``test`` where there
            is no ``val``. All published pruning codes test on ImageNet's ``val``, whose test images
            have no labels.

    Raises:
        SecateurError: the folder has neither layout, a class has no training image, or a test
            image has a class that training has not.
    """
    if isinstance(source, Directory) and not source.where.is_dir():
        raise SecateurError(f"{source.where} is not a folder; name one that holds train/CLASS/.")
    found: dict[str, list[tuple[str, int]]] = {}
    ignored = 0
    for path, size in _all(source):
        head = path.partition("/")[0]
        base = path.rpartition("/")[2]
        # Files that begin with a dot are what other systems leave behind (._x.JPEG, .DS_Store).
        if not base.lower().endswith(ENDINGS) or base.startswith("."):
            ignored += "/" in path
            continue
        found.setdefault(head, []).append((path, size))
    if test is None:
        test = "val" if "val" in found else "test"
    for part in ("train", test):
        if part not in found:
            raise SecateurError(
                f"{source.where} has no images in {part}/, expected train/CLASS/ and {test}/CLASS/ "
                f"with files that end in .jpeg, .jpg or .png; name the folder that holds train/."
            )
    # A file directly in train/ has no class: only what lies deeper counts.
    classes = sorted({path.split("/")[1] for path, _ in found["train"] if path.count("/") >= 2})
    if not classes:
        raise SecateurError(
            f"{source.where} has images in train/ and no class folders, expected train/CLASS/."
        )
    number = {name: k for k, name in enumerate(classes)}
    train = [(number[p.split("/")[1]], p, s) for p, s in found["train"] if p.count("/") >= 2]
    annotations = f"{test}/val_annotations.txt"
    annotated = _has(source, annotations)
    if annotated:
        tested = _annotated(source, annotations, found[test], number, test)
    else:
        tested = _by_folder(source, found[test], number, test)
    ordered = [*sorted(train), *sorted(tested)]
    return Listing(
        files=tuple(path for _, path, _ in ordered),
        labels=np.array([label for label, _, _ in ordered], np.int32),
        sizes=np.array([size for _, _, size in ordered], np.int64),
        train=len(train),
        classes=_words(source, classes),
        ignored=ignored - annotated,
    )


def _all(source: Source) -> list[tuple[str, int]]:
    try:
        return list(source.files())
    except OSError as error:
        raise SecateurError(
            f"cannot list {error.filename or source.where}: {error.strerror or error}; check that "
            f"you may read it."
        ) from error


Found = list[tuple[int, str, int]]  # (label, path, bytes)


def _by_folder(
    source: Source, files: Sequence[tuple[str, int]], number: dict[str, int], test: str
) -> Found:
    found = []
    for path, size in files:
        parts = PurePosixPath(path).parts
        if len(parts) < 3:
            raise SecateurError(
                f"{source.where}/{test} holds {parts[-1]} and other images without class folders; "
                f"sort them into {test}/CLASS/, with the class names of train/."
            )
        if parts[1] not in number:
            raise SecateurError(
                f"{source.where}/{test} has a class {parts[1]} that train/ has not; expected the "
                f"same class folders in both."
            )
        found.append((number[parts[1]], path, size))
    return found


def _annotated(
    source: Source,
    annotations: str,
    files: Sequence[tuple[str, int]],
    number: dict[str, int],
    test: str,
) -> Found:
    """Tiny-ImageNet's test images: a line is file, class, then a box that is not used."""
    label_of: dict[str, int] = {}
    for line in source.read(annotations).decode().splitlines():
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in number:
            raise SecateurError(
                f"{source.where}/{annotations} gives {name} the class {wnid or '(none)'}, which "
                f"train/ has not; unpack the archive again."
            )
        label_of[name] = number[wnid]
    found = []
    for path, size in files:
        name = path.rpartition("/")[2]
        if name not in label_of:
            raise SecateurError(
                f"{source.where}/{annotations} has no line for {test}/images/{name}; unpack the "
                f"archive again."
            )
        found.append((label_of[name], path, size))
    return found


def _has(source: Source, path: str) -> bool:
    try:
        source.read(path)
    except (OSError, KeyError):
        return False
    return True


def _words(source: Source, classes: Sequence[str]) -> tuple[str, ...]:
    """Names of the classes: the first of a WNID's words; two that are alike keep their WNID."""
    if not _has(source, "words.txt"):
        return tuple(classes)
    lines = source.read("words.txt").decode().splitlines()
    words = {line.partition("\t")[0]: line.partition("\t")[2].split(",")[0] for line in lines}
    names = [words.get(wnid, "").strip() or wnid for wnid in classes]
    return tuple(
        name if names.count(name) == 1 else f"{name} ({wnid})" for name, wnid in zip(names, classes)
    )
