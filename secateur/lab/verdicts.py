"""Papers' claims as data, and what our seeds say of them.

A verdict is given only where the whole 95 % interval over seeds lies on one side of the margin;
otherwise it says how many seeds would be needed at this spread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from secateur.core.errors import SecateurError, lookup
from secateur.lab.cells import plain

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
TOO_FEW = "too few seeds to tell"
_MOST = 100_000  # seeds beyond which "needed" says nothing
COMPARISONS = {
    "above": "the mean over seeds is above the margin",
    "below": "the mean over seeds is below the margin",
    "within": "the mean over seeds is between minus the margin and the margin",
}


@dataclass(frozen=True)
class Claim:
    """A statement of a paper that a study can test.

    Attributes:
        id: short name, e.g. ``"lth-reinit-worse"``.
        source: where it is said, e.g. ``"Frankle & Carbin 2019, section 2"``.
        statement: in one sentence.
        measure: what is compared, in words and units; one number a seed.
        comparison: a key of `COMPARISONS`.
        margin: in units of the measure.
        needs_settings: fields at the paper's setting: a number means at least so much, anything
            else the same. A run with less is called lighter.
        paper: the paper's own number, where it gives one.
        unit: of the measure.
    """

    id: str
    source: str
    statement: str
    measure: str
    comparison: str = "above"
    margin: float = 0.0
    needs_settings: Mapping[str, Any] = field(default_factory=dict)
    paper: float | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        lookup("comparison", self.comparison, COMPARISONS)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % t interval; infinite where fewer than two seeds are there."""

    mean: float
    low: float
    high: float
    n: int
    sd: float


@dataclass(frozen=True)
class Verdict:
    """What the seeds say.

    Attributes:
        word: `REPRODUCED`, `NOT_REPRODUCED` or `TOO_FEW`.
        interval: of the measure.
        needed: seeds that would be needed at this mean and spread, where they are too few; None
            where no number is known to be enough.
        lighter: where the run's settings fall short of the paper's, in words.
    """

    word: str
    interval: Interval
    needed: int | None = None
    lighter: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        said = self.word
        if self.word == TOO_FEW:
            about = f"about {self.needed} needed" if self.needed else "no number is known to do"
            said = f"{said} ({self.interval.n} seeds; {about} at this spread)"
        if self.lighter:
            said += f"; lighter than the paper: {', '.join(self.lighter)}"
        return said


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The t interval of the mean of independent values, one a seed."""
    n = len(values)
    if n == 0:
        return Interval(math.nan, -math.inf, math.inf, 0, math.nan)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1, math.nan)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = _half_width(sd, n, level)
    return Interval(mean, mean - half, mean + half, n, sd)


def paired_t(
    a: Mapping[Any, float] | Sequence[float],
    b: Mapping[Any, float] | Sequence[float],
    level: float = 0.95,
) -> Interval:
    """The t interval of the mean of a - b, paired by seed.

    Args:
        a, b: seed -> value (seeds that only one of them has are left out), or values in one order.

    Raises:
        SecateurError: for sequences of different lengths.
    """
    return interval(differences(a, b), level)


def differences(
    a: Mapping[Any, float] | Sequence[float], b: Mapping[Any, float] | Sequence[float]
) -> list[float]:
    """a - b, paired by seed; see `paired_t`."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return [a[seed] - b[seed] for seed in a if seed in b]
    if isinstance(a, Mapping) or isinstance(b, Mapping) or len(a) != len(b):
        raise SecateurError(
            "values are paired by seed: give two dicts of seed to value, or two lists of one length"
        )
    return [x - y for x, y in zip(a, b)]


def verdict(
    values_per_seed: Sequence[float] | Mapping[Any, float],
    comparison: str = "above",
    margin: float = 0.0,
    lighter: Sequence[str] = (),
) -> Verdict:
    """What the values of the seeds, one each, say of a claim.

    Args:
        values_per_seed: the measure (for paired comparisons the differences).
        comparison: a key of `COMPARISONS`.
        margin: in units of the measure.
        lighter: from `lighter_settings`.
    """
    lookup("comparison", comparison, COMPARISONS)
    numbers = values_per_seed.values() if isinstance(values_per_seed, Mapping) else values_per_seed
    told = interval(list(numbers))
    word = _word(told.low, told.high, comparison, margin)
    if told.n < 3 and told.sd == 0:  # two equal values of a measure with few possible ones
        word = TOO_FEW
    needed = _needed(told, comparison, margin) if word == TOO_FEW else None
    return Verdict(word, told, needed, tuple(lighter))


def judge(claim: Claim, values_per_seed: Any, fields: Mapping[str, Any]) -> Verdict:
    """The verdict on a claim from a run with these fields."""
    lighter = lighter_settings(claim.needs_settings, fields)
    return verdict(values_per_seed, claim.comparison, claim.margin, lighter)


def lighter_settings(needs: Mapping[str, Any], fields: Mapping[str, Any]) -> list[str]:
    """Where a run's fields fall short of the paper's settings: ``["steps 400 of 50000", ...]``."""
    short = []
    for name, wanted in needs.items():
        has = fields.get(name)
        number = isinstance(wanted, int | float) and not isinstance(wanted, bool)
        if number and isinstance(has, int | float) and not isinstance(has, bool):
            if has < wanted:
                short.append(f"{name} {has:g} of {wanted:g}")
        elif plain(has) != plain(wanted):  # a tuple of fields is a list in a store
            short.append(f"{name} {has} instead of {wanted}")
    return short


def _word(low: float, high: float, comparison: str, margin: float) -> str:
    if comparison == "below":
        low, high, margin, comparison = -high, -low, -margin, "above"
    if comparison == "above":
        if low > margin:
            return REPRODUCED
        return NOT_REPRODUCED if high < margin else TOO_FEW
    if -margin <= low and high <= margin:
        return REPRODUCED
    return NOT_REPRODUCED if low > margin or high < -margin else TOO_FEW


def _needed(told: Interval, comparison: str, margin: float) -> int | None:
    """The smallest number of seeds whose interval would decide, at this mean and spread."""
    if told.n < 2 or not told.sd > 0:
        return None
    edges = [margin, -margin] if comparison == "within" else [margin]
    gap = min(abs(told.mean - edge) for edge in edges)
    if not gap > 0:
        return None
    low, high = told.n, told.n + 1
    while _half_width(told.sd, high, 0.95) >= gap:
        low, high = high, 2 * high
        if high > _MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _half_width(told.sd, middle, 0.95) >= gap else (low, middle)
    return high


def _half_width(sd: float, n: int, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 0.5 + level / 2)) * sd / math.sqrt(n)
