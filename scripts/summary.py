"""Means over seeds of a study's values, with their 95 % t intervals, as a table to be committed.

    python scripts/summary.py results --study lazy-toy --values loss.rewind,loss.none > means.csv

One row a value, branch and level: branch, level, density, value, mean, low, high, seeds.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from results import stored

from secateur.lab.verdicts import interval
from secateur.report.series import number
from secateur.studies.registry import study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--study", required=True)
    parser.add_argument("--preset")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--values", required=True, help="dotted paths, joined by commas")
    told = parser.parse_args()
    preset = told.preset or next(iter(study(told.study).presets))
    rows, _ = stored(told.store, told.study, preset, told.seeds, told.sets)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["branch", "level", "density", "value", "mean", "low", "high", "seeds"])
    for path in told.values.split(","):
        places: dict[tuple[str, int], list[tuple[float, float | None]]] = {}
        for row in rows:
            found = number(row, path)
            if found is not None:
                place = row["branch"], row["level"]
                places.setdefault(place, []).append((found, number(row, "density")))
        for (branch, level), members in places.items():
            values, density = [value for value, _ in members], members[0][1]
            known = "" if density is None else f"{density:.4g}"
            if len(values) < 2:
                writer.writerow([branch, level, known, path, f"{values[0]:.4g}", "", "", 1])
                continue
            over = interval(values)
            numbers = [f"{n:.4g}" for n in (over.mean, over.low, over.high)]
            writer.writerow([branch, level, known, path, *numbers, len(values)])


if __name__ == "__main__":
    main()
