"""The K highest scores, exactly, inside a compiled program, without sorting them.

A float has an integer image with the same order. A threshold that leaves K is searched between two
integers: each step compares all scores with a number between them and counts. A sample says where
to begin, so that about ten passes over the scores do. K is data of the program, so one program
serves every round and every density.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from secateur.core.errors import lookup
from secateur.core.keys import Key

SAMPLE = 2048  # scores, or up to twice as many, that say where to begin

TIES = {
    "index": "of equal scores the first in the order of layers and places are kept",
    "random": "of equal scores any are kept, drawn by key",
    "threshold-drop": "equal scores at the border all go (Synaptic-Flow, NTK-SAP): fewer than K",
    "threshold-keep": "equal scores at the border all stay (mil-ad/snip, FORCE): more than K",
}


def _bits(x: jax.Array) -> jax.Array:
    unsigned: Any = jnp.dtype(f"uint{x.dtype.itemsize * 8}")
    return jax.lax.bitcast_convert_type(x, unsigned)


def image(scores: jax.Array) -> jax.Array:
    """Unsigned integers in the order of the floats: one image for -0.0 and 0.0, -inf's above 0.

    Comparisons of integers see subnormal floats, which comparisons of floats may flush to 0.
    NaN has an image, too, but no meaning: who calls refuses it.
    """
    bits = _bits(scores)
    sign = _bits(jnp.asarray(-0.0, scores.dtype))
    bits = jnp.where(bits == sign, jnp.zeros_like(bits), bits)
    return jnp.where(bits & sign != 0, ~bits, bits | sign)


def count_true(found: jax.Array) -> jax.Array:
    """How many are true, or the sum of integers 0 and 1; int32.

    XLA's CPU backend adds a long array one by one, after it has written it down as integers. The
    columns of a few long rows it compares and adds in vectors, in a quarter of the time; the bytes
    keep it from making one sum of the two again.
    """
    flat, rows = found.ravel(), 32
    width = flat.size // rows
    columns = jnp.sum(flat[: rows * width].reshape(rows, width), axis=0, dtype=jnp.int8)
    return jnp.sum(columns, dtype=jnp.int32) + jnp.sum(flat[rows * width :], dtype=jnp.int32)


def unranked(scores: jax.Array, alive: jax.Array) -> jax.Array:
    """How many of the competing scores are NaN or infinite, int32."""
    infinite = _bits(jnp.asarray(jnp.inf, scores.dtype))  # NaN has its exponent
    odd = (_bits(scores) & infinite) == infinite
    # A product of bytes is computed in vectors on a CPU, an `and` of booleans is not.
    return count_true(alive.astype(jnp.int8) * odd.astype(jnp.int8))


class _Bracket(NamedTuple):
    """``low`` leaves at least K, ``high`` at most K; beside them how many they leave."""

    low: jax.Array
    high: jax.Array
    at_low: jax.Array
    at_high: jax.Array


def _within(b: _Bracket, middle: jax.Array, found: jax.Array, keep: jax.Array) -> _Bracket:
    """The bracket when ``middle`` leaves ``found``; never a wider one."""
    low, high = (found >= keep) & (middle > b.low), (found <= keep) & (middle < b.high)
    return _Bracket(
        jnp.where(low, middle, b.low),
        jnp.where(high, middle, b.high),
        jnp.where(low, found, b.at_low),
        jnp.where(high, found, b.at_high),
    )


def _narrowed(images: jax.Array, keep: jax.Array, start: _Bracket) -> _Bracket:
    """The bracket when one end leaves exactly ``keep``, or when nothing lies between its ends.

    Steps interpolate, as if scores lay evenly between the ends, which they nearly do once the ends
    are near. An end that stays where it is while the other moves again and again counts half each
    time (the Illinois rule), or the other would creep. Each eighth step halves, so that none takes
    more than 8 passes a bit.
    """

    def going(state: tuple[_Bracket, jax.Array, jax.Array]) -> jax.Array:
        b, *_ = state
        return (b.at_low != keep) & (b.at_high != keep) & (b.high - b.low > 1)

    def step(
        state: tuple[_Bracket, jax.Array, jax.Array],
    ) -> tuple[_Bracket, jax.Array, jax.Array]:
        b, streak, i = state  # streak: how often the low end moved in a row; below 0 the high end
        span = b.high - b.low
        over = (b.at_low - keep) * jnp.exp2(jnp.minimum(streak + 1, 0).astype(jnp.float32))
        under = (keep - b.at_high) * jnp.exp2(jnp.minimum(1 - streak, 0).astype(jnp.float32))
        guess = (span.astype(jnp.float32) * (over / (over + under))).astype(span.dtype)
        middle = b.low + jnp.clip(jnp.where(i % 8 == 7, span // 2, guess), 1, span - 1)
        found = count_true(images >= middle)
        streak = jnp.where(found > keep, jnp.maximum(streak, 0) + 1, jnp.minimum(streak, 0) - 1)
        return _within(b, middle, found, keep), streak, i + 1

    return jax.lax.while_loop(going, step, (start, jnp.int32(0), jnp.int32(0)))[0]


def threshold(images: jax.Array, keep: jax.Array, above: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A t > 0 with exactly ``keep`` of ``images`` at or above it, and that number; where ties
    forbid it, the largest t that leaves more, and how many it leaves.

    Args:
        images: unsigned (n,), below the largest integer.
        keep: int32 (), at most ``above``, which is how many of the images are not 0.
    """
    least, most = jnp.ones((), images.dtype), ~jnp.zeros((), images.dtype)
    b = _Bracket(least, most, above, jnp.int32(0))
    # Where K comes among a few of them says about where to look. Both guesses are checked, so they
    # cost two passes where they mislead.
    some = jnp.sort(images[:: max(1, images.size // SAMPLE)])
    competing, share = count_true(some > 0), keep / jnp.maximum(above, 1)
    rank, margin = competing * share, 1.5 * jnp.sqrt(competing * share * (1 - share)) + 1
    # One higher at the upper end: a tie at the border lies between the two.
    for guess, beyond in ((rank + margin, 0), (rank - margin, 1)):
        leaving = jnp.clip(guess, 1, jnp.maximum(competing, 1)).astype(jnp.int32)
        middle = jnp.clip(some[some.size - leaving] + beyond * least, least, most)
        b = _within(b, middle, count_true(images >= middle), keep)
    b = _narrowed(images, keep, b)
    exact = b.at_high == keep
    return jnp.where(exact, b.high, b.low), jnp.where(exact, b.at_high, b.at_low)


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
        found = count_true(candidates & (places < middle))
        enough = found >= need
        return (
            jnp.where(enough, low, middle + 1),
            jnp.where(enough, middle, high),
            jnp.where(enough, found, need + 1),
        )

    start = (jnp.int32(0), jnp.int32(n), count_true(candidates))
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
    return top_of([scores], [alive], keep, ties, key)[0]


def top_of(
    scores: list[jax.Array],
    alive: list[jax.Array],
    keep: jax.Array | int,
    ties: str = "index",
    key: Key | None = None,
) -> list[jax.Array]:
    """`top` of several arrays ranked together, in their order; bool arrays of their shapes."""
    lookup("rule of ties", ties, TIES)
    dtype = reduce(jnp.promote_types, (s.dtype for s in scores))
    images = jnp.concatenate(
        # Who is not alive is below the image of every float but NaN.
        [jnp.where(a, image(s.astype(dtype)), 0).ravel() for s, a in zip(scores, alive)]
    )
    chosen, cuts, at = _chosen(images, jnp.asarray(keep, jnp.int32), ties, key), [], 0
    for s in scores:
        cuts.append(chosen[at : at + s.size].reshape(s.shape))
        at += s.size
    return cuts


def _chosen(images: jax.Array, keep: jax.Array, ties: str, key: Key | None) -> jax.Array:
    """`top` of scores that have become images, 0 where they do not compete."""
    if images.size == 0:
        return images > 0
    above = count_true(images > 0)
    keep = jnp.minimum(keep, above)
    t, found = threshold(images, keep, above)
    if ties == "threshold-keep":
        return images >= t
    if ties == "threshold-drop":
        return jnp.where(found == keep, images >= t, images > t)
    if ties == "random" and key is None:
        raise TypeError("random ties need a key")

    def tied() -> jax.Array:
        over, equal = images > t, images == t
        need = keep - count_true(over)
        if ties == "random" and key is not None:
            bits = jnp.where(equal, (jax.random.bits(key, images.shape, jnp.uint32) >> 1) + 1, 0)
            u, _ = threshold(bits, need, found - count_true(over))
            over, equal = over | (bits > u), bits == u
        return over | _first(equal, keep - count_true(over))

    return jax.lax.cond(found == keep, lambda: images >= t, tied)
