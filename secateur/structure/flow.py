"""What flows along the paths of a network: its multilinear extension, read from its program.

A path leads from an input to an output through one weight of each layer. With u in place of the
kernels and v at the input, each path carries v times the product of its weights, and

    R(u) = sum over all paths of v * prod(u * |c|^q)

where c are the fixed coefficients on the way (batch norm's scale / sqrt(var + eps), 1 / k^2 of
average pooling, a residual scale). So activations become the identity, max-pooling a sum over its
window, and biases, norm shifts and running means 0. With u = |theta|, q = 1 R is SynFlow's; with
u = theta^2, q = 2 it is the sum of squared path values, whose gradient by u has the path kernel's
trace as its sum. Tanaka et al. 2020, section 5; Gebhart et al. 2021, section 3.

Every value is carried as ``value * 2**exponent`` with whole exponents, so that nothing over- or
underflows and no digit is lost: float32 gives what it would give if its range had no end.

A table says what becomes of each primitive. What is not in it is refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from secateur.core.errors import SecateurError, lookup
from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params, flatten, map_mask
from secateur.structure.reader import CALLS

# Only the forward pass is read, so the backward rule of a custom_vjp does not matter here.
ENTERED = {**CALLS, "custom_vjp_call": "call_jaxpr"}
# Functions of jax.nn that are one call by their name: activations, the identity on a path.
ACTIVATIONS = frozenset(["silu", "elu", "celu", "selu", "softplus", "hard_tanh", "hard_silu"])
POOLING = {"sum": True, "as_is": False}
NOTHING = -(2**30)  # exponent of a value that is all 0: smaller than that of any other

# primitive -> method of `Reading`
RULES: dict[str, str] = {
    **dict.fromkeys(
        [
            *("broadcast_in_dim", "dynamic_slice", "expand_dims", "gather", "reshape", "rev"),
            *("slice", "split", "squeeze", "transpose"),
        ],
        "moved",
    ),
    **dict.fromkeys(["cumsum", "reduce_sum", "reduce_window_sum"], "summed"),
    **dict.fromkeys(["reduce_max", "reduce_window_max"], "pooled"),
    **dict.fromkeys(
        ["convert_element_type", "copy", "copy_p", "neg", "reduce_precision", "tanh"], "same"
    ),
    **dict.fromkeys(["add", "add_any", "sub"], "added"),
    **dict.fromkeys(["mul", "dot_general", "conv_general_dilated"], "product"),
    "div": "quotient",
    **dict.fromkeys(["max", "min"], "bounded"),
    "clamp": "clamped",
    **dict.fromkeys(["ge", "gt", "le", "lt"], "compared"),
    "select_n": "selected",
    "concatenate": "joined",
    "pad": "padded",
}


@dataclass(frozen=True)
class Term:
    """A value that the input or prunable weights are in: ``value * 2**exponent``, not negative.

    Attributes:
        exponent: int32 ``()``, one for the whole array.
        leaves: the prunable weights multiplied into it, the last one last.
        flows: whether the input is in it; else it is made of weights alone.
        axes: of a leaf itself: the leaf's axis behind each axis of the value.
    """

    value: jax.Array
    exponent: jax.Array
    leaves: tuple[str, ...] = ()
    flows: bool = True
    axes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class _Sign:
    """A comparison of a flow with something fixed: what comes out where the flow is large."""

    large: bool


@dataclass(frozen=True)
class _Larger:
    """Which of two flows is larger, inside a max-pooling."""


def bind(eqn: Any, *ins: Any, **changed: Any) -> list[Any]:
    """The outputs of one equation for other inputs and, perhaps, parameters."""
    params = eqn.primitive.get_bind_params({**eqn.params, **changed})
    before, params = params if isinstance(params, tuple) else ((), params)
    out = eqn.primitive.bind(*before, *ins, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _layout(dtype: Any) -> tuple[Any, int, int]:
    """The unsigned integer of a float's size, the bits of its fraction, and its exponent's bias."""
    info = jnp.finfo(dtype)
    return jnp.dtype(f"uint{info.bits}"), info.nmant, 1 - int(info.minexp)


def _power_of_two(n: jax.Array, dtype: Any) -> jax.Array:
    """2**n without rounding, 0 below the smallest normal number. Its derivative is 0."""
    bits, fraction, bias = _layout(dtype)
    biased = jnp.clip(n, -bias, bias) + bias
    return jax.lax.bitcast_convert_type(biased.astype(bits) << fraction, dtype)


def _exponent(top: jax.Array) -> jax.Array:
    """The n with 2**(n - 1) <= top < 2**n, int32, but at most what leaves 2**-n normal."""
    bits, fraction, bias = _layout(top.dtype)
    biased = jax.lax.bitcast_convert_type(top, bits) >> fraction
    return jnp.minimum(biased.astype(jnp.int32) + (1 - bias), bias - 1)


@dataclass
class Reading:
    """One pass over a program. Subclasses carry other things than numbers along the paths.

    Attributes:
        name: of the network, for messages.
        power: q, to which fixed coefficients are raised.
        pool_sums: max-pooling is the sum over its window; else the maximum, as in the network.
        keep_bias: shifts are added, to the power q, as paths that begin there; else they are 0.
        outs: leaf -> its axis of output units, filled in as products are met.
    """

    name: str
    power: int = 1
    pool_sums: bool = True
    keep_bias: bool = False
    outs: dict[str, int] = field(default_factory=dict)
    in_pool: bool = False

    # -- the equations, one after the other ----------------------------------------------------

    def walk(self, jaxpr: Jaxpr, consts: list[Any], args: list[Any]) -> list[Any]:
        known: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args)))

        def read(atom: Any) -> Any:
            if isinstance(atom, Literal):
                return np.asarray(atom.val, atom.aval.dtype)  # type: ignore[attr-defined]
            return known[atom]

        for eqn in jaxpr.eqns:
            outs = self.equation(eqn, [read(atom) for atom in eqn.invars])
            known.update(zip(eqn.outvars, outs))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn: Any, ins: list[Any]) -> list[Any]:
        primitive, called = eqn.primitive.name, eqn.params.get("name")
        marked = any(isinstance(i, Term | _Sign | _Larger) for i in ins)
        if called in ACTIVATIONS and isinstance(ins[0], Term):
            return [ins[0]]
        if marked and called == "max_pool" and not self.pool_sums:
            return self.moved(eqn, ins)
        if primitive in ENTERED and ENTERED[primitive] in eqn.params:
            inner = eqn.params[ENTERED[primitive]]
            closed = isinstance(inner, ClosedJaxpr)
            outer, self.in_pool = self.in_pool, self.in_pool or called == "max_pool"
            outs = self.walk(
                inner.jaxpr if closed else inner, list(inner.consts) if closed else [], ins
            )
            self.in_pool = outer
            return outs
        if not marked:
            return bind(eqn, *ins)
        compared = any(isinstance(i, _Sign | _Larger) for i in ins) and primitive != "select_n"
        if primitive not in RULES or compared:
            self.refuse(eqn, ins, "what this does to a path is not known")
        outs = getattr(self, RULES[primitive])(eqn, ins)
        return outs if isinstance(outs, list) else [outs]

    def refuse(self, eqn: Any, ins: list[Any], why: str) -> None:
        terms = sorted((i for i in ins if isinstance(i, Term)), key=lambda i: i.flows)
        leaves = [leaf for term in terms for leaf in term.leaves]
        where = f"after {leaves[-1]!r}" if leaves else "at the input"
        raise SecateurError(
            f"the paths of {self.name!r} cannot be followed through '{eqn.primitive.name}' "
            f"{where}: {why}; methods that need no paths (snip, magnitude) still work."
        )

    # -- the rules ------------------------------------------------------------------------------

    def same(self, eqn: Any, ins: list[Any]) -> Any:
        return ins[0]

    def moved(self, eqn: Any, ins: list[Any]) -> Any:
        """Entries that change their places; the other operands say where to."""
        one = next(i for i in ins if isinstance(i, Term))
        if sum(isinstance(i, Term) for i in ins) > 1:
            self.refuse(eqn, ins, "the places depend on the input")
        axes = None
        if one.axes and eqn.primitive.name == "transpose":
            axes = tuple(one.axes[k] for k in eqn.params["permutation"])
        outs = bind(eqn, *(i.value if isinstance(i, Term) else i for i in ins))
        return [replace(one, value=out, axes=axes) for out in outs]

    def summed(self, eqn: Any, ins: list[Any]) -> Any:
        return self.moved(eqn, ins)

    def pooled(self, eqn: Any, ins: list[Any]) -> Any:
        if not self.pool_sums:
            return self.moved(eqn, ins)
        one, p = ins[0], eqn.params
        if eqn.primitive.name == "reduce_max":
            return replace(one, value=jnp.sum(one.value, p["axes"]), axes=None)
        zero = np.zeros((), one.value.dtype)
        window = (p["window_dimensions"], p["window_strides"], p["padding"])
        dilated = (p["base_dilation"], p["window_dilation"])
        return replace(
            one, value=jax.lax.reduce_window(one.value, zero, jax.lax.add, *window, *dilated)
        )

    def added(self, eqn: Any, ins: list[Any]) -> Any:
        flows = [i for i in ins if isinstance(i, Term) and i.flows]
        shifts = [i for i in ins if not (isinstance(i, Term) and i.flows)]
        if not flows:
            self.refuse(eqn, ins, "a kernel that is a sum is no product of weights")
        shape = eqn.outvars[0].aval.shape
        if self.keep_bias:
            flows += [self.shift(i, flows[0]) for i in shifts]
        total = replace(flows[0], value=jnp.broadcast_to(flows[0].value, shape))
        for other in flows[1:]:
            total = self.merged(total, replace(other, value=jnp.broadcast_to(other.value, shape)))
        return total

    def product(self, eqn: Any, ins: list[Any]) -> Any:
        terms = [i for i in ins if isinstance(i, Term)]
        if len(terms) < len(ins):
            return self.scaled(eqn, ins)
        a, b = terms
        if a.flows and b.flows:
            self.refuse(eqn, ins, "it multiplies two values that depend on the input")
        if set(a.leaves) & set(b.leaves):
            self.refuse(eqn, ins, "a path would use these weights twice")
        kernel, order = (b, (0, 1)) if a.flows or not b.flows else (a, (1, 0))
        self.note(eqn, kernel, order[1])
        flows = a.flows or b.flows
        leaves = (*ins[order[0]].leaves, *kernel.leaves)
        return self.multiplied(eqn, a, b, Term(a.value, a.exponent, leaves, flows))

    def quotient(self, eqn: Any, ins: list[Any]) -> Any:
        if isinstance(ins[1], Term) or not isinstance(ins[0], Term):
            self.refuse(eqn, ins, "it divides by something that depends on the input or a kernel")
        return self.scaled(eqn, ins)

    def bounded(self, eqn: Any, ins: list[Any]) -> Any:
        """relu is max(z, 0), relu6 min(max(z, 0), 6): the identity on a path."""
        flows = [i for i in ins if isinstance(i, Term)]
        if len(flows) == 1 and flows[0].flows:
            shape = eqn.outvars[0].aval.shape
            return replace(flows[0], value=jnp.broadcast_to(flows[0].value, shape))
        if not (self.in_pool and eqn.primitive.name == "max"):
            self.refuse(eqn, ins, "it chooses between two values and is in no 'max_pool'")
        return self.merged(*flows)

    def clamped(self, eqn: Any, ins: list[Any]) -> Any:
        if not isinstance(ins[1], Term) or any(isinstance(i, Term) for i in (ins[0], ins[2])):
            self.refuse(eqn, ins, "its bounds depend on the input")
        return ins[1]

    def compared(self, eqn: Any, ins: list[Any]) -> Any:
        a, b = ins
        if isinstance(a, Term) and isinstance(b, Term):
            if not self.in_pool:
                self.refuse(eqn, ins, "it compares two values and is in no 'max_pool'")
            return _Larger()
        return _Sign(isinstance(a, Term) == (eqn.primitive.name in ("ge", "gt")))

    def selected(self, eqn: Any, ins: list[Any]) -> Any:
        which, *cases = ins
        if isinstance(which, _Sign):  # leaky relu: where(z >= 0, z, slope * z)
            case = cases[int(which.large)]
            if not isinstance(case, Term):
                self.refuse(eqn, ins, "where the flow is large it is replaced by something fixed")
            return case
        if isinstance(which, _Larger):
            if not all(isinstance(case, Term) for case in cases):
                self.refuse(eqn, ins, "it does not choose the larger of two values")
            return self.merged(*cases)
        if isinstance(which, Term):
            self.refuse(eqn, ins, "the choice depends on the input")
        return self.placed(eqn, cases, lambda values: bind(eqn, which, *values)[0])

    def joined(self, eqn: Any, ins: list[Any]) -> Any:
        return self.placed(eqn, ins, lambda values: bind(eqn, *values)[0])

    def padded(self, eqn: Any, ins: list[Any]) -> Any:
        if not isinstance(ins[0], Term):
            self.refuse(eqn, ins, "the padding depends on the input or a kernel")
        return self.placed(eqn, ins, lambda values: bind(eqn, *values)[0])

    def placed(self, eqn: Any, ins: list[Any], put: Any) -> Term:
        """Flows put beside each other in one array; fixed values among them are shifts, so 0."""
        terms = [i for i in ins if isinstance(i, Term)]
        if len({i.flows for i in terms}) > 1:
            self.refuse(eqn, ins, "it puts weights beside a flow")
        exponent = terms[0].exponent
        for one in terms[1:]:
            exponent = jnp.maximum(exponent, one.exponent)
        dtype = terms[0].value.dtype
        values = [
            self.raised(i, exponent) if isinstance(i, Term) else np.zeros(np.shape(i), dtype)
            for i in ins
        ]
        return Term(put(values), exponent, _leaves(*terms), terms[0].flows)

    # -- what is carried: numbers --------------------------------------------------------------

    def coefficient(self, c: Any, dtype: Any) -> jax.Array:
        return jnp.abs(jnp.asarray(c)).astype(dtype) ** self.power

    def settled(self, term: Term) -> Term:
        """The largest entry between 1/2 and 1, by a power of two that counts as a constant."""
        top = jnp.max(jax.lax.stop_gradient(term.value), initial=0)
        shift = jnp.where(top > 0, _exponent(top), 0)
        value = term.value * _power_of_two(-shift, term.value.dtype)
        return replace(
            term, value=value, exponent=jnp.where(top > 0, term.exponent + shift, NOTHING)
        )

    def raised(self, term: Term, exponent: jax.Array) -> jax.Array:
        return term.value * _power_of_two(term.exponent - exponent, term.value.dtype)

    def merged(self, a: Term, b: Term) -> Term:
        exponent = jnp.maximum(a.exponent, b.exponent)
        value = self.raised(a, exponent) + self.raised(b, exponent)
        return Term(value, exponent, _leaves(a, b))

    def shift(self, i: Any, like: Term) -> Term:
        if isinstance(i, Term):
            return i
        return Term(self.coefficient(i, like.value.dtype), jnp.zeros((), jnp.int32))

    def scaled(self, eqn: Any, ins: list[Any]) -> Term:
        """A term times, or divided by, something fixed."""
        one = next(i for i in ins if isinstance(i, Term))
        dtype = one.value.dtype
        values = [i.value if isinstance(i, Term) else self.coefficient(i, dtype) for i in ins]
        term = replace(one, value=self.bound(eqn, *values))
        return self.settled(term) if one.flows else term

    def multiplied(self, eqn: Any, a: Term, b: Term, like: Term) -> Term:
        value = self.bound(eqn, a.value, b.value)
        return self.settled(replace(like, value=value, exponent=a.exponent + b.exponent))

    def bound(self, eqn: Any, a: jax.Array, b: jax.Array) -> jax.Array:
        """The product or quotient in the precision of the flow, whatever the network's is."""
        if eqn.primitive.name in ("mul", "div"):
            return a * b if eqn.primitive.name == "mul" else a / b
        full = (jax.lax.Precision.HIGHEST,) * 2  # some accelerators round factors to 10 bits
        return bind(eqn, a, b, preferred_element_type=np.dtype(a.dtype), precision=full)[0]

    def note(self, eqn: Any, kernel: Term, operand: int) -> None:
        """Which axis of the kernel numbers the units that the product makes."""
        if kernel.axes is None or len(kernel.leaves) != 1:
            return
        if eqn.primitive.name == "conv_general_dilated" and operand == 1:
            self.outs[kernel.leaves[0]] = kernel.axes[eqn.params["dimension_numbers"].rhs_spec[0]]
        if eqn.primitive.name == "dot_general":
            contracted, batch = eqn.params["dimension_numbers"]
            gone = (*contracted[operand], *batch[operand])
            free = [axis for k, axis in enumerate(kernel.axes) if k not in gone]
            if len(free) == 1:
                self.outs[kernel.leaves[0]] = free[0]


def _leaves(*terms: Term) -> tuple[str, ...]:
    return tuple(dict.fromkeys(leaf for term in terms for leaf in term.leaves))


def run(
    reading: Reading, network: Network, params: Params, stats: Stats, u: Any, v: jax.Array
) -> Term:
    """The program of ``network.apply`` on one input, read by ``reading``: what reaches the outputs.

    Args:
        params, stats: fixed values, in the structures of the network's.
        u: the structure of a mask; arrays in place of the prunable leaves, None elsewhere.
        v: in place of the input, ``input_shape`` or anything that broadcasts to it.

    Raises:
        SecateurError: for a program that cannot be read, naming the primitive.
    """
    floats = jnp.result_type(*(p for p in jax.tree.leaves(params) if jnp.ndim(p)))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), a.dtype), (params, stats))
    x = jax.ShapeDtypeStruct((1, *network.input_shape), floats)
    closed = jax.make_jaxpr(network.apply)(*shapes, x)

    weights = {name: w for name, w in flatten(u).items() if w is not None}
    if not weights:
        raise SecateurError(f"{network.name!r} has no prunable weight, so no path to follow.")
    one = jnp.zeros((), jnp.int32)
    leaves = [
        Term(weights[name], one, (name,), False, tuple(range(jnp.ndim(p))))
        if name in weights
        else p
        for name, p in flatten(params).items()
        if p is not None
    ]
    image = Term(jnp.broadcast_to(v, (1, *network.input_shape)), one)
    outs = reading.walk(
        closed.jaxpr, list(closed.consts), [*leaves, *jax.tree.leaves(stats), image]
    )
    if len(outs) != 1 or not (isinstance(outs[0], Term) and outs[0].flows):
        raise SecateurError(
            f"the paths of {network.name!r} cannot be followed: its output is not one array that "
            "depends on the input."
        )
    return outs[0]


class Scaled(NamedTuple):
    """``value * 2**exponent``; the exponent is a constant to differentiation."""

    value: jax.Array
    exponent: jax.Array


def flow(
    network: Network,
    params: Params,
    stats: Stats,
    u: Any,
    v: jax.Array | float = 1.0,
    *,
    power: int = 1,
    pooling: str = "sum",
    keep_bias: bool = False,
) -> Scaled:
    """R(u) as ``value * 2**exponent``: the sum over outputs of what flows to them from v.

    As the exponent is made of frozen powers of two, every derivative of ``value`` by u, of any
    order, is that of R over ``2**exponent``, exactly.

    Args:
        params, stats: fixed coefficients; a kernel that may not be pruned is one, too.
        u: the structure of a mask, arrays >= 0 where it has leaves.
        v: >= 0, ``input_shape`` or anything that broadcasts to it.
        power: q, the power of the fixed coefficients: 1 beside u = |theta|, 2 beside theta^2.
        pooling: ``"sum"``, or ``"as_is"``: max-pooling passes the largest of its window alone.
        keep_bias: adds ``|shift|^q`` where the network adds a shift; default: shifts are 0, and
            prunable biases have no paths.

    Raises:
        SecateurError: for a program that cannot be read: a gate, a norm over units, weights used
            twice on a path, a loop; names the primitive and the last weights before it.
    """
    dtype = jnp.result_type(*jax.tree.leaves(u))
    reading = Reading(network.name, power, lookup("pooling of flows", pooling, POOLING), keep_bias)
    out = run(reading, network, params, stats, u, jnp.asarray(v, dtype))
    return Scaled(jnp.sum(out.value), out.exponent)


def log_flow(
    network: Network,
    params: Params,
    stats: Stats,
    u: Any,
    v: jax.Array | float = 1.0,
    **options: Any,
) -> jax.Array:
    """log R(u), ``()``; -inf with gradient 0 where no path is left. Options as for `flow`.

    ``u * grad(log_flow)`` is the share of the flow through each weight, between 0 and 1.
    """
    r = flow(network, params, stats, u, v, **options)
    alive = r.value > 0
    log = jnp.log(jnp.where(alive, r.value, 1)) + r.exponent.astype(r.value.dtype) * math.log(2)
    return jnp.where(alive, log, -jnp.inf)


# -- booleans: which weights are on a path at all -------------------------------------------------


@jax.custom_vjp
def _some(value: jax.Array) -> jax.Array:
    """1 where positive; the cotangent too is 1 where positive: both ways saturate."""
    return (value > 0).astype(value.dtype)


_some.defvjp(
    lambda value: (_some(value), value > 0),
    lambda live, g: (((g > 0) & live).astype(g.dtype),),
)


class _Booleans(Reading):
    """Carries 0 and 1: nothing to scale, nothing to overflow."""

    def coefficient(self, c: Any, dtype: Any) -> jax.Array:
        return (jnp.asarray(c) != 0).astype(dtype)

    def settled(self, term: Term) -> Term:
        return replace(term, value=_some(term.value))


class Reach(NamedTuple):
    """What an input reaches and what reaches an output.

    Attributes:
        effective: the mask's structure: weights that are kept and on a path of kept weights.
        units: leaf -> bool, one for each unit that its product makes (a channel of a convolution):
            whether a path goes through the unit. Leaves without one such axis are missing.
    """

    effective: Mask
    units: dict[str, jax.Array]


@partial(jax.jit, static_argnums=0)
def reachable(network: Network, params: Params, stats: Stats, mask: Mask) -> Reach:
    """The weights and units through which a path leads, exactly; spatially for convolutions.

    A kernel's entry that sees only padding is on no path. What may not be pruned counts as not 0,
    whatever its value; constants in the program count by their values. Forward and backward
    reachability saturate at 1, so no depth or width is too large. Vysogorets & Kempe 2021,
    arXiv:2107.02306, effective sparsity.

    Args:
        params, stats: only their shapes are read.
        mask: bool; None where nothing may be pruned.

    Raises:
        SecateurError: as `flow`.
    """
    dtype = jnp.float32  # sums of booleans: exact to 2**24 terms, and never 0 by rounding
    ones = lambda tree: jax.tree.map(lambda a: jnp.ones(jnp.shape(a), jnp.result_type(a)), tree)
    reading = _Booleans(network.name)

    def count(u: Any) -> jax.Array:
        out = run(reading, network, ones(params), ones(stats), u, jnp.ones((), dtype))
        return jnp.sum(_some(out.value))

    kept = map_mask(lambda m: None if m is None else jnp.asarray(m, dtype), mask)
    through = jax.grad(count)(kept)
    effective = map_mask(
        lambda m, g: None if m is None else jnp.asarray(m, bool) & (g > 0), mask, through
    )
    units = {
        name: jnp.any(leaf, axis=tuple(k for k in range(leaf.ndim) if k != reading.outs[name]))
        for name, leaf in flatten(effective).items()
        if leaf is not None and name in reading.outs
    }
    return Reach(effective, units)
