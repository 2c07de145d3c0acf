"""What `feature-dynamics` tells of a network beside the dense one: rows and films."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secateur.features.grams import over_training
from secateur.studies.feature_dynamics_claims import ALONG, ARMS, name_of
from secateur.studies.films import film

FRAMES = 40  # examples in a film's Gram matrices


@dataclass(frozen=True)
class Watched:
    """One training, looked at.

    Attributes:
        grams: layer -> (T, n, n).
        losses: (T,), of training or of validation.
        kernels: layer -> (T, ..., units), for films; none where it is not kept.
        told: what else stands in its row.
    """

    grams: Mapping[str, np.ndarray]
    losses: np.ndarray
    kernels: Mapping[str, np.ndarray] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)


def rows(
    fields: Any,
    alpha: float,
    steps: Sequence[int],
    arm: str,
    level: int,
    density: float,
    one: Watched,
    dense: Watched,
    longer: Watched | None = None,
) -> list[dict[str, Any]]:
    """One row of the level, then, of a watched one, one for each record.

    Args:
        longer: a dense network that has been trained as long as this one in all, where there is
            one: the ends of both are compared, too.
    """
    about = {
        "branch": name_of(arm, alpha),
        "arm": arm,
        "alpha": alpha,
        "depth": level,
        "density": density,
    }
    along = {layer: over_training(one.grams[layer], dense.grams[layer]) for layer in one.grams}
    row = {**about, "level": level, **one.told}
    row["features"] = {layer: _ends(found) for layer, found in along.items()}
    for layer, gram in longer.grams.items() if longer else ():
        ends = over_training(one.grams[layer][-1:], gram[-1:])
        row["features"][layer] |= {f"longer_{name}_end": v for name, v in _finite(ends, 0).items()}
    if level not in fields.watched:
        return [row]
    place = f"w{fields.watched.index(level)}"
    points = [
        {
            **about,
            "level": ALONG * (1 + fields.watched.index(level)) + k,
            "step": int(step),
            "along": {
                place: {layer: _finite(found, k) for layer, found in along.items()},
            },
        }
        for k, step in enumerate(steps)
    ]
    return [row, *points]


def _finite(found: Mapping[str, np.ndarray], k: int) -> dict[str, float]:
    return {name: float(series[k]) for name, series in found.items() if np.isfinite(series[k])}


def _ends(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of the distances (T,): where they begin and end, and how far they have come."""
    told: dict[str, float] = {}
    for name in ("relative", "raw", "alignment", "centred_alignment"):
        series = found[name]
        ends = {"start": series[0], "end": series[-1], "mean": np.mean(series)}
        told |= {f"{name}_{k}": float(v) for k, v in ends.items() if np.isfinite(v)}
    if told.get("relative_start"):
        told["ratio"] = told["relative_end"] / told["relative_start"]
    return told


def films(
    alpha: float,
    steps: Sequence[int],
    watched: Mapping[tuple[str, int], Watched],
    dense: Watched,
    labels: np.ndarray | None = None,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Entries and arrays of the films of some trainings, each beside the dense network."""
    entries: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    n = len(next(iter(dense.grams.values()))[0])
    some = np.arange(min(FRAMES, n)) * n // min(FRAMES, n)  # of examples in order, of all classes
    for (arm, level), one in watched.items():
        entry: dict[str, Any] = {"place": {"network": ARMS[arm].label, "level": level}}
        entry["row"] = {"branch": name_of(arm, alpha), "level": level}
        if labels is not None:
            entry["classes"] = [str(k) for k in range(int(labels.max()) + 1)]
        arrays |= film(
            len(entries),
            steps,
            {ARMS[arm].label: one.losses, "dense": dense.losses},
            vectors=one.kernels,
            grams={
                layer: {
                    ARMS[arm].label: g[:, some][:, :, some],
                    "dense": dense.grams[layer][:, some][:, :, some],
                }
                for layer, g in one.grams.items()
            },
            labels=None if labels is None else labels[some],
        )
        entries.append(entry)
    return entries, arrays
