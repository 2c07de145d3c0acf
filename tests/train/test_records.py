"""What is read of a network on its way: equal to reading it from the weights afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import SHORT, digits, problem

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.core.trees import apply_mask, flatten
from secateur.train.fit import fit, fit_lanes
from secateur.train.records import Record
from secateur.train.training import Training

AT = (0, 50, 200)
X = digits().test.images[:4].astype(np.float32) / 255


def outputs(network: Network, params: Any, stats: Any, mask: Any, x: Any) -> dict[str, Any]:
    alive = {k: jnp.sum(m) for k, m in flatten(mask).items() if m is not None}
    return {"outputs": network.apply(params, stats, x), "alive": alive}


def on_host(network: Network, params: Any, stats: Any, mask: Any) -> dict[str, Any]:
    assert not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(params))
    return {"norm": np.sqrt(sum(float(np.sum(np.square(p))) for p in jax.tree.leaves(params)))}


def asked(seed: int, density: float = 0.05) -> Training:
    """One of few survivors, so that the network is trained smaller and its leaves packed."""
    scale = (seed + 1) * X
    records = (
        Record("outputs", outputs, AT, (scale,)),
        Record("norm", on_host, (200,), compiled=False),
    )
    return problem(replace(SHORT, optimiser="sgd", rate=0.1), density, seed, records=records)


def check(training: Training, fitted: Any, copies: Any) -> None:
    assert fitted.records["outputs"]["outputs"].shape == (3, 4, 10)
    trees = [apply_mask(training.mask, training.start), copies.kept[50][0], fitted.params]
    scale = training.records[0].given[0]
    for k, tree in enumerate(trees):
        wanted = training.network.apply(tree, training.stats, scale)
        np.testing.assert_allclose(
            fitted.records["outputs"]["outputs"][k], wanted, rtol=1e-5, atol=1e-6
        )
    for name, mask in flatten(training.mask).items():
        if mask is not None:
            assert set(fitted.records["outputs"][f"alive/{name}"].tolist()) == {int(np.sum(mask))}
    norm = np.sqrt(sum(np.sum(np.square(p)) for p in jax.tree.leaves(fitted.params)))
    np.testing.assert_allclose(fitted.records["norm"]["norm"], [norm], rtol=1e-6)


def test_records_are_of_the_whole_network_at_their_steps() -> None:
    training = asked(0)
    fitted = fit(replace(training, keep_at=(50,)))
    assert fitted.widths or fitted.packed, "the network was to be trained in another form"
    check(training, fitted, fitted)
    for a, b in zip(
        jax.tree.leaves(fitted.params), jax.tree.leaves(fit(replace(training, records=())).params)
    ):
        np.testing.assert_array_equal(a, b)  # being looked at changes nothing


def test_records_of_lanes_are_of_each_lane() -> None:
    trainings = [asked(seed) for seed in range(2)]
    for training, fitted in zip(
        trainings, fit_lanes([replace(t, keep_at=(50,)) for t in trainings])
    ):
        check(training, fitted, fitted)


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ((Record("a", outputs, (75,), (X,)),), "not at step 75"),
        ((Record("a", outputs, (0,), (X,)), Record("a", on_host, (0,))), "a name of its own"),
        ((Record("a", outputs, (), (X,)),), "at least one step"),
    ],
)
def test_a_record_that_cannot_be_taken_is_one_sentence(records: Any, said: str) -> None:
    with pytest.raises(SecateurError, match=said):
        fit(problem(SHORT, 0.3, records=records))
