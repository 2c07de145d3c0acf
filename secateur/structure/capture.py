"""What enters a dense layer: the network run with a tap behind each of its matrix products.

A tap is an array of zeros added to the product ``a W``. The derivative by the tap is what the
layer's output is felt by, for all examples at once; together with ``a`` it gives the derivative by
``W`` of every example as a product, without ever forming it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from secateur.core.network import Network, Stats
from secateur.core.trees import Params, flatten
from secateur.structure.reader import CALLS

# Entered where a tapped kernel goes in. Rules of differentiation of a user's own are left whole.
ENTERED = {name: inner for name, inner in CALLS.items() if name != "custom_jvp_call"}


class _Tapped:
    """Evaluates a jaxpr, adds the taps, and keeps what enters the layers they are behind."""

    def __init__(self, taps: Mapping[str, jax.Array]) -> None:
        self.taps = taps
        self.entered: dict[str, jax.Array] = {}

    def run(
        self, jaxpr: Jaxpr, consts: list[Any], args: list[Any], names: list[str | None]
    ) -> list[Any]:
        """``names``: of which tapped kernel each argument is, if it is one."""
        values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts))
        values.update(zip(jaxpr.invars, args))
        kernels = {v: name for v, name in zip(jaxpr.invars, names) if name is not None}

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        for eqn in jaxpr.eqns:
            ins = [read(atom) for atom in eqn.invars]
            which = [None if isinstance(a, Literal) else kernels.get(a) for a in eqn.invars]
            values.update(zip(eqn.outvars, self.equation(eqn, ins, which)))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn: Any, ins: list[Any], which: list[str | None]) -> list[Any]:
        name = eqn.primitive.name
        if name in ENTERED and any(which):
            inner = eqn.params[ENTERED[name]]
            if isinstance(inner, ClosedJaxpr):
                return self.run(inner.jaxpr, inner.consts, ins, which)
            return self.run(inner, [], ins, which)
        out = eqn.primitive.bind(*ins, **eqn.primitive.get_bind_params(eqn.params))
        outs = list(out) if eqn.primitive.multiple_results else [out]
        if name == "dot_general" and which[1] is not None:
            (lhs, rhs), batched = eqn.params["dimension_numbers"]
            if ins[0].ndim == 2 and (lhs, rhs, batched) == ((1,), (0,), ((), ())):
                self.entered[which[1]] = ins[0]
                outs = [outs[0] + self.taps[which[1]]]
        return outs


def tapped(
    network: Network,
    params: Params,
    stats: Stats,
    x: jax.Array,
    taps: Mapping[str, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """``network.apply`` with a tap behind the matrix product of each named kernel.

    Differentiable in all its arguments; computes what ``apply`` computes where the taps are 0.

    Args:
        x: (n, *input_shape).
        taps: kernel -> (n, units), added to ``a W``. Kernels are matrices (inputs, units).

    Returns:
        The logits (n, outputs), and what enters each layer: kernel -> a (n, inputs). A kernel whose
        product is not ``a W`` of a matrix a is missing there, and its tap has no effect.
    """
    closed = jax.make_jaxpr(network.apply)(params, stats, x)
    names: list[str | None] = [
        name if name in taps else None for name, leaf in flatten(params).items() if leaf is not None
    ]
    args = jax.tree.leaves((params, stats, x))
    names += [None] * (len(args) - len(names))
    run = _Tapped(taps)
    (logits,) = run.run(closed.jaxpr, closed.consts, args, names)
    return logits, run.entered
