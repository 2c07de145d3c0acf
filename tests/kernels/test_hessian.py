"""Curvature by products, against jax.hessian and Jacobians written out."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.trees import apply_mask, flatten
from secateur.kernels.hessian import LOSSES, Curvature, Density, hessian
from secateur.kernels.operator import Operator

pytestmark = pytest.mark.usefixtures("x64")
N, C = 7, 3
RNG = np.random.default_rng(0)
PARAMS = {
    "dense_1": {"kernel": RNG.standard_normal((4, 5)), "bias": RNG.standard_normal(5)},
    "dense_2": {"kernel": RNG.standard_normal((5, C))},
}
MASK = {
    "dense_1": {"kernel": RNG.random((4, 5)) < 0.5, "bias": None},
    "dense_2": {"kernel": RNG.random((5, C)) < 0.6},
}
X, LABELS, TARGETS = RNG.standard_normal((N, 4)), np.arange(N) % C, RNG.standard_normal((N, C))
# Positions of the survivors among all weights, leaf by leaf: bias, kernel, kernel
ALIVE = np.concatenate(
    [np.ones(5, bool), MASK["dense_1"]["kernel"].ravel(), MASK["dense_2"]["kernel"].ravel()]
)


def f(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ p["dense_1"]["kernel"] + p["dense_1"]["bias"]) @ p["dense_2"]["kernel"]


@pytest.fixture(scope="module")
def oracle() -> dict[str, np.ndarray]:
    """Dense Hessians over all weights at the masked point, the Jacobian and the outputs."""
    with jax.enable_x64(True):
        flat, back = jax.flatten_util.ravel_pytree(apply_mask(MASK, PARAMS))
        assert list(flatten(PARAMS)) == ["dense_1/bias", "dense_1/kernel", "dense_2/kernel"]

        @jax.jit
        def everything(w: jax.Array) -> Any:
            loss = lambda name, y: lambda w: jnp.mean(LOSSES[name](f(back(w), X), y))
            out = lambda w: f(back(w), X)
            return {
                "cross_entropy": jax.hessian(loss("cross_entropy", LABELS))(w),
                "squared": jax.hessian(loss("squared", TARGETS))(w),
                "jacobian": jax.jacobian(out)(w).reshape(N * C, -1),
                "outputs": out(w),
            }

        return {k: np.asarray(v) for k, v in everything(flat).items()}


def long(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.long)


# The largest eigenvalues of the squared loss's are tested beside them.
CASES = [
    ("cross_entropy", None),
    long("cross_entropy", 3),
    long("squared", None),
    long("squared", 3),
]


@functools.cache
def curvature(loss: str, kind: str = "hessian") -> Curvature:
    with jax.enable_x64(True):
        y = LABELS if loss == "cross_entropy" else TARGETS
        return hessian(f, PARAMS, X, y, mask=MASK, loss=loss, kind=kind)


def blocks(loss: str, outputs: np.ndarray) -> np.ndarray:
    """B, (N C, N C), the loss's Hessian in the outputs."""
    each = []
    for row in outputs:
        p = np.exp(row) / np.exp(row).sum()
        each.append(np.diag(p) - np.outer(p, p) if loss == "cross_entropy" else np.eye(C))
    return np.einsum("ncd,nm->ncmd", np.stack(each), np.eye(N)).reshape(N * C, N * C)


@pytest.mark.parametrize(("loss", "batch"), CASES)
def test_products_are_those_of_the_dense_hessian_at_survivors(
    loss: str, batch: int | None, oracle: dict[str, np.ndarray]
) -> None:
    y = LABELS if loss == "cross_entropy" else TARGETS
    found = curvature(loss)
    if batch:
        found = hessian(f, PARAMS, X, y, mask=MASK, loss=loss, batch=batch)
    right = oracle[loss][np.ix_(ALIVE, ALIVE)]
    assert found.size == ALIVE.sum()
    assert not found.definite
    np.testing.assert_allclose(found.dense(), right, rtol=0, atol=1e-10 * np.abs(right).max())
    assert np.linalg.eigvalsh(right)[0] < -1e-3  # the case: not positive semidefinite


@pytest.mark.parametrize(("loss", "batch"), CASES)
def test_gauss_newton_is_the_jacobian_s(
    loss: str, batch: int | None, oracle: dict[str, np.ndarray]
) -> None:
    y = LABELS if loss == "cross_entropy" else TARGETS
    found = curvature(loss, "gauss-newton")
    if batch:
        found = hessian(f, PARAMS, X, y, mask=MASK, loss=loss, kind="gauss-newton", batch=batch)
    jacobian = oracle["jacobian"][:, ALIVE]
    right = jacobian.T @ blocks(loss, oracle["outputs"]) @ jacobian / N
    assert found.definite
    np.testing.assert_allclose(found.dense(), right, rtol=0, atol=1e-10 * np.abs(right).max())


def test_the_largest_of_gauss_newton_is_that_of_the_kernel(oracle: dict[str, np.ndarray]) -> None:
    kernel = oracle["jacobian"][:, ALIVE] @ oracle["jacobian"][:, ALIVE].T
    found = curvature("squared", "gauss-newton")
    assert found.sharpness(tolerance=1e-8) == pytest.approx(
        np.linalg.eigvalsh(kernel)[-1] / N, rel=1e-11
    )
    roots = np.linalg.cholesky(blocks("cross_entropy", oracle["outputs"]) + 1e-15 * np.eye(N * C))
    weighted = np.linalg.eigvalsh(roots.T @ kernel @ roots)[::-1] / N
    dense = curvature("cross_entropy", "gauss-newton").dense()
    np.testing.assert_allclose(
        np.linalg.eigvalsh(dense)[::-1][:10], weighted[:10], rtol=1e-9, atol=1e-10
    )


def test_sharpness_and_the_lowest_are_the_dense_eigenvalues(oracle: dict[str, np.ndarray]) -> None:
    matrix = oracle["squared"][np.ix_(ALIVE, ALIVE)]
    values = np.linalg.eigvalsh(matrix)
    found = curvature("squared")
    assert found.sharpness() == pytest.approx(values[-1], rel=1e-7)
    assert found.lowest() == pytest.approx(values[0], rel=1e-7)
    # Turned over, the largest in size is negative.
    assert abs(values[-1]) > 2 * abs(values[0])
    turned = Curvature(Operator.of(-matrix), "hessian", False, {})
    assert turned.sharpness() == pytest.approx(-values[0], rel=1e-7)
    assert turned.lowest() == pytest.approx(-values[-1], rel=1e-7)


def test_density_has_the_moments_and_the_mass(oracle: dict[str, np.ndarray]) -> None:
    matrix = oracle["cross_entropy"][np.ix_(ALIVE, ALIVE)]
    found = curvature("cross_entropy").density(probes=40, steps=12)
    for power in (1, 2, 3):
        right = np.trace(np.linalg.matrix_power(matrix, power)) / len(matrix)
        mean, error = found.moment(power)
        assert abs(mean - right) < 4 * error
    points = np.linspace(-3, 3, 601)
    assert found.at(points, 0.1).sum() * 0.01 == pytest.approx(1, abs=1e-3)


@pytest.mark.long
def test_without_a_mask_all_weights_count(oracle: dict[str, np.ndarray]) -> None:
    found = hessian(f, apply_mask(MASK, PARAMS), X, LABELS)
    np.testing.assert_allclose(found.dense(), oracle["cross_entropy"], rtol=0, atol=1e-10)


def test_labels_may_be_probabilities() -> None:
    loss, outputs = jax.jit(LOSSES["cross_entropy"]), jnp.asarray(TARGETS)
    np.testing.assert_allclose(
        loss(outputs, jnp.eye(C)[LABELS]), loss(outputs, jnp.asarray(LABELS)), rtol=1e-14
    )


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(SecateurError, match="7 examples and 3 targets"):
        hessian(f, PARAMS, X, LABELS[:3])
    with pytest.raises(SecateurError, match="no loss 'hinge'"):
        hessian(f, PARAMS, X, LABELS, loss="hinge")
    with pytest.raises(SecateurError, match="no kind of curvature 'fisher'"):
        hessian(f, PARAMS, X, LABELS, kind="fisher")
    with pytest.raises(SecateurError, match="batch is 0"):
        hessian(f, PARAMS, X, LABELS, batch=0)
    with pytest.raises(SecateurError, match="does not fit the parameters at dense_2/kernel"):
        hessian(f, PARAMS, X, LABELS, mask={**MASK, "dense_2": {"kernel": np.ones((2, 2), bool)}})
    nothing = {"a": np.zeros((2, 2), bool)}
    with pytest.raises(SecateurError, match="leaves no weight"):
        hessian(lambda p, x: x @ p["a"], {"a": np.ones((2, 2))}, X, LABELS, mask=nothing)
    with pytest.raises(SecateurError, match="width is 0"):
        Density(np.zeros((1, 1)), np.ones((1, 1))).at(0.0, 0)
