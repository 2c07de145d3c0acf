"""Checkpoints of unfinished cells: one file a training, replaced whole, vouching for itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import secateur
from secateur.lab import owner
from secateur.lab.files import Fault, fault_from_environment, publish, write_all

if TYPE_CHECKING:
    import numpy as np


class Publisher(Protocol):
    """Where a watch leaves checkpoints and finds them again."""

    def publish(
        self, address: str, number: int, arrays: Mapping[str, np.ndarray], note: dict[str, Any]
    ) -> str | None:
        """Keeps the state of training `number` of a cell; a sentence where that failed."""
        ...

    def load(
        self, address: str, number: int
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]] | str | None:
        """State and note; a sentence where there was a damaged one; None where there is none."""
        ...


class Checkpoints:
    """Checkpoints in a folder of the store; plain strings inside, so that it travels to workers.

    Args:
        store: the store's folder.
    """

    def __init__(self, store: str | os.PathLike[str], fault: Fault | None = None) -> None:
        self.folder = Path(store) / "checkpoints"
        self.partial = Path(store) / "partial"
        self.fault = fault

    def path(self, address: str, number: int) -> Path:
        """The file of training `number` of a cell."""
        return self.folder / (
            f"{address}.{number}.safetensors" if number else f"{address}.safetensors"
        )

    def publish(
        self, address: str, number: int, arrays: Mapping[str, np.ndarray], note: dict[str, Any]
    ) -> str | None:
        """See Publisher. A full disk costs the checkpoint, not the run."""
        from secateur.lab.packing import pack

        return self.put(address, number, pack(arrays, {**note, "secateur": secateur.__version__}))

    def put(self, address: str, number: int, data: bytes) -> str | None:
        """Keeps the bytes of a checkpoint; a sentence where that failed."""
        fault = self.fault or fault_from_environment
        partial = self.partial / f"{owner.token()}-checkpoint-{address[:16]}-{number}"
        try:
            write_all(partial, data, "checkpoint", fault)
            publish(partial, self.path(address, number), "checkpoint", fault)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            return f"could not write a checkpoint in {self.folder}: {error.strerror or error}"
        return None

    def load(
        self, address: str, number: int
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]] | str | None:
        """See Publisher."""
        try:
            data = self.path(address, number).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"the checkpoint {self.path(address, number)} cannot be read: {error.strerror}"
        found = opened(data)
        if isinstance(found, str):
            return f"the checkpoint {self.path(address, number)} is set aside: {found}"
        return found

    def remove(self, address: str) -> None:
        """The cell is done: its checkpoints go."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self.folder):
                if name.startswith(f"{address}."):
                    (self.folder / name).unlink(missing_ok=True)


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
