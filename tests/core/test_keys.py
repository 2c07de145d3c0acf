"""Random streams by name."""

from __future__ import annotations

import itertools
import zlib

import jax
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.keys import fold, key


def words(k):
    return tuple(np.asarray(jax.random.key_data(k)).tolist())


def test_every_path_has_a_stream_of_its_own():
    parts = ["initial", "train", "order", "1", 0, 1, 2]
    paths = [
        (s, *p) for s in (0, 1, 2) for n in range(3) for p in itertools.product(parts, repeat=n)
    ]
    assert len({words(key(*p)) for p in paths}) == len(paths)


def test_a_number_and_its_digits_are_two_streams():
    assert words(key(0, 3)) != words(key(0, "3"))
    assert words(key(0, "ab")) != words(key(0, "a", "b"))
    assert words(key(0, "a", "b")) != words(key(0, "b", "a"))


def test_a_key_is_the_same_everywhere():
    """No ``hash()``, which differs from process to process: results are found by these streams."""
    by_hand = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), zlib.crc32(b"order")), 12)
    assert words(key(7, "order", 12)) == words(by_hand) == words(fold(key(7), "order", 12))


def test_streams_are_uncorrelated():
    """20 streams of 4,000 normals: no two correlate beyond 5 sigma (a false alarm in 10,000)."""
    draws = np.stack([jax.random.normal(key(0, "stream", k), (4000,)) for k in range(20)])
    correlations = np.corrcoef(draws)[np.triu_indices(20, 1)]
    assert np.max(np.abs(correlations)) < 5 / np.sqrt(4000)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40])
def test_a_seed_that_jax_would_cut_is_refused(seed):
    """jax.random.key(2**32) is jax.random.key(0): two replicates would be one."""
    with pytest.raises(SecateurError, match="a seed is a whole number"):
        key(seed)
