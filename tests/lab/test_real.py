"""Real trainings in the lab: interrupted inside, they end with the bits of an uninterrupted run."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from functools import lru_cache
from typing import Any

import jax
import numpy as np
import pytest
from killing import numbers

from secateur.core.keys import key
from secateur.core.trees import flatten, ones_mask
from secateur.data.splits import from_arrays
from secateur.lab.cells import Cell, Result
from secateur.lab.progress import Progress
from secateur.lab.run import Interrupted, run
from secateur.lab.store import Store
from secateur.networks.mlp import mlp
from secateur.train.recipes import Recipe
from secateur.train.training import Fitted, Training

NETWORK = mlp(12, 8)
RECIPE = Recipe("adam", 1e-2, batch=10, steps=2000, evaluate_every=500)


@lru_cache(maxsize=1)
def data() -> Any:
    """Three blobs as pictures of the size that the network takes."""
    rng = np.random.default_rng(0)
    shape = NETWORK.input_shape
    centres = rng.normal(size=(3, *shape))
    sets = []
    for n in (120, 60, 60):
        labels = np.arange(n) % 3
        images = centres[labels] + rng.normal(size=(n, *shape))
        sets.append((images.astype(np.float32), labels.astype(np.int32)))
    return from_arrays("blobs", *sets)


def work(cell: Cell, inputs: Mapping[str, Result]) -> Generator[Training, Fitted, Result]:
    params, stats = NETWORK.init(key(cell.seed, "initial"))
    params = jax.tree.map(np.asarray, params)
    mask = ones_mask(NETWORK.prunable(params))
    for number in range(2):
        order = key(cell.seed, "order", number)
        fitted = yield Training(NETWORK, params, stats, data(), RECIPE, mask, order)
        params = fitted.params
    weights = {f"weights:{name}": leaf for name, leaf in flatten(fitted.params).items()}
    values = {"last": fitted.last, "curve": {k: v.tolist() for k, v in fitted.curve.items()}}
    return Result(values, weights, fitted.checks)


CELLS = [Cell("real", 1, {"steps": RECIPE.steps}, seed, {}, "d" * 64) for seed in range(2)]


@pytest.mark.parametrize("executor", ["serial", pytest.param("lanes", marks=pytest.mark.long)])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, executor):
    def go(store: Store) -> None:
        quiet = Progress(quiet=True)
        run(CELLS, work, store, executor, progress=quiet, interval=0.0)

    go(Store(tmp_path / "whole"))
    for moment in (3, 6):
        seen = [0]

        def interrupt(point: str, seen: list[int] = seen, moment: int = moment) -> None:
            seen[0] += point == "checkpoint.renamed"
            if seen[0] == moment:
                raise KeyboardInterrupt

        store = tmp_path / f"interrupted{moment}"
        with pytest.raises(Interrupted, match="goes on from there"):
            go(Store(store, fault=interrupt))
        assert os.listdir(store / "checkpoints")
        go(Store(store))
        assert numbers(store) == numbers(tmp_path / "whole")
