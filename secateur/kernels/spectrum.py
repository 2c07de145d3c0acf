"""The spectrum of a kernel, whole or estimated, and each number read from it by its own name.

A `Spectrum` is a measure: eigenvalues with weight 1, and where most of them are estimated, nodes of
Gauss quadrature that carry weights (`secateur.kernels.krylov`). Every quantity is computed from it
in one way, and its standard error by leaving out one probe at a time (jackknife).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from secateur.core.errors import SecateurError, lookup
from secateur.kernels.krylov import Nodes, Pairs, eigenpairs, quadrature
from secateur.kernels.measure import QUANTITIES, Spectrum
from secateur.kernels.operator import Operator, square

__all__ = ["METHODS", "QUANTITIES", "Spectrum", "from_rows", "spectrum"]

METHODS = {
    "auto": "eigh up to 4,000 rows; beyond, and on operators, deflated, or lanczos if top is given",
    "eigh": "all eigenvalues of the matrix in float64",
    "dual": "all, from J'J, by blocks of rows of J: where weights are fewer than rows",
    "lanczos": "the largest alone, each with its residual",
    "slq": "stochastic Lanczos quadrature: a density, with standard errors",
    "deflated": "the largest by lanczos, exactly; the rest by slq",
}
DENSE = 4000
# Operators of so few rows are formed: a hundred products would be more.
FORMED = 256
TOP, PROBES, STEPS = 20, 8, 50


def spectrum(
    kernel: Any,
    method: str = "auto",
    *,
    top: int | None = None,
    probes: int = PROBES,
    steps: int = STEPS,
    key: jax.Array | None = None,
    tolerance: float | None = None,
    semidefinite: bool = True,
) -> Spectrum:
    """Eigenvalues of a kernel.

    Args:
        kernel: a symmetric matrix ``(n, n)``, NumPy or JAX, or a `Kernel`; an `Operator`; or for
            ``dual`` J as an iterable of row blocks ``(rows, K)``, see `from_rows`.
        method: a key of `METHODS`.
        top: how many of the largest by Lanczos (``lanczos``, ``deflated``: 20 unless given).
        probes, steps: random vectors of the quadrature and products for each. Errors fall with
            sqrt(probes); steps resolve small eigenvalues.
        key: of the random vectors; the same numbers each time unless given.
        tolerance: the largest residual of a Ritz pair, relative to its value: 1e-6, and 1e-2 in
            ``deflated``, where the error that it leaves in a value is of second order.
        semidefinite: whether negative eigenvalues are refused; False for a Hessian.

    Raises:
        SecateurError: for a matrix that is not square, symmetric or finite, an eigenvalue below
            zero by more than rounding, an unknown method, or one that the kernel does not allow.
    """
    lookup("method of the spectrum", method, METHODS)
    if hasattr(kernel, "matrix"):  # an `ntk.Kernel`
        kernel = kernel.matrix()
    operator = kernel if isinstance(kernel, Operator) else None
    blocks = operator is None and not hasattr(kernel, "shape")
    if method == "dual" or (method == "auto" and blocks):
        if operator is not None:
            raise SecateurError(
                "the dual J'J needs the rows of J, which an operator does not give: pass them in "
                "blocks, or take method='deflated'."
            )
        return from_rows(kernel if blocks else [kernel])
    if blocks:
        raise SecateurError(
            f"method {method!r} takes a matrix or an operator, not {type(kernel).__name__}: only "
            "'dual' takes blocks of rows."
        )
    size = operator.size if operator is not None else len(square(kernel))
    if method == "auto":
        whole = size <= (DENSE if operator is None else FORMED)
        method = "eigh" if whole else "deflated" if top is None else "lanczos"
    if method == "eigh":
        return _dense(kernel if operator is None else _formed(operator), semidefinite)
    if operator is None:
        operator = Operator.of(_symmetric(square(kernel)))
    key = jax.random.key(0) if key is None else key
    found = _krylov(operator, method, top or TOP, probes, steps, key, tolerance)
    return _definite(found) if semidefinite else dataclasses.replace(found, semidefinite=False)


def from_rows(blocks: Iterable[Any]) -> Spectrum:
    """All eigenvalues of J J' from J'J, summed in float64 over row blocks ``(rows, K)`` of J.

    Both have the same eigenvalues but for zeros. Holds K^2 numbers of 8 bytes, however many rows
    there are; costs rows K^2 multiplications and an eigendecomposition of K x K.

    Raises:
        SecateurError: for no blocks, blocks of different widths, or numbers that are not finite.
    """
    gram: np.ndarray | None = None
    rows, eps = 0, 0.0
    for block in blocks:
        host = np.asarray(block)
        if host.ndim != 2 or (gram is not None and host.shape[1] != len(gram)):
            wanted = "(rows, K)" if gram is None else f"(rows, {len(gram)})"
            raise SecateurError(f"a block of rows of J is {wanted}, and this one is {host.shape}.")
        eps = max(eps, _eps(host.dtype))
        wide = host.astype(np.float64)
        gram = np.zeros((host.shape[1],) * 2) if gram is None else gram
        gram += wide.T @ wide
        rows += len(host)
    if gram is None or not rows or not len(gram):
        raise SecateurError("J has no rows or no columns: give at least one block (rows, K).")
    _finite(gram, "J'J")
    values = scipy.linalg.eigh(gram, eigvals_only=True, overwrite_a=True, check_finite=False)
    values = np.append(np.maximum(values[::-1], 0.0), np.zeros(max(0, rows - len(values))))[:rows]
    return Spectrum.exact(values, "dual", eps)


# ---------------------------------------------------------------------------------------- matrices


def _dense(matrix: Any, semidefinite: bool) -> Spectrum:
    host = square(matrix)
    eps = _eps(host.dtype)
    values = scipy.linalg.eigh(
        _symmetric(host), eigvals_only=True, overwrite_a=True, check_finite=False
    )
    found = Spectrum.exact(values[::-1], "eigh", eps)
    return _definite(found) if semidefinite else dataclasses.replace(found, semidefinite=False)


def _formed(operator: Operator) -> np.ndarray:
    """The matrix from products with the unit vectors, 64 at a time."""
    some = jax.jit(jax.vmap(operator.product))
    eye = np.eye(operator.size)
    return np.concatenate(
        [
            np.asarray(some(jnp.asarray(eye[i : i + 64], operator.dtype)))
            for i in range(0, operator.size, 64)
        ]
    )


def _symmetric(host: np.ndarray) -> np.ndarray:
    """A copy in float64, exactly symmetric.

    Raises:
        SecateurError: if it is not finite, or further from symmetric than sums differ by order.
    """
    eps = _eps(host.dtype)
    wide = host.astype(np.float64)
    _finite(wide, "the kernel")
    largest, gap = 0.0, 0.0
    for i in range(0, len(wide), 512):  # by blocks: no second matrix
        rows, columns = wide[i : i + 512, i:], wide[i:, i : i + 512].T
        gap = max(gap, float(np.abs(rows - columns).max()))
        largest = max(largest, float(np.abs(rows).max()), float(np.abs(columns).max()))
        mean = (rows + columns) / 2
        wide[i : i + 512, i:] = mean
        wide[i:, i : i + 512] = mean.T
    if gap > 1000 * eps * largest:
        raise SecateurError(
            f"a kernel is symmetric, and this matrix differs from its transpose by {gap:.3g} where "
            f"its largest entry is {largest:.3g}: check the order of its rows and columns."
        )
    return wide


def _finite(array: np.ndarray, what: str) -> None:
    if not np.isfinite(array).all():
        count = int(np.sum(~np.isfinite(array)))
        raise SecateurError(
            f"{what} has {count} of {array.size} entries that are NaN or infinite: look for "
            "overflow in the parameters and the examples, or compute it in float64."
        )


def _eps(dtype: Any) -> float:
    """The rounding of the dtype that the kernel was computed in; whole numbers are exact."""
    floating = jnp.issubdtype(dtype, jnp.floating)
    return float(jnp.finfo(dtype).eps) if floating else float(np.finfo(np.float64).eps)


def _definite(found: Spectrum) -> Spectrum:
    """Refuses eigenvalues that are negative by more than the rounding of the kernel."""
    lowest, largest = float(found.values.min()), float(np.abs(found.values).max())
    if lowest < -max(found.size, 64) * found.precision * largest:
        raise SecateurError(
            f"a kernel has no negative eigenvalue, and the smallest here is {lowest:.4g} where the "
            f"largest is {found.values.max():.4g}: compute it in float64, or pass "
            "semidefinite=False if it is no kernel."
        )
    return found


# --------------------------------------------------------------------------------------- operators


def _krylov(
    operator: Operator,
    method: str,
    top: int,
    probes: int,
    steps: int,
    key: jax.Array,
    tolerance: float | None,
) -> Spectrum:
    for_pairs, for_probes = jax.random.split(key)
    eps = float(jnp.finfo(operator.dtype).eps)
    pairs = None
    if method == "lanczos":
        pairs = eigenpairs(operator, top, for_pairs, tolerance=tolerance or 1e-6)
        short = Pairs(pairs.values[:top], pairs.vectors, pairs.residuals[:top], pairs.products)
        return Spectrum.of(short, None, operator.size, method, eps, operator.trace)
    if method == "deflated":
        tolerance = tolerance or 1e-2
        pairs = eigenpairs(operator, top, for_pairs, tolerance=tolerance, check=False)
    while True:
        away = None if pairs is None else pairs.vectors
        if away is not None and away.shape[1] == operator.size:
            return Spectrum.of(pairs, None, operator.size, method, eps, operator.trace)
        nodes = quadrature(operator, probes, steps, for_probes, away=away)
        _same_trace(operator, pairs, nodes)
        if pairs is None:
            break
        # Copies of a multiple eigenvalue are not seen by one Krylov space, but by the probes.
        wanted = pairs.values[min(top, len(pairs.values)) - 1]
        seen = nodes.values.max()
        if seen <= wanted + 16 * eps * abs(pairs.values[0]) or math.isclose(seen, wanted):
            break
        pairs = eigenpairs(operator, top, for_pairs, tolerance=tolerance or 1e-2, known=pairs)
    return Spectrum.of(pairs, nodes, operator.size, method, eps, operator.trace)


def _same_trace(operator: Operator, pairs: Pairs | None, nodes: Nodes) -> None:
    """Refuses a stated trace that the products contradict: everything would be weighted by it."""
    if operator.trace is None:
        return
    found, error = nodes.trace_of(lambda v: v)
    found += float(pairs.values.sum()) if pairs is not None else 0.0
    if abs(found - operator.trace) > 10 * error + 1e-3 * abs(operator.trace):
        raise SecateurError(
            f"the operator states a trace of {operator.trace:.6g}, and its products give "
            f"{found:.6g} +- {error:.2g}: give it the trace of the same kernel, or none."
        )
