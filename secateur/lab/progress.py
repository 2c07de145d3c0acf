"""How far a run is, on standard error: a live bar on a terminal, now and then a line elsewhere.

The time left is measured, not promised: the work done so far (in the cells' own costs) over the
time it took, and never less than the longest chain of cells that must follow one another.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from secateur.lab.cells import Cell

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

EVERY = 15.0  # seconds between plain lines
_SETTLED = 5.0  # seconds before an estimate is worth showing


class Progress:
    """The progress of one run.

    Args:
        stream: where to; standard error by default.
        quiet: says nothing, only counts.
        every: seconds between plain lines.
    """

    def __init__(
        self, stream: TextIO | None = None, quiet: bool = False, every: float = EVERY
    ) -> None:
        self.stream = stream or sys.stderr
        self.quiet, self.every = quiet, every
        self.total = self.count = self.reused = 0
        self.workers = 1
        self._left: dict[str, Cell] = {}
        self._chain: dict[str, float] = {}
        self._part: dict[str, float] = {}  # running cells -> fraction done
        self._first: dict[str, float] = {}  # fraction at which a resumed cell began
        self._labels: dict[str, str] = {}
        self._cost_done = 0.0
        self._start = self._spoke = time.monotonic()
        self._bar: Bar | None = None
        self._task = 0

    def begin(self, missing: Sequence[Cell], cells: Sequence[Cell]) -> None:
        """What is to be computed, of all the cells of the run."""
        self.total, self.count = len(cells), len(cells) - len(missing)
        self.reused = self.count
        self._left = {cell.address: cell for cell in missing}
        self._start = self._spoke = time.monotonic()
        if not self.quiet and missing and self.stream.isatty():
            self._open_bar()
        elif not self.quiet and missing:
            have = f", {self.count} of them in the store" if self.count else ""
            self._print(f"{self.total} cells{have}")

    def began(self, cell: Cell) -> None:
        """A cell is being computed."""
        self._part[cell.address] = 0.0
        self._labels[cell.address] = cell.label
        self._show()

    def tick(self, cell: Cell, step: int, steps: int) -> None:
        """A cell is at `step` of `steps` of its present training."""
        part = step / steps if steps else 0.0
        # A cell that goes on from a checkpoint has not done the first part in this run.
        self._first.setdefault(cell.address, part if self._part.get(cell.address) == 0.0 else 0.0)
        self._part[cell.address] = max(part, 1e-9)
        self._show()

    def done(self, cell: Cell, seconds: float) -> None:
        """A cell is finished, here (`seconds` > 0) or by another command."""
        first = self._first.pop(cell.address, 0.0)
        self._part.pop(cell.address, None)
        if self._left.pop(cell.address, None) is not None:
            self.count += 1
            if seconds > 0:
                self._cost_done += cell.cost * (1 - first if first < 1 else 1)
        self._show()

    def failed(self, cell: Cell) -> None:
        """A cell that will not be computed."""
        self._part.pop(cell.address, None)
        self._left.pop(cell.address, None)
        self._show()

    def say(self, sentence: str) -> None:
        """A sentence of its own line."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(sentence, markup=False, highlight=False, soft_wrap=True)
        else:
            self._print(sentence)

    def seconds_left(self) -> float | None:
        """The estimate, in seconds; None as long as there is nothing to measure."""
        elapsed = time.monotonic() - self._start
        running = sum(
            self._left[a].cost * max(0.0, part - self._first.get(a, 0.0))
            for a, part in self._part.items()
            if a in self._left
        )
        done = self._cost_done + running
        if elapsed < _SETTLED or done <= 0:
            return None
        rate = done / elapsed
        left = sum(c.cost * (1 - self._part.get(a, 0.0)) for a, c in self._left.items())
        return max(left / rate, self._longest() / (rate / max(1, self.workers)))

    def close(self) -> None:
        """Ends the live bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _longest(self) -> float:
        """The most work on one chain of cells that follow one another, in cost units."""
        behind: dict[str, float] = {}
        # The cells come after their needs, so that one pass is enough.
        for address, cell in self._left.items():
            before = max((behind.get(n.address, 0.0) for n in cell.needs.values()), default=0.0)
            behind[address] = before + cell.cost * (1 - self._part.get(address, 0.0))
        return max(behind.values(), default=0.0)

    def _show(self) -> None:
        if self.quiet:
            return
        now = time.monotonic()
        if self._bar is not None:
            from rich.progress import TaskID

            self._bar.update(
                TaskID(self._task),
                completed=self.count + min(sum(self._part.values()), len(self._part)),
                cells=f"{self.count}/{self.total} cells",
                left=_spoken(self.seconds_left()),
                doing=self._doing(),
            )
        elif now - self._spoke >= self.every:
            self._spoke = now
            left = _spoken(self.seconds_left())
            self._print(f"{self.count} of {self.total} cells, {left}; now {self._doing()}")

    def _doing(self) -> str:
        names = [self._labels[address] for address in self._part]
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        return "; ".join(names[:2]) + more

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[cells]}"),
            TextColumn("{task.fields[left]}"),
            TextColumn("[dim]{task.fields[doing]}"),
            console=Console(file=self.stream),
            transient=True,
        )
        self._task = self._bar.add_task(
            "", total=self.total, completed=self.count, cells="", left="", doing=""
        )
        self._bar.start()

    def _print(self, sentence: str) -> None:
        print(sentence, file=self.stream, flush=True)


def _spoken(seconds: float | None) -> str:
    """A duration as people say it, with its uncertainty."""
    if seconds is None:
        return "measuring"
    if seconds < 60:
        return f"about {max(5, round(seconds / 5) * 5)} s left"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"
