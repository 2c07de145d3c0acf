"""Films made up for tests: vectors that gather and Grams that part, by formula and a draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from secateur.report.films import Film, read
from secateur.studies.films import film

PLACES = [(branch, level) for branch in ("rewind", "none") for level in (1, 3, 5)]


def gathered(frames: int, units: int, weights: int, draw: np.random.Generator) -> np.ndarray:
    """Kernels (frames, weights, units) that turn from random directions to four, and grow."""
    start = draw.normal(size=(weights, units))
    goal = draw.normal(size=(weights, 4))[:, np.arange(units) % 4] * 3
    part = np.linspace(0, 1, frames)[:, None, None] ** 0.7
    return (1 - part) * start + part * goal * np.linspace(0.2, 1, units)


def grams(frames: int, labels: np.ndarray, scale: float, draw: np.random.Generator) -> np.ndarray:
    """(frames, n, n): examples of a class come to lie together."""
    own = draw.normal(size=(len(labels), 12))
    means = draw.normal(size=(int(labels.max()) + 1, 12))[labels] * 2
    part = np.linspace(0, 1, frames)[:, None, None]
    h = (1 - part) * own + part * means + 0.2 * own
    return scale * h @ h.swapaxes(1, 2)


def films(
    places: Sequence[tuple[str, int]] = PLACES,
    seeds: Sequence[int] = (0, 1),
    frames: int = 12,
    units: int = 16,
) -> list[Film]:
    """One a place and seed, through the arrays and values of a study's cell."""
    labels = np.repeat(np.arange(4), 6)
    made: list[Film] = []
    for seed in seeds:
        draw = np.random.default_rng(seed)
        arrays: dict[str, np.ndarray] = {}
        told: list[dict[str, Any]] = []
        for k, (branch, level) in enumerate(places):
            steps = np.arange(frames) * 10
            dense = grams(frames, labels, 1.0, draw)
            second = {name: grams(frames, labels, 0.5, draw) for name in ("ticket", "re-drawn")}
            arrays |= film(
                k,
                steps,
                {
                    "ticket": (1 + level) * np.exp(-steps / 30),
                    "dense": np.exp(-steps / 25) + 0.01,
                },
                vectors={"dense_1/kernel": gathered(frames, units, 10, draw)},
                grams={
                    "dense_1/kernel": {
                        "ticket": grams(frames, labels, 1 / (1 + level), draw),
                        "dense": dense,
                    },
                    "dense_2/kernel": {**second, "dense": dense},
                },
                labels=labels,
            )
            told.append({"place": {"branch": branch, "level": level}, "classes": list("abcd")})
        made += read({"films": told}, arrays, seed)
    return made


def plane(frames: int = 9) -> Film:
    """One film of vectors in the plane, half of them on either side, with patterns behind."""
    kernels = gathered(frames, 8, 2, np.random.default_rng(5)) * 1e-3
    kernels[:, :, 7] = 0
    sides, patterns = np.repeat([1, -1], 4), np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])
    arrays = film(
        0,
        np.arange(frames),
        {"training loss": np.linspace(3, 0, frames)},
        vectors={"filters": kernels},
        signs={"filters": sides},
        patterns={"filters": patterns},
    )
    [made] = read({"films": [{"place": {"width": 4}, "row": {"level": 2}}]}, arrays, 0)
    return made
