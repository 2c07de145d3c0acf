"""Gradients over examples, whole or in chunks: what SNIP, FORCE and GraSP share.

A score is an absolute value, or a product, of a gradient over *all* its examples. So gradients are
added over chunks first and scored once: memory is that of one chunk, and the scores are those of
the whole batch wherever the network treats examples one by one. Where batch norm uses the
statistics of the batch (``bn="batch"``, ``"frozen-batch"``) every chunk has its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import Key
from secateur.core.trees import Params
from secateur.prune.criterion import Criterion
from secateur.prune.problem import BN_MODES, Batch, Problem, as_given, logits
from secateur.train.losses import LOSSES, Loss

Value = Callable[[Params, Batch, Key], jax.Array]  # one number an example, (n,)
Gradient = Callable[[Params], Params]


def linear_logit(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-logits[label]; logits (n, classes), labels int (n,), result (n,).

    What ``nll_loss`` computes on outputs that did not go through a log-softmax, as in naver/force.
    """
    return -jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]


# "problem" is the problem's own loss: cross-entropy unless it was given another.
SCORING_LOSSES: dict[str, Loss | None] = {"problem": None, **LOSSES, "linear_logit": linear_logit}
# How chunks of different sizes are weighed: by their examples, or each chunk's mean alike.
AVERAGES = {"examples": True, "chunks": False}

_WORDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bn": ("mode of batch norm", BN_MODES),
    "loss": ("loss to score with", SCORING_LOSSES),
    "average": ("average", AVERAGES),
}
_COUNTS = ("examples", "per_class", "chunk", "batches")


def check_options(criterion: Criterion) -> None:
    """Refuses at construction what would fail, or be silently something else, in a round.

    Raises:
        SecateurError: for a count below 1, an unknown name, or a temperature that is not positive.
    """
    title = criterion.title
    for option in _COUNTS:
        count = getattr(criterion, option, None)
        if count is not None and (
            isinstance(count, bool) or not isinstance(count, Integral) or count < 1
        ):
            raise SecateurError(
                f"{title}: {option} is a whole number of at least 1, not {count!r}."
            )
    for option, (where, known) in _WORDS.items():
        if hasattr(criterion, option):
            lookup(where, getattr(criterion, option), known)
    if not getattr(criterion, "temperature", 1.0) > 0:
        raise SecateurError(
            f"{title}: temperature divides the logits and must be positive, not "
            f"{getattr(criterion, 'temperature', None)!r}."
        )


def loss_of(problem: Problem, loss: str, bn: str, temperature: float = 1.0) -> Value:
    """The loss of each example at ``logits / temperature``, named as in `SCORING_LOSSES`.

    Raises:
        SecateurError: where the problem has no labels, or for an unknown loss.
    """
    if problem.labels is None:
        raise SecateurError(
            "this method needs labels, because it scores weights by the loss, and none were given: "
            "give labels, or take a method without them (logit-snip, synflow, ntk-sap)."
        )
    of = lookup("loss to score with", loss, SCORING_LOSSES) or problem.loss

    def value(w: Params, batch: Batch, key: Key) -> jax.Array:
        assert batch.y is not None  # a problem with labels draws batches with labels
        return of(logits(problem, w, batch.x, bn, key) / temperature, batch.y)

    return value


def drawn(problem: Problem, key: Key, examples: int, per_class: int | None = None) -> Batch:
    """Examples as they are stored, often bytes: `gradient` prepares them chunk by chunk."""
    return replace(problem, prepare=as_given).batch(key, examples, per_class)


def added(f: Callable[[Any], Any], over: Any) -> Any:
    """The sum of ``f`` over the leading axis of ``over``, one at a time: a scan."""
    shapes = jax.eval_shape(f, jax.tree.map(lambda a: a[0], over))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    step = lambda total, one: (jax.tree.map(jnp.add, total, f(one)), None)
    return jax.lax.scan(step, zero, over)[0]


def gradient(
    value: Value,
    problem: Problem,
    batch: Batch,
    key: Key,
    *,
    chunk: int | None = None,
    average: str | None = "examples",
) -> Gradient:
    """w -> d/dw of the mean (with ``average=None`` the sum) of ``value`` over a batch.

    Args:
        value: one number an example. Inputs reach it prepared and in the precision of ``w``.
        batch: stored examples, from `drawn`.
        key: for dropout; chunk i of several has a stream of its own.
        chunk: examples at a time, the last chunk may be smaller; None for all at once.
        average: as in `AVERAGES`; matters only for chunks of different sizes.

    Returns:
        A function that can be differentiated again, forward, in the memory of one chunk.
    """
    n = len(batch.x)
    size = min(chunk or n, n)
    whole, rest = divmod(n, size)
    chunks = whole + (rest > 0)

    def piece(start: Any, count: int) -> Batch:
        return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, count), batch)

    def of(w: Params, part: Batch, key: Key) -> Params:
        dtype = jnp.result_type(*{p.dtype for p in jax.tree.leaves(w)})
        count = len(part.x)
        divisor = 1 if average is None else n if AVERAGES[average] else count * chunks

        def total(w: Params) -> jax.Array:
            x = problem.prepare(part.x)
            x = x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
            return value(w, Batch(x, part.y), key).sum() / divisor

        return jax.grad(total)(w)

    def at(w: Params) -> Params:
        if chunks == 1:
            return of(w, batch, key)
        one = lambda i: of(w, piece(i * size, size), jax.random.fold_in(key, i))
        g = added(one, jnp.arange(whole))
        if rest:
            last = of(w, piece(whole * size, rest), jax.random.fold_in(key, whole))
            g = jax.tree.map(jnp.add, g, last)
        return g

    return at
