"""Selection by rank against a stable full sort, bit for bit."""

from __future__ import annotations

from functools import partial
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from secateur.core.errors import SecateurError
from secateur.prune.select import count_true, image, top, top_of, unranked

N = 40
_top = jax.jit(partial(top, ties="index"))


def sorted_top(scores: np.ndarray, alive: np.ndarray, keep: int) -> np.ndarray:
    """The definition: a stable sort of -scores over those alive, cut after ``keep``."""
    places = np.flatnonzero(alive)
    best = places[np.argsort(-scores[places].astype(np.longdouble), kind="stable")[:keep]]
    kept = np.zeros(len(scores), bool)
    kept[best] = True
    return kept


def floats(dtype: Any) -> st.SearchStrategy[np.ndarray]:
    """Any floats but NaN; or few values, so that ties are many and zeros have both signs."""
    width = np.dtype(dtype).itemsize * 8
    anything = st.floats(width=width, allow_nan=False)  # type: ignore[call-overload]
    few = st.sampled_from([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, 1e-45 if width == 32 else 5e-324])
    return st.one_of(hnp.arrays(dtype, N, elements=x) for x in (anything, few))


@given(floats(np.float32), hnp.arrays(bool, N), st.integers(0, N))
def test_as_a_stable_sort_float32(scores: np.ndarray, alive: np.ndarray, keep: int) -> None:
    assert (np.asarray(_top(scores, alive, keep)) == sorted_top(scores, alive, keep)).all()


@given(floats(np.float64), hnp.arrays(bool, N), st.integers(0, N))
def test_as_a_stable_sort_float64(scores: np.ndarray, alive: np.ndarray, keep: int) -> None:
    with jax.enable_x64(True):
        assert (np.asarray(_top(scores, alive, keep)) == sorted_top(scores, alive, keep)).all()


def test_half_precision() -> None:
    scores = jax.random.normal(jax.random.key(0), (N,)).round(1).astype(jnp.bfloat16)
    alive = np.ones(N, bool)
    wanted = sorted_top(np.asarray(scores.astype(jnp.float32)), alive, 17)
    assert (np.asarray(_top(scores, jnp.asarray(alive), 17)) == wanted).all()


def test_image_orders_all_kinds_of_floats() -> None:
    x = np.array([-np.inf, -2, -1e-45, 0, 1e-45, 1e-38, 1, np.inf], np.float32)
    images = np.asarray(image(jnp.asarray(x))).astype(np.int64)
    assert (np.diff(images) > 0).all()
    assert images[0] > 0  # below it is room for what is not alive
    assert image(jnp.float32(-0.0)) == image(jnp.float32(0.0))


def test_lanes_and_traced_counts() -> None:
    scores = np.asarray(jax.random.normal(jax.random.key(1), (5, N))).round(1)
    alive = np.asarray(jax.random.bernoulli(jax.random.key(2), 0.7, (5, N)))
    keep = np.array([0, 3, 11, 20, N])
    found = np.asarray(jax.vmap(_top)(scores, alive, keep))
    for i in range(5):
        assert (found[i] == sorted_top(scores[i], alive[i], int(keep[i]))).all()


@pytest.mark.parametrize("shape", [(0,), (1,), (31,), (32,), (5, 13), (3, 32), (70, 1001)])
@pytest.mark.parametrize("part", [0, 0.3, 1])
def test_counts_of_any_length(shape: tuple[int, ...], part: float) -> None:
    found = np.random.default_rng(0).random(shape) < part
    assert jax.jit(count_true)(found) == found.sum()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_what_is_nan_or_infinite_counts_where_it_competes(dtype: Any) -> None:
    most = jnp.finfo(dtype).max
    scores = jnp.asarray([jnp.nan, -jnp.nan, jnp.inf, -jnp.inf, most, -most, 0, 1e-45], dtype)
    competing = jnp.tile(jnp.asarray([True, False]), 8)
    assert jax.jit(unranked)(jnp.repeat(scores, 2), competing) == 4
    assert jax.jit(unranked)(scores, jnp.zeros(8, bool)) == 0


def test_few_that_compete_among_many() -> None:
    """Late rounds of SynFlow: a sample holds a dozen of those alive, and the next few go."""
    n, rng = 100_000, np.random.default_rng(0)
    scores = np.exp(5 * rng.normal(size=n)).astype(np.float32)
    alive = rng.random(n) < 0.005
    cut = jax.jit(top)
    for keep in (alive.sum() - 20, alive.sum() - 1, alive.sum(), alive.sum() + 1, 1):
        found = np.asarray(cut(scores, alive, int(keep)))
        assert (found == sorted_top(scores, alive, int(keep))).all()


@pytest.mark.parametrize("kind", ["normal", "few values", "mostly zero", "blocks", "constant"])
def test_many_scores_where_a_sample_says_where_to_look(kind: str) -> None:
    n, rng = 20_000, np.random.default_rng(0)
    x = rng.normal(size=n).astype(np.float32)
    scores = {
        "normal": x,
        "few values": x.round(1),
        "mostly zero": np.where(rng.random(n) < 0.9, 0, x),
        "blocks": np.where(np.arange(n) < 15_000, 1e-6 * x, x),  # a sample may miss the border
        "constant": 0 * x,
    }[kind].astype(np.float32)
    alive = rng.random(n) < 0.8
    found = jax.jit(jax.vmap(top, (None, None, 0)))
    keep = np.array([0, 1, 700, 5_003, 15_500, n])
    for k, mask in zip(keep, np.asarray(found(scores, alive, keep))):
        assert (mask == sorted_top(scores, alive, int(k))).all()


@pytest.mark.long
def test_random_ties_are_exact_uniform_and_below_what_is_larger() -> None:
    scores = jnp.asarray([2.0, *[1.0] * 8, 0.0])
    alive = jnp.ones(10, bool)
    keys = jax.random.split(jax.random.key(0), 4000)
    found = np.asarray(jax.jit(jax.vmap(lambda k: top(scores, alive, 4, "random", k)))(keys))
    assert (found.sum(1) == 4).all()
    assert found[:, 0].all()
    assert not found[:, 9].any()
    share = found[:, 1:9].mean(0)  # each 3/8, standard error 0.0077
    assert np.abs(share - 3 / 8).max() < 4 * np.sqrt(3 / 8 * 5 / 8 / 4000)


def test_thresholds_of_published_codes_drop_or_keep_all_ties() -> None:
    scores, alive = jnp.asarray([3.0, 1.0, 1.0, 1.0, 0.0]), jnp.ones(5, bool)
    for ties, kept in (("threshold-drop", 1), ("threshold-keep", 4)):
        cut = jax.jit(partial(top, ties=ties))
        assert cut(scores, alive, 2).tolist() == [True] * kept + [False] * (5 - kept)
        assert cut(scores, alive, 4).tolist() == [*[True] * 4, False]  # no tie at the border


def test_several_arrays_are_ranked_together_in_their_order() -> None:
    a, b = jnp.ones((2, 3)), jnp.ones((4,))
    found = jax.jit(top_of)([b, a], [b > 0, a > 0], 6)
    assert found[0].all()
    assert found[1].tolist() == [[True, True, False], [False] * 3]


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(SecateurError, match="Did you mean 'index'"):
        top(jnp.ones(3), jnp.ones(3, bool), 1, "indx")
