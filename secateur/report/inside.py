"""Inside the network: density by layer and level, and which inputs are still read."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secateur.report import numbers, png
from secateur.report.series import Run, at, branches, colours, is_level, last, level, number
from secateur.report.view import Row, View


def layers(every: Sequence[Run]) -> list[dict[str, str]]:
    """The prunable leaves in the order of the network; ``kernel`` is left out of their labels."""
    names = dict.fromkeys(
        name for run in every for row in run.rows for name in row.get("alive_by_layer") or {}
    )
    return [{"name": name, "label": name.removesuffix("/kernel")} for name in names]


def densities(row: Row, names: Sequence[str]) -> list[float | None]:
    """alive / size of each layer, None where a row lacks it."""
    left, size = row.get("alive_by_layer") or {}, row.get("size_by_layer") or {}
    return [
        left[name] / size[name] if left.keys() & {name} & size.keys() else None for name in names
    ]


def shade(density: float | None) -> float:
    """0 at 0.1 % and below, 1 at 100 %, even steps for even ratios: how dark a cell is."""
    if not density or density <= 1e-3:
        return 0.0
    return round(1 + math.log10(density) / 3, 3)


def trained_as(row: Row) -> str:
    """The smaller network that was trained: "412–230–96–10", or "full size".

    From ``widths`` ({axis: {"trained": width}}, empty if full), and ``packed`` (leaves of which the
    optimiser held the survivors alone).
    """
    widths = row.get("widths")
    if not isinstance(widths, Mapping):
        return ""
    said = "–".join(str(at(axis, "trained")) for axis in widths.values()) or "full size"
    return f"{said}, survivors" if row.get("packed") else said


def table(run: Run, every: Sequence[Run]) -> list[dict[str, Any]]:
    """One line a level that any run has; cells empty where this run has not."""
    names = [layer["name"] for layer in layers(every)]
    mine = {level(row): row for row in run.rows}
    lines = []
    for step in sorted({level(row) for other in every for row in other.rows if is_level(row)}):
        row = mine.get(step, {})
        whole = number(row, "density")
        lines.append(
            {
                "level": step,
                "density": numbers.percent(whole) if whole is not None else "–",
                "cells": [
                    {"text": numbers.percent(d) if d is not None else "–", "shade": shade(d)}
                    for d in densities(row, names)
                ],
                "shape": trained_as(row),
            }
        )
    return lines


def runs(every: Sequence[Run]) -> dict[str, Any]:
    """{branch: {seed: {level: [density, [density of each layer], trained shape]}}}."""
    names = [layer["name"] for layer in layers(every)]
    result: dict[str, Any] = {}
    for run in every:
        result.setdefault(run.branch, {})[str(run.seed)] = {
            str(level(row)): [
                number(row, "density"),
                [d if d is None else float(f"{d:.5g}") for d in densities(row, names)],
                trained_as(row),
            ]
            for row in run.rows
        }
    return result


def maps(view: View, every: Sequence[Run]) -> dict[str, Any] | None:
    """All maps of live inputs, each different one once.

    Counts are 16-bit; the low bytes of all maps come before the high bytes, which are mostly zero,
    and the whole is deflated: a tenth of the size that JSON rows would take.
    """
    chosen = [image for image in view.images if image is not None]
    if not chosen:
        return None
    height, width = chosen[0].shape
    place_of: dict[bytes, int] = {}
    where: dict[str, Any] = {}
    for run in every:
        for row, place in zip(run.rows, run.places, strict=True):
            image = view.images[place]
            if image is None or image.shape != (height, width):
                continue
            counts = np.clip(image, 0, 65535).astype("<u2").tobytes()
            index = place_of.setdefault(counts, len(place_of))
            where.setdefault(run.branch, {}).setdefault(str(run.seed), {})[str(level(row))] = index
    stack = np.frombuffer(b"".join(place_of), "<u2")
    planes = np.concatenate([(stack & 255).astype(np.uint8), (stack >> 8).astype(np.uint8)])
    return {
        "height": height,
        "width": width,
        "count": len(place_of),
        "index": where,
        "packed": base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode("ascii"),
    }


def pictures(view: View, every: Sequence[Run], first: Run) -> list[dict[str, Any]]:
    """The maps of the first run's seed at its last level, one a branch, as PNG, for readers
    without script; the page's script draws over them."""
    place = colours(view)
    label = {branch.name: branch.label for branch in branches(view)}
    step = level(last(first))
    images: dict[str, np.ndarray] = {}
    for run in every:
        for row, index in zip(run.rows, run.places, strict=True):
            image = view.images[index]
            if run.seed == first.seed and level(row) == step and image is not None:
                images[run.branch] = image
    most = max((int(image.max()) for image in images.values()), default=1)
    empty = np.zeros_like(next(image for image in view.images if image is not None))
    result = []
    for run in (run for run in every if run.seed == first.seed):
        image = images.get(run.branch, empty)
        ink = np.clip(image, 0, None) / max(most, 1)
        result.append(
            {
                "branch": run.branch,
                "label": label[run.branch],
                "colour": place[run.branch] % 8,
                "live": int((image > 0).sum()),
                "all": int(image.size),
                "source": png.address((255 * (1 - ink)).astype(np.uint8)),
            }
        )
    return result
