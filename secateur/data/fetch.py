"""Downloads that survive a bad line: mirrors in turn, continued where they broke off, checked.

pooch is not used because it starts a broken download from the beginning, and CIFAR-10 is 170 MB.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from secateur.core.errors import SecateurError

TRIES = 5  # how often one mirror may break off, as long as each try brings something
TIMEOUT = (10, 30)  # seconds to connect, seconds without a byte
CHUNK = 1 << 16


@dataclass(frozen=True)
class Download:
    """A file as its publisher offers it.

    Attributes:
        name: file name; its addresses are ``mirror + name``.
        bytes: size, for the progress bar and the list of data sets; the hash alone decides.
        sha256: of the file as offered, compressed.
        mirrors: beginnings of addresses, tried in this order.
    """

    name: str
    bytes: int
    sha256: str
    mirrors: tuple[str, ...]


class Unreachable(Exception):
    """No mirror gave the file; the text says for each host why not."""


class _Broken(Exception):
    """This mirror did not give the file this time."""


def fetch(download: Download, folder: Path) -> Path:
    """Download a file into ``folder``, unless it is there, and give its path.

    What arrives goes to ``NAME.part``, which the next call (or the next mirror) continues with a
    Range request; only a file with the right SHA-256 gets its name, by an atomic rename. Two
    processes that want the same file wait for each other.

    Raises:
        Unreachable: no mirror gave the file with the right hash.
        SecateurError: the folder cannot be written.
    """
    from filelock import FileLock

    target = folder / download.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".download.lock"):
            if not target.exists():
                part = target.with_name(target.name + ".part")
                _from_mirrors(download, part)
                os.replace(part, target)
    except OSError as error:
        raise SecateurError(
            f"cannot write {download.name} to {folder}: {error.strerror or error}; name a "
            f"directory with room for {download.bytes / 1e6:.0f} MB with --data-dir."
        ) from error
    return target


def _from_mirrors(download: Download, part: Path) -> None:
    reasons = []
    for mirror in download.mirrors:
        url = mirror + download.name
        host = urlsplit(url).netloc
        try:
            with _progress(f"{download.name} from {host}", download.bytes) as show:
                _from(url, download, part, show)
            return
        except _Broken as reason:
            reasons.append(f"{host} {reason}")
    raise Unreachable("; ".join(reasons))


def _from(url: str, download: Download, part: Path, show: Callable[[int], None]) -> None:
    """Bring ``part`` to its end from one address, or raise _Broken."""
    for _ in range(TRIES):
        had = _size(part)
        if had < download.bytes:
            try:
                _stream(url, part, had, show)
            except _Broken:
                if 0 < _size(part) <= had or _size(part) == had == 0:
                    raise
                continue
        found = _sha256(part)
        if found == download.sha256:
            return
        part.unlink()
        if had == 0:
            raise _Broken(
                f"sent another file (SHA-256 {found[:12]}..., not {download.sha256[:12]}...)"
            )
        # What was there before was wrong, or from another file: once more from the beginning.
    raise _Broken(f"broke off {TRIES} times")


def _stream(url: str, part: Path, had: int, show: Callable[[int], None]) -> None:
    """Append to ``part`` what follows its first ``had`` bytes, or start again if refused."""
    import requests
    from urllib3.exceptions import HTTPError

    # Without "identity" a server may send a .gz file as a compressed page, to be unpacked here.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={had}-"} if had else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 416:  # nothing follows: what is there is too long
                part.unlink(missing_ok=True)
                raise _Broken("has no such range")
            if answer.status_code not in (200, 206):
                raise _Broken(f"answers {answer.status_code} {answer.reason}")
            resumed = answer.status_code == 206 and answer.headers.get(
                "Content-Range", ""
            ).startswith(f"bytes {had}-")
            if answer.status_code == 206 and not resumed:
                raise _Broken("sent another range than the one asked for")
            promised = answer.headers.get("Content-Length")
            got = 0
            start = had if resumed else 0
            with part.open("ab" if resumed else "wb") as file:
                while block := answer.raw.read(CHUNK, decode_content=False):
                    file.write(block)
                    got += len(block)
                    show(start + got)
            if promised is not None and got < int(promised):
                raise _Broken(f"broke off after {got:,} of {int(promised):,} bytes")
    except requests.Timeout as error:
        raise _Broken("does not answer") from error
    except requests.ConnectionError as error:
        raise _Broken("cannot be reached") from error
    except (requests.RequestException, HTTPError) as error:
        raise _Broken(f"broke off ({type(error).__name__})") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr in a terminal, else one line; gives the function to tell the bytes here."""
    if not sys.stderr.isatty():
        print(f"Downloading {what} ({total / 1e6:.1f} MB)", file=sys.stderr, flush=True)
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda n: progress.update(task, completed=n)
