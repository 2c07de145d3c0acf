"""The figure of a mask's health: what each layer keeps, and what its units are good for."""

from __future__ import annotations

from typing import Any

import altair as alt

from secateur.prune.examine import Health
from secateur.report.charts import PRINT, Theme

# From what works to what does not; colours by place in the theme's palette, live units first.
KINDS = (
    ("live", "live", 3),
    ("cut_off", "cut off", 4),
    ("no_input", "no live input", 1),
    ("no_output", "no live output", 2),
    ("neither", "neither", 5),
)


def draw(health: Health, theme: Theme = PRINT) -> dict[str, Any]:
    """The Vega-Lite specification: one row a layer, weights on the left and units on the right.

    Left: the kept share of the weights, and inside it the effective one, on a logarithmic axis.
    Right: the shares of the units that are live, or dead in one of four ways. Two data sets lie in
    it: "weights" (layer, kind, share, count) and "units" (layer, kind, share, count, place).
    """
    rows = health.rows()
    order = [row["name"] for row in rows]
    weights = [
        {"layer": r["name"], "kind": kind, "share": r[key] / r["size"], "count": r[key]}
        for r in rows
        for key, kind in (("kept", "kept"), ("effective", "on a path"))
        if r[key]  # a share of 0 has no place on a logarithmic axis
    ]
    units = [
        {
            "layer": r["name"],
            "kind": kind,
            "share": r[key] / r["units"],
            "count": r[key],
            "place": place,
        }
        for r in rows
        if r["units"]
        for place, (key, kind, _) in enumerate(KINDS)
    ]
    y = alt.Y("layer:N", sort=order, title=None, scale=alt.Scale(domain=order))
    tooltip = [
        alt.Tooltip("layer:N", title="title"),
        alt.Tooltip("kind:N", title="Which"),
        alt.Tooltip("count:Q", title="Number", format=","),
        alt.Tooltip("share:Q", title="Share", format=".3~%"),
    ]
    lowest = min((w["share"] for w in weights), default=1.0)
    bars = (
        alt.Chart(alt.NamedData(name="weights"))
        .mark_tick(thickness=4, opacity=1)
        .encode(
            x=alt.X(
                "share:Q",
                title="Share of the weights",
                scale=alt.Scale(type="log", domain=[min(lowest, 0.1) / 1.5, 1]),
                axis=alt.Axis(format=".2~%"),
            ),
            y=y,
            color=alt.Color(
                "kind:N",
                title="Weights",
                scale=alt.Scale(
                    domain=["kept", "on a path"], range=[theme.palette[5], theme.palette[0]]
                ),
            ),
            # Where all that is kept is on a path, both stay visible.
            size=alt.condition("datum.kind == 'kept'", alt.value(15), alt.value(8)),
            tooltip=tooltip,
        )
        .properties(width=230, height=alt.Step(20))
    )
    stacks = (
        alt.Chart(alt.NamedData(name="units"))
        .mark_bar(size=13)
        .encode(
            x=alt.X(
                "share:Q",
                title="Share of the units",
                axis=alt.Axis(format="%"),
                scale=alt.Scale(domain=[0, 1]),
            ),
            y=alt.Y(
                "layer:N",
                sort=order,
                title=None,
                axis=alt.Axis(labels=False, ticks=False),
                scale=alt.Scale(domain=order),
            ),
            order=alt.Order("place:Q"),
            color=alt.Color(
                "kind:N",
                title="Units",
                scale=alt.Scale(
                    domain=[kind for _, kind, _ in KINDS],
                    range=[theme.palette[c] for _, _, c in KINDS],
                ),
            ),
            tooltip=tooltip,
        )
        .properties(width=230, height=alt.Step(20))
    )
    said = "collapsed: no path is left" if health.collapsed else f"density {health.density:.3%}"
    if health.effective_density is not None and not health.collapsed:
        said += f", {health.effective_density:.3%} on a path"
    figure = (
        alt.hconcat(bars, stacks, spacing=12)
        .resolve_scale(color="independent")
        .properties(
            title=alt.TitleParams(
                f"{health.method} on {health.network}", subtitle=said, anchor="start"
            ),
            background="transparent" if theme.on_page else theme.paper,
            padding=8,
        )
        .configure(
            font=theme.font,
            axis=alt.AxisConfig(
                labelColor=theme.quiet,
                titleColor=theme.ink,
                gridColor=theme.grid,
                domainColor=theme.grid,
                tickColor=theme.grid,
                titleFontWeight="normal",
                labelLimit=220,
            ),
            legend=alt.LegendConfig(
                labelColor=theme.ink, titleColor=theme.quiet, titleFontWeight="normal"
            ),
            title=alt.TitleConfig(color=theme.ink, subtitleColor=theme.quiet),
            view=alt.ViewConfig(stroke=None),
        )
    )
    spec: dict[str, Any] = figure.to_dict()
    spec["datasets"] = {"weights": weights, "units": units}
    return spec
