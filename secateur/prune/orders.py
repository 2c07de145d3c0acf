"""In which order the units of a row go: by norm, frame potential, chance, activation, importance.

Greedy, one unit at a time, nothing trained in between. ``remove="smallest"`` takes away the least,
which is what one does to prune; ``"largest"`` asks how much harm it does to lose the most.

Names of the published code (jheitmann/Neural-net-pruning, Heitmann 2020) say what happens to the
matrix that *remains*: its ``max_mag_pruning`` is ``by="norm", remove="smallest"``,
``max_fp_pruning`` is ``by="frame-potential", remove="smallest"`` (the potential stays highest), and
``min_mag_pruning`` and ``min_fp_pruning`` are the same with ``remove="largest"``. There the whole
potential is computed again for each candidate, O(m^3 n) for a sweep; it is divided by the m^2 of
the unpruned layer, which changes no order; ``prune_layer`` reads ``get_weights.shape`` without
calling it; and a removed unit keeps its bias (``how="incoming"`` of `rows.silence`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import key
from secateur.core.network import Network, Stats
from secateur.core.trees import Params
from secateur.prune.importance import activity, importance
from secateur.prune.rows import Row, row_of

REMOVE = ("smallest", "largest")
TIE = 1e-12  # of the largest contribution, a unit: contributions that rounding alone sets apart


@dataclass(frozen=True)
class Order:
    """The units of a row in the order in which they go.

    Attributes:
        units: int (p,), first to last.
        scores: float64 (p,): what each was chosen by, at the moment that it went.
        mean: of the scores of all units before the first went.
    """

    row: str
    by: str
    remove: str
    units: np.ndarray
    scores: np.ndarray
    mean: float


def _sign(remove: str) -> int:
    lookup("end to remove from", remove, dict.fromkeys(REMOVE))
    return 1 if remove == "smallest" else -1


def by_score(scores: np.ndarray, remove: str = "smallest") -> np.ndarray:
    """Units by scores that removals do not change; of equal ones the first goes first: int (m,).

    Raises:
        SecateurError: for NaN, which has no rank, or an unknown ``remove``.
    """
    if np.isnan(scores).any():
        raise SecateurError(
            f"unit {int(np.flatnonzero(np.isnan(scores))[0])} scores NaN and has no rank; training "
            "has diverged: lower the learning rate."
        )
    return np.argsort(_sign(remove) * np.asarray(scores), kind="stable")


def squared_cosines(weights: np.ndarray) -> np.ndarray:
    """<w_i, w_j>^2 of the rows divided by their norms: float64 (m, m); rows of 0 stay 0."""
    weights = np.asarray(weights, np.float64)
    norms = np.linalg.norm(weights, axis=1, keepdims=True)
    unit = np.divide(weights, norms, out=np.zeros_like(weights), where=norms > 0)
    return (unit @ unit.T) ** 2


def by_frame_potential(
    weights: np.ndarray, remove: str = "smallest"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Units by their contribution to the frame potential of those that are left.

    FP = sum_ij <w_i, w_j>^2 over unit vectors (Benedetto & Fickus 2003); c_i = sum_j <w_i, w_j>^2
    over the units j that are left. Without unit i the potential falls by 2 c_i - 1, so the order by
    c_i is the order by the potential of all but one. One Gram matrix; with each removal a row and a
    column are subtracted, O(m^2) for the whole sweep. Contributions that differ by rounding alone
    are ties, and of ties the first goes first.

    Args:
        weights: float (m, n), a unit a row (`Row.weights`); units of weight 0 contribute 0.

    Returns:
        The units, int (m,); the contribution of each as it went, float64 (m,); the potential
        before the first removal and after each, float64 (m + 1,).

    Raises:
        SecateurError: for weights that are not finite, or an unknown ``remove``.
    """
    sign = _sign(remove)
    if not np.isfinite(weights).all():
        raise SecateurError(
            "some weights are NaN or infinite, so their directions are unknown; training has "
            "diverged: lower the learning rate."
        )
    x = squared_cosines(weights)
    m = len(x)
    left, slack = x.sum(axis=1), TIE * m * max(1.0, x.sum(axis=1).max(initial=0))
    potential = [float(left.sum())]
    units, scores = np.empty(m, int), np.empty(m)
    rank = sign * left  # +inf once gone
    for k in range(m):
        i = int(np.argmax(rank <= rank.min() + slack))
        units[k], scores[k] = i, left[i]
        potential.append(potential[-1] - 2 * left[i] + x[i, i])
        left -= x[i]
        rank -= sign * x[i]
        rank[i] = np.inf
    return units, scores, np.asarray(potential)


@dataclass(frozen=True)
class Asked:
    """What an order may look at."""

    network: Network
    params: Params
    row: Row
    stats: Stats | None
    data: Any
    part: str
    seed: int
    how: str

    @property
    def weights(self) -> np.ndarray:
        return self.row.weights(self.params)

    def measured(self, measure: str) -> np.ndarray:
        found = importance(
            self.network, self.params, self.data, self.row.name,
            stats=self.stats, part=self.part, how=self.how,
        )  # fmt: skip
        return found.drop(measure)

    def active(self) -> tuple[np.ndarray, np.ndarray]:
        return activity(
            self.network, self.params, self.data, self.row.name, stats=self.stats, part=self.part
        )


@dataclass(frozen=True)
class Rule:
    """One way to rank the units of a row.

    Attributes:
        scores: float (units,), least important first; None for the frame potential, whose
            contributions change with each removal.
        title: for reports. source: where it is from.
        scaled: in one ranking of all rows scores are divided by their row's mean, since those of
            different rows are not comparable as they are.
        needs_data: images and labels.
    """

    title: str
    scores: Callable[[Asked], np.ndarray] | None
    source: str = ""
    scaled: bool = False
    needs_data: bool = False


def _chance(asked: Asked) -> np.ndarray:
    words = np.asarray(_bits(key(asked.seed, "units", asked.row.name))).ravel()
    return np.random.default_rng([int(w) for w in words]).random(asked.row.size)


def _bits(of: Any) -> Any:
    import jax

    return jax.random.key_data(of)


ORDERS: Mapping[str, Rule] = {
    "norm": Rule(
        "L2 norm of the incoming weights",
        lambda a: np.linalg.norm(a.weights, axis=1),
        "Heitmann 2020, magnitude",
        scaled=True,
    ),
    "norm-l1": Rule(
        "L1 norm of the incoming weights",
        lambda a: np.abs(a.weights).sum(axis=1),
        "Li et al., ICLR 2017",
        scaled=True,
    ),
    "frame-potential": Rule(
        "contribution to the frame potential", None, "Heitmann 2020", scaled=True
    ),
    "random": Rule("at random", _chance),
    "activation": Rule(
        "mean size of the activation", lambda a: a.active()[0], scaled=True, needs_data=True
    ),
    "apoz": Rule(  # the share that is not 0, so that the smallest are the least active
        "how often the unit is active", lambda a: a.active()[1], "Hu et al. 2016", needs_data=True
    ),
    "importance": Rule(
        "drop of accuracy without the unit",
        lambda a: a.measured("accuracy"),
        "Heitmann 2020",
        needs_data=True,
    ),
    "importance-loss": Rule(
        "rise of the loss without the unit", lambda a: a.measured("loss"), needs_data=True
    ),
    # Units whose loss falls are no units without effect: without many of them at once it rises.
    "importance-change": Rule(
        "size of the change of the loss without the unit",
        lambda a: np.abs(a.measured("loss")),
        "Molchanov et al., ICLR 2017, the oracle of absolute changes",
        needs_data=True,
    ),
}


def order(
    network: Network,
    params: Params,
    row: str,
    by: str = "norm",
    remove: str = "smallest",
    *,
    data: Any = None,
    stats: Stats | None = None,
    part: str = "validation",
    seed: int = 0,
    how: str = "whole",
    alive: np.ndarray | None = None,
) -> Order:
    """The units of a row in the order in which they go.

    Args:
        row: a name in ``[row.name for row in rows(network)]``.
        by: a name in `ORDERS`.
        data: as `secateur.find` takes them, for orders by activation and importance; part: of
            sets, the one that is looked at.
        seed: of the random order.
        how: what goes with a unit where importance is measured (`rows.silence`).
        alive: bool (units,): who is there to be removed; by default all.

    Raises:
        SecateurError: for an unknown row, order or ``remove``, or where data are missing.
    """
    rule = lookup("order of units", by, ORDERS)
    found = row_of(network, row)
    _sign(remove)
    if rule.needs_data and data is None:
        raise SecateurError(f"units are ordered by {by} on examples; give data.")
    there = np.arange(found.size) if alive is None else np.flatnonzero(alive)
    asked = Asked(network, params, found, stats, data, part, seed, how)
    if rule.scores is None:
        units, scores, _ = by_frame_potential(asked.weights[there], remove)
        mean = float(squared_cosines(asked.weights[there]).sum() / max(1, len(there)))
        return Order(row, by, remove, there[units], scores, mean)
    values = np.asarray(rule.scores(asked), np.float64)[there]
    units = by_score(values, remove)
    return Order(row, by, remove, there[units], values[units], float(values.mean()))
