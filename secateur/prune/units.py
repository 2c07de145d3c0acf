"""Pruning whole units: their weights go together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import Key
from secateur.core.trees import flatten
from secateur.prune.scope import Scope, Shapes, sizes
from secateur.prune.select import top, top_of
from secateur.structure.reader import read

AGGREGATES: dict[str, Callable[[jax.Array, tuple[int, ...]], jax.Array]] = {
    "sum": lambda s, axes: jnp.sum(s, axes),
    "mean": lambda s, axes: jnp.mean(s, axes),
    "l1": lambda s, axes: jnp.sum(jnp.abs(s), axes),
    "l2": lambda s, axes: jnp.sqrt(jnp.sum(s * s, axes)),
    "max": lambda s, axes: jnp.max(s, axes),
}
SIDES = {"incoming": (-1,), "outgoing": (-2,), "both": (-1, -2)}


@dataclass(frozen=True)
class Units(Scope):
    """Whole units: their scores are aggregates over their weights, and with a unit go its weights.

    A unit is an entry of the output axis of a kernel (``side="incoming"``), of the input axis
    (``"outgoing"``), or of both axes that it joins (``"both"``, which needs `joined`). Outputs of
    the last layer and inputs of the first are no hidden units and stay.

    As many units are kept as fit into K weights, so the count of weights is K or a little less.

    Attributes:
        aggregate: a name in `AGGREGATES`, over all weights of a unit, in all its kernels. With
            ``within="everywhere"`` sums favour units of large fan-in, means do not.
        within: ``"layer"``: each row of units keeps the same part; ``"everywhere"``: one ranking.
        rows: pairs (kernel, axis) that share a row of units; made by `joined`.
        places: the same by the place of the layer; made by `bound`.
    """

    title: ClassVar[str] = "whole units"
    exact: ClassVar[bool] = False

    aggregate: str = "sum"
    side: str = "incoming"
    within: str = "layer"
    rows: tuple[tuple[tuple[str, int], ...], ...] = ()
    places: tuple[tuple[tuple[int, int], ...], ...] = ()

    def __post_init__(self) -> None:
        lookup("aggregate of scores", self.aggregate, AGGREGATES)
        lookup("side of a unit", self.side, SIDES)
        lookup("ranking of units", self.within, {"layer": None, "everywhere": None})

    @classmethod
    def joined(cls, network: Any, **options: Any) -> Units:
        """Units with the axes that they join, read from the network's program.

        Raises:
            SecateurError: where no hidden units of dense layers are found.
        """
        params, stats = jax.eval_shape(network.init, jax.random.key(0))
        shapes = {k: np.shape(leaf) for k, leaf in flatten(params).items()}
        prunable = {k for k, m in flatten(network.prunable(params)).items() if m is not None}
        rows = tuple(
            tuple(
                (leaf, axis - len(shapes[leaf])) for leaf, axis in group.members if leaf in prunable
            )
            for group in read(network, params, stats).groups
            if group.fixed is None and not group.is_input
        )
        if not any(rows):
            raise SecateurError(
                f"no hidden units of dense layers were found in {network.name}; prune one side, "
                "with side='incoming'."
            )
        return cls(side="both", rows=tuple(row for row in rows if row), **options)

    def bound(self, shapes: Shapes) -> Units:
        return replace(self, places=self.found(shapes))

    def found(self, shapes: Shapes) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each row of units its (layer's place, axis from the end).

        Raises:
            SecateurError: where the joined layers are not known, or none of them is prunable.
        """
        names = list(shapes)
        if self.rows:
            rows = (tuple((names.index(k), a) for k, a in row if k in names) for row in self.rows)
            return tuple(row for row in rows if row)
        if self.side == "both":
            raise SecateurError(
                "units of both sides must know which layers they join; use Units.joined(network)."
            )
        axis = SIDES[self.side][0]
        hidden = range(len(names) - 1) if axis == -1 else range(1, len(names))
        return tuple(((i, axis),) for i in hidden)

    def quotas(self, shapes: Shapes, keep: int, density: float | None = None) -> list[int]:
        rows, sides = self.found(shapes), list(shapes.values())
        sizes_of = [sides[row[0][0]][row[0][1]] for row in rows]
        if self.within == "everywhere":
            return [keep]

        def units(part: Fraction) -> list[int]:
            return [max(1, self.keep_at_least, math.floor(part * n)) for n in sizes_of]

        def weights(counts: list[int]) -> int:
            left = [list(shape) for shape in sides]
            for row, count in zip(rows, counts):
                for i, axis in row:
                    left[i][axis] = count
            return sum(math.prod(shape) for shape in left)

        parts = sorted({Fraction(k, n) for n in set(sizes_of) for k in range(1, n + 1)})
        best = None
        for part in parts:
            if weights(units(part)) > keep:
                break
            best = units(part)
        if best is None:
            raise SecateurError(
                f"one unit in each layer already has {weights(units(Fraction(0))):,} weights, more "
                f"than the {keep:,} that are kept; raise the density."
            )
        return best

    def least(self, shapes: Shapes) -> list[int]:
        return [0] * (1 if self.within == "everywhere" else len(self.found(shapes)))

    def most(self, shapes: Shapes) -> list[int]:
        return [sum(sizes(shapes))] * len(self.least(shapes))

    def plan(self, shapes: Shapes, kept: Sequence[int], densities: Sequence[float]) -> np.ndarray:
        return np.asarray([self.quotas(shapes, k) for k in kept], np.int32)

    def choose(
        self,
        scores: list[jax.Array],
        alive: list[jax.Array],
        counts: jax.Array,
        key: Key,
        ties: str = "index",
    ) -> list[jax.Array]:
        rows = self.places or self.found({str(i): s.shape for i, s in enumerate(scores)})
        totals, living = [], []
        for row in rows:
            parts = []
            for i, axis in row:
                s = jnp.moveaxis(scores[i], axis, 0)
                parts.append(s.reshape(s.shape[0], -1))
            totals.append(AGGREGATES[self.aggregate](jnp.concatenate(parts, 1), (1,)))
            i, axis = row[0]
            living.append(jnp.moveaxis(alive[i], axis, 0).reshape(totals[-1].size, -1).any(1))

        def masks(units: list[jax.Array]) -> list[jax.Array]:
            found = list(alive)
            for row, kept in zip(rows, units):
                for i, axis in row:
                    shape = [1] * scores[i].ndim
                    shape[axis] = -1
                    found[i] = found[i] & kept.reshape(shape)
            return found

        if self.within == "layer":
            return masks(
                [
                    top(s, a, counts[i], ties, jax.random.fold_in(key, i))
                    for i, (s, a) in enumerate(zip(totals, living))
                ]
            )

        def weights(count: jax.Array) -> jax.Array:
            kept = masks(self._everywhere(totals, living, count, key, ties))
            return jnp.asarray(sum(jnp.sum(m, dtype=jnp.int32) for m in kept), jnp.int32)

        def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = ends  # `low` units fit, `high` do not
            middle = (low + high) // 2
            fits = weights(middle) <= counts[0]
            return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

        most = sum(s.size for s in totals)
        ends = (jnp.int32(0), jnp.int32(most + 1))
        low, _ = jax.lax.fori_loop(0, most.bit_length() + 1, halve, ends)
        return masks(self._everywhere(totals, living, low, key, ties))

    def _everywhere(
        self,
        totals: list[jax.Array],
        living: list[jax.Array],
        count: jax.Array,
        key: Key,
        ties: str,
    ) -> list[jax.Array]:
        """The best ``keep_at_least`` of each row, and then the best of all."""
        first = [
            top(s, a, min(self.keep_at_least, s.size), "index") for s, a in zip(totals, living)
        ]
        taken = sum(jnp.sum(x, dtype=jnp.int32) for x in first)
        rest = top_of(
            totals,
            [a & ~x for a, x in zip(living, first)],
            jnp.maximum(count - taken, 0),
            ties,
            key,
        )
        return [x | y for x, y in zip(first, rest)]
