"""The store: one folder a cell, written whole or not at all, checked when it is read.

    <store>/store.json                          the format
            cells/<study>/<slug>-<16 hex>/      cell.json, arrays.safetensors, checksums.json
            checkpoints/<address>.safetensors   unfinished cells
            claims/<address>.json               who is computing what
            failures/<study>/<slug>-<16 hex>.txt  tracebacks
            damaged/                            what failed its checksums, kept for a look
            partial/                            being written; the dead's left-overs are removed
            index.sqlite                        only for speed

No daemon. Several commands may write, on a network file system too.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.core.errors import SecateurError
from secateur.lab import owner
from secateur.lab.cells import Cell, Result, canonical, not_finite, plain
from secateur.lab.files import (
    Fault,
    StoreError,
    fault_from_environment,
    publish,
    sync_folder,
    write_all,
)
from secateur.lab.index import Index

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1
FILES = ("cell.json", "arrays.safetensors")
_ROOMS = ("cells", "checkpoints", "claims", "failures", "damaged", "partial", "runs")
_DAY = 86_400.0


class Damaged(SecateurError):
    """A stored file is not what was written; the message names it."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} is damaged: {why}")
        self.path = path


@dataclass(frozen=True)
class Entry:
    """A finished cell as the store tells of it, without its arrays.

    Attributes:
        what: the identity that the address is the hash of (study, meaning, fields, seed, ...).
        made: versions, device, seconds, command line.
    """

    folder: Path
    address: str
    label: str
    what: dict[str, Any]
    needs: dict[str, str]
    values: dict[str, Any]
    checks: dict[str, bool]
    made: dict[str, Any]
    cost: float = 1.0

    @property
    def study(self) -> str:
        """The study it belongs to."""
        return str(self.what["study"])

    @property
    def fields(self) -> dict[str, Any]:
        """The study's fields that the cell depends on."""
        return dict(self.what["fields"])

    @property
    def seed(self) -> int:
        """The replicate."""
        return int(self.what["seed"])

    @property
    def place(self) -> dict[str, Any]:
        """Where it stands in the study."""
        return dict(self.what["place"])


class Store:
    """A folder of results.

    Args:
        path: the folder; made where it is missing and `create` holds.
        create: False only looks: nothing is made or changed.
        fault: called with the name of each step of a write (tests).

    Raises:
        SecateurError: where the path is a file, another program's folder, a store of a newer
            format, missing (`create=False`) or not writable.
    """

    def __init__(
        self, path: str | os.PathLike[str], create: bool = True, fault: Fault | None = None
    ) -> None:
        self.path = Path(path)
        self.fault: Fault = fault or fault_from_environment
        self.writable = create
        self._numbers = itertools.count()
        self._check(create)
        self.index = Index(self.path / "index.sqlite", writable=create)

    # -- cells ---------------------------------------------------------------------------------

    def folder(self, cell: Cell) -> Path:
        """Where the cell is, or would be."""
        return self.path / "cells" / cell.study / cell.slug

    def has(self, cell: Cell) -> bool:
        """Whether there is a finished result; its sums are checked when it is read."""
        return self.folder(cell).is_dir()

    def read(self, cell: Cell) -> Result:
        """The result of a cell.

        Raises:
            Damaged: where any file is missing or any bit of it changed.
        """
        folder = self.folder(cell)
        record, arrays = _read(folder)
        if canonical(record["what"]) != canonical(cell.identity):
            raise Damaged(folder / "cell.json", "it describes another cell")
        return Result(record["values"], arrays, record["checks"])

    def load(self, entry: Entry) -> Result:
        """The result of an entry, arrays included. Raises Damaged."""
        record, arrays = _read(entry.folder)
        return Result(record["values"], arrays, record["checks"])

    def write(self, cell: Cell, result: Result, made: Mapping[str, Any] | None = None) -> Path:
        """Keeps a result; the folder appears whole, or not at all.

        Where another writer was quicker, its result stays.

        Raises:
            StoreError: full disk, no permission.
            SecateurError: values or arrays that cannot be kept.
        """
        from secateur.lab.packing import pack

        if where := not_finite(plain(result.values)):
            raise SecateurError(f"{cell.study} {cell.label}: the value {where} is not finite")
        folder = self.folder(cell)
        text = _record(cell, result, made or {})
        contents = {"cell.json": text.encode(), "arrays.safetensors": pack(result.arrays)}
        contents["checksums.json"] = _checksums(contents)
        partial = self._partial()
        try:
            partial.mkdir()
            for name, data in contents.items():
                write_all(partial / name, data, "cell", self.fault)
            sync_folder(partial)
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._rename(partial, folder)
        except FileExistsError:
            return folder
        except OSError as error:
            raise self.unwritable(f"the result of {cell.study} {cell.label}", error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self.index.put({_row(folder): text})
        return folder

    def entries(self, study: str | None = None) -> list[Entry]:
        """The finished cells (of one study), sorted by folder; from the index where it is good.

        A folder whose cell.json is damaged is left out here; a run finds and replaces it.
        """
        rows, fresh, found = self.index.rows(), {}, []
        for folder in self._folders():
            key = _row(folder)
            text = rows.pop(key, None)
            if text is None:
                try:
                    text = _text(folder)
                except Damaged:
                    continue
                fresh[key] = text
            if study is None or folder.parent.name == study:
                found.append(_entry(folder, text))
        if self.writable and fresh:
            self.index.put(fresh)
        if self.writable and rows:  # rows without a folder
            self.index.drop(list(rows))
        return found

    def studies(self) -> list[str]:
        """The studies that have at least one finished cell."""
        return sorted({folder.parent.name for folder in self._folders()})

    def rebuild_index(self) -> int:
        """Makes the index again from the folders; the number of cells in it."""
        with contextlib.suppress(OSError):
            self.index.path.unlink()
        return len(self.entries())

    # -- what goes wrong -----------------------------------------------------------------------

    def set_aside(self, cell: Cell) -> Path:
        """Moves a damaged result to `damaged/`, so that it can be computed again."""
        folder = self.folder(cell)
        stamp = time.strftime("%Y%m%dT%H%M%S")
        aside = self.path / "damaged" / f"{folder.name}-{stamp}-{next(self._numbers)}"
        try:
            aside.parent.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another command was quicker
                os.rename(folder, aside)
        except OSError as error:
            raise self.unwritable(f"the damaged {folder}", error) from error
        self.index.drop([_row(folder)])
        return aside

    def keep_failure(self, cell: Cell, text: str) -> Path:
        """Keeps the traceback of a failed cell; the path to read it at."""
        path = self.path / "failures" / cell.study / f"{cell.slug}.txt"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as error:
            raise self.unwritable(f"the traceback of {cell.label}", error) from error
        return path

    def forget_failure(self, cell: Cell) -> None:
        """Removes the traceback of an earlier try."""
        with contextlib.suppress(OSError):
            (self.path / "failures" / cell.study / f"{cell.slug}.txt").unlink()

    def clean(self) -> None:
        """Removes what dead writers left half-written."""
        with contextlib.suppress(OSError):
            for partial in (self.path / "partial").iterdir():
                there = owner.alive(partial.name)
                with contextlib.suppress(OSError):
                    old = time.time() - partial.stat().st_mtime > _DAY
                    if there is False or (there is None and old):
                        if partial.is_dir():
                            shutil.rmtree(partial, ignore_errors=True)
                        else:
                            partial.unlink()

    def temporary(self) -> Path:
        """A new name in `partial/` that says who writes it."""
        return self._partial()

    def check_writable(self) -> None:
        """Raises StoreError unless a file can be written now."""
        probe = self._partial()
        try:
            write_all(probe, b"secateur", "probe", self.fault)
        except OSError as error:
            raise self.unwritable("anything", error) from error
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()

    # -- inside --------------------------------------------------------------------------------

    def _rename(self, partial: Path, folder: Path) -> None:
        try:
            publish(partial, folder, "cell", self.fault)
        except OSError:
            if folder.is_dir():  # ENOTEMPTY or EEXIST, as the file system has it
                raise FileExistsError(folder) from None
            raise

    def _partial(self) -> Path:
        return self.path / "partial" / f"{owner.token()}-{next(self._numbers)}"

    def _folders(self) -> list[Path]:
        found = []
        with contextlib.suppress(OSError):
            for study in (self.path / "cells").iterdir():
                with contextlib.suppress(NotADirectoryError):
                    found += [folder for folder in study.iterdir() if folder.is_dir()]
        return sorted(found)

    def unwritable(self, what: str, error: OSError) -> StoreError:
        return StoreError(
            f"cannot write {what} in the store {self.path}: {error.strerror or error}; make room "
            "or choose another --store, then give the same command again: it goes on from there"
        )

    def _check(self, create: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise SecateurError(f"the store {self.path} is a file: give a folder as --store")
        if not create:
            if not (self.path / "cells").is_dir():
                raise SecateurError(
                    f"there is no store at {self.path}: run a study first, or give its folder "
                    "as --store"
                )
            self._check_format()
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            theirs = [
                name
                for name in os.listdir(self.path)
                if not name.startswith((".", "index.sqlite")) and name not in _ROOMS
            ]
            if not self._check_format():
                ours = "store.json" in theirs and (self.path / "cells").is_dir()
                if theirs and theirs != ["store.json"] and not ours:
                    raise SecateurError(
                        f"the folder {self.path} holds other things ({sorted(theirs)[0]}) and is "
                        "no store: give a new or empty folder as --store"
                    )
                for room in _ROOMS:
                    (self.path / room).mkdir(exist_ok=True)
                partial = self._partial()
                write_all(partial, _format_text(FORMAT), "store", self.fault)
                publish(partial, self.path / "store.json", "store", self.fault)
            for room in _ROOMS:
                (self.path / room).mkdir(exist_ok=True)
        except OSError as error:
            raise self.unwritable("anything", error) from error

    def _check_format(self) -> bool:
        """Whether store.json says this format; raises for a newer one; damage counts as absence."""
        try:
            data = (self.path / "store.json").read_bytes()
            number = json.loads(data)["format"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if not isinstance(number, int) or data != _format_text(number):
            return False  # a flipped bit, not a newer format
        if number > FORMAT:
            raise SecateurError(
                f"the store {self.path} has format {number}, newer than this secateur's "
                f"{FORMAT}: upgrade secateur, or give another --store"
            )
        return True


def _format_text(number: int) -> bytes:
    """What store.json says; it vouches for itself."""
    digest = hashlib.sha256(f"secateur store, format {number}".encode()).hexdigest()
    return (json.dumps({"format": number, "sha256": digest}) + "\n").encode()


def _record(cell: Cell, result: Result, made: Mapping[str, Any]) -> str:
    """cell.json: one line a part, so that it can be read and compared by eye."""
    parts = {
        "format": FORMAT,
        "address": cell.address,
        "label": cell.label,
        "what": json.loads(canonical(cell.identity)),
        "needs": {role: need.address for role, need in cell.needs.items()},
        "cost": cell.cost,
        "values": plain(result.values),
        "checks": {name: bool(held) for name, held in result.checks.items()},
        "made": plain(made),
    }
    lines = (
        f" {json.dumps(name)}: {json.dumps(part, allow_nan=False, ensure_ascii=False)}"
        for name, part in parts.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _checksums(contents: Mapping[str, bytes]) -> bytes:
    sums = {name: hashlib.sha256(contents[name]).hexdigest() for name in FILES}
    return (json.dumps(sums, indent=1) + "\n").encode()


def _bytes(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise Damaged(folder / name, "it is missing") from None
    except OSError as error:
        raise Damaged(folder / name, f"it cannot be read ({error.strerror})") from error


def _text(folder: Path) -> str:
    """The checked text of cell.json."""
    data, sums = _bytes(folder, "cell.json"), _bytes(folder, "checksums.json")
    digest = hashlib.sha256(data).hexdigest()
    if f'"cell.json": "{digest}"'.encode() not in sums:
        raise Damaged(folder / "cell.json", "its checksum does not fit")
    return data.decode()


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """cell.json and the arrays, every byte of the folder's three files checked."""
    from secateur.lab.packing import unpack

    contents = {name: _bytes(folder, name) for name in FILES}
    sums = _bytes(folder, "checksums.json")
    if sums != _checksums(contents):
        raise Damaged(_culprit(folder, contents, sums), "its checksum does not fit")
    try:
        arrays, _ = unpack(contents["arrays.safetensors"])
    except ValueError as error:
        raise Damaged(folder / "arrays.safetensors", str(error)) from error
    record: dict[str, Any] = json.loads(contents["cell.json"])
    return record, arrays


def _culprit(folder: Path, contents: Mapping[str, bytes], sums: bytes) -> Path:
    """Which of the files is damaged, as far as can be told."""
    for name in FILES:
        digest = hashlib.sha256(contents[name]).hexdigest()
        if f'"{name}": "{digest}"'.encode() not in sums:
            return folder / name
    return folder / "checksums.json"


def _row(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _entry(folder: Path, text: str) -> Entry:
    record = json.loads(text)
    names = ("address", "label", "what", "needs", "values", "checks", "made", "cost")
    return Entry(folder, **{name: record[name] for name in names})
