"""Knobs of laziness: what each is as a function, and the rates at which they compare."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.kernels.ntk import ntk
from secateur.networks.lazy import (
    comparable_rate,
    ntk_parametrised,
    scaled_labels,
    scaled_output,
    scaled_weights,
    with_scale,
)
from secateur.networks.mlp import mlp

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.usefixtures("x64")
NET = mlp(6, input_shape=(5,), outputs=2, activation="tanh", bias=False)
X = RNG.standard_normal((4, 5))


def draw(*widths: int) -> Any:
    return {
        f"dense_{l}": {"kernel": RNG.standard_normal(pair)}
        for l, pair in enumerate(pairwise(widths), start=1)
    }


def by_hand(params: Any, activation: Any = np.tanh) -> np.ndarray:
    return activation(X @ params["dense_1"]["kernel"]) @ params["dense_2"]["kernel"]


@partial(jax.jit, static_argnums=0)
def jacobian(net: Network, params: Any, stats: Any) -> Any:
    return jax.jacrev(lambda p: net.apply(p, stats, X).ravel())(params)


def jacobian_kernel(net: Network, params: Any, stats: Any) -> np.ndarray:
    parts = jacobian(net, params, stats)
    rows = [np.reshape(part, (8, -1)) for part in jax.tree.leaves(parts)]
    return sum(row @ row.T for row in rows)


def test_output_scale_is_alpha_times_f_less_its_origin() -> None:
    start, now = draw(5, 6, 2), draw(5, 6, 2)
    net = scaled_output(NET)
    assert scaled_output(NET) is net  # programs are shared
    stats = with_scale(net.init(jax.random.key(0))[1], 3.0, (start, {}))
    right = 3 * (by_hand(now) - by_hand(start))
    np.testing.assert_allclose(net.apply(now, stats, X), right, rtol=1e-12)
    found, after = net.train(now, stats, X, jax.random.key(0))
    np.testing.assert_allclose(found, right, rtol=1e-12)
    assert jax.tree.structure(after) == jax.tree.structure(stats)
    np.testing.assert_array_equal(net.apply(start, stats, X), 0)
    again = with_scale(stats, 0.5)
    np.testing.assert_allclose(net.apply(now, again, X), right / 6, rtol=1e-12)
    plain = scaled_output(NET, centred=False)
    stats = with_scale(plain.init(jax.random.key(0))[1], 3.0)
    np.testing.assert_allclose(plain.apply(now, stats, X), 3 * by_hand(now), rtol=1e-12)


def test_the_network_drawn_is_centred_at_itself() -> None:
    net = scaled_output(NET)
    params, stats = net.init(jax.random.key(3))
    assert float(jnp.max(jnp.abs(net.apply(params, stats, X)))) == 0
    kernel = NET.init(jax.random.key(3))[0]["dense_1"]["kernel"]
    np.testing.assert_array_equal(params["dense_1"]["kernel"], kernel)


@pytest.mark.long
def test_its_tangent_kernel_is_read_and_grows_as_alpha_squared() -> None:
    """The centring has no derivative; a silent fallback would warn, which is an error here."""
    params, start = draw(5, 6, 2), draw(5, 6, 2)
    net = scaled_output(NET)
    stats = with_scale(net.init(jax.random.key(0))[1], 3.0, (start, {}))
    found = ntk(net, params, X, stats=stats).matrix()
    np.testing.assert_allclose(found, 9 * jacobian_kernel(NET, params, {}), rtol=1e-10)


def test_rates_compare_by_how_fast_the_outputs_move() -> None:
    """A step of plain descent at each scale, on a network that is homogeneous of degree 2."""
    net = mlp(6, input_shape=(5,), outputs=2, activation="linear", bias=False)
    params = draw(5, 6, 2)
    kernel = jacobian_kernel(net, params, {})
    for s in (0.5, 3.0):
        grown = jacobian_kernel(net, scaled_weights(params, s), {})
        rate = comparable_rate(0.1, weight_scale=s, degree=2)
        np.testing.assert_allclose(rate * grown, 0.1 * kernel, rtol=1e-10)
        assert rate == pytest.approx(0.1 / s**2)  # of the published code
    rate = comparable_rate(0.1, alpha=4.0)
    np.testing.assert_allclose(rate * 16 * kernel, 0.1 * kernel)
    # Adam moves weights by its rate, outputs by alpha times that.
    assert comparable_rate(0.1, alpha=4.0, optimiser="adam") == pytest.approx(0.1 / 4)
    f, y = RNG.standard_normal(5), RNG.standard_normal(5)
    left = np.sum((f - scaled_labels(y, 4.0)) ** 2) * 16
    assert float(left) == pytest.approx(np.sum((4 * f - y) ** 2), rel=1e-12)
    with pytest.raises(SecateurError, match="both of them must be above 0"):
        comparable_rate(0.1, alpha=0.0)


def test_ntk_parametrisation_is_the_same_function_with_slower_kernels() -> None:
    net = ntk_parametrised(NET)
    params, stats = net.init(jax.random.key(1))
    plain = NET.init(jax.random.key(1))[0]
    np.testing.assert_allclose(net.apply(params, stats, X), NET.apply(plain, {}, X), rtol=1e-12)
    np.testing.assert_allclose(
        params["dense_2"]["kernel"], 6**0.5 * plain["dense_2"]["kernel"], rtol=1e-12
    )
    parts = jacobian(NET, plain, {})
    rows = {n: np.reshape(parts[f"dense_{l}"]["kernel"], (8, -1)) for l, n in ((1, 5), (2, 6))}
    right = sum(row @ row.T / fan for fan, row in rows.items())
    np.testing.assert_allclose(jacobian_kernel(net, params, stats), right, rtol=1e-10)


def test_statistics_of_another_network_are_refused() -> None:
    with pytest.raises(SecateurError, match="no statistics of a network with an output scale"):
        with_scale({}, 2.0)
    plain = scaled_output(NET, centred=False)
    with pytest.raises(SecateurError, match="is not centred"):
        with_scale({"network": {}, "alpha": 1.0}, 2.0, (draw(5, 6, 2), {}))
    assert plain.name.endswith(",scaled")
