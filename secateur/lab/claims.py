"""Claims: one owner a cell, so that several commands share one store without double work.

A claim is a file that exactly one process can create. It names its owner; its modification time is
the owner's heartbeat. Nobody ever has to remove one by hand: where the owner is gone (same machine)
or silent for two minutes (another machine), the next command takes the cell over.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path

from secateur.lab import owner
from secateur.lab.files import Fault, StoreError, fault_from_environment, write_all

SILENT = 120.0  # seconds without a heartbeat after which another machine's claim is void
BEAT = 20.0  # seconds between heartbeats


class Claims:
    """The claims of one process on the cells of a store.

    Args:
        store: the store's folder.
        beat: seconds between heartbeats.
        silent: seconds of silence after which a claim from another machine is void.
    """

    def __init__(
        self, store: Path, beat: float = BEAT, silent: float = SILENT, fault: Fault | None = None
    ) -> None:
        self.folder, self.partial = store / "claims", store / "partial"
        self.beat, self.silent = beat, silent
        self.fault = fault or fault_from_environment
        self.me = f"{owner.token()}-{os.urandom(4).hex()}"
        self.held: set[str] = set()
        self._stop = threading.Event()
        self._heart: threading.Thread | None = None

    def path(self, address: str) -> Path:
        """The claim's file."""
        return self.folder / f"{address}.json"

    def take(self, address: str) -> bool:
        """Whether the cell is now ours.

        Raises:
            StoreError: where the claim cannot be written.
        """
        try:
            if self._create(address) or (self._void(address) and self._take_over(address)):
                self.held.add(address)
                self._beat_from_now_on()
                return True
        except OSError as error:
            raise StoreError(
                f"cannot claim a cell in the store {self.folder.parent}: "
                f"{error.strerror or error}; make room or choose another --store, then give the "
                "same command again: it goes on from there"
            ) from error
        return False

    def release(self, address: str) -> None:
        """Gives the cell up, done or not."""
        self.held.discard(address)
        if self._owner(address) == self.me:  # not where a live machine thought us dead
            with contextlib.suppress(OSError):
                self.path(address).unlink()

    def sweep(self, finished: set[str]) -> None:
        """Removes void claims on finished cells: their owners died before they gave them up."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self.folder):
                address = name.partition(".")[0]
                if address in finished and self._void(address):
                    self.path(address).unlink(missing_ok=True)

    def close(self) -> None:
        """Gives everything up."""
        self._stop.set()
        for address in list(self.held):
            self.release(address)
        if self._heart is not None:
            self._heart.join(timeout=5)
            self._heart = None

    def holder(self, address: str) -> str:
        """Who holds it, for messages: ``process 4711 on argon``."""
        try:
            told = json.loads(self.path(address).read_bytes())
            return f"process {told['pid']} on {told['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another command"

    def _create(self, address: str) -> bool:
        """Exclusive, and whole: written beside, then given its name by a hard link."""
        partial = self._write(address)
        try:
            self.fault("claim.link")
            os.link(partial, self.path(address))
        except FileExistsError:
            return False
        except OSError:
            return self._create_without_links(address)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
        self.fault("claim.linked")
        return True

    def _create_without_links(self, address: str) -> bool:
        """For file systems without hard links: created first, filled at once."""
        try:
            with open(self.path(address), "xb") as file:
                file.write(self._told())
        except FileExistsError:
            return False
        return True

    def _void(self, address: str) -> bool:
        """Whether the present owner is gone."""
        there = owner.alive(self._owner(address) or "")
        return not there if there is not None else self._age(address) > self.silent

    def _take_over(self, address: str) -> bool:
        """Replaces a void claim; one at a time, so that nobody replaces a successor's claim."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / "takeover.lock", timeout=10)
        try:
            lock.acquire()
        except (Timeout, NotImplementedError):
            return False
        try:
            if not self.path(address).exists():  # given up in the meantime
                return self._create(address)
            if not self._void(address):
                return False
            partial = self._write(address)
            self.fault("claim.replace")
            os.replace(partial, self.path(address))
            return True
        finally:
            lock.release()

    def _write(self, address: str) -> Path:
        partial = self.partial / f"{owner.token()}-claim-{address[:16]}-{os.urandom(3).hex()}"
        try:
            write_all(partial, self._told(), "claim", self.fault, flush=False)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        return partial

    def _told(self) -> bytes:
        told = {
            "owner": self.me,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        return (json.dumps(told) + "\n").encode()

    def _owner(self, address: str) -> str | None:
        try:
            return str(json.loads(self.path(address).read_bytes())["owner"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _age(self, address: str) -> float:
        """Seconds since the last heartbeat by the file system's own clock, not by ours.

        A claim that is gone is void at once.
        """
        probe = self.partial / f"{self.me}-clock"
        try:
            probe.touch()
            now = probe.stat().st_mtime
            return now - self.path(address).stat().st_mtime
        except FileNotFoundError:
            return float("inf")
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()

    def _beat_from_now_on(self) -> None:
        if self._heart is None:
            self._heart = threading.Thread(target=self._beats, name="claims", daemon=True)
            self._heart.start()

    def _beats(self) -> None:
        while not self._stop.wait(self.beat):
            for address in list(self.held):
                with contextlib.suppress(OSError):
                    os.utime(self.path(address))
