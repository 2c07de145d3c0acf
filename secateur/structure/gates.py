"""The network with a hand on what chosen kernels read: what comes before them is computed once.

`gated` runs a network up to the products of some kernels and keeps the rest as a function. To see
what a unit is worth, its contribution is taken from the products that read it and the rest is run
again; what made the unit, and everything before, is never computed a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from secateur.core.network import Network, Stats
from secateur.core.trees import Params, flatten
from secateur.structure.flow import bind
from secateur.structure.reader import CALLS, CASTS


@dataclass(frozen=True)
class Meeting:
    """A product of a chosen kernel.

    Attributes:
        kernel: its name.
        operand: what it reads; its axis ``axis`` holds the units.
        weights: the kernel in the layout of the product; ``weights_axis`` holds the units.
        early: no other chosen kernel stands before it, so that no rule changes its operand.
        again: ``(operand, weights) -> product``; of any number of units and examples.
    """

    kernel: str
    operand: jax.Array
    weights: jax.Array
    axis: int
    weights_axis: int
    early: bool
    again: Callable[[jax.Array, jax.Array], jax.Array]

    def of(self, places: jax.Array, base: jax.Array | None = None) -> jax.Array:
        """What the units at ``places`` of the axis add to the product, beyond ``base``."""
        operand = jnp.take(self.operand, places, axis=self.axis)
        if base is not None:
            operand = operand - jnp.take(base, places, axis=self.axis)
        return self.again(operand, jnp.take(self.weights, places, axis=self.weights_axis))

    def keeping(self, kept: jax.Array, base: jax.Array | None = None) -> jax.Array:
        """The operand with 0, or ``base``, at the places that are not kept; bool (places,)."""
        shape = [1] * self.operand.ndim
        shape[self.axis] = -1
        other = jnp.zeros((), self.operand.dtype) if base is None else base
        return jnp.where(kept.reshape(shape), self.operand, other)


Rule = Callable[[Meeting], jax.Array]


class _Late(NamedTuple):
    """A value that is known only when a rule is."""

    number: int


class _Step(NamedTuple):
    eqn: Any
    ins: tuple[Any, ...]
    outs: tuple[_Late, ...]
    leaf: str | None
    side: int  # which operand the kernel is


@dataclass(frozen=True)
class Gated:
    """What follows the chosen kernels, as a function of a rule.

    ``gated(rule)`` is the network's output where each product of a chosen kernel is ``rule`` of
    it: ``lambda met: met.again(met.operand, met.weights)`` changes nothing.

    Attributes:
        early: the meetings that no rule changes, by kernel.
    """

    early: dict[str, Meeting]
    _steps: tuple[_Step, ...]
    _out: Any

    def __call__(self, rule: Rule) -> jax.Array:
        values: dict[int, Any] = {}
        known = lambda v: values[v.number] if isinstance(v, _Late) else v
        for step in self._steps:
            ins = [known(v) for v in step.ins]
            if step.leaf is None:
                outs = bind(step.eqn, *ins)
            else:
                met = self.early.get(step.leaf)
                outs = [rule(met or _meeting(step.eqn, step.leaf, step.side, ins, early=False))]
            values.update((late.number, value) for late, value in zip(step.outs, outs))
        return known(self._out)


def _meeting(eqn: Any, leaf: str, side: int, ins: list[Any], early: bool) -> Meeting:
    operand, weights = ins[1 - side], ins[side]
    if eqn.primitive.name == "conv_general_dilated":
        spec = eqn.params["dimension_numbers"]
        axis, weights_axis = spec.lhs_spec[1], spec.rhs_spec[1]
    else:
        contracted, _ = eqn.params["dimension_numbers"]
        axis, weights_axis = contracted[1 - side][0], contracted[side][0]

    def again(operand: jax.Array, weights: jax.Array) -> jax.Array:
        return bind(eqn, *((weights, operand) if side == 0 else (operand, weights)))[0]

    return Meeting(leaf, operand, weights, axis, weights_axis, early, again)


def gated(
    network: Network, params: Params, stats: Stats, x: jax.Array, kernels: Collection[str]
) -> Gated:
    """``network.apply`` up to the products of ``kernels``, and the rest as a function.

    Traceable; the products are dense layers or convolutions that `channels.read_channels` lists.

    Raises:
        ValueError: for a kernel without a product of its own.
    """
    names = [name for name, leaf in flatten(params).items() if leaf is not None]
    given = (params, stats, x)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype), given)
    closed = jax.make_jaxpr(network.apply)(*shapes)
    early: dict[str, Meeting] = {}
    steps: list[_Step] = []
    count = 0

    def equation(eqn: Any, ins: list[tuple[Any, str | None]]) -> list[tuple[Any, str | None]]:
        nonlocal count
        name, values = eqn.primitive.name, [value for value, _ in ins]
        late = any(isinstance(v, _Late) for v in values)
        leaf, side = None, 0
        if name in ("dot_general", "conv_general_dilated"):
            for k in (0, 1):
                if ins[k][1] in kernels:
                    leaf, side = ins[k][1], k
        if leaf is not None and not late:
            early[leaf] = _meeting(eqn, leaf, side, values, early=True)
        tag = ins[0][1] if name in CASTS or name == "transpose" else None
        if leaf is None and not late:
            return [(value, tag) for value in bind(eqn, *values)]
        outs = tuple(_Late(count + k) for k in range(len(eqn.outvars)))
        count += len(outs)
        steps.append(_Step(eqn, tuple(values), outs, leaf, side))
        return [(one, None) for one in outs]

    def walk(jaxpr: Jaxpr, consts: Any, args: list[tuple[Any, str | None]]) -> list[Any]:
        env: dict[Any, tuple[Any, str | None]] = dict(zip(jaxpr.invars, args))
        env.update((v, (c, None)) for v, c in zip(jaxpr.constvars, consts))
        read = lambda v: (v.val, None) if isinstance(v, Literal) else env[v]
        for eqn in jaxpr.eqns:
            ins = [read(v) for v in eqn.invars]
            inner = eqn.params.get(CALLS.get(eqn.primitive.name, ""))
            if inner is None:
                outs = equation(eqn, ins)
            elif isinstance(inner, ClosedJaxpr):
                outs = walk(inner.jaxpr, inner.consts, ins)
            else:
                outs = walk(inner, [], ins)
            env.update(zip(eqn.outvars, outs))
        return [read(v) for v in jaxpr.outvars]

    leaves = [(leaf, name) for leaf, name in zip(jax.tree.leaves(params), names)]
    others = [(leaf, None) for leaf in [*jax.tree.leaves(stats), x]]
    ((out, _),) = walk(closed.jaxpr, closed.consts, [*leaves, *others])
    met = [step.leaf for step in steps if step.leaf is not None]
    if sorted(met) != sorted(kernels):
        raise ValueError(f"products of {sorted(kernels)} were asked for, {sorted(met)} found")
    return Gated(early, tuple(steps), out)
