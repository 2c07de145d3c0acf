"""Loss and accuracy of given weights on a part of the data, outside any training."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.core.network import Network, Stats
from secateur.core.trees import Params
from secateur.data.augment import fitted, normalise
from secateur.data.examples import Sets
from secateur.structure.canonical import canonical
from secateur.train import feed
from secateur.train.program import Given, programs, static_of
from secateur.train.recipes import Recipe

PARTS = {"train": "training", "validation": "validation", "test": "test"}


class Score(NamedTuple):
    """Of one part of the data.

    Attributes:
        loss: mean over its examples.
        accuracy: the share that is right, in [0, 1].
    """

    loss: float
    accuracy: float


def evaluator(
    network: Network,
    data: Sets,
    part: str = "test",
    *,
    loss: str = "cross_entropy",
    alpha: float = 1.0,
) -> Callable[[Params, Stats], Score]:
    """``(params, stats) -> Score``, in evaluation mode; compiled once a network and loss.

    Args:
        part: "train", "validation" or "test".
        loss: a name in `losses.LOSSES`.
        alpha: output scale, as in `training.Training`.

    Raises:
        SecateurError: for another part or loss.
    """
    lookup("part of the data", part, PARTS)
    examples = getattr(data, part)
    run = programs(static_of(network, Recipe("sgd", loss=loss)), False)
    streams = feed.streams(data)
    held = None if streams else feed.on_device(examples, data)

    def score(params: Params, stats: Stats) -> Score:
        params, stats = jax.tree.map(jnp.asarray, (params, stats))
        dtype = jax.tree.leaves(params)[0].dtype
        scale, none = jnp.asarray(alpha, dtype), jnp.zeros((), dtype)
        given = Given({}, jax.random.key(0), scale, none, None, {})
        if streams:
            mean, right = feed.evaluate(run, given, params, stats, examples, data, False)
        else:
            mean, right = run["evaluate"](given, params, stats, held)
        return Score(float(mean), int(right) / len(examples))

    return score


@lru_cache(maxsize=16)
def _passes(network: Network) -> Any:
    def run(params: Any, stats: Any, images: Any, mean: Any, std: Any, key: Any) -> Any:
        def one(stats: Any, x: Any) -> tuple[Any, None]:
            batch, k = x
            dtype = jax.tree.leaves(params)[0].dtype
            inputs = normalise(fitted(batch, network.input_shape), mean, std, dtype)
            return network.train(params, stats, inputs, jax.random.fold_in(key, k))[1], None

        return jax.lax.scan(one, stats, (images, jnp.arange(len(images))))[0]

    return jax.jit(canonical(run))


def estimated_statistics(
    network: Network,
    params: Params,
    stats: Stats,
    data: Sets,
    *,
    batches: int = 50,
    batch: int = 100,
    key: Any = None,
) -> Stats:
    """Batch statistics of these weights, by training mode on training examples, weights held fast.

    They run on as in training, with its momentum: of .9, what ``stats`` says has faded to .9^50.

    Args:
        stats: where they begin.
        batches, batch: how many, of how many examples; from the beginning again where the training
            set has fewer.
        key: of dropout, and of which examples; by default a fixed one.

    Raises:
        SecateurError: for fewer than one batch or example.
    """
    if batches < 1 or batch < 1:
        raise SecateurError(f"batches are {batches} of {batch} examples; give at least 1 of 1.")
    if not jax.tree.leaves(stats):
        return stats
    key = jax.random.key(0) if key is None else key
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    order = np.resize(rng.permutation(len(data.train)), batches * batch)
    held = feed.on_device(data.train.take(order), data)
    images = held.images.reshape(batches, batch, *held.images.shape[1:])
    return _passes(network)(params, stats, images, held.mean, held.std, key)
