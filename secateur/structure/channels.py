"""Reads convolutional networks: which channels are one row of units, and what they pass through.

`structure.reader` knows dense layers alone; here a channel of a convolution is a unit as well. A
convolution joins the channels it reads with its kernel's, a norm's scale, shift and statistics
belong to the channels they act on, a residual sum makes one row of its summands, pooling and
averages over positions let channels through, and a flattening makes one row of several axes: a
channel is then as many features as it has positions. Padded, cut, concatenated and grouped
channels stay, with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from secateur.core.network import Network, Stats
from secateur.core.trees import Params, flatten
from secateur.structure.flow import bind
from secateur.structure.reader import (
    CALLS,
    CASTS,
    MIXED,
    ONE_UNIT,
    OUTPUT,
    Dense,
    Label,
    Reader,
    Seen,
    Structure,
    collect,
    trace,
)

# A leaf of one axis behind one of these still acts on each unit alone, with its own entry.
CARRIES = CASTS | frozenset(["broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims"])


@dataclass(frozen=True)
class Layer(Dense):
    """One product of a kernel with what depends on the input: dense, or a convolution.

    Attributes:
        groups: of a grouped convolution; each of the ``in_axis`` places then meets one channel of
            every group.
        touches: of a convolution, each window axis of the kernel with, for each place on it,
            whether it ever meets an input pixel: with padding it may see zeros alone.
    """

    groups: int = 1
    touches: tuple[tuple[int, tuple[bool, ...]], ...] = ()

    def matrix(self, kernel: np.ndarray, channels: int) -> np.ndarray:
        """Which input channel any entry of a boolean kernel joins to which output: (in, out).

        Args:
            kernel: bool, in the leaf's shape.
            channels: number of input channels, all groups together.
        """
        for axis, seen in self.touches:
            shape = [-1 if k == axis else 1 for k in range(kernel.ndim)]
            kernel = np.logical_and(kernel, np.reshape(np.asarray(seen), shape))
        rest = tuple(k for k in range(kernel.ndim) if k not in (self.in_axis, self.out_axis))
        flat = np.any(kernel, axis=rest)
        flat = flat if self.in_axis < self.out_axis else flat.T
        if self.groups == 1:
            return flat
        into, out = flat.shape
        joined = np.zeros((channels, out), bool)
        for g in range(self.groups):
            columns = slice(g * out // self.groups, (g + 1) * out // self.groups)
            joined[g * into : (g + 1) * into, columns] = flat[:, columns]
        return joined


@dataclass(frozen=True)
class Shift:
    """The leaf that is added to a product's output, unit by unit: a bias, or a running mean.

    Attributes:
        statistic: a leaf of the statistics, else of the parameters.
        sign: -1 where it is subtracted.
    """

    leaf: str
    statistic: bool
    sign: int


@dataclass(frozen=True)
class Channels(Structure):
    """The layers of a network and the rows of units or channels between them.

    Attributes:
        statistics: group -> ``(leaf, axis)`` of the statistics that belong to it.
        parts: group that a flattening made -> the groups of the axes it was made of, in order.
        ties: pairs of groups that a depthwise convolution joins one to one: they go together.
        shifts: kernel -> what is added to its product, where that is one leaf used nowhere else.
    """

    layers: tuple[Layer, ...]
    statistics: Mapping[int, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    parts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    ties: tuple[tuple[int, int], ...] = ()
    shifts: Mapping[str, Shift] = field(default_factory=dict)

    def spread(self, group: int, rows: Mapping[int, np.ndarray]) -> np.ndarray:
        """What a flattening makes of boolean rows of its parts: true where all parts are."""
        whole = np.ones(1, bool)
        for part in self.parts[group]:
            whole = np.logical_and.outer(whole, rows[part]).ravel()
        return whole

    def gather(self, group: int, row: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """For each part of a flattening, which of its units have any true place in ``row``."""
        parts = self.parts[group]
        box = row.reshape([self.groups[p].size for p in parts])
        others = lambda k: tuple(a for a in range(len(parts)) if a != k)
        return [(part, np.asarray(box.any(axis=others(k)))) for k, part in enumerate(parts)]

    def opaque(self, group: int) -> bool:
        """Whether units of the group are read or made in a way that the layers do not show."""
        one = self.groups[group]
        unread = any(leaf in self.unread for leaf, _ in one.members)
        return unread or (one.fixed is not None and one.fixed not in (OUTPUT, ONE_UNIT))


def _touched(size: int, window: int, out: int, conv: Mapping[str, Any], axis: int) -> list[bool]:
    """For each place of one axis of a window, whether it ever lies on a pixel."""
    stride, dilation = conv["window_strides"][axis], conv["rhs_dilation"][axis]
    spread, before = conv["lhs_dilation"][axis], conv["padding"][axis][0]
    at = np.arange(out)[:, None] * stride + np.arange(window) * dilation - before
    on_pixel = (at >= 0) & (at < (size - 1) * spread + 1) & (at % spread == 0)
    return [bool(found) for found in on_pixel.any(axis=0)]


class _Channels(Reader):
    statistics = None

    def __init__(self) -> None:
        super().__init__()
        self.more: dict[int, tuple[int, Any]] = {}  # site -> groups, touches
        self.ties: list[tuple[Label, Label]] = []
        self.flattened: list[Label] = []
        self.shifts: dict[int, tuple[tuple[str, str], int]] = {}
        self.reads: Counter[tuple[str, str]] = Counter()
        self.uses: list[Counter[Any]] = []
        self.stat_names: list[str] = []

    def begin(self, leaves: list[Seen], statistics: list[Seen], image: Seen) -> None:
        for kind, names, seen in (
            ("params", [one.leaf for one in leaves], leaves),
            ("stats", self.stat_names, statistics),
        ):
            for name, one in zip(names, seen):
                if name is not None and sum(label.size != 1 for label in one.labels) == 1:
                    one.vector = (kind, name)
        if (
            len(image.labels) > 2
        ):  # an image's channels; its flattened features have a row of theirs
            for label in image.labels[1:]:
                label.fix("it is the input")

    # -- who reads what, so that a constant is added where nothing else sees it ------------------

    def walk(self, jaxpr: Jaxpr, consts: list[Seen], args: list[Seen]) -> list[Seen]:
        read = [v for eqn in jaxpr.eqns for v in eqn.invars if not isinstance(v, Literal)]
        uses = Counter([*read, *(v for v in jaxpr.outvars if not isinstance(v, Literal))])
        self.uses.append(uses)
        args = [a if uses[v] == 1 else replace(a, site=None) for v, a in zip(jaxpr.invars, args)]
        outs = super().walk(jaxpr, consts, args)
        self.uses.pop()
        return outs

    def equation(self, eqn: Any, ins: list[Seen]) -> list[Seen]:
        name = eqn.primitive.name
        before = len(self.sites)
        outs = super().equation(eqn, ins)
        if name in CALLS and CALLS[name] in eqn.params:
            outs = [replace(out) for out in outs]
        elif name in CARRIES:
            outs[0].vector = ins[0].vector
            outs[0].site = ins[0].site if name in CASTS else None
        else:
            for one in ins:
                if one.vector:
                    self.reads[one.vector] += 1
            if len(self.sites) == before + 1 and len(outs) == 1:
                outs[0].site = before
            if name in ("add", "sub", "add_any"):
                self._shifted(name, ins)
        for var, out in zip(eqn.outvars, outs):
            if self.uses[-1][var] != 1:
                out.site = None
        return outs

    def _shifted(self, name: str, ins: list[Seen]) -> None:
        a, b = ins
        if a.site is not None and b.vector:
            self.shifts.setdefault(a.site, (b.vector, -1 if name == "sub" else 1))
        elif b.site is not None and a.vector and name != "sub":
            self.shifts.setdefault(b.site, (a.vector, 1))

    # -- what lets channels through ---------------------------------------------------------------

    def _conv_general_dilated(
        self, eqn: Any, ins: list[Seen], shape: tuple[int, ...], from_input: bool
    ) -> Seen | None:
        conv = eqn.params
        spec = conv["dimension_numbers"]
        x, kernel = ins
        if conv["batch_group_count"] != 1 or kernel.from_input:
            return None
        groups = conv["feature_group_count"]
        into, made = kernel.labels[spec.rhs_spec[1]], kernel.labels[spec.rhs_spec[0]]
        channels = x.labels[spec.lhs_spec[1]]
        for axis in spec.rhs_spec[2:]:
            kernel.labels[axis].fix("it is a place in a window")
        out = self.fresh(shape)
        out[spec.out_spec[0]].join(x.labels[spec.lhs_spec[0]])
        out[spec.out_spec[1]].join(made)
        if groups == 1:
            channels.join(into)
        elif into.size == 1 and made.size == channels.size:
            self.ties.append((channels, made))
        else:
            channels.fix("a grouped convolution reads it")
            made.fix("a grouped convolution makes it")
        if kernel.leaf is None or kernel.leaf_axes is None or not x.from_input:
            why = "a convolution that is no layer sums over it"
            channels.fix(why)
            made.fix(why)
            if kernel.leaf:
                self.unread.setdefault(kernel.leaf, "it is convolved with something without input")
            return Seen(out, from_input=from_input)
        touches = []
        for k, (a, b, c) in enumerate(zip(spec.lhs_spec[2:], spec.rhs_spec[2:], spec.out_spec[2:])):
            places = _touched(x.labels[a].size, kernel.labels[b].size, shape[c], conv, k)
            touches.append((kernel.leaf_axes[b], tuple(places)))
        self.more[len(self.sites)] = (groups, tuple(touches))
        axes = kernel.leaf_axes
        self.sites.append(
            (kernel.leaf, axes[spec.rhs_spec[1]], axes[spec.rhs_spec[0]], channels, made)
        )
        return Seen(out, from_input=True)

    def _through(
        self, name: str, one: Seen, shape: tuple[int, ...], same: list[bool], from_input: bool
    ) -> Seen:
        """Axes of which every element comes from its own place pass; others end and begin here."""
        out = self.fresh(shape)
        for axis, (label, passes) in enumerate(zip(one.labels, same)):
            if passes:
                out[axis].join(label)
            else:
                label.fix(f"it goes through {name}")
                out[axis].fix(f"it comes out of {name}")
        if one.leaf:
            self.unread.setdefault(one.leaf, f"it goes through {name}")
        return Seen(out, from_input=from_input)

    def _window(
        self, eqn: Any, ins: list[Seen], shape: tuple[int, ...], from_input: bool
    ) -> Seen | None:
        p = eqn.params
        same = [
            (window, stride, tuple(pad), a, b) == (1, 1, (0, 0), 1, 1)
            for window, stride, pad, a, b in zip(
                p["window_dimensions"],
                p["window_strides"],
                p["padding"],
                p["base_dilation"],
                p["window_dilation"],
            )
        ]
        return self._through(eqn.primitive.name, ins[0], shape, same, from_input)

    _reduce_window_sum = _reduce_window_max = _reduce_window_min = _window

    def _reduce(
        self, eqn: Any, ins: list[Seen], shape: tuple[int, ...], from_input: bool
    ) -> Seen | None:
        gone = eqn.params["axes"]
        for axis in gone:
            ins[0].labels[axis].fix(f"it goes through {eqn.primitive.name}")
        rest = [label for k, label in enumerate(ins[0].labels) if k not in gone]
        if ins[0].leaf:
            self.unread.setdefault(ins[0].leaf, f"it goes through {eqn.primitive.name}")
        return Seen(rest, from_input=from_input)

    _reduce_sum = _reduce_max = _reduce_min = _reduce_prod = _reduce_and = _reduce_or = _reduce

    def _slice(
        self, eqn: Any, ins: list[Seen], shape: tuple[int, ...], from_input: bool
    ) -> Seen | None:
        same = [label.size == n for label, n in zip(ins[0].labels, shape)]
        return self._through("slice", ins[0], shape, same, from_input)

    def _pad(
        self, eqn: Any, ins: list[Seen], shape: tuple[int, ...], from_input: bool
    ) -> Seen | None:
        same = [tuple(config) == (0, 0, 0) for config in eqn.params["padding_config"]]
        return self._through("pad", ins[0], shape, same, from_input)

    def _concatenate(
        self, eqn: Any, ins: list[Seen], shape: tuple[int, ...], from_input: bool
    ) -> Seen | None:
        out = self.fresh(shape)
        for one in ins:
            for axis, label in enumerate(one.labels):
                if axis == eqn.params["dimension"]:
                    label.fix("it goes through concatenate")
                    out[axis].fix("it comes out of concatenate")
                else:
                    out[axis].join(label)
            if one.leaf:
                self.unread.setdefault(one.leaf, "it goes through concatenate")
        return Seen(out, from_input=from_input)

    def _reshape(
        self, eqn: Any, ins: list[Seen], shape: tuple[int, ...], from_input: bool
    ) -> Seen | None:
        found = super()._reshape(eqn, ins, shape, from_input)
        if found is not None:
            return found
        if eqn.params.get("dimensions") is not None:
            return None
        if ins[0].leaf:
            self.unread.setdefault(ins[0].leaf, "it goes through reshape")
        out: list[Label] = []
        for labels, sizes in _segments(ins[0].labels, shape):
            wide = [label for label in labels if label.size != 1]
            if len(sizes) == 1 and len(wide) > 1:
                flat = Label(sizes[0])
                flat.parts = wide
                self.flattened.append(flat)
                out.append(flat)
            elif len(sizes) == 1 and len(wide) == 1:
                out.append(wide[0])
            elif len(labels) == 1 and (labels[0].root().parts and _sizes(labels[0]) == sizes):
                out.extend(labels[0].root().parts or [])
            else:
                for label in labels:
                    label.fix("it goes through reshape")
                out.extend(self.fresh(tuple(sizes), "it comes out of reshape"))
        return Seen(out, from_input=from_input)


def _sizes(label: Label) -> list[int]:
    return [part.size for part in label.root().parts or []]


def _segments(labels: list[Label], shape: tuple[int, ...]) -> list[tuple[list[Label], list[int]]]:
    """The shortest runs of axes before and after a reshape that hold the same elements."""
    found: list[tuple[list[Label], list[int]]] = []
    i = j = 0
    while i < len(labels) or j < len(shape):
        run, sizes = labels[i : i + 1], list(shape[j : j + 1])
        i, j = i + 1, j + 1
        a = run[0].size if run else 1
        b = sizes[0] if sizes else 1
        while a != b:
            if a < b:
                run.append(labels[i])
                a, i = a * labels[i].size, i + 1
            else:
                sizes.append(shape[j])
                b, j = b * shape[j], j + 1
        found.append((run, sizes))
    return found


def read_channels(network: Network, params: Params, stats: Stats) -> Channels:
    """The layers of ``network.apply``, convolutions among them; nothing is computed.

    Args:
        params, stats: arrays or shapes; a leaf's dtype must be its own.
    """
    reader = _Channels()
    reader.stat_names = [name for name, leaf in flatten(stats).items() if leaf is not None]
    dtype = jnp.result_type(*jax.tree.leaves(params))
    leaves, statistics = trace(reader, network, params, stats, dtype)
    _spread_reasons(reader)
    more = [label for pair in reader.ties for label in pair]
    for flat in reader.flattened:
        more += [flat, *(flat.root().parts or [])]
    more += [label for one in statistics for label in one.labels]
    plain, number = collect(reader, leaves, more)

    layers = tuple(
        Layer(l.kernel, l.in_axis, l.out_axis, l.in_group, l.out_group, *reader.more.get(k, ()))
        for k, l in enumerate(plain.layers)
    )
    members: dict[int, list[tuple[str, int]]] = {}
    for name, one in zip(reader.stat_names, statistics):
        for axis, label in enumerate(one.labels):
            if label.size != 1:
                members.setdefault(number(label), []).append((name, axis))
    parts = {
        number(flat): tuple(number(part) for part in flat.root().parts or [])
        for flat in reader.flattened
    }
    shifts = {
        layers[site].kernel: Shift(vector[1], vector[0] == "stats", sign)
        for site, (vector, sign) in reader.shifts.items()
        if reader.reads[vector] == 1
    }
    return Channels(
        plain.groups,
        layers,
        plain.unread,
        {g: tuple(m) for g, m in members.items()},
        parts,
        tuple((number(a), number(b)) for a, b in reader.ties),
        shifts,
    )


def _spread_reasons(reader: _Channels) -> None:
    """A flattened row that must stay holds the axes it was made of."""
    for flat in reader.flattened:
        why = flat.root().fixed
        if why:
            for part in flat.root().parts or []:
                part.fix(why if why != OUTPUT else MIXED)


# -- values ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """A layer as it was computed: what its kernel met.

    Attributes:
        operand: what the kernel was multiplied with.
        kernel: the kernel in the layout of the product.
        axis, out_axis: the axes of operand and product that hold the units read and made.
        again: ``(operand, kernel) -> product``, the same operation.
    """

    operand: jax.Array
    kernel: jax.Array
    axis: int
    out_axis: int
    again: Callable[[jax.Array, jax.Array], jax.Array]


def products(
    network: Network, params: Params, stats: Stats, x: jax.Array
) -> tuple[jax.Array, dict[str, Product]]:
    """The logits of ``x`` and, by kernel, every layer's product on the way to them."""
    names = [name for name, leaf in flatten(params).items() if leaf is not None]
    leaves = [*jax.tree.leaves(params), *jax.tree.leaves(stats), x]
    closed = jax.make_jaxpr(network.apply)(params, stats, x)
    found: dict[str, tuple[Any, int]] = {}  # kernel -> equation, which operand is the kernel

    def run(values: list[Any]) -> tuple[Any, dict[str, tuple[Any, Any]]]:
        met: dict[str, tuple[Any, Any]] = {}

        def walk(jaxpr: Jaxpr, consts: Any, args: list[tuple[Any, str | None]]) -> list[Any]:
            env: dict[Any, tuple[Any, str | None]] = dict(zip(jaxpr.invars, args))
            env.update((v, (c, None)) for v, c in zip(jaxpr.constvars, consts))
            read = lambda v: (v.val, None) if isinstance(v, Literal) else env[v]
            for eqn in jaxpr.eqns:
                ins = [read(v) for v in eqn.invars]
                name = eqn.primitive.name
                if name in CALLS and CALLS[name] in eqn.params:
                    inner = eqn.params[CALLS[name]]
                    inside = isinstance(inner, ClosedJaxpr)
                    outs = walk(
                        inner.jaxpr if inside else inner, inner.consts if inside else [], ins
                    )
                else:
                    tag = ins[0][1] if name in CASTS or name == "transpose" else None
                    if name in ("dot_general", "conv_general_dilated"):
                        for k, other in ((0, 1), (1, 0)):
                            if (leaf := ins[k][1]) is not None:
                                found[leaf] = (eqn, k)
                                met[leaf] = (ins[other][0], ins[k][0])
                    got = bind(eqn, *(value for value, _ in ins))
                    outs = [(one, tag) for one in got]
                env.update(zip(eqn.outvars, outs))
            return [read(v) for v in jaxpr.outvars]

        tagged = [(v, names[k] if k < len(names) else None) for k, v in enumerate(values)]
        return walk(closed.jaxpr, closed.consts, tagged)[0][0], met

    logits, met = jax.jit(run)(leaves)
    result = {}
    for leaf, (operand, kernel) in met.items():
        eqn, k = found[leaf]
        if eqn.primitive.name == "conv_general_dilated":
            spec = eqn.params["dimension_numbers"]
            axis, out_axis = spec.lhs_spec[1], spec.out_spec[1]
        else:
            (lhs, rhs), _ = eqn.params["dimension_numbers"]
            axis = (rhs if k == 0 else lhs)[0]
            out_axis = 0 if k == 0 else operand.ndim - 1  # free axes of the left operand come first
        again = lambda o, w, eqn=eqn, k=k: bind(eqn, *((w, o) if k == 0 else (o, w)))[0]
        result[leaf] = Product(operand, kernel, axis, out_axis, again)
    return logits, result
