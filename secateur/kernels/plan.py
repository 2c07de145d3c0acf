"""Which rule each leaf's part of a kernel takes: multiplications and bytes, counted beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.kernels.factors import Form, flat_kernel
from secateur.kernels.rules import Rule
from secateur.kernels.subject import Subject
from secateur.structure.sites import Site, views

# Multiplications and additions a CPU second, by what they are in: measured on one machine, so that
# the choice between rules is right where their ratios hold, and seconds are within a factor of two.
RATES = {"dense": 3.0e10, "columns": 3.0e10, "rows": 1.0e10, "rows, summed": 1.5e10, "passes": 1e10}


@dataclass(frozen=True)
class Line:
    """What one leaf takes.

    Attributes:
        leaf: its name.
        kind: what it is: dense, conv, bias, scale, or other.
        rule: ``dense``, ``rows``, ``columns`` or ``differentiated``; ``with`` another leaf's.
        kept: weights that are counted.
        work: multiplications of the contraction.
        bytes: that its factors take, of one example and output.
        why: why no other rule is taken; empty where none is faster.
    """

    leaf: str
    kind: str
    rule: str
    kept: int
    work: float
    bytes: float
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """How a kernel will be formed.

    Attributes:
        outputs: of `rules.OUTPUTS`.
        examples: of the two sides.
        classes: outputs of the network.
        lines: one a leaf.
        passes: multiplications of the forward and backward passes.
        result: bytes of the kernel.
        working: bytes held beside it.
        at_once: examples whose factors are held together, and outputs.
        block: examples a side of one block.
    """

    outputs: str
    examples: tuple[int, int]
    classes: int
    lines: tuple[Line, ...]
    passes: float
    result: float
    working: float
    at_once: tuple[int, int]
    block: int

    @property
    def seconds(self) -> float:
        """CPU seconds by the rates of one machine; within a factor of two or three on others."""
        spent = self.passes / RATES["passes"]
        for line in self.lines:
            name = "columns" if line.rule == "differentiated" else line.rule
            if name == "rows" and self.outputs != "full":
                name = "rows, summed"
            spent += line.work / RATES.get(name, RATES["columns"])
        return spent

    def __str__(self) -> str:
        n, m = self.examples
        whole = sum(line.work for line in self.lines) or 1.0
        head = (
            f"{self.outputs} kernel of {n:,} x {m:,} examples, {self.classes} outputs: about "
            f"{_time(self.seconds)} on one core, {_size(self.result)} result, "
            f"{_size(self.working)} beside it"
        )
        rows = [("leaf", "kind", "rule", "weights", "work", "share", "factors")]
        rows += [
            (
                line.leaf,
                line.kind,
                line.rule,
                f"{line.kept:,}",
                f"{line.work:.2g}",
                f"{100 * line.work / whole:.0f} %",
                _size(line.bytes),
            )
            for line in self.lines
        ]
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        table = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
        notes = [f"{line.leaf}: {line.why}" for line in self.lines if line.why]
        return "\n".join([head, *table, *notes])


def _size(count: float) -> str:
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}"
    return f"{count:.0f} B"


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds / 60:.3g} min"


@dataclass(frozen=True)
class Masked:
    """A dense layer's mask as its product uses it.

    Attributes:
        weights: (inputs, units), what each weight counts; 1 where nothing is masked.
        bias: (units,), what its bias counts.
        whole: nothing of it is masked, and its bias counts in full or not at all.
    """

    weights: np.ndarray
    bias: np.ndarray
    whole: bool


def masked_products(about: Subject, how: Form) -> list[Masked]:
    """The mask of each of ``how.products``, in the order in which its factors are."""
    if not how.products:
        return []
    leaves = about.leaves()
    one = jax.tree.map(lambda a: a[:1], about.x)
    seen = views(about.prepared.f, about.params, one, how.sites)
    made = []
    for place, site in enumerate(how.products):
        view, leaf = seen[site.leaf, site.step], leaves[site.leaf]
        count = np.ones(np.shape(leaf)) if site.leaf not in about.weights else None
        r = np.asarray(about.weights[site.leaf] if count is None else count, leaf.dtype)
        if site.plain and r.ndim == 2 and not site.part:
            weights = np.asarray(flat_kernel(site, jnp.asarray(r)))[0]
        else:  # what the function itself multiplies the leaf by counts as its square
            once = np.asarray(flat_kernel(site, view(jnp.ones_like(r))))[0]
            weights = once * np.asarray(flat_kernel(site, view(jnp.asarray(r))))[0]
        bias = np.zeros(weights.shape[1], weights.dtype)
        for name, owner in how.biases.items():
            if owner == place:
                bias += np.asarray(about.weights.get(name, np.ones(len(bias))), bias.dtype)
        whole = bool(np.all(weights == 1)) and len(set(bias.tolist())) <= 1
        made.append(Masked(weights, bias, whole))
    return made


def choose(
    site: Site, of: Masked, outputs: str, classes: int, last: bool, asked: str = "auto"
) -> tuple[Rule, float]:
    """The cheapest rule, and its multiplications for a pair of examples.

    Args:
        asked: a rule's name, taken wherever it is exact.
    """
    inputs, units = of.weights.shape
    kept = int(np.count_nonzero(of.weights))
    live = int(np.count_nonzero(np.any(of.weights != 0, axis=0) | (of.bias != 0)))
    pairs = classes * classes if outputs == "full" else classes
    slow = RATES["dense"] / RATES["rows" if outputs == "full" else "rows, summed"]
    work = {
        "dense": inputs + pairs * units,
        "rows": kept + (1 if last and outputs == "full" else pairs) * live,
        "columns": pairs * (kept + int(np.count_nonzero(of.bias))),
    }
    cost = {"dense": work["dense"], "rows": slow * work["rows"], "columns": work["columns"]}
    if not of.whole:
        del cost["dense"]
    name = asked if asked in cost else min(cost, key=lambda k: cost[k])
    bias = int(of.bias[0]) if name == "dense" and len(of.bias) else 0
    return Rule(name, bias, last), float(work[name])


def passes(about: Subject, how: Form) -> float:
    """Multiplications of capturing one example: XLA's count of the program of a few."""
    few = min(about.n, 4)
    x = jax.tree.map(lambda a: a[:few], about.x)
    run = about.factors(how)
    kept = about.kept(how)
    lowered = run.lower(about.params, x, np.eye(about.outputs), kept)
    counted: Any = lowered.cost_analysis() or {}
    return float(counted.get("flops", 0.0)) / 2 / few
