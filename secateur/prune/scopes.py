"""Who competes with whom: one ranking over the network, one in each layer, in groups of M, by unit.

A scope says, on the host, how many weights each of its groups keeps (`quotas`), and, in the
program, which ones (`choose`). Layers come in the order in which the network declares them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import Key
from secateur.prune.quotas import ErdosRenyi as ErdosRenyi
from secateur.prune.quotas import Erk as Erk
from secateur.prune.quotas import Given as Given
from secateur.prune.quotas import IdealGas as IdealGas
from secateur.prune.quotas import PerLayer as PerLayer
from secateur.prune.quotas import SmartRatio as SmartRatio
from secateur.prune.quotas import Uniform as Uniform
from secateur.prune.quotas import UniformPlus as UniformPlus
from secateur.prune.scope import Scope as Scope
from secateur.prune.scope import Shapes, sizes
from secateur.prune.select import top, top_of
from secateur.prune.units import Units as Units


@dataclass(frozen=True)
class Everywhere(Scope):
    """One ranking over all prunable weights, as SNIP, GraSP, SynFlow and NTK-SAP prune.

    With ``keep_at_least`` the best of each layer are kept first, and the rest of K is filled by the
    one ranking.
    """

    title: ClassVar[str] = "one ranking over the network"

    def quotas(self, shapes: Shapes, keep: int, density: float | None = None) -> list[int]:
        reserved = sum(Scope.least(self, shapes))
        if keep < reserved:
            raise SecateurError(
                f"keep_at_least={self.keep_at_least} reserves {reserved:,} weights, but only "
                f"{keep:,} are kept; raise the density or lower keep_at_least."
            )
        return [keep]

    def least(self, shapes: Shapes) -> list[int]:
        return [0]

    def most(self, shapes: Shapes) -> list[int]:
        return [sum(sizes(shapes))]

    def choose(
        self,
        scores: list[jax.Array],
        alive: list[jax.Array],
        counts: jax.Array,
        key: Key,
        ties: str = "index",
    ) -> list[jax.Array]:
        if not self.keep_at_least:
            return top_of(scores, alive, counts[0], ties, key)
        exact = ties if ties == "random" else "index"
        reserved = [
            top(
                s.ravel(), a.ravel(), min(self.keep_at_least, s.size), exact,
                jax.random.fold_in(key, i),
            ).reshape(s.shape)
            for i, (s, a) in enumerate(zip(scores, alive))
        ]  # fmt: skip
        taken = sum(jnp.sum(r, dtype=jnp.int32) for r in reserved)
        rest = top_of(
            scores, [a & ~r for a, r in zip(alive, reserved)], counts[0] - taken, ties, key
        )
        return [r | x for r, x in zip(reserved, rest)]


@dataclass(frozen=True)
class NofM(Scope):
    """The ``n`` highest of every ``m`` consecutive entries along one axis of a kernel.

    Hardware that multiplies 2:4 matrices wants the groups along the axis that is summed over: the
    input axis of (in, out) and (height, width, in, out) kernels, ``axis=-2``, the default.
    jaxpruner's default is the output axis, ``axis=-1``.
    """

    title: ClassVar[str] = "N of every M weights"
    exact: ClassVar[bool] = True

    n: int = 2
    m: int = 4
    axis: int = -2

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise SecateurError(f"N:M keeps 1 to M of every M weights, not {self.n}:{self.m}.")
        if self.keep_at_least:
            raise SecateurError("N:M keeps N in every group; keep_at_least has no place there.")

    def quotas(self, shapes: Shapes, keep: int, density: float | None = None) -> list[int]:
        for name, shape in shapes.items():
            if not -len(shape) <= self.axis < len(shape) or shape[self.axis] % self.m:
                raise SecateurError(
                    f"{name} {shape} cannot be cut into groups of {self.m} along axis {self.axis}; "
                    "exclude it from pruning, or choose another M or axis."
                )
        total = sum(sizes(shapes))
        if keep * self.m < total * self.n:
            raise SecateurError(
                f"{self.n}:{self.m} keeps {self.n / self.m:g} of the weights, so the density "
                f"cannot be {keep / total:g}; ask for density={self.n / self.m:g}."
            )
        each = -(-keep * self.m // total)  # before the last round: in each group, rounded up
        return [each] * len(shapes)

    def total(self, shapes: Shapes) -> int:
        """N/M of all weights."""
        return sum(sizes(shapes)) * self.n // self.m

    def most(self, shapes: Shapes) -> list[int]:
        return [self.m] * len(shapes)

    def choose(
        self,
        scores: list[jax.Array],
        alive: list[jax.Array],
        counts: jax.Array,
        key: Key,
        ties: str = "index",
    ) -> list[jax.Array]:
        def one(s: jax.Array, a: jax.Array, keep: jax.Array, i: int) -> jax.Array:
            def grouped(x: jax.Array) -> jax.Array:
                return jnp.moveaxis(x, self.axis, -1).reshape(-1, self.m)

            keys = jax.random.split(jax.random.fold_in(key, i), s.size // self.m)
            chosen = jax.vmap(lambda s, a, k: top(s, a, keep, ties, k))(
                grouped(s), grouped(a), keys
            )
            ends = jnp.moveaxis(s, self.axis, -1).shape
            return jnp.moveaxis(chosen.reshape(ends), -1, self.axis)

        return [one(s, a, counts[i], i) for i, (s, a) in enumerate(zip(scores, alive))]


SCOPES: dict[str, type[Scope]] = {
    "everywhere": Everywhere,
    "per-layer": PerLayer,
    "uniform": Uniform,
    "uniform-plus": UniformPlus,
    "erdos-renyi": ErdosRenyi,
    "erk": Erk,
    "ideal-gas": IdealGas,
    "smart-ratio": SmartRatio,
    "given": Given,
    "n-of-m": NofM,
    "units": Units,
}


def scope(which: str | Scope, keep_at_least: int | None = None) -> Scope:
    """A scope by name, or as given; with another ``keep_at_least`` where one is said.

    Raises:
        SecateurError: for an unknown name, or a ``keep_at_least`` below 0.
    """
    found = lookup("scope", which, SCOPES)() if isinstance(which, str) else which
    if keep_at_least is None:
        return found
    if isinstance(keep_at_least, bool) or keep_at_least != int(keep_at_least) or keep_at_least < 0:
        raise SecateurError(f"keep_at_least is a whole number from 0, not {keep_at_least!r}.")
    return replace(found, keep_at_least=int(keep_at_least))
