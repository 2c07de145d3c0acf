"""A paper's claim beside what we measured: a table line and a small drawing of the interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from secateur.report import numbers

KINDS = {"reproduced": "yes", "not reproduced": "no", "too few seeds to tell": "open"}
SIGNS = {"yes": "✓", "no": "✕", "open": "?"}
WIDTH, HEIGHT, EDGE = 150, 34, 8


def line(claim: Mapping[str, Any]) -> dict[str, Any]:
    """A claim as the table shows it, every number as text."""
    unit = str(claim.get("unit") or "")
    verdict = str(claim["verdict"])
    kind = KINDS.get(verdict, "open")
    word = {"points": "points", "percent": ""}.get(unit, unit)
    low, high = claim.get("low"), claim.get("high")
    interval = ""
    if low is not None and high is not None:
        interval = f"{numbers.measured(low, unit)} to {numbers.measured(high, unit)}"
    return {
        "id": claim["id"],
        "source": claim.get("source") or "",
        "statement": claim["statement"],
        "measure": claim.get("measure") or "",
        "paper": numbers.measured(claim.get("paper"), unit),
        "ours": numbers.measured(claim.get("ours"), unit),
        "interval": interval,
        "unit": word,
        "n": claim.get("n"),
        "needed": claim.get("needed"),
        "verdict": verdict,
        "kind": kind,
        "sign": SIGNS[kind],
        "note": claim.get("note") or "",
        "drawing": drawing(claim),
    }


def summary(all_claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How many claims have each verdict, in a fixed order, none left out but the empty ones."""
    count = dict.fromkeys(KINDS, 0)
    for claim in all_claims:
        count[claim["verdict"]] = count.get(claim["verdict"], 0) + 1
    return [
        {"n": n, "verdict": verdict, "kind": KINDS.get(verdict, "open")}
        for verdict, n in count.items()
        if n
    ]


def drawing(claim: Mapping[str, Any]) -> Markup:
    """Our interval and mean, the paper's number as a diamond, the verdict's margin as a line.

    Each claim has its own scale. Empty where there is nothing measured to draw.
    """
    found = {name: claim.get(name) for name in ("low", "high", "ours", "paper", "margin")}
    known = {name: float(v) for name, v in found.items() if isinstance(v, (int, float))}
    if "ours" not in known:
        return Markup("")
    least, most = min(known.values()), max(known.values())
    scale = (WIDTH - 2 * EDGE) / (most - least) if most > least else 0.0
    x = {
        name: round(EDGE + (v - least) * scale, 1) if scale else WIDTH / 2
        for name, v in known.items()
    }
    middle = HEIGHT / 2
    marks = [f'<line class="track" x1="0" x2="{WIDTH}" y1="{middle}" y2="{middle}"/>']
    said = []
    if "margin" in x:
        at = x["margin"]
        marks.append(f'<line class="margin" x1="{at}" x2="{at}" y1="4" y2="{HEIGHT - 4}"/>')
        said.append("dashed line: margin of the verdict")
    if "low" in x and "high" in x:
        marks.append(
            f'<line class="span" x1="{x["low"]}" x2="{x["high"]}" y1="{middle}" y2="{middle}"/>'
        )
    marks.append(f'<circle class="ours" cx="{x["ours"]}" cy="{middle}" r="4"/>')
    said.append("dot and bar: ours with its interval")
    if "paper" in x:
        marks.append(f'<path class="paper" d="M{x["paper"]} {middle - 6}l6 6l-6 6l-6 -6z"/>')
        said.append("diamond: the paper")
    return Markup(
        f'<svg class="interval" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{"; ".join(said)}">{"".join(marks)}</svg>'
    )
