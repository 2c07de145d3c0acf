"""Is a network a chain of products with nothing but ReLU between them?

Only then is the mean of its kernel's trace over random weights a sum over paths (`ntk_sap`). The
reader follows the one way from the input to the output and stops at the first step that the
closed form does not know: a norm, a pooling, a sum of two branches, another activation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from secateur.core.network import Network, Stats
from secateur.core.trees import Params, flatten
from secateur.structure.reader import CALLS, CASTS

_SHAPED = CASTS | {"reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim"}
_PRODUCTS = frozenset(["dot_general", "conv_general_dilated"])
_WAY = "the way from input to output"


@dataclass(frozen=True)
class Chain:
    """What stands on the way from the input to the output.

    Attributes:
        kernels: leaves of the products, first to last.
        gates: how many hidden layers end in a ReLU.
        biases: leaves that are added.
        why: why the network is no such chain, as the end of a sentence; "" where it is one.
    """

    kernels: tuple[str, ...]
    gates: int
    biases: frozenset[str]
    why: str = ""


class _Stop(Exception):
    """Carries the reason to the top."""


@dataclass
class _Walk:
    steps: list[str] = field(default_factory=list)  # "product" and "gate", in order
    kernels: list[str] = field(default_factory=list)
    biases: set[str] = field(default_factory=set)
    flat: bool = False  # the last product multiplies one row an example

    def jaxpr(self, jaxpr: Jaxpr, consts: list[Any], args: list[Any]) -> list[Any]:
        """Tags of the outputs: the way, ``("leaf", name)``, ``"zero"``, or None (a constant)."""
        tags: dict[Any, Any] = dict(zip(jaxpr.constvars, consts))
        tags.update(zip(jaxpr.invars, args))

        def read(atom: Any) -> Any:
            if isinstance(atom, Literal):
                return "zero" if np.ndim(atom.val) == 0 and float(atom.val) == 0 else None
            return tags[atom]

        for eqn in jaxpr.eqns:
            outs = self.equation(eqn, [read(atom) for atom in eqn.invars])
            tags.update(zip(eqn.outvars, outs))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn: Any, ins: list[Any]) -> list[Any]:
        name = eqn.primitive.name
        if name in CALLS and CALLS[name] in eqn.params:
            inner = eqn.params[CALLS[name]]
            if _WAY in ins and eqn.params.get("name") in ("max_pool", "average_pool"):
                raise _Stop(f"it goes through {eqn.params['name']}")
            closed = isinstance(inner, ClosedJaxpr)
            body = inner.jaxpr if closed else inner
            return self.jaxpr(body, [None] * len(body.constvars), ins)
        if name in _SHAPED and eqn.outvars[0].aval.size == eqn.invars[0].aval.size:
            return [ins[0]]
        if name in _SHAPED and ins[0] != _WAY:  # a bias that goes to every example
            return [ins[0]]
        ways = sum(tag == _WAY for tag in ins)
        leaves = [tag[1] for tag in ins if isinstance(tag, tuple)]
        if ways == 0:
            for atom, tag in zip(eqn.invars, ins):
                if isinstance(tag, tuple) and atom.aval.ndim > 1:
                    raise _Stop(f"its weights {tag[1]!r} go through {name}")
            return [("leaf", leaves[0]) if leaves else None] * len(eqn.outvars)
        if ways > 1:
            raise _Stop(f"two branches of it meet in {name}")
        if name in _PRODUCTS and leaves:
            if leaves[0] in self.kernels:
                raise _Stop(f"two products use {leaves[0]!r}")
            self.steps.append("product")
            self.kernels.append(leaves[0])
            self.flat = name == "dot_general" and eqn.outvars[0].aval.ndim == 2
            return [_WAY]
        if name == "max" and "zero" in ins:
            if not self.steps:
                raise _Stop("a ReLU comes before its first product")
            if self.steps[-1] == "product":
                self.steps.append("gate")
            return [_WAY]
        if name in ("add", "add_any") and leaves:
            self.biases.update(leaves)
            return [_WAY]
        raise _Stop(f"it goes through {name}")


def chain(network: Network, params: Params, stats: Stats) -> Chain:
    """What stands between input and output of ``network.apply``, from its jaxpr.

    Args:
        params, stats: arrays or their shapes; nothing is computed.
    """
    flat = flatten(params)
    shaped = jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype), (params, stats))
    x = jax.ShapeDtypeStruct((7, *network.input_shape), jax.numpy.result_type(float))
    closed = jax.make_jaxpr(network.apply)(*shaped, x)
    tags = [("leaf", name) for name, leaf in flat.items() if leaf is not None]
    tags += [("leaf", "batch statistics")] * len(jax.tree.leaves(stats))
    walk, why = _Walk(), ""
    try:
        (out,) = walk.jaxpr(closed.jaxpr, [None] * len(closed.consts), [*tags, _WAY])
        if out != _WAY or not walk.steps:
            why = "no product leads from its input to its output"
        elif walk.steps[-1] == "gate":
            why = "its output goes through a ReLU"
        elif not walk.flat:
            why = "its last layer is not a dense layer on the flattened map"
    except _Stop as stop:
        why = str(stop)
    gates = walk.steps.count("gate")
    return Chain(tuple(walk.kernels), gates, frozenset(walk.biases), why)
