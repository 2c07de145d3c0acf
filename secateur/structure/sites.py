"""Where each parameter of any ``f(params, x)`` meets the input: the sites of its layers.

The program of f is read once. A leaf that is only moved, cast or scaled before it meets a value
that the input is in has a *view* there, a linear function of the leaf alone; the equation where
they meet is its *site*: a matrix product, a convolution, a sum (bias) or a product by entries
(scale of a norm). With what enters a site and what its output is felt by, the derivative of every
example's outputs by the leaf is a small product (`kernels.factors`). What meets the input in any
other way, or twice, is named with the reason, so that callers fall back openly, leaf by leaf.

Which axis of a value holds the examples is found by reading f for two numbers of examples: it is
the axis that has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from secateur.structure.flow import bind
from secateur.structure.reader import CALLS

Function = Callable[[Any, Any], jax.Array]  # (params, x) -> (n, outputs)
View = Callable[[jax.Array], jax.Array]

# A custom rule of differentiation may say something else than its body, so it is left whole.
DISSOLVED = {name: inner for name, inner in CALLS.items() if name != "custom_jvp_call"}
# Every entry of the result is an entry of the operand.
_KEPT = "broadcast_in_dim convert_element_type copy copy_p expand_dims reshape squeeze"
KEEPS = frozenset(_KEPT.split())  # and in the same order
MOVES = KEEPS | frozenset(["neg", "reduce_precision", "rev", "slice", "transpose"])
MEETS = {
    "dot_general": "dense",
    "conv_general_dilated": "conv",
    "add": "bias",
    "add_any": "bias",
    "sub": "bias",
    "mul": "scale",
}
LONGEST = 64  # steps of a scan that are written out


@dataclass(frozen=True)
class Site:
    """One equation at which a leaf meets the input.

    Attributes:
        leaf: its name.
        kind: ``dense``, ``conv``, ``bias`` or ``scale``.
        step: number of the equation in the flattened program.
        tap: number of the value at which the layer's output is felt: the equation's own, or that
            of the bias that is added to it and nothing else.
        side: which operand the leaf is, 0 or 1.
        example: the axis of examples of the other operand.
        felt_example: of the value that is tapped.
        params: the equation's parameters.
        sign: -1 where the leaf is subtracted.
        part: of the leaf, where a loop takes one slice after the other.
        plain: the leaf is there with its own entries, in its own order.
        shape: of the operand that the leaf is.
    """

    leaf: str
    kind: str
    step: int
    tap: int
    side: int
    example: int
    felt_example: int
    params: dict[str, Any] = field(hash=False, compare=False)
    sign: int = 1
    part: tuple[int, ...] = ()
    plain: bool = True
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sites:
    """What was read.

    Attributes:
        names: of all leaves, in the tree's order.
        found: leaf -> its sites (more than one only on parts that do not overlap).
        why: leaf -> why it has none.
        steps: number of equations, by which another reading of the same function is recognised.
        out: number of the value that is the output.
        fixed: leaves that were read as constants, so that others may be multiplied by them.
    """

    names: tuple[str, ...]
    found: dict[str, tuple[Site, ...]]
    why: dict[str, str]
    steps: int
    out: int
    fixed: frozenset[str] = frozenset()

    @property
    def taps(self) -> tuple[int, ...]:
        """Values that are tapped, each once."""
        return tuple(sorted({s.tap for sites in self.found.values() for s in sites}))


@dataclass(frozen=True)
class _Tag:
    """A value that is a linear function of one leaf alone."""

    leaf: str
    copies: bool = False  # entries were repeated
    plain: bool = True  # its own entries, in its own order
    part: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Step:
    """One equation of the flattened program: ``outs = run(*ins)``, values by number."""

    name: str
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    run: Callable[..., Any]
    params: dict[str, Any]


@dataclass
class _Flat:
    """A program without calls where leaves enter them, and what is known of each value."""

    steps: list[_Step] = field(default_factory=list)
    consts: dict[int, Any] = field(default_factory=dict)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    tags: dict[int, _Tag] = field(default_factory=dict)
    fed: set[int] = field(default_factory=set)  # values that the input is in
    made: set[int] = field(default_factory=set)  # values that leaves are in, but not the input
    why: dict[str, str] = field(default_factory=dict)
    met: list[tuple[int, int, _Tag]] = field(default_factory=list)  # (step, side, the leaf)

    def value(self, shape: Sequence[int]) -> int:
        self.shapes.append(tuple(shape))
        return len(self.shapes) - 1

    def constant(self, value: Any) -> int:
        number = self.value(np.shape(value))
        self.consts[number] = value
        return number

    def walk(self, jaxpr: Jaxpr, consts: Sequence[int], args: Sequence[int]) -> list[int]:
        numbers: dict[Any, int] = dict(zip(jaxpr.constvars, consts))
        numbers.update(zip(jaxpr.invars, args))

        def read(atom: Any) -> int:
            return self.constant(atom.val) if isinstance(atom, Literal) else numbers[atom]

        for eqn in jaxpr.eqns:
            ins = [read(atom) for atom in eqn.invars]
            numbers.update(zip(eqn.outvars, self.equation(eqn, ins), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn: Any, ins: list[int]) -> list[int]:
        name = eqn.primitive.name
        leaves = any(i in self.tags or i in self.made for i in ins)
        if leaves and name in DISSOLVED and DISSOLVED[name] in eqn.params:
            inner = eqn.params[DISSOLVED[name]]
            if isinstance(inner, ClosedJaxpr):
                return self.walk(inner.jaxpr, [self.constant(c) for c in inner.consts], ins)
            return self.walk(inner, [], ins)
        if leaves and name == "scan" and eqn.params["length"] <= LONGEST:
            return self.unrolled(eqn, ins)
        shapes = [v.aval.shape for v in eqn.outvars]
        outs = [self.value(s) for s in shapes]
        run = lambda *values: bind(eqn, *values)
        self.add(name, ins, outs, run, eqn.params)
        return outs

    def unrolled(self, eqn: Any, ins: list[int]) -> list[int]:
        """A short loop, written out, so that each turn's slice of a leaf is seen."""
        p = eqn.params
        held, body = p["num_consts"], p["jaxpr"]
        carry, xs = ins[held : held + p["num_carry"]], ins[held + p["num_carry"] :]
        inner = [self.constant(c) for c in body.consts]
        turns: dict[int, list[int]] = {}
        order = range(p["length"])
        for turn in reversed(order) if p["reverse"] else order:
            sliced = [self.slice(x, turn) for x in xs]
            outs = self.walk(body.jaxpr, inner, [*ins[:held], *carry, *sliced])
            carry, turns[turn] = outs[: p["num_carry"]], outs[p["num_carry"] :]
        stacked = []
        for k in range(len(eqn.outvars) - p["num_carry"]):
            out = self.value(eqn.outvars[p["num_carry"] + k].aval.shape)
            parts = [turns[t][k] for t in order]
            self.add("stack", parts, [out], lambda *values: [jnp.stack(values)], {})
            stacked.append(out)
        return [*carry, *stacked]

    def slice(self, x: int, turn: int) -> int:
        out = self.value(self.shapes[x][1:])
        self.add("turn", [x], [out], lambda value: [value[turn]], {"turn": turn})
        return out

    def add(
        self, name: str, ins: Sequence[int], outs: Sequence[int], run: Any, params: dict[str, Any]
    ) -> None:
        """Takes a step into the program, and knows what comes of it."""
        self.steps.append(_Step(name, tuple(ins), tuple(outs), run, params))
        tagged = [(side, self.tags[i]) for side, i in enumerate(ins) if i in self.tags]
        fed = any(i in self.fed for i in ins)
        if fed:
            self.fed.update(outs)
            if len(tagged) == 1 and name in MEETS and len(ins) == 2:
                side, tag = tagged[0]
                if ins[1 - side] in self.fed:
                    self.met.append((len(self.steps) - 1, side, tag))
                    return
            self.refuse(tagged, f"it meets the input in {name}")
            return
        if not tagged:
            if any(i in self.made for i in ins):
                self.made.update(outs)
            return
        side, tag = tagged[0]
        fixed = len(tagged) == 1 and not any(i in self.made for i in ins)
        if fixed and (moved := self.moved(name, ins, outs, side, tag, params)) is not None:
            self.tags[outs[0]] = moved
            return
        said = "another leaf" if len(tagged) > 1 else name
        self.refuse(tagged, f"it goes through {said} before it meets the input")
        self.made.update(outs)

    def moved(
        self,
        name: str,
        ins: Sequence[int],
        outs: Sequence[int],
        side: int,
        tag: _Tag,
        params: dict[str, Any],
    ) -> _Tag | None:
        if name == "turn":
            return replace(tag, part=(*tag.part, params["turn"]), plain=False)
        if name == "mul" or (name == "div" and side == 0):
            return replace(tag, plain=False)
        if name not in MOVES:
            return None
        if name == "convert_element_type" and not jnp.issubdtype(params["new_dtype"], jnp.floating):
            return None
        before, after = (int(np.prod(self.shapes[k])) for k in (ins[side], outs[0]))
        copies = tag.copies or (name == "broadcast_in_dim" and after > before)
        return replace(tag, copies=copies, plain=tag.plain and name in KEEPS)

    def refuse(self, tagged: Sequence[tuple[int, _Tag]], why: str) -> None:
        for _, tag in tagged:
            self.why.setdefault(tag.leaf, why)


def names_of(params: Any) -> tuple[str, ...]:
    """Names of a tree's leaves, in its order: keys joined by slashes."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths)


def flattened(
    f: Function, params: Any, x: Any, fixed: frozenset[str]
) -> tuple[_Flat, list[int], int]:
    """The flattened program, the numbers of its arguments, and that of its output."""
    closed = jax.make_jaxpr(f)(params, x)
    flat = _Flat()
    consts = [flat.constant(c) for c in closed.consts]
    args = [flat.value(v.aval.shape) for v in closed.jaxpr.invars]
    names = names_of(params)
    flat.tags |= {k: _Tag(name) for k, name in zip(args, names) if name not in fixed}
    flat.fed.update(args[len(names) :])
    (out,) = flat.walk(closed.jaxpr, consts, args)
    return flat, args, out


def resized(x: Any, n: int) -> Any:
    """Shapes of x with another number of examples."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((n, *np.shape(a)[1:]), a.dtype), x)


def read_sites(f: Function, params: Any, x: Any, fixed: frozenset[str] = frozenset()) -> Sites:
    """The sites of every leaf of ``params`` in ``f(params, x)``; nothing is computed.

    Args:
        f: gives (n, outputs), row k from ``x[k]`` alone.
        params: any tree of arrays (or of their shapes).
        x: an array, or a tree of arrays, with the examples along their first axes.
        fixed: leaves, by name, that nobody differentiates by: statistics of a norm.
    """
    structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype), params)
    numbers = (7, 11)
    (one, _, out), (two, _, _) = (flattened(f, structs, resized(x, n), fixed) for n in numbers)
    names = names_of(params)
    if [s.name for s in one.steps] != [s.name for s in two.steps]:
        reason = "the program depends on the number of examples"
        return Sites(names, {}, dict.fromkeys(names, reason), 0, 0, fixed)

    def example(value: int) -> int | None:
        """The one axis that has changed with the number of examples, if there is one."""
        a, b = one.shapes[value], two.shapes[value]
        changed = [k for k, (p, q) in enumerate(zip(a, b)) if p != q]
        if len(changed) != 1 or (a[changed[0]], b[changed[0]]) != numbers:
            return None
        return changed[0]

    readers: dict[int, list[int]] = {}
    for number, step in enumerate(one.steps):
        for value in step.ins:
            readers.setdefault(value, []).append(number)
    found: dict[str, list[Site]] = {}
    why = dict(one.why)
    for number, side, tag in one.met:
        step = one.steps[number]
        kind = MEETS[step.name]
        other, felt = example(step.ins[1 - side]), example(step.outs[0])
        unfit = _unfit(kind, tag, step, side, other, felt)
        if unfit:
            why.setdefault(tag.leaf, unfit)
            continue
        assert other is not None
        assert felt is not None
        sign = -1 if step.name == "sub" and side == 1 else 1
        place = (number, step.outs[0], side, other, felt)
        shape = one.shapes[step.ins[side]]
        site = Site(tag.leaf, kind, *place, step.params, sign, tag.part, tag.plain, shape)
        found.setdefault(tag.leaf, []).append(site)
    for leaf, sites in found.items():
        parts = [s.part for s in sites]
        if len(set(parts)) < len(parts) or any(not p for p in parts[1:]):
            why.setdefault(leaf, f"it is used {len(sites)} times")
    for name in names:
        if name in fixed:
            why[name] = "it is a constant"
        elif name not in found:
            why.setdefault(name, "it does not reach the output")
    found = {leaf: sites for leaf, sites in found.items() if leaf not in why}
    moved = _shared_taps(one, found, readers, out)
    held = {leaf: tuple(replace(s, tap=moved[s.tap]) for s in found[leaf]) for leaf in found}
    return Sites(names, held, why, len(one.steps), out, fixed)


def _unfit(
    kind: str, tag: _Tag, step: _Step, side: int, other: int | None, felt: int | None
) -> str | None:
    """Why a meeting is no site."""
    if other is None or felt is None:
        return f"the axis of examples is not its own in {step.name}"
    if kind in ("dense", "conv") and tag.copies:
        return f"its entries are repeated before {step.name}"
    if kind == "dense":
        contracted, batched = step.params["dimension_numbers"]
        if other in contracted[1 - side] or other in batched[1 - side]:
            return "the product sums over examples"
    if kind == "conv":
        numbers = step.params["dimension_numbers"]
        if side == 0 or other != numbers.lhs_spec[0]:
            return "it is the image of a convolution, or examples are not its batch"
        if step.params["batch_group_count"] != 1:
            return "the convolution has groups of examples"
    return None


def _shared_taps(
    flat: _Flat, found: dict[str, list[Site]], readers: dict[int, list[int]], out: int
) -> dict[int, int]:
    """Tap -> the tap behind it that feels the same: that of the bias that is added to it."""
    sums = {s.step: s.tap for sites in found.values() for s in sites if s.kind == "bias"}
    moved: dict[int, int] = {}
    for sites in found.values():
        for site in sites:
            tap = site.tap
            while tap != out and len(read := readers.get(tap, [])) == 1 and read[0] in sums:
                if flat.steps[read[0]].name == "sub" and flat.steps[read[0]].ins[1] == tap:
                    break  # felt with the other sign
                tap = sums[read[0]]
            moved[site.tap] = tap
    return moved


def run_tapped(
    f: Function, params: Any, x: Any, sites: Sites, taps: dict[int, jax.Array]
) -> tuple[jax.Array, dict[int, jax.Array]]:
    """``f(params, x)`` with an array added to each tapped value.

    Args:
        taps: tap -> an array of that value's shape; `tap_shapes` gives them.

    Returns:
        The outputs, and step of a site -> the operand there that the input is in.

    Raises:
        ValueError: the program is another one than was read.
    """
    flat, args, out = flattened(f, params, x, sites.fixed)
    if len(flat.steps) != sites.steps:
        raise ValueError("the program depends on the number of examples")
    values: dict[int, Any] = dict(flat.consts)
    values.update(zip(args, [*jax.tree.leaves(params), *jax.tree.leaves(x)]))
    wanted = {s.step: s for found in sites.found.values() for s in found}
    entered: dict[int, jax.Array] = {}
    for number, step in enumerate(flat.steps):
        ins = [values[k] for k in step.ins]
        if number in wanted:
            entered[number] = ins[1 - wanted[number].side]
        outs = step.run(*ins)
        values.update(
            (k, value + taps[k] if k in taps else value) for k, value in zip(step.outs, outs)
        )
    return values[out], entered


def views(f: Function, params: Any, x: Any, sites: Sites) -> dict[tuple[str, int], View]:
    """(leaf, step of a site) -> the leaf's view there, for as many examples as are in x.

    A view is linear: ``view(leaf)`` is the operand, ``view(mask)`` the mask in its layout.
    """
    flat, args, _ = flattened(f, params, x, sites.fixed)
    values: dict[int, Any] = dict(flat.consts)
    values.update(zip(args, [*jax.tree.leaves(params), *jax.tree.leaves(x)]))
    path: dict[int, tuple[Any, ...]] = {k: () for k in args if k in flat.tags}
    wanted = {(s.step, s.side): s for found in sites.found.values() for s in found}
    found: dict[tuple[str, int], View] = {}
    for number, step in enumerate(flat.steps):
        ins = [values[k] for k in step.ins]
        for side, k in enumerate(step.ins[:2]):
            if (number, side) in wanted:
                found[wanted[number, side].leaf, number] = partial(_view, path[k])
        values.update(zip(step.outs, step.run(*ins)))
        tagged = [k for k, value in enumerate(step.ins) if value in path]
        if len(tagged) == 1 and step.outs[0] in flat.tags:
            link = (step.run, tuple(ins), tagged[0])
            path[step.outs[0]] = (*path[step.ins[tagged[0]]], link)
    return found


def _view(links: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    for run, ins, place in links:
        (leaf,) = run(*(leaf if k == place else value for k, value in enumerate(ins)))
    return leaf


def tap_shapes(f: Function, params: Any, x: Any, sites: Sites) -> dict[int, jax.ShapeDtypeStruct]:
    """Shape and dtype of every tapped value for this number of examples."""
    if not sites.found:
        return {}

    def tapped(params: Any, x: Any) -> dict[int, Any]:
        flat, args, _ = flattened(f, params, x, sites.fixed)
        values: dict[int, Any] = dict(flat.consts)
        values.update(zip(args, [*jax.tree.leaves(params), *jax.tree.leaves(x)]))
        for step in flat.steps:
            values.update(zip(step.outs, step.run(*(values[k] for k in step.ins))))
        return {tap: values[tap] for tap in sites.taps}

    return jax.eval_shape(tapped, params, x)
