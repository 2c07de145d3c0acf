"""What linearised training is of: a kernel, where the outputs start and where they should go.

A network linearised at w_0 is ``f(x; w) = f_0(x) + J(x)(w - w_0)``; J has the columns of the
surviving weights, so that only these move. Gradient descent on ``1/N sum_n l(f(x_n), y_n)`` moves
``w - w_0 = -J^T a / N``, and the outputs by kernels alone,

    f = f_0 - Theta a / N,    g = f_0(x_test) - Theta_* a / N,    a = int dl/df dt,

the *dual coefficients* a (N, C), one number for each output of each example. With a ridge rho the
objective has ``rho / (2 N) |w - w_0|^2`` beside it (Lee et al. 2019, section 2; the ridge: Hu, Li &
Yu 2020).

Everything on the host is float64, whatever the kernel's dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from secateur.core.errors import SecateurError
from secateur.kernels.operator import Operator

Product = Callable[[Any], Any]

ASYMMETRY = 1e-4  # of the largest entry: what rounding in float32 explains, and no more


@dataclass(frozen=True)
class Linearised:
    """A linearised network and its targets, checked.

    Attributes:
        kernel: (N C, N C), rows (n, c) with c fastest; (N, N) if ``alike``; or an operator of N C
            rows.
        alike: whether the kernel is (N, N), the same for every output and zero between outputs.
        f0: (N, C), outputs at the start.
        y: (N, C), targets.
        cross: the kernel between test and training points, (M C, N C) or (M, N) if ``alike``, or
            its product (N C,) -> (M C,).
        f0_test: (M, C).
        ridge: rho itself, in units of the kernel.
        precision: machine epsilon of the dtype in which the kernel was given.
    """

    kernel: np.ndarray | Operator
    alike: bool
    f0: np.ndarray
    y: np.ndarray
    cross: np.ndarray | Product | None = None
    f0_test: np.ndarray | None = None
    ridge: float = 0.0
    precision: float = float(np.finfo(np.float64).eps)

    @property
    def examples(self) -> int:
        """N."""
        return len(self.f0)

    @property
    def noise(self) -> float:
        """Eigenvalues below this share of the largest one are rounding: rows times epsilon."""
        rows = len(self.f0) if self.alike else self.f0.size
        return rows * self.precision

    def start(self) -> np.ndarray:
        """r_0 = f_0 - y as the kernel's columns: (N C, 1), or (N, C) if ``alike``."""
        residual = self.f0 - self.y
        return residual if self.alike else residual.reshape(-1, 1)

    def rows(self, columns: np.ndarray) -> np.ndarray:
        """(T, rows, columns) of the kernel back to (T, N, C)."""
        return columns.reshape(len(columns), *self.f0.shape)

    def test(self, dual: np.ndarray) -> np.ndarray:
        """Test outputs ``f_0(x_test) - Theta_* a / N`` for each of (T, N, C) coefficients.

        One product with the cross kernel for each of them.

        Raises:
            SecateurError: if no cross kernel was given.
        """
        if self.cross is None or self.f0_test is None:
            raise SecateurError(
                "there are no test points to predict: give cross, the kernel between test and "
                "training points, and f0_test, the outputs at the start on the test points."
            )
        count, shape = len(dual), self.f0_test.shape
        if callable(self.cross):
            dtype = self.kernel.dtype if isinstance(self.kernel, Operator) else np.float64
            flat = dual.reshape(count, -1).astype(dtype)
            moved = np.stack([np.asarray(self.cross(a), np.float64) for a in flat])
        elif self.alike:
            moved = np.moveaxis(np.tensordot(self.cross, dual, axes=(1, 1)), 0, 1)
        else:
            moved = (self.cross @ dual.reshape(count, -1).T).T
        return self.f0_test - moved.reshape(count, *shape) / self.examples


def linearised(
    kernel: Any,
    f0: Any,
    y: Any,
    *,
    cross: Any = None,
    f0_test: Any = None,
    ridge: float = 0.0,
) -> Linearised:
    """Reads kernels of every shape, and refuses what does not fit together.

    Args:
        kernel: ``[N, C, N, C]``; (N C, N C); (N, N), which acts on each output alike (for C > 1
            the *mean* over outputs: the sum over them is C times as fast); a `ntk.Kernel`, whose
            sum over outputs is made the mean; or an `Operator` of N C rows, or of N rows for each
            output alike.
        f0: (N, C), outputs at the start.
        y: (N, C), targets.
        cross: the kernel of M test points with the N training points in the same form; with an
            operator its product (N C,) -> (M C,), or a matrix.
        f0_test: (M, C), outputs at the start on the test points.
        ridge: weight of the ridge relative to the kernel's mean eigenvalue tr Theta / rows.

    Raises:
        SecateurError: for shapes that do not fit, numbers that are not finite, a kernel that is
            not symmetric, a negative ridge, or a ridge for an operator of unknown trace.
    """
    f0, y = _outputs("f0", f0), _outputs("y", y)
    if f0.shape != y.shape:
        raise SecateurError(
            f"f0 is {f0.shape} and y is {y.shape}; give both as (examples, outputs)."
        )
    if not ridge >= 0 or not np.isfinite(ridge):
        raise SecateurError(
            f"ridge is {ridge}; expected a number >= 0, relative to the kernel's mean eigenvalue."
        )
    matrix: np.ndarray | Operator
    if isinstance(kernel, Operator):
        matrix = whole = _whole(kernel, *f0.shape)
        alike, rows, trace = False, whole.size, whole.trace
        precision = float(np.finfo(kernel.dtype).eps)
    else:
        given = _values(kernel, f0.shape[1])
        # Integers, and Python's own numbers, are exact.
        precision = float(np.finfo(given.dtype if given.dtype.kind == "f" else np.float64).eps)
        matrix, alike = _matrix("kernel", given, f0.shape, f0.shape)
        _symmetric(matrix)
        rows, trace = len(matrix), float(matrix.trace())
    if ridge and trace is None:
        raise SecateurError(
            "the ridge is relative to the trace, which this operator does not know: make it as "
            "Operator(..., trace=...), or give ridge=0."
        )
    if (cross is None) != (f0_test is None):
        raise SecateurError(
            "one of cross and f0_test is missing; to predict test points give both, the kernel "
            "between test and training points and the outputs at the start on the test points."
        )
    if cross is not None:
        f0_test = _outputs("f0_test", f0_test)
        if f0_test.shape[1] != f0.shape[1]:
            raise SecateurError(
                f"f0_test has {f0_test.shape[1]} outputs and f0 {f0.shape[1]}; expected the same."
            )
        if not callable(cross):
            given = _values(cross, f0.shape[1])
            cross, cross_alike = _matrix("cross", given, f0_test.shape, f0.shape)
            if cross_alike and not alike:
                cross = np.kron(cross, np.eye(f0.shape[1]))
            elif alike and not cross_alike:
                raise SecateurError(
                    "the kernel is one for every output alike and cross has entries between "
                    "outputs; give both in the same form."
                )
    absolute = ridge * trace / rows if ridge and trace is not None else 0.0
    return Linearised(matrix, alike, f0, y, cross, f0_test, absolute, precision)


def _outputs(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 2 or not array.size:
        raise SecateurError(
            f"{name} has shape {array.shape}; expected (examples, outputs), labels as one column a "
            "class."
        )
    if not np.all(np.isfinite(array)):
        raise SecateurError(f"{name} has entries that are not finite; expected finite numbers.")
    return array


def _values(kernel: Any, outputs: int) -> np.ndarray:
    """The array; of a `Kernel` summed over outputs, the mean that acts on each."""
    values = np.asarray(getattr(kernel, "values", kernel))
    return values / outputs if getattr(kernel, "outputs", "") == "trace" else values


def _matrix(
    name: str, values: np.ndarray, left: tuple[int, ...], right: tuple[int, ...]
) -> tuple[np.ndarray, bool]:
    """The matrix, and whether it is one for every output alike."""
    (m, c), (n, _) = left, right
    full, alike = (m * c, n * c), (m, n)
    if values.shape in ((m, c, n, c), full):
        matrix, each = values.reshape(full), False
    elif values.shape == alike:
        matrix, each = values, True
    else:
        raise SecateurError(
            f"{name} has shape {values.shape}; for {m} and {n} examples with {c} outputs expected "
            f"{(m, c, n, c)}, {full} or {alike}."
        )
    matrix = np.asarray(matrix, np.float64)
    if not np.all(np.isfinite(matrix)):
        raise SecateurError(f"{name} has entries that are not finite; expected finite numbers.")
    return matrix, each


def _symmetric(matrix: np.ndarray) -> None:
    largest = float(np.max(np.abs(matrix)))
    apart = float(np.max(np.abs(matrix - matrix.T)))
    if apart > ASYMMETRY * largest:
        raise SecateurError(
            f"the kernel is not symmetric: entries differ from their mirror by up to {apart:.3g}, "
            f"the largest is {largest:.3g}; give the kernel of the training points with themselves."
        )


def _whole(operator: Operator, n: int, c: int) -> Operator:
    """An operator of N C rows."""
    if operator.size == n * c:
        return operator
    if operator.size != n:
        raise SecateurError(
            f"the operator has {operator.size} rows; for {n} examples with {c} outputs expected "
            f"{n * c}, or {n} for each output alike."
        )
    each = jax.vmap(operator.product, in_axes=1, out_axes=1)
    trace = None if operator.trace is None else c * operator.trace
    return Operator(n * c, operator.dtype, lambda v: each(v.reshape(n, c)).reshape(-1), trace)
