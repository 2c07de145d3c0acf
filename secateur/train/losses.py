"""Losses: per example, so that every metric is a sum over examples divided by their number."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label]; logits (n, classes), labels int (n,), result (n,)."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def mean_squared_error(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """|logits - onehot(label)|^2 / 2; logits (n, classes), labels int (n,), result (n,)."""
    target = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return jnp.sum((logits - target) ** 2, axis=-1) / 2


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "mse": mean_squared_error}
