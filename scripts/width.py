"""One draw of the weights, the mean over draws, and the analytic kernel, over width: the figure.

    python scripts/width.py [--seeds 5] [--draws 40] [--drawn]

Writes docs/results/width.csv, a row for each seed, width and density, and docs/images/width.svg;
prints the table of docs/results_kernels.md. NTK-SAP prunes by kernels of random weights since
their mean stands for a wide network, dense or masked (Wang, Li & Sun 2023, section 3); the figure
says how far one draw is from it, and how far the mean.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import altair as alt
import jax
import numpy as np

from secateur import data
from secateur.core.network import Network
from secateur.core.trees import Mask, map_mask
from secateur.kernels.ensemble import DenseEnsemble
from secateur.kernels.expectation import over_width
from secateur.lab.verdicts import interval
from secateur.report.charts import PRINT
from secateur.report.export import save

DOCS = Path(__file__).parents[1] / "docs"
WIDTHS = (16, 64, 256, 1024)
DENSITIES = (1.0, 0.1)
EXAMPLES = 8
LINES = {
    "draw_to_analytic": "one draw to the analytic kernel",
    "draw_to_mean": "one draw to the mean",
    "mean_to_analytic": "mean over draws to the analytic kernel",
    "mean_to_analytic_noise": "the same from the number of draws alone",
}


def rows(seeds: int, draws: int) -> list[dict[str, Any]]:
    """Each seed has examples, masks and weights of its own."""
    train = data.load("mnist5k").train
    found = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        taken = rng.choice(len(train.images), EXAMPLES, replace=False)
        x = train.images[taken].reshape(EXAMPLES, -1).astype(np.float32) / 255
        ensemble = DenseEnsemble(x.shape[1], (1, 1), 10)
        for density in DENSITIES:

            def mask(network: Network, density: float = density, rng: Any = rng) -> Mask:
                shapes = jax.eval_shape(network.init, jax.random.key(0))[0]
                draw = lambda m: None if m is None else rng.random(m.shape) < density
                return map_mask(lambda m, _: draw(m), network.prunable(shapes), shapes)

            options = {} if density == 1 else {"mask": mask}
            made = over_width(ensemble, WIDTHS, x, key=jax.random.key(seed), draws=draws, **options)
            found += [{"seed": seed, "density": density, **row} for row in made]
            print(f"seed {seed}, density {density}", flush=True)
    return found


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over seeds with its 95 % t interval, of every line, width and density."""
    made = []
    for density in DENSITIES:
        for width in WIDTHS:
            some = [r for r in found if (r["density"], r["width"]) == (density, width)]
            for name in (*LINES, "trace_spread"):
                of = interval([r[name] for r in some])
                at = {"density": density, "width": width, "name": name}
                made.append(at | {"middle": of.mean, "low": of.low, "high": of.high})
    return made


def figure(made: list[dict[str, Any]]) -> dict[str, Any]:
    """Distance over width, both logarithmic; dense and masked side by side."""
    shown = [
        r | {"line": LINES[r["name"]], "low": max(r["low"], 1e-3)}
        for r in made
        if r["name"] in LINES
    ]
    x = alt.X(
        "width:Q",
        scale=alt.Scale(type="log", domain=[WIDTHS[0] / 1.3, WIDTHS[-1] * 1.3], nice=False),
        axis=alt.Axis(values=list(WIDTHS), grid=False, title="width of both hidden layers"),
    )
    ticks = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2]
    y = alt.Y(
        "middle:Q",
        scale=alt.Scale(type="log", domain=[0.005, 3], nice=False),
        axis=alt.Axis(values=ticks, title="distance over the analytic kernel's norm"),
    )
    names = list(LINES.values())
    colour = alt.Color(
        "line:N",
        scale=alt.Scale(domain=names, range=[*PRINT.palette[:3], PRINT.quiet]),
        legend=alt.Legend(
            title=None, orient="bottom", columns=2, labelLimit=320, symbolType="stroke"
        ),
    )
    dash = alt.StrokeDash(
        "line:N",
        scale=alt.Scale(domain=names, range=[[1, 0], [7, 3], [1, 0], [2, 2.5]]),
        legend=None,
    )
    base = alt.Chart().encode(x=x, color=colour)
    drawn = alt.layer(
        base.mark_line(strokeWidth=2).encode(y=y, strokeDash=dash),
        base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_point(filled=True, size=36, opacity=1).encode(y=y),
        data=alt.Data(values=shown),
    ).properties(width=300, height=280)
    titles = {1.0: "dense", 0.1: "random mask of density 0.1"}
    sides = alt.hconcat(
        *(
            drawn.transform_filter(alt.datum.density == d).properties(title=titles[d])
            for d in DENSITIES
        )
    ).resolve_scale(y="shared", color="shared", strokeDash="shared")
    return (
        sides.properties(background=PRINT.paper)
        .configure(font=PRINT.font)
        .configure_axis(gridColor=PRINT.grid, labelColor=PRINT.quiet, titleColor=PRINT.ink)
        .configure_view(stroke=None)
        .to_dict()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument(
        "--drawn", action="store_true", help="take the rows of the CSV that is there"
    )
    asked = parser.parse_args()
    table = DOCS / "results" / "width.csv"
    if not asked.drawn:
        found = rows(asked.seeds, asked.draws)
        with open(table, "w", newline="") as file:
            out = csv.DictWriter(file, list(found[0]), lineterminator="\n")
            out.writeheader()
            out.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in found)
    with open(table, newline="") as file:
        made = summary([{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)])
    save(figure(made), DOCS / "images" / "width.svg")
    names = (*LINES, "trace_spread")
    for density in DENSITIES:
        for width in WIDTHS:
            at = {r["name"]: r for r in made if (r["density"], r["width"]) == (density, width)}
            cells = [
                f"{at[n]['middle']:.3f} ± {at[n]['high'] - at[n]['middle']:.3f}" for n in names
            ]
            print(f"| {density:g} | {width:,} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
