"""What is dead under a mask, channels included, and the selection that leaves it out.

A unit (a channel of a convolution) is *live* if a path of kept weights leads to it from the input
and another one from it to an output. Without the second nobody hears it. Without the first it is a
constant, and the constant can be added once and for all to what is added to the next product: its
bias, or a running mean (subtracted). That is exact where the constant reaches every position of the
next map alike. With zeros padded around a map it does not: the border sees fewer of them.

The channels of one residual stream, and those on both sides of a depthwise convolution, go
together or stay. Inputs and outputs stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params, flatten, map_mask
from secateur.structure.channels import Channels, Product, Shift, products
from secateur.structure.reader import OUTPUT
from secateur.structure.shrink import Kept, Selection, select

Rows = dict[int, np.ndarray]  # group -> bool, one for each unit


@dataclass(frozen=True)
class Liveness:
    """Which units a path reaches.

    Attributes:
        fed: group -> whether kept weights lead to the unit from the input.
        heard: group -> whether kept weights lead from the unit to an output.
        joins: kernel -> bool (in, out): the units that its kept weights join.
    """

    fed: Rows
    heard: Rows
    joins: dict[str, np.ndarray]


def liveness(channels: Channels, params: Params, mask: Mask) -> Liveness:
    """Forward and backward reachability by units, to a fixpoint.

    A weight that sees padding alone joins nothing. Units of a residual stream are one row, live
    if any of its places is; so all that is called dead here is dead, but not conversely:
    `flow.reachable` is exact.

    Args:
        params: a kernel that may not be pruned (None in ``mask``) counts as kept.
    """
    masks, shapes = flatten(mask), {k: np.shape(p) for k, p in flatten(params).items()}
    joins = {}
    for layer in channels.layers:
        kept = masks.get(layer.kernel)
        kept = np.ones(shapes[layer.kernel], bool) if kept is None else np.asarray(kept, bool)
        joins[layer.kernel] = layer.matrix(kept, channels.groups[layer.in_group].size)

    made = {layer.out_group for layer in channels.layers} | set(channels.parts)
    read = {layer.in_group for layer in channels.layers}
    read |= {part for parts in channels.parts.values() for part in parts}
    fed, heard = {}, {}
    for n, group in enumerate(channels.groups):
        opaque = channels.opaque(n)
        fed[n] = np.full(group.size, opaque or group.is_input or n not in made)
        heard[n] = np.full(group.size, opaque or group.fixed == OUTPUT or n not in read)

    # Rows that a mask cannot reach are true from the start; the others grow until nothing changes.
    while True:
        before = sum(int(row.sum()) for rows in (fed, heard) for row in rows.values())
        for layer in channels.layers:
            fed[layer.out_group] |= joins[layer.kernel][fed[layer.in_group]].any(axis=0)
            for flat in channels.parts:
                fed[flat] |= channels.spread(flat, fed)
        for layer in reversed(channels.layers):
            heard[layer.in_group] |= joins[layer.kernel][:, heard[layer.out_group]].any(axis=1)
            for flat in channels.parts:
                for part, row in channels.gather(flat, heard[flat]):
                    heard[part] |= row
        if before == sum(int(row.sum()) for rows in (fed, heard) for row in rows.values()):
            return Liveness(fed, heard, joins)


def removable(channels: Channels) -> set[int]:
    """Groups whose units may go: all that have them were read, and they are no input or output."""
    made = {layer.out_group for layer in channels.layers}
    may = {
        n
        for n, group in enumerate(channels.groups)
        if group.fixed is None
        and n in made
        and n not in channels.parts
        and not group.is_input
        and not channels.opaque(n)
    }
    for flat, parts in channels.parts.items():
        held = channels.opaque(flat) or channels.groups[flat].fixed is not None or flat in made
        if held or len(may.intersection(parts)) > 1:
            may -= set(parts)
    while True:
        alone = {n for a, b in channels.ties for n in (a, b) if not {a, b} <= may} & may
        if not alone:
            return may
        may -= alone


def masked(mask: Mask, params: Params) -> Params:
    """``mask * params`` as numpy arrays; a NaN under a pruned place becomes 0."""
    zero = lambda m, p: p if m is None else np.where(m, p, np.zeros((), p.dtype))
    return map_mask(zero, mask, jax.tree.map(np.asarray, params))


@dataclass(frozen=True)
class Folding:
    """What units without live inputs add to the products that read them, unit by unit.

    Attributes:
        values: kernel -> unit of its input row -> what it adds to each unit of the output.
        uneven: kernel -> the same -> where that is not the same at all positions.
    """

    values: dict[str, dict[int, np.ndarray]]
    uneven: dict[str, dict[int, np.ndarray]]


@dataclass(frozen=True)
class Plan:
    """What goes and what is added elsewhere in its place.

    Attributes:
        selection: the units that stay.
        added: leaf -> what is added to it; of parameters, and of statistics.
        folded: group -> constants that went into a bias or running mean (those that are 0, too).
        kept: group -> unit -> why a unit without live inputs stays.
        x, logits: two inputs and what the masked network answers to them.
    """

    selection: Selection
    added: dict[str, np.ndarray]
    added_statistics: dict[str, np.ndarray]
    folded: dict[int, int]
    kept: dict[int, dict[int, str]]
    x: jax.Array
    logits: np.ndarray


BORDER = "zeros are padded around it, so the border sees less of its constant than the middle"
NOWHERE = "no bias or running mean follows the product that reads its constant"


def plan(network: Network, channels: Channels, params: Params, stats: Stats, mask: Mask) -> Plan:
    """What to leave out under ``mask``, exactly: see the head of this file."""
    live = liveness(channels, params, mask)
    may = removable(channels)
    whole = masked(mask, params)
    dtype = jnp.result_type(*jax.tree.leaves(whole))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *network.input_shape)), dtype)
    logits, met = products(network, whole, stats, x)
    fold = _folding(channels, live, may, met)
    shifts = {
        kernel: shift
        for kernel, shift in channels.shifts.items()
        if shift.statistic or flatten(mask).get(shift.leaf) is None  # pruned biases stay 0
    }
    keep: Rows = {
        n: live.fed[n] & live.heard[n] if n in may else np.ones(group.size, bool)
        for n, group in enumerate(channels.groups)
        if n not in channels.parts
    }
    for n in may:  # a row without units is no array that every operation takes
        if not keep[n].any():
            keep[n][int(np.argmin(live.heard[n]))] = True
    kept: dict[int, dict[int, str]] = {n: {} for n in may}
    tied = {layer.kernel for layer in channels.layers if _tied(channels, layer.in_group, layer)}
    changed = True
    while changed:
        changed = False
        for a, b in channels.ties:
            both = keep[a] | keep[b]
            changed |= bool((both != keep[a]).any() or (both != keep[b]).any())
            keep[a], keep[b] = both, both.copy()
        for layer in reversed(channels.layers):
            if layer.kernel in tied:
                continue
            hears = _row(channels, keep, layer.out_group) & live.heard[layer.out_group]
            for unit, value in fold.values.get(layer.kernel, {}).items():
                n = _source(channels, may, layer.in_group)
                if keep[n][unit]:
                    continue
                why = None
                if (fold.uneven[layer.kernel][unit] & hears).any():
                    why = BORDER
                elif layer.kernel not in shifts and (value[hears] != 0).any():
                    why = NOWHERE
                if why:
                    keep[n][unit], kept[n][unit], changed = True, why, True

    chosen = select([Kept(channels, {n: keep[n] for n in sorted(may)})], grain=1)[0]
    chosen = _with_flattened(channels, chosen)
    added: dict[str, np.ndarray] = {}
    added_statistics: dict[str, np.ndarray] = {}
    for layer in channels.layers:
        shift = shifts.get(layer.kernel)
        if shift is None or layer.kernel in tied:
            continue
        n = _source(channels, may, layer.in_group)
        gone = [v for u, v in fold.values.get(layer.kernel, {}).items() if not keep[n][u]]
        if gone:
            _add(shift, np.sum(gone, axis=0), added, added_statistics)
    folded = {n: int((~keep[n] & ~live.fed[n] & live.heard[n]).sum()) for n in may}
    return Plan(chosen, added, added_statistics, folded, kept, x, np.asarray(logits))


def _add(shift: Shift, value: np.ndarray, added: Any, added_statistics: Any) -> None:
    into = added_statistics if shift.statistic else added
    into[shift.leaf] = into.get(shift.leaf, 0) + shift.sign * value


def _tied(channels: Channels, group: int, layer: Any) -> bool:
    return (group, layer.out_group) in channels.ties and layer.groups > 1


def _row(channels: Channels, rows: Rows, group: int) -> np.ndarray:
    return channels.spread(group, rows) if group in channels.parts else rows[group]


def _source(channels: Channels, may: set[int], group: int) -> int:
    """The row of channels behind an input row: itself, or the one that was flattened."""
    parts = [part for part in channels.parts.get(group, (group,)) if part in may]
    return parts[0] if len(parts) == 1 else group


def _with_flattened(channels: Channels, chosen: Selection) -> Selection:
    """The selection with the rows that flattening makes, and with the statistics."""
    units, sizes, live = dict(chosen.units), dict(chosen.sizes), dict(chosen.live)
    axes = {leaf: dict(cut) for leaf, cut in chosen.axes.items()}
    for flat, parts in channels.parts.items():
        if not any(part in chosen.units for part in parts):
            continue
        rows = {}
        for part in parts:
            rows[part] = np.ones(channels.groups[part].size, bool)
            if part in chosen.units:
                rows[part] = np.isin(np.arange(channels.groups[part].size), chosen.units[part])
        units[flat] = np.flatnonzero(channels.spread(flat, rows))
        sizes[flat], live[flat] = channels.groups[flat].size, len(units[flat])
        for leaf, axis in channels.groups[flat].members:
            axes.setdefault(leaf, {})[axis] = flat
    statistics: dict[str, dict[int, int]] = {}
    for n in units:
        for leaf, axis in channels.statistics.get(n, ()):
            statistics.setdefault(leaf, {})[axis] = n
    names = {**chosen.names, **{n: f"flattened {n}" for n in units if n not in chosen.names}}
    return replace(
        chosen, axes=axes, units=units, sizes=sizes, live=live, names=names, statistics=statistics
    )


# -- constants ------------------------------------------------------------------------------------


def _folding(
    channels: Channels, live: Liveness, may: set[int], met: Mapping[str, Product]
) -> Folding:
    """What each unit without live inputs adds, measured on the masked network itself."""
    constant = {n: ~live.fed[n] & live.heard[n] for n in may}
    values: dict[str, dict[int, np.ndarray]] = {}
    uneven: dict[str, dict[int, np.ndarray]] = {}
    for layer in channels.layers:
        n = _source(channels, may, layer.in_group)
        if n not in may or not constant[n].any() or _tied(channels, layer.in_group, layer):
            continue
        found = _of_layer(channels, layer.in_group, n, constant[n], met[layer.kernel])
        values[layer.kernel] = {u: value for u, (value, _) in found.items()}
        uneven[layer.kernel] = {u: odd for u, (_, odd) in found.items()}
    return Folding(values, uneven)


def _of_layer(
    channels: Channels, group: int, source: int, constant: np.ndarray, product: Product
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Unit -> what it adds to each output unit, and where that differs between positions."""
    operand = np.moveaxis(np.asarray(product.operand), product.axis, 0)
    rows: Mapping[int, np.ndarray] = {
        part: np.ones(channels.groups[part].size, bool)
        for part in channels.parts.get(group, (group,))
    }
    again = jax.jit(product.again)
    found = {}
    for unit in np.flatnonzero(constant):
        one = np.zeros(len(constant), bool)
        one[unit] = True
        places = _row(channels, {**rows, source: one}, group)
        if not operand[places].any():
            continue
        alone = np.where(places.reshape(-1, *[1] * (operand.ndim - 1)), operand, 0)
        out = np.moveaxis(
            np.asarray(again(jnp.asarray(np.moveaxis(alone, 0, product.axis)), product.kernel)),
            product.out_axis,
            0,
        )
        out = out.reshape(len(out), -1)
        low, high = out.min(axis=1), out.max(axis=1)
        # Equal up to the rounding of sums in another order; a border that misses a summand is far.
        rounding = 64 * np.finfo(out.dtype).eps * np.abs(out).max(initial=0)
        found[int(unit)] = (out.mean(axis=1, dtype=np.float64), high - low > rounding)
    return found
