"""Augmentation against numpy written image by image, and normalisation in both precisions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import random_examples

from secateur.data.augment import (
    AUGMENTATIONS,
    centre_crop,
    crop_boxes,
    fitted,
    flip,
    normalise,
    pad_crop,
    pad_crop_flip,
    random_resized_crop,
    resize,
    resize_boxes,
)

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
@pytest.mark.long
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


@pytest.mark.long
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


# --- rectangles and sizes, against Pillow and torchvision's definition ----------------------------


def photographs(n: int, height: int, width: int) -> np.ndarray:
    """Smooth pictures with noise, as photographs are: uint8 (n, height, width, 3)."""
    pictures = pytest.importorskip("pictures")
    return np.stack([np.asarray(pictures.picture(k, width, height)) for k in range(n)])


def by_pillow(image: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    top, left, h, w = map(int, box)
    cut = Image.fromarray(image).crop((left, top, left + w, top + h))
    return np.asarray(cut.resize((width, height), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(("height", "width"), [(24, 15), (64, 64), (5, 7)])
def test_rectangles_are_resized_as_pillow_does(height: int, width: int) -> None:
    """Growing and shrinking; Pillow sums in fixed point, so halves may round the other way."""
    images = photographs(12, 30, 40)
    rng = np.random.default_rng(0)
    h, w = rng.integers(1, 31, 12), rng.integers(1, 41, 12)
    boxes = np.stack([rng.integers(0, 31 - h), rng.integers(0, 41 - w), h, w], axis=1)
    compiled = jax.jit(resize_boxes, static_argnums=(2, 3))
    found = compiled(jnp.asarray(images), jnp.asarray(boxes), height, width)
    assert found.dtype == jnp.uint8
    expected = np.stack([by_pillow(i, b, height, width) for i, b in zip(images, boxes)])
    apart = np.abs(np.asarray(found, int) - expected)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 0.04


def test_resize_is_pillows_and_nothing_at_the_same_size() -> None:
    images = photographs(4, 30, 40)
    whole = np.tile([0, 0, 30, 40], (4, 1))
    expected = np.stack([by_pillow(i, b, 18, 23) for i, b in zip(images, whole)])
    compiled = jax.jit(resize, static_argnums=(1, 2))
    assert np.abs(np.asarray(compiled(images, 18, 23), int) - expected).max() <= 1
    np.testing.assert_array_equal(compiled(images, 30, 40), images)


@pytest.mark.parametrize(("size", "cut"), [((256, 256), 224), ((9, 7), 4), ((10, 7), 7)])
def test_centre_crop_is_torchvisions(size: tuple[int, int], cut: int) -> None:
    image = np.arange(size[0] * size[1], dtype=np.uint32).astype(np.uint8).reshape(1, *size, 1)
    top, left = round((size[0] - cut) / 2.0), round((size[1] - cut) / 2.0)
    found = centre_crop(jnp.asarray(image), cut, cut)
    np.testing.assert_array_equal(found, image[:, top : top + cut, left : left + cut])


def torchvision_box(draws: Any, height: int, width: int, scale: Any, ratio: Any) -> tuple[int, ...]:
    """RandomResizedCrop.get_params with the numbers it would have drawn; None for the place."""
    import math

    for share, log in draws:
        target, aspect = share * height * width, math.exp(log)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return h, w
    if width / height < min(ratio):
        return round(width / min(ratio)), width
    if width / height > max(ratio):
        return height, round(height * max(ratio))
    return height, width


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (64, 64, (0.1, 1.0), (0.8, 1.25)),
        (256, 256, (0.08, 1.0), (3 / 4, 4 / 3)),
        (20, 90, (0.9, 1.0), (3 / 4, 4 / 3)),  # nothing fits: the fallback
        (90, 20, (0.9, 1.0), (3 / 4, 4 / 3)),
        (30, 40, (0.5, 1.0), (1.0, 2.0)),
    ],
)
@pytest.mark.long
def test_boxes_are_drawn_as_torchvision_draws_them(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    n, key = 2000, jax.random.key(4)
    boxes = np.asarray(jax.jit(lambda key: crop_boxes(key, n, height, width, scale, ratio))(key))
    area, shape, _ = jax.random.split(key, 3)
    share = jax.random.uniform(area, (n, 10), jnp.float32, *scale)
    log = jax.random.uniform(shape, (n, 10), jnp.float32, *map(float, np.log(ratio)))
    draws = np.stack([share, log], axis=2)
    expected = np.array([torchvision_box(d, height, width, scale, ratio) for d in draws])
    assert (boxes[:, 2:] != expected).mean() < 0.002, "float32 may round a half the other way"
    room = np.array([height, width]) - boxes[:, 2:]
    assert np.all(boxes[:, :2] >= 0)
    assert np.all(boxes[:, :2] <= room)
    fallen = room.sum(1) == 0
    if height == width:
        shares = boxes[:, 2] * boxes[:, 3] / (height * width)
        assert scale[0] * 0.95 < shares.min() < scale[0] * 1.3
        assert shares.max() > 0.9
        # Places are uniform over all that are possible: mean 1/2, deviation 1 / sqrt(12).
        places = ((boxes[:, :2] + 0.5) / (room + 1))[~fallen]
        assert np.abs(places.mean(0) - 0.5).max() < 5 / np.sqrt(12 * len(places))
        assert abs(np.log(boxes[:, 3] / boxes[:, 2]).mean()) < 0.02
    else:
        assert len(np.unique(boxes[:, 2:], axis=0)) >= 1


def test_a_random_crop_is_its_box_resized_and_keys_decide() -> None:
    images = jnp.asarray(photographs(6, 32, 32))
    tiny = (0.1, 1.0), (0.8, 1.25)
    crop = jax.jit(lambda key: random_resized_crop(images, key, 16, 16, *tiny))
    found = crop(jax.random.key(1))
    boxes = jax.jit(lambda key: crop_boxes(key, 6, 32, 32, *tiny))(jax.random.key(1))
    expected = np.stack([by_pillow(np.asarray(i), b, 16, 16) for i, b in zip(images, boxes)])
    assert np.abs(np.asarray(found, int) - expected).max() <= 1
    assert len(np.unique(boxes, axis=0)) == 6, "each image its own box"
    assert not np.array_equal(found, crop(jax.random.key(2)))


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.long
def test_every_augmentation_gives_inputs_of_the_network(name: str) -> None:
    """From larger images, compiled, as lanes with a key each."""
    images = jnp.asarray(photographs(5, 20, 20))
    lanes = jax.jit(jax.vmap(lambda key: AUGMENTATIONS[name](images, key, (16, 16, 3))))
    found = lanes(jax.random.split(jax.random.key(0), 2))
    assert found.shape == (2, 5, 16, 16, 3)
    assert found.dtype == jnp.uint8
    assert (name == "none") == np.array_equal(found[0], found[1])


def test_fitted_leaves_what_fits_and_floats_of_other_shapes() -> None:
    images = jnp.asarray(photographs(2, 16, 16))
    assert fitted(images, (16, 16, 3)) is images
    rows = jnp.ones((3, 7))
    assert fitted(rows, (7,)) is rows
    np.testing.assert_array_equal(fitted(images, (10, 10, 3)), images[:, 3:13, 3:13])
