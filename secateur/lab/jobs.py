"""Which cell may be computed now, and what becomes of it: the driver's book of a run.

Executors ask `take` for work and report with `done`, `failed`, `died`. They know nothing of needs,
claims or the store.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from secateur.core.errors import SecateurError
from secateur.lab.cells import Cell, Result, closure
from secateur.lab.checkpoints import Checkpoints
from secateur.lab.claims import Claims
from secateur.lab.compute import TRAINER, Failure, Task, failure
from secateur.lab.files import StoreError
from secateur.lab.progress import Progress
from secateur.lab.store import Damaged, Store
from secateur.lab.watch import INTERVAL, CellWatch

W = TypeVar("W", bound=CellWatch)

TRIES = 3  # a cell whose worker dies is tried again twice
_REMEMBERED = 32  # results kept in memory for the cells that need them
_ASK_AGAIN = 0.5  # seconds between looks at cells that another command computes


class Jobs:
    """The state of a run.

    Args:
        cells: what is wanted; their needs are added.
        interval: seconds between checkpoints of a cell.
        trainer: the module that has `fit` and `fit_lanes`.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        store: Store,
        progress: Progress | None = None,
        interval: float = INTERVAL,
        trainer: str = TRAINER,
        claims: Claims | None = None,
    ) -> None:
        self.store, self.interval, self.trainer = store, interval, trainer
        self.progress = progress or Progress(quiet=True)
        self.order = closure(cells)
        self.cells = {cell.address: cell for cell in self.order}
        self.children: dict[str, list[str]] = {address: [] for address in self.cells}
        for cell in self.order:
            for need in cell.needs.values():
                self.children[need.address].append(cell.address)
        self.weight = self._weights()
        self.claims = claims or Claims(store.path, fault=store.fault)
        self.checkpoints = Checkpoints(store.path, store.fault)
        self.stopping: int | None = None  # the signal that asked for it
        self.missing: set[str] = set()  # not computed and not running
        self.running: set[str] = set()
        self.tries: dict[str, int] = {}
        self.failures: dict[str, Failure] = {}
        self.blocked: set[str] = set()
        self.computed: list[str] = []
        self.reused: list[str] = []
        self.shared: list[str] = []  # computed by another command meanwhile
        self.warnings: list[str] = []
        self._elsewhere: dict[str, float] = {}  # claimed by others -> when to look again
        self._recent: OrderedDict[str, Result] = OrderedDict()
        self._survey()

    # -- asked by executors --------------------------------------------------------------------

    def finished(self) -> bool:
        """Whether nothing is left to be taken, now or later."""
        return self.asked_to_stop() or not (self.missing or self.running)

    def asked_to_stop(self) -> bool:
        """Whether a signal asked for it; says so once (a signal's handler must not print)."""
        if self.stopping:
            self.warn("stopping after the next checkpoint; Ctrl-C again stops at once")
        return bool(self.stopping)

    def take(self, after: str | None = None) -> Task | None:
        """A cell to compute now, claimed; None where there is none at this moment.

        Args:
            after: address of the cell that the asker has just computed; the next of its chain is
                preferred, unless a chain with much more work left waits.
        """
        while not self.stopping:
            cell = self._choose(after)
            if cell is None:
                return None
            if not self.claims.take(cell.address):
                self._elsewhere[cell.address] = time.monotonic() + _ASK_AGAIN
                continue
            self._elsewhere.pop(cell.address, None)
            if self.store.has(cell):  # finished by another between our look and our claim
                self.claims.release(cell.address)
                self._found(cell)
                continue
            try:
                inputs = {role: self._result(need) for role, need in cell.needs.items()}
            except Damaged as damage:
                self.claims.release(cell.address)
                self._set_aside(damage, cell.needs.values())
                continue
            self.missing.discard(cell.address)
            self.running.add(cell.address)
            self.progress.began(cell)
            return Task(cell, inputs, self.tries.get(cell.address, 0))
        return None

    def watch(self, task: Task, kind: Callable[..., W]) -> W:
        """A watch for a cell that is computed in this process."""
        return kind(
            self.checkpoints,
            task.cell.address,
            self.interval,
            tell=lambda step, steps: self.tick(task.cell.address, step, steps),
            warn=self.warn,
            stopping=self.asked_to_stop,
        )

    def tick(self, address: str, step: int, steps: int) -> None:
        """Progress inside a cell."""
        if cell := self.cells.get(address):
            self.progress.tick(cell, step, steps)

    def warn(self, sentence: str) -> None:
        """Says a sentence once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)
            self.progress.say(sentence)

    def done(self, task: Task, result: Result, made: dict[str, Any]) -> None:
        """Keeps a result.

        Raises:
            StoreError: full disk; ends the run.
        """
        cell = task.cell
        told = {**made, "command": shlex.join(sys.argv)}
        try:
            self.store.write(cell, result, told)
        except StoreError:
            self._give_back(cell)
            raise
        except (SecateurError, TypeError, ValueError) as error:  # something JSON cannot say
            self.failed(task, failure(error))
            return
        self.running.discard(cell.address)
        self._remember(cell, result)
        self.computed.append(cell.address)
        self.store.forget_failure(cell)
        self.checkpoints.remove(cell.address)
        self.claims.release(cell.address)
        self.progress.done(cell, float(made.get("seconds_wall", 0.0)))

    def failed(self, task: Task, why: Failure) -> None:
        """A cell that cannot be computed; the others that do not need it go on."""
        cell = task.cell
        path = self.store.keep_failure(cell, why.traceback or why.sentence + "\n")
        self.running.discard(cell.address)
        self.failures[cell.address] = Failure(why.sentence, why.traceback, cell)
        self._block(cell.address)
        # A failure may come from a bad checkpoint: the next run starts from the beginning.
        self.checkpoints.remove(cell.address)
        self.claims.release(cell.address)
        self.progress.failed(cell)
        self.progress.say(f"{cell.study} {cell.label} failed: {why.sentence} ({path})")

    def died(self, task: Task, how: str) -> None:
        """The worker of a cell died: the cell is tried again from its checkpoint, twice."""
        tries = self.tries[task.cell.address] = self.tries.get(task.cell.address, 0) + 1
        if tries >= TRIES:
            self.failed(task, Failure(f"its worker died {tries} times, the last one {how}"))
            return
        self.progress.say(
            f"the worker of {task.cell.study} {task.cell.label} {how}; trying again "
            f"({tries} of {TRIES - 1})"
        )
        self._give_back(task.cell)

    def stopped(self, task: Task) -> None:
        """A cell whose checkpoint was published because the run is asked to stop."""
        self._give_back(task.cell)

    def close(self) -> None:
        """Gives up all claims."""
        self.claims.close()

    # -- inside --------------------------------------------------------------------------------

    def _survey(self) -> None:
        """What the store has; damaged results count as missing."""
        for cell in self.order:
            if self.store.has(cell):
                try:
                    self._remember(cell, self.store.read(cell))
                    self.reused.append(cell.address)
                    continue
                except Damaged as damage:
                    self._set_aside(damage, [cell])
            self.missing.add(cell.address)
        # A command that was killed right after it had written a result left these behind.
        self.checkpoints.sweep(set(self.reused))
        self.claims.sweep(set(self.reused))
        self.progress.begin([self.cells[a] for a in self.cells if a in self.missing], self.order)

    def _choose(self, after: str | None) -> Cell | None:
        """The ready cell with the most work behind it, or the continuation of a chain."""
        for address in list(self._elsewhere):
            if self.store.has(self.cells[address]):
                self._found(self.cells[address])
        now = time.monotonic()
        ready = [
            address
            for address in self.cells
            if address in self.missing
            and self._elsewhere.get(address, 0.0) <= now
            and not self._waits(address)
        ]
        if not ready:
            return None
        best = max(ready, key=lambda address: self.weight[address])
        chain = [address for address in self.children.get(after or "", []) if address in ready]
        if chain:
            own = max(chain, key=lambda address: self.weight[address])
            # Unless a chain with much more work left waits: it would be alone at the end.
            if self.weight[best] <= self.weight[own] + 2 * self.cells[own].cost:
                best = own
        return self.cells[best]

    def _waits(self, address: str) -> bool:
        """Whether something that the cell needs is not there yet."""
        return any(
            need.address in self.missing or need.address in self.running
            for need in self.cells[address].needs.values()
        )

    def _weights(self) -> dict[str, float]:
        """address -> work on the longest chain that begins with this cell, in cost units."""
        weight: dict[str, float] = {}
        for cell in reversed(self.order):
            behind = max((weight[child] for child in self.children[cell.address]), default=0.0)
            weight[cell.address] = cell.cost + behind
        return weight

    def _found(self, cell: Cell) -> None:
        """Another command finished this cell."""
        try:
            self._remember(cell, self.store.read(cell))
        except Damaged as damage:
            self._set_aside(damage, [cell])
            return
        self.missing.discard(cell.address)
        self._elsewhere.pop(cell.address, None)
        self.shared.append(cell.address)
        self.progress.done(cell, 0.0)

    def _result(self, cell: Cell) -> Result:
        if cell.address not in self._recent:
            self._remember(cell, self.store.read(cell))
        self._recent.move_to_end(cell.address)
        return self._recent[cell.address]

    def _remember(self, cell: Cell, result: Result) -> None:
        self._recent[cell.address] = result
        while len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)

    def _set_aside(self, damage: Damaged, among: Any) -> None:
        """Moves what was damaged away, so that it is computed again."""
        for cell in among:
            if self.store.folder(cell) == damage.path.parent:
                aside = self.store.set_aside(cell)
                self._recent.pop(cell.address, None)
                self.missing.add(cell.address)
                self.warn(f"{damage}; moved to {aside} and computed again")

    def _give_back(self, cell: Cell) -> None:
        self.running.discard(cell.address)
        self.missing.add(cell.address)
        self.claims.release(cell.address)

    def _block(self, address: str) -> None:
        """What needs a failed cell, directly or not, cannot be computed."""
        open_ = [address]
        while open_:
            for child in self.children[open_.pop()]:
                if child not in self.blocked:
                    self.blocked.add(child)
                    self.missing.discard(child)
                    self.progress.failed(self.cells[child])
                    open_.append(child)
