"""A claim beside the function that measures it in a study's rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.lab.verdicts import Claim, Verdict, judge

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """What a paper claims, and one number a seed to judge it by.

    Attributes:
        per_seed: rows -> {seed: value}; seeds that lack a row it needs are left out, and a claim
            without any seed is not shown.
    """

    claim: Claim
    per_seed: Callable[[Sequence[Row]], dict[int, float]]

    def verdict(self, rows: Sequence[Row], fields: Mapping[str, Any]) -> Verdict | None:
        """The verdict on these rows, or None where none of them can tell."""
        values = self.per_seed(rows)
        return judge(self.claim, values, fields) if values else None
