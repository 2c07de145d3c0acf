"""PHEW: paths with higher edge weights. Patil & Dovrolis, ICML 2021, arXiv:2010.11354."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import Key
from secateur.core.trees import Mask, Params, flatten, unflatten
from secateur.prune.criterion import Construction, Progress
from secateur.prune.problem import Problem
from secateur.structure.walks import Step, Sum, Walkways, walkways

WEIGHTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "absolute": np.abs,
    "uniform": np.ones_like,
    "inverse": lambda w: 1 / np.maximum(np.abs(w), 1e-30),
    "squared": np.square,
}
_BLOCK = 512  # walks drawn at a time


@dataclass(frozen=True)
class Phew(Construction):
    """Keeps the weights on random walks between inputs and outputs; a step from unit j to unit t
    has probability ||W_tj||_1 / sum_t' ||W_t'j||_1. Patil & Dovrolis 2021, section 4.

    Walks begin at each input in turn, going forward, and at each output in turn, going backward
    (there the sum is over j'). In a convolution the channel is drawn by the norm of its k x k
    kernel and then one entry by |w|; where branches part or meet, a fair coin chooses one; after a
    flattening any place of the channel. Where on the map a walk is plays no part, so that on maps
    of 1 x 1 or 2 x 2 the entries of one walk alone may lead off the map; those that see nothing but
    padding are never met. Whole walks are added until at least ``keep`` weights are
    kept: up to L - 1 more (k * k L with ``kernel_conserved``), which is reported and not cut off,
    as that would break a path.

    Attributes:
        weights: the strength of a weight: ``"absolute"``, or the paper's ablations ``"uniform"``,
            ``"inverse"`` and ``"squared"``.
        kernel_conserved: keeps the whole k x k kernel of a step instead of one entry.
        most_walks: gives up after so many; weak weights are met late, so high densities need many.
    """

    title: ClassVar[str] = "PHEW"
    source: ClassVar[str] = "Patil & Dovrolis, ICML 2021, arXiv:2010.11354"
    passes: ClassVar[str] = "none; random walks"
    trap: ClassVar[str] = "High densities take very many walks: weak weights are seldom met."
    codes: ClassVar[tuple[str, ...]] = (
        "ShreyasMalakarjunPatil/PHEW seeds torch alone, not the generators that draw the walks.",
    )

    weights: str = "absolute"
    kernel_conserved: bool = False
    most_walks: int = 2_000_000

    def construct(
        self,
        problem: Problem,
        params: Params,
        mask: Mask,
        keep: int,
        key: Key,
        progress: Progress = lambda done, of: None,
    ) -> tuple[Mask, Params, dict[str, Any]]:
        """The mask, the weights as they are, and how many walks it took.

        Raises:
            SecateurError: for a network whose units cannot be followed, more weights asked for than
                lie on any path, or ``most_walks`` walked.
        """
        strength = lookup("weights of PHEW", self.weights, WEIGHTS)
        ways = walkways(problem.network, params, problem.stats, mask)
        names = [name for name, m in flatten(mask).items() if m is not None]
        flat = flatten(params)
        for name in names:
            if not np.isfinite(flat[name]).all():
                raise SecateurError(
                    f"PHEW walks along weights, and those of {name} are not all finite; look where "
                    "NaN or infinity comes from."
                )
        values = np.concatenate([np.ravel(np.asarray(flat[n])) for n in names])
        walk = Walks(ways, strength(values.astype(np.float64)), self.kernel_conserved)
        if keep > walk.reach:
            raise SecateurError(
                f"PHEW was asked for {keep:,} weights, but only {walk.reach:,} can be met on a "
                "walk: ask for a lower density."
            )
        kept = np.zeros(values.size, bool)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
        walks = 0
        while (count := int(kept.sum())) < keep:
            progress(count, keep)
            if walks >= self.most_walks:
                raise SecateurError(
                    f"PHEW met {count:,} of the {keep:,} weights asked for in {walks:,} walks; "
                    "ask for a lower density or raise most_walks."
                )
            met = walk.block(np.arange(walks, walks + _BLOCK), rng)
            walks += _add(kept, met, keep - count)
        progress(keep, keep)
        pieces = np.split(kept, np.cumsum([np.size(flat[n]) for n in names])[:-1])
        found: dict[str, Any] = dict.fromkeys(flat)
        found |= {n: piece.reshape(np.shape(flat[n])) for n, piece in zip(names, pieces)}
        made = {"walks": walks, "asked": keep, "kept": count, "overshoot": count - keep}
        return unflatten(found, mask), params, made


def _add(kept: np.ndarray, met: np.ndarray, need: int) -> int:
    """Adds whole walks, row by row, until ``need`` new weights are kept; returns how many walks."""
    row, column = np.nonzero(met >= 0)
    weight = met[row, column]
    new = ~kept[weight]
    row, weight = row[new], weight[new]
    weight, first = np.unique(weight, return_index=True)
    row = row[first]  # rows ascend, so the first walk that meets the weight
    total = np.cumsum(np.bincount(row, minlength=len(met)))
    enough = np.flatnonzero(total >= need)
    last = int(enough[0]) if enough.size else len(met) - 1
    kept[weight[row <= last]] = True
    return last + 1


def _draw(p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One column for each row, in proportion to its entries. (n, m) -> (n,)"""
    sums = np.cumsum(p, axis=1)
    at = rng.random(len(p))[:, None] * sums[:, -1:]
    return np.minimum((sums <= at).sum(axis=1), p.shape[1] - 1)


class Walks:
    """Many walks at a time: each event of the program moves the walkers that stand before it."""

    def __init__(self, ways: Walkways, strength: np.ndarray, whole_kernels: bool) -> None:
        self.ways, self.whole = ways, whole_kernels
        self.maker = np.full(ways.units + 1, -1)
        self.strength: dict[int, np.ndarray] = {}
        for e, event in enumerate(ways.events):
            self.maker[event.units] = e
            if isinstance(event, Step):
                self.strength[e] = self._strength(event, strength)
        self.norms = {e: s.sum(axis=0) for e, s in self.strength.items()}
        self.features = {e: _Features(ways.events[e], norm) for e, norm in self.norms.items()}
        self.readers, self.leads = self._readers()
        self.begins = self._begins()
        self.inputs = ways.inputs[self.leads[ways.inputs]]
        self.outputs = ways.outputs[self.begins[ways.outputs]]
        met = [
            event.entries[self.strength[e] > 0]
            for e, event in enumerate(ways.events)
            if isinstance(event, Step)
        ]
        self.reach = int((np.unique(np.concatenate(met)) >= 0).sum())
        self.places = max((s.shape[0] for s in self.strength.values()), default=1)

    def _strength(self, step: Step, strength: np.ndarray) -> np.ndarray:
        """(places, in, out); where a row or column of weights is all 0, its steps are equal."""
        if step.fixed is not None:
            return step.fixed.astype(np.float64)
        there = (step.entries >= 0) & self.ways.open[step.entries]
        s = np.where(there, strength[step.entries], 0.0)
        for axes in ((0, 2), (0, 1)):
            s = np.where(there & (s.sum(axis=axes, keepdims=True) == 0), 1.0, s)
        return s

    def _readers(self) -> tuple[list[list[int]], np.ndarray]:
        """Events that lead on from each unit, and whether it leads to an output."""
        readers: list[list[int]] = [[] for _ in range(self.ways.units + 1)]
        leads = np.zeros(self.ways.units + 1, bool)
        leads[self.ways.outputs] = True
        for e in reversed(range(len(self.ways.events))):
            event = self.ways.events[e]
            if isinstance(event, Sum):
                found = event.pairs[leads[event.units]].ravel()
            else:
                found = event.sources[(self.norms[e][:, leads[event.units]] > 0).any(axis=1)]
            for unit in np.unique(found[found > 0]):
                readers[unit].append(e)
                leads[unit] = True
        for unit in self.ways.outputs:
            readers[unit] = []
        return readers, leads

    def _begins(self) -> np.ndarray:
        """Whether an input leads to each unit."""
        begins = np.zeros(self.ways.units + 1, bool)
        begins[self.ways.inputs] = True
        for e, event in enumerate(self.ways.events):
            if isinstance(event, Sum):
                begins[event.units] = begins[event.pairs].any(axis=1)
            else:
                begins[event.units] = (self.norms[e][begins[event.sources]] > 0).any(axis=0)
        return begins

    def block(self, numbers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The weights that the walks of these numbers meet, (walks, steps); -1 for none."""
        met = np.full((len(numbers), len(self.ways.events), self.places if self.whole else 1), -1)
        forward = numbers % 2 == 0
        self._forward(np.flatnonzero(forward), numbers[forward] // 2, met, rng)
        self._backward(np.flatnonzero(~forward), numbers[~forward] // 2, met, rng)
        return met.reshape(len(numbers), -1)

    def _forward(
        self, rows: np.ndarray, turns: np.ndarray, met: np.ndarray, rng: np.random.Generator
    ) -> None:
        units = self.inputs[turns % len(self.inputs)]
        ahead = self._choose(units, rng)
        for e, event in enumerate(self.ways.events):
            here = np.flatnonzero(ahead == e)
            if not here.size:
                continue
            if isinstance(event, Sum):
                units[here] = self._sums(event, units[here], rng)
            else:
                into = self.features[e].draw(units[here], rng)
                onwards = self.norms[e][into] * self.leads[event.units]
                out = _draw(onwards, rng)
                met[rows[here], e] = self._meet(e, event, into, out, rng)
                units[here] = event.units[out]
            ahead[here] = self._choose(units[here], rng)

    def _backward(
        self, rows: np.ndarray, turns: np.ndarray, met: np.ndarray, rng: np.random.Generator
    ) -> None:
        units = self.outputs[turns % len(self.outputs)]
        for e in reversed(range(len(self.ways.events))):
            event = self.ways.events[e]
            here = np.flatnonzero(self.maker[units] == e)
            if not here.size:
                continue
            which = units[here] - event.units[0]
            if isinstance(event, Sum):
                units[here] = event.pairs[which, _draw(self.begins[event.pairs[which]], rng)]
            else:
                back = self.norms[e].T[which] * self.begins[event.sources]
                into = _draw(back, rng)
                met[rows[here], e] = self._meet(e, event, into, which, rng)
                units[here] = event.sources[into]

    def _choose(self, units: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An event that reads each unit, all equally likely; -1 at an output."""
        at = rng.random(len(units))
        options = [self.readers[unit] for unit in units]
        return np.array([o[int(r * len(o))] if o else -1 for o, r in zip(options, at)], int)

    def _sums(self, event: Sum, units: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The unit of which each is a part; any of them where it is part of several."""
        part = (event.pairs[None] == units[:, None, None]).any(axis=2) & self.leads[event.units]
        return event.units[_draw(part, rng)]

    def _meet(
        self,
        e: int,
        step: Step,
        into: np.ndarray,
        out: np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """The weights kept for a step, (walkers, 1) or, of a whole kernel, (walkers, places)."""
        if self.whole:
            weights = step.entries[:, into, out].T
            return np.pad(
                weights, ((0, 0), (0, self.places - len(step.entries))), constant_values=-1
            )
        place = _draw(self.strength[e][:, into, out].T, rng)
        return step.entries[place, into, out][:, None]


class _Features:
    """Which input features of a step are a unit's: several after a flattening."""

    def __init__(self, event: Any, norm: np.ndarray) -> None:
        alive = np.flatnonzero(norm.any(axis=1) & (event.sources > 0))
        self.order = alive[np.argsort(event.sources[alive], kind="stable")]
        self.sources = event.sources[self.order]

    def draw(self, units: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        first = np.searchsorted(self.sources, units, "left")
        count = np.searchsorted(self.sources, units, "right") - first
        return self.order[first + (rng.random(len(units)) * count).astype(int)]
