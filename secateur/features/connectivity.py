"""Linear mode connectivity: error and loss on the straight line between two networks.

Frankle, Dziugaite, Roy & Carbin 2020: two copies of a network, trained from one point under two
orders of the data, are *stable* if no barrier stands between them. Tickets are found where their
parents are stable.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import fold
from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params, apply_mask, map_mask
from secateur.data.examples import Sets
from secateur.train.evaluation import estimated_statistics, evaluator
from secateur.train.training import Fitted, Training

CONVENTIONS = {
    "mean": "the highest point over the mean of both ends (Frankle et al. 2020)",
    "chord": "the largest height over the straight line between the ends; never more than 'mean' "
    "where the ends agree, and equal to it there",
}
STATISTICS = {
    "interpolated": "running statistics are interpolated as the weights are",
    "estimated": "and run on over training batches at each point",
}
STABLE = 0.02  # barrier in error below which Frankle et al. call a network stable


@dataclass(frozen=True)
class Line:
    """What was found on the way from one network (position 0) to the other (1).

    Attributes:
        positions: (points,), from 0 to 1.
        loss: (points,), mean over the part of the data.
        error: (points,), the share that is wrong.
        part: of the data.
        statistics: a key of STATISTICS; of no matter to networks without any.
    """

    positions: np.ndarray
    loss: np.ndarray
    error: np.ndarray
    part: str
    statistics: str

    def barrier(self, of: str = "error", convention: str = "mean") -> float:
        """How high the line rises; below 0 where the ends differ or the line sinks between them.

        Args:
            of: "error" or "loss".
            convention: "mean" or "chord"; see CONVENTIONS. The mean of unequal ends lies below the
                worse one, which then is a barrier of itself; the chord sees none there.

        Raises:
            SecateurError: for another word.
        """
        found = lookup("measure of a barrier", of, {"error": self.error, "loss": self.loss})
        lookup("convention of barriers", convention, CONVENTIONS)
        t = self.positions
        under = (1 - t) * found[0] + t * found[-1] if convention == "chord" else None
        return float(np.max(found - (np.mean(found[[0, -1]]) if under is None else under)))

    @property
    def stable(self) -> bool:
        """Whether the barrier in error is below 2 percentage points."""
        return self.barrier() < STABLE


def between(first: Params, second: Params, position: Any, mask: Mask = None) -> Params:
    """(1 - t) first + t second, inside the mask; may be traced and mapped over positions."""
    mixed = jax.tree.map(lambda a, b: a + (b - a) * jnp.asarray(position, a.dtype), first, second)
    return mixed if mask is None else apply_mask(mask, mixed)


def line(
    network: Network,
    first: tuple[Params, Stats],
    second: tuple[Params, Stats],
    data: Sets,
    *,
    mask: Mask = None,
    part: str = "test",
    points: int = 30,
    statistics: str = "interpolated",
    loss: str = "cross_entropy",
    alpha: float = 1.0,
) -> Line:
    """Error and loss on equally spaced points between two networks, the ends included.

    Args:
        first, second: parameters and statistics of each.
        mask: of both; None: all weights. Between two masks there is no one subnetwork.
        part: "train", "validation" or "test".
        points: 30 in the paper.
        statistics: "interpolated" or "estimated"; see STATISTICS. Interpolated ones of batch norm
            do not fit the interpolated weights, and alone can raise a barrier.
        loss, alpha: of the training.

    Raises:
        SecateurError: for fewer than 2 points, an unknown word, or weights outside the mask.
    """
    lookup("kind of statistics", statistics, STATISTICS)
    if points < 2:
        raise SecateurError(f"a line has 2 points or more, its ends, not {points}.")
    for place, (params, _) in (("first", first), ("second", second)):
        if mask is not None and _outside(mask, params):
            raise SecateurError(
                f"the {place} network has weights outside the mask; give two of one mask."
            )
    score = evaluator(network, data, part, loss=loss, alpha=alpha)
    positions = np.linspace(0, 1, points)
    found = []
    for t in positions:
        params, stats = (between(a, b, t) for a, b in zip(first, second))
        params = params if mask is None else apply_mask(mask, params)
        if statistics == "estimated":
            stats = estimated_statistics(network, params, stats, data)
        found.append(score(params, stats))
    losses, accuracies = np.array(found, np.float64).T
    return Line(positions, losses, 1 - accuracies, part, statistics)


def copies(training: Training, count: int = 2) -> list[Training]:
    """Copies of a training that differ in their noise alone: order of data, augmentation, dropout.

    Each has a stream of its own below the training's key. Start them from a ``first_step`` above 0
    to ask when a network becomes stable (instability analysis at step k).
    """
    return [replace(training, key=fold(training.key, "copy", k)) for k in range(count)]


def instability(training: Training, first: Fitted, second: Fitted, **options: Any) -> Line:
    """The line between two trained `copies`, at their last steps, inside the training's mask.

    Args:
        options: of `line`: part, points, statistics.

    Raises:
        SecateurError: as `line`.
    """
    given = {"mask": training.mask, "loss": training.recipe.loss, "alpha": training.alpha}
    return line(
        training.network,
        (first.params, first.stats),
        (second.params, second.stats),
        training.data,
        **(given | options),
    )


def _outside(mask: Mask, params: Params) -> bool:
    """Whether a pruned place holds anything but 0."""
    found = map_mask(lambda m, p: m is not None and bool(np.any(np.asarray(p)[~m])), mask, params)
    return any(jax.tree.leaves(found))
