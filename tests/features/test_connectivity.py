"""The line between two networks, point by point in NumPy, and both conventions of barriers."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.keys import key
from secateur.core.network import Network
from secateur.core.trees import ones_mask
from secateur.data.examples import Sets
from secateur.data.splits import from_arrays
from secateur.features.connectivity import Line, copies, instability, line
from secateur.networks.mlp import mlp
from secateur.train.evaluation import estimated_statistics, evaluator
from secateur.train.fit import fit
from secateur.train.recipes import Recipe
from secateur.train.training import Training

NET = mlp(4, input_shape=(5,), outputs=3)


@lru_cache
def data() -> Sets:
    rng = np.random.default_rng(0)
    parts = []
    for n in (60, 20, 30):
        x = rng.standard_normal((n, 5)).astype(np.float32)
        parts.append((x, np.argmax(x @ np.arange(15).reshape(5, 3) % 4, axis=1).astype(np.int32)))
    return from_arrays("toy", *parts)


def draw(seed: int, *widths: int) -> Any:
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    return {
        f"dense_{l}": {"kernel": normal(*pair), "bias": normal(pair[1])}
        for l, pair in enumerate(pairwise(widths), start=1)
    }


def by_hand(params: Any, part: Any) -> tuple[float, float]:
    x = (part.images - np.asarray(data().mean)) / np.asarray(data().std)
    one, two = params["dense_1"], params["dense_2"]
    z = np.maximum(x @ one["kernel"] + one["bias"], 0) @ two["kernel"] + two["bias"]
    z = 2.0 * z  # alpha
    log = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    rows = np.arange(len(z))
    return -log[rows, part.labels].mean(), np.mean(z.argmax(axis=1) != part.labels)


def test_the_line_point_by_point_inside_the_mask() -> None:
    rng = np.random.default_rng(1)
    first, second = draw(0, 5, 4, 3), draw(1, 5, 4, 3)
    mask = {
        name: {"kernel": rng.random(layer["kernel"].shape) < 0.7, "bias": None}
        for name, layer in first.items()
    }
    for params in (first, second):
        for name in params:
            params[name]["kernel"] *= mask[name]["kernel"]
    found = line(NET, (first, {}), (second, {}), data(), mask=mask, part="test", points=5, alpha=2)
    np.testing.assert_array_equal(found.positions, [0, 0.25, 0.5, 0.75, 1])
    for k, t in enumerate(found.positions):
        mixed = jax.tree.map(lambda a, b, t=t: (1 - t) * a + t * b, first, second)
        loss, error = by_hand(mixed, data().test)
        assert found.loss[k] == pytest.approx(loss, rel=1e-5)
        assert found.error[k] == pytest.approx(error, abs=1e-12)
    score = evaluator(NET, data(), "train", alpha=2.0)(first, {})
    loss, error = by_hand(first, data().train)
    assert score == pytest.approx((loss, 1 - error), rel=1e-5)
    dense = draw(2, 5, 4, 3)
    with pytest.raises(SecateurError, match="the second network has weights outside the mask"):
        line(NET, (first, {}), (dense, {}), data(), mask=mask)
    with pytest.raises(SecateurError, match="2 points or more"):
        line(NET, (first, {}), (second, {}), data(), points=1)
    with pytest.raises(SecateurError, match="part of the data 'tests'"):
        line(NET, (first, {}), (second, {}), data(), part="tests")


def test_barriers_in_both_conventions() -> None:
    t = np.linspace(0, 1, 5)
    found = Line(t, np.array([1.0, 5, 4, 3, 2]), np.array([0.1, 0.3, 0.4, 0.2, 0.1]), "test", "")
    assert found.barrier() == pytest.approx(0.3)
    assert found.barrier("error", "chord") == pytest.approx(0.3)  # equal where ends agree
    assert found.barrier("loss") == pytest.approx(3.5)
    assert found.barrier("loss", "chord") == pytest.approx(5 - 1.25)
    assert not found.stable
    straight = Line(t, t, 0.1 * t, "test", "")
    assert straight.barrier("loss") == pytest.approx(0.5)  # the worse end is a barrier of itself
    assert straight.barrier("loss", "chord") == pytest.approx(0, abs=1e-15)
    with pytest.raises(SecateurError, match="no convention of barriers 'max'"):
        found.barrier("loss", "max")


def norm_net() -> Network:
    """A norm and a linear layer, written out."""

    def forward(params: Any, stats: Any, x: Any, train: bool) -> Any:
        mean = jnp.mean(x @ params["w"], axis=0) if train else stats["mean"]
        after = {"mean": 0.9 * stats["mean"] + 0.1 * mean}
        return x @ params["w"] - mean[None], after

    return Network(
        "norm",
        (5,),
        3,
        lambda key: ({"w": jnp.zeros((5, 3))}, {"mean": jnp.zeros(3)}),
        lambda p, s, x: forward(p, s, x, False)[0],
        lambda p, s, x, key: forward(p, s, x, True),
    )


def test_statistics_run_on_over_training_batches() -> None:
    net, rng = norm_net(), np.random.default_rng(0)
    params = {"w": rng.standard_normal((5, 3)).astype(np.float32)}
    stats = {"mean": np.full(3, 100, np.float32)}
    found = estimated_statistics(net, params, stats, data(), batches=200, batch=60)
    x = (data().train.images - np.asarray(data().mean)) / np.asarray(data().std)
    # Every batch is the whole training set, so that the mean runs to its own.
    np.testing.assert_allclose(found["mean"], (x @ params["w"]).mean(axis=0), atol=1e-5)
    few = estimated_statistics(net, params, stats, data(), batches=2, batch=60)
    np.testing.assert_allclose(
        few["mean"], 0.81 * 100 + 0.19 * (x @ params["w"]).mean(axis=0), rtol=1e-5
    )
    assert estimated_statistics(NET, draw(0, 5, 4, 3), {}, data()) == {}
    with pytest.raises(SecateurError, match="at least 1 of 1"):
        estimated_statistics(net, params, stats, data(), batches=0)


@pytest.mark.long
def test_copies_of_a_convex_training_have_no_barrier() -> None:
    """Softmax regression: the loss is convex, so that no line rises above its chord."""
    net = mlp(input_shape=(5,), outputs=3)
    params, stats = net.init(jax.random.key(0))
    recipe = Recipe("sgd", 0.1, batch=10, steps=60, evaluate_every=30)
    mask = ones_mask(net.prunable(params))
    training = Training(net, params, stats, data(), recipe, mask, key(0, "train"))
    twice = copies(training)
    ends = [fit(one) for one in twice]
    moved = np.abs(ends[0].params["dense_1"]["kernel"] - ends[1].params["dense_1"]["kernel"])
    assert moved.max() > 1e-3  # another order of the data
    found = instability(training, *ends, part="train", points=7)
    assert found.barrier("loss", "chord") <= 1e-6
    assert found.loss[0] == pytest.approx(ends[0].last["train_loss"], rel=1e-5)
    assert found.error[-1] == pytest.approx(1 - ends[1].last["train_accuracy"], abs=1e-9)
    same = instability(replace(training, mask=None), ends[0], ends[0], points=3)
    np.testing.assert_allclose(same.loss, same.loss[0], rtol=1e-6)
