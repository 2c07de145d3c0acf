"""What filters in the plane have explored, where they gather, and on what they are right.

XORD's four patterns are directions of the plane, 90 degrees apart, so each measure is a pure
function of the filters; data enter through the patterns that an input contains, of which there are
15 sets, so that errors are exact (Brutzkus & Globerson 2019).

Filters are kernels (2, k), columns the filters; pairs of them are the network's parameters.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from secateur.core.trees import Params
from secateur.data.toys import PATTERNS, TYPES, condensed, labels_of
from secateur.networks.xord import function


class Gathered(NamedTuple):
    """How the large filters of a kernel lie.

    Attributes:
        angle: mean angle to the nearest pattern, in degrees: 22.5 for directions at random.
        widest: the largest such angle.
        large: how many filters count, those of at least ``least`` times the largest norm.
        shares: of the large filters at each pattern, (4,).
    """

    angle: jax.Array
    widest: jax.Array
    large: jax.Array
    shares: jax.Array


def nearest(kernel: jax.Array) -> jax.Array:
    """The pattern at the smallest angle of each filter, 0 to 3: (k,)."""
    return jnp.argmax(PATTERNS @ kernel, axis=0)


def angles(kernel: jax.Array) -> jax.Array:
    """Degrees from each filter to its nearest pattern, 0 to 45; 45 for one of length 0: (k,)."""
    # Lengths along the two axes on which the patterns lie: exact where a cosine loses its digits.
    ends = jnp.sort(jnp.abs(PATTERNS[:2] @ kernel), axis=0)
    found = jnp.degrees(jnp.arctan2(ends[0], ends[1]))
    return jnp.where(ends[1] > 0, found, 45)


def explored(params: Params) -> jax.Array:
    """Whether filters for are nearest to both v_1 and v_3, and filters against to v_2 and v_4.

    At initialisation this is what a network can grow from: later steps move filters towards the
    patterns that they are near to.
    """

    def has(side: str, pattern: int) -> jax.Array:
        return jnp.any(nearest(params[side]["kernel"]) == pattern)

    return has("for", 0) & has("for", 2) & has("against", 1) & has("against", 3)


def chance_explored(filters: int) -> float:
    """[1 - 2 (3 / 4)^k + 2^-k]^2, the probability of `explored` for directions at random."""
    return (1 - 2 * 0.75**filters + 0.5**filters) ** 2


def gathered(kernel: jax.Array, least: float = 0.2) -> Gathered:
    """Clustering: the filters of at least ``least`` times the largest norm, and the patterns."""
    norms = jnp.linalg.norm(kernel, axis=0)
    large = norms >= least * jnp.max(norms)
    off = angles(kernel)
    count = jnp.sum(large)
    at = (nearest(kernel)[None, :] == jnp.arange(4)[:, None]) & large
    return Gathered(
        jnp.sum(off * large) / count,
        jnp.max(jnp.where(large, off, 0)),
        count,
        jnp.sum(at, axis=1) / count,
    )


def mistaken(params: Params) -> jax.Array:
    """Which of the 15 sets of patterns (`data.toys.TYPES`) are misclassified: (15,) booleans.

    An output of exactly 0 is no answer, hence a mistake on either side.
    """
    right = jnp.asarray(labels_of(TYPES)) * function(params, condensed(TYPES)) > 0
    return ~right


def error_rate(params: Params, probabilities: jax.Array) -> jax.Array:
    """The exact share of inputs that are misclassified.

    Args:
        probabilities: of each of the 15 types, (15,), e.g. `data.toys.type_probabilities`.
    """
    return jnp.sum(jnp.where(mistaken(params), probabilities, 0))
