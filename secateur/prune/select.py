"""The K highest scores, exactly, inside a compiled program, without sorting.

A float has an integer image with the same order. The K-th largest image is found bit by bit: does a
threshold with this bit set still leave at least K at or above it? That is a compare-and-count over
the scores for each bit, at most 32 for float32, ended as soon as exactly K are left. K is data of
the program, so one program serves every round and every density.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from secateur.core.errors import lookup
from secateur.core.keys import Key

TIES = {
    "index": "of equal scores the first in the order of layers and places are kept",
    "random": "of equal scores any are kept, drawn by key",
    "threshold-drop": "equal scores at the border all go (Synaptic-Flow, NTK-SAP): fewer than K",
    "threshold-keep": "equal scores at the border all stay (mil-ad/snip, FORCE): more than K",
}


def image(scores: jax.Array) -> jax.Array:
    """Unsigned integers in the order of the floats: one image for -0.0 and 0.0, -inf's above 0.

    Comparisons of integers see subnormal floats, which comparisons of floats may flush to 0.
    NaN has an image, too, but no meaning: who calls refuses it.
    """
    unsigned: Any = jnp.dtype(f"uint{scores.dtype.itemsize * 8}")
    bits = jax.lax.bitcast_convert_type(scores, unsigned)
    sign = jnp.asarray(1, unsigned) << (scores.dtype.itemsize * 8 - 1)
    bits = jnp.where(bits == sign, jnp.zeros_like(bits), bits)
    return jnp.where(bits & sign != 0, ~bits, bits | sign)


def _count(found: jax.Array) -> jax.Array:
    return jnp.sum(found, dtype=jnp.int32)


def threshold(images: jax.Array, keep: jax.Array) -> jax.Array:
    """A t with exactly ``keep`` of ``images`` at or above it; where ties forbid that, the largest
    t that leaves more.

    Args:
        images: unsigned (n,). keep: int32 (), at most n.
    """
    bits = images.dtype.itemsize * 8
    one = jnp.asarray(1, images.dtype)

    def going(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        bit, _, found = state
        return (bit >= 0) & (found != keep)

    def step(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        bit, t, found = state
        candidate = t | (one << bit.astype(images.dtype))
        above = _count(images >= candidate)
        taken = above >= keep
        return bit - 1, jnp.where(taken, candidate, t), jnp.where(taken, above, found)

    start = (jnp.asarray(bits - 1, jnp.int32), jnp.zeros((), images.dtype), jnp.int32(images.size))
    return jax.lax.while_loop(going, step, start)[1]


def _first(candidates: jax.Array, need: jax.Array) -> jax.Array:
    """The first ``need`` true places; a bisection over positions that ends at once where all are
    needed, which is the ordinary case."""
    n = candidates.size
    places = jnp.arange(n, dtype=jnp.int32)

    def going(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        low, high, found = state
        return (found != need) & (low < high)

    def step(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        low, high, _ = state  # at least `need` lie before `high`, fewer before `low`
        middle = low + (high - low) // 2
        found = _count(candidates & (places < middle))
        enough = found >= need
        return (
            jnp.where(enough, low, middle + 1),
            jnp.where(enough, middle, high),
            jnp.where(enough, found, need + 1),
        )

    start = (jnp.int32(0), jnp.int32(n), _count(candidates))
    return candidates & (places < jax.lax.while_loop(going, step, start)[1])


def top(
    scores: jax.Array,
    alive: jax.Array,
    keep: jax.Array | int,
    ties: str = "index",
    key: Key | None = None,
) -> jax.Array:
    """The ``keep`` highest scores among the places that are alive.

    The same as a stable full sort of ``-scores`` cut after ``keep``, also with masses of ties.
    Works under jit and vmap, with ``keep`` traced.

    Args:
        scores: float (n,), any width; not NaN where alive. Other places are ignored.
        alive: bool (n,): who competes.
        keep: how many stay; all that are alive where it is more than these.
        ties: a name in `TIES`. Random ties are ranked by 32 random bits and then by position, so
            that of n equal ones a pair is unfairly ordered with probability below n / 2**32.
        key: for random ties.

    Returns:
        bool (n,): ``keep`` true places, except with the two thresholds of published codes.

    Raises:
        SecateurError: for an unknown rule of ties.
    """
    lookup("rule of ties", ties, TIES)
    if scores.size == 0:
        return alive
    keep = jnp.asarray(keep, jnp.int32)
    keep = jnp.minimum(keep, _count(alive))
    images = jnp.where(alive, image(scores), 0)  # below the image of every float but NaN
    t = threshold(images, keep)
    above, equal = images > t, (images == t) & alive
    need = keep - _count(above)
    if ties == "threshold-keep":
        return above | (equal & (need > 0))
    if ties == "threshold-drop":
        return above | (equal & (need == _count(equal)))
    if ties == "random":
        if key is None:
            raise TypeError("random ties need a key")

        def drawn() -> jax.Array:
            bits = jnp.where(equal, jax.random.bits(key, images.shape, jnp.uint32), 0)
            u = threshold(bits, need)
            over = bits > u
            return over | _first(equal & (bits == u), need - _count(over))

        chosen = jax.lax.cond(need == _count(equal), lambda: equal, drawn)
        return above | chosen
    return above | _first(equal, need)


def top_of(
    scores: list[jax.Array],
    alive: list[jax.Array],
    keep: jax.Array | int,
    ties: str = "index",
    key: Key | None = None,
) -> list[jax.Array]:
    """`top` of several arrays ranked together, in their order; bool arrays of their shapes."""
    dtype = reduce(jnp.promote_types, (s.dtype for s in scores))
    chosen = top(
        jnp.concatenate([s.ravel().astype(dtype) for s in scores]),
        jnp.concatenate([a.ravel() for a in alive]),
        keep,
        ties,
        key,
    )
    cuts, at = [], 0
    for s in scores:
        cuts.append(chosen[at : at + s.size].reshape(s.shape))
        at += s.size
    return cuts
