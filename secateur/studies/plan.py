"""From a request (study, preset, seeds, fields) to cells; and what a request would take."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from secateur.core.errors import SecateurError, lookup
from secateur.lab import runs
from secateur.lab.cells import Cell, closure
from secateur.lab.spec import variants
from secateur.lab.store import Store
from secateur.studies.registry import STUDIES, study

if TYPE_CHECKING:
    from secateur.lab.executors import Executor


@dataclass(frozen=True)
class Part:
    """One combination of a grid: one page.

    Attributes:
        name: of the page's file.
        command: makes these cells and this page.
    """

    name: str
    fields: Any
    cells: list[Cell]
    command: str


@dataclass(frozen=True)
class Plan:
    """What a request asks for. ``asked`` is the request itself, as `plan` takes it."""

    study: ModuleType
    parts: list[Part]
    asked: dict[str, Any]

    @property
    def cells(self) -> list[Cell]:
        """All cells, each once, after those they need."""
        return closure(itertools.chain.from_iterable(part.cells for part in self.parts))

    def remember(self, store: Store) -> None:
        """Keeps the request in the store, for ``report`` and ``status``."""
        runs.remember(store, self.study.name, self.asked)

    def estimate(self, store: Store | None, executor: Executor) -> Iterator[str]:
        """Lines for ``--dry-run``: cells, programs, minutes, memory, disk."""
        cells = self.cells
        had = sum(store.has(cell) for cell in cells) if store else 0
        missing = [cell for cell in cells if not (store and store.has(cell))]
        yield f"cells     {len(cells)}, of which {had} are in the store"
        for part in self.parts:
            takes = self.study.takes(part.fields)
            trainings = sum(cell.cost > 0 for cell in part.cells)  # others read what these hold
            yield f"{part.name:<9} {trainings} cells of {takes['steps']:,} steps"
            yield f"programs  {takes['programs']}"
            wanted = [cell for cell in part.cells if cell in set(missing)]
            seconds = sum(cell.cost for cell in wanted) * takes["seconds_per_step"]
            if wanted:  # starting a worker and compiling its first programs
                seconds += 10 * executor.workers
            crew = f"{executor.workers} worker{'s'[: executor.workers > 1]}"
            yield (
                f"time      about {_minutes(seconds / max(1, executor.workers))} on {crew} "
                f"(executor {executor.name}; {_minutes(seconds)} of CPU; measured on one core "
                "of a 2025 server; the run itself says how long it really has left)"
            )
            memory = takes["memory"] * executor.workers / 1e9
            disk = takes["disk"] * len(wanted) / 1e6
            yield f"memory    about {memory:.1f} GB; {disk:.0f} MB on disk"


def plan(
    name: str,
    preset: str | None = None,
    seeds: int | None = None,
    *,
    first_seed: int = 0,
    sets: Sequence[str] = (),
    grids: Sequence[str] = (),
) -> Plan:
    """The cells of a request; nothing is computed.

    Raises:
        SecateurError: unknown study, preset or field, a value of the wrong type or out of bounds,
            no seeds.
    """
    from secateur.data.registry import DATASETS

    module = study(name)
    preset = preset or next(iter(module.presets))
    base = lookup(f"preset of {name}", preset, module.presets)
    count = module.seeds[preset] if seeds is None else seeds
    if count < 1:
        raise SecateurError(f"--seeds is the number of seeds, at least 1, not {count}.")
    if first_seed < 0:
        raise SecateurError(f"--first-seed is 0 or more, not {first_seed}.")
    parts = []
    made = variants(base, sets, grids)
    for fields in made:
        module.check(fields)
        known = getattr(fields, "dataset", None)  # toys draw their own data
        data = lookup("data set", known, DATASETS).sha256 if known else ""
        numbers = range(first_seed, first_seed + count)
        differing = _differing(base, fields)
        words = [f"secateur run {name} --preset {preset} --seeds {count}"]
        words += [f"--first-seed {first_seed}"] if first_seed else []
        words += [f"--set {shlex.quote(text)}" for text in differing]
        parts.append(
            Part(
                name if len(made) == 1 else "-".join([name, *_axes(grids, fields)]),
                fields,
                module.cells(fields, numbers, data),
                " ".join(words),
            )
        )
    asked = {
        "preset": preset,
        "seeds": count,
        "first_seed": first_seed,
        "sets": list(sets),
        "grids": list(grids),
    }
    return Plan(module, parts, asked)


def recalled(name: str, store: Store) -> Plan:
    """The plan of the last request of a study in a store.

    Raises:
        SecateurError: where the study was never run there.
    """
    study(name)
    asked = runs.recall(store, name)
    if asked is None:
        raise SecateurError(
            f"{store.path} remembers no run of {name}; say which with --preset, or give: "
            f"secateur run {name} --store {store.path}"
        )
    return plan(name, **asked)


def described() -> Iterator[str]:
    """Every study with its presets and fields, as lines."""
    for name in STUDIES:
        module = study(name)
        yield f"{name}: {module.summary}"
        for preset, fields in module.presets.items():
            differing = ", ".join(_differing(module.Fields(), fields)) or "the defaults"
            yield f"  --preset {preset:<10} {module.seeds[preset]} seeds; {differing}"
        yield "  fields:"
        for field in msgspec.structs.fields(module.Fields):
            default = msgspec.to_builtins(field.default)
            yield f"    {field.name}={_text(default)}"


def progress(store: Store) -> Iterator[str]:
    """What a store holds and how far the last request of each study is, as lines."""
    held = {name: store.entries(name) for name in store.studies()}
    asked_of = {name: runs.recall(store, name) for name in (*STUDIES, *held)}
    if not held:
        yield f"{store.path} holds no results yet"
    for name, asked in asked_of.items():
        entries = held.get(name, [])
        if entries:
            yield f"{name}: {len(entries)} cells in {store.path}"
        if asked is None or name not in STUDIES:
            continue
        addresses = {entry.address for entry in entries}
        for part in plan(name, **asked).parts:
            cells = closure(part.cells)
            done = sum(cell.address in addresses for cell in cells)
            word = "done" if done == len(cells) else f"{len(cells) - done} to go"
            yield f"  {done} of {len(cells)} ({word}): {part.command}"
    failures = sorted((store.path / "failures").glob("*/*.txt"))
    for path in failures:
        yield f"  failed: {path}"


def _differing(base: Any, fields: Any) -> list[str]:
    """``field=value`` of each field that is not the base's, as --set reads it."""
    before, after = msgspec.to_builtins(base), msgspec.to_builtins(fields)
    return [f"{k}={_text(v)}" for k, v in after.items() if v != before[k]]


def _axes(grids: Sequence[str], fields: Any) -> list[str]:
    """The values of the grids' fields in one combination: they name its page."""
    told = msgspec.to_builtins(fields)
    names = [text.partition("=")[0].strip() for text in grids]
    return [_slug(f"{name}={_text(reduce(getitem, name.split('.'), told))}") for name in names]


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:,.0f} days"
