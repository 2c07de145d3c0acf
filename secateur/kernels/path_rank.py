"""The rank of the path kernel, by counting: edges on paths less hidden units on paths.

Scaling what enters a hidden unit by c and what leaves it by 1/c changes no path: one direction
for each unit that J_pi does not see. The path vectors of a graph span its flows from input to
output, which have one condition for each inner unit and are otherwise free, so there is no other
direction (Gebhart et al. 2021; Neyshabur et al. 2015 for the symmetry). Units that a residual sum
adds up can only be scaled together and count once; a unit added to an input or to an output not at
all.

A channel of a convolution is one unit, whatever the number of its places. There the count is an
upper bound, reached unless a mask (or an image hardly larger than a kernel) leaves kernel entries
that share a channel but no path.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params, flatten, map_mask
from secateur.kernels.path import path_saliency
from secateur.structure.flow import reachable
from secateur.structure.walks import Step, walkways


def path_rank(network: Network, params: Params, stats: Stats, mask: Mask) -> int:
    """Live edges less live hidden units, "live": on at least one path whose value is not 0.

    A kept weight of 0 makes the paths through it 0 but moves them: if its paths are not 0
    otherwise, it adds one to the rank and ties no unit.

    Args:
        mask, params: concrete. Weights that may not be pruned count as not 0 whatever their values
            and are no edges.

    Raises:
        SecateurError: as `structure.walks.walkways`.
    """
    values = map_mask(
        lambda m, p: None if m is None else np.asarray(m) & (np.asarray(p) != 0), mask, params
    )
    live = _vector(reachable(network, params, stats, values).effective)
    return (
        int(live.sum())
        - _hidden(network, params, stats, mask, live)
        + _still(network, params, stats, mask, values)
    )


def _still(network: Network, params: Params, stats: Stats, mask: Mask, values: Mask) -> int:
    """Kept weights of 0 on paths that are not 0 otherwise."""
    zeros = _vector(mask) & ~_vector(values)
    if not zeros.any():
        return 0
    t = path_saliency(network, params, stats, mask).tree
    return int((zeros & (_vector(t) > 0)).sum())


def _vector(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in flatten(tree).values() if leaf is not None])


def _hidden(network: Network, params: Params, stats: Stats, mask: Mask, live: np.ndarray) -> int:
    """Units on live edges, those tied by sums counted once, without inputs and outputs."""
    ways = walkways(network, params, stats, mask)
    on = np.zeros(ways.units + 1, bool)  # reaches an output
    on[ways.outputs] = True
    made = np.zeros(ways.units + 1, bool)  # is reached from an input
    made[ways.inputs] = True
    for event in ways.events:
        if isinstance(event, Step):
            made[event.units] |= (_live(event, live) & made[event.sources][:, None]).any(0)
        else:
            made[event.units] |= made[event.pairs].any(1)
    parent = np.arange(ways.units + 1)

    def root(unit: int) -> int:
        while parent[unit] != unit:
            parent[unit] = parent[parent[unit]]
            unit = int(parent[unit])
        return unit

    for event in reversed(ways.events):
        if isinstance(event, Step):
            open_ = _live(event, live) & on[event.units]
            np.logical_or.at(on, event.sources, open_.any(1))
            if event.fixed is not None:  # no weight to make up for a scale: both ends as one
                for a, b in np.argwhere(open_ & made[event.sources][:, None]):
                    parent[root(int(event.sources[a]))] = root(int(event.units[b]))
            continue
        for (a, b), unit in zip(event.pairs, event.units):
            if on[unit]:
                on[a] = on[b] = True
                for one in (a, b):
                    if made[one]:
                        parent[root(int(one))] = root(int(unit))
    units = np.flatnonzero(on & made)
    ends = {root(int(u)) for u in (*ways.inputs, *ways.outputs)}
    return len({root(int(u)) for u in units[units > 0]} - ends)


def _live(step: Step, live: np.ndarray) -> np.ndarray:
    """(in, out): whether a live weight leads there; a fixed kernel's where it is not 0."""
    if step.fixed is not None:
        there = step.fixed > 0
    else:
        there = (step.entries >= 0) & np.append(live, False)[step.entries]
    return np.asarray(there.any(axis=0))
