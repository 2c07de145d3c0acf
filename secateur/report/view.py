"""What the page shows, as plain data: no store, no study, no jax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secateur.report.films import Film
from secateur.studies.figures import Branch, Curves

Row = Mapping[str, Any]


@dataclass(frozen=True)
class View:
    """Everything one page needs.

    A *row* is one cell, or one of the rows that it lists: its values (``branch``, ``level``,
    ``density``, ``alive_by_layer``, ...), with ``seed``, ``address``, ``checks`` ({name: held}) and
    ``made`` ({"seconds_cpu": ..., ...}) beside them. The first figure's ``colour`` names the field
    that, with ``seed``, makes a run. A run without a level 0 borrows that of another run of its
    seed: they share it.

    A *claim* is a mapping with ``id``, ``source``, ``statement``, ``verdict`` ("reproduced", "not
    reproduced" or "too few seeds to tell") and, where known, ``paper`` (a number or words),
    ``ours``, ``low``, ``high`` (95 % interval), ``n`` (paired seeds), ``needed`` (seeds that would
    tell), ``margin`` (where the verdict turns; a sequence where it turns at several), ``measure``
    (what was measured, in words), ``unit`` (of all of these; "points" are shown with their sign)
    and ``note`` (what the settings lack). `claims.judged` makes one from the lab's verdict.
    """

    study: str
    title: str
    sentence: str
    data: str
    command: str
    rows: Sequence[Row] = ()
    figures: Sequence[Curves] = ()
    branches: Sequence[Branch] = ()
    images: Sequence[np.ndarray | None] = ()
    """For each row, optionally, how many weights leave each input: integers (height, width)."""
    samples: Sequence[np.ndarray] = ()
    """A few of the data's images as published: uint8 (height, width), or with 1 or 3 channels."""
    sample_labels: Sequence[str] = ()
    films: Sequence[Film] = ()
    """Trainings that the page plays."""
    claims: Sequence[Mapping[str, Any]] = ()
    citation: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    version: str = ""

    def __post_init__(self) -> None:
        if self.images and len(self.images) != len(self.rows):
            raise ValueError(f"{len(self.images)} images for {len(self.rows)} rows: give one each")
