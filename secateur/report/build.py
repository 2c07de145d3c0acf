"""The view of a study, from what the store holds. Runs nothing, changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

from secateur import __version__
from secateur.core.errors import SecateurError
from secateur.data.examples import Dataset
from secateur.data.registry import DATASETS
from secateur.lab.cells import Cell, rows_of
from secateur.lab.store import Damaged, Store
from secateur.report.claims import judged
from secateur.report.films import Film, read
from secateur.report.view import View

SAMPLES = 20
DRAWN = "drawn by key"  # the data of a study that reads none


def view(
    study: ModuleType,
    fields: Any,
    cells: Sequence[Cell],
    store: Store,
    data: Dataset | None,
    command: str,
) -> View:
    """What the page shows of these cells; those that the store lacks are left out, and said so.

    Args:
        study: a module of `studies`.
        fields: the study's Fields that the cells were made from.
        data: for the sample images; where it is not at hand the page does without.
        command: what makes the page again.

    Raises:
        SecateurError: where the store has none of the cells.
    """
    entries = {entry.address: entry for entry in store.entries(study.name)}
    rows: list[dict[str, Any]] = []
    images: list[np.ndarray | None] = []
    films: list[Film] = []
    damaged = found = 0
    for cell in cells:
        entry = entries.get(cell.address)
        if entry is None:
            continue
        try:
            result = store.read(cell)
        except Damaged:
            damaged += 1
            continue
        # Checks and times are of the cell: they stand in the first of its rows.
        about = {"checks": result.checks, "made": entry.made}
        films += read(result.values, result.arrays, cell.seed, cell.place)
        for values in rows_of(result.values):
            values.pop("films", None)
            rows.append({**values, "seed": cell.seed, "address": cell.address, **about})
            images.append(result.arrays.get("inputs_alive"))
            about = {"checks": {}, "made": {}}
        found += 1
    for row in rows if hasattr(study, "cross_checks") else ():
        row["checks"] = {**row["checks"], **study.cross_checks(row, rows)}
    if not rows:
        raise SecateurError(
            f"{store.path} has no results of {study.name} with these fields; "
            f"make them with: {command}"
        )
    described = _described(fields)
    known = getattr(fields, "dataset", None)
    title = DATASETS[known].title if known else DRAWN
    verdicts = [(m.claim, m.verdict(rows, described)) for m in study.claims]
    notes = list(study.notes(rows, fields))
    missing = len(cells) - found
    if missing:
        notes.insert(
            0, f"{missing} of {len(cells)} cells are not there yet; this page shows the rest."
        )
    if damaged:
        notes.insert(0, f"{damaged} stored cells are damaged; the next run computes them again.")
    return View(
        study=study.name,
        title=study.title,
        sentence=study.sentence(rows, fields, title),
        data=f"{title} ({data.source})" if data else title + " (not at hand here)" * bool(known),
        command=command,
        rows=rows,
        figures=study.figures,
        branches=study.branches,
        images=images if any(image is not None for image in images) else (),
        films=films,
        samples=_samples(data) if data else (),
        sample_labels=[data.classes[int(data.train.labels[k])] for k in _places(data)]
        if data
        else (),
        claims=[judged(claim, found) for claim, found in verdicts if found is not None],
        citation=study.citation,
        settings=_shown(described, rows),
        notes=notes,
        version=__version__,
    )


def _described(fields: Any) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(fields)
    return told


def _shown(fields: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields as the page lists them, with how the data were split."""
    split: dict[str, Any] = next((row["split"] for row in rows if row.get("split")), {})
    return {**fields, **{f"split.{k}": v for k, v in split.items() if k not in fields}}


def _places(data: Dataset) -> list[int]:
    """A few examples of each class, in turn: what a reader wants to see of a data set."""
    labels = np.asarray(data.train.labels)
    classes = np.unique(labels)
    each = max(1, SAMPLES // len(classes))
    found = [np.flatnonzero(labels == c)[:each] for c in classes[:SAMPLES]]
    return [int(k) for turn in range(each) for k in (f[turn] for f in found if len(f) > turn)]


def _samples(data: Dataset) -> list[np.ndarray]:
    if data.train.images.dtype != np.uint8 or data.train.images.ndim != 4:
        return []
    return [np.asarray(data.train.images[k]) for k in _places(data)]
