"""Theta = J_v Pi J_v^T: both factors by enumeration, bounds, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pathwise import Oracle, mixed, mixed_forward, mixed_paths
from test_path import drawn, jacobian
from test_path_operator import mixed_mask, pooled

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.core.trees import apply_mask, flatten, map_mask
from secateur.kernels.activity import activity
from secateur.kernels.decomposition import Decomposition, decomposition

X = np.random.default_rng(0).standard_normal((8, 4))


def dense(found: Decomposition) -> tuple[np.ndarray, np.ndarray]:
    """Theta and K."""
    theta, k = (
        np.stack([operator.matvec(row) for row in np.eye(operator.size)])
        for operator in (found.theta, found.activity)
    )
    return theta, k * np.exp(found.activity_log)


@pytest.mark.parametrize("seed", [4, pytest.param(1, marks=pytest.mark.long)])
def test_a_dense_network_by_enumeration(x64: None, seed: int) -> None:
    net, params, mask, paths = drawn(seed, (4, 5, 3, 2), 0.6)
    found = decomposition(net, params, {}, mask, X)
    theta, k = dense(found)
    j = jacobian(net, params, mask, X)
    j_v = paths.of_data(X, relu=True) * paths.kept[np.array(paths.edges)].all(1)
    np.testing.assert_allclose(theta, j @ j.T, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(k, j_v @ j_v.T, rtol=1e-10, atol=1e-13)
    kernel = paths.jacobian @ paths.jacobian.T
    np.testing.assert_allclose(theta, j_v @ kernel @ j_v.T, rtol=1e-10, atol=1e-13)

    sigma = np.sort(np.linalg.eigvalsh(j_v @ j_v.T))[::-1]
    values = np.sort(np.linalg.eigvalsh(kernel))[::-1]
    bounds = found.bounds()
    expected = [
        np.trace(j @ j.T),
        (sigma * values[: len(sigma)]).sum(),
        sigma[0] * np.trace(kernel),
        values[0] * sigma.sum(),
    ]
    np.testing.assert_allclose(np.exp(bounds), expected, rtol=1e-10)
    assert bounds.trace <= bounds.neumann <= min(bounds.activity, bounds.paths) + 1e-12
    assert bounds.looseness["activity"] == pytest.approx(expected[2] / expected[0])
    eigenvalues = found.activity_eigenvalues()
    np.testing.assert_allclose(np.exp(eigenvalues), sigma[: len(eigenvalues)], rtol=1e-10)


@pytest.mark.long
@pytest.mark.parametrize("density", [0.6, pytest.param(0.9, marks=pytest.mark.long)])
def test_convolution_norm_pooling_residual_and_biases(x64: None, density: float) -> None:
    net = mixed()
    params, stats = net.init(None)
    mask = mixed_mask(net, params, density, bias=True)
    x = np.random.default_rng(1).standard_normal((3, *net.input_shape))
    found = decomposition(net, params, stats, mask, x)
    flat = {k: np.asarray(p) for k, p in flatten(params).items()}
    oracle = Oracle.of(mixed_paths(params, stats, True), flat, flatten(mask))

    seen: list[Any] = []
    w = apply_mask(mask, params)
    outputs = mixed_forward(w, stats, x, seen)
    z, a, b = map(np.asarray, seen)
    at = {"@x": x, "@z": np.where(z > 0, 1, 0.1), "@a": a > 0, "@b": b > 0}
    j_v = oracle.j_v(at)
    np.testing.assert_allclose(j_v @ oracle.values, outputs.ravel(), rtol=1e-12)  # f = J_v pi

    live, dual = np.ix_(found.paths.edges, found.paths.edges), oracle.dual
    pi = found.paths.matrix() * np.exp(found.paths.log)
    np.testing.assert_allclose(pi, dual[live], rtol=1e-10, atol=1e-13 * dual.max())
    np.testing.assert_allclose(found.paths.log_trace, np.log(np.trace(dual)), atol=1e-12)

    theta, k = dense(found)
    j = j_v @ oracle.j_pi
    close = {"rtol": 1e-10, "atol": 1e-12 * np.abs(j @ j.T).max()}
    np.testing.assert_allclose(theta, j @ j.T, **close)
    np.testing.assert_allclose(theta, j_v @ (oracle.j_pi @ (oracle.j_pi.T @ j_v.T)), **close)
    np.testing.assert_allclose(k, j_v @ j_v.T, rtol=1e-10, atol=1e-12 * k.max())
    np.testing.assert_allclose(found.theta.trace, np.trace(theta), rtol=1e-12)
    bounds = found.bounds()
    assert bounds.trace <= bounds.neumann <= min(bounds.activity, bounds.paths) + 1e-12


def one_layer(phi: Callable[[Any], Any]) -> tuple[Network, Any, Any]:
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 5), "b": (5, 2)}
    params = {k: {"kernel": jnp.asarray(rng.standard_normal(s))} for k, s in shapes.items()}
    apply = lambda p, s, x: phi(x @ p["a"]["kernel"]) @ p["b"]["kernel"]
    init = lambda key: (params, {})
    net = Network("one", (4,), 2, init, apply, lambda p, s, x, key: (apply(p, s, x), s))
    return net, params, map_mask(lambda m: np.ones(m.shape, bool), net.prunable(params))


FORMS: dict[str, Callable[[Any], Any]] = {
    "jax.nn.relu": jax.nn.relu,
    "maximum": lambda z: jnp.maximum(z, 0),
    "where": lambda z: jnp.where(z > 0, z, 0),
    "leaky relu": lambda z: jax.nn.leaky_relu(z, 0.2),
    "leaky relu by hand": lambda z: jnp.where(jnp.less(0, z), z, 0.3 * z),
    "leaky relu, turned": lambda z: jnp.where(z <= 0, 0.3 * z, 2 * z),
    "none": lambda z: z,
    "scaled": lambda z: jax.jit(lambda z: -2 * jax.nn.relu(z / 3))(z),
    "relu6 below 6": lambda z: jax.nn.relu6(z / 10),
    "rematerialised": jax.checkpoint(jax.nn.relu),
}


TOGETHER = ("where", "leaky relu by hand", "scaled")  # the others are read by the same rules


@pytest.mark.parametrize(
    "form", [pytest.param(f, marks=[] if f in TOGETHER else pytest.mark.long) for f in FORMS]
)
def test_an_activation_s_slopes_are_its_derivatives_however_it_is_written(
    x64: None, form: str
) -> None:
    """With a factor c behind or before it in Pi: K is made of phi'(z) / c, also at z = 0."""
    phi = FORMS[form]
    net, params, mask = one_layer(phi)
    mask["a"]["kernel"][:, 1] = False  # z = 0 on all inputs
    found = activity(net, params, {}, mask, jnp.asarray(X))
    z = X @ np.where(mask["a"]["kernel"], params["a"]["kernel"], 0)
    slope = np.asarray(jax.jvp(phi, (jnp.asarray(z),), (jnp.ones(z.shape),))[1])
    fixed = {"leaky relu, turned": 2, "scaled": 2 / 3, "relu6 below 6": 0.1}.get(form, 1)
    edges = mask["a"]["kernel"].astype(float)
    gram = np.einsum("ni,mi,ij,nj,mj->nm", X, X, edges, slope, slope) / fixed**2
    for block in found.values:  # alike for all outputs: the last layer is whole
        np.testing.assert_allclose(block * 2.0 ** int(found.exponent), gram, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("phi", "word"),
    [
        (jnp.tanh, "tanh"),
        (jax.nn.silu, "silu"),
        (lambda z: jnp.clip(z, -0.1, 0.1), "slope"),
        (lambda z: jnp.where(z > 0, z, 1.0), "slope"),
    ],
)
def test_an_activation_that_is_not_homogeneous_is_refused(x64: None, phi: Any, word: str) -> None:
    net, params, mask = one_layer(phi)
    with pytest.raises(SecateurError, match=word) as error:
        decomposition(net, params, {}, mask, X)
    assert "does not factor" in str(error.value)


def test_what_cannot_be_decomposed_is_refused_with_a_way_out(x64: None) -> None:
    net = pooled()
    params, stats = net.init(None)
    mask = map_mask(lambda m: np.ones(m.shape, bool), net.prunable(params))
    with pytest.raises(SecateurError, match="average pooling"):
        decomposition(net, params, stats, mask, np.ones((2, 4, 4, 1)))
    net, params, mask = one_layer(jax.nn.relu)
    with pytest.raises(SecateurError, match="in a batch"):
        decomposition(net, params, {}, mask, X[0])
    with pytest.raises(SecateurError, match="not finite"):
        decomposition(net, params, {}, mask, X * np.inf)
    found = decomposition(net, params, {}, mask, np.zeros((2, 4)))
    with pytest.raises(SecateurError, match="no path is active"):
        found.bounds()
