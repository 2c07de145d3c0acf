"""Augmentation and normalisation as pure functions on the device, for inside a compiled step.

Images stay uint8 until `normalise`: padding is black in pixel space, as in the papers' pipelines,
and not the zero of normalised values.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from secateur.core.keys import Key


def normalise(
    images: jax.Array, mean: ArrayLike, std: ArrayLike, dtype: Any = jnp.float32
) -> jax.Array:
    """``(x / 255 - mean) / std`` of uint8 images; ``(x - mean) / std`` of floats.

    Args:
        images: ``(..., channels)``.
        mean, std: one number for each channel, or one for all; of uint8 on the [0, 1] scale.
        dtype: of the result and of the computation, float32 or float64.
    """
    x = images.astype(dtype)
    shape = (1,) * (x.ndim - 1) + (-1,)
    # One product and one difference an entry: divisions would show in a small network's step.
    scale = 1 / jnp.asarray(std, dtype).reshape(shape)
    shift = jnp.asarray(mean, dtype).reshape(shape) * scale
    if images.dtype == jnp.uint8:
        scale = scale / 255
    return x * scale - shift


def pad_crop(images: jax.Array, key: Key, pad: int) -> jax.Array:
    """Each image moved by up to ``pad`` pixels up, down, left and right; black where it came from.

    The same as padding with ``pad`` zeros on each side and cropping at random: all
    ``(2 pad + 1)^2`` places alike, each image its own.

    Args:
        images: ``(n, height, width, channels)``, uint8 or float.

    Returns:
        The same shape and dtype.
    """
    n, height, width, channels = images.shape
    corners = jax.random.randint(key, (n, 2), 0, 2 * pad + 1)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(
            image, (corner[0], corner[1], jnp.zeros_like(corner[0])), (height, width, channels)
        )

    return jax.vmap(crop)(padded, corners)


def flip(images: jax.Array, key: Key) -> jax.Array:
    """Each image mirrored left to right with probability 1/2.

    Args:
        images: ``(n, height, width, channels)``, uint8 or float.
    """
    mirrored = jax.random.bernoulli(key, shape=(images.shape[0],))
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def pad_crop_flip(images: jax.Array, key: Key, pad: int = 4) -> jax.Array:
    """`pad_crop`, then `flip`: the usual augmentation for CIFAR (pad 4)."""
    cropping, flipping = jax.random.split(key)
    return flip(pad_crop(images, cropping, pad), flipping)
