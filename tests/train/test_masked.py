"""The masked optimiser: what survives trains as if the rest did not exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest

from secateur.core.errors import SecateurError
from secateur.core.trees import apply_mask, flatten
from secateur.train.masked import leak, mask_like, masked, put

OPTIMISERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum, coupled decay": lambda: optax.chain(
        optax.add_decayed_weights(1e-2), optax.sgd(0.1, momentum=0.9)
    ),
    "nesterov": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(1e-2),
    "adam, coupled decay": lambda: optax.chain(optax.add_decayed_weights(1e-2), optax.adam(1e-2)),
    "adamw, decoupled decay": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "adamw, cosine schedule": lambda: optax.adamw(optax.cosine_decay_schedule(1e-2, 15)),
    "clipped by the global norm": lambda: optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(1e-2)
    ),
    "rmsprop": lambda: optax.rmsprop(1e-2, momentum=0.9),
    "lion": lambda: optax.lion(1e-3, weight_decay=0.1),
    "two steps accumulated": lambda: optax.MultiSteps(
        optax.adamw(1e-2), 2
    ).gradient_transformation(),
}


def start() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    params = {
        "layer_1": {"kernel": rng.standard_normal((6, 5)), "bias": rng.standard_normal(5)},
        "layer_2": {"kernel": rng.standard_normal((5, 3))},
    }
    mask = {
        "layer_1": {"kernel": rng.random((6, 5)) < 0.4, "bias": None},
        "layer_2": {"kernel": rng.random((5, 3)) < 0.5},
    }
    return params, mask


def gradients(params: Any, step: int) -> Any:
    """Not 0 anywhere, and none that depends on the weights: pruned places are pushed too."""
    rng = np.random.default_rng(100 + step)
    return jax.tree.map(lambda p: rng.standard_normal(p.shape), params)


def survivors(tree: Any, mask: Any) -> dict[str, Any]:
    """The surviving entries of each leaf as a vector; a leaf without a mask as it is."""
    kept = flatten(mask)
    return {n: x if kept[n] is None else x[kept[n]] for n, x in flatten(tree).items()}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_survivors_train_as_if_there_were_no_others(name: str, x64: None) -> None:
    """20 steps against the same optimiser on vectors of the survivors; the rest exactly zero."""
    params, mask = start()
    whole: Any = jax.tree.map(np.asarray, apply_mask(mask, params))
    alone: Any = survivors(whole, mask)
    ours, theirs = masked(OPTIMISERS[name](), mask), OPTIMISERS[name]()
    state, other = ours.init(whole), theirs.init(alone)
    update, apart = jax.jit(ours.update), jax.jit(theirs.update)
    for step in range(20):
        grads = gradients(params, step)
        u, state = update(grads, state, whole)
        v, other = apart(survivors(grads, mask), other, alone)
        whole = jax.tree.map(np.asarray, optax.apply_updates(whole, u))
        alone = jax.tree.map(np.asarray, optax.apply_updates(alone, v))
        assert leak(mask, whole, state) == 0, step
    for leaf, expected in survivors(whole, mask).items():
        np.testing.assert_allclose(expected, alone[leaf], atol=1e-12)
    assert not np.allclose(alone["layer_2/kernel"], survivors(params, mask)["layer_2/kernel"])


def test_without_the_wrapper_pruned_weights_come_back(x64: None) -> None:
    params, mask = start()
    params = apply_mask(mask, params)
    inner = optax.adamw(1e-2)
    u, state = inner.update(gradients(params, 0), inner.init(params), params)
    assert leak(mask, optax.apply_updates(params, u), state) > 1e-3


def test_arguments_beyond_the_gradients_reach_the_optimiser(x64: None) -> None:
    """A plateau schedule wants the loss: steps shrink where it no longer falls, and only there."""
    params, mask = start()
    params = apply_mask(mask, params)
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
    optimiser = masked(optax.chain(optax.sgd(1.0), plateau), mask)

    def last_step(values: list[float]) -> float:
        state = optimiser.init(params)
        for value in values:
            u, state = optimiser.update(gradients(params, 0), state, params, value=value)
        return float(np.linalg.norm(u["layer_1"]["bias"]))

    falling, flat = last_step([4.0, 3.0, 2.0, 1.0]), last_step([1.0, 1.0, 1.0, 1.0])
    assert flat < 0.6 * falling


def test_the_mask_is_data_of_the_program(x64: None) -> None:
    params, mask = start()
    counted = []

    @jax.jit
    def step(mask: Any, params: Any, grads: Any) -> Any:
        counted.append(1)
        optimiser = masked(optax.adam(1e-2), mask)
        return optimiser.update(grads, optimiser.init(params), params)[0]

    other = jax.tree.map(np.logical_not, mask)
    for m in (mask, other):
        u = step(m, apply_mask(m, params), gradients(params, 0))
        assert leak(m, u, ()) == 0
    assert len(counted) == 1


# --- models of other libraries --------------------------------------------------------------------


def by_hand(mask: Any, weights: Any) -> int:
    """Weights outside the mask that are not 0."""
    return int(np.sum(~np.asarray(mask) & (np.asarray(weights) != 0)))


def doubled(mask: np.ndarray) -> np.ndarray:
    """Weights of 2 where the mask holds, in the precision of the models."""
    return np.where(mask, np.float32(2), np.float32(0))


@pytest.mark.long
def test_leaves_find_their_places_in_an_equinox_model() -> None:
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0))
    rng = np.random.default_rng(1)
    mask = {"layers": {"0": {"weight": rng.random((8, 4)) < 0.5, "bias": None}}}
    weights = {"layers": {"0": {"weight": doubled(mask["layers"]["0"]["weight"])}}}
    pruned = put(weights, model)
    np.testing.assert_array_equal(pruned.layers[0].weight, weights["layers"]["0"]["weight"])
    assert pruned.layers[1].weight is model.layers[1].weight
    assert pruned.activation is model.activation
    optimiser = masked(optax.adamw(1e-2), mask)
    params, static = eqx.partition(pruned, eqx.is_inexact_array)
    state = optimiser.init(params)

    def loss(params: Any) -> Any:
        return eqx.combine(params, static)(np.ones(4)).sum()

    for _ in range(3):
        u, state = optimiser.update(jax.grad(loss)(params), state, params)
        params = eqx.apply_updates(params, u)
    assert by_hand(mask["layers"]["0"]["weight"], params.layers[0].weight) == 0
    assert by_hand(mask["layers"]["0"]["weight"], model.layers[0].weight) > 0
    assert leak(mask, params, state) == 0
    assert not np.array_equal(params.layers[0].bias, model.layers[0].bias)


def test_leaves_find_their_places_in_an_nnx_model() -> None:
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    mask = {"kernel": np.random.default_rng(0).random((4, 3)) < 0.5, "bias": None}
    nnx.update(model, put({"kernel": doubled(mask["kernel"])}, nnx.state(model)))
    assert by_hand(mask["kernel"], model.kernel[...]) == 0
    optimiser = nnx.Optimizer(model, masked(optax.adamw(1e-2), mask), wrt=nnx.Param)
    before = np.array(model.bias[...])
    for _ in range(3):
        optimiser.update(model, nnx.grad(lambda m: m(np.ones((2, 4))).sum())(model))
    assert by_hand(mask["kernel"], model.kernel[...]) == 0
    assert not np.array_equal(model.bias[...], before)


def test_the_mask_of_another_model_is_one_sentence(x64: None) -> None:
    params, mask = start()
    with pytest.raises(SecateurError, match=r"layer_3/kernel is no parameter.*'layer_2/kernel'"):
        mask_like({"layer_3": {"kernel": mask["layer_2"]["kernel"]}}, params)
    with pytest.raises(SecateurError, match=r"has shape \(5, 6\), the model's \(6, 5\)"):
        put({"layer_1": {"kernel": params["layer_1"]["kernel"].T}}, params)
    assert mask_like(mask, params) is mask
