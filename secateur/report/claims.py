"""A paper's claim beside what we measured: a table line and a small drawing of the interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from secateur.lab.verdicts import NOT_REPRODUCED, REPRODUCED, TOO_FEW, Claim, Verdict
from secateur.report import numbers

KINDS = {REPRODUCED: "yes", NOT_REPRODUCED: "no", TOO_FEW: "open"}
SIGNS = {"yes": "✓", "no": "✕", "open": "?"}
WIDTH, HEIGHT, EDGE = 150, 34, 8


def judged(claim: Claim, verdict: Verdict) -> dict[str, Any]:
    """The View's claim from a paper's claim and the lab's verdict on it."""
    found = verdict.interval
    margins = [-claim.margin, claim.margin] if claim.comparison == "within" else claim.margin
    return {
        "id": claim.id,
        "source": claim.source,
        "statement": claim.statement,
        "measure": claim.measure,
        "unit": claim.unit,
        "paper": claim.paper,
        "margin": margins,
        "ours": found.mean if found.n else None,
        "low": found.low if math.isfinite(found.low) else None,
        "high": found.high if math.isfinite(found.high) else None,
        "n": found.n,
        "needed": verdict.needed,
        "verdict": verdict.word,
        "note": f"Lighter than the paper: {', '.join(verdict.lighter)}." if verdict.lighter else "",
    }


def line(claim: Mapping[str, Any]) -> dict[str, Any]:
    """A claim as the table shows it, every number as text."""
    unit = str(claim.get("unit") or "")
    verdict = str(claim["verdict"])
    kind = KINDS.get(verdict, "open")
    low, high = claim.get("low"), claim.get("high")
    interval = ""
    if low is not None and high is not None and math.isfinite(high - low):
        interval = f"{numbers.measured(low, unit)} to {numbers.measured(high, unit)}"
    return {
        "id": claim["id"],
        "source": claim.get("source") or "",
        "statement": claim["statement"],
        "measure": claim.get("measure") or "",
        "paper": numbers.measured(claim.get("paper"), unit),
        "ours": numbers.measured(claim.get("ours"), unit),
        "interval": interval,
        "unit": unit,
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
    found = {name: claim.get(name) for name in ("low", "high", "ours", "paper")}
    margin = claim.get("margin")
    margins = margin if isinstance(margin, Sequence) else [margin]
    found.update({f"margin {place}": value for place, value in enumerate(margins)})
    known = {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
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
    for at in (x[name] for name in x if name.startswith("margin")):
        marks.append(f'<line class="margin" x1="{at}" x2="{at}" y1="4" y2="{HEIGHT - 4}"/>')
        said = ["dashed line: margin of the verdict"]
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
