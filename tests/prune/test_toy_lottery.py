"""The compiled chain of a committee machine against a loop that trains on the examples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.keys import key
from secateur.core.quadratic import Quadratic
from secateur.data import toys
from secateur.networks.committee import draw, function, ntk
from secateur.prune.toy_lottery import REWINDS, chain, counts_of, keep_largest
from secateur.train.committee import rate_for, sample

D, N, STEPS = 3, 5, 12
ALPHA, EPSILON = 2.0, 0.5
COUNTS = counts_of(D * N, 3, 0.3)


def test_counts_and_masks_are_those_of_iterative_pruning(x64: Any) -> None:
    assert counts_of(2000, 2) == [2000, 1600, 1280]
    w = jnp.array([[0.5, -2.0, 0.5], [1.0, 0.0, -0.5]])
    mask = keep_largest(w, jnp.ones_like(w), 3)
    np.testing.assert_array_equal(mask, [[1, 1, 0], [1, 0, 0]])  # of equals the first
    again = keep_largest(jnp.array([[0.0, 1.0, 9.0], [2.0, 9.0, 9.0]]), mask, 2)
    np.testing.assert_array_equal(again, [[0, 1, 0], [1, 0, 0]])  # the pruned stay pruned


def by_hand(way: str, centred: bool, teacher: Quadratic, x: jax.Array, seed: Any) -> list[Any]:
    """Kernel and loss at the end of each level, gradients by JAX on the examples."""
    y, rate = teacher(x), float(rate_for(N, ALPHA, EPSILON))
    initial: Any = draw(seed, D, N)
    trained: Any = initial
    mask: Any = np.ones((D, N))
    found = []
    for level, count in enumerate(COUNTS):
        size = np.where(mask > 0, np.abs(trained), -1).ravel()
        mask = np.zeros(D * N)
        mask[np.argsort(-size, kind="stable")[:count]] = 1
        mask = mask.reshape(D, N)
        if level == 0 or way == "rewind":
            start = initial
        else:
            start = trained if way == "none" else draw(jax.random.fold_in(seed, level), D, N)
        w = first = start * mask
        centre = initial if way == "none" else first

        def loss(w: jax.Array, centre: jax.Array = centre) -> jax.Array:
            f = function(w, x, ALPHA, EPSILON)
            f = f - function(centre, x, ALPHA, EPSILON) if centred else f
            return jnp.mean((f - y) ** 2) / 2

        step = jax.jit(lambda w, loss=loss, mask=mask: w - rate * jax.grad(loss)(w) * mask)
        for _ in range(STEPS):
            w = step(w)
        found.append((first, w, float(loss(w))))
        trained = np.asarray(w)
    return found


@pytest.mark.parametrize(
    ("way", "centred"),
    [
        ("none", True),
        pytest.param("random", False, marks=pytest.mark.long),
        pytest.param("rewind", False, marks=pytest.mark.long),
        pytest.param("rewind", True, marks=pytest.mark.long),
    ],
)
def test_a_chain_is_training_and_pruning_level_by_level(x64: Any, way: str, centred: bool) -> None:
    seed = key(3)
    teacher = toys.committee_teacher(key(1), D)
    x, probe = toys.gaussian(key(2), 40, D), toys.gaussian(key(4), 6, D)
    levels = chain(
        seed,
        sample(x, teacher(x)),
        teacher,
        jnp.asarray(COUNTS),
        probe,
        rewind=REWINDS.index(way),
        alpha=ALPHA,
        epsilon=EPSILON,
        rate=rate_for(N, ALPHA, EPSILON),
        centred=float(centred),
        units=N,
        steps=STEPS,
    )
    wanted = by_hand(way, centred, teacher, x, seed)
    np.testing.assert_allclose(levels.density, np.array(COUNTS) / (D * N))
    np.testing.assert_allclose(levels.loss, [loss for _, _, loss in wanted], rtol=1e-8)
    for k, (first, last, _) in enumerate(wanted):
        moved = np.linalg.norm(last - first) / np.linalg.norm(first)
        np.testing.assert_allclose(levels.moved[k], moved, rtol=1e-7)
        a, b = (np.asarray(ntk(w, probe, epsilon=EPSILON)) for w in (first, last))
        np.testing.assert_allclose(
            levels.kernel_moved[k], np.linalg.norm(b - a) / np.linalg.norm(a), rtol=1e-7
        )
