"""The K highest scores, exactly, inside a compiled program, without sorting.

A float has an integer image with the same order. A threshold that leaves K is searched between two
integers: each step compares all scores with a number between them and counts. A sample says where
to begin, so that half a dozen passes over the scores do. K is data of the program, so one program
serves every round and every density.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from secateur.core.errors import lookup
from secateur.core.keys import Key

SAMPLE = 2048  # of more than four times as many scores

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


class _Bracket(NamedTuple):
    """``low`` leaves at least K, ``high`` at most K; beside them how many they leave."""

    low: jax.Array
    high: jax.Array
    at_low: jax.Array
    at_high: jax.Array


def _narrowed(images: jax.Array, keep: jax.Array, start: _Bracket) -> _Bracket:
    """The bracket when one end leaves exactly ``keep``, or when nothing lies between its ends.

    Two steps of three interpolate, as if scores lay evenly between the ends, which they nearly do
    once the ends are near; the third halves, so that none takes more than 3 passes a bit.
    """

    def going(state: tuple[_Bracket, jax.Array]) -> jax.Array:
        b, _ = state
        return (b.at_low != keep) & (b.at_high != keep) & (b.high - b.low > 1)

    def step(state: tuple[_Bracket, jax.Array]) -> tuple[_Bracket, jax.Array]:
        b, i = state
        span = b.high - b.low
        part = (b.at_low - keep).astype(jnp.float32) / (b.at_low - b.at_high).astype(jnp.float32)
        guess = jnp.where(
            i % 3 == 2, span // 2, (span.astype(jnp.float32) * part).astype(span.dtype)
        )
        middle = b.low + jnp.clip(guess, 1, span - 1)
        found = _count(images >= middle)
        up = found >= keep
        return _Bracket(
            jnp.where(up, middle, b.low),
            jnp.where(up, b.high, middle),
            jnp.where(up, found, b.at_low),
            jnp.where(up, b.at_high, found),
        ), i + 1

    return jax.lax.while_loop(going, step, (start, jnp.int32(0)))[0]


def _end(b: _Bracket, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
    exact = b.at_high == keep
    return jnp.where(exact, b.high, b.low), jnp.where(exact, b.at_high, b.at_low)


def threshold(images: jax.Array, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A t with exactly ``keep`` of ``images`` at or above it, and that number; where ties forbid
    it, the largest t that leaves more, and how many it leaves.

    Args:
        images: unsigned (n,), below the largest integer. keep: int32 (), at most n.
    """
    n, largest = images.size, ~jnp.zeros((), images.dtype)
    start = _Bracket(jnp.zeros((), images.dtype), largest, jnp.int32(n), jnp.int32(0))
    if n > 4 * SAMPLE:
        # The same question about a few of them says about where to look. The guess is checked, so
        # it costs two passes where it misleads.
        some = images[:: n // SAMPLE]
        m = some.size
        rank = keep.astype(jnp.float32) * (m / n)
        margin = 3 * jnp.sqrt(rank) + 2

        def guess(wanted: jax.Array) -> jax.Array:
            wanted = jnp.clip(wanted, 0, m).astype(jnp.int32)
            empty = _Bracket(start.low, start.high, jnp.int32(m), start.at_high)
            return _end(_narrowed(some, wanted, empty), wanted)[0]

        low, high = guess(rank + margin), guess(rank - margin)
        high = jnp.where(high == largest, high, high + 1)  # a tie at the border lies between
        at_low, at_high = _count(images >= low), _count(images >= high)
        start = _Bracket(
            jnp.where(at_low >= keep, low, start.low),
            jnp.where(at_high <= keep, high, start.high),
            jnp.where(at_low >= keep, at_low, start.at_low),
            jnp.where(at_high <= keep, at_high, start.at_high),
        )
    return _end(_narrowed(images, keep, start), keep)


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
        ties: a name in `TIES`. Random ties are ranked by 31 random bits and then by position, so
            that of n equal ones a pair is unfairly ordered with probability below n / 2**31.
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
    t, found = threshold(images, keep)
    if ties == "threshold-keep":
        return (images >= t) & alive
    if ties == "threshold-drop":
        return jnp.where(found == keep, images >= t, images > t) & alive
    if ties == "random" and key is None:
        raise TypeError("random ties need a key")

    def tied() -> jax.Array:
        above, equal = images > t, (images == t) & alive
        need = keep - _count(above)
        if ties == "random" and key is not None:
            bits = jnp.where(equal, jax.random.bits(key, images.shape, jnp.uint32) >> 1, 0)
            u, _ = threshold(bits, need)
            over = equal & (bits > u)
            return above | over | _first(equal & (bits == u), need - _count(over))
        return above | _first(equal, need)

    return jax.lax.cond(found == keep, lambda: images >= t, tied)


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
