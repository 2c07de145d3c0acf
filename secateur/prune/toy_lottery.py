"""Lottery tickets of a committee machine: all levels of iterative pruning in one compiled program.

Kumar's question on his own toy: what do output scale alpha and difficulty epsilon do to tickets?
Every level is a descent through the mean weight and second moment (`train.committee`), then the
smallest weights of the whole machine go. Scales, rates, way of rewinding, teacher and examples are
data: a sweep over them is one program, mapped.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from secateur.core.keys import Key
from secateur.core.quadratic import ArrayLike, Quadratic, Terms
from secateur.networks.committee import closed_form, draw, ntk
from secateur.prune.magnitude import removed
from secateur.prune.select import top_of
from secateur.train.committee import Problem, descend

REWINDS = ("rewind", "random", "none")  # their places are what `levels` is given


class Level(NamedTuple):
    """One level; of a chain each with a first axis of levels.

    Attributes:
        density: of the weights, ().
        loss: half the mean of (f - y)^2 on the examples at the end.
        error: E (f - y)^2 over all inputs at the end, in three terms.
        moved: |W - W_0| / |W_0| in this level.
        kernel_moved: |K - K_0| / |K_0|, K the normalised NTK on the probe; K_0 at this level's
            start.
        turned: 1 - the centred alignment of the two.
    """

    density: jax.Array
    loss: jax.Array
    error: Terms
    moved: jax.Array
    kernel_moved: jax.Array
    turned: jax.Array


def keep_largest(kernel: jax.Array, mask: jax.Array, count: ArrayLike) -> jax.Array:
    """The mask, 1 and 0, of the ``count`` largest |w| among the survivors; of equals the first."""
    (kept,) = top_of([jnp.abs(kernel)], [mask > 0], jnp.asarray(count))
    return kept.astype(kernel.dtype)


def _centred(kernel: jax.Array) -> jax.Array:
    rows = kernel - jnp.mean(kernel, axis=0, keepdims=True)
    return rows - jnp.mean(rows, axis=1, keepdims=True)


@partial(jax.jit, static_argnames=["units", "steps", "optimiser"])
def chain(
    key: Key,
    problem: Problem,
    teacher: Quadratic,
    counts: jax.Array,
    probe: jax.Array,
    *,
    rewind: ArrayLike,
    alpha: ArrayLike,
    epsilon: ArrayLike,
    rate: ArrayLike,
    centred: ArrayLike,
    units: int,
    steps: int,
    optimiser: str = "gd",
) -> Level:
    """Trains, prunes and goes on, level by level.

    Args:
        key: of the weights; the same key is the same dense start whatever the way of rewinding.
        counts: (levels,) weights that each level keeps; all of them at the first.
        probe: inputs of the kernel, (p, D).
        rewind: a place in `REWINDS`. ``rewind``: the dense start under the new mask. ``random``:
            new weights at each level, which are pruned along a path of their own. ``none``: the
            weights go on from where they are.
        centred: 1 to subtract what f is at the start: of this level, and of the dense network where
            nothing is rewound (a centre that moved with the weights would be no centre).

    Raises:
        SecateurError: see `train.committee.descend`.
    """
    inputs = len(teacher.linear)
    initial = draw(key, inputs, units)
    scales = {"alpha": alpha, "epsilon": epsilon}
    dense = closed_form(initial, **scales)

    def level(carry: tuple[jax.Array, jax.Array], x: tuple[jax.Array, jax.Array]):  # type: ignore[no-untyped-def]
        trained, mask = carry
        number, count = x
        mask = keep_largest(trained, mask, count)
        fresh = draw(jax.random.fold_in(key, number), inputs, units)
        ways = jnp.stack([initial, jnp.where(number == 0, initial, fresh), trained])
        start = ways[jnp.asarray(rewind, int)] * mask
        own = closed_form(start, **scales)
        goes_on = jnp.asarray(rewind) == REWINDS.index("none")
        origin = jax.tree.map(lambda a, b: jnp.where(goes_on, a, b), dense, own)
        run = descend(
            start,
            problem,
            teacher,
            mask,
            **scales,
            rate=rate,
            steps=steps,
            every=steps,
            centred=centred,
            origin=origin,
            optimiser=optimiser,
        )
        before = ntk(start, probe, epsilon=epsilon)
        after = ntk(run.kernel, probe, epsilon=epsilon)
        a, b = _centred(before), _centred(after)
        norm = lambda k: jnp.sqrt(jnp.sum(k * k))
        found = Level(
            count / mask.size,
            run.loss[-1],
            jax.tree.map(lambda t: t[-1], run.error),
            run.moved[-1],
            norm(after - before) / norm(before),
            1 - jnp.sum(a * b) / (norm(a) * norm(b)),
        )
        return (run.kernel, mask), found

    numbers = jnp.arange(len(counts))
    _, levels = jax.lax.scan(level, (initial, jnp.ones_like(initial)), (numbers, counts))
    return levels


def counts_of(weights: int, levels: int, rate: float = 0.2) -> list[int]:
    """What each of levels 0 to ``levels`` keeps, by the rule of `magnitude.removed`."""
    found = [weights]
    for _ in range(levels):
        found.append(found[-1] - removed(rate, found[-1]))
    return found
