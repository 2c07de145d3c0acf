"""Laws of cutting three sets out of two, and of a user's own arrays."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published import random_examples

from secateur.core.errors import SecateurError
from secateur.data import Dataset, Examples, from_arrays, load, split
from secateur.data.splits import quotas


def numbered(labels: list[int]) -> Dataset:
    """A data set whose images are their own row numbers, so that every example is recognisable."""
    n = len(labels)
    rows = np.arange(n, dtype=np.uint32).view(np.uint8).reshape(n, 2, 2, 1)
    test = random_examples(3, (2, 2, 1), 0)
    return Dataset(
        name="numbered",
        train=Examples(rows, np.array(labels, np.int32)),
        test=test,
        classes=tuple("0123456789"),
        mean=(0.5,),
        std=(0.5,),
        sha256="0" * 64,
        source="nowhere",
        citation="",
        licence="",
        title="",
    )


def rows(part: Examples) -> np.ndarray:
    return np.ascontiguousarray(part.images).reshape(-1).view(np.uint32)


datasets = st.lists(st.integers(0, 4), min_size=2, max_size=60).map(numbered)


@settings(max_examples=150, deadline=None)
@given(datasets, st.data(), st.integers(0, 2**40))
def test_laws_of_the_cut(dataset: Dataset, data: st.DataObject, seed: int) -> None:
    n = len(dataset.train)
    wanted = data.draw(st.integers(1, n - 1))
    sets = split(dataset, wanted, seed)
    kept, cut = rows(sets.train), rows(sets.validation)
    assert len(cut) == wanted, "exact count"
    assert sorted([*kept, *cut]) == list(range(n)), "disjoint, and nothing lost"
    assert (np.diff(kept) > 0).all(), "published order"
    assert (np.diff(cut) > 0).all(), "published order"
    for part, chosen in ((sets.train, kept), (sets.validation, cut)):
        np.testing.assert_array_equal(part.labels, dataset.train.labels[chosen])
        assert part.labels.dtype == np.int32
    assert sets.test is dataset.test, "untouched"
    for label in np.unique(dataset.train.labels):
        size = int((dataset.train.labels == label).sum())
        share = int((sets.validation.labels == label).sum())
        assert abs(share - Fraction(wanted * size, n)) < 1, "stratified"
    again = split(dataset, wanted, seed)
    np.testing.assert_array_equal(rows(again.validation), cut)
    assert sets.split == {"validation": wanted, "seed": seed, "stratified": True}
    json.dumps(sets.split)


def test_quotas_by_hand() -> None:
    """10 of 7, 2, 1, 40: exact shares 1.4, 0.4, 0.2, 8.0; what remains goes to the first."""
    assert quotas(np.array([7, 2, 1, 40]), 10).tolist() == [2, 0, 0, 8]
    assert quotas(np.array([5923, 6742]), 12665).tolist() == [5923, 6742]
    # MNIST's own sizes are beyond what a product in 32 bits can hold.
    big = np.array([3_000_000, 1_000_000], np.int32)
    assert quotas(big, 400_001).tolist() == [300_001, 100_000]


def test_the_cut_never_changes() -> None:
    """Philox's stream is fixed by its definition: any machine and any numpy must cut these rows.

    Results in stores depend on the cut: if this fails, the studies' meaning numbers must be raised.
    """
    dataset = numbered([0, 1] * 10)
    assert rows(split(dataset, 4, 0).validation).tolist() == [0, 2, 11, 17]
    assert rows(split(dataset, 4, 1).validation).tolist() == [2, 3, 5, 10]


def test_seeds_cut_differently_and_evenly() -> None:
    dataset = numbered([0] * 30 + [1] * 10)
    cuts = [rows(split(dataset, 8, seed).validation) for seed in range(400)]
    assert len({tuple(cut) for cut in cuts}) > 395
    # Each row is cut with probability 1/5; over 400 seeds 80 times, standard deviation 8.
    times = np.bincount(np.concatenate(cuts), minlength=40)
    assert times.sum() == 400 * 8
    assert abs(times - 80).max() < 5 * 8


@pytest.mark.parametrize("wanted", [0, -1, 20, 21])
def test_a_cut_that_leaves_nothing(wanted: int) -> None:
    with pytest.raises(SecateurError, match=rf"{wanted} cannot be cut from the 20 .* 1 to 19\.$"):
        split(numbered([0, 1] * 10), wanted)


def test_a_negative_seed() -> None:
    with pytest.raises(SecateurError, match="seed of the split is -1"):
        split(numbered([0, 1]), 1, seed=-1)


# --- a user's own arrays --------------------------------------------------------------------------


def own(seed: int = 0, n: int = 20, shape: tuple[int, ...] = (4, 4, 3)) -> tuple[Any, Any]:
    part = random_examples(n, shape, seed, classes=3)
    part.labels[:3] = [0, 1, 2]
    return part.images, part.labels


def test_three_given_sets() -> None:
    train, validation, test = own(0), own(1, 5), own(2, 6)
    sets = from_arrays("mine", train, Examples(*validation), test)
    np.testing.assert_array_equal(sets.train.images, train[0])
    np.testing.assert_array_equal(sets.validation.labels, validation[1])
    np.testing.assert_array_equal(sets.test.images, test[0])
    assert sets.classes == ("0", "1", "2")
    assert sets.split == {"validation": 5, "given": True}
    np.testing.assert_allclose(sets.mean, (train[0] / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(sets.std, (train[0] / 255).std((0, 1, 2)), rtol=1e-12)


def test_a_number_cuts_as_split_does() -> None:
    dataset = numbered([0, 1, 1, 1] * 6)
    wanted = split(dataset, 8, 3)
    pair = (dataset.train.images, dataset.train.labels.tolist())
    sets = from_arrays("mine", pair, 8, dataset.test, seed=3)
    np.testing.assert_array_equal(rows(sets.validation), rows(wanted.validation))
    assert sets.split == wanted.split
    # The validation set has no part in the moments.
    np.testing.assert_allclose(sets.mean, (wanted.train.images / 255).mean(), rtol=1e-12)


def test_grey_images_get_a_channel() -> None:
    sets = from_arrays("mine", own(0, 9, (4, 5)), 3, own(1, 9, (4, 5)))
    assert sets.train.images.shape == (6, 4, 5, 1)
    assert len(sets.mean) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(7,), (4, 4), (3, 4, 2)])
def test_floats_are_taken_as_they_are(dtype: type, shape: tuple[int, ...]) -> None:
    values: np.ndarray = np.random.default_rng(0).normal(3, 2, (50, *shape)).astype(dtype)
    labels = np.arange(50) % 2
    sets = from_arrays("mine", (values, labels), (values, labels), (values, labels))
    assert sets.train.images.dtype == dtype
    assert sets.train.images.shape == (50, *shape)
    channels = shape[-1] if len(shape) == 3 else 1
    expected = values.astype(np.float64).reshape(-1, channels)
    np.testing.assert_allclose(sets.mean, expected.mean(0), rtol=1e-6)
    np.testing.assert_allclose(sets.std, expected.std(0), rtol=1e-6)


def test_a_constant_channel_is_not_divided_by_zero() -> None:
    images = np.full((6, 2, 2, 2), 0.1)
    images[..., 1] = np.arange(24).reshape(6, 2, 2)
    sets = from_arrays("mine", (images, [0, 1] * 3), 2, (images, [0, 1] * 3))
    assert sets.std[0] == 1.0
    assert sets.std[1] > 1
    grey = from_arrays("mine", (np.full((4, 2, 2), 7, np.uint8), [0] * 4), 1, own(0, 4, (2, 2)))
    assert grey.std == (1.0,)


def test_given_moments_and_classes() -> None:
    sets = from_arrays(
        "mine", own(), 5, own(1), mean=(0.1, 0.2, 0.3), std=[1, 2, 3], classes=["a", "b", "c", "d"]
    )
    assert sets.mean == (0.1, 0.2, 0.3)
    assert sets.std == (1.0, 2.0, 3.0)
    assert sets.classes == ("a", "b", "c", "d")


def test_the_hash_is_of_the_content() -> None:
    images, labels = own()
    base = from_arrays("mine", (images, labels), 5, own(1)).sha256
    same = (np.asfortranarray(images), labels.astype(np.int64))
    assert from_arrays("mine", same, 5, own(1)).sha256 == base
    changed = images.copy()
    changed[-1, -1, -1, -1] ^= 1
    assert from_arrays("mine", (changed, labels), 5, own(1)).sha256 != base
    assert from_arrays("mine", (images, labels[::-1].copy()), 5, own(1)).sha256 != base
    assert from_arrays("mine", (images, labels), 6, own(1)).sha256 != base


X, Y = own()
NAN = X.astype(np.float32)
NAN[4, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("train", "validation", "test", "extra", "says"),
    [
        ((X, Y[:-1]), 5, (X, Y), {}, r"train .* one label for each of the 20 images"),
        ((X, Y[:, None]), 5, (X, Y), {}, r"labels of shape \(20, 1\)"),
        ((X, Y), 5, (X[:0], Y[:0]), {}, r"the test set is empty"),
        ((X, Y), (X[:0], Y[:0]), (X, Y), {}, r"the validation set is empty"),
        ((NAN, Y), 5, (NAN[:3], Y[:3]), {}, r"1 of the train images .* first at row 4"),
        ((X.astype(int), Y), 5, (X, Y), {}, r"train images are int64; give uint8"),
        ((X, Y), 5, (X.astype(np.float32), Y), {}, r"test images are float32 .* train .* uint8"),
        ((X, Y), 5, (X[:, :2], Y), {}, r"test images are uint8 \(2, 4, 3\)"),
        ((X, Y.astype(float)), 5, (X, Y), {}, r"train labels are float64; give whole numbers"),
        ((X, np.eye(3)[Y]), 5, (X, Y), {}, r"labels of shape \(20, 3\)"),
        ((X, Y - 1), 5, (X, Y), {}, r"a train label is -1"),
        ((X, Y), 5, (X, Y.astype(np.int64) + 2**40), {}, r"a test label is 10995"),
        (
            (X, Y),
            5,
            (X, Y + 5),
            {"classes": ["a", "b", "c"]},
            r"a label is 7, .* 3 classes .* 0 to 2",
        ),
        ((X, Y), 20, (X, Y), {}, r"20 cannot be cut from the 20 training examples of mine"),
        ((X, Y), 5, (X, Y), {"mean": 0.5}, r"mean is 0.5; give 3 finite numbers"),
        ((X, Y), 5, (X, Y), {"std": (1, 0, 1)}, r"std is \(1, 0, 1\); each must be above 0"),
        ((X, Y), 5, (X, Y), {"mean": (1, np.nan, 1)}, r"3 finite numbers"),
        (X, 5, (X, Y), {}, r"the train set is a ndarray, expected a pair"),
        ((Y, Y), 5, (X, Y), {}, r"train images are int32"),
        ((Y.astype(float), Y), 5, (X, Y), {}, r"shape \(20,\); the first axis must count examples"),
    ],
)
def test_mistakes_are_one_sentence(
    train: Any, validation: Any, test: Any, extra: dict[str, Any], says: str
) -> None:
    with pytest.raises(SecateurError, match=says) as caught:
        from_arrays("mine", train, validation, test, **extra)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_given_arrays_are_not_changed(tmp_path: Path) -> None:
    images, labels = own()
    before = images.copy(), labels.copy()
    from_arrays("mine", (images, labels), 5, own(1))
    np.testing.assert_array_equal(images, before[0])
    np.testing.assert_array_equal(labels, before[1])


def test_mnist5k_cut() -> None:
    sets = split(load("mnist5k"), 500)
    assert np.bincount(sets.validation.labels).tolist() == [50] * 10
    assert np.bincount(sets.train.labels).tolist() == [350] * 10
    assert np.bincount(sets.test.labels).tolist() == [100] * 10
