"""One self-contained HTML page from a View: opens offline, asks the network for nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from secateur.report import charts, claims, films, inside, numbers, png, stills, trust
from secateur.report.files import publish
from secateur.report.series import (
    Run,
    branches,
    colours,
    is_level,
    last,
    level,
    means,
    number,
    runs,
    singles,
)
from secateur.report.view import View
from secateur.studies.figures import Curves

ASSETS = resources("secateur.report") / "assets"
FILMS = tuple(f"films{part}.js" for part in ("_data", "_graph", "_chart", "_draw", "_hover", ""))
LICENCES = ("vega", "vega-lite", "vega-embed", "others")


def build(view: View) -> str:
    """The whole page as text. Everything but the drawn curves is there without a script."""
    every = runs(view)
    first = every[0] if every else None
    maps = inside.maps(view, every)
    layers = inside.layers(every)
    place = colours(view)
    context = {
        "view": view,
        "branches": [
            {
                "name": b.name,
                "label": b.label,
                "sentence": b.sentence,
                "colour": place[b.name] % 8,
                "dash": charts.turned(place[b.name]),
            }
            for b in branches(view)
        ],
        "seeds": sorted({run.seed for run in every}),
        "first": first,
        "first_row": last(first) if first else {},
        "facts": facts(view, every),
        "samples": [png.address(image) for image in view.samples],
        "samples_grey": all(image.ndim == 2 or image.shape[2] == 1 for image in view.samples),
        "figures": [made for curves in view.figures if (made := figure(view, curves))["lines"]],
        "claims": [claims.line(claim) for claim in view.claims],
        "verdicts": claims.summary(view.claims),
        "films": played(view) if view.films else None,
        "layers": layers,
        "table": inside.table(first, every) if first and (layers or maps) else [],
        "maps": inside.pictures(view, every, first) if maps and first else [],
        "cards": [trust.card(run) for run in every],
        "trust": trust.summary(view.rows),
        "settings": list(flat(view.settings)),
        "data": embedded(
            {
                "branches": [{"name": b.name, "label": b.label} for b in branches(view)],
                "first": {
                    "branch": first.branch if first else "",
                    "seed": first.seed if first else 0,
                    "level": level(last(first)) if first else 0,
                },
                "runs": inside.runs(every),
                "maps": maps,
            }
        ),
        "css": Markup(asset("page.css").decode()),
        "js": Markup(asset("page.js").decode()),
        "bundle": base64.b64encode(asset("vega.js.gz")).decode("ascii"),
        "bundle_versions": asset("vega.versions.txt").decode().strip(),
        "licences": Markup("\n\n".join(asset(f"LICENSE.{name}.txt").decode() for name in LICENCES)),
        "dashes": [" ".join(map(str, dash)) for dash in charts.DASHES],
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("secateur.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        percent=numbers.percent, plain=numbers.plain, many=numbers.many, seconds=numbers.seconds
    )
    return environment.get_template("page.html").render(context)


def write(view: View, path: str | Path) -> Path:
    """Write the page to `path`: whoever opens it meanwhile sees the old page or the new one.

    Raises:
        SecateurError: where the file cannot be written.
    """
    return publish(path, build(view).encode("utf-8"))


def asset(name: str) -> bytes:
    return (ASSETS / name).read_bytes()


def embedded(value: Any) -> Markup:
    """JSON that may stand inside <script>: no "<", so nothing in it can close the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def played(view: View) -> dict[str, Any]:
    """The section of films: their data, its script, and what stands there without script."""
    made = films.pack(view.films, films.LIMIT)
    ordered = sorted(view.films, key=lambda film: film.seed)  # as they are packed
    label = {branch.name: branch.label for branch in branches(view)}
    shown, kept = made.thinned
    said = []
    if shown < kept:
        said.append(
            f"To keep the page small, {shown:,} of the {kept:,} frames that the study kept are "
            "here, evenly spaced in each film."
        )
    if made.left_out:
        said.append(f"{numbers.many(made.left_out, 'film')} more found no room.")
    return {
        "data": embedded({"films": made.films, "controls": made.controls, "labels": label}),
        "controls": [
            {**c, "label": numbers.sentence(c["name"].replace("_", " "))} for c in made.controls
        ],
        "said": said,
        "pictures": stills.pictures(ordered[0]),
        "table": stills.table(ordered),
        "more": max(0, len(ordered) - stills.LINES),
        "css": Markup(asset("films.css").decode()),
        "js": Markup("\n".join(asset(name).decode() for name in FILMS)),
    }


def facts(view: View, every: Sequence[Run]) -> list[str]:
    """How large the study was, in a few words each."""
    if not every:
        return ["no results yet"]
    rows = [row for run in every for row in run.rows if is_level(row)]
    levels = {int(row.get("depth", level(row))) for row in rows}
    words = [
        numbers.many(len({run.branch for run in every}), "branch", "branches"),
        numbers.many(len({run.seed for run in every}), "seed"),
        numbers.many(len(levels), "level"),
    ]
    densities = [d for row in view.rows if (d := number(row, "density")) is not None]
    if densities and min(densities) < 1:
        words[-1] += f", down to {numbers.percent(min(densities))} of the weights"
    # Other cells only measure; a dense network that branches share stands in a row of each.
    told = ([row.get("seed"), row.get("hashes"), row["last"]] for row in view.rows if "last" in row)
    trainings = len({json.dumps(one, sort_keys=True, default=str) for one in told})
    if trainings:
        words.append(numbers.many(trainings, "network") + " trained")
    cpu = [s for row in view.rows if (s := number(row, "made.seconds_cpu")) is not None]
    if cpu:
        words.append(f"{numbers.seconds(sum(cpu))} of CPU time")
    return words


def figure(view: View, curves: Curves) -> dict[str, Any]:
    """A figure's specification, and its numbers as a table for readers without script."""
    every = singles(view, curves)
    middle = means(every, curves.band)
    named = [branch for branch in branches(view) if any(p.branch == branch.name for p in middle)]
    show = numbers.percent if curves.percent_x else numbers.plain
    lines = []
    for step in sorted({point.level for point in middle}):
        here = {point.branch: point for point in middle if point.level == step}
        x = show(next(iter(here.values())).x)
        cells = []
        for branch in named:
            point = here.get(branch.name)
            if point is None:
                cells.append("–")
                continue
            y = numbers.percent(point.y, 2) if curves.percent_y else numbers.measured(point.y)
            if point.low is not None and point.high is not None:
                half = (point.high - point.low) / 2
                y += " ± " + (f"{100 * half:.2f}" if curves.percent_y else numbers.measured(half))
            cells.append(y)
        lines.append({"level": step, "x": x, "cells": cells})
    seeds = {point.n for point in middle}
    spread = ""
    if seeds and max(seeds) > 1:
        what = "95% t-interval" if curves.band == "t95" else "range"
        few = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else str(max(seeds))
        spread = f"Lines are means, bands the {what} over {few} seeds."
        if charts.cut(every, middle, curves.percent_y, curves.y_log):
            spread += " Where a band leaves the frame it is wider than is shown."
    elif seeds:
        spread = "One seed: no band."
    return {
        "name": curves.name,
        "title": curves.title,
        "caption": curves.caption,
        "spread": spread,
        "spec": embedded(charts.draw(view, curves)),
        "x_title": numbers.sentence(curves.x_title),
        "columns": [branch.label for branch in named],
        "lines": lines,
    }


def flat(value: Mapping[str, Any], prefix: str = "") -> Any:
    """("recipe.rate", "0.0012") for each leaf of nested settings."""
    for name, leaf in value.items():
        if isinstance(leaf, Mapping):
            yield from flat(leaf, f"{prefix}{name}.")
        elif isinstance(leaf, (list, tuple)):
            yield prefix + name, ", ".join(map(str, leaf))
        else:
            yield prefix + name, str(leaf)
