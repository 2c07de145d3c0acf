"""Branches carried through their levels with a stand-in for training, so that laws cost nothing."""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np

from secateur.core.network import Network
from secateur.core.trees import apply_mask
from secateur.networks.mlp import mlp
from secateur.prune.branches import BRANCHES
from secateur.prune.lottery import Before, Dense, Start, begin, rates_of, start

LEVELS = 4
REWIND = 300


def net() -> Network:
    return mlp(30, 20, input_shape=(8, 8, 1))


def trained(params: Any, mask: Any, *path: Any) -> Any:
    """What training might leave: every weight moved, units of very different sizes; masked."""
    rng = np.random.default_rng([zlib.crc32(str(part).encode()) for part in path])

    def move(p: Any) -> np.ndarray:
        units = np.exp(1.5 * rng.standard_normal(np.shape(p)[-1]))
        moved = (np.asarray(p) + 0.1 * rng.standard_normal(np.shape(p))) * units
        return moved.astype(np.float32)

    return apply_mask(mask, jax.tree.map(move, params))


class Chain(NamedTuple):
    """Starts of levels 1, 2, ... of a branch, what each mask followed, and the dense run."""

    starts: list[Start]
    previous: list[Before]
    dense: Dense
    ones: Any


@cache
def chain(name: str, seed: int = 0, scope: str = "layer", rate: float = 0.3) -> Chain:
    """Levels 1 to LEVELS of a branch; the output layer goes at half the rate, or at none."""
    network = net()
    initial, stats, ones = begin(network, seed)
    rates = rates_of(network, rate, rate / 2 if scope == "layer" else 0.0)
    late = trained(initial, ones, "step k", seed)
    end = trained(late, ones, "dense", seed)
    dense = Dense(initial, stats, end, (late, stats))
    level_0 = Before(ones, end, stats)
    branch = BRANCHES[name]
    own, found, followed = level_0, [], []
    for level in range(1, LEVELS + 1):
        previous = {"own": own, "ticket": level_0, "dense": level_0}[branch.follows]
        if branch.follows == "ticket" and level > 1:
            ticket = chain("rewind", seed, scope, rate).starts[level - 2]
            end = trained(ticket.params, ticket.mask, "rewind", seed, level - 1)
            previous = Before(ticket.mask, end, stats)
        one = start(branch, level, seed, network, dense, previous, rates, scope, REWIND)
        own = Before(one.mask, trained(one.params, one.mask, name, seed, level), stats)
        found.append(one)
        followed.append(previous)
    return Chain(found, followed, dense, ones)
