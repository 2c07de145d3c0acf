"""What a scope is: how many weights each of its groups keeps, and which ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar

import jax
import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.keys import Key
from secateur.prune.select import top

Shapes = Mapping[str, tuple[int, ...]]  # kernels by name, in the network's order
Real = float | Fraction


def share(
    targets: Sequence[Real], total: int, low: Sequence[int], high: Sequence[int]
) -> list[int]:
    """Whole numbers near ``targets``, within their bounds, with the sum ``total``.

    Largest remainder: each is rounded down, and what is missing goes, one each, to the largest
    remainders; of equal remainders the earlier is first.

    Raises:
        SecateurError: where the bounds leave no room for ``total``.
    """
    if not sum(low) <= total <= sum(high):
        raise SecateurError(
            f"{total:,} weights cannot be shared out: the layers must keep at least "
            f"{sum(low):,} and at most {sum(high):,}; change the density or keep_at_least."
        )
    found = [min(max(math.floor(t), a), b) for t, a, b in zip(targets, low, high)]
    while (missing := total - sum(found)) != 0:
        step = 1 if missing > 0 else -1
        room = [
            i for i in range(len(found)) if (found[i] < high[i] if step > 0 else found[i] > low[i])
        ]
        room.sort(key=lambda i: step * (found[i] - targets[i]))
        each = max(1, abs(missing) // len(room))
        for i in room[: abs(missing)]:
            free = high[i] - found[i] if step > 0 else found[i] - low[i]
            found[i] += step * min(each, free)
    return found


def sizes(shapes: Shapes) -> list[int]:
    """Weights of each layer."""
    return [math.prod(shape) for shape in shapes.values()]


@dataclass(frozen=True)
class Scope:
    """The base: one group a layer.

    Attributes:
        keep_at_least: the least that each layer keeps (all of it where it is smaller). 0, as
            published: layers may be emptied. 1 does not guarantee a path through the network.
    """

    title: ClassVar[str]
    source: ClassVar[str] = ""
    exact: ClassVar[bool] = True  # keeps exactly the total asked for

    keep_at_least: int = field(default=0, kw_only=True)

    def quotas(self, shapes: Shapes, keep: int, density: float | None = None) -> list[int]:
        """How many weights each group keeps, ``keep`` in all where the scope is exact.

        Args:
            shapes: the prunable kernels, by name, in the network's order.
            density: the density that ``keep`` came from; keep / all where None.

        Raises:
            SecateurError: where the scope cannot keep so few, or so many.
        """
        return share(self.targets(shapes, keep), keep, self.least(shapes), sizes(shapes))

    def targets(self, shapes: Shapes, keep: int) -> Sequence[Real]:
        """What each layer should keep, before rounding."""
        raise NotImplementedError

    def least(self, shapes: Shapes) -> list[int]:
        """The least that each group keeps."""
        return [min(self.keep_at_least, n) for n in sizes(shapes)]

    def most(self, shapes: Shapes) -> list[int]:
        """The most that each group can keep."""
        return sizes(shapes)

    def plan(self, shapes: Shapes, kept: Sequence[int], densities: Sequence[float]) -> np.ndarray:
        """`quotas` of every round, int32 (rounds, groups), never rising from round to round.

        Largest remainders may take back a weight that they gave at a lower total; so earlier
        rounds are adjusted (by ones, with their totals kept) and the last is as it should be.
        """
        rows = [self.quotas(shapes, k, d) for k, d in zip(kept, densities)]
        high = self.most(shapes)
        for k in range(len(rows) - 2, -1, -1):
            low = rows[k + 1]
            if any(a < b for a, b in zip(rows[k], low)):
                rows[k] = share(rows[k], max(sum(rows[k]), sum(low)), low, high)
        return np.asarray(rows, np.int32)

    def bound(self, shapes: Shapes) -> Scope:
        """This scope with whatever it must know of the layers that `choose` will see."""
        return self

    def choose(
        self,
        scores: list[jax.Array],
        alive: list[jax.Array],
        counts: jax.Array,
        key: Key,
        ties: str = "index",
    ) -> list[jax.Array]:
        """The mask of the highest scores; traceable, with ``counts`` data.

        Args:
            scores: floats of each layer, in the order of `quotas`' shapes; not NaN where alive.
            alive: who competes; others are never chosen.
            counts: int32 (groups,), from `plan`.
            key: for random ties.
            ties: a name in `select.TIES`.

        Returns:
            bool arrays in the shapes of the layers.
        """
        return [
            top(s.ravel(), a.ravel(), counts[i], ties, jax.random.fold_in(key, i)).reshape(s.shape)
            for i, (s, a) in enumerate(zip(scores, alive))
        ]
