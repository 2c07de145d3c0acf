"""Rows of units: where a unit of a hidden layer stands in the parameters, and how it is silenced.

A unit is a neuron of a dense layer or a filter of a convolution. To it belong what makes it (a
column of a kernel, its bias, the scale and shift of its norm) and what reads it (a row of the next
kernel; of a channel that is flattened, the block of all its positions). The summands of a residual
stream are one row, and so are both sides of a depthwise convolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import jax
import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.core.network import Network, check_network
from secateur.core.trees import Mask, Params, flatten, unflatten
from secateur.structure.channels import Channels, read_channels
from secateur.structure.compact import removable

# What goes with a unit. "whole": everything that belongs to it, so that it emits 0 and nobody
# listens. "incoming": its incoming weights alone; it then emits what its bias makes of it.
HOW = ("whole", "incoming")


@dataclass(frozen=True)
class Place:
    """One axis of one leaf that units stand on; ``units[k]`` is the unit at index k of it."""

    leaf: str
    axis: int
    units: np.ndarray


@dataclass(frozen=True, eq=False)
class Row:
    """A row of hidden units that may go.

    Attributes:
        name: the first layer that makes them, ``"conv_1"``.
        size: how many there are.
        made: kernels that make them. read: kernels that read them.
        acts: biases, scales and shifts.
        through: of ``made``, the depthwise kernels, which read and make the same row.
    """

    name: str
    size: int
    made: tuple[Place, ...]
    read: tuple[Place, ...]
    acts: tuple[Place, ...]
    through: tuple[str, ...] = ()

    def places(self, kernel: str) -> np.ndarray:
        """Where each unit stands on the axis by which ``kernel`` reads: int (units, places)."""
        (units,) = (place.units for place in self.read if place.leaf == kernel)
        return np.argsort(units, kind="stable").reshape(self.size, -1)

    def weights(self, params: Params) -> np.ndarray:
        """The row's matrix W: incoming weights of each unit, float64 (units, n).

        Filters are flattened; biases do not belong to it. Of several kernels (a residual stream)
        they stand side by side.
        """
        flat = flatten(params)
        parts = []
        for place in self.made:
            kernel = np.moveaxis(np.asarray(flat[place.leaf], np.float64), place.axis, 0)
            parts.append(kernel.reshape(self.size, -1))
        return np.concatenate(parts, axis=1)

    def alive(self, mask: Mask) -> np.ndarray:
        """Units that a kept weight makes and a kept weight reads: bool (units,)."""
        flat = flatten(mask)

        def any_of(places: Sequence[Place]) -> np.ndarray:
            found = np.zeros(self.size, bool)
            for place in places:
                kept = np.moveaxis(np.asarray(flat[place.leaf]), place.axis, 0)
                np.logical_or.at(found, place.units, kept.reshape(len(kept), -1).any(axis=1))
            return found

        return any_of(self.made) & any_of(self.read)


@lru_cache(maxsize=64)
def rows(network: Network) -> tuple[Row, ...]:
    """The rows of units of a network that may be pruned, in the order of its program.

    Only where all that has to do with a unit was read, and its kernels may be pruned
    (``network.prunable``). Concatenated, padded and grouped channels stay, as inputs and outputs.

    Raises:
        SecateurError: where there are none, with the reason.
    """
    check_network(network)
    params, stats = jax.eval_shape(network.init, jax.random.key(0))
    channels = read_channels(network, params, stats)
    prunable = {k for k, m in flatten(network.prunable(params)).items() if m is not None}
    may = removable(channels)
    found, seen = [], set()
    for layer in channels.layers:
        n = layer.out_group
        if n in may and n not in seen:
            together = _together(channels, n)
            seen |= together
            row = _row(channels, together)
            if {place.leaf for place in (*row.made, *row.read)} <= prunable and row.read:
                found.append(row)
    if not found:
        fixed = {f"{g.members[0][0]}: {g.fixed}" for g in channels.groups if g.members and g.fixed}
        why = "; ".join(sorted(fixed)) or "it has no hidden layer that was read"
        raise SecateurError(
            f"{network.name} has no units that may be pruned ({why}); prune single weights instead."
        )
    return tuple(found)


def row_of(network: Network, name: str) -> Row:
    """The row of that name.

    Raises:
        SecateurError: for another name.
    """
    return lookup("row of units", name, {row.name: row for row in rows(network)})


def _together(channels: Channels, n: int) -> set[int]:
    """The groups that go with group ``n``: depthwise convolutions tie them."""
    found = {n}
    while True:
        more = {g for pair in channels.ties if found & set(pair) for g in pair}
        if more <= found:
            return found
        found |= more


def _row(channels: Channels, groups: set[int]) -> Row:
    size = channels.groups[min(groups)].size
    units = dict.fromkeys(groups, np.arange(size))
    for flat, parts in channels.parts.items():
        for k, part in enumerate(parts):
            if part in groups:
                box = np.indices([channels.groups[p].size for p in parts])
                units[flat] = box[k].ravel()
    made = [layer for layer in channels.layers if layer.out_group in groups]
    through = {layer.kernel for layer in made if layer.groups > 1 and layer.in_group in groups}
    read = [
        layer
        for layer in channels.layers
        if layer.in_group in units and layer.kernel not in through
    ]
    kernels = {layer.kernel for layer in (*made, *read)}
    return Row(
        made[0].kernel.rsplit("/", 1)[0],
        size,
        tuple(Place(l.kernel, l.out_axis, units[l.out_group]) for l in made),
        tuple(Place(l.kernel, l.in_axis, units[l.in_group]) for l in read),
        tuple(
            Place(leaf, axis, units[n])
            for n in sorted(units)
            for leaf, axis in channels.groups[n].members
            if leaf not in kernels
        ),
        tuple(sorted(through)),
    )


def _gone(row: Row, units: Sequence[int] | np.ndarray) -> np.ndarray:
    """bool (units,), after a look at the numbers."""
    chosen = np.asarray(units)
    numbers = np.issubdtype(chosen.dtype, np.integer) or chosen.size == 0
    if not numbers or chosen.min(initial=0) < 0 or chosen.max(initial=0) >= row.size:
        raise SecateurError(
            f"units of {row.name} are whole numbers from 0 to {row.size - 1}, not "
            f"{chosen.tolist()[:5]}; give those that go."
        )
    gone = np.zeros(row.size, bool)
    gone[chosen.astype(int)] = True
    return gone


def without(
    network: Network,
    mask: Mask,
    units: Mapping[str, Sequence[int] | np.ndarray],
    how: str = "whole",
) -> Mask:
    """The mask without the weights of some units.

    Args:
        units: row -> the units that go, by number.
        how: ``"whole"``: what makes them and what reads them; ``"incoming"``: what makes them.

    Raises:
        SecateurError: for an unknown row, unit or ``how``.
    """
    lookup("way to remove a unit", how, dict.fromkeys(HOW))
    flat = {k: None if m is None else np.array(m, bool) for k, m in flatten(mask).items()}
    for name, chosen in units.items():
        row = row_of(network, name)
        gone = _gone(row, chosen)
        for place in (*row.made, *(row.read if how == "whole" else ())):
            kept = flat[place.leaf]
            assert kept is not None
            _clear(kept, place, gone)
    return unflatten(flat, mask)


def silence(
    network: Network,
    params: Params,
    units: Mapping[str, Sequence[int] | np.ndarray],
    how: str = "whole",
) -> Params:
    """The parameters with some units silenced, as numpy arrays.

    With ``how="whole"`` a unit emits exactly 0: incoming weights, bias and, with batch norm, scale
    and shift are 0; and so are the weights that read it. ``"incoming"`` is the variant of
    Heitmann 2020 as written, a row of W set to 0: the bias stays, and behind a ReLU the unit emits
    relu(b) for every input.

    Raises:
        SecateurError: for an unknown row, unit or ``how``.
    """
    lookup("way to remove a unit", how, dict.fromkeys(HOW))
    flat = {k: None if p is None else np.array(p) for k, p in flatten(params).items()}
    for name, chosen in units.items():
        row = row_of(network, name)
        gone = _gone(row, chosen)
        for place in (*row.made, *((*row.read, *row.acts) if how == "whole" else ())):
            leaf = flat[place.leaf]
            assert leaf is not None
            _clear(leaf, place, gone)
    return unflatten(flat, params)


def _clear(leaf: np.ndarray, place: Place, gone: np.ndarray) -> None:
    np.moveaxis(leaf, place.axis, 0)[gone[place.units]] = 0
