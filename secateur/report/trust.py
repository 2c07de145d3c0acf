"""Trust cards: what was checked in every run, and with what it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.report import numbers
from secateur.report.series import Run, level, number
from secateur.report.view import Row

TIMES = ("seconds_cpu", "seconds_wall")


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """All checks of all cells: how many, and how many did not hold."""
    held = [bool(value) for row in rows for value in (row.get("checks") or {}).values()]
    return {"n": len(held), "failed": len(held) - sum(held), "words": verdict(len(held), sum(held))}


def verdict(n: int, held: int) -> str:
    """ "108 checks, all held"."""
    if n == 0:
        return "nothing was checked"
    if held == n:
        return f"{numbers.many(n, 'check')}, all held"
    return f"{n - held:,} of {numbers.many(n, 'check')} did not hold"


def words(name: str) -> str:
    """masked_moments_zero -> "Masked moments zero"; the names themselves belong to the studies."""
    return numbers.sentence(name.replace("_", " ").replace(".", ": ").strip())


def card(run: Run) -> dict[str, Any]:
    """The card of one run: checks by name, what it was made with, and a line a level."""
    names = dict.fromkeys(name for row in run.rows for name in row.get("checks") or {})
    checks: list[dict[str, Any]] = []
    for name in names:
        results: list[bool] = [
            bool(row["checks"][name]) for row in run.rows if name in (row.get("checks") or {})
        ]
        checks.append({"words": words(name), "held": sum(results), "n": len(results)})
    n, held = sum(c["n"] for c in checks), sum(c["held"] for c in checks)
    levels = []
    for row in run.rows:
        mine: list[bool] = [bool(value) for value in (row.get("checks") or {}).values()]
        cpu = number(row, "made.seconds_cpu")
        hashes = row.get("hashes") or {}
        density = number(row, "density")
        levels.append(
            {
                "level": level(row),
                "density": numbers.percent(density) if density is not None else "–",
                "checks": f"{sum(mine)}/{len(mine)}",
                "held": all(mine),
                "mask": str(hashes.get("mask") or ""),
                "start": str(hashes.get("start") or ""),
                "cpu": numbers.seconds(cpu) if cpu is not None else "–",
                "address": str(row.get("address") or ""),
            }
        )
    return {
        "branch": run.branch,
        "seed": run.seed,
        "n": n,
        "held": n == held,
        "words": verdict(n, held),
        "checks": checks,
        "made": made(run.rows),
        "levels": levels,
    }


def made(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What the cells were made with: times summed, all else once, or every value that occurs."""
    lines: list[tuple[str, str]] = []
    for name, label in (("seconds_cpu", "CPU time"), ("seconds_wall", "Wall time")):
        known = [s for row in rows if (s := number(row, f"made.{name}")) is not None]
        if known:
            lines.append((label, numbers.seconds(sum(known))))
    initial = dict.fromkeys(str((row.get("hashes") or {}).get("initial") or "") for row in rows)
    if any(initial):
        lines.append(("Initial weights", ", ".join(text(name) for name in initial if name)))
    values: dict[str, dict[str, None]] = {}
    for row in rows:
        for name, value in (row.get("made") or {}).items():
            if name not in TIMES:
                values.setdefault(name, {})[text(value)] = None
    lines += [(words(name), together(list(found))) for name, found in values.items()]
    return lines


def together(found: Sequence[str]) -> str:
    """The values of many cells in one line: all of a few, else the first and the last."""
    if len(found) <= 3:
        return "; ".join(found)
    ordered = sorted(found)
    return f"{ordered[0]} to {ordered[-1]}"


def text(value: Any) -> str:
    """A value in words; of a long hash the first 16 digits, which is enough to compare."""
    if isinstance(value, str) and len(value) > 32 and set(value) <= set("0123456789abcdef"):
        return value[:16]
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text(leaf)}" for name, leaf in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(text, value))
    return str(value)
