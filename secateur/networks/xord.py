"""The network of the XORD problem: filters in the plane, pooling, a fixed readout of both signs.

    N(x) = sum_i max_j relu(w_i.x_j) - max_j relu(u_i.x_j),    x_j in {-1, 1}^2

k filters w vote for, k filters u against; the sign of N is the class. The two pairs of equal signs
and their opposites are four points of the plane, so filters, what they have explored and where they
gather can be drawn as they are (Brutzkus & Globerson 2019).
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp

from secateur.core.errors import SecateurError
from secateur.core.keys import Key, fold
from secateur.core.network import Network, Stats
from secateur.core.trees import Params


def function(params: Params, x: jax.Array) -> jax.Array:
    """N at inputs (n, pairs, 2): (n,). A pair of zeros counts for nothing."""

    def votes(side: str) -> jax.Array:
        return jnp.sum(jnp.max(jax.nn.relu(x @ params[side]["kernel"]), axis=-2), axis=-1)

    return votes("for") - votes("against")


def small_deviation(filters: int) -> float:
    """c / (16 k^(3/2)) with c = 1 / 410: initial weights as small as the theorems ask."""
    return 1 / (410 * 16 * filters**1.5)


def draw(key: Key, filters: int, deviation: float | None = None) -> Params:
    """Filters ``for/kernel`` and ``against/kernel``, (2, k), N(0, deviation^2)."""
    size = small_deviation(filters) if deviation is None else deviation
    return {
        side: {"kernel": size * jax.random.normal(fold(key, side), (2, filters))}
        for side in ("for", "against")
    }


@cache
def xord(pairs: int = 6, filters: int = 32, deviation: float | None = None) -> Network:
    """The network of so many filters a side; both kernels (2, k) may be pruned, one output.

    Args:
        deviation: of the initial weights; by default `small_deviation`.

    Raises:
        SecateurError: for fewer than one pair or filter.
    """
    if min(pairs, filters) < 1:
        raise SecateurError(
            f"a network for XORD has at least one pair and one filter, not {pairs} and {filters}."
        )

    def init(key: Key) -> tuple[Params, Stats]:
        return draw(key, filters, deviation), {}

    def apply(params: Params, stats: Stats, x: jax.Array) -> jax.Array:
        return function(params, x)[:, None]

    def train(params: Params, stats: Stats, x: jax.Array, key: Key) -> tuple[jax.Array, Stats]:
        return apply(params, stats, x), stats

    return Network(f"xord-{pairs}-{filters}", (pairs, 2), 1, init, apply, train)
