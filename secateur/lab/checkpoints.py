"""Checkpoints of unfinished cells: one file a training, replaced whole, vouching for itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import secateur
from secateur.lab import owner
from secateur.lab.files import Fault, fault_from_environment, publish, write_all

if TYPE_CHECKING:
    import numpy as np


Warn: TypeAlias = Callable[[str], None]


class Publisher(Protocol):
    """Where a watch leaves checkpoints and finds them again."""

    def publish(
        self, address: str, number: int, arrays: Mapping[str, np.ndarray], note: dict[str, Any]
    ) -> str | None:
        """Keeps the state of training `number` of a cell; a sentence where that failed."""
        ...

    def load(
        self, address: str, number: int, warn: Warn, step: int | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The newest good state and its note (or that of `step`); warns of damaged ones."""
        ...


class Checkpoints:
    """Checkpoints in a folder of the store: for each training the last one and the one before.

    The one before serves where the last is damaged, and lets lanes that were killed between the
    writes of two of them go on from one common step.

    Args:
        store: the store's folder.
        fault: see `Store`.
    """

    def __init__(self, store: str | os.PathLike[str], fault: Fault | None = None) -> None:
        self.folder = Path(store) / "checkpoints"
        self.partial = Path(store) / "partial"
        self.fault = fault

    def paths(self, address: str, number: int) -> tuple[Path, Path]:
        """The files of training `number` of a cell: the last checkpoint and the one before."""
        stem = f"{address}.{number}" if number else address
        last = self.folder / f"{stem}.safetensors"
        return last, self.folder / f"{stem}.before.safetensors"

    def publish(
        self, address: str, number: int, arrays: Mapping[str, np.ndarray], note: dict[str, Any]
    ) -> str | None:
        """See Publisher. A full disk costs the checkpoint, not the run."""
        return self.put(address, number, packed(arrays, note))

    def put(self, address: str, number: int, data: bytes) -> str | None:
        """Keeps the bytes of a checkpoint; a sentence where that failed."""
        fault = self.fault or fault_from_environment
        partial = self.partial / f"{owner.token()}-checkpoint-{address[:16]}-{number}"
        last, before = self.paths(address, number)
        try:
            write_all(partial, data, "checkpoint", fault)
            with contextlib.suppress(FileNotFoundError):
                os.replace(last, before)
            publish(partial, last, "checkpoint", fault)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            return f"could not write a checkpoint in {self.folder}: {error.strerror or error}"
        return None

    def load(
        self, address: str, number: int, warn: Warn, step: int | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """See Publisher."""
        for path in self.paths(address, number):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                warn(f"the checkpoint {path} cannot be read ({error.strerror}) and is not used")
                continue
            found = opened(data)
            if isinstance(found, str):
                warn(f"the checkpoint {path} is not used: {found}")
            elif step is None or found[1].get("step") == step:
                return found
        return None

    def steps(self, address: str, number: int) -> list[int]:
        """The steps of the good checkpoints, the latest first."""
        found = []
        for path in self.paths(address, number):
            with contextlib.suppress(OSError):
                state = opened(path.read_bytes())
                if not isinstance(state, str):
                    found.append(int(state[1]["step"]))
        return found

    def remove(self, address: str) -> None:
        """The cell is done: its checkpoints go."""
        self.sweep({address})

    def sweep(self, finished: set[str]) -> None:
        """Removes the checkpoints of finished cells."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self.folder):
                if name.partition(".")[0] in finished:
                    (self.folder / name).unlink(missing_ok=True)


def packed(arrays: Mapping[str, np.ndarray], note: Mapping[str, Any]) -> bytes:
    """A checkpoint as bytes."""
    from secateur.lab.packing import pack

    return pack(arrays, {**note, "secateur": secateur.__version__})


def opened(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]] | str:
    """State and note of a checkpoint's bytes, or why they are of no use."""
    from secateur.lab.packing import unpack

    try:
        arrays, note = unpack(data)
    except ValueError as error:
        return str(error)
    if note.get("secateur") != secateur.__version__:
        return f"it was made by secateur {note.get('secateur')}"
    return arrays, note
