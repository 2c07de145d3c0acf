"""Curves -> one Vega-Lite specification, which is the figure of the page and of the SVG and PDF.

The page's theme names colours as CSS variables, so that light, dark and print are one drawing; the
print theme names the same colours as numbers. What the page selects arrives as four parameters
(`picked_branch`, `picked_seed`, `picked_level`, `hovered`), which its script sets; in an exported
figure they stay empty.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import altair as alt

from secateur.report.numbers import sentence
from secateur.report.series import Point, Single, branches, colours, means, singles
from secateur.report.view import View
from secateur.studies.figures import Curves

FONT = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', "
    "'Liberation Sans', Arial, sans-serif"
)
DASHES = ([1, 0], [7, 3], [2, 2.5], [9, 3, 2, 3], [4, 2], [12, 4], [1, 3], [6, 2, 1, 2, 1, 2])
SHAPES = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "triangle-down",
    "cross",
    "triangle-left",
    "triangle-right",
)


def turned(place: int, shift: int = 3) -> int:
    """The dash or marker of a branch; the ninth colour is the first again, its dash is another."""
    return (place + shift * (place // len(DASHES))) % len(DASHES)


@dataclass(frozen=True)
class Theme:
    """What a drawing looks like apart from its data."""

    ink: str
    quiet: str
    grid: str
    paper: str
    palette: tuple[str, ...]
    font: str
    on_page: bool  # legend, title and seeds are the page's; elsewhere the figure has its own legend


# After Okabe & Ito (told apart with every common colour blindness), darkened to 3:1 on white;
# assets/page.css holds the same eight and their lighter twins for dark mode.
PALETTE = (
    "#0b6bb0",
    "#cc4f08",
    "#8d4a9e",
    "#12805c",
    "#a5760a",
    "#4c5a67",
    "#c2346b",
    "#2f8aa8",
)

PAGE = Theme(
    ink="var(--ink)",
    quiet="var(--quiet)",
    grid="var(--rule)",
    paper="var(--paper)",
    palette=tuple(f"var(--c{place})" for place in range(len(PALETTE))),
    font=FONT,
    on_page=True,
)
PRINT = Theme(
    ink="#1a1d21",
    quiet="#5a626b",
    grid="#e3e6e9",
    paper="#ffffff",
    palette=PALETTE,
    font="Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif",
    on_page=False,
)


def draw(view: View, curves: Curves, theme: Theme = PAGE) -> dict[str, Any]:
    """The Vega-Lite specification of a figure, checked against altair's schema.

    Two data sets lie in it: "seeds" (branch, seed, level, x, y) and "means" (branch, level, x, y,
    low, high, n). A branch has the same colour, dash and marker in every figure of a view.
    """
    every = singles(view, curves)
    middle = means(every, curves.band)
    scales = _scales(view, curves, every, middle, theme)
    x, y = scales["x"], scales["y"]
    colour, dash, shape = scales["colour"], scales["dash"], scales["shape"]
    label = f"{json.dumps(scales['labels'])}[datum.branch]"

    means_data, seeds_data = alt.NamedData(name="means"), alt.NamedData(name="seeds")
    lit = "hovered === '' || hovered === datum.branch"
    mine = "datum.branch === picked_branch && datum.seed === picked_seed"
    shown = "hovered === datum.branch || (hovered === '' && picked_branch === datum.branch)"

    band = (
        alt.Chart(means_data)
        .transform_filter("isValid(datum.low)")
        .transform_calculate(foot=scales["foot"])
        .mark_area(aria=False, tooltip=None, clip=True)
        .encode(
            x=x,
            y=scales["low"],
            y2="high:Q",
            color=colour,
            opacity=alt.condition(lit, alt.value(0.16), alt.value(0.05)),
        )
    )
    threads = (
        alt.Chart(seeds_data)
        .mark_line(aria=False, strokeWidth=1, strokeJoin="round")
        .encode(
            x=x,
            y=y,
            color=colour,
            detail="seed:N",
            opacity=alt.condition(shown, alt.value(0.32), alt.value(0)),
        )
    )
    chosen = (
        alt.Chart(seeds_data)
        .mark_line(aria=False, strokeWidth=1.2, strokeJoin="round")
        .encode(
            x=x,
            y=y,
            color=colour,
            detail="seed:N",
            opacity=alt.condition(mine, alt.value(0.95), alt.value(0)),
        )
    )
    line = (
        alt.Chart(means_data)
        .mark_line(aria=False, strokeWidth=2.4, strokeJoin="round", strokeCap="round")
        .encode(
            x=x,
            y=y,
            color=colour,
            strokeDash=dash,
            opacity=alt.condition(lit, alt.value(1), alt.value(0.25)),
        )
    )
    markers = (
        alt.Chart(means_data)
        .mark_point(aria=False, filled=True, size=50, stroke=theme.paper, strokeWidth=0.8)
        .encode(
            x=x,
            y=y,
            color=colour,
            shape=shape,
            opacity=alt.condition(lit, alt.value(1), alt.value(0.25)),
        )
    )
    ring = (
        alt.Chart(seeds_data)
        .mark_point(aria=False, size=150, strokeWidth=2, filled=False)
        .encode(
            x=x,
            y=y,
            color=colour,
            opacity=alt.condition(
                f"{mine} && datum.level === picked_level", alt.value(1), alt.value(0)
            ),
        )
    )
    # What the pointer meets: a wide invisible line to choose a branch, wide points for the numbers.
    wide = (
        alt.Chart(means_data)
        .mark_line(aria=False, strokeWidth=14, opacity=0, cursor="pointer")
        .encode(x=x, y=y, color=colour)
    )
    hits = (
        alt.Chart(means_data)
        .transform_calculate(label=label, spread=_spread(curves))
        .mark_point(aria=False, filled=True, size=260, opacity=0, cursor="pointer")
        .encode(
            x=x,
            y=y,
            color=colour,
            tooltip=[
                alt.Tooltip("label:N", title="title"),  # the tooltip's heading
                alt.Tooltip(
                    "x:Q", title=sentence(curves.x_title), format=_format(curves.percent_x, ".2f")
                ),
                alt.Tooltip(
                    "y:Q", title=sentence(curves.y_title), format=_format(curves.percent_y, ".4~f")
                ),
                alt.Tooltip("spread:N", title=BAND_TITLE[curves.band]),
                alt.Tooltip("n:Q", title="Seeds"),
                alt.Tooltip("level:Q", title="Level"),
            ],
        )
    )
    layers = [line, markers]
    if theme.on_page:
        layers = [threads, chosen, line, markers, ring, wide, hits]
    if any(point.low is not None for point in middle):
        layers.insert(0, band)
    figure = (
        alt.layer(*layers)
        .add_params(
            alt.param(name="picked_branch", value=""),
            alt.param(name="picked_seed", value=-1),
            alt.param(name="picked_level", value=-1),
            alt.param(name="hovered", value=""),
        )
        .properties(
            width="container" if theme.on_page else 560,
            height=380 if theme.on_page else 340,
            title=_title(curves, theme),
            description=f"{curves.title}. {curves.caption}",
            padding={"left": 0, "right": 0, "top": 4, "bottom": 2} if theme.on_page else 8,
            autosize=alt.AutoSizeParams(type="fit-x" if theme.on_page else "pad"),
            background="transparent" if theme.on_page else theme.paper,
        )
        .configure(**_config(theme))
    )
    spec: dict[str, Any] = figure.to_dict()
    spec["datasets"] = {
        "means": [_short(asdict(point)) for point in middle],
        "seeds": [_short(asdict(point)) for point in every],
    }
    return spec


BAND_TITLE = {"t95": "95% interval", "minmax": "Range"}


def _scales(
    view: View, curves: Curves, every: list[Single], middle: list[Point], theme: Theme
) -> dict[str, Any]:
    """The encodings that all layers share."""
    drawn = {point.branch for point in every}
    names = [branch.name for branch in branches(view) if branch.name in drawn]
    labels = {branch.name: branch.label for branch in branches(view)}
    place = colours(view)

    def pick(choices: Any, shift: int = 0) -> list[Any]:
        return [choices[turned(place[name], shift) % len(choices)] for name in names]

    legend: Any = None
    if not theme.on_page:
        legend = alt.Legend(
            title=None,
            orient="bottom",
            columns=2,
            labelExpr=f"{json.dumps(labels)}[datum.value]",
            symbolSize=110,
            symbolStrokeWidth=0,  # else the curve's dashes run round the marker
            labelLimit=320,
        )
    shown = frame(every, middle, curves.percent_y, curves.y_log)
    shown = shown if shown and shown[0] < shown[1] else None
    extent: dict[str, Any] = {"domain": [float(f"{end:.6g}") for end in shown]} if shown else {}
    ticks: dict[str, Any] = {"tickCount": 6}
    if curves.y_log:
        extent |= {"type": "log"}
        ticks = {"values": log_ticks(*shown)} if shown else ticks
    else:
        extent |= {"zero": False, "nice": True}
    y: dict[str, Any] = {
        "scale": alt.Scale(padding=6, **extent),
        "axis": alt.Axis(title=None, **ticks, **_labels(curves.percent_y)),
    }
    branch = alt.Scale(domain=names, range=pick(theme.palette))
    return {
        "labels": labels,
        "colour": alt.Color("branch:N", scale=branch, legend=legend),
        "dash": alt.StrokeDash(
            "branch:N", scale=alt.Scale(domain=names, range=pick(DASHES, 3)), legend=None
        ),
        "shape": alt.Shape(
            "branch:N", scale=alt.Scale(domain=names, range=pick(SHAPES, 3)), legend=legend
        ),
        "x": alt.X("x:Q", scale=_x_scale(curves), axis=_x_axis(curves, every)),
        "y": alt.Y("y:Q", **y),
        "low": alt.Y("foot:Q", **y),
        # Where a band begins: a logarithmic axis has no place for 0 and below.
        "foot": f"max(datum.low, {shown[0]})" if curves.y_log and shown else "datum.low",
    }


def frame(
    every: list[Single], middle: list[Point], percent: bool = False, log: bool = False
) -> tuple[float, float] | None:
    """The heights that a figure shows: all seeds, and of the bands what lies near them.

    With two seeds a 95 % interval is 18 standard deviations wide: shown whole, it would press the
    curves into one line. Beyond half of the seeds' own range a band is cut.
    """
    if not every:
        return None
    if log:
        seeds = [replace(p, y=math.log10(p.y)) for p in every]
        bands = [replace(p, low=_log(p.low), high=_log(p.high)) for p in middle]
        shown = frame(seeds, bands)
        return shown and (10 ** shown[0], 10 ** shown[1])
    least, most = min(p.y for p in every), max(p.y for p in every)
    room = (most - least) / 2
    lows = [p.low for p in middle if p.low is not None]
    highs = [p.high for p in middle if p.high is not None]
    low, high = max(min([least, *lows]), least - room), min(max([most, *highs]), most + room)
    # No room for what cannot be: steps and losses below 0, accuracies above 1.
    floor = 0.0 if least >= 0 else low
    ceiling = 1.0 if percent and most <= 1 else high
    return max(low, floor), min(high, ceiling)


def _log(y: float | None) -> float | None:
    return y if y is None else math.log10(y) if y > 0 else -math.inf


def cut(every: list[Single], middle: list[Point], percent: bool = False, log: bool = False) -> bool:
    """Whether a band reaches beyond what the figure shows."""
    shown = frame(every, middle, percent, log)
    return shown is not None and any(
        p.low is not None and p.high is not None and (p.low < shown[0] or p.high > shown[1])
        for p in middle
    )


def _x_scale(curves: Curves) -> alt.Scale:
    if curves.x_log:
        return alt.Scale(type="log", reverse=curves.x_reverse, nice=False, padding=12)
    return alt.Scale(reverse=curves.x_reverse, nice=False, zero=False, padding=12)


def _x_axis(curves: Curves, every: list[Single]) -> alt.Axis:
    extra: dict[str, Any] = {"tickCount": 6}
    if curves.x_log and every:
        extra = {"values": log_ticks(min(p.x for p in every), max(p.x for p in every))}
    return alt.Axis(
        title=sentence(curves.x_title), grid=False, **extra, **_labels(curves.percent_x)
    )


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 3 and 5 times the powers of ten within [low, high], without the 3 above two decades."""
    digits = (1, 2, 3, 5) if high < 100 * low else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
    return [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def _labels(percent: bool) -> dict[str, Any]:
    if percent:
        return {"labelExpr": "format(datum.value * 100, '.4~g') + '%'"}
    return {"format": ",.6~g"}


def _format(percent: bool, plain: str) -> str:
    return ".2%" if percent else plain if plain != ".4~f" else ",.4~g"


def _spread(curves: Curves) -> str:
    number = _format(curves.percent_y, ".4~f")
    return (
        f"isValid(datum.low) ? format(datum.low, '{number}') + ' to ' "
        f"+ format(datum.high, '{number}') : 'one seed'"
    )


def _title(curves: Curves, theme: Theme) -> Any:
    """The y axis says what it is above the plot, level, where it can be read."""
    if theme.on_page:
        return alt.TitleParams(
            text=sentence(curves.y_title),
            fontSize=12,
            fontWeight="normal",
            color=theme.quiet,
            offset=10,
        )
    return alt.TitleParams(
        text=curves.title, subtitle=sentence(curves.y_title), fontSize=15, offset=14
    )


def _config(theme: Theme) -> dict[str, Any]:
    return {
        "font": theme.font,
        "view": {"stroke": None},
        "title": {
            "anchor": "start",
            "frame": "bounds",
            "color": theme.ink,
            "subtitleColor": theme.quiet,
            "subtitleFontSize": 12,
            "subtitlePadding": 6,
        },
        "axis": {
            "domain": False,
            "ticks": False,
            "grid": True,
            "gridColor": theme.grid,
            "labelColor": theme.quiet,
            "labelFontSize": 12,
            "labelPadding": 8,
            "titleColor": theme.quiet,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 12,
        },
        "axisX": {
            "domain": True,
            "domainColor": theme.quiet,
            "ticks": True,
            "tickColor": theme.quiet,
        },
        "legend": {"labelColor": theme.ink, "labelFontSize": 12, "symbolOpacity": 1},
    }


def _short(values: dict[str, Any]) -> dict[str, Any]:
    """Six significant digits: far below a pixel, and half the page."""
    return {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in values.items()
    }
