"""Writing a file so that a reader finds the old one or the new one, never a part."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from secateur.core.errors import SecateurError


def publish(path: str | Path, content: bytes) -> Path:
    """Write `content` beside `path`, flush it, and rename it into place.

    Raises:
        SecateurError: where the folder cannot be written or the disk is full.
    """
    path = Path(path)
    waiting = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, waiting = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp lets nobody else read: give what a plain open() would have given
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(waiting, 0o666 & ~mask)
        os.replace(waiting, path)
    except OSError as error:
        if waiting and os.path.exists(waiting):
            os.unlink(waiting)
        raise SecateurError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that can be written "
            "and has space."
        ) from error
    return path
