"""The kernel's trace and its gradient, against Jacobians written out and finite differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.core.trees import flatten, map_mask
from secateur.kernels import trace as kernel
from secateur.kernels.trace import gated, trace, unreadable
from secateur.networks.layers import conv, dense, flat, max_pool
from secateur.networks.mlp import mlp

pytestmark = pytest.mark.usefixtures("x64")


def long(*values: Any) -> Any:
    """A case that takes a while, most of it to compile, and says what another says."""
    return pytest.param(*values, marks=pytest.mark.long)


COUNTED = ["masked", long("full")]


def dense_net(activation: str = "relu") -> Network:
    return mlp(6, 5, input_shape=(4,), outputs=3, activation=activation)


def conv_net() -> Network:
    """conv 3x3 - ReLU - max-pool - dense, with biases, on 4x4 images of two channels."""

    def init(key: Any) -> Any:
        k = jax.random.split(key, 4)
        return {
            "conv_1": {
                "kernel": jax.random.normal(k[0], (3, 3, 2, 3)),
                "bias": jax.random.normal(k[1], (3,)),
            },
            "dense_1": {
                "kernel": jax.random.normal(k[2], (12, 3)),
                "bias": jax.random.normal(k[3], (3,)),
            },
        }, {}

    def apply(p: Any, stats: Any, x: Any) -> Any:
        h = max_pool(jax.nn.relu(conv(p["conv_1"], x)), 2)
        return dense(p["dense_1"], flat(h))

    return Network("conv", (4, 4, 2), 3, init, apply, lambda p, s, x, key: (apply(p, s, x), s))


def tied_net() -> Network:
    """relu(x W) W^T: one matrix, two products."""

    def apply(p: Any, stats: Any, x: Any) -> Any:
        return jax.nn.relu(x @ p["one"]["kernel"]) @ p["one"]["kernel"].T

    init = lambda key: ({"one": {"kernel": jax.random.normal(key, (4, 5))}}, {})
    return Network("tied", (4,), 4, init, apply, lambda p, s, x, key: (apply(p, s, x), s))


def turned_net() -> Network:
    """Kernels stored (out, in), as PyTorch and Equinox do."""
    straight = dense_net()

    def turn(p: Any) -> Any:
        return {k: {**layer, "kernel": layer["kernel"].T} for k, layer in p.items()}

    return replace(
        straight,
        init=lambda key: (turn(straight.init(key)[0]), {}),
        apply=lambda p, s, x: straight.apply(turn(p), s, x),
    )


def problem(network: Network, getkey: Any, n: int = 5) -> tuple[Any, Any, Any]:
    """Weights (biases too), real gates of which a third are 0, and inputs."""
    params = jax.tree.map(lambda p: jax.random.normal(getkey(), p.shape), network.init(getkey())[0])
    gates = map_mask(
        lambda m: (
            None
            if m is None
            else jax.random.uniform(getkey(), m.shape)
            * (jax.random.uniform(getkey(), m.shape) < 0.67)
        ),
        network.prunable(params),
    )
    return params, gates, jax.random.normal(getkey(), (n, *network.input_shape))


def by_leaf(network: Network, params: Any, gates: Any, x: Any, **options: Any) -> Any:
    return jax.jit(lambda p, g, x: kernel.by_leaf(network, p, {}, g, x, **options))(
        params, gates, x
    )


def saliency(network: Network, params: Any, gates: Any, x: Any, **options: Any) -> Any:
    return jax.jit(lambda p, g, x: kernel.saliency(network, p, {}, g, x, **options))(
        params, gates, x
    )


def by_definition(network: Network, params: Any, gates: Any, x: Any, counted: str) -> Any:
    """Each leaf's sum of squares of the Jacobian, all of it written out."""
    of = jax.jit(jax.jacobian(lambda w: network.apply(w, {}, x)))
    jacobian = flatten(of(gated(gates, params)))
    found = {}
    for name, m in flatten(gates).items():
        if m is not None:
            j = np.asarray(jacobian[name])
            found[name] = float(np.sum((j * np.asarray(m) if counted == "masked" else j) ** 2))
    return found


@pytest.mark.parametrize("counted", ["masked", "full"])
@pytest.mark.parametrize("form", ["layers", "examples"])
def test_dense_layers_in_both_forms_are_the_jacobian_squared(
    form: str, counted: str, getkey: Any
) -> None:
    network = dense_net()
    params, gates, x = problem(network, getkey)
    found = by_leaf(network, params, gates, x, counted=counted, form=form, chunk=2)
    assert found == pytest.approx(by_definition(network, params, gates, x, counted), rel=1e-12)


@pytest.mark.parametrize("counted", COUNTED)
@pytest.mark.parametrize("make", [conv_net, long(tied_net), long(turned_net)])
def test_what_is_no_dense_layer_is_the_jacobian_squared_by_examples(
    make: Any, counted: str, getkey: Any
) -> None:
    network = make()
    params, gates, x = problem(network, getkey)
    found = by_leaf(network, params, gates, x, counted=counted)
    assert found == pytest.approx(by_definition(network, params, gates, x, counted), rel=1e-12)


def test_which_form_it_is_can_be_asked_and_layers_are_refused_with_the_leaf_named(
    getkey: Any,
) -> None:
    params, gates, x = problem(dense_net(), getkey)
    assert unreadable(dense_net(), params, {}, gates, x) == {}
    params, gates, x = problem(conv_net(), getkey)
    assert list(unreadable(conv_net(), params, {}, gates, x)) == ["conv_1/kernel"]
    with pytest.raises(SecateurError, match="'conv_1/kernel' is none") as caught:
        trace(conv_net(), params, {}, gates, x, form="layers")
    assert "\n" not in str(caught.value)
    with pytest.raises(SecateurError, match="Did you mean 'masked'"):
        trace(conv_net(), params, {}, gates, x, counted="maskd")


@pytest.mark.parametrize(
    ("counted", "form"),
    [
        ("masked", "layers"),
        long("masked", "examples"),
        long("full", "layers"),
        long("full", "examples"),
    ],
)
def test_the_saliency_is_the_slope_along_each_gate(form: str, counted: str, getkey: Any) -> None:
    network = dense_net("tanh")
    params, gates, x = problem(network, getkey, n=3)
    options = {"counted": counted, "form": form}
    value, scores = saliency(network, params, gates, x, **options)
    along = map_mask(lambda m: None if m is None else jax.random.normal(getkey(), m.shape), gates)
    h = 1e-5
    shifted = lambda by: map_mask(
        lambda m, d: None if m is None else m * (1 + by * d), gates, along
    )
    at = jax.jit(lambda by: trace(network, params, {}, shifted(by), x, **options))
    slope = sum(float(jnp.sum(s * d)) for s, d in zip(*map(jax.tree.leaves, (scores, along))))
    assert slope == pytest.approx(float(at(h) - at(-h)) / (2 * h), rel=1e-7)
    assert float(value) == pytest.approx(float(at(0.0)), rel=1e-12)


@pytest.mark.long
def test_layers_and_examples_have_one_saliency_through_relu_whatever_the_chunk(
    getkey: Any,
) -> None:
    network = dense_net()
    params, gates, x = problem(network, getkey)
    value, scores = saliency(network, params, gates, x, form="layers")
    for chunk in (2, 9):
        other = saliency(network, params, gates, x, form="examples", chunk=chunk)
        assert float(other[0]) == pytest.approx(float(value), rel=1e-12)
        for a, b in zip(*map(jax.tree.leaves, (scores, other[1]))):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * float(value))


@pytest.mark.long
def test_of_the_full_trace_a_layer_carries_twice_what_is_not_its_own(getkey: Any) -> None:
    network = mlp(7, 6, 5, input_shape=(4,), outputs=3, bias=False)
    params, gates, x = problem(network, getkey)
    parts = by_leaf(network, params, gates, x, counted="full")
    total, scores = saliency(network, params, gates, x, counted="full")
    for name, s in flatten(scores).items():
        assert float(s.sum()) == pytest.approx(2 * float(total - parts[name]), rel=1e-10)
    whole = sum(float(s.sum()) for s in jax.tree.leaves(scores))
    assert whole == pytest.approx(2 * 3 * float(total), rel=1e-10)


def test_scaling_a_layer_scales_the_parts_of_the_others(getkey: Any) -> None:
    network = mlp(7, 6, input_shape=(4,), outputs=3, bias=False)
    params, gates, x = problem(network, getkey)
    before = by_leaf(network, params, gates, x)
    scaled = {**params, "dense_2": {"kernel": 3.0 * params["dense_2"]["kernel"]}}
    after = by_leaf(network, scaled, gates, x)
    for name in before:
        factor = 1 if name == "dense_2/kernel" else 9
        assert float(after[name]) == pytest.approx(factor * float(before[name]), rel=1e-12)
    gates = {**gates, "dense_2": {"kernel": 3.0 * gates["dense_2"]["kernel"]}}
    after = by_leaf(network, params, gates, x)
    for name in before:
        assert float(after[name]) == pytest.approx(9 * float(before[name]), rel=1e-12)
