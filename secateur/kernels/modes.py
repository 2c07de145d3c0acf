"""One decomposition for all times: eigenvectors of a kernel, or what Lanczos finds of them.

Either gives ``phi(Theta) r_0 = U phi(lambda) c`` for every function phi: exactly with eigenvectors
U and ``c = U^T r_0``; with k steps of Lanczos from r_0 (Q, T = S diag(lambda) S^T) as U = Q S,
``c = |r_0| S^T e_1``, exactly for polynomials of degree below k (Saad 1992, theorem 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import scipy.linalg

from secateur.core.errors import SecateurError
from secateur.kernels import krylov
from secateur.kernels.linearised import Linearised
from secateur.kernels.operator import Operator

INDEFINITE = 1e-4  # of the largest eigenvalue: a negative one beyond this is no rounding


@dataclass(frozen=True)
class Modes:
    """Directions in which a linearised network learns, each at its own speed.

    Attributes:
        values: (k,), eigenvalues, largest first; rounding below zero is set to zero.
        vectors: (rows, k), orthonormal.
        coefficients: (k, D), the first residual r_0 in these directions; D = C for a kernel that
            is one for every output alike, else 1.
        leaves: (k,), how much of each direction the product leads out of all k of them: zero for
            an eigendecomposition. ``|Theta u - lambda u| = |leaves|``.
    """

    values: np.ndarray
    vectors: np.ndarray
    coefficients: np.ndarray
    leaves: np.ndarray

    def apply(self, weights: np.ndarray) -> np.ndarray:
        """phi(Theta) r_0 for T functions; weights (T, k), result (T, rows, D)."""
        scaled = weights[:, :, None] * self.coefficients  # (T, k, D)
        count, k, columns = scaled.shape
        flat = self.vectors @ np.moveaxis(scaled, 1, 0).reshape(k, count * columns)
        return np.moveaxis(flat.reshape(len(self.vectors), count, columns), 1, 0)

    def outside(self, weights: np.ndarray) -> np.ndarray:
        """|(Theta - its part within the directions) phi r_0| for T functions; (T, k) to (T,)."""
        return np.abs((weights * self.leaves) @ self.coefficients).max(axis=1)


def modes(problem: Linearised, steps: int) -> Modes:
    """Eigenvectors of a matrix; of an operator, Lanczos from r_0 with that many products.

    Raises:
        SecateurError: for a kernel with negative eigenvalues that rounding does not explain.
    """
    if isinstance(problem.kernel, Operator):
        return _lanczos(problem.kernel, problem.start()[:, 0], steps)
    values, vectors = scipy.linalg.eigh(problem.kernel, driver="evd")
    order = slice(None, None, -1)
    values, vectors = _semidefinite(values[order], problem.noise), vectors[:, order]
    return Modes(values, vectors, vectors.T @ problem.start(), np.zeros(len(values)))


def _lanczos(operator: Operator, start: np.ndarray, steps: int) -> Modes:
    if steps < 1:
        raise SecateurError(f"products is {steps}; expected at least one product of Lanczos.")
    # Nothing to learn, and the eigenvalues are still asked for.
    first = start if np.any(start) else np.ones(operator.size)
    starts = jnp.asarray(first[None], operator.dtype)
    (run,) = krylov.tridiagonal(operator, starts, steps, keep=True)
    assert run.basis is not None
    values, turned, _ = run.ritz()
    return Modes(
        _semidefinite(values, operator.size * float(np.finfo(operator.dtype).eps)),
        np.asarray(run.basis, np.float64) @ turned,
        np.linalg.norm(start) * turned[0][:, None],
        run.last * turned[-1],
    )


def _semidefinite(values: np.ndarray, noise: float) -> np.ndarray:
    """The eigenvalues with rounding below zero taken away."""
    if values[-1] < -max(noise, INDEFINITE) * max(values[0], 0.0):
        raise SecateurError(
            f"the kernel has the eigenvalue {values[-1]:.3g} beside the largest, {values[0]:.3g}; "
            "expected none below zero: a tangent kernel J J^T has none, so give one, or one of "
            "higher precision."
        )
    return np.maximum(values, 0.0)
