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
from secateur.data.augment import normalise, pad_crop_flip
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


def whole(static: Static, given: Given, params: Any) -> Any:
    """The parameters as the network takes them, from the form in which they are trained."""
    if not static.form:
        return params
    leaves = flatten(params)
    for name, shape, turned in static.form:
        if shape is not None:
            values, places = leaves[name], given.places[name]
            matrix = jnp.zeros(math.prod(shape), values.dtype)
            # The filling of `places` points past the end: dropped, and its gradient is 0.
            matrix = matrix.at[places].set(values, mode="drop", indices_are_sorted=True)
            leaves[name] = matrix.reshape(shape)
        if turned:
            leaves[name] = leaves[name].T
    return unflatten(leaves, params)


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


def _inputs(data: Examples, index: Any, given: Given, augment: Any, dtype: Any) -> jax.Array:
    images, mean, std = data.images[index], data.mean, data.std
    if augment is not None:
        images = pad_crop_flip(images, augment)
    if given.features is not None:
        shape = images.shape[1:]
        cut = lambda a: jnp.broadcast_to(a, shape).reshape(-1)[given.features]
        images = jnp.reshape(images, (images.shape[0], -1))[:, given.features]
        mean, std = cut(mean), cut(std)
    return normalise(images, mean, std, dtype)


def evaluate(static: Static, given: Given, params: Any, stats: Any, data: Examples) -> Any:
    """Mean loss over a set, and how many are right; every example counts once."""
    loss = LOSSES[static.loss]
    count = len(data.labels)
    block = min(BLOCK, count)
    starts = jnp.arange(0, count, block)
    dtype = jax.tree.leaves(params)[0].dtype
    matrices = whole(static, given, params)

    def one(total: Any, start: Any) -> tuple[Any, None]:
        place = start + jnp.arange(block)
        inside = place < count  # the last block is short: its surplus counts nothing
        place = jnp.minimum(place, count - 1)
        logits = given.alpha * static.network.apply(
            matrices, stats, _inputs(data, place, given, None, dtype)
        )
        labels = data.labels[place]
        losses = jnp.where(inside, loss(logits, labels), 0)
        right = inside & (jnp.argmax(logits, axis=-1) == labels)
        return (total[0] + jnp.sum(losses), total[1] + jnp.sum(right, dtype=jnp.int32)), None

    zero = (jnp.zeros((), dtype), jnp.zeros((), jnp.int32))
    (losses, right), _ = jax.lax.scan(one, zero, starts)
    return losses / count, right


def _step(static: Static, given: Given, data: Examples, carry: Carry, x: Any) -> Carry:
    index, rate = x
    dtype = jax.tree.leaves(carry.params)[0].dtype
    key = jax.random.fold_in(given.key, carry.step)
    augment = None if static.augment == "none" else jax.random.fold_in(key, 1)
    inputs = _inputs(data, index, given, augment, dtype)
    labels = data.labels[index]

    def objective(params: Any) -> tuple[jax.Array, Any]:
        matrices = whole(static, given, params)
        logits, stats = static.network.train(matrices, carry.stats, inputs, key)
        return jnp.mean(LOSSES[static.loss](given.alpha * logits, labels)), stats

    grads, stats = jax.grad(objective, has_aux=True)(carry.params)
    direction, moments = _transformation(static, given.mask, given.weight_decay).update(
        grads, carry.moments, carry.params
    )
    params = jax.tree.map(lambda p, d: p - rate.astype(p.dtype) * d, carry.params, direction)
    return carry._replace(params=params, stats=stats, moments=moments, step=carry.step + 1)


def _compare(static: Static, given: Given, validation: Examples, carry: Carry) -> Any:
    """Evaluates, and keeps the parameters of the lowest validation loss; the first of equals."""
    loss, right = evaluate(static, given, carry.params, carry.stats, validation)
    better = loss < carry.best_loss
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(better, a, b), new, old)
    carry = carry._replace(
        best_loss=jnp.where(better, loss, carry.best_loss),
        best_step=jnp.where(better, carry.step, carry.best_step),
        best_params=keep(carry.params, carry.best_params),
        best_stats=keep(carry.stats, carry.best_stats),
    )
    return carry, {"validation_loss": loss, "validation_right": right}


def _chunk(
    static: Static, given: Given, carry: Carry, chunk: Chunk, train: Examples, validation: Examples
) -> Any:
    def interval(carry: Carry, x: Any) -> Any:
        carry, _ = jax.lax.scan(lambda c, s: (_step(static, given, train, c, s), None), carry, x)
        return _compare(static, given, validation, carry)

    carry, curve = jax.lax.scan(interval, carry, (chunk.order, chunk.rate))
    moments = jax.tree.leaves(carry.moments)
    curve["leak"] = leak(given.mask, carry.params, carry.moments)
    curve["finite"] = jnp.all(
        jnp.stack([jnp.all(jnp.isfinite(a)) for a in [*jax.tree.leaves(carry.params), *moments]])
    )
    return carry, curve


@lru_cache(maxsize=256)
def programs(static: Static, lanes: bool) -> dict[str, Any]:
    """The three compiled functions of a (network, recipe) pair.

    ``begin(given, params, stats, validation) -> (carry, curve)`` evaluates the start;
    ``chunk(given, carry, chunk, train, validation) -> (carry, curve)``;
    ``evaluate(given, params, stats, data) -> (loss, right)``.
    As lanes, every argument but the sets has a leading lane axis.
    """

    def first(given: Given, params: Any, stats: Any, validation: Examples) -> Any:
        return _compare(static, given, validation, begin(static, given, params, stats))

    def chunk(given: Given, carry: Carry, chunk: Chunk, train: Examples, val: Examples) -> Any:
        return _chunk(static, given, carry, chunk, train, val)

    def score(given: Given, params: Any, stats: Any, data: Examples) -> Any:
        return evaluate(static, given, params, stats, data)

    if lanes:
        first = jax.vmap(first, in_axes=(0, 0, 0, None))
        chunk = jax.vmap(chunk, in_axes=(0, 0, 0, None, None))
        score = jax.vmap(score, in_axes=(0, 0, 0, None))
    return {
        "begin": jax.jit(first),
        "chunk": jax.jit(chunk, donate_argnums=1),
        "evaluate": jax.jit(score),
    }


def masks_on_device(mask: Any) -> Any:
    """The mask as device arrays, ``None`` kept."""
    return map_mask(lambda m: None if m is None else jnp.asarray(m), mask)
