"""What goes through layers, against the same computation with its values written down."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import network

from secateur.core.errors import SecateurError
from secateur.networks.committee import committee, with_scales
from secateur.networks.mlp import mlp
from secateur.structure.layers import SIDES, layer_names, layer_values

RNG = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def residual(p: Any, x: Any) -> Any:
    """Convolution, norm, ReLU; one with a shortcut; pooling; dense and softmax."""
    seen = {"a": {"in": x}}
    numbers = ("NHWC", "HWIO", "NHWC")
    conv = lambda x, w: jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=numbers
    )
    z = conv(x, p["a"]) + p["b"]
    y = jax.nn.relu(z * p["s"][None, None, None] + 0.5)
    seen["a"] |= {"pre": z, "post": y}
    w = conv(y, p["c"])
    seen["c"] = {"in": y, "pre": w, "post": w}  # what follows is a sum with the shortcut
    h = jnp.mean(jnp.tanh(w + y), axis=(1, 2))
    logits = h @ p["d"]
    seen["d"] = {"in": h, "pre": logits, "post": jax.nn.softmax(logits)}
    return jax.nn.softmax(logits), seen


SHAPES = {"a": (3, 3, 1, 4), "b": (4,), "s": (4,), "c": (3, 3, 4, 4), "d": (4, 2)}
CONV = network(SHAPES, lambda p, x: residual(p, x)[0], (5, 5, 1))


def every_side(net: Any, params: Any, stats: Any, x: Any) -> Any:
    """All sides of all layers, in one compiled program."""
    return jax.jit(lambda p, s: {k: layer_values(net, p, s, x, side=k) for k in SIDES})(
        params, stats
    )


def test_values_are_those_of_the_computation() -> None:
    p = {k: draw(*shape) for k, shape in SHAPES.items()}
    x = draw(3, 5, 5, 1)
    seen = jax.jit(residual)(p, x)[1]
    for side, found in every_side(CONV, p, {}, x).items():
        assert set(found) == {"a", "c", "d"}
        for name, value in found.items():
            np.testing.assert_allclose(value, seen[name][side], rtol=1e-5, atol=1e-6)


def test_of_an_mlp_and_of_a_committee() -> None:
    net = mlp(5, 4, input_shape=(6,), outputs=3)
    widths = (6, 5, 4, 3)
    params = {
        f"dense_{l}": {"kernel": draw(widths[l - 1], widths[l]), "bias": draw(widths[l])}
        for l in (1, 2, 3)
    }
    h = x = draw(7, 6)
    found = every_side(net, params, {}, x)
    for l in (1, 2, 3):
        z = h @ params[f"dense_{l}"]["kernel"] + params[f"dense_{l}"]["bias"]
        for side, wanted in (("in", h), ("pre", z), ("post", np.maximum(z, 0) if l < 3 else z)):
            np.testing.assert_allclose(
                found[side][f"dense_{l}/kernel"], wanted, rtol=1e-5, atol=1e-6
            )
        h = np.maximum(z, 0)
    net = committee(6, 8, epsilon=0.5)
    kernel = draw(6, 8)
    pre = x @ kernel
    assert layer_names(net).found.keys() == {"committee/kernel"}
    found = every_side(net, {"committee": {"kernel": kernel}}, with_scales(2.0, 0.5), x)
    for side, wanted in (("in", x), ("pre", pre), ("post", pre + 0.25 * pre**2)):
        np.testing.assert_allclose(found[side]["committee/kernel"], wanted, rtol=1e-5, atol=1e-6)


def test_traced_and_mapped_over_weights_and_statistics() -> None:
    net = committee(6, 8)
    kernels, scales = draw(3, 6, 8), np.array([0.0, 0.5, 2.0], np.float32)
    x = draw(4, 6)
    run = lambda params, stats: layer_values(net, params, stats, x, side="post")
    params, stats = {"committee": {"kernel": kernels}}, with_scales(np.ones(3), scales)
    found = jax.jit(jax.vmap(run))(params, stats)["committee/kernel"]
    for k in range(3):
        pre = x @ kernels[k]
        np.testing.assert_allclose(found[k], pre + scales[k] / 2 * pre**2, rtol=1e-5, atol=1e-5)


def test_a_stack_of_layers_in_a_loop_is_one_layer_a_slice() -> None:
    def apply(p: Any, x: Any) -> Any:
        turn = lambda h, w: (jnp.tanh(h @ w), None)
        return jax.lax.scan(turn, x, p["w"])[0] @ p["v"]

    net = network({"w": (2, 6, 6), "v": (6, 2)}, apply)
    p = {"w": draw(2, 6, 6), "v": draw(6, 2)}
    x = draw(3, 6)
    found = layer_values(net, p, {}, x)
    assert list(found) == ["w[0]", "w[1]", "v"]
    np.testing.assert_allclose(found["w[1]"], np.tanh(x @ p["w"][0]) @ p["w"][1], rtol=1e-5)


def test_what_cannot_be_read_is_said() -> None:
    tied = network({"w": (6, 6), "v": (6, 2)}, lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"] @ p["v"])
    p = {"w": draw(6, 6), "v": draw(6, 2)}
    assert layer_names(tied).why == {"w": "it is used 2 times"}
    assert set(layer_values(tied, p, {}, draw(2, 6))) == {"v"}
    with pytest.raises(SecateurError, match="'w' cannot be read as a layer: it is used 2 times"):
        layer_values(tied, p, {}, draw(2, 6), layers=["w"])
    with pytest.raises(SecateurError, match="there is no layer 'u'"):
        layer_values(tied, p, {}, draw(2, 6), layers=["u"])
    with pytest.raises(SecateurError, match="there is no side 'behind'"):
        layer_values(tied, p, {}, draw(2, 6), side="behind")
    both = network({"w": (6, 6)}, lambda p, x: x @ p["w"] @ p["w"])
    with pytest.raises(SecateurError, match=r"no layer could be read \(w: it is used"):
        layer_values(both, {"w": p["w"]}, {}, draw(2, 6))
