"""How many weights are kept after each round: densities on the way down, and exact counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from secateur.core.errors import SecateurError, lookup

Schedule = Callable[[float, int, int], float]  # (final density d, round k = 1..n, rounds n) -> d_k


def exponential(d: float, k: int, n: int) -> float:
    """d_k = d^(k/n): each round keeps one fraction of what is left. SynFlow, FORCE, NTK-SAP."""
    return float(d ** (k / n))


def linear(d: float, k: int, n: int) -> float:
    """d_k = 1 - (1 - d) k/n: each round removes the same number. An option of Synaptic-Flow."""
    return 1 - (1 - d) * k / n


def inverse(d: float, k: int, n: int) -> float:
    """d_k = 1 - (1 - d)^(n/k): a slow start. NTK-SAP's code calls it ``expinv``."""
    return float(1 - (1 - d) ** (n / k))


def cubic(d: float, k: int, n: int) -> float:
    """d_k = 1 - (1 - d) (1 - (1 - k/n)^3): fast at first. Zhu & Gupta 2017, from sparsity 0.

    jaxpruner counts one step further, so that it arrives one step before the end.
    """
    return 1 - (1 - d) * (1 - (1 - k / n) ** 3)


def one_shot(d: float, k: int, n: int) -> float:
    """d_k = d: everything in the first round."""
    return d


SCHEDULES: dict[str, Schedule] = {
    "one-shot": one_shot,
    "exponential": exponential,
    "linear": linear,
    "inverse": inverse,
    "cubic": cubic,
}


def nearest(d: float, n: int) -> int:
    """floor(d n + 1/2), in double precision. d n, not n - (1 - d) n: int((1 - 0.9) 10) is 0."""
    return math.floor(d * n + 0.5)


# How many of n weights a density keeps, as papers and published codes count (without ties).
COUNTS: dict[str, Callable[[float, int], int]] = {
    "nearest": nearest,
    "floor": lambda d, n: int(d * n),  # mil-ad/snip, naver/force
    "ceil": lambda d, n: math.ceil(d * n),
    "half-even": lambda d, n: round(d * n),  # namhoonlee/snip-public in Python 3
    "synaptic-flow": lambda d, n: n - int((1 - d) * n),  # also NTK-SAP: 901 of 1,000 at 0.9
    "grasp": lambda d, n: n - int(n * (1 - d)) + (int(n * (1 - d)) > 0),  # alecwangcq/GraSP
    "shrinkbench": lambda d, n: n - math.ceil((1 - d) * (n - 1)),
    "phew": lambda d, n: n - math.floor((n - 1) * (1 - d)) - 1,
    "effective-sparsity": lambda d, n: n - int((1 - d) * n),
}


def densities(
    schedule: str | Sequence[float] | np.ndarray, density: float | None, rounds: int | None
) -> list[float]:
    """The density after each round; the last is exactly the one asked for.

    Args:
        schedule: a name in `SCHEDULES`, or the densities themselves, non-increasing.
        density: the last; of a given array it must be the last entry, or None.
        rounds: how many; of a given array its length, or None. One round where None.

    Raises:
        SecateurError: a density outside (0, 1], a name unknown, rounds below 1, several rounds of
            one-shot pruning, or an array that rises or ends elsewhere.
    """
    if isinstance(schedule, str):
        rule = lookup("schedule", schedule, SCHEDULES)
        n = 1 if rounds is None else rounds
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
            raise SecateurError(f"rounds is a whole number of at least 1, not {n!r}.")
        if schedule == "one-shot" and n > 1:
            raise SecateurError(
                f"one-shot pruning has one round, not {n}; name another schedule, e.g. "
                "'exponential', or leave out rounds."
            )
        d = _checked(density)
        return [*(min(1.0, rule(d, k, int(n))) for k in range(1, int(n))), d]
    given = [_checked(float(x)) for x in np.asarray(schedule, float).ravel()]
    if not given:
        raise SecateurError("a schedule given as densities needs at least one.")
    if any(b > a for a, b in pairwise(given)):
        raise SecateurError(
            "the densities of a schedule must not rise, since pruned weights stay away; "
            f"{given} does."
        )
    if density is not None and _checked(density) != given[-1]:
        raise SecateurError(
            f"the schedule ends at density {given[-1]}, but density={density} was asked; leave one "
            "out."
        )
    if rounds is not None and rounds != len(given):
        raise SecateurError(f"the schedule has {len(given)} densities, but rounds={rounds}.")
    return given


def counts(wanted: Sequence[float], total: int, count: str = "nearest") -> list[int]:
    """K_k of ``total`` weights for each density, from d_k N and not from the K before.

    Raises:
        SecateurError: for an unknown rule (see `COUNTS`), or where less than one weight is left.
    """
    rule = lookup("rule of counting", count, COUNTS)
    kept = [min(total, rule(d, total)) for d in wanted]
    if kept[-1] < 1:
        raise SecateurError(
            f"density {wanted[-1]:g} leaves less than one of the {total:,} prunable weights; "
            f"ask for at least {1 / total:.3g}."
        )
    return kept


def _checked(density: Any) -> float:
    try:
        d = float(density)
    except (TypeError, ValueError):
        d = math.nan
    if not 0 < d <= 1:
        raise SecateurError(
            f"density is the fraction of prunable weights that is kept, above 0 and at most 1, "
            f"not {density!r}."
        )
    return d
