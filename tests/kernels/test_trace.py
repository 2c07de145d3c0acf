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
        shapes = {"conv_1": ((3, 3, 2, 3), (3,)), "dense_1": ((12, 3), (3,))}
        ones = lambda kernel, bias: {"kernel": jnp.ones(kernel), "bias": jnp.ones(bias)}
        return {name: ones(*both) for name, both in shapes.items()}, {}

    def apply(p: Any, stats: Any, x: Any) -> Any:
        h = max_pool(jax.nn.relu(conv(p["conv_1"], x)), 2)
        return dense(p["dense_1"], flat(h))

    return Network("conv", (4, 4, 2), 3, init, apply, lambda p, s, x, key: (apply(p, s, x), s))


def window_net() -> Network:
    """Two convolutions that no plain formula fits, a norm's scale and bias, and a dense layer at
    each of two positions: grouped, strided, dilated, unevenly padded, stored (in, out) and (out,
    in), one scaled on its way. Everything is counted.
    """
    shapes = {
        "conv_1": {"kernel": (3, 2, 2, 4), "bias": (4,)},
        "conv_2": {"kernel": (4, 2, 2, 2), "scale": (1, 4, 1, 1)},
        "dense_1": {"kernel": (4, 3), "bias": (3,)},
        "dense_2": {"kernel": (3, 6)},
    }

    def init(key: Any) -> Any:
        return jax.tree.map(jnp.ones, shapes, is_leaf=lambda s: isinstance(s, tuple)), {}

    def apply(p: Any, stats: Any, x: Any) -> Any:
        h = jax.lax.conv_general_dilated(
            x,
            p["conv_1"]["kernel"],
            (2, 1),
            [(1, 0), (2, 1)],
            rhs_dilation=(1, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )
        h = jnp.tanh(h + p["conv_1"]["bias"]).transpose(0, 3, 1, 2)
        h = jax.lax.conv_general_dilated(
            h, p["conv_2"]["kernel"], (2, 2), "VALID", feature_group_count=2
        )
        h = jnp.tanh(h * p["conv_2"]["scale"]).reshape(-1, 4, 2).swapaxes(1, 2)
        h = jax.nn.relu(h @ (0.5 * p["dense_1"]["kernel"]) + p["dense_1"]["bias"])
        return h.reshape(len(h), -1) @ p["dense_2"]["kernel"].T

    run = lambda p, s, x, key: (apply(p, s, x), s)
    every = lambda params: jax.tree.map(lambda p: np.ones(p.shape, bool), params)
    return Network("windows", (6, 4, 4), 3, init, apply, run, every)


def tied_net() -> Network:
    """relu(x W) W^T: one matrix, two products."""

    def apply(p: Any, stats: Any, x: Any) -> Any:
        return jax.nn.relu(x @ p["one"]["kernel"]) @ p["one"]["kernel"].T

    init = lambda key: ({"one": {"kernel": jnp.ones((4, 5))}}, {})
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


def problem(network: Network, n: int = 5) -> tuple[Any, Any, Any]:
    """Weights (biases too), real gates of which a third are 0, and inputs."""
    rng = np.random.default_rng(5)
    shapes = jax.eval_shape(network.init, jax.random.key(0))[0]
    params = jax.tree.map(lambda s: rng.standard_normal(s.shape), shapes)
    gates = map_mask(
        lambda m: None if m is None else rng.random(m.shape) * (rng.random(m.shape) < 0.67),
        network.prunable(params),
    )
    return params, gates, rng.standard_normal((n, *network.input_shape))


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
def test_dense_layers_in_both_forms_are_the_jacobian_squared(form: str, counted: str) -> None:
    network = dense_net()
    params, gates, x = problem(network)
    found = by_leaf(network, params, gates, x, counted=counted, form=form, chunk=2)
    assert found == pytest.approx(by_definition(network, params, gates, x, counted), rel=1e-12)


@pytest.mark.parametrize(
    ("make", "counted"),
    [
        long(window_net, "masked"),
        long(window_net, "full"),
        long(conv_net, "masked"),
        long(turned_net, "full"),
        long(turned_net, "masked"),
    ],
)
def test_what_is_read_is_in_layer_form_the_jacobian_squared(make: Any, counted: str) -> None:
    network = make()
    params, gates, x = problem(network)
    assert unreadable(network, params, {}, gates, x) == {}
    found = by_leaf(network, params, gates, x, counted=counted, form="layers")
    assert found == pytest.approx(by_definition(network, params, gates, x, counted), rel=1e-12)


def test_of_shared_weights_the_saliency_is_the_slope_of_the_jacobian_squared() -> None:
    network = window_net()
    params, gates, x = problem(network, n=2)
    value, scores = saliency(network, params, gates, x, form="layers")
    of = jax.jit(lambda g: jax.jacobian(lambda w: network.apply(w, {}, x))(gated(g, params)))

    def total(by: float) -> float:
        moved = jax.tree.map(lambda m, d: m * (1 + by * d), gates, along)
        squares = jax.tree.map(lambda j, m: np.sum((np.asarray(j) * m) ** 2), of(moved), moved)
        return float(sum(jax.tree.leaves(squares)))

    rng = np.random.default_rng(4)
    along = jax.tree.map(lambda m: rng.standard_normal(m.shape), gates)
    assert float(value) == pytest.approx(total(0.0), rel=1e-12)
    slope = sum(float(np.sum(s * d)) for s, d in zip(*map(jax.tree.leaves, (scores, along))))
    assert slope == pytest.approx((total(1e-5) - total(-1e-5)) / 2e-5, rel=1e-7)


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "counted"),
    [
        (window_net, "masked"),
        (window_net, "full"),
        (conv_net, "masked"),
        (conv_net, "full"),
    ],
)
def test_of_shared_weights_layers_and_examples_have_one_saliency(make: Any, counted: str) -> None:
    """Of five examples in parts of two."""
    network = make()
    params, gates, x = problem(network)
    options = {"counted": counted, "chunk": 2}
    value, scores = saliency(network, params, gates, x, form="layers", **options)
    other = saliency(network, params, gates, x, form="examples", **options)
    assert float(other[0]) == pytest.approx(float(value), rel=1e-12)
    assert all(np.any(np.asarray(s)) for s in jax.tree.leaves(scores))
    for a, b in zip(*map(jax.tree.leaves, (scores, other[1])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * np.max(np.abs(b)))


@pytest.mark.long
def test_little_memory_takes_examples_and_outputs_apart(monkeypatch: Any) -> None:
    network = window_net()
    params, gates, x = problem(network)
    whole, scores = saliency(network, params, gates, x, form="layers")
    monkeypatch.setattr(kernel, "FELT", 6000.0)
    monkeypatch.setattr(kernel, "JACOBIAN", 100.0)
    run = lambda g: kernel.saliency(network, params, {}, g, x, form="layers")
    assert str(jax.make_jaxpr(run)(gates)).count("scan") > 4
    parts, other = jax.jit(run)(gates)
    assert float(parts) == pytest.approx(float(whole), rel=1e-12)
    for a, b in zip(*map(jax.tree.leaves, (scores, other))):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * np.max(np.abs(b)))


@pytest.mark.parametrize("counted", COUNTED)
def test_what_cannot_be_read_is_the_jacobian_squared_by_examples(counted: str) -> None:
    network = tied_net()
    params, gates, x = problem(network)
    found = by_leaf(network, params, gates, x, counted=counted)
    assert found == pytest.approx(by_definition(network, params, gates, x, counted), rel=1e-12)


def test_which_form_it_is_can_be_asked_and_layers_are_refused_with_the_leaf_named() -> None:
    params, gates, x = problem(dense_net())
    assert unreadable(dense_net(), params, {}, gates, x) == {}
    params, gates, x = problem(tied_net())
    assert unreadable(tied_net(), params, {}, gates, x) == {"one/kernel": "it is used 2 times"}
    with pytest.raises(
        SecateurError, match="'one/kernel' it cannot \\(it is used 2 times"
    ) as caught:
        trace(tied_net(), params, {}, gates, x, form="layers")
    assert "\n" not in str(caught.value)
    with pytest.raises(SecateurError, match="Did you mean 'masked'"):
        trace(tied_net(), params, {}, gates, x, counted="maskd")


@pytest.mark.parametrize(
    ("counted", "form"),
    [
        ("masked", "layers"),
        long("masked", "examples"),
        long("full", "layers"),
        long("full", "examples"),
    ],
)
def test_the_saliency_is_the_slope_along_each_gate(form: str, counted: str) -> None:
    network = dense_net("tanh")
    params, gates, x = problem(network, n=3)
    options = {"counted": counted, "form": form}
    value, scores = saliency(network, params, gates, x, **options)
    rng = np.random.default_rng(4)
    along = map_mask(lambda m: None if m is None else rng.standard_normal(m.shape), gates)
    h = 1e-5
    shifted = lambda by: map_mask(
        lambda m, d: None if m is None else m * (1 + by * d), gates, along
    )
    at = jax.jit(lambda by: trace(network, params, {}, shifted(by), x, **options))
    slope = sum(float(jnp.sum(s * d)) for s, d in zip(*map(jax.tree.leaves, (scores, along))))
    assert slope == pytest.approx(float(at(h) - at(-h)) / (2 * h), rel=1e-7)
    assert float(value) == pytest.approx(float(at(0.0)), rel=1e-12)


@pytest.mark.long
def test_layers_and_examples_have_one_saliency_through_relu_whatever_the_chunk() -> None:
    network = dense_net()
    params, gates, x = problem(network)
    value, scores = saliency(network, params, gates, x, form="layers")
    for chunk in (2, 9):
        other = saliency(network, params, gates, x, form="examples", chunk=chunk)
        assert float(other[0]) == pytest.approx(float(value), rel=1e-12)
        for a, b in zip(*map(jax.tree.leaves, (scores, other[1]))):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * float(value))


@pytest.mark.long
def test_of_the_full_trace_a_layer_carries_twice_what_is_not_its_own() -> None:
    network = mlp(7, 6, 5, input_shape=(4,), outputs=3, bias=False)
    params, gates, x = problem(network)
    parts = by_leaf(network, params, gates, x, counted="full")
    total, scores = saliency(network, params, gates, x, counted="full")
    for name, s in flatten(scores).items():
        assert float(s.sum()) == pytest.approx(2 * float(total - parts[name]), rel=1e-10)
    whole = sum(float(s.sum()) for s in jax.tree.leaves(scores))
    assert whole == pytest.approx(2 * 3 * float(total), rel=1e-10)


def test_scaling_a_layer_scales_the_parts_of_the_others() -> None:
    network = mlp(7, 6, input_shape=(4,), outputs=3, bias=False)
    params, gates, x = problem(network)
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
