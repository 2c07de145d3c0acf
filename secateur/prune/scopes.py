"""Who competes with whom: one ranking over the network, one in each layer, in groups of M, by unit.

A scope says, on the host, how many weights each of its groups keeps (`quotas`), and, in the
program, which ones (`choose`). Layers come in the order in which the network declares them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import Key
from secateur.core.trees import alive as counts_alive
from secateur.core.trees import sizes
from secateur.prune.schedules import nearest
from secateur.prune.select import top, top_of

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


def _sizes(shapes: Shapes) -> list[int]:
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
        return share(self.targets(shapes, keep), keep, self.least(shapes), _sizes(shapes))

    def targets(self, shapes: Shapes, keep: int) -> Sequence[Real]:
        """What each layer should keep, before rounding."""
        raise NotImplementedError

    def least(self, shapes: Shapes) -> list[int]:
        """The least that each group keeps."""
        return [min(self.keep_at_least, n) for n in _sizes(shapes)]

    def most(self, shapes: Shapes) -> list[int]:
        """The most that each group can keep."""
        return _sizes(shapes)

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
        return [sum(_sizes(shapes))]

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
class PerLayer(Scope):
    """The same density in each layer, with exactly K in all: largest remainder."""

    title: ClassVar[str] = "the same density in each layer, exact total"

    def targets(self, shapes: Shapes, keep: int) -> Sequence[Real]:
        n = _sizes(shapes)
        return [Fraction(size * keep, sum(n)) for size in n]


@dataclass(frozen=True)
class Uniform(Scope):
    """floor(d N_l + 1/2) of each layer; the total may differ from K by rounding."""

    title: ClassVar[str] = "the same density in each layer, each rounded"
    exact: ClassVar[bool] = False

    def quotas(self, shapes: Shapes, keep: int, density: float | None = None) -> list[int]:
        n = _sizes(shapes)
        d = keep / sum(n) if density is None else density
        return [max(nearest(d, size), a) for size, a in zip(n, self.least(shapes))]


@dataclass(frozen=True)
class UniformPlus(Scope):
    """The first convolution whole, the last dense layer with at least ``last``, the rest alike.

    Gale, Elsen & Hooker 2019, as avysogorets/effective-sparsity does it.
    """

    title: ClassVar[str] = "uniform, but the first convolution whole and the last layer denser"
    source: ClassVar[str] = "Gale, Elsen & Hooker 2019"

    last: float = 0.2

    def targets(self, shapes: Shapes, keep: int) -> Sequence[Real]:
        n = _sizes(shapes)
        ranks = [len(shape) for shape in shapes.values()]
        given: dict[int, float] = {}
        if 4 in ranks:
            given[ranks.index(4)] = 1.0
        end = len(ranks) - 1 - ranks[::-1].index(2) if 2 in ranks else None

        def others() -> float:
            left = keep - sum(d * n[i] for i, d in given.items())
            rest = sum(size for i, size in enumerate(n) if i not in given)
            return left / rest if rest else (0.0 if left <= 0 else 1.0)

        if end is not None and end not in given and others() < self.last:
            given[end] = self.last
        d = others()
        if not 0 <= d <= 1:
            raise SecateurError(
                f"{keep:,} weights are too few for uniform+, whose first convolution and last "
                f"layer alone keep {round(sum(d * n[i] for i, d in given.items())):,}; raise the "
                "density."
            )
        return [given.get(i, d) * size for i, size in enumerate(n)]


def saturating(raw: Sequence[float], sizes: Sequence[int], keep: int) -> tuple[list[float], float]:
    """Densities min(1, eps raw_l) with sum d_l N_l = keep, and eps.

    The layers with the largest density above 1 become whole, and eps is found anew for the others;
    google-research/rigl and jaxpruner do so, with whole zeros in their sums.
    """
    whole: set[int] = set()
    while True:
        free = [i for i in range(len(raw)) if i not in whole]
        if not free:
            return [1.0] * len(raw), math.inf
        left = keep - sum(sizes[i] for i in whole)
        eps = left / sum(raw[i] * sizes[i] for i in free)
        top_raw = max(raw[i] for i in free)
        if eps * top_raw <= 1:
            return [1.0 if i in whole else eps * raw[i] for i in range(len(raw))], eps
        whole |= {i for i in free if raw[i] == top_raw}


@dataclass(frozen=True)
class ErdosRenyi(Scope):
    """d_l = min(1, eps (n_in + n_out) / (n_in n_out)). Mocanu et al. 2018 (SET).

    Of a convolution n_in and n_out are its channels.
    """

    title: ClassVar[str] = "Erdos-Renyi densities"
    source: ClassVar[str] = "Mocanu et al. 2018"

    @staticmethod
    def raw(shape: tuple[int, ...]) -> float:
        return (shape[-2] + shape[-1]) / (shape[-2] * shape[-1])

    def targets(self, shapes: Shapes, keep: int) -> Sequence[Real]:
        n = _sizes(shapes)
        found, _ = saturating([self.raw(s) for s in shapes.values()], n, keep)
        return [d * size for d, size in zip(found, n)]


@dataclass(frozen=True)
class Erk(ErdosRenyi):
    """d_l = min(1, eps (n_in + n_out + k_h + k_w) / (n_in n_out k_h k_w)). Evci et al., RigL."""

    title: ClassVar[str] = "Erdos-Renyi-kernel densities"
    source: ClassVar[str] = "Evci et al. 2020"

    @staticmethod
    def raw(shape: tuple[int, ...]) -> float:
        return sum(shape) / math.prod(shape)


@dataclass(frozen=True)
class IdealGas(Scope):
    """d_l = 1 / (1 + F N_l), one F >= 0 for the right total: no layer is full or empty.

    "Ideal gas quotas", Vysogorets & Kempe 2021.
    """

    title: ClassVar[str] = "ideal-gas quotas"
    source: ClassVar[str] = "Vysogorets & Kempe 2021"

    @staticmethod
    def pressure(sizes: Sequence[int], keep: int) -> float:
        """F, to double precision."""

        def kept(f: float) -> float:
            return math.fsum(n / (1 + f * n) for n in sizes)

        if keep >= sum(sizes):
            return 0.0
        low, high = 0.0, 1.0
        while kept(high) > keep:
            high *= 2
        while True:
            middle = (low + high) / 2
            if middle in (low, high):
                return middle
            low, high = (middle, high) if kept(middle) > keep else (low, middle)

    def targets(self, shapes: Shapes, keep: int) -> Sequence[Real]:
        n = _sizes(shapes)
        f = self.pressure(n, keep)
        return [size / (1 + f * size) for size in n]


@dataclass(frozen=True)
class Given(Scope):
    """A density for each layer: the user's own, or those of another ticket.

    In rounds before the last each layer has gone the same part of its way down.

    Attributes:
        densities: pairs (layer, density kept), or a mapping, by name; every prunable layer.
    """

    title: ClassVar[str] = "densities given for each layer"

    densities: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        given: Any = self.densities
        pairs = given.items() if isinstance(given, Mapping) else given
        object.__setattr__(self, "densities", tuple((str(k), float(d)) for k, d in pairs))
        for name, d in self.densities:
            if not 0 <= d <= 1:
                raise SecateurError(f"the density of {name} is between 0 and 1, not {d}.")

    @classmethod
    def from_ticket(cls, ticket: Any, keep_at_least: int = 0) -> Given:
        """The densities of a ticket's layers: "densities of A, choice of B"."""
        return cls.from_mask(ticket.mask, keep_at_least)

    @classmethod
    def from_mask(cls, mask: Any, keep_at_least: int = 0) -> Given:
        """The densities of the layers of a mask; their counts are met exactly."""
        of = sizes(mask)
        kept = counts_alive(mask).items()
        return cls(tuple((k, n / of[k]) for k, n in kept), keep_at_least=keep_at_least)

    def final(self, shapes: Shapes) -> list[int]:
        """What each layer keeps in the end.

        Raises:
            SecateurError: where a layer has no density, or a density no layer.
        """
        table = dict(self.densities)
        for name in table:
            lookup("prunable layer", name, dict.fromkeys(shapes))
        missing = [name for name in shapes if name not in table]
        if missing:
            raise SecateurError(
                f"no density is given for {', '.join(missing)}; give one for each prunable layer."
            )
        return [
            max(nearest(table[name], n), a)
            for (name, n, a) in zip(shapes, _sizes(shapes), self.least(shapes))
        ]

    def quotas(self, shapes: Shapes, keep: int, density: float | None = None) -> list[int]:
        n, end = _sizes(shapes), self.final(shapes)
        total, last = sum(n), sum(end)
        keep = max(keep, last)
        if total == last:
            return end
        part = Fraction(total - keep, total - last)
        return share([size - (size - e) * part for size, e in zip(n, end)], keep, end, n)

    def total(self, shapes: Shapes) -> int:
        """What all layers keep in the end."""
        return sum(self.final(shapes))


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
        total = sum(_sizes(shapes))
        if keep * self.m < total * self.n:
            raise SecateurError(
                f"{self.n}:{self.m} keeps {self.n / self.m:g} of the weights, so the density "
                f"cannot be {keep / total:g}; ask for density={self.n / self.m:g}."
            )
        each = -(-keep * self.m // total)  # before the last round: in each group, rounded up
        return [each] * len(shapes)

    def total(self, shapes: Shapes) -> int:
        """N/M of all weights."""
        return sum(_sizes(shapes)) * self.n // self.m

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


AGGREGATES: dict[str, Callable[[jax.Array, tuple[int, ...]], jax.Array]] = {
    "sum": lambda s, axes: jnp.sum(s, axes),
    "mean": lambda s, axes: jnp.mean(s, axes),
    "l1": lambda s, axes: jnp.sum(jnp.abs(s), axes),
    "l2": lambda s, axes: jnp.sqrt(jnp.sum(s * s, axes)),
    "max": lambda s, axes: jnp.max(s, axes),
}


SCOPES: dict[str, type[Scope]] = {
    "everywhere": Everywhere,
    "per-layer": PerLayer,
    "uniform": Uniform,
    "uniform-plus": UniformPlus,
    "erdos-renyi": ErdosRenyi,
    "erk": Erk,
    "ideal-gas": IdealGas,
    "given": Given,
    "n-of-m": NofM,
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
