"""Scopes that rank within layers: how the literature shares a density out over them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from secateur.core.errors import SecateurError, lookup
from secateur.core.trees import alive as counts_alive
from secateur.core.trees import sizes as weights_of
from secateur.prune.schedules import nearest
from secateur.prune.scope import Real, Scope, Shapes, share, sizes


@dataclass(frozen=True)
class PerLayer(Scope):
    """The same density in each layer, with exactly K in all: largest remainder."""

    title: ClassVar[str] = "the same density in each layer, exact total"

    def targets(self, shapes: Shapes, keep: int) -> Sequence[Real]:
        n = sizes(shapes)
        return [Fraction(size * keep, sum(n)) for size in n]


@dataclass(frozen=True)
class Uniform(Scope):
    """floor(d N_l + 1/2) of each layer; the total may differ from K by rounding."""

    title: ClassVar[str] = "the same density in each layer, each rounded"
    exact: ClassVar[bool] = False

    def quotas(self, shapes: Shapes, keep: int, density: float | None = None) -> list[int]:
        n = sizes(shapes)
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
        n = sizes(shapes)
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
        n = sizes(shapes)
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
        n = sizes(shapes)
        f = self.pressure(n, keep)
        return [size / (1 + f * size) for size in n]


@dataclass(frozen=True)
class SmartRatio(Scope):
    """Su et al.'s data-independent ratios: convolution i of L keeps (j^2 + j) times one factor,
    j = L - i + 1, every dense layer ``linear``; what would exceed 1 goes to the next convolutions.

    L counts all layers. NeurIPS 2020; JingtongSu/sanity-checking-pruning (pruner/SmartRatio.py),
    whose loop loses the excess of a later layer, so that it keeps fewer than asked.

    Attributes:
        linear: density of dense layers.
        over_square: divided by i^2 as well, as that code does for VGG.
    """

    title: ClassVar[str] = "smart ratios"
    source: ClassVar[str] = "Su et al., NeurIPS 2020"

    linear: float = 0.3
    over_square: bool = False

    def targets(self, shapes: Shapes, keep: int) -> Sequence[Real]:
        n = sizes(shapes)
        conv = [i for i, shape in enumerate(shapes.values()) if len(shape) > 2]
        if not conv:
            raise SecateurError(
                "smart ratios are defined for convolutional networks, and this one has no "
                "convolution; shuffle the mask instead."
            )
        left = keep - sum(self.linear * n[i] for i in range(len(n)) if i not in conv)
        if left < 0:
            raise SecateurError(
                f"dense layers alone keep more than {keep:,} weights at linear={self.linear}; "
                "lower it, or raise the density."
            )
        raw = {}
        for i in conv:
            j = len(n) - i
            raw[i] = (j * j + j) / ((i + 1) ** 2 if self.over_square else 1)
        factor = left / sum(raw[i] * n[i] for i in conv)
        found = [self.linear * size for size in n]
        excess = 0.0
        for i in [*conv, *conv]:  # once more around for what the last ones could not take
            wanted = (factor * raw.pop(i) * n[i] if i in raw else found[i]) + excess
            found[i] = min(wanted, n[i])
            excess = wanted - found[i]
        return found


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
        of = weights_of(mask)
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
            for (name, n, a) in zip(shapes, sizes(shapes), self.least(shapes))
        ]

    def quotas(self, shapes: Shapes, keep: int, density: float | None = None) -> list[int]:
        n, end = sizes(shapes), self.final(shapes)
        total, last = sum(n), sum(end)
        keep = max(keep, last)
        if total == last:
            return end
        part = Fraction(total - keep, total - last)
        return share([size - (size - e) * part for size, e in zip(n, end)], keep, end, n)

    def total(self, shapes: Shapes) -> int:
        """What all layers keep in the end."""
        return sum(self.final(shapes))
