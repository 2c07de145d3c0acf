"""Full-batch gradient descent on XORD's hinge loss, as in Brutzkus & Globerson 2019."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.quadratic import ArrayLike
from secateur.core.trees import Params
from secateur.data.toys import condensed, present
from secateur.networks.xord import function

STEPS = 25_830  # 63 times 410


class Separated(NamedTuple):
    """A finished training.

    Attributes:
        params: filters at the end.
        loss: at the end.
        fitted: no training error: y N(x) > 0 at every example.
        steps: taken until the gradient was 0, or all.
        path: filters at the start and after each part, if they were asked for: each leaf with a
            first axis of rows, else of none.
    """

    params: Params
    loss: jax.Array
    fitted: jax.Array
    steps: jax.Array
    path: Params


def hinge(params: Params, x: jax.Array, y: jax.Array, gamma: ArrayLike = 8.0) -> jax.Array:
    """Mean over positives of max(0, gamma - N) plus mean over negatives of max(0, 1 + N).

    Args:
        x, y: (n, pairs, 2), (n,) of 1 and -1, both among them.
        gamma: the margin of positives, at least 1; the theorems ask for 8.
    """
    n = function(params, x)
    positive = y > 0
    lost = jnp.where(positive, jax.nn.relu(gamma - n), jax.nn.relu(1 + n))
    part = lambda members: jnp.sum(lost * members) / jnp.sum(members)
    return part(positive) + part(~positive)


def usual_rate(filters: int) -> float:
    """4 / (410 k)."""
    return 4 / (410 * filters)


@partial(jax.jit, static_argnames=["rows"])
def separate(
    start: Params,
    x: jax.Array,
    y: jax.Array,
    *,
    rate: ArrayLike,
    gamma: ArrayLike = 8.0,
    steps: int | jax.Array = STEPS,
    rows: int = 0,
    mask: Params | None = None,
) -> Separated:
    """Descends until nothing moves any more, at most ``steps`` steps.

    Where the loss is 0 its gradient is 0, and all later steps would leave everything as it is: they
    are not taken. The result is that of all steps. Mapped over many trainings it ends with the
    last of them.

    Args:
        start: as `networks.xord.draw` gives it.
        rows: how many times the filters are kept on the way, each after ``steps // rows`` steps.
        mask: the tree of ``start``, 1 or 0.
    """
    keep = jax.tree.map(jnp.ones_like, start) if mask is None else mask
    first = jax.tree.map(jnp.multiply, start, keep)
    gradient = jax.grad(hinge)
    x = condensed(present(x))  # three times as fast, and the same descent

    def step(params: Params) -> tuple[Params, jax.Array]:
        slope = jax.tree.map(jnp.multiply, gradient(params, x, y, gamma), keep)
        moved = jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves(slope)]))
        return jax.tree.map(lambda p, g: p - rate * g, params, slope), moved

    def advance(params: Params, most: int | jax.Array) -> tuple[Params, jax.Array]:
        def body(carry: tuple[Params, jax.Array, jax.Array]) -> tuple:
            at, count, _ = carry
            at, moved = step(at)
            return at, count + moved, moved

        going = lambda carry: carry[2] & (carry[1] < most)
        last, count, _ = jax.lax.while_loop(going, body, (params, jnp.array(0), jnp.array(True)))
        return last, count

    if rows:

        def part(at: Params, _: None) -> tuple[Params, tuple[Params, jax.Array]]:
            at, count = advance(at, steps // rows)
            return at, (at, count)

        last, (kept, counts) = jax.lax.scan(part, first, length=rows)
        path = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, kept)
        count = jnp.sum(counts)
    else:
        last, count = advance(first, steps)
        path = jax.tree.map(lambda a: jnp.zeros((0, *a.shape), a.dtype), first)
    fitted = jnp.all(y * function(last, x) > 0)
    return Separated(last, hinge(last, x, y, gamma), fitted, count, path)


def separate_lanes(
    starts: Params,
    x: jax.Array,
    y: jax.Array,
    *,
    rates: ArrayLike,
    gamma: ArrayLike = 8.0,
    steps: int = STEPS,
    stage: int = 1500,
) -> Separated:
    """`separate` for many trainings; those that have come to rest are taken out on the way.

    Most networks rest after some 1,500 steps and a few never do: to go on with those alone saves
    most of the work. Between stages the lanes left are counted on the host, so that this function,
    other than `separate`, cannot stand inside a compiled program.

    Args:
        starts: leaves (lanes, 2, k). Narrower networks are lanes too: filters of zeros stay zero.
        x, y: (lanes, n, pairs, 2), (lanes, n).
        rates: (lanes,), or one for all.
        stage: steps between countings.
    """
    lanes = len(y)
    rate = jnp.broadcast_to(jnp.asarray(rates, float), (lanes,))
    params, taken, left = starts, np.zeros(lanes, int), np.arange(lanes)
    for begin in range(0, steps, stage):
        # Filled up to a power of four, so that few programs are compiled.
        rows = np.resize(left, min(lanes, 4 ** math.ceil(math.log(len(left), 4))))
        part = min(stage, steps - begin)
        params, counts = _stage(params, x, y, rate, gamma, rows, part)
        count = np.asarray(counts)[: len(left)]
        taken[left] += count
        left = left[count == part]
        if not len(left):
            break
    fitted, loss = _judged(params, x, y, gamma)
    return Separated(params, loss, fitted, jnp.asarray(taken), {})


@jax.jit
def _stage(
    params: Params,
    x: jax.Array,
    y: jax.Array,
    rate: jax.Array,
    gamma: ArrayLike,
    rows: np.ndarray,
    steps: int | jax.Array,
) -> tuple[Params, jax.Array]:
    """All lanes after ``steps`` more of those at ``rows``, and how many each of these took."""
    run = lambda p, x, y, r: separate(p, x, y, rate=r, gamma=gamma, steps=steps)
    now = jax.tree.map(lambda leaf: leaf[rows], params)
    done = jax.vmap(run)(now, x[rows], y[rows], rate[rows])
    put = jax.tree.map(lambda all, new: all.at[rows].set(new), params, done.params)
    return put, done.steps


@jax.jit
def _judged(
    params: Params, x: jax.Array, y: jax.Array, gamma: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    def one(p: Params, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.all(y * function(p, x) > 0), hinge(p, x, y, gamma)

    return jax.vmap(one)(params, x, y)
