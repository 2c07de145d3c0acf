"""Full-batch gradient descent on XORD's hinge loss, as in Brutzkus & Globerson 2019."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from secateur.core.errors import SecateurError
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


@partial(jax.jit, static_argnames=["steps", "rows"])
def separate(
    start: Params,
    x: jax.Array,
    y: jax.Array,
    *,
    rate: ArrayLike,
    gamma: ArrayLike = 8.0,
    steps: int = STEPS,
    rows: int = 0,
    mask: Params | None = None,
) -> Separated:
    """Descends until nothing moves any more, at most ``steps`` steps.

    Where the loss is 0 its gradient is 0, and all later steps would leave everything as it is: they
    are not taken. The result is that of all steps. Mapped over many trainings it ends with the
    last of them.

    Args:
        start: as `networks.xord.draw` gives it.
        rows: how many times the filters are kept on the way, at equal distances; all steps are
            then taken.
        mask: the tree of ``start``, 1 or 0.

    Raises:
        SecateurError: where ``rows`` does not divide ``steps``.
    """
    if rows and steps % rows:
        raise SecateurError(f"{steps} steps do not fall into {rows} equal rows; give a divisor.")
    keep = jax.tree.map(jnp.ones_like, start) if mask is None else mask
    first = jax.tree.map(jnp.multiply, start, keep)
    gradient = jax.grad(hinge)
    x = condensed(present(x))  # three times as fast, and the same descent

    def step(params: Params) -> tuple[Params, jax.Array]:
        slope = jax.tree.map(jnp.multiply, gradient(params, x, y, gamma), keep)
        moved = jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves(slope)]))
        return jax.tree.map(lambda p, g: p - rate * g, params, slope), moved

    def advance(params: Params, most: int) -> tuple[Params, jax.Array]:
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
