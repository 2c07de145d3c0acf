"""Numbers as a reader wants them: few digits, units, a true minus sign."""

from __future__ import annotations

import math
from typing import Any


def percent(value: float, digits: int = 1) -> str:
    """0.0228 -> "2.3%"; small values keep two significant digits."""
    shown = 100 * value
    if 0 < abs(shown) < 1:
        digits = max(digits, 1 - math.floor(math.log10(abs(shown))))
    return minus(f"{shown:.{digits}f}%")


def plain(value: float) -> str:
    """Four significant digits, thousands separated."""
    if value == int(value) and abs(value) < 1e15:
        return minus(f"{int(value):,}")
    if 1e-3 <= abs(value) < 1e4:
        digits = max(0, 3 - math.floor(math.log10(abs(value))))
        return minus(f"{value:.{digits}f}")
    return minus(f"{value:,.4g}")


def measured(value: Any, unit: str = "") -> str:
    """A claim's number in its unit: points with their sign, others with three digits."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return "–"
    if "point" in unit:
        return minus(f"{value:+.2f}")
    return minus(f"{value:.3g}") if abs(value) < 1000 else plain(float(value))


def seconds(value: float) -> str:
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.1f} min"
    return f"{value / 3600:.1f} h"


def many(n: int, noun: str, plural: str = "") -> str:
    """ "1 seed", "5 seeds"."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def sentence(text: str) -> str:
    """With a capital at the beginning, the rest as it is."""
    return text[:1].upper() + text[1:]


def minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
