"""Random and magnitude pruning against their definitions and closed forms."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import pytest

from secateur.core.keys import key
from secateur.core.trees import alive, flatten
from secateur.networks.mlp import lenet_300_100, mlp
from secateur.prune.criteria.magnitude import Lamp, Magnitude
from secateur.prune.find import find
from secateur.prune.magnitude import keep_largest
from secateur.prune.quotas import PerLayer

NET = mlp(8, 6, input_shape=(4, 3, 1), outputs=3)


def test_lamp_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    t = rng.normal(size=(7, 5)).round(1).astype(np.float32)  # with ties
    m = rng.random((7, 5)) < 0.7
    score = jax.jit(lambda m, t: Lamp().score(None, t, m, None))  # type: ignore[arg-type]
    found = np.asarray(score({"k": m}, {"k": t})["k"])
    for place in zip(*np.nonzero(m)):
        larger = m & (np.abs(t) >= np.abs(t[place]))
        wanted = t[place] ** 2 / (t[larger] ** 2).sum() if t[place] else 0
        assert found[place] == pytest.approx(wanted, rel=1e-5)
    largest = np.abs(np.where(m, t, 0)).max()
    alike = m & (np.abs(t) == largest)
    np.testing.assert_allclose(found[alike], 1 / alike.sum(), rtol=1e-6)


def test_rescaled_magnitudes() -> None:
    t = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    mask = {"k": np.ones((4, 3), bool)}
    for over, scale in (("one", 1), ("std", t.std()), ("norm", np.linalg.norm(t))):
        found = Magnitude(over).score(None, {"k": t}, mask, None)  # type: ignore[arg-type]
        np.testing.assert_allclose(found["k"], np.abs(t) / scale, rtol=1e-5)


def test_the_random_of_ntts_code_keeps_the_fan_in_of_magnitude_and_honest_random_does_not() -> None:
    found = find(NET, None, "ntt-random-variable", 0.3, seed=1, progress=False)
    params = NET.init(key(1, "initial"))[0]
    mask = NET.prunable(params)
    shapes = {k: np.shape(m) for k, m in flatten(mask).items() if m is not None}
    counts = dict(zip(shapes, PerLayer().quotas(shapes, 49)))
    largest = flatten(keep_largest(params, mask, counts))
    for name, m in flatten(found.mask).items():
        if m is not None:
            assert (m.sum(0) == largest[name].sum(0)).all()  # each unit keeps its fan-in
            assert (m != largest[name]).any()
    rescaled = find(NET, None, "ntt-random-fixed", 0.3, seed=1, progress=False)
    for name, leaf in flatten(rescaled.params).items():
        by = math.sqrt(162 / 49) if name in shapes else 1
        np.testing.assert_allclose(leaf, flatten(found.params)[name] * by, rtol=1e-6)


@pytest.mark.long
def test_gaussian_layers_keep_what_the_normal_law_says() -> None:
    """Kept fraction of a layer at threshold tau: 2 (1 - Phi(tau / sigma)), in 4 standard errors."""
    net = lenet_300_100("kaiming_normal")
    found = find(net, None, "magnitude", 0.1, progress=False)
    sizes: Any = {"dense_1/kernel": 784, "dense_2/kernel": 300, "dense_3/kernel": 100}
    tau = min(
        np.abs(leaf[flatten(found.mask)[k]]).min()
        for k, leaf in flatten(found.params).items()
        if k in sizes
    )
    for name, n in alive(found.mask).items():
        of = flatten(found.mask)[name].size
        p = math.erfc(tau / math.sqrt(2 / sizes[name]) / math.sqrt(2))
        assert abs(n / of - p) < 4 * math.sqrt(p * (1 - p) / of)


def test_random_layers_are_hypergeometric() -> None:
    """Global random pruning: a layer's count over seeds has the mean and spread of a draw."""
    counts = np.array(
        [
            alive(find(NET, None, "random", 0.3, seed=s, progress=False).mask)["dense_1/kernel"]
            for s in range(60)
        ]
    )
    p, total, keep = 96 / 162, 162, 49
    spread = math.sqrt(keep * p * (1 - p) * (total - keep) / (total - 1))
    assert abs(counts.mean() - keep * p) < 4 * spread / math.sqrt(60)
    assert 0.6 * spread < counts.std() < 1.5 * spread
