"""A quick index of the store in SQLite. It can always be made again from the folders.

Its loss never matters, and neither does its damage: every row carries the SHA-256 of its text, and
any trouble with the file only means that the folders themselves are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

_TABLE = "CREATE TABLE IF NOT EXISTS cells (folder TEXT PRIMARY KEY, sha256 TEXT, text TEXT)"


class Index:
    """folder -> text of its cell.json.

    Args:
        path: the file; made where it is missing.
        writable: False leaves the disk alone (a store that is only looked at).
    """

    def __init__(self, path: Path, writable: bool = True) -> None:
        self.path, self.writable = path, writable

    def put(self, rows: dict[str, str]) -> None:
        """Adds or replaces rows; says nothing where that fails."""
        with self._open() as base:
            if base is not None:
                digests = [(f, _sha(text), text) for f, text in rows.items()]
                base.executemany("INSERT OR REPLACE INTO cells VALUES (?, ?, ?)", digests)
                base.commit()

    def drop(self, folders: list[str]) -> None:
        """Takes rows away; says nothing where that fails."""
        with self._open() as base:
            if base is not None:
                base.executemany("DELETE FROM cells WHERE folder = ?", [(f,) for f in folders])
                base.commit()

    def rows(self) -> dict[str, str]:
        """What the index holds and can vouch for; empty where it cannot be read."""
        found: dict[str, str] = {}
        with self._open() as base:
            if base is not None:
                for folder, digest, text in base.execute("SELECT * FROM cells"):
                    if isinstance(text, str) and _sha(text) == digest:
                        found[str(folder)] = text
        return found

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection | None]:
        """A connection, or None; a file that is no SQLite file any more is thrown away."""
        if not self.writable and not self.path.is_file():
            yield None
            return
        base = None
        try:
            # No write-ahead log: it needs shared memory, which network file systems lack.
            base = sqlite3.connect(self.path, timeout=2.0)
            base.execute("PRAGMA synchronous = OFF")
            if self.writable:
                base.execute(_TABLE)
        except (sqlite3.Error, OSError) as error:
            _close(base)
            base = None
            self._forget(error)
        try:
            yield base
        except (sqlite3.Error, OSError, UnicodeError) as error:
            _close(base)
            self._forget(error)
        finally:
            _close(base)

    def _forget(self, error: Exception) -> None:
        busy = isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
        if self.writable and isinstance(error, sqlite3.DatabaseError) and not busy:
            with contextlib.suppress(OSError):
                self.path.unlink()


def _close(base: sqlite3.Connection | None) -> None:
    if base is not None:
        with contextlib.suppress(sqlite3.Error):
            base.close()


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
