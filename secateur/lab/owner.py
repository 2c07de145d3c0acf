"""Who holds something in a store: a process on a machine, and whether it is still there."""

from __future__ import annotations

import hashlib
import os
import socket
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def _machine() -> str:
    """Eight hex digits: machine, boot, pid namespace (containers number processes anew)."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    except OSError:
        parts.append("")
    try:
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        parts.append("")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot, so that a reused pid is told apart.

    "0" where the system does not tell (macOS).
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "0"
    return text.rpartition(")")[2].split()[19]


def token() -> str:
    """This process: ``machine-pid-start``."""
    pid = os.getpid()
    return f"{_machine()}-{pid}-{_started(pid)}"


def alive(of: str) -> bool | None:
    """Whether the process of a token still runs; None where it is on another machine."""
    try:
        machine, pid_text, started = of.split("-")[:3]
        pid = int(pid_text)
    except ValueError:
        return None
    if machine != _machine():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs, as another user
    if _zombie(pid):
        return False
    return started == "0" or _started(pid) == started


def _zombie(pid: int) -> bool:
    """Killed but not yet waited for by its parent: it holds nothing any more."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] in ("Z", "X")
