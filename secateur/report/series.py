"""From rows to what figures and tables show: runs, shared levels, means over seeds, bands."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.lab import verdicts
from secateur.report.view import Row, View
from secateur.studies.figures import Band, Branch, Curves

DENSE = "dense"  # a branch of this name is only the start that the others share


def at(row: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or None where the path leads nowhere."""
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def number(row: Mapping[str, Any], path: str) -> float | None:
    """The finite number at a dotted path, or None."""
    value = at(row, path)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return None
    return float(value) if math.isfinite(float(value)) else None


def level(row: Row) -> int:
    return int(row.get("level", 0))


def is_level(row: Row) -> bool:
    """Whether a row is a level of its own, not a moment ``along`` the training of one."""
    return "along" not in row


def run_field(view: View) -> str:
    """The field that, with the seed, makes a run."""
    return view.figures[0].colour if view.figures else "branch"


@dataclass(frozen=True)
class Run:
    """One line of one seed: `rows` by ascending level, `places` where they stand in the view."""

    branch: str
    seed: int
    rows: tuple[Row, ...]
    places: tuple[int, ...]


def last(run: Run) -> Row:
    """The last level of a run; of moments alone the last of them."""
    return next((row for row in reversed(run.rows) if is_level(row)), run.rows[-1])


def runs(view: View) -> list[Run]:
    """All runs, in the order of branches and seeds.

    Level 0 of a seed is trained once and shared: a run without its own borrows it, from a branch
    called "dense" first, else from the first run of its seed that has one.
    """
    path = run_field(view)
    found: dict[tuple[str, int], dict[int, int]] = {}
    start: dict[int, int] = {}
    for place, row in enumerate(view.rows):
        name, seed = str(at(row, path)), int(row.get("seed", 0))
        found.setdefault((name, seed), {})[level(row)] = place
        if level(row) == 0 and (seed not in start or name == DENSE):
            start[seed] = place
    names = {name for name, _ in found}
    only_dense = names == {DENSE}
    ordered = []
    for branch in branches(view):
        for seed in sorted(s for b, s in found if b == branch.name):
            if branch.name == DENSE and not only_dense:
                continue
            places = dict(found[branch.name, seed])
            if 0 not in places and seed in start:
                places[0] = start[seed]
            order = tuple(places[k] for k in sorted(places))
            rows = tuple(view.rows[place] for place in order)
            ordered.append(Run(branch.name, seed, rows, order))
    return ordered


def branches(view: View) -> list[Branch]:
    """The declared branches that have rows, then the undeclared in order of appearance."""
    path = run_field(view)
    present = dict.fromkeys(str(at(row, path)) for row in view.rows)
    several = len(present) > 1
    known = [branch for branch in view.branches if branch.name in present]
    declared = {branch.name for branch in known}
    known += [Branch(name, name.replace("_", " ")) for name in present if name not in declared]
    return [branch for branch in known if not (several and branch.name == DENSE)]


def colours(view: View) -> dict[str, int]:
    """Branch name -> place in the palette; declared branches keep theirs whether present or not."""
    order = dict.fromkeys(b.name for b in view.branches if b.name != DENSE)
    order.update(dict.fromkeys(b.name for b in branches(view)))
    return {name: place for place, name in enumerate(order)}


def interval(values: Sequence[float], band: Band = "t95") -> tuple[float, float] | None:
    """The band of one point over its seeds; None for a single seed, which has no spread.

    t95: mean +- t(0.975, n-1) s / sqrt(n), s with n-1. minmax: the extremes.
    """
    n = len(values)
    if n < 2:
        return None
    if band == "minmax":
        return min(values), max(values)
    found = verdicts.interval(values)
    return found.low, found.high


@dataclass(frozen=True)
class Point:
    """One point of a mean curve; `low` and `high` are None for a single seed."""

    branch: str
    level: int
    x: float
    y: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Single:
    """One point of one seed's curve."""

    branch: str
    seed: int
    level: int
    x: float
    y: float


def singles(view: View, curves: Curves) -> list[Single]:
    """What each seed gave, where both paths lead to a finite number (above 0 on a log axis)."""
    points = []
    for run in runs(view):
        for row in run.rows:
            x, y = number(row, curves.x), number(row, curves.y)
            if x is None or y is None:
                continue
            if (curves.x_log and x <= 0) or (curves.y_log and y <= 0):
                continue
            points.append(Single(run.branch, run.seed, level(row), x, y))
    return points


def means(points: Iterable[Single], band: Band = "t95") -> list[Point]:
    """Means over seeds at each branch and level, in the order of appearance."""
    grouped: dict[tuple[str, int], list[Single]] = {}
    for point in points:
        grouped.setdefault((point.branch, point.level), []).append(point)
    result = []
    for (branch, step), group in grouped.items():
        ys = [point.y for point in group]
        spread = interval(ys, band)
        low, high = spread if spread else (None, None)
        x = float(np.mean([point.x for point in group]))
        result.append(Point(branch, step, x, float(np.mean(ys)), low, high, len(group)))
    return result
