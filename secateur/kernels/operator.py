"""A symmetric matrix known by its products with vectors: what everything without a matrix takes.

The products of a kernel cost a few passes through the network; its matrix may not fit. Krylov
methods (`secateur.kernels.krylov`), spectra and SciPy's sparse solvers all take an `Operator`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from secateur.core.errors import SecateurError


@dataclass(frozen=True, eq=False)
class Operator:
    """A symmetric positive semidefinite map of ``size`` numbers, by its products.

    Args:
        size: rows of the matrix that it stands for.
        dtype: of the vectors; NumPy's or JAX's floating point types.
        product: ``(size,) -> (size,)``, pure: it runs under ``jit`` and ``vmap``. Given as a
            `jax.tree_util.Partial` (as `jax.vjp` and `jax.linearize` give theirs), its arrays are
            arguments of the compiled programs and operators of one form share them; any other
            function is compiled once for each operator, with its arrays inside.
        trace: the sum of the diagonal, where it is known exactly.

    Raises:
        SecateurError: for a size below 1 or a dtype that is no real floating point type.
    """

    size: int
    dtype: Any
    product: Callable[[jax.Array], jax.Array]
    trace: float | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise SecateurError(f"an operator has at least one row, and this has {self.size}.")
        if not jnp.issubdtype(self.dtype, jnp.floating):
            raise SecateurError(
                f"an operator's vectors are real floating point numbers, not "
                f"{np.dtype(self.dtype).name}: give dtype=float32 or float64."
            )

    @classmethod
    def of(cls, matrix: Any) -> Operator:
        """The operator of a symmetric matrix, ``(n, n)``; its trace is the diagonal's sum.

        Raises:
            SecateurError: if it is not square.
        """
        host = square(matrix)
        array = jnp.asarray(matrix)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(jnp.result_type(float))
        trace = float(np.sum(np.diagonal(host), dtype=np.float64))
        return cls(len(array), array.dtype, Partial(jnp.matmul, array), trace)

    @property
    def shape(self) -> tuple[int, int]:
        """As SciPy asks for it: ``(size, size)``."""
        return self.size, self.size

    def matvec(self, x: Any) -> np.ndarray:
        """The product with one vector, NumPy in and out: what `aslinearoperator` looks for."""
        x = np.asarray(x)
        return np.asarray(self.product(jnp.asarray(x.reshape(-1), self.dtype))).reshape(x.shape)

    def rmatvec(self, x: Any) -> np.ndarray:
        """The product with the transpose: the same."""
        return self.matvec(x)

    def __matmul__(self, x: Any) -> jax.Array:
        """The product with ``(size,)``, or with each column of ``(size, k)``."""
        x = jnp.asarray(x, self.dtype)
        if x.ndim not in (1, 2) or len(x) != self.size:
            raise SecateurError(
                f"an operator of {self.size} rows multiplies ({self.size},) or ({self.size}, k), "
                f"not {x.shape}."
            )
        return self.product(x) if x.ndim == 1 else jax.vmap(self.product, 1, 1)(x)


def square(matrix: Any) -> np.ndarray:
    """The matrix on the host.

    Raises:
        SecateurError: if it is not a square one of real numbers.
    """
    host = np.asarray(matrix)
    if host.ndim != 2 or host.shape[0] != host.shape[1] or not len(host):
        raise SecateurError(
            f"a kernel's matrix is square, (n, n), and this array is {host.shape}: reshape "
            "[n, C, n, C] to (n C, n C), and give rows of a Jacobian to method='dual'."
        )
    if np.iscomplexobj(host):
        raise SecateurError(
            "a kernel's matrix is real, and this one is complex: take its real part."
        )
    return host
