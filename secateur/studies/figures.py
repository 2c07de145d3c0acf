"""How a study declares its figures and branches: plain data, drawn by `report/charts.py`.

Nothing here imports a plotting library, so that listing studies stays quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Band = Literal["t95", "minmax"]


@dataclass(frozen=True)
class Branch:
    """One line of every figure, in words: `name` as it stands in the rows, `label` for legends.

    The order in which a study lists its branches is the order of colours, so a branch keeps its
    colour when another is left out of a run.
    """

    name: str
    label: str
    sentence: str = ""  # what the branch does, for the reader who does not know the term


@dataclass(frozen=True)
class Curves:
    """A figure of curves: `y` against `x`, one line a branch, the mean over seeds with a band.

    `x`, `y` and `colour` are dotted paths into a row, e.g. ``"best.test_accuracy"``; rows in which
    a path leads nowhere are left out. Band ``"t95"`` is mean +- t(0.975, n-1) s / sqrt(n) over the
    n seeds of a level, ``"minmax"`` spans all of them.
    """

    name: str
    title: str
    caption: str
    x: str
    y: str
    x_title: str
    y_title: str
    colour: str = "branch"
    x_log: bool = False
    y_log: bool = False
    x_reverse: bool = False
    percent_x: bool = False
    percent_y: bool = False
    band: Band = "t95"

    def __post_init__(self) -> None:
        if self.band not in ("t95", "minmax"):
            raise ValueError(f"figure {self.name!r}: band is {self.band!r}, not 't95' or 'minmax'")
