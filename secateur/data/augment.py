"""Augmentation and normalisation as pure functions on the device, for inside a compiled step.

Images stay uint8 until `normalise`: padding is black in pixel space, as in the papers' pipelines,
and not the zero of normalised values. `AUGMENTATIONS` names what a recipe can ask for, each with
the published code that it follows; random numbers come from keys and are not those of that code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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


# --- cutting and resizing -------------------------------------------------------------------------

TRIES = 10  # boxes drawn before the central one is taken, as torchvision does


def centre_crop(images: jax.Array, height: int, width: int) -> jax.Array:
    """The central ``height`` x ``width`` pixels: the test-time cut of the published pipelines.

    Of images stored at 256 x 256 after resizing the shorter side to 256, the central 224 x 224 are
    torchvision's ``Resize(256), CenterCrop(224)``, offsets rounded alike (halves to even).

    Args:
        images: ``(n, h, w, channels)``, at least as large.
    """
    top = round((images.shape[1] - height) / 2)
    left = round((images.shape[2] - width) / 2)
    return images[:, top : top + height, left : left + width]


def resize(images: jax.Array, height: int, width: int) -> jax.Array:
    """All of each image at another size, by Pillow's antialiased bilinear filter.

    Args:
        images: uint8 ``(n, h, w, channels)``.

    Returns:
        uint8 ``(n, height, width, channels)``.
    """
    box = jnp.array([0, 0, images.shape[1], images.shape[2]], jnp.int32)
    return resize_boxes(images, jnp.tile(box, (len(images), 1)), height, width)


def resize_boxes(images: jax.Array, boxes: jax.Array, height: int, width: int) -> jax.Array:
    """A rectangle of each image at one size: what Pillow's ``crop`` and bilinear ``resize`` give.

    The filter is a triangle as wide as the output's pixels where the image shrinks (antialiasing),
    as the input's where it grows; both directions in turn, each rounded to whole levels, halves up.
    Two small products of matrices an image instead of a gather, which is what accelerators like.

    Args:
        images: uint8 ``(n, h, w, channels)``.
        boxes: int ``(n, 4)``: top, left, height, width, inside the image.

    Returns:
        uint8 ``(n, height, width, channels)``; within one level of Pillow, which sums in fixed
        point.
    """
    rows = _weights(images.shape[1], boxes[:, 0], boxes[:, 2], height)
    columns = _weights(images.shape[2], boxes[:, 1], boxes[:, 3], width)
    # In full precision: the short floats of accelerators err by half a level at 255.
    exact = jax.lax.Precision.HIGHEST
    x = images.astype(jnp.float32)
    x = _level(jnp.einsum("nhwc,now->nhoc", x, columns, precision=exact))
    x = _level(jnp.einsum("nhwc,noh->nowc", x, rows, precision=exact))
    return x.astype(jnp.uint8)


def _level(x: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(x + 0.5), 0, 255)


def _weights(size: int, start: jax.Array, length: jax.Array, outputs: int) -> jax.Array:
    """The filter of one direction: float32 ``(n, outputs, size)``, rows that sum to 1."""
    start = start.astype(jnp.float32)[:, None, None]
    length = length.astype(jnp.float32)[:, None, None]
    scale = length / outputs
    centre = (jnp.arange(outputs, dtype=jnp.float32)[:, None] + 0.5) * scale
    place = jnp.arange(size, dtype=jnp.float32) - start
    near = 1 - jnp.abs(place + 0.5 - centre) / jnp.maximum(scale, 1)
    near = jnp.where((place >= 0) & (place < length), jnp.maximum(near, 0), 0)
    return near / jnp.sum(near, axis=2, keepdims=True)


def crop_boxes(
    key: Key,
    count: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> jax.Array:
    """Random rectangles, as torchvision's RandomResizedCrop draws them.

    A share of the area uniform in ``scale``, a ratio width / height uniform in its logarithm in
    ``ratio``; the first of ten that fits the image, at a place uniform over all. Where none fits,
    the largest central rectangle within ``ratio``.

    Returns:
        int32 ``(count, 4)``: top, left, height, width.
    """
    area, shape, place = jax.random.split(key, 3)
    share = jax.random.uniform(area, (count, TRIES), jnp.float32, *scale)
    log = jax.random.uniform(shape, (count, TRIES), jnp.float32, *map(float, np.log(ratio)))
    target, aspect = share * (height * width), jnp.exp(log)
    w = jnp.round(jnp.sqrt(target * aspect)).astype(jnp.int32)
    h = jnp.round(jnp.sqrt(target / aspect)).astype(jnp.int32)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = jnp.argmax(fits, axis=1)[:, None]
    w, h = (jnp.take_along_axis(side, first, axis=1)[:, 0] for side in (w, h))
    top, left = jax.random.uniform(place, (2, count), jnp.float32)
    top = jnp.minimum(jnp.floor(top * (height - h + 1)).astype(jnp.int32), height - h)
    left = jnp.minimum(jnp.floor(left * (width - w + 1)).astype(jnp.int32), width - w)
    drawn = jnp.stack([top, left, h, w], axis=1)
    return jnp.where(
        jnp.any(fits, axis=1)[:, None], drawn, jnp.array(_fallback(height, width, ratio))
    )


def _fallback(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    h, w = height, width
    if width / height < min(ratio):
        h = round(width / min(ratio))
    elif width / height > max(ratio):
        w = round(height * max(ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def random_resized_crop(
    images: jax.Array,
    key: Key,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> jax.Array:
    """A random rectangle of each image (`crop_boxes`) at one size (`resize_boxes`).

    Args:
        images: uint8 ``(n, h, w, channels)``. Images from a decoded folder are central squares, so
            the rectangles are rectangles of these.
        scale, ratio: torchvision's RandomResizedCrop defaults.
    """
    n, h, w, _ = images.shape
    boxes = crop_boxes(key, n, h, w, scale, ratio)
    return resize_boxes(images, boxes, height, width)


# --- what a recipe can name -----------------------------------------------------------------------

Augment = Callable[[jax.Array, Key, tuple[int, ...]], jax.Array]  # images, key, shape of an input


def fitted(images: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Images as a network sees them where nothing is random: the central part of larger ones.

    Args:
        shape: of one input of the network, ``(height, width, channels)`` for images.
    """
    if images.ndim != 4 or images.shape[1:] == tuple(shape):
        return images
    return centre_crop(images, shape[0], shape[1])


def _none(images: jax.Array, key: Key, shape: tuple[int, ...]) -> jax.Array:
    return fitted(images, shape)


def _pad_crop_flip(images: jax.Array, key: Key, shape: tuple[int, ...]) -> jax.Array:
    return pad_crop_flip(fitted(images, shape), key)


def _resized_crop_flip(scale: tuple[float, float], ratio: tuple[float, float]) -> Augment:
    def augment(images: jax.Array, key: Key, shape: tuple[int, ...]) -> jax.Array:
        cropping, flipping = jax.random.split(key)
        return flip(
            random_resized_crop(images, cropping, shape[0], shape[1], scale, ratio), flipping
        )

    return augment


AUGMENTATIONS: dict[str, Augment] = {
    "none": _none,
    # CIFAR-10/100 in SynFlow, GraSP and NTK-SAP, Tiny-ImageNet in SynFlow and GraSP: pad 4, random
    # crop, flip. open_lth flips first, which gives the same images with the same probabilities.
    "pad_crop_flip": _pad_crop_flip,
    # Tiny-ImageNet in NTK-SAP: RandomResizedCrop(64, scale=(.1, 1), ratio=(.8, 1.25)), flip.
    "resized_crop_flip_tiny": _resized_crop_flip((0.1, 1.0), (0.8, 1.25)),
    # ImageNet in NTK-SAP (and torchvision's defaults): RandomResizedCrop(224), flip. SynFlow draws
    # scale from (.2, 1) and adds grey images and colour jitter, which are not offered here.
    "resized_crop_flip": _resized_crop_flip((0.08, 1.0), (3 / 4, 4 / 3)),
}
