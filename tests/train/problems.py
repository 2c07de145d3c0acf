"""Small real problems that the tests of training share."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from secateur.core.keys import key
from secateur.core.network import Network
from secateur.core.trees import map_mask, ones_mask
from secateur.data.examples import Sets
from secateur.data.registry import load
from secateur.data.splits import split
from secateur.networks.mlp import mlp
from secateur.train.recipes import Recipe
from secateur.train.training import Training

SHORT = Recipe("adam", 1.2e-3, batch=20, steps=200, evaluate_every=50)
OPTIMISERS = {
    "adam": SHORT,
    "sgd": replace(SHORT, optimiser="sgd", rate=0.1),
    "momentum": replace(SHORT, optimiser="momentum", rate=0.02),
    "nesterov, dropped rate": replace(
        SHORT, optimiser="nesterov", rate=0.02, drops=((100, 0.1),), warmup=20
    ),
    "adam, coupled decay": replace(SHORT, weight_decay=1e-3),
    "adam, decoupled decay": replace(SHORT, weight_decay=1e-2, decoupled=True),
    "momentum, coupled decay": replace(SHORT, optimiser="momentum", rate=0.02, weight_decay=1e-3),
}


@lru_cache(maxsize=1)
def digits() -> Sets:
    """Real MNIST digits, few enough for a test."""
    data = split(load("mnist5k"), 300, 0)
    few = lambda e, n: replace(e, images=e.images[::n], labels=e.labels[::n])
    return replace(
        data,
        train=few(data.train, 5),
        validation=data.validation,
        test=few(data.test, 5),
        sha256="few" + data.sha256,
    )


def small_net() -> Network:
    return mlp(40, 24)


def start(network: Network, seed: int = 0) -> Any:
    params, _ = network.init(key(seed, "initial"))
    # Biases that are not 0, as after late rewinding: they must survive in units without inputs.
    noise = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: (
            np.asarray(p)
            if p.ndim > 1
            else np.asarray(p) + 0.1 * noise.standard_normal(p.shape).astype(p.dtype)
        ),
        params,
    )


def random_mask(network: Network, params: Any, density: float, seed: int = 0) -> Any:
    """A mask with whole rows and columns empty, as sparse tickets have."""
    rng = np.random.default_rng(seed)

    def draw(m: Any) -> Any:
        if m is None:
            return None
        rows, columns = rng.random(m.shape[0]) < 0.4, rng.random(m.shape[1]) < 0.6
        return (rng.random(m.shape) < density / 0.24) & rows[:, None] & columns[None, :]

    return map_mask(draw, ones_mask(network.prunable(params)))


def problem(
    recipe: Recipe = SHORT, density: float = 0.05, seed: int = 0, **options: Any
) -> Training:
    network = small_net()
    params = start(network, seed)
    mask = random_mask(network, params, density, seed)
    options = {"grain": 8, "siblings": 10**9} | options
    return Training(network, params, {}, digits(), recipe, mask, key(seed, "train"), **options)
