"""How the lab writes: beside, flushed, renamed. Whoever looks sees the whole file or none.

Every step passes a named point, so that a test can kill the process, or fill the disk, right there.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from secateur.core.errors import SecateurError

Fault: TypeAlias = Callable[[str], None]


class StoreError(SecateurError):
    """The store cannot be written (full disk, no permission); what it holds is unharmed."""


_counts: dict[str, int] = {}


def fault_from_environment(point: str) -> None:
    """Kills this process (SIGKILL) at the n-th passing of a point: SECATEUR_FAULT="cell.rename:3".

    A star counts every point: "*:17". For tests; nothing happens where the variable is not set.
    """
    wanted = os.environ.get("SECATEUR_FAULT")
    if not wanted:
        return
    name, _, number = wanted.rpartition(":")
    for counted in (point, "*"):
        _counts[counted] = _counts.get(counted, 0) + 1
        if counted == name and _counts[counted] == int(number):
            os.kill(os.getpid(), signal.SIGKILL)


def write_all(path: Path, data: bytes, kind: str, fault: Fault, flush: bool = True) -> None:
    """Writes a new file and flushes it to the disk; passes `kind`.write and `kind`.flush.

    Args:
        flush: False for what need not outlive a power cut.

    Raises:
        OSError: whatever the system says (no space left, permission denied).
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        view, half = memoryview(data), len(data) // 2
        done = 0
        # In two halves, so that the point lies inside the write: a kill leaves half a file.
        for end in (half, len(data)):
            while done < end:
                done += os.write(descriptor, view[done:end])
            if end == half:
                fault(f"{kind}.write")
        fault(f"{kind}.flush")
        if flush:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Flushes a folder's list of names, so that a rename outlives a power cut."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems do not know fsync on folders
    finally:
        os.close(descriptor)


def publish(temporary: Path, final: Path, kind: str, fault: Fault) -> None:
    """Renames a finished file or folder to its name; passes `kind`.rename and `kind`.renamed."""
    fault(f"{kind}.rename")
    if temporary.is_dir():
        os.rename(temporary, final)  # refuses where a folder of that name has something in it
    else:
        os.replace(temporary, final)
    fault(f"{kind}.renamed")
    sync_folder(final.parent)
