"""What is asked of a training and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from secateur.core.keys import Key
from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params
from secateur.data.examples import Sets
from secateur.train.recipes import Recipe
from secateur.train.records import Record


@dataclass(frozen=True)
class Training:
    """One training asked for. Executors run it alone or as one lane among many.

    Everything but ``network`` and the static part of ``recipe`` is data of the compiled program.

    Attributes:
        start: parameters at the first step; pruned places are set to 0.
        mask: structure of ``start``, booleans, ``None`` where nothing may be pruned.
        key: streams of data order, augmentation and dropout are drawn from it.
        alpha: output scale: the loss and the metrics see ``alpha * f`` (Chizat et al. 2019).
        first_step: where the schedule and the data order begin (k for a ticket rewound to step k);
            ``recipe.steps`` counts from 0, so ``recipe.steps - first_step`` steps are taken.
        keep_at: steps at which a copy of the parameters is given back (for late rewinding).
        records: what is read of the network on its way, each at its own steps (`train.records`).
        shrink: train the exact smaller network, and hold the survivors of sparse leaves alone,
            where that pays (`train.form`); ``False`` never does.
        siblings: trainings that will share a compiled program: how many times it is paid back.
        grain: widths of smaller networks are multiples of it; coarser grains share programs.
    """

    network: Network
    start: Params
    stats: Stats
    data: Sets
    recipe: Recipe
    mask: Mask
    key: Key
    alpha: float = 1.0
    first_step: int = 0
    keep_at: tuple[int, ...] = ()
    records: tuple[Record, ...] = ()
    shrink: bool = True
    siblings: int = 1
    grain: int = 32

    def program(self) -> Hashable:
        """Trainings of equal program may run as lanes of one compiled program."""
        r = self.recipe
        return (
            self.network,
            (r.optimiser, r.batch, r.steps, r.evaluate_every, r.momentum, bool(r.weight_decay)),
            (r.decoupled, r.augment, r.loss),
            (self.data.sha256, tuple(sorted(self.data.split.items()))),
            (self.first_step, self.keep_at, self.shrink, self.siblings, self.grain),
            tuple(record.program() for record in self.records),
        )


@dataclass(frozen=True)
class Fitted:
    """A finished training, in the full shapes of the network.

    Attributes:
        params, stats: at the last step; pruned places exactly 0.
        best_params, best_stats: at the evaluation with the lowest validation loss, the first of
            equals: the papers' early-stopping iteration.
        kept: parameters and statistics at the steps of ``keep_at``.
        records: name of a record -> its leaves by name, each with the record's steps (in rising
            order) as the first axis.
        curve: ``step``, ``validation_loss``, ``validation_accuracy``, one entry an evaluation.
        best, last: step, losses and accuracies (fractions) there; test is looked at only here.
        widths: live and trained widths of each shrinkable axis, by name; empty if full size.
        packed: leaves whose survivors alone were held by the optimiser, and how many places.
        checks: name -> held.
        seconds: ``cpu`` and ``wall`` of this training (its share, as a lane).
    """

    params: Params
    stats: Stats
    best_params: Params
    best_stats: Stats
    kept: dict[int, tuple[Params, Stats]]
    curve: dict[str, np.ndarray]
    best: dict[str, float]
    last: dict[str, float]
    widths: dict[str, dict[str, int]]
    packed: dict[str, int]
    checks: dict[str, bool]
    seconds: dict[str, float] = field(default_factory=dict)
    records: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


class Watch(Protocol):
    """What the lab gives to a training: it reports progress and publishes checkpoints."""

    def load(self) -> dict[str, np.ndarray] | None:
        """The last published checkpoint of this training, or None."""

    def tick(self, step: int, steps: int, state: Callable[[], dict[str, np.ndarray]]) -> None:
        """Called at the end of every chunk; ``state()`` gives what `load` shall return."""


class NoWatch:
    """A watch that does nothing."""

    def load(self) -> dict[str, Any] | None:
        return None

    def tick(self, step: int, steps: int, state: Callable[[], dict[str, np.ndarray]]) -> None:
        return None
