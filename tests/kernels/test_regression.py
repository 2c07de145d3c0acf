"""Kernel regression, against ridge regression in weight space and the end of training."""

from __future__ import annotations

import numpy as np
import pytest
from linear_model import model

from secateur.core.errors import SecateurError
from secateur.kernels.dynamics import linearise
from secateur.kernels.operator import Operator
from secateur.kernels.regression import after_kernel, kernel_regression

MODEL = model()
N, C = MODEL.f0.shape
Y = np.random.default_rng(1).standard_normal((N, C))
MEAN = float(np.trace(MODEL.kernel)) / (N * C)


@pytest.mark.parametrize("ridge", [1e-3, 0.5])
def test_regression_is_ridge_in_weight_space_and_the_end_of_training(ridge: float) -> None:
    jacobian = MODEL.jacobian[:, MODEL.mask]
    moved = np.zeros(len(MODEL.mask))
    moved[MODEL.mask] = np.linalg.solve(
        jacobian.T @ jacobian + ridge * MEAN * np.eye(jacobian.shape[1]),
        jacobian.T @ (Y - MODEL.f0).reshape(-1),
    )
    found = kernel_regression(
        MODEL.kernel, Y, MODEL.cross, f0=MODEL.f0, f0_test=MODEL.g0, ridge=ridge
    )
    train, test = MODEL.outputs(moved)
    np.testing.assert_allclose(found.train, train, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.test, test, rtol=0, atol=1e-10)
    end = linearise(MODEL.kernel, MODEL.f0, Y, cross=MODEL.cross, f0_test=MODEL.g0, ridge=ridge)
    np.testing.assert_allclose(end.at(np.inf), train, rtol=0, atol=1e-10)
    np.testing.assert_allclose(end.test(np.inf), test, rtol=0, atol=1e-10)


def test_the_after_kernel_forgets_the_network() -> None:
    found = after_kernel(MODEL.kernel.reshape(N, C, N, C), Y, MODEL.cross, ridge=0.1)
    zero = np.zeros_like(Y)
    limit = linearise(MODEL.kernel, zero, Y, cross=MODEL.cross, f0_test=0 * MODEL.g0, ridge=0.1)
    np.testing.assert_allclose(found.test, limit.test(np.inf), rtol=0, atol=1e-11)
    np.testing.assert_allclose(found.train, limit.at(np.inf), rtol=0, atol=1e-11)


def test_a_singular_kernel_is_reported_with_its_rank() -> None:
    m = model(keep=0.25)
    rank = np.linalg.matrix_rank(m.jacobian[:, m.mask])
    assert rank < N * C
    with pytest.raises(SecateurError, match=f"rank {rank} of {N * C}; give a larger ridge"):
        kernel_regression(m.kernel, Y)
    assert np.all(np.isfinite(kernel_regression(m.kernel, Y, ridge=1e-6).train))


def test_an_operator_is_sent_elsewhere() -> None:
    with pytest.raises(SecateurError, match="factorises a matrix"):
        kernel_regression(Operator(N * C, np.float32, lambda v: v), Y)
