"""Tables of docs/results.md from an exported study or a store: accuracies and verdicts.

    secateur export lottery docs/results/lottery-paper.csv
    python scripts/results.py docs/results/lottery-paper.csv --preset paper
    python scripts/results.py results --study at-init --preset mlp --seeds 3

Prints Markdown: means over seeds with half the width of their 95 % t interval. Claims that look at
whole curves can be judged from a store alone.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec

from secateur.lab.verdicts import interval
from secateur.studies.registry import study

Row = dict[str, Any]


def rows(path: Path) -> list[Row]:
    """The rows of an export, with dotted columns nested again and numbers as numbers."""
    found = []
    with open(path, newline="") as file:
        for line in csv.DictReader(file):
            row: Row = {"seed": int(line["seed"])}
            for name, text in line.items():
                if name.startswith(("best.", "last.")):
                    part, _, leaf = name.partition(".")
                    row.setdefault(part, {})[leaf] = float(text) if text else math.nan
            row |= {"branch": line["branch"], "level": int(line["level"])}
            row |= {k: float(line[k]) for k in ("density", "steps", "total_steps", "seconds_cpu")}
            found.append(row)
    return found


def stored(path: Path, name: str, preset: str, seeds: int | None, sets: list[str]) -> Any:
    """The rows of a store that a request asks for, as far as they are there, and its fields."""
    from secateur.lab.cells import rows_of
    from secateur.lab.store import Store
    from secateur.studies.plan import plan

    store, (part,) = Store(path, create=False), plan(name, preset, seeds, sets=sets).parts
    cells = [asked for asked in part.cells if store.has(asked)]
    read = [(asked.seed, row) for asked in cells for row in rows_of(store.read(asked).values)]
    found = [{**row, "seed": seed} for seed, row in read]
    return found, msgspec.to_builtins(part.fields)


def given(path: Path, name: str, preset: str) -> dict[str, Any]:
    """The fields of the preset, but for those that the export says."""
    fields = msgspec.to_builtins(study(name).presets[preset])
    with open(path, newline="") as file:
        first = next(csv.DictReader(file))
    return fields | {
        k: type(v)(first[f"field.{k}"])
        for k, v in fields.items()
        if f"field.{k}" in first and isinstance(v, int | float | str) and not isinstance(v, bool)
    }


def cell(values: list[float], digits: int) -> str:
    """``98.21 ± .08``: the mean over seeds and half its interval."""
    told = interval(values)
    half = (told.high - told.low) / 2
    spread = f" ± {half:.{digits}f}" if math.isfinite(half) else ""
    return f"{told.mean:.{digits}f}{spread}"


def table(found: list[Row], part: str, name: str, scale: float, digits: int) -> list[str]:
    """One line a level, one column a branch."""
    by: dict[tuple[str, int], list[float]] = defaultdict(list)
    density = {}
    for row in found:
        if part not in row:
            continue
        by[row["branch"], row["level"]].append(scale * row[part][name])
        density[row["level"]] = row["density"]
    branches = [name for name in dict.fromkeys(name for name, _ in by) if name != "dense"]
    lines = [
        "| level | weights | " + " | ".join(branches) + " |",
        "|---" * (2 + len(branches)) + "|",
    ]
    for level in sorted(density):
        numbers = [by.get((b if level else "dense", level), []) for b in branches]
        shown = [cell(values, digits) if values else "" for values in numbers]
        lines.append(f"| {level} | {100 * density[level]:.2f} % | " + " | ".join(shown) + " |")
    return lines


def differences(found: list[Row], first: str, second: str) -> list[str]:
    """Test accuracy at the last step, ``first`` minus ``second``: a line a length of a level.

    The last column is the fair control of a network that goes on: the dense network trained for as
    many steps as the last level of ``second`` has behind it, minus ``second``; where it was run.
    """
    by: dict[tuple[str, int, int], dict[int, float]] = defaultdict(dict)
    density = {}
    for row in found:
        place = (row["branch"], row["level"], int(row["steps"]))
        by[place][row["seed"]] = 100 * row["last"]["test_accuracy"]
        if row["level"]:
            density[row["level"]] = row["density"]

    def pair(left: dict[int, float], right: dict[int, float]) -> str:
        seeds = sorted(left.keys() & right.keys())
        if len(seeds) < 2:
            return ""
        told = interval([left[seed] - right[seed] for seed in seeds])
        return f"{told.mean:.2f} ({told.low:.2f} to {told.high:.2f})"

    last = max(density)
    levels = [level for level in (4, 7, 10, 12, 15, last) if level in density]
    lines = [
        "| steps a level | "
        + " | ".join(f"{100 * density[level]:.1f} %" for level in levels)
        + f" | dense, as long as {second} at {100 * density[last]:.1f} % |",
        "|---" * (2 + len(levels)) + "|",
    ]
    for steps in sorted({place[2] for place in by if place[1]}):
        cells = [pair(by[first, level, steps], by[second, level, steps]) for level in levels]
        long = by["dense", 0, steps * (last + 1)]
        cells.append(pair(long, by[second, last, steps]))
        lines.append(f"| {steps:,} | " + " | ".join(cells) + " |")
    return lines


def verdicts(found: list[Row], name: str, fields: dict[str, Any]) -> list[str]:
    """The claims that these rows can tell of."""
    lines = ["| claim | paper | here, 95 % over seeds | verdict |", "|---|---|---|---|"]
    for measured in study(name).claims:
        verdict = measured.verdict(found, fields)
        if verdict is None:
            continue
        claim, told = measured.claim, verdict.interval
        unit = "" if claim.unit == "ratio" else f" {claim.unit}"
        paper = "" if claim.paper is None else f"{claim.paper:g}{unit}"
        ours = f"{told.mean:.2f}{unit} ({told.low:.2f} to {told.high:.2f}, {told.n} seeds)"
        words = f"{claim.statement} *{claim.measure}; {claim.source}, {claim.id}*"
        lines.append(f"| {words} | {paper} | {ours} | **{verdict.word}** |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="an exported CSV file, or a store")
    parser.add_argument("--study", default="lottery")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--seeds", type=int, help="of a store")
    parser.add_argument("--set", dest="sets", action="append", default=[], help="of a store")
    parser.add_argument("--differences", nargs=2, metavar="BRANCH", help="over lengths of a level")
    asked = parser.parse_args()
    if asked.source.is_dir():
        found, fields = stored(asked.source, asked.study, asked.preset, asked.seeds, asked.sets)
    else:
        found, fields = rows(asked.source), given(asked.source, asked.study, asked.preset)
    if asked.differences:
        print(*differences(found, *asked.differences), sep="\n")
        return
    seeds = sorted({row["seed"] for row in found})
    seconds = [row["seconds_cpu"] for row in found if "seconds_cpu" in row]  # of an export
    took = f", {sum(seconds) / 3600:.1f} CPU hours" if seconds else ""
    print(f"{len(found)} cells, seeds {', '.join(map(str, seeds))}{took}.\n")
    for title, part, name, scale, digits in (
        ("Test accuracy in % at early stopping", "best", "test_accuracy", 100, 2),
        ("Test accuracy in % at the last step", "last", "test_accuracy", 100, 2),
        ("Step of early stopping", "best", "step", 1, 0),
        ("Training accuracy in % at the last step", "last", "train_accuracy", 100, 2),
    ):
        print(f"**{title}**\n", *table(found, part, name, scale, digits), "", sep="\n")
    print("**Claims**\n", *verdicts(found, asked.study, fields), "", sep="\n")


if __name__ == "__main__":
    main()
