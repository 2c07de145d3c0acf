"""A trainer that is quick and needs no jax: a chaotic walk that remembers every step.

It follows the protocol of `secateur.train.fit`. One wrong step, one lost checkpoint, one generator
key out of place, and the end differs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CALLS: list[tuple[str, int]] = []  # ("fit", 1) or ("lanes", n), for tests in this process


@dataclass(frozen=True)
class Training:
    """`steps` steps of the logistic map from `start`, stirred by a seeded generator."""

    start: np.ndarray
    steps: int
    seed: int
    chunk: int = 10
    pause: float = 0.0  # seconds a chunk
    kind: str = "a"

    def program(self) -> Hashable:
        return (self.kind, self.start.shape, self.steps)


@dataclass(frozen=True)
class Fitted:
    """Where the walk ended, and its mean on the way."""

    params: np.ndarray
    curve: dict[str, np.ndarray]
    resumed_at: int


def fit(training: Training, watch: Any = None) -> Fitted:
    CALLS.append(("fit", 1))
    return _fit(training, watch)


def fit_lanes(trainings: Sequence[Training], watches: Sequence[Any] | None = None) -> list[Fitted]:
    CALLS.append(("lanes", len(trainings)))
    if len({t.program() for t in trainings}) != 1:
        raise ValueError("these trainings are not of one program")
    limit = int(os.environ.get("STANDIN_LANES", "1000"))
    if len(trainings) > limit:
        raise MemoryError(f"more than {limit} lanes")
    given = watches or [None] * len(trainings)
    return [_fit(t, w) for t, w in zip(trainings, given)]


def _fit(training: Training, watch: Any) -> Fitted:
    state = watch.load() if watch else None
    if state is None:
        x, means, step = training.start.astype(np.float64), [], 0
    else:
        x, means, step = state["x"], list(state["means"]), int(state["step"])
    resumed_at = step
    while step < training.steps:
        for step in range(step + 1, min(step + training.chunk, training.steps) + 1):  # noqa: B020
            stir = np.random.default_rng([training.seed, step]).random(x.shape)
            x = 3.9 * x * (1 - x) * 0.999 + 0.001 * stir
        means.append(x.mean())
        time.sleep(float(os.environ.get("STANDIN_PAUSE", training.pause)))
        if watch:
            now = {"x": x, "means": np.array(means), "step": np.array(step)}
            watch.tick(step, training.steps, lambda now=now: now)
    return Fitted(x, {"mean": np.array(means)}, resumed_at)
