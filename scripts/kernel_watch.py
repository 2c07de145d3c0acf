"""The tables of `kernel-watch` in docs/results_kernels.md, from its export.

    secateur export kernel-watch docs/results/kernel-watch.csv --preset mnist
    python scripts/kernel_watch.py docs/results/kernel-watch.csv

Prints Markdown: means over seeds with half the width of their 95 % t interval.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.lab.verdicts import interval
from secateur.studies import kernel_watch_claims as watched

WATCHED = (
    ("trace", "kernel.trace", 0),
    ("moved, step 200", "kernel.drift", 200),
    ("moved, step 2,000", "kernel.drift", 2000),
    ("turned, step 2,000", "kernel.turned", 2000),
    ("targets, start", "kernel.target", 0),
    ("targets, step 2,000", "kernel.target", 2000),
    ("directions, start", "kernel.participation", 0),
    ("directions, step 2,000", "kernel.participation", 2000),
    ("like the dense kernel, start", "kernel.of_parent", 0),
    ("like the dense kernel, step 2,000", "kernel.of_parent", 2000),
    ("from the dense kernel, start", "kernel.start_from_parent", 0),
    ("spectrum from the dense, start", "kernel.spectrum_from_parent", 0),
)
LINEAR = tuple(
    (f"{part}, step {step:,}", f"linear.off_{part}", step)
    for part in ("train", "test")
    for step in (10, 100, 1000)
)


def shown(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "–"
    found = interval(values)
    half = (found.high - found.low) / 2
    if abs(found.mean) >= 100:
        return f"{found.mean:.3g} ± {half:.2g}"
    return f"{found.mean:.3f} ± {half:.3f}"


def table(rows: list[dict[str, str]], columns: Any, step: str) -> None:
    print("| | " + " | ".join(title for title, _, _ in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for branch in watched.branches:
        cells = [
            shown([float(r[k]) for r in rows if r["branch"] == branch.name and r[step] == str(at)])
            for _, k, at in columns
        ]
        print(f"| {branch.label} | " + " | ".join(cells) + " |")
    print()


def nested(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The rows of races, as the claims read them."""
    return [
        {
            "seed": int(r["seed"]),
            "branch": r["branch"],
            "level": int(r["level"]),
            "race": {"mean_loss": float(r["race.mean_loss"])},
            "foretold": {name: float(r[f"foretold.{name}"]) for name in watched.NAMES},
        }
        for r in rows
        if r["race.mean_loss"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path)
    with open(parser.parse_args().export, newline="") as file:
        rows = list(csv.DictReader(file))
    table(rows, WATCHED, "step")
    table(rows, LINEAR, "linear_step")
    races = nested(rows)
    for over in (watched.everywhere, watched.at_one_density):
        print(f"{over.__name__.replace('_', ' ')}, and without one method:\n")
        left = ["", *dict.fromkeys(r["branch"] for r in races if r["branch"] != "parent")]
        print("| | " + " | ".join(name or "all" for name in left) + " |")
        print("|---" * (len(left) + 1) + "|")
        for by, words in watched.NAMES.items():
            found = [
                watched.foretells(over, by)([r for r in races if r["branch"] != name])
                for name in left
            ]
            print(f"| {words} | " + " | ".join(shown(list(f.values())) for f in found) + " |")
        print()


if __name__ == "__main__":
    main()
