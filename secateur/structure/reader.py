"""Reads a network's jaxpr: which axes of which parameters are the same row of units.

Every axis of every array in the traced program gets a label, and operations say which labels are
one: a matrix product joins the axes it contracts, an elementwise operation joins axes position by
position, a broadcast passes them on. Labels that end up together are a *group*: the units of a
hidden layer, seen from the kernel that makes them, their bias, and the kernel that reads them. An
operation that mixes or reduces a group (a norm, a softmax, a reshape that is no flattening) makes
it *fixed*, with the reason.

This is the only room that touches `jax.extend.core`. Comparing primitives by name keeps it
independent of where JAX keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from secateur.core.network import Network, Stats
from secateur.core.trees import Params, flatten

# An output element of these depends on the input elements at the same position alone.
_NAMES = """
abs add add_any and atan2 ceil clamp convert_element_type copy copy_p cos div eq erf erfc
exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne
neg not or pow reduce_precision rem round rsqrt select_n sign sin sqrt square
stop_gradient sub tan tanh xor
"""
ELEMENTWISE = frozenset(_NAMES.split())
# Of these, what changes no value: a parameter behind one is still the parameter.
CASTS = frozenset(["convert_element_type", "copy", "copy_p", "reduce_precision", "stop_gradient"])
# Entered, so that what is inside is read. A custom_vjp is not: its backward pass may mix units.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
}


OUTPUT = "it is the output"
ONE_UNIT = "it has one unit"
MIXED = "it is flattened in two ways"


class Label:
    """One axis, and every axis found to be the same one (a union-find node)."""

    def __init__(self, size: int) -> None:
        self.parent: Label | None = None
        self.size = size
        self.fixed: str | None = None
        self.parts: list[Label] | None = None  # the axes that were flattened into it

    def root(self) -> Label:
        node = self
        while node.parent is not None:
            node = node.parent
        return node

    def join(self, other: Label) -> None:
        a, b = self.root(), other.root()
        if a is not b:
            b.parent = a
            a.fixed = a.fixed or b.fixed
            parts, a.parts = b.parts, a.parts or b.parts
            if parts and a.parts is not parts:  # two flattenings that are added to each other
                assert a.parts is not None
                same = [p.size for p in parts] == [p.size for p in a.parts]
                for p, q in zip(parts, a.parts):
                    p.join(q) if same else p.fix(MIXED)
                    q.fix(MIXED) if not same else None

    def fix(self, why: str) -> None:
        root = self.root()
        root.fixed = root.fixed or why


@dataclass(frozen=True)
class Dense:
    """One matrix product of a parameter with what depends on the input."""

    kernel: str
    in_axis: int
    out_axis: int
    in_group: int
    out_group: int


@dataclass(frozen=True)
class Group:
    """Axes that are one row of units.

    Attributes:
        members: ``(leaf, axis)`` of every parameter that has these units.
        size: number of units.
        fixed: why no unit may be removed, or ``None``.
        is_input: the features of the flattened input.
    """

    members: tuple[tuple[str, int], ...]
    size: int
    fixed: str | None
    is_input: bool


@dataclass(frozen=True)
class Structure:
    """The dense layers of a network and the rows of units between them.

    Attributes:
        groups: by number, as `Dense` refers to them.
        layers: in the order of the program, so a layer's inputs come before its outputs.
        unread: leaf -> why it is not (only) the kernel of a dense layer or a bias of units.
    """

    groups: tuple[Group, ...]
    layers: tuple[Dense, ...]
    unread: dict[str, str]


@dataclass
class Seen:
    """What is known of a variable: a label an axis, the leaf it is, whether the input is in it."""

    labels: list[Label]
    leaf: str | None = None
    leaf_axes: list[int] | None = None  # axis of the leaf behind each axis, after transpositions
    from_input: bool = False
    raw_input: bool = False  # the network's input itself, so that its flattening is recognised
    vector: tuple[str, str] | None = None  # the leaf of one axis that it is, broadcast or not
    site: int | None = None  # the product that it is the output of, where nothing else reads that


class Reader:
    statistics: str | None = "batch statistics"  # why no unit goes that they belong to

    def __init__(self) -> None:
        self.sites: list[tuple[str, int, int, Label, Label]] = []
        self.unread: dict[str, str] = {}
        self.input_features: Label | None = None

    def fresh(self, shape: tuple[int, ...], why: str | None = None) -> list[Label]:
        labels = [Label(n) for n in shape]
        if why:
            for label in labels:
                label.fix(why)
        return labels

    def begin(self, leaves: list[Seen], statistics: list[Seen], image: Seen) -> None:
        """Before the walk: what stands for the parameters, the statistics and the input."""

    def walk(self, jaxpr: Jaxpr, consts: list[Seen], args: list[Seen]) -> list[Seen]:
        env: dict[Any, Seen] = {}

        def read(atom: Any) -> Seen:
            if isinstance(atom, Literal):
                return Seen(self.fresh(np.shape(atom.val)))
            return env[atom]

        env.update(zip(jaxpr.constvars, consts))
        env.update(zip(jaxpr.invars, args))
        for eqn in jaxpr.eqns:
            ins = [read(atom) for atom in eqn.invars]
            outs = self.equation(eqn, ins)
            env.update(zip(eqn.outvars, outs))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn: Any, ins: list[Seen]) -> list[Seen]:
        name = eqn.primitive.name
        if name in CALLS and CALLS[name] in eqn.params:
            inner = eqn.params[CALLS[name]]
            closed = isinstance(inner, ClosedJaxpr)
            held = inner.consts if closed else []
            consts = [Seen(self.fresh(np.shape(c), "a constant has it")) for c in held]
            return self.walk(inner.jaxpr if closed else inner, consts, ins)
        from_input = any(i.from_input for i in ins)
        shapes = [v.aval.shape for v in eqn.outvars]
        rule = getattr(self, f"_{name}", None)
        if name in ELEMENTWISE:
            return [self._elementwise(name, ins, shapes[0], from_input)]
        if rule is not None:
            seen = rule(eqn, ins, shapes[0], from_input)
            if seen is not None:
                return [seen]
        for i in ins:
            for label in i.labels:
                label.fix(f"it goes through {name}")
            if i.leaf:
                self.unread.setdefault(i.leaf, f"it goes through {name}")
        return [
            Seen(self.fresh(s, f"it comes out of {name}"), None, None, from_input) for s in shapes
        ]

    def _elementwise(
        self, name: str, ins: list[Seen], shape: tuple[int, ...], from_input: bool
    ) -> Seen:
        out = self.fresh(shape)
        for i in ins:
            for axis, label in enumerate(i.labels if len(i.labels) == len(shape) else []):
                if label.size == shape[axis]:
                    out[axis].join(label)
        if name in CASTS:
            return Seen(out, ins[0].leaf, ins[0].leaf_axes, from_input)
        for i in ins:  # exp(W) of a masked weight is 1, m * W has a mask that nobody here knows
            if i.leaf and sum(label.size != 1 for label in i.labels) > 1:
                self.unread.setdefault(i.leaf, f"it goes through {name}")
        return Seen(out, None, None, from_input)

    def _dot_general(
        self, eqn: Any, ins: list[Seen], shape: tuple[int, ...], from_input: bool
    ) -> Seen | None:
        (lhs_c, rhs_c), (lhs_b, rhs_b) = eqn.params["dimension_numbers"]
        if lhs_b or rhs_b or len(lhs_c) != 1:
            return None
        a, b = ins
        a.labels[lhs_c[0]].join(b.labels[rhs_c[0]])
        free_a = [l for k, l in enumerate(a.labels) if k not in lhs_c]
        free_b = [l for k, l in enumerate(b.labels) if k not in rhs_c]
        dense = False
        for kernel, other, contracted in ((a, b, lhs_c[0]), (b, a, rhs_c[0])):
            if kernel.leaf is None:
                continue
            if not other.from_input:
                self.unread.setdefault(kernel.leaf, "it is multiplied by something without input")
                continue
            if len(kernel.labels) != 2 or kernel.leaf_axes is None:
                self.unread.setdefault(kernel.leaf, "it is multiplied, but is no matrix")
                continue
            dense = True
            free = 1 - contracted
            self.sites.append(
                (
                    kernel.leaf,
                    kernel.leaf_axes[contracted],
                    kernel.leaf_axes[free],
                    kernel.labels[contracted],
                    kernel.labels[free],
                )
            )
        if not dense:  # a path that `layers` does not show
            a.labels[lhs_c[0]].fix("a product that is no dense layer sums over it")
        return Seen([*free_a, *free_b], None, None, from_input)

    def _broadcast_in_dim(
        self, eqn: Any, ins: list[Seen], shape: tuple[int, ...], from_input: bool
    ) -> Seen:
        out = self.fresh(shape)
        for axis, to in enumerate(eqn.params["broadcast_dimensions"]):
            if ins[0].labels[axis].size == shape[to]:
                out[to].join(ins[0].labels[axis])
        return Seen(out, None, None, from_input)

    def _transpose(
        self, eqn: Any, ins: list[Seen], shape: tuple[int, ...], from_input: bool
    ) -> Seen:
        order = eqn.params["permutation"]
        axes = ins[0].leaf_axes
        return Seen(
            [ins[0].labels[k] for k in order],
            ins[0].leaf,
            None if axes is None else [axes[k] for k in order],
            from_input,
        )

    def _squeeze(self, eqn: Any, ins: list[Seen], shape: tuple[int, ...], from_input: bool) -> Seen:
        gone = eqn.params["dimensions"]
        return Seen(
            [l for k, l in enumerate(ins[0].labels) if k not in gone], None, None, from_input
        )

    def _reshape(
        self, eqn: Any, ins: list[Seen], shape: tuple[int, ...], from_input: bool
    ) -> Seen | None:
        labels = [l for l in ins[0].labels if l.size != 1]
        wanted = [n for n in shape if n != 1]
        if [l.size for l in labels] == wanted:  # only axes of size 1 come or go
            rest = iter(labels)
            return Seen([next(rest) if n != 1 else Label(1) for n in shape], None, None, from_input)
        features = self.input_features
        flattened = features is not None and shape == (ins[0].labels[0].size, features.size)
        if ins[0].raw_input and flattened and features is not None:
            return Seen([ins[0].labels[0], features], None, None, True)
        return None


def read(network: Network, params: Params, stats: Stats) -> Structure:
    """The dense structure of ``network.apply``, from its jaxpr; nothing is computed.

    Axes of size 1 never form a group. A layer that the reader does not understand leaves its
    groups fixed and is named in ``unread``: callers fall back to the full network openly.
    `structure.channels` reads convolutions, norms and pooling as well.
    """
    reader = Reader()
    leaves, _ = trace(reader, network, params, stats, jax.numpy.result_type(float))
    return collect(reader, leaves)[0]


def trace(
    reader: Reader, network: Network, params: Params, stats: Stats, dtype: Any
) -> tuple[list[Seen], list[Seen]]:
    """Walks ``network.apply`` with ``reader``; what is known of the parameters and statistics."""
    flat = flatten(params)
    names = [name for name, leaf in flat.items() if leaf is not None]
    batch = 7  # a size that tells the example axis from others in error messages, nothing more
    x = jax.ShapeDtypeStruct((batch, *network.input_shape), dtype)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype), (params, stats))
    closed = jax.make_jaxpr(network.apply)(*shapes, x)

    leaves = [
        Seen(reader.fresh(np.shape(a)), name, list(range(np.ndim(a))))
        for name, a in zip(names, jax.tree.leaves(params))
    ]
    statistics = [
        Seen(reader.fresh(np.shape(a), reader.statistics)) for a in jax.tree.leaves(stats)
    ]
    image = Seen(reader.fresh((batch, *network.input_shape)), from_input=True)
    image.labels[0].fix("it is the example axis")
    if len(network.input_shape) == 1:
        reader.input_features = image.labels[1]
    else:
        reader.input_features = Label(int(np.prod(network.input_shape)))
        image.raw_input = True
    reader.begin(leaves, statistics, image)
    consts = [Seen(reader.fresh(np.shape(c), "a constant has it")) for c in closed.consts]
    outs = reader.walk(closed.jaxpr, consts, [*leaves, *statistics, image])
    for out in outs:
        for label in out.labels[1:]:
            label.root().fixed = OUTPUT  # whatever else fixes it: a softmax does
    for one in leaves:
        for label in one.labels:
            if label.size == 1:
                label.fix(ONE_UNIT)
    return leaves, statistics


def collect(
    reader: Reader, leaves: list[Seen], more: Sequence[Label] = ()
) -> tuple[Structure, Callable[[Label], int]]:
    """The structure that was read, and the number of the group of a label of it or of ``more``."""
    numbers: dict[int, int] = {}
    roots: list[Label] = []
    members: list[list[tuple[str, int]]] = []

    def number(label: Label) -> int:
        root = label.root()
        if id(root) not in numbers:
            numbers[id(root)] = len(roots)
            roots.append(root)
            members.append([])
        return numbers[id(root)]

    uses: dict[str, int] = {}
    for kernel, *_ in reader.sites:
        uses[kernel] = uses.get(kernel, 0) + 1
    for kernel, count in uses.items():
        if count > 1:
            reader.unread.setdefault(kernel, f"it is used by {count} products")
    for seen in leaves:
        if sum(label.size != 1 for label in seen.labels) > 1 and seen.leaf not in uses:
            assert seen.leaf is not None
            reader.unread.setdefault(seen.leaf, "no product with the input uses it as a matrix")
    layers = tuple(
        Dense(kernel, i, o, number(i_label), number(o_label))
        for kernel, i, o, i_label, o_label in reader.sites
    )
    for seen in leaves:
        assert seen.leaf is not None
        for axis, label in enumerate(seen.labels):
            members[number(label)].append((seen.leaf, axis)) if label.size != 1 else None
    for label in more:
        number(label)
    assert reader.input_features is not None
    features = reader.input_features.root()
    groups = tuple(
        Group(tuple(m), root.size, root.fixed, root is features) for root, m in zip(roots, members)
    )
    return Structure(groups, layers, dict(reader.unread)), number


def depends(jaxpr: Jaxpr, inputs: list[bool]) -> list[bool]:
    """Which outputs depend on the marked inputs; a value that nothing reads counts for nothing."""
    marked = {v for v, is_marked in zip(jaxpr.invars, inputs) if is_marked}
    is_marked = lambda atom: not isinstance(atom, Literal) and atom in marked
    for eqn in jaxpr.eqns:
        ins = [is_marked(atom) for atom in eqn.invars]
        inner = eqn.params.get(CALLS.get(eqn.primitive.name, ""))
        if inner is not None and any(ins):
            outs = depends(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner, ins)
        else:
            outs = [any(ins)] * len(eqn.outvars)
        marked |= {v for v, out in zip(eqn.outvars, outs) if out}
    return [is_marked(atom) for atom in jaxpr.outvars]
