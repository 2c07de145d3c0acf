"""Kernel regression: where linearised training by the squared loss ends, without its way there.

``g = g_0 + Theta_* (Theta + rho I)^{-1} (y - f_0)``, the same as ridge regression in weight space,
the least of ``1/2 |f_lin - y|^2 + rho/2 |w - w_0|^2``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from secateur.core.errors import SecateurError
from secateur.kernels.linearised import linearised
from secateur.kernels.operator import Operator


@dataclass(frozen=True)
class Regression:
    """A solved kernel regression.

    Attributes:
        train: (N, C), predictions on the training points; the targets where there is no ridge.
        test: (M, C), predictions on the test points; None without them.
        coefficients: (N, C), ``(Theta + rho I)^{-1} (y - f_0)``.
        ridge: rho itself, in units of the kernel.
    """

    train: np.ndarray
    test: np.ndarray | None
    coefficients: np.ndarray
    ridge: float


def kernel_regression(
    kernel: Any,
    y: Any,
    cross: Any = None,
    *,
    f0: Any = None,
    f0_test: Any = None,
    ridge: float = 0.0,
) -> Regression:
    """Regression with a kernel, by Cholesky's factorisation in float64.

    >>> import numpy as np
    >>> found = kernel_regression(2 * np.eye(2), [[1.0], [3.0]], np.ones((1, 2)), ridge=1.0)
    >>> found.coefficients[:, 0], found.test[:, 0]
    (array([0.25, 0.75]), array([1.]))

    Args:
        kernel: as in `dynamics.linearise`, a matrix.
        y: (N, C), targets.
        cross: the kernel of test points with the training points; None predicts none.
        f0: (N, C), outputs at the start, to which the kernel adds; zeros if None.
        f0_test: (M, C), the same on the test points.
        ridge: rho over the kernel's mean eigenvalue.

    Raises:
        SecateurError: if the kernel with its ridge is not positive definite to rounding, with its
            smallest eigenvalue and rank; for an operator, and as `linearise`.
    """
    if isinstance(kernel, Operator):
        raise SecateurError(
            "kernel regression factorises a matrix and was given an operator; form the kernel, or "
            "take the limit linearise(...).test(np.inf)."
        )
    y = np.asarray(y, np.float64)
    f0 = np.zeros(y.shape) if f0 is None else f0
    if cross is not None and f0_test is None:
        given = np.asarray(getattr(cross, "values", cross))
        columns = y.shape[1] if y.ndim == 2 else 1
        # (M, C, N, C), (M C, N C) or (M, N)
        full = given.ndim == 2 and given.shape[1] != len(y)
        f0_test = np.zeros((len(given) // columns if full else len(given), columns))
    problem = linearised(kernel, f0, y, cross=cross, f0_test=f0_test, ridge=ridge)
    assert isinstance(problem.kernel, np.ndarray)
    target = -problem.start()
    solved = _solve(problem.kernel, target, problem.ridge, problem.noise)
    # Theta c = target - rho c, without another product
    train = problem.f0 + problem.rows((target - problem.ridge * solved)[None])[0]
    coefficients = problem.rows(solved[None])
    test = None if cross is None else problem.test(-problem.examples * coefficients)[0]
    return Regression(train, test, coefficients[0], problem.ridge)


def after_kernel(kernel: Any, y: Any, cross: Any = None, *, ridge: float = 1e-6) -> Regression:
    """Regression with the *after-kernel*: the tangent kernel at the end of training (Long 2021).

    It asks how much of what training learnt is in the kernel: the network is forgotten, outputs
    start from zero, and the kernel at the trained weights is fitted to the same examples. Beside
    it stand the same with the kernel at the start, and the trained network itself. Long fits
    support vector machines to two classes; this is regression to the targets, for any number of
    classes, with a small ridge, since a trained kernel is often close to singular.

    Args:
        kernel: at the trained weights, of the training points, masked where the network is.
        y: (N, C), targets, e.g. one column a class.
        cross: the same kernel between test and training points.
        ridge: rho over the kernel's mean eigenvalue.

    Raises:
        SecateurError: as `kernel_regression`.
    """
    return kernel_regression(kernel, y, cross, ridge=ridge)


def _solve(kernel: np.ndarray, target: np.ndarray, ridge: float, noise: float) -> np.ndarray:
    shifted = kernel + ridge * np.eye(len(kernel))
    norm = float(np.abs(shifted).sum(axis=0).max())
    try:
        factor, lower = scipy.linalg.cho_factor(shifted, lower=True, overwrite_a=True)
    except np.linalg.LinAlgError:
        raise _singular(kernel, ridge, noise) from None
    # Cholesky passes singular matrices whose rounding is positive; what it solves then is noise.
    inverse_condition, _ = scipy.linalg.lapack.dpocon(factor, norm, uplo="L")
    if inverse_condition < len(kernel) * np.finfo(np.float64).eps:
        raise _singular(kernel, ridge, noise)
    return scipy.linalg.cho_solve((factor, lower), target)


def _singular(kernel: np.ndarray, ridge: float, noise: float) -> SecateurError:
    values = scipy.linalg.eigvalsh(kernel)
    rank = int(np.sum(values > noise * values[-1]))
    return SecateurError(
        f"the kernel with its ridge of {ridge:.3g} is not positive definite to rounding: smallest "
        f"eigenvalue {values[0]:.3g}, largest {values[-1]:.3g}, rank {rank} of {len(values)}; give "
        "a larger ridge, or linearise(...).test(np.inf) for the pseudo-inverse."
    )
