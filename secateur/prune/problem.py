"""What a method of pruning may ask about: the network, its loss, and examples to score on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import Key
from secateur.core.network import Network, Stats
from secateur.core.trees import Params
from secateur.train.losses import Loss, cross_entropy


class Batch(NamedTuple):
    """Inputs as the network takes them, and labels; ``y`` is None where there are none."""

    x: jax.Array
    y: jax.Array | None


def as_given(images: jax.Array) -> jax.Array:
    """Inputs that need no preparation."""
    return images


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["stats", "images", "labels"],
    meta_fields=["network", "loss", "prepare"],
)
@dataclass(frozen=True)
class Problem:
    """A network and what it may be scored with. A pytree: its arrays are data of a program.

    Attributes:
        network: the network whose weights are scored.
        stats: its batch statistics at the scored parameters; an empty dict where it has none.
        images: examples as they are stored, ``(n, ...)``, uint8 or float; None where a method needs
            no data.
        labels: int ``(n,)``, or None.
        loss: per example, ``(logits, labels) -> (n,)``.
        prepare: stored images -> inputs of the network (normalisation); applied in the program.
    """

    network: Network
    stats: Stats
    images: jax.Array | None = None
    labels: jax.Array | None = None
    loss: Loss = cross_entropy
    prepare: Callable[[jax.Array], jax.Array] = field(default=as_given)

    def batch(self, key: Key, size: int, per_class: int | None = None) -> Batch:
        """``size`` examples, or ``per_class`` of each class, drawn without replacement by ``key``.

        All of them, in their order, where there are not more than ``size``.

        Raises:
            SecateurError: where the problem has no images, or no labels to draw by class.
        """
        if self.images is None:
            raise SecateurError(
                "this method scores weights on examples, and none were given: give data."
            )
        n = len(self.images)
        if per_class is not None:
            if self.labels is None:
                raise SecateurError(
                    "examples of each class are drawn by their labels, and none were given."
                )
            # The first `per_class` of each class in a random order: equal counts, static shapes.
            order = jax.random.permutation(key, n)
            classes = self.network.outputs
            hot = jax.nn.one_hot(self.labels[order], classes, dtype=jnp.int32)
            place = jnp.cumsum(hot, axis=0) - hot  # how many of its class came before
            before = jnp.take_along_axis(place, self.labels[order][:, None], axis=1)[:, 0]
            slot = jnp.where(
                before < per_class,
                self.labels[order] * per_class + before,
                classes * per_class,  # out of bounds: dropped
            )
            rows = jnp.zeros(classes * per_class, order.dtype).at[slot].set(order, mode="drop")
        elif size >= n:
            rows = jnp.arange(n)
        else:
            rows = jax.random.permutation(key, n)[:size]
        x = self.prepare(self.images[rows])
        return Batch(x, None if self.labels is None else self.labels[rows])

    def noise(self, key: Key, size: int, dtype: Any = jnp.float32) -> jax.Array:
        """``size`` inputs of independent standard normals, ``(size, *input_shape)``."""
        return jax.random.normal(key, (size, *self.network.input_shape), dtype)


# -- what batch norm does while weights are scored (networks.md, section 4) ---------------------


def batch_statistics(network: Network, params: Params, x: jax.Array, key: Key) -> Stats:
    """The statistics of the batch ``x`` alone, as the network itself defines them.

    A network keeps ``new = decay old + (1 - decay) batch`` with a decay of its own. Two updates,
    from old = 0 and from old = 1, differ by the decay, and so give the batch's part.
    """
    _, like = jax.eval_shape(network.init, key)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)
    one = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), like)
    from_zero = network.train(params, zero, x, key)[1]
    from_one = network.train(params, one, x, key)[1]
    return jax.tree.map(
        lambda a, b: a / (1 - (b - a)) if jnp.issubdtype(a.dtype, jnp.floating) else a,
        from_zero,
        from_one,
    )


def _initial(p: Problem, params: Params, x: jax.Array, key: Key) -> jax.Array:
    # Statistics do not depend on the drawn weights: mean 0 and variance 1 in every network here.
    return p.network.apply(params, p.network.init(key)[1], x)


def _running(p: Problem, params: Params, x: jax.Array, key: Key) -> jax.Array:
    return p.network.apply(params, p.stats, x)


def _batch(p: Problem, params: Params, x: jax.Array, key: Key) -> jax.Array:
    return p.network.train(params, p.stats, x, key)[0]


def _frozen_batch(p: Problem, params: Params, x: jax.Array, key: Key) -> jax.Array:
    stats = jax.lax.stop_gradient(batch_statistics(p.network, params, x, key))
    return p.network.apply(params, stats, x)


BN_MODES: dict[str, Callable[[Problem, Params, jax.Array, Key], jax.Array]] = {
    "init": _initial,  # evaluation with the statistics of a new network
    "running": _running,  # evaluation with the given statistics
    "batch": _batch,  # training mode: statistics of the batch, differentiated; dropout is on
    "frozen-batch": _frozen_batch,  # evaluation with the statistics of the batch as constants
}


def logits(problem: Problem, params: Params, x: jax.Array, bn: str, key: Key) -> jax.Array:
    """The network's outputs ``(n, outputs)`` in one of `BN_MODES`.

    Raises:
        SecateurError: for another mode.
    """
    return lookup("mode of batch norm", bn, BN_MODES)(problem, params, x, key)
