"""A claim beside the function that measures it in a study's rows, and the usual such functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, log
from typing import Any

from secateur.lab.verdicts import Claim, Verdict, judge

Row = Mapping[str, Any]
Value = Callable[[Row], float]


@dataclass(frozen=True)
class Measured:
    """What a paper claims, and one number a seed to judge it by.

    Attributes:
        per_seed: rows -> {seed: value}; seeds that lack a row it needs are left out, and a claim
            without any seed is not shown.
        only: settings without which the claim says nothing, and is not shown.
    """

    claim: Claim
    per_seed: Callable[[Sequence[Row]], dict[int, float]]
    only: Mapping[str, Any] = field(default_factory=dict)

    def verdict(self, rows: Sequence[Row], fields: Mapping[str, Any]) -> Verdict | None:
        """The verdict on these rows, or None where none of them can tell."""
        if any(fields.get(name) != wanted for name, wanted in self.only.items()):
            return None
        values = self.per_seed(rows)
        return judge(self.claim, values, fields) if values else None


def value(path: str, scale: float = 1.0) -> Value:
    """The number at a dotted path of a row, times ``scale`` (100 for percentage points)."""

    def found(row: Row) -> float:
        part: Any = row
        for name in path.split("."):
            part = part[name]
        return scale * float(part)

    return found


EARLY = value("best.test_accuracy", 100)
LAST = value("last.test_accuracy", 100)
STOP = value("best.step")


def at(rows: Sequence[Row], branch: str, density: float) -> dict[int, Row]:
    """seed -> the row of a branch nearest to a density, if one is within a tenth of it."""
    found: dict[int, Row] = {}
    for row in rows:
        if row["branch"] != branch or not row["density"]:
            continue
        if abs(log(row["density"] / density)) > 0.1:
            continue
        best = found.get(row["seed"])
        if best is None or abs(log(row["density"] / density)) < abs(log(best["density"] / density)):
            found[row["seed"]] = row
    return found


def numbers(
    rows: Sequence[Row], path: str, density: float | None = None, off: float = 0.12, **where: Any
) -> dict[int, float]:
    """seed -> the number at a dotted path, of the rows that have it and agree with ``where``.

    Args:
        density: of several rows of a seed the nearest to it counts, if |log| of the ratio is below
            ``off``; None: the last row.
    """
    best: dict[int, tuple[float, float]] = {}
    for row in rows:
        if any(row.get(name) != wanted for name, wanted in where.items()):
            continue
        part: Any = row
        for name in path.split("."):
            part = part.get(name) if isinstance(part, Mapping) else None
        if part is None:
            continue
        away = 0.0 if density is None else abs(log(row["density"] / density))
        seed = row["seed"]
        if density is None or (away < off and away < best.get(seed, (inf, 0.0))[0]):
            best[seed] = away, float(part)
    return {seed: found for seed, (_, found) in best.items()}


def paired(of: Callable[[float, float], float], a: Any, b: Any) -> dict[int, float]:
    """per seed: ``of`` the values of two maps, where both have one."""
    return {seed: of(a[seed], b[seed]) for seed in sorted(a.keys() & b.keys())}


def difference(of: Value, a: tuple[str, float], b: tuple[str, float]) -> Any:
    """per seed: the value at (branch, density) a minus that at b."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        left, right = at(rows, *a), at(rows, *b)
        return {s: of(left[s]) - of(right[s]) for s in sorted(left.keys() & right.keys())}

    return per_seed


def ratio(of: Value, a: tuple[str, float], b: tuple[str, float]) -> Any:
    """per seed: the value at (branch, density) a over that at b, where that is not 0."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        left, right = at(rows, *a), at(rows, *b)
        both = sorted(left.keys() & right.keys())
        return {s: of(left[s]) / of(right[s]) for s in both if of(right[s]) > 0}

    return per_seed


def lowest(of: Value, branch: str, density: float) -> Any:
    """per seed: the lowest value of a branch over all levels with at least this density.

    Only of seeds that went so far: a level well above it says nothing of the claim.
    """

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        found: dict[int, float] = {}
        complete = at(rows, branch, 1.1 * density)
        for row in rows:
            if row["seed"] in complete and row["branch"] == branch and row["density"] >= density:
                found[row["seed"]] = min(of(row), found.get(row["seed"], float("inf")))
        return found

    return per_seed


def value_at(of: Any, branch: str, density: float) -> Any:
    """per seed: a value of a branch at a density."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        return {s: of(row) for s, row in sorted(at(rows, branch, density).items())}

    return per_seed


def lead(method: str, others: Sequence[str], densities: Sequence[float]) -> Any:
    """per seed: the smallest lead of a method over the best of the others, over densities.

    Only of seeds that have all methods at all densities: the smallest of fewer says less.
    """

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        found: dict[int, list[float]] = {}
        for density in densities:
            theirs = [at(rows, other, density) for other in others]
            for seed, row in at(rows, method, density).items():
                rivals = [LAST(other[seed]) for other in theirs if seed in other]
                if len(rivals) == len(others):
                    found.setdefault(seed, []).append(LAST(row) - max(rivals))
        return {seed: min(leads) for seed, leads in found.items() if len(leads) == len(densities)}

    return per_seed
