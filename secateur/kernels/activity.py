"""Which paths are active on which inputs: the data's half of the tangent kernel.

For a network of piecewise linear, homogeneous activations f = J_v pi, with a row of J_v for each
input and output: what the path begins with, times the slopes of the activations along it, where it
ends in this output. J_v has a column for each path, but its Gram matrix is a flow again:

    K[(x, c), (x', c)] = sum over paths to c of x_p0 x'_p0 * slopes of p at x * slopes of p at x'

is what flows to output c through the mask (1 where a weight is kept), from x * x' and through the
products of both inputs' slopes; between different outputs it is 0. Gebhart, Saxena & Schrater 2021,
section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal

from secateur.core.errors import SecateurError
from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params, apply_mask, map_mask
from secateur.structure.flow import ACTIVATIONS, ENTERED, Reading, Term, bind, run

PAIRS = 64  # pairs of inputs side by side
# Between a product and an activation these may stand: an entry of the result depends on one entry.
_EACH = frozenset(
    [
        *("clamp", "convert_element_type", "copy", "copy_p", "div", "max", "min", "mul", "neg"),
        *("reduce_precision", "select_n"),
    ]
)


class Activity(NamedTuple):
    """K of a batch, by outputs: ``values * 2**exponent``.

    Attributes:
        values: ``(C, n, n)``; the block of two different outputs is 0.
        exponent: ``()``.
        logits: ``(n, C)``, the network's.
    """

    values: jax.Array
    exponent: jax.Array
    logits: jax.Array


def activity(network: Network, params: Params, stats: Stats, mask: Mask, x: jax.Array) -> Activity:
    """K = J_v J_v^T of the masked network on a batch; n (n + 1) / 2 forward passes.

    Slopes are JAX's derivatives, at kinks, too. Shifts are paths that begin there; a fixed factor
    on a path (a norm, average pooling) belongs to Pi and counts here as 1, or as 0.

    Args:
        mask: its kept weights are the edges; biases too where it has their leaves.
        x: ``(n, *input_shape)``.

    Raises:
        SecateurError: for an activation that is not homogeneous (on these inputs), max-pooling, or
            paths that cannot be followed.
    """
    found, slopes, defects = _slopes(network, params, stats, mask, x)
    if not np.isfinite(np.asarray(found)).all():
        raise SecateurError(
            f"{network.name!r} gives outputs that are not finite in {x.dtype}, so it is not known "
            "which of its paths are active: give float64, or weights of another scale."
        )
    for defect in map(float, defects):
        if defect > 100 * float(jnp.finfo(x.dtype).eps):
            raise SecateurError(
                f"an activation of {network.name!r} is not slope * z on these inputs (off by "
                f"{defect:.1g} of its largest value), so the tangent kernel does not factor into "
                "data and paths: use relu, leaky relu or none; path_kernel alone takes any."
            )
    values, exponent = _pairs(network, params, stats, mask, x, slopes)
    return Activity(values, exponent, found)


@dataclass
class _Gates(Reading):
    """Knows where a flow passes an activation: a call or a choice that leaves it as it is."""

    keep_bias: bool = True
    closed: bool = False  # inside an activation

    def equation(self, eqn: Any, ins: list[Any]) -> list[Any]:
        primitive, called = eqn.primitive.name, eqn.params.get("name")
        flows = [i for i in ins if isinstance(i, Term) and i.flows]
        if called == "max_pool" or (flows and primitive in ("reduce_max", "reduce_window_max")):
            raise SecateurError(
                f"{self.name!r} has max-pooling, through which the tangent kernel is not factored "
                "into data and paths here: replace it by average pooling, or take "
                'path_kernel(..., pooling="sum") alone.'
            )
        if flows and (primitive == "tanh" or called in ACTIVATIONS):
            raise SecateurError(
                f"{self.name!r} has the activation {called or primitive!r}, which is not "
                "homogeneous, so its tangent kernel does not factor into data and paths: use relu, "
                "leaky relu or none; path_kernel alone takes any."
            )
        if self.closed or not flows:
            return super().equation(eqn, ins)
        if primitive in ENTERED and ENTERED[primitive] in eqn.params:
            self.closed = True
            outs = super().equation(eqn, ins)
            self.closed = False
            one = _passed(outs, ins)
            return super().equation(eqn, ins) if one is None else [self.gate(eqn, ins, one)]
        outs = super().equation(eqn, ins)
        choice = primitive == "select_n" and not isinstance(ins[0], Term | np.ndarray | jax.Array)
        if choice or primitive in ("max", "min", "clamp"):
            one = _passed(outs, ins)
            assert one is not None
            return [self.gate(eqn, ins, one)]
        return outs

    def gate(self, eqn: Any, ins: list[Any], one: int) -> Term:
        """What comes out of an activation of ``ins[one]``."""
        raise NotImplementedError


def _passed(outs: list[Any], ins: list[Any]) -> int | None:
    """Which flow comes out as it went in."""
    out = outs[0]
    if len(outs) != 1 or not isinstance(out, Term):
        return None
    same = (k for k, i in enumerate(ins) if isinstance(i, Term) and i.value is out.value)
    return next(same, None)


@dataclass
class _Slopes(_Gates):
    """Runs the network beside its reading and keeps the slope of each activation.

    Every flow has a tangent: what it changes by if each entry of the last product or sum before it
    changes by 1.

    Attributes:
        slopes: in the order of the program, in the shapes of what passes.
        defects: of each: the largest |f(z) - slope * z| over the largest |f(z)|.
        now: (value, tangent or None) of each operand of the equation that is read.
        made: the same of each output of the program read last.
        gated: the activation found last, and what came out of it.
    """

    slopes: list[jax.Array] = field(default_factory=list)
    defects: list[jax.Array] = field(default_factory=list)
    now: list[Any] | None = None
    made: list[Any] = field(default_factory=list)
    gated: tuple[Any, Any] = (None, None)

    def walk(self, jaxpr: Jaxpr, consts: list[Any], args: list[Any]) -> list[Any]:
        outer = self.now
        known: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args)))
        given = [(c, None) for c in consts] + (outer or [_begun(i) for i in args])
        shadow: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), given))

        def read(atom: Any) -> tuple[Any, Any]:
            """As a reading and as a number."""
            if isinstance(atom, Literal):
                value = np.asarray(atom.val, atom.aval.dtype)  # type: ignore[attr-defined]
                return value, (value, None)
            return known[atom], shadow[atom]

        for eqn in jaxpr.eqns:
            ins, self.now = map(list, zip(*map(read, eqn.invars))) if eqn.invars else ([], [])
            now = self.now
            outs = self.equation(eqn, ins)
            entered = ENTERED.get(eqn.primitive.name)
            if self.gated[0] is eqn:
                made = [(self.gated[1], None)]
            elif entered and entered in eqn.params:
                made = self.made
            else:
                made = _pushed(eqn, now)
            known.update(zip(eqn.outvars, outs))
            shadow.update((var, _whole(*each)) for var, *each in zip(eqn.outvars, outs, made))
        self.now = outer
        outs, self.made = map(list, zip(*map(read, jaxpr.outvars)))
        return outs

    def gate(self, eqn: Any, ins: list[Any], one: int) -> Term:
        assert self.now is not None
        z, before = self.now[one]
        ((out, after),) = _pushed(eqn, self.now)
        slope = jnp.where(before == 0, 0, after / jnp.where(before == 0, 1, before))
        top = jnp.max(jnp.abs(out), initial=0)
        defect = jnp.max(jnp.abs(out - slope * z), initial=0)
        self.slopes.append(slope)
        self.defects.append(defect / jnp.where(top > 0, top, 1))
        self.gated = (eqn, out)
        # Another array, so that a call around this one is not taken for an activation itself.
        return replace(ins[one], value=jnp.broadcast_to(ins[one].value, out.shape) * 1)


def _begun(i: Any) -> tuple[Any, Any]:
    if not isinstance(i, Term):
        return i, None
    return i.value, jnp.ones_like(i.value) if i.flows else None


def _whole(out: Any, made: tuple[Any, Any]) -> tuple[Any, Any]:
    """A flow has a tangent, nothing else has."""
    value, tangent = made
    if not (isinstance(out, Term) and out.flows):
        return value, None
    return value, jnp.ones_like(value) if tangent is None else tangent


def _pushed(eqn: Any, now: list[Any]) -> list[Any]:
    """The outputs of an equation, with their tangents where it acts on each entry alone."""
    values = [value for value, _ in now]
    called = eqn.primitive.name in ENTERED
    moving = [k for k, (_, t) in enumerate(now) if t is not None]
    if not moving or not (called or eqn.primitive.name in _EACH):
        return [(out, None) for out in bind(eqn, *values)]

    def run_(*z: jax.Array) -> list[jax.Array]:
        operands = list(values)
        for k, value in zip(moving, z):
            operands[k] = value
        return bind(eqn, *operands)

    outs, tangents = jax.jvp(run_, [values[k] for k in moving], [now[k][1] for k in moving])
    return list(zip(outs, tangents))


@dataclass
class _Pairs(_Gates):
    """What flows from a pair of inputs to each output, through the slopes of both."""

    gates: Iterator[jax.Array] = field(default_factory=lambda: iter(()))

    def gate(self, eqn: Any, ins: list[Any], one: int) -> Term:
        return self.settled(replace(ins[one], value=ins[one].value * next(self.gates)))

    def coefficient(self, c: Any, dtype: Any) -> jax.Array:
        return (jnp.asarray(c) != 0).astype(dtype)

    def settled(self, term: Term) -> Term:
        """Values have signs here: x * x' is negative where the two inputs differ in theirs."""
        sizes = super().settled(replace(term, value=jnp.abs(term.value)))
        return replace(sizes, value=self.raised(term, sizes.exponent))


@partial(jax.jit, static_argnums=0)
def _slopes(
    network: Network, params: Params, stats: Stats, mask: Mask, x: jax.Array
) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
    """Logits ``(n, C)``; the slopes ``(n, 1, ...)`` and the worst defect of each activation."""
    w = apply_mask(mask, params)

    def one(x: jax.Array) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
        reading = _Slopes(network.name)
        u = map_mask(lambda m, leaf: None if m is None else leaf, mask, w)
        run(reading, network, w, stats, u, x)
        return reading.made[0][0][0], reading.slopes, reading.defects

    logits, slopes, defects = jax.vmap(one)(x)
    return logits, slopes, [jnp.max(defect) for defect in defects]


@partial(jax.jit, static_argnums=0)
def _pairs(
    network: Network,
    params: Params,
    stats: Stats,
    mask: Mask,
    x: jax.Array,
    slopes: list[jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """K ``(C, n, n)`` and its exponent."""
    edges = map_mask(lambda m: None if m is None else jnp.asarray(m, x.dtype), mask)

    def pair(which: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        a, b = which
        reading = _Pairs(network.name, gates=iter([slope[a] * slope[b] for slope in slopes]))
        out = run(reading, network, params, stats, edges, x[a] * x[b])
        return out.value[0], out.exponent

    rows, columns = np.triu_indices(len(x))
    pairs = (jnp.asarray(rows), jnp.asarray(columns))
    values, exponents = jax.lax.map(pair, pairs, batch_size=min(PAIRS, len(rows)))
    top = jnp.max(exponents)
    values = jnp.ldexp(values, jnp.maximum(exponents - top, -2000)[:, None]).T
    whole = jnp.zeros((len(values), len(x), len(x)), values.dtype)
    return whole.at[:, rows, columns].set(values).at[:, columns, rows].set(values), top
