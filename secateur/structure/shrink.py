"""The exact smaller network of a mask: rows and columns that are entirely masked are cut out.

A hidden unit stays if a path of surviving weights leads from it to an output. One that stays
without live inputs is a trainable constant and keeps its bias. A unit that no path leads away from
gets a gradient of exactly 0, so an optimiser without weight decay never moves what feeds it: it is
cut out too and keeps its starting values. An input feature stays if a surviving weight leads from
it to a unit that stays. Training the smaller network and scattering back is therefore the same
computation, up to the order of sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params, apply_mask, flatten, map_mask, unflatten
from secateur.structure.reader import Dense, Structure, depends, read

GRAIN = 32  # widths are rounded up to a multiple of it: 8 float32 of AVX times 4 registers


@dataclass(frozen=True)
class Selection:
    """Which units of each group are trained.

    Attributes:
        axes: leaf -> axis -> number of the group, for every cut axis.
        units: group -> indices that stay, increasing.
        live: group -> how many of them the mask needs; the rest fill up to the rounded width.
        sizes: group -> full width.
        input_group: the group of the flattened input, if it is cut.
        names: group -> readable name.
        statistics: as ``axes``, of the leaves of the batch statistics.
    """

    axes: Mapping[str, Mapping[int, int]]
    units: Mapping[int, np.ndarray]
    live: Mapping[int, int]
    sizes: Mapping[int, int]
    input_group: int | None
    names: Mapping[int, str]
    statistics: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    def widths(self) -> dict[str, dict[str, int]]:
        """Full, live and trained width of each cut axis, by name."""
        return {
            self.names[g]: {"full": self.sizes[g], "live": self.live[g], "trained": len(u)}
            for g, u in self.units.items()
        }

    def features(self) -> np.ndarray | None:
        """Indices into the flattened input that stay, or None for all of it."""
        return None if self.input_group is None else self.units[self.input_group]

    def _index(self, name: str, shape: tuple[int, ...]) -> tuple[Any, ...]:
        return _places(self.axes[name], self.units, shape)

    def take(self, tree: Any) -> Any:
        """The smaller tree (parameters or mask), as numpy arrays."""
        flat = {
            name: leaf
            if leaf is None or name not in self.axes
            else np.asarray(leaf)[self._index(name, np.shape(leaf))]
            for name, leaf in flatten(tree).items()
        }
        return unflatten(flat, tree)

    def take_statistics(self, stats: Stats) -> Stats:
        """The smaller batch statistics, as numpy arrays."""
        flat = {
            name: np.asarray(leaf)[_places(self.statistics[name], self.units, np.shape(leaf))]
            if name in self.statistics
            else leaf
            for name, leaf in flatten(stats).items()
        }
        return unflatten(flat, stats)

    def put(self, small: Any, full: Any) -> Any:
        """``full`` with the trained places overwritten from ``small``, as numpy arrays."""
        flat, parts = flatten(full), flatten(small)
        for name in flat:
            if name in self.axes:
                leaf = np.array(flat[name])
                leaf[self._index(name, leaf.shape)] = np.asarray(parts[name])
                flat[name] = leaf
            elif parts[name] is not None:
                flat[name] = np.asarray(parts[name])
        return unflatten(flat, full)


def _places(
    cut: Mapping[int, int], units: Mapping[int, np.ndarray], shape: tuple[int, ...]
) -> tuple[Any, ...]:
    """The index of what stays of a leaf of ``shape``, of which the axes in ``cut`` are cut."""
    if len(cut) == 1:
        return tuple(units[cut[k]] if k in cut else slice(None) for k in range(len(shape)))
    return np.ix_(*(units[cut[k]] if k in cut else np.arange(n) for k, n in enumerate(shape)))


@dataclass(frozen=True)
class Kept:
    """The units each mask needs, before widths are rounded (and shared among lanes)."""

    structure: Structure
    needed: Mapping[int, np.ndarray]  # group -> bool (size,)


@lru_cache(maxsize=64)
def _read(network: Network) -> tuple[Structure, str | None]:
    params, stats = jax.eval_shape(network.init, jax.random.key(0))
    structure = read(network, params, stats)
    return structure, _other_training(network, structure, params, stats)


def _other_training(
    network: Network, structure: Structure, params: Params, stats: Stats
) -> str | None:
    """Why training mode is not the function that `read` saw, or None."""
    if jax.tree.leaves(stats):
        return "it has batch statistics"
    x = jax.ShapeDtypeStruct((2, *network.input_shape), jnp.result_type(float))
    key = jax.eval_shape(lambda: jax.random.key(0))
    jaxpr = jax.make_jaxpr(network.train)(params, stats, x, key).jaxpr
    if any(depends(jaxpr, [v is jaxpr.invars[-1] for v in jaxpr.invars])):
        return "its training mode draws random numbers"
    if read(replace(network, apply=_training_mode(network)), params, stats) != structure:
        return "its training mode is another function"
    return None


def _training_mode(network: Network) -> Any:
    return lambda params, stats, x: network.train(params, stats, x, jax.random.key(0))[0]


def dense_layers(network: Network) -> tuple[Dense, ...]:
    """The layers of the network that are one product each, of a kernel used nowhere else."""
    structure, _ = _read(network)
    return tuple(layer for layer in structure.layers if layer.kernel not in structure.unread)


def reason_full(network: Network) -> str | None:
    """Why no mask of this network can be trained as a smaller one, or None where it can."""
    structure, random = _read(network)
    if random:
        return random
    if not _removable(structure):
        fixed = [f"{g.members[0][0]}: {g.fixed}" for g in structure.groups if g.members and g.fixed]
        return "; ".join(fixed) or "no dense layer was found"
    return None


def _removable(structure: Structure) -> list[int]:
    """Groups whose units may go: not fixed, and every parameter that has them was read."""
    return [
        n
        for n, group in enumerate(structure.groups)
        if group.fixed is None
        and group.members
        and not any(leaf in structure.unread for leaf, _ in group.members)
    ]


def kept(network: Network, mask: Mask, start: Params, decays: bool) -> Kept:
    """The units that training under ``mask`` needs.

    Args:
        decays: the optimiser moves weights that have no gradient (weight decay): then units with
            a surviving weight or a non-zero bias stay as well, path or no path.
    """
    structure, _ = _read(network)
    flat = flatten(mask)
    masks = {k: None if m is None else np.asarray(m) for k, m in flat.items()}
    values = flatten(start)
    removable = set(_removable(structure))
    needed = {
        n: np.full(group.size, n not in removable) for n, group in enumerate(structure.groups)
    }

    def weights(layer: Any) -> np.ndarray:
        m = masks.get(layer.kernel)
        if m is None:
            m = np.ones(np.shape(values[layer.kernel]), bool)
        return m if layer.in_axis == 0 else m.T

    if decays:
        for layer in structure.layers:
            needed[layer.out_group] |= weights(layer).any(axis=0)
            if not structure.groups[layer.in_group].is_input:
                needed[layer.in_group] |= weights(layer).any(axis=1)
        for n in removable:
            for leaf, axis in structure.groups[n].members:
                if masks.get(leaf) is None:
                    v = np.moveaxis(np.asarray(values[leaf]), axis, 0)
                    needed[n] |= (v.reshape(len(v), -1) != 0).any(axis=1)
    changed = True
    while changed:  # a fixpoint, so that any order and any sum of branches is right
        changed = False
        for layer in reversed(structure.layers):
            found = weights(layer)[:, needed[layer.out_group]].any(axis=1)
            if (found & ~needed[layer.in_group]).any():
                needed[layer.in_group] |= found
                changed = True
    return Kept(structure, {n: needed[n] for n in sorted(removable)})


def _rounded(count: int, size: int, grain: int) -> int:
    return min(size, max(grain, math.ceil(count / grain) * grain))


def select(kepts: Sequence[Kept], grain: int = GRAIN) -> list[Selection]:
    """One selection a mask, all of the same widths, so that one compiled program serves them all.

    Widths are rounded up to multiples of ``grain``; the extra places are filled with units that
    the mask does not need, whose weights are masked: nothing is padded, nothing changes.
    """
    first = kepts[0]
    groups = first.structure.groups
    width = {
        n: _rounded(max(int(k.needed[n].sum()) for k in kepts), groups[n].size, grain)
        for n in first.needed
    }
    cut = [n for n in width if width[n] < groups[n].size]
    axes: dict[str, dict[int, int]] = {}
    for n in cut:
        for leaf, axis in groups[n].members:
            axes.setdefault(leaf, {})[axis] = n
    names = {n: _row_name(first.structure, n) for n in first.needed}
    result = []
    for one in kepts:
        units, live = {}, {}
        for n in cut:
            needed = one.needed[n]
            spare = np.flatnonzero(~needed)[: width[n] - int(needed.sum())]
            units[n] = np.sort(np.concatenate([np.flatnonzero(needed), spare]))
            live[n] = int(needed.sum())
        input_group = next((n for n in cut if groups[n].is_input), None)
        sizes = {n: groups[n].size for n in cut}
        result.append(Selection(axes, units, live, sizes, input_group, names))
    return result


def _row_name(structure: Structure, n: int) -> str:
    """The layer whose outputs these units are, the first of several that are added."""
    if structure.groups[n].is_input:
        return "input"
    makers = [layer.kernel for layer in structure.layers if layer.out_group == n]
    return (makers or [structure.groups[n].members[0][0]])[0].rsplit("/", 1)[0]


def agrees(network: Network, selection: Selection, start: Params, mask: Mask) -> str | None:
    """Why the smaller network is not the same function as the masked one, or None where it is.

    Checks shapes and, on two random inputs, values: a network that bakes a width into its code
    (1/sqrt(width), fixed feature counts) is found out here, and then trained at full size. What is
    not pruned is moved a little first: biases of 0 would hide a width that multiplies them.
    """
    rng = np.random.default_rng(0)
    nudge = lambda p: (p + 0.1 * rng.standard_normal(np.shape(p))).astype(np.asarray(p).dtype)
    moved = map_mask(
        lambda m, p: nudge(p) if m is None and p is not None else p, mask, jax.device_get(start)
    )
    masked = apply_mask(mask, moved)
    x = rng.standard_normal((2, math.prod(network.input_shape)))
    x = x.astype(np.asarray(jax.tree.leaves(start)[0]).dtype)
    features = selection.features()
    full = x.reshape(2, *network.input_shape)
    for function in (network.apply, _training_mode(network)):
        try:
            small = function(selection.take(masked), {}, jnp.asarray(_cut(full, features)))
        except Exception as error:  # whatever a user's network raises on a shape it did not expect
            return f"it does not run on smaller widths ({type(error).__name__})"
        whole = function(masked, {}, jnp.asarray(full))
        scale = float(jnp.max(jnp.abs(whole))) + 1e-30
        same_shape = small.shape == whole.shape
        if not (same_shape and float(jnp.max(jnp.abs(small - whole))) <= 1e-3 * scale):
            return "its function depends on its widths"
    return None


def _cut(x: np.ndarray, features: np.ndarray | None) -> np.ndarray:
    return x if features is None else x.reshape(len(x), -1)[:, features]
