"""The compiled part of a training: chunks of steps and evaluations.

One program serves every mask, start, learning rate, schedule, output scale, key and data order of
a (network, recipe) pair: all of these are arguments. The order of the examples and the rates of a
chunk come in as arrays, so schedules and epochs cost nothing inside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from secateur.core.network import Network
from secateur.core.trees import flatten, map_mask, unflatten
from secateur.data.augment import AUGMENTATIONS, fitted, normalise
from secateur.structure.canonical import canonical
from secateur.train.losses import LOSSES
from secateur.train.masked import leak, masked
from secateur.train.recipes import Recipe

BLOCK = 1000  # examples evaluated at once: activations stay in cache


class Carry(NamedTuple):
    """The state of a training between two steps; what a checkpoint holds."""

    params: Any
    stats: Any
    moments: Any
    step: jax.Array  # int32
    best_loss: jax.Array
    best_step: jax.Array
    best_params: Any
    best_stats: Any


class Given(NamedTuple):
    """What a training is given and never changes; all of it data of the program."""

    mask: Any
    key: jax.Array
    alpha: jax.Array
    weight_decay: jax.Array
    features: Any  # int32 (features,) into the flattened input, or None for all of it
    places: Any  # packed leaf -> int32 indices of its entries in the flattened leaf (train/form.py)


class Examples(NamedTuple):
    """A set on the device. Images as they are stored; normalised where they are used."""

    images: jax.Array
    labels: jax.Array
    mean: jax.Array
    std: jax.Array


class Chunk(NamedTuple):
    """The steps of one call: E evaluations with S steps before each."""

    order: jax.Array  # int32 (E, S, batch)
    rate: jax.Array  # (E, S)


@dataclass(frozen=True)
class Static:
    """What is baked into a program."""

    network: Network
    optimiser: str
    momentum: float
    decays: bool
    decoupled: bool
    loss: str
    augment: str
    form: tuple[tuple[str, tuple[int, ...] | None, bool], ...] = ()  # Form.static


def static_of(network: Network, recipe: Recipe, form: Any = ()) -> Static:
    return Static(
        network,
        recipe.optimiser,
        recipe.momentum,
        bool(recipe.weight_decay),
        recipe.decoupled,
        recipe.loss,
        recipe.augment,
        form,
    )


def placed(static: Static, given: Given, params: Any) -> dict[str, jax.Array]:
    """Each packed leaf as a flat matrix: its survivors in their places, 0 elsewhere."""
    leaves = flatten(params)
    zeros = {n: jnp.zeros(math.prod(s), leaves[n].dtype) for n, s, _ in static.form if s}
    return place(given, zeros, leaves)


def place(given: Given, matrices: Any, leaves: Any) -> dict[str, jax.Array]:
    """The flat matrices with new survivors; the filling of `places` points past the end."""
    return {
        name: matrix.at[given.places[name]].set(leaves[name], mode="drop", indices_are_sorted=True)
        for name, matrix in matrices.items()
    }


def whole(static: Static, params: Any, matrices: dict[str, jax.Array]) -> Any:
    """The parameters as the network takes them, from the form in which they are trained."""
    leaves = flatten(params)
    for name, shape, turned in static.form:
        if shape is not None:
            leaves[name] = matrices[name].reshape(shape)
        if turned:
            leaves[name] = leaves[name].T
    return unflatten(leaves, params)


def formed(static: Static, given: Given, grads: Any) -> Any:
    """Gradients for the network's parameters, in the form in which these are trained."""
    leaves = flatten(grads)
    for name, shape, turned in static.form:
        if turned:
            leaves[name] = leaves[name].T
        if shape is not None:
            found = leaves[name].reshape(-1).at[given.places[name]]
            leaves[name] = found.get(mode="fill", fill_value=0, indices_are_sorted=True)
    return unflatten(leaves, grads)


def _transformation(static: Static, mask: Any, weight_decay: Any) -> Any:
    recipe = Recipe(
        static.optimiser,
        momentum=static.momentum,
        weight_decay=1.0 if static.decays else 0.0,
        decoupled=static.decoupled,
    )
    return masked(recipe.transformation(weight_decay), mask)


def begin(static: Static, given: Given, params: Any, stats: Any) -> Carry:
    """The carry before the first step: fresh moments, nothing evaluated."""
    moments = _transformation(static, given.mask, given.weight_decay).init(params)
    dtype = jax.tree.leaves(params)[0].dtype
    zero = jnp.zeros((), jnp.int32)
    infinite = jnp.full((), jnp.inf, dtype)
    return Carry(params, stats, moments, zero, infinite, zero, params, stats)


def _inputs(
    static: Static, data: Examples, index: Any, given: Given, augment: Any, dtype: Any
) -> jax.Array:
    images, mean, std = data.images[index], data.mean, data.std
    if augment is None:
        images = fitted(images, static.network.input_shape)
    else:
        images = AUGMENTATIONS[static.augment](images, augment, static.network.input_shape)
    if given.features is not None:
        shape = images.shape[1:]
        cut = lambda a: jnp.broadcast_to(a, shape).reshape(-1)[given.features]
        images = jnp.reshape(images, (images.shape[0], -1))[:, given.features]
        mean, std = cut(mean), cut(std)
    return normalise(images, mean, std, dtype)


def evaluate(static: Static, given: Given, params: Any, stats: Any, data: Examples) -> Any:
    """Mean loss over a set, and how many are right; every example counts once."""
    count = len(data.labels)
    losses, right = sums(static, given, params, stats, data, count, nothing(params))
    return losses / count, right


def nothing(params: Any) -> tuple[jax.Array, jax.Array]:
    """The sums of no example."""
    return jnp.zeros((), jax.tree.leaves(params)[0].dtype), jnp.zeros((), jnp.int32)


def sums(
    static: Static, given: Given, params: Any, stats: Any, data: Examples, count: Any, total: Any
) -> Any:
    """``total`` and the losses of the first ``count`` examples of ``data``, and how many are right.

    Args:
        count: may be traced, at least 1: what comes after is filling of a last, short piece.
    """
    loss = LOSSES[static.loss]
    size = len(data.labels)
    block = min(BLOCK, size)
    starts = jnp.arange(0, size, block)
    dtype = jax.tree.leaves(params)[0].dtype
    net = whole(static, params, placed(static, given, params))

    def one(total: Any, start: Any) -> tuple[Any, None]:
        index = start + jnp.arange(block)
        inside = index < count  # the last block is short: its surplus counts nothing
        index = jnp.minimum(index, count - 1)
        logits = given.alpha * static.network.apply(
            net, stats, _inputs(static, data, index, given, None, dtype)
        )
        labels = data.labels[index]
        losses = jnp.where(inside, loss(logits, labels), 0)
        right = inside & (jnp.argmax(logits, axis=-1) == labels)
        return (total[0] + jnp.sum(losses), total[1] + jnp.sum(right, dtype=jnp.int32)), None

    return jax.lax.scan(one, total, starts)[0]


def _step(static: Static, given: Given, data: Examples, state: Any, x: Any) -> Any:
    """One step; ``state`` is the carry and the packed leaves as matrices, updated in place."""
    (carry, matrices), (index, rate) = state, x
    dtype = jax.tree.leaves(carry.params)[0].dtype
    key = jax.random.fold_in(given.key, carry.step)
    augment = None if static.augment == "none" else jax.random.fold_in(key, 1)
    inputs = _inputs(static, data, index, given, augment, dtype)
    labels = data.labels[index]

    def objective(net: Any) -> tuple[jax.Array, Any]:
        logits, stats = static.network.train(net, carry.stats, inputs, key)
        return jnp.mean(LOSSES[static.loss](given.alpha * logits, labels)), stats

    net = whole(static, carry.params, matrices)
    grads, stats = jax.grad(objective, has_aux=True)(net)
    direction, moments = _transformation(static, given.mask, given.weight_decay).update(
        formed(static, given, grads), carry.moments, carry.params
    )
    params = jax.tree.map(lambda p, d: p - rate.astype(p.dtype) * d, carry.params, direction)
    carry = carry._replace(params=params, stats=stats, moments=moments, step=carry.step + 1)
    return carry, place(given, matrices, flatten(params))


def _compare(static: Static, given: Given, validation: Examples, carry: Carry) -> Any:
    """Evaluates, and keeps the parameters of the lowest validation loss; the first of equals."""
    loss, right = evaluate(static, given, carry.params, carry.stats, validation)
    return _best(carry, loss), {"validation_loss": loss, "validation_right": right}


def _best(carry: Carry, loss: jax.Array) -> Carry:
    better = loss < carry.best_loss
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(better, a, b), new, old)
    return carry._replace(
        best_loss=jnp.where(better, loss, carry.best_loss),
        best_step=jnp.where(better, carry.step, carry.best_step),
        best_params=keep(carry.params, carry.best_params),
        best_stats=keep(carry.stats, carry.best_stats),
    )


def _steps(
    static: Static, given: Given, carry: Carry, order: Any, rate: Any, train: Examples
) -> Carry:
    state = carry, placed(static, given, carry.params)
    step = lambda state, x: (_step(static, given, train, state, x), None)
    (carry, _), _ = jax.lax.scan(step, state, (order, rate))
    return carry


def _held(given: Given, carry: Carry) -> dict[str, jax.Array]:
    """What is checked at the end of every call: zeros are zeros, and numbers are numbers."""
    leaves = [*jax.tree.leaves(carry.params), *jax.tree.leaves(carry.moments)]
    return {
        "leak": leak(given.mask, carry.params, carry.moments),
        "finite": jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in leaves])),
    }


def _chunk(
    static: Static, given: Given, carry: Carry, chunk: Chunk, train: Examples, validation: Examples
) -> Any:
    def interval(carry: Carry, x: Any) -> Any:
        order, rate = x
        carry = _steps(static, given, carry, order, rate, train)
        return _compare(static, given, validation, carry)

    carry, curve = jax.lax.scan(interval, carry, (chunk.order, chunk.rate))
    return carry, curve | _held(given, carry)


@lru_cache(maxsize=256)
def programs(static: Static, lanes: bool) -> dict[str, Any]:
    """The compiled functions of a (network, recipe) pair; those that are called get compiled.

    For sets on the device:
    ``begin(given, params, stats, validation) -> (carry, curve)`` evaluates the start;
    ``chunk(given, carry, chunk, train, validation) -> (carry, curve)``;
    ``evaluate(given, params, stats, data) -> (loss, right)``.
    For sets that come in pieces (train/feed.py):
    ``start(given, params, stats) -> carry``;
    ``steps(given, carry, order, rate, train) -> (carry, checks)``, order (steps, batch);
    ``sums(given, params, stats, data, count, total) -> total``;
    ``best(carry, loss) -> carry``.
    As lanes, every argument but sets and counts has a leading lane axis.
    """

    def first(given: Given, params: Any, stats: Any, validation: Examples) -> Any:
        return _compare(static, given, validation, begin(static, given, params, stats))

    def chunk(given: Given, carry: Carry, chunk: Chunk, train: Examples, val: Examples) -> Any:
        return _chunk(static, given, carry, chunk, train, val)

    def score(given: Given, params: Any, stats: Any, data: Examples) -> Any:
        return evaluate(static, given, params, stats, data)

    def start(given: Given, params: Any, stats: Any) -> Carry:
        return begin(static, given, params, stats)

    def steps(given: Given, carry: Carry, order: Any, rate: Any, train: Examples) -> Any:
        carry = _steps(static, given, carry, order, rate, train)
        return carry, _held(given, carry)

    def add(given: Given, params: Any, stats: Any, data: Examples, count: Any, total: Any) -> Any:
        return sums(static, given, params, stats, data, count, total)

    best = _best
    if lanes:
        first = jax.vmap(first, in_axes=(0, 0, 0, None))
        chunk = jax.vmap(chunk, in_axes=(0, 0, 0, None, None))
        score = jax.vmap(score, in_axes=(0, 0, 0, None))
        start, best = jax.vmap(start), jax.vmap(best)
        steps = jax.vmap(steps, in_axes=(0, 0, 0, 0, None))
        add = jax.vmap(add, in_axes=(0, 0, 0, None, None, 0))
    # Last, after differentiation and vmap: convolutions in the order that is fast inside loops on
    # the CPU. Programs without any are left as they are.
    return {
        "begin": jax.jit(canonical(first)),
        "chunk": jax.jit(canonical(chunk), donate_argnums=1),
        "evaluate": jax.jit(canonical(score)),
        "start": jax.jit(start),
        "steps": jax.jit(canonical(steps), donate_argnums=1),
        "sums": jax.jit(canonical(add)),
        "best": jax.jit(best),
    }


def masks_on_device(mask: Any) -> Any:
    """The mask as device arrays, ``None`` kept."""
    return map_mask(lambda m: None if m is None else jnp.asarray(m), mask)
