"""Writing a file so that a reader finds the old one or the new one, never a part."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from secateur.core.errors import SecateurError
from secateur.lab import files


def publish(path: str | Path, content: bytes) -> Path:
    """Write `content` beside `path`, flush it, and rename it into place.

    Raises:
        SecateurError: where the folder cannot be written or the disk is full.
    """
    path = Path(path)
    waiting = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(3).hex()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_all(waiting, content, "page", files.fault_from_environment)
        files.publish(waiting, path, "page", files.fault_from_environment)
    except OSError as error:
        with contextlib.suppress(OSError):
            waiting.unlink()
        raise SecateurError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that can be written "
            "and has space."
        ) from error
    return path
