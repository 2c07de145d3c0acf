"""Augmentation against numpy written image by image, and normalisation in both precisions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import random_examples

from secateur.data.augment import flip, normalise, pad_crop, pad_crop_flip

IMAGES = random_examples(64, (6, 5, 3), 0).images


def crops(image: np.ndarray, pad: int) -> dict[bytes, tuple[int, int]]:
    """All padded crops of an image -> the corner each was cut at."""
    height, width, channels = image.shape
    found = {}
    for row in range(2 * pad + 1):
        for column in range(2 * pad + 1):
            black = np.zeros((height + 2 * pad, width + 2 * pad, channels), image.dtype)
            black[pad : pad + height, pad : pad + width] = image
            cut = black[row : row + height, column : column + width]
            found[cut.tobytes()] = (row, column)
    return found


@pytest.mark.parametrize("pad", [0, 1, 2])
def test_pad_crop_gives_crops_of_the_padded_image(pad: int) -> None:
    found = np.asarray(pad_crop(jnp.asarray(IMAGES), jax.random.key(0), pad))
    assert found.dtype == np.uint8
    assert found.shape == IMAGES.shape
    corners = [crops(image, pad)[cut.tobytes()] for image, cut in zip(IMAGES, found)]
    if pad:
        assert len(set(corners)) > 5, "each image has its own corner"


def test_all_places_alike() -> None:
    """3200 crops with pad 1: each of 9 corners 356 times, standard deviation 18."""
    image = np.arange(1, 31, dtype=np.uint8).reshape(6, 5, 1)
    many = jnp.asarray(np.broadcast_to(image, (3200, 6, 5, 1)))
    found = np.asarray(pad_crop(many, jax.random.key(1), 1))
    places = crops(image, 1)
    times = np.zeros((3, 3), int)
    for cut in found:
        times[places[cut.tobytes()]] += 1
    assert times.sum() == 3200
    assert abs(times - 3200 / 9).max() < 5 * 18


def test_padding_is_black() -> None:
    white = jnp.full((200, 4, 4, 1), 255, jnp.uint8)
    found = np.asarray(pad_crop(white, jax.random.key(0), 4))
    assert set(np.unique(found)) == {0, 255}


def test_flip() -> None:
    found = np.asarray(flip(jnp.asarray(IMAGES), jax.random.key(3)))
    assert found.dtype == np.uint8
    mirrored = [
        np.array_equal(new, old[:, ::-1]) and not np.array_equal(new, old)
        for new, old in zip(found, IMAGES)
    ]
    for new, old, turned in zip(found, IMAGES, mirrored):
        assert turned or np.array_equal(new, old)
    assert 16 < sum(mirrored) < 48, "64 coins: standard deviation 4"


def test_the_composition_has_two_independent_keys() -> None:
    images, key = jnp.asarray(IMAGES), jax.random.key(5)
    found = np.asarray(pad_crop_flip(images, key, 2))
    one, two = jax.random.split(key)
    np.testing.assert_array_equal(found, flip(pad_crop(images, one, 2), two))
    seen = set()
    for image, new in zip(IMAGES, found):
        straight, turned = crops(image, 2), crops(image[:, ::-1], 2)
        assert new.tobytes() in straight or new.tobytes() in turned
        seen.add(new.tobytes() in straight)
    assert seen == {True, False}


def test_keys_decide() -> None:
    images = jnp.asarray(IMAGES)
    one = pad_crop_flip(images, jax.random.key(0))
    np.testing.assert_array_equal(one, pad_crop_flip(images, jax.random.key(0)))
    assert not np.array_equal(one, pad_crop_flip(images, jax.random.key(1)))


def test_inside_jit_vmap_and_scan() -> None:
    """As lanes use it: the same images for all, a key for each; bit for bit what one alone gets."""
    images, keys = jnp.asarray(IMAGES[:8]), jax.random.split(jax.random.key(2), 3)
    lanes = jax.jit(jax.vmap(lambda key: pad_crop_flip(images, key, 2)))(keys)
    steps = jax.lax.scan(lambda c, key: (c, pad_crop_flip(images, key, 2)), 0, keys)[1]
    for i, key in enumerate(keys):
        alone = pad_crop_flip(images, key, 2)
        np.testing.assert_array_equal(lanes[i], alone)
        np.testing.assert_array_equal(steps[i], alone)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.float64, 1e-14)])
def test_normalise(dtype: type, tolerance: float) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    with (
        jax.enable_x64(dtype == jnp.float64),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        found = normalise(jnp.asarray(IMAGES), mean, std, dtype)
        assert found.dtype == dtype
        expected = (IMAGES.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
        floats = normalise(jnp.asarray(IMAGES, dtype), mean, std, dtype)
        expected = (IMAGES.astype(np.float64) - np.array(mean)) / np.array(std)
        np.testing.assert_allclose(floats, expected, rtol=tolerance, atol=255 * tolerance)
        one = normalise(jnp.ones((2, 7), dtype), (0.5,), (0.25,), dtype)
        np.testing.assert_array_equal(one, 2 * np.ones((2, 7)))


def test_normalised_training_images_have_mean_0_and_deviation_1() -> None:
    from secateur.data import load

    data = load("mnist5k")
    found = np.asarray(normalise(jnp.asarray(data.train.images), data.mean, data.std))
    assert abs(found.mean()) < 1e-4
    assert abs(found.std() - 1) < 1e-4
