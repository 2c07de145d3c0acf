"""Folders of images, decoded once into a memory-mapped file of bytes.

What is stored of an image: its pixels as RGB (grey ones three times the same, CMYK converted, a
rotation in EXIF ignored, as torchvision's ImageFolder does), the shorter side resized to
`Rule.shorter` with Pillow's antialiased bilinear filter, the longer one in proportion (rounded
down), then the central square of `Rule.size`. This is the test-time transform of the published
pipelines. A training crop is therefore cut from this square and not from the published image,
which may be wider: what lies outside the central square is never seen.

The work goes part by part (32 MB each). The pixels of a part are written and flushed, then a line
of the journal says so with their SHA-256. Killed at any moment, the next run checks what the
journal says, keeps it, and goes on. ``cache.json``, renamed into place at the end, says that all is
there. One process decodes; others that want the same images wait for it (filelock).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur.core.errors import SecateurError
from secateur.data.examples import Dataset, Examples
from secateur.data.folder import Directory, Listing, Source, listing
from secateur.data.stored import Stored

PART = 2**25  # bytes of pixels decoded between two lines of the journal
VERSION = 1  # raised when the same files would give other pixels
DAMAGED = ("refuse", "leave-out")


@dataclass(frozen=True)
class Rule:
    """What is stored of an image: the central ``size`` x ``size`` pixels.

    Attributes:
        size: height and width in pixels.
        shorter: the shorter side is resized to this before the cut; at least ``size``.
    """

    size: int
    shorter: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.shorter:
            raise SecateurError(
                f"the stored size is {self.size} and the shorter side is resized to "
                f"{self.shorter}; expected 1 <= size <= shorter."
            )

    def __str__(self) -> str:
        return (
            f"RGB, shorter side {self.shorter} (bilinear), central {self.size} x {self.size}, "
            f"version {VERSION}"
        )


def read_folder(
    path: str | os.PathLike[str],
    size: int,
    shorter: int | None = None,
    *,
    name: str | None = None,
    test: str | None = None,
    damaged: str = "refuse",
    cache: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Your own folder of images, ``train/CLASS/*.jpeg`` and ``val/CLASS/*.jpeg``, as a data set.

    Decoded at the first call; the pixels stay in a file of their own and are read from there.

    Args:
        size, shorter: what is stored of an image (`Rule`); ``shorter`` is ``size`` by default.
        name: of the data set; the folder's name by default.
        test: the folder with the test images; ``val`` by default, else ``test``.
        damaged: ``"refuse"`` images that cannot be read with one sentence that names them, or
            ``"leave-out"`` these images.
        cache: directory for the decoded pixels; by default the per-user cache.

    Returns:
        images uint8 ``(n, size, size, 3)``, a `Stored`; mean and std are those of the training
        images as stored.

    Raises:
        SecateurError: Pillow is not installed, the folder has another layout, images are damaged,
            or the cache cannot be written.
    """
    from secateur.data import registry

    where = Path(path).expanduser()
    base = registry.cache() if cache is None else Path(cache).expanduser()
    rule = Rule(size, size if shorter is None else shorter)
    name = name or where.resolve().name
    held = decoded(Directory(where), rule, [base], base, name, test, damaged)
    return Dataset(
        name=name,
        train=held.train,
        test=held.test,
        classes=held.classes,
        mean=held.mean,
        std=held.std,
        sha256=held.sha256,
        source=str(where),
        citation="",
        licence="",
        title=name,
    )


@dataclass(frozen=True)
class Decoded:
    """What a cache holds.

    Attributes:
        mean, std: of each channel of the training images as stored, on the [0, 1] scale.
        sha256: over rule, pixels, labels and what was left out: equal for equal data.
        damaged: (file, reason) of what was left out.
    """

    train: Examples
    test: Examples
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    damaged: tuple[tuple[str, str], ...]


def decoded(
    source: Source,
    rule: Rule,
    places: Sequence[Path],
    build: Path,
    name: str,
    test: str | None = None,
    damaged: str = "refuse",
) -> Decoded:
    """The images of ``source`` from the first of ``places`` that has them decoded.

    Else they are decoded into ``build``.

    Args:
        name: begins the name of the cache's directory.
        test, damaged: as of `read_folder`.
    """
    if damaged not in DAMAGED:
        raise SecateurError(f"damaged is {damaged!r}; expected one of {', '.join(DAMAGED)}.")
    found = listing(source, test)
    key = hashlib.sha256(f"{rule}\n{found.names}".encode()).hexdigest()[:12]
    folder = Path("decoded") / f"{name}-{rule.size}-{key}"
    for place in places:
        if (place / folder / "cache.json").is_file():
            return _Cache(source, found, rule, place / folder).open(damaged)
    cache = _Cache(source, found, rule, build / folder)
    try:
        cache.build(name, damaged)
    except OSError as error:
        raise SecateurError(
            f"cannot write decoded images to {build / folder}: {error.strerror or error}; name a "
            f"directory with {cache.bytes / 1e9:.1f} GB of room."
        ) from error
    return cache.open(damaged)


class _Cache:
    """One directory: ``images.u8``, ``journal.jsonl``, ``cache.json``."""

    def __init__(self, source: Source, found: Listing, rule: Rule, folder: Path) -> None:
        self.source, self.listing, self.rule, self.folder = source, found, rule, folder
        self.shape = (len(found.files), rule.size, rule.size, 3)
        self.bytes = int(np.prod(self.shape))
        image = rule.size * rule.size * 3
        per, n, cut = max(1, PART // image), len(found.files), found.train
        # No part holds both training and test images, so that moments are sums over parts.
        starts = [*range(0, cut, per), *range(cut, n, per)]
        self.parts = [(a, min(a + per, cut if a < cut else n)) for a in starts]
        self.images = folder / "images.u8"

    # -- reading ---------------------------------------------------------------------------------

    def open(self, damaged: str) -> Decoded:
        summary = json.loads((self.folder / "cache.json").read_text())
        if summary["stamp"] != self.listing.stamp(0, len(self.listing.files)):
            raise SecateurError(
                f"files in {self.source.where} have changed since they were decoded: delete "
                f"{self.folder} to decode them again, or put the old files back."
            )
        if not self.images.is_file() or self.images.stat().st_size != self.bytes:
            raise SecateurError(
                f"{self.images} is not the {self.bytes:,} bytes that were decoded: delete "
                f"{self.folder} to decode them again."
            )
        bad = [(file, reason) for file, reason in summary["damaged"]]
        if bad and damaged == "refuse":
            raise self._refusal(bad)
        left_out = {file for file, _ in bad}
        kept = np.array([file not in left_out for file in self.listing.files])
        cut = self.listing.train
        parts = []
        for rows in (np.flatnonzero(kept[:cut]), cut + np.flatnonzero(kept[cut:])):
            images = Stored(self.images, self.shape, rows)
            labels = self.listing.labels[rows]
            labels.flags.writeable = False
            parts.append(Examples(images, labels))
        return Decoded(
            train=parts[0],
            test=parts[1],
            classes=self.listing.classes,
            mean=tuple(summary["mean"]),
            std=tuple(summary["std"]),
            sha256=summary["sha256"],
            damaged=tuple(bad),
        )

    def _refusal(self, bad: Sequence[tuple[str, str]]) -> SecateurError:
        named = ", ".join(f"{file} ({reason})" for file, reason in bad[:5])
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        return SecateurError(
            f"{len(bad):,} of the {len(self.listing.files):,} images in {self.source.where} cannot "
            f"be read: {named}{more}; replace them, or leave them out with damaged='leave-out'."
        )

    # -- building --------------------------------------------------------------------------------

    def build(self, name: str, damaged: str) -> None:
        """Decodes what is not there yet, unless another process has done so meanwhile."""
        _pillow()
        self.folder.mkdir(parents=True, exist_ok=True)
        with _alone(self.folder):
            if (self.folder / "cache.json").is_file():
                return
            lines = self._sound()
            todo = [k for k in range(len(self.parts)) if k not in lines or lines[k]["damaged"]]
            self._room(todo)
            with self.images.open("r+b" if self.images.exists() else "w+b") as file:
                file.truncate(self.bytes)
            self._fill(todo, lines, name)
            bad = [(f, r) for k in range(len(self.parts)) for f, r in lines[k]["damaged"]]
            if bad and damaged == "refuse":
                raise self._refusal(bad)
            self._finish(lines, bad)

    def _room(self, todo: Sequence[int]) -> None:
        image = self.rule.size * self.rule.size * 3
        need = sum(self.parts[k][1] - self.parts[k][0] for k in todo) * image
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise SecateurError(
                f"decoded images need {need / 1e9:.1f} GB in {self.folder}, which has "
                f"{free / 1e9:.1f} GB free; name another directory with --data-dir."
            )

    def _sound(self) -> dict[int, dict[str, Any]]:
        """The lines of the journal whose files are the same and whose pixels are on the disk."""
        path = self.folder / "journal.jsonl"
        found: dict[int, dict[str, Any]] = {}
        if not path.exists() or not self.images.exists():
            return found
        for text in path.read_text(errors="replace").splitlines():
            try:
                line = json.loads(text)
                found[line["part"]] = line
            except (ValueError, KeyError, TypeError):
                continue  # the line that was being written when the run was killed
        with self.images.open("rb") as file:
            for k, line in list(found.items()):
                if not 0 <= k < len(self.parts) or not self._holds(file, k, line):
                    del found[k]
        return found

    def _holds(self, file: Any, k: int, line: dict[str, Any]) -> bool:
        start, stop = self.parts[k]
        if line.get("stamp") != self.listing.stamp(start, stop):
            return False
        image = self.rule.size * self.rule.size * 3
        file.seek(start * image)
        held = hashlib.sha256(file.read((stop - start) * image)).hexdigest()
        return bool(held == line.get("pixels"))

    def _fill(self, todo: Sequence[int], lines: dict[int, dict[str, Any]], name: str) -> None:
        image = self.rule.size * self.rule.size * 3
        total = len(self.listing.files)
        done = total - sum(self.parts[k][1] - self.parts[k][0] for k in todo)
        if not todo:
            return
        pool = ThreadPoolExecutor(_threads(), thread_name_prefix="secateur-decode")
        with (
            _progress(f"Decoding {name}", total) as show,
            self.images.open("r+b") as file,
            (self.folder / "journal.jsonl").open("ab") as journal,
            _quiet(),
        ):
            if journal.tell():
                journal.write(b"\n")  # ends a line that a kill cut off
            try:
                show(done)
                waiting = self._submit(pool, todo[0])
                for k, following in zip(todo, [*todo[1:], None]):
                    # The next part is decoded while this one is hashed and written.
                    ahead = [] if following is None else self._submit(pool, following)
                    start, stop = self.parts[k]
                    pixels, line = self._part(k, waiting)
                    file.seek(start * image)
                    file.write(pixels)
                    _flush(file)
                    journal.write((json.dumps(line) + "\n").encode())
                    _flush(journal)
                    lines[k] = line
                    done, waiting = done + stop - start, ahead
                    show(done)
            finally:
                pool.shutdown(cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, part: int) -> list[Future[Any]]:
        start, stop = self.parts[part]
        files = self.listing.files[start:stop]
        return [pool.submit(_decode, self.source, file, self.rule) for file in files]

    def _part(self, k: int, images: Sequence[Future[Any]]) -> tuple[memoryview, dict[str, Any]]:
        start, stop = self.parts[k]
        size = self.rule.size
        block = np.zeros((stop - start, size, size, 3), np.uint8)
        content, damaged = hashlib.sha256(), []
        for i, future in enumerate(images):
            digest, pixels, reason = future.result()
            content.update(digest)
            if pixels is None:
                damaged.append((self.listing.files[start + i], reason))
            else:
                block[i] = pixels
        levels = np.arange(256)
        counts = [np.bincount(block[..., c].ravel(), minlength=256) for c in range(3)]
        for c in counts:  # what is left out has no pixels, and is no black
            c[0] -= len(damaged) * size * size
        line = {
            "part": k,
            "stamp": self.listing.stamp(start, stop),
            "content": content.hexdigest(),
            "pixels": hashlib.sha256(block.data).hexdigest(),
            "damaged": damaged,
            "count": (stop - start - len(damaged)) * size * size,
            "sum": [int(c @ levels) for c in counts],
            "squares": [int(c @ levels**2) for c in counts],
        }
        return block.data, line

    def _finish(self, lines: dict[int, dict[str, Any]], bad: Sequence[tuple[str, str]]) -> None:
        import PIL

        ordered = [lines[k] for k in range(len(self.parts))]
        training = [line for line, (start, _) in zip(ordered, self.parts) if self._trains(start)]
        n = sum(line["count"] for line in training)
        if n == 0:
            raise SecateurError(f"no training image of {self.source.where} can be read.")
        mean = np.array([sum(line["sum"][c] for line in training) / n for c in range(3)])
        squares = np.array([sum(line["squares"][c] for line in training) / n for c in range(3)])
        std = np.sqrt(np.maximum(squares - mean**2, 0)) / 255
        whole = hashlib.sha256(f"{self.rule}\n".encode())
        for line in ordered:
            whole.update(line["pixels"].encode())
        whole.update(np.asarray(self.listing.labels, "<i4").tobytes())
        whole.update(f"{self.listing.train} {bad}".encode())
        summary = {
            "rule": str(self.rule),
            "images": len(self.listing.files),
            "train": self.listing.train,
            "stamp": self.listing.stamp(0, len(self.listing.files)),
            "sha256": whole.hexdigest(),
            "content": hashlib.sha256("".join(x["content"] for x in ordered).encode()).hexdigest(),
            "mean": (mean / 255).tolist(),
            # A constant channel becomes 0 where it is normalised, not NaN.
            "std": np.where(std > 1e-9, std, 1.0).tolist(),
            "damaged": list(bad),
            "ignored": self.listing.ignored,
            "source": str(self.source.where),
            "pillow": PIL.__version__,
        }
        part = self.folder / "cache.json.part"
        with part.open("w") as file:
            json.dump(summary, file, indent=1)
            _flush(file)
        os.replace(part, self.folder / "cache.json")

    def _trains(self, start: int) -> bool:
        return start < self.listing.train


def _decode(source: Source, file: str, rule: Rule) -> tuple[bytes, np.ndarray | None, str]:
    """SHA-256 of a file's bytes, and its pixels; or None and why not."""
    digest = b""
    try:
        data = source.read(file)
        digest = hashlib.sha256(data).digest()
        return digest, pixels(data, rule), ""
    # A damaged image fails in as many ways as there are formats: all of them mean one thing.
    except Exception as error:
        said = str(error).split("\n")[0].split(" <")[0].rstrip(".")
        return digest, None, said[:80] or type(error).__name__


def pixels(data: bytes, rule: Rule) -> np.ndarray:
    """The stored pixels of one image file: uint8 ``(size, size, 3)``, by `Rule`.

    Raises:
        Exception: of Pillow's many, where the bytes are no whole image.
    """
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image.load()  # all of it: a file that ends early fails here
        # Palettes with transparency go by way of RGBA, as Pillow advises.
        clear = image.mode == "P" and "transparency" in image.info
        rgb = (image.convert("RGBA") if clear else image).convert("RGB")
    width, height = rgb.size
    short = min(width, height)
    if short != rule.shorter:
        width, height = (
            rule.shorter if side == short else int(rule.shorter * side / short)
            for side in (width, height)
        )
        rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - rule.size) / 2), round((height - rule.size) / 2)
    box = (left, top, left + rule.size, top + rule.size)
    return np.asarray(rgb if box == (0, 0, width, height) else rgb.crop(box))


def _pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise SecateurError(
            "reading images needs Pillow: install it with pip install 'secateur[images]'."
        ) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process decodes into a folder; a killed one's lock is free at once."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another process that decodes into {folder}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings of odd metadata, which ImageNet's files are full of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _threads() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr in a terminal, else a line for each tenth; gives the function to tell."""
    if not sys.stderr.isatty():
        said = [-1]

        def tell(done: int) -> None:
            tenth = 10 * done // total
            if tenth > said[0]:
                said[0] = tenth
                print(f"{what}: {done:,} of {total:,} images", file=sys.stderr, flush=True)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
