"""What a branch gains over another at sparse levels, and the axis of such figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from operator import sub
from typing import Any

from secateur.studies.measured import Row, Value, paired

SPARSE = 0.1  # share of the weights: levels at or below it are meant where a claim says "sparse"
DENSITY: dict[str, Any] = {
    "x": "density",
    "x_title": "weights remaining",
    "x_log": True,
    "x_reverse": True,
    "percent_x": True,
}


def gain(of: Value, a: str, b: str, most: float = SPARSE) -> Any:
    """per seed: the value of branch a minus that of b, mean over levels with at most this density.

    No level is picked: where a ticket shows its worth depends on how hard the task is.
    """

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        left, right = (
            {(row["seed"], row["level"]): of(row) for row in rows if _counts(row, branch, most)}
            for branch in (a, b)
        )
        found: defaultdict[int, list[float]] = defaultdict(list)
        for place in sorted(left.keys() & right.keys()):
            found[place[0]].append(left[place] - right[place])
        return {seed: sum(parts) / len(parts) for seed, parts in found.items()}

    return per_seed


def less(first: Any, second: Any) -> Any:
    """per seed: a number minus another, of seeds that have both."""

    return lambda rows: paired(sub, first(rows), second(rows))


def over(first: Any, second: Any) -> Any:
    """per seed: a number over another, of seeds that have both and the other is not 0."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        a, b = first(rows), second(rows)
        return {seed: a[seed] / b[seed] for seed in sorted(a.keys() & b.keys()) if b[seed]}

    return per_seed


def dense(of: Value, branch: str) -> Any:
    """per seed: a value of a branch before anything is pruned; seeds without it are left out."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        found = {}
        for row in rows:
            if row["branch"] == branch and row["level"] == 0:
                try:
                    found[row["seed"]] = of(row)
                except KeyError:  # a number that not every network has
                    continue
        return found

    return per_seed


def mean(per_seed: Mapping[int, float]) -> float | None:
    """Over seeds; None without any."""
    return sum(per_seed.values()) / len(per_seed) if per_seed else None


def together(checks: Sequence[Mapping[str, bool]]) -> dict[str, bool]:
    """The checks of several trainings as those of their cell: each holds where all held."""
    names = dict.fromkeys(name for one in checks for name in one)
    return {name: all(one.get(name, True) for one in checks) for name in names}


def _counts(row: Row, branch: str, most: float) -> bool:
    return bool(row["branch"] == branch and row["level"] > 0 and row["density"] <= most)
