"""Lanczos: eigenvalues and functions of a symmetric operator from its products alone.

The one file that knows matfree (its interface has changed before). Iterations run in JAX in the
operator's dtype; what is small or has a new shape each time is done on the host.

Lanczos with full reorthogonalisation: A Q = Q T + beta q e_m'. An eigenpair (theta, s) of T gives
the Ritz pair (theta, Q s) with ||A Q s - theta Q s|| = beta |s_m|, so that an eigenvalue of A lies
within beta |s_m| of theta (Parlett 1998, theorem 4.5.1). With v = ||v|| q_1, Gauss quadrature gives
v' f(A) v = ||v||^2 sum_j s_1j^2 f(theta_j), exact for polynomials of degree 2m - 1 (Golub & Meurant
1994); averaged over vectors of random signs it is tr f(A) (Ubaru, Chen & Saad 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.tree_util import Partial
from matfree import decomp, stochtrace

from secateur.core.errors import SecateurError
from secateur.kernels.operator import Operator

# Bytes of Krylov bases held at once by a batch of probes.
BASES = 256 * 2**20
# Products of one round of Lanczos at most, and of the last one, which looks for what was missed.
LONGEST, CHECK = 1000, 20
# Rounds in a row that may find nothing.
IDLE = 8
# Deflated vectors are padded by zeros to a multiple of this: programs are compiled for shapes.
PADDED = 32


@dataclass(frozen=True)
class Tridiagonal:
    """T of one Lanczos run, in float64.

    Args:
        diagonal: ``(m,)``; ``off``: ``(m - 1,)``. m is smaller than the steps asked for where the
            start's Krylov space is: T is then exact on it.
        last: beta, the coupling to the next vector: 0 where the space is exhausted.
        length: of the vector it started from, after projection.
        basis: Q, ``(size, m)``, orthonormal columns, NumPy in the operator's dtype; None where not
            kept.
    """

    diagonal: np.ndarray
    off: np.ndarray
    last: float
    length: float
    basis: np.ndarray | None = None

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Eigenvalues of T, descending ``(m,)``; vectors ``(m, m)``; residuals ``(m,)``."""
        theta, s = scipy.linalg.eigh_tridiagonal(self.diagonal, self.off)
        theta, s = theta[::-1], s[:, ::-1]
        return theta, s, self.last * np.abs(s[-1])


@dataclass(frozen=True)
class Pairs:
    """The largest eigenpairs, by value descending.

    Args:
        values: ``(k,)`` float64.
        vectors: ``(size, k)``, orthonormal, NumPy in the operator's dtype.
        residuals: ``(k,)``, ||A u - theta u||: an eigenvalue lies within it of the value.
        products: with single vectors, that it took.
    """

    values: np.ndarray
    vectors: np.ndarray
    residuals: np.ndarray
    products: int


@dataclass(frozen=True)
class Nodes:
    """Gauss quadrature of tr f(A) by probes: tr f(A) ~ mean over p of sum_j weights f(values).

    Args:
        values: ``(probes, m)``, descending along each row; unused places hold 0 with weight 0.
        weights: ``(probes, m)``; each row sums to the dimension: size less deflated vectors, as far
            as the probe lies in their complement.
        residuals: ``(probes, m)``: an eigenvalue lies within it of each value.
    """

    values: np.ndarray
    weights: np.ndarray
    residuals: np.ndarray

    def trace_of(self, function: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
        """tr f(A): the mean over probes and its standard error (infinite for a single probe)."""
        each = np.sum(self.weights * np.where(self.weights > 0, function(self.values), 0.0), axis=1)
        count = len(each)
        error = float(np.std(each, ddof=1)) / math.sqrt(count) if count > 1 else math.inf
        return float(np.mean(each)), error


def tridiagonal(
    operator: Operator,
    starts: jax.Array | np.ndarray,
    steps: int,
    *,
    away: np.ndarray | None = None,
    keep: bool = False,
) -> list[Tridiagonal]:
    """Lanczos with full reorthogonalisation from each row of ``starts``, side by side.

    Args:
        starts: ``(p, size)``.
        steps: products, at most the dimension of the space.
        away: orthonormal columns ``(size, k)``: the operator is taken on their complement,
            (1 - UU')A(1 - UU').
        keep: whether the bases come back. They are held during the run either way, p * size * steps
            numbers.

    Raises:
        SecateurError: for starts of the wrong shape, or products that are not finite or not of the
            operator's size.
    """
    _same_shape(operator, starts)
    steps = max(1, min(steps, operator.size))
    free = operator.size - (0 if away is None else away.shape[1])
    if away is not None:
        columns = PADDED * max(1, math.ceil(away.shape[1] / PADDED))
        away = np.pad(away, ((0, 0), (0, columns - away.shape[1])))
    product, program = _program(operator)
    *numbers, bases = program(product, away, starts, steps=steps, keep=keep)
    eps = float(jnp.finfo(operator.dtype).eps)
    found = []
    host = (np.asarray(part, np.float64) for part in numbers)
    for p, (diagonal, off, length) in enumerate(zip(*host)):
        if not np.isfinite(diagonal[0]):
            raise SecateurError(
                "the operator's product with a random vector is not finite: look for NaN or "
                "overflow in the parameters and the examples."
            )
        # Where the Krylov space of the start ends, the coupling is rounding and what comes after
        # it neither orthogonal nor finite; up to there T is complete.
        scale = np.maximum.accumulate(np.abs(np.where(np.isfinite(diagonal), diagonal, 0.0)))
        ended = ~(off > 16 * eps * scale)
        ended[free - 1 :] = True
        m = int(np.argmax(ended)) + 1 if ended.any() else steps
        found.append(
            Tridiagonal(
                diagonal[:m],
                off[: m - 1],
                0.0 if ended.any() else float(off[-1]),
                float(length),
                np.asarray(bases[p])[:m].T if keep else None,
            )
        )
    return found


def eigenpairs(
    operator: Operator,
    top: int,
    key: jax.Array,
    *,
    tolerance: float = 1e-6,
    steps: int | None = None,
    known: Pairs | None = None,
    check: bool = True,
) -> Pairs:
    """At least the ``top`` largest eigenpairs: Lanczos, restarted beside what has converged.

    Each round runs on the complement of the pairs found so far (deflation), so copies of a multiple
    eigenvalue are found one after the other; a round from a fresh random vector that finds nothing
    larger than the last pair wanted ends the search.

    Args:
        top: how many; all where the operator has fewer. All that converged come back, often more.
        tolerance: the largest residual, relative to the value (and never below the rounding of the
            largest). The value's own error is about residual^2 / gap.
        steps: products of the first round, ``2 top + 20`` unless given; a round that finds nothing
            doubles it.
        known: pairs to start beside.
        check: whether the last round is run; without it, copies of multiple eigenvalues may be
            missing.

    Raises:
        SecateurError: for less than one pair, or where they do not converge, with how far they are.
    """
    if top < 1:
        raise SecateurError(f"at least one eigenvalue can be asked for, not {top}.")
    size, top = operator.size, min(top, operator.size)
    eps = float(jnp.finfo(operator.dtype).eps)
    values, residuals, vectors, products = _begin(operator, known)
    m = steps or 2 * top + 20
    start: np.ndarray | None = None
    turn = idle = 0
    while len(values) < size:
        enough = len(values) >= top
        if enough and not check:
            break
        last = np.sort(values)[::-1][top - 1] if enough else -math.inf
        checking = enough and not idle
        if start is None or checking:
            once = jax.random.fold_in(key, turn)
            start = np.asarray(jax.random.normal(once, (size,), operator.dtype))
        # On few rows another program to compile costs more than it saves.
        length = min(CHECK, m) if checking and turn and size > 1000 else m
        (run,) = tridiagonal(
            operator, start[None].astype(operator.dtype), length, away=vectors, keep=True
        )
        theta, s, residual = run.ritz()
        products += len(theta)
        turn += 1
        scale = max(np.abs(theta).max(), np.abs(values).max(initial=0.0))
        rounding = 16 * eps * scale
        if theta[0] <= last + rounding:
            break
        good = residual <= np.maximum(tolerance * np.abs(theta), rounding)
        count = len(theta) if good.all() else int(np.argmin(good))
        assert run.basis is not None
        ritz = run.basis @ s[:, : max(count, top)]
        # What is still wanted, all in one vector: the next round begins in the right space.
        start = ritz[:, count:].sum(1) if count < ritz.shape[1] else None
        if count:
            vectors = _orthonormal(vectors, ritz[:, :count]).astype(operator.dtype)
            values = np.append(values, theta[:count])
            residuals = np.append(residuals, residual[:count])
            idle = 0
        else:
            m, idle = min(2 * m, LONGEST), idle + 1
        if idle > IDLE:
            raise SecateurError(
                f"{len(values)} of the {top} largest eigenvalues converged in {products} products; "
                f"the next, near {theta[0]:.3g}, is known to {residual[0]:.1g}: take a tolerance "
                f"above {tolerance:g}, or form the matrix."
            )
    order = np.argsort(-values, kind="stable")
    return Pairs(values[order], vectors[:, order], residuals[order], products)


def quadrature(
    operator: Operator,
    probes: int,
    steps: int,
    key: jax.Array,
    *,
    away: np.ndarray | None = None,
    batch: int | None = None,
) -> Nodes:
    """Stochastic Lanczos quadrature: nodes and weights of tr f(A) for every f at once.

    Args:
        probes: vectors of random signs; ``steps``: products for each.
        away: orthonormal columns ``(size, k)`` that are projected out: tr f over their complement.
        batch: probes side by side; as many as hold their bases in 256 MB unless given.

    Raises:
        SecateurError: for less than one probe or step, and as `tridiagonal`.
    """
    if probes < 1 or steps < 1:
        raise SecateurError(
            f"quadrature takes at least one probe and one step, not {probes} and {steps}."
        )
    steps = min(steps, operator.size)
    like = jnp.zeros((operator.size,), operator.dtype)
    signs = stochtrace.sampler_signs(like, num=probes)(key)
    itemsize = jnp.dtype(operator.dtype).itemsize
    batch = batch or max(1, BASES // (operator.size * max(steps, 1) * itemsize))
    values, weights, residuals = (np.zeros((probes, steps)) for _ in range(3))
    row = 0
    for part in np.array_split(np.arange(probes), math.ceil(probes / batch)):
        for run in tridiagonal(operator, signs[part[0] : part[-1] + 1], steps, away=away):
            theta, s, residual = run.ritz()
            m = len(theta)
            values[row, :m], residuals[row, :m] = theta, residual
            weights[row, :m] = run.length**2 * s[0] ** 2
            row += 1
    return Nodes(values, weights, residuals)


# ------------------------------------------------------------------------------------ the iteration


def _lanczos(
    product: Callable[[jax.Array], jax.Array],
    away: jax.Array | None,
    starts: jax.Array,
    *,
    steps: int,
    keep: bool,
) -> tuple[Any, ...]:
    """Diagonal, couplings to the next vector, length and basis (or None) of each start."""

    def project(v: jax.Array) -> jax.Array:
        return v if away is None else v - away @ (away.T @ v)

    # Not `tridiag_sym`, which is this and then the mean of the two off-diagonals: above the
    # diagonal stands no coupling any more where the Krylov space has ended.
    iterate = decomp.hessenberg(steps, reortho="full", custom_vjp=False)

    def one(v: jax.Array) -> tuple[Any, ...]:
        # Projected twice: what rounding leaves of the largest eigenvectors would grow again.
        v = project(project(v))
        found = iterate(lambda u: project(product(project(u))), v)
        off = jnp.append(jnp.diagonal(found.J_small, -1), jnp.linalg.norm(found.residual))
        basis = found.Q_tall if keep else None
        return jnp.diagonal(found.J_small), off, jnp.linalg.norm(v), basis

    return jax.vmap(one)(starts)


_shared = jax.jit(_lanczos, static_argnames=("steps", "keep"))
# Programs of operators whose products keep their arrays inside live as long as the operators do.
_programs: WeakKeyDictionary[Operator, tuple[Partial, Any]] = WeakKeyDictionary()


def _program(operator: Operator) -> tuple[Partial, Any]:
    """The product as an argument, and the compiled iteration to give it to."""
    if isinstance(operator.product, Partial):
        return operator.product, _shared
    if operator not in _programs:
        # A function of its own: `jit` keeps the programs of one function together, and for ever.
        own = jax.jit(
            lambda *given, **named: _lanczos(*given, **named), static_argnames=("steps", "keep")
        )
        _programs[operator] = Partial(operator.product), own
    return _programs[operator]


def _begin(
    operator: Operator, known: Pairs | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    if known is None:
        return np.zeros(0), np.zeros(0), np.zeros((operator.size, 0), operator.dtype), 0
    return known.values, known.residuals, known.vectors, known.products


def _orthonormal(before: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The columns ``new`` beside ``before``, orthonormal to rounding; ``before`` is untouched."""
    q, r = np.linalg.qr(new - before @ (before.T @ new))
    return np.concatenate([before, q * np.where(np.diagonal(r) < 0, -1, 1)], axis=1)


def _same_shape(operator: Operator, starts: jax.Array | np.ndarray) -> None:
    if starts.ndim != 2 or starts.shape[1] != operator.size:
        raise SecateurError(
            f"Lanczos on {operator.size} rows starts from (p, {operator.size}) vectors, and was "
            f"given {starts.shape}."
        )
    given = jax.ShapeDtypeStruct((operator.size,), operator.dtype)
    out = jax.eval_shape(operator.product, given)
    if out.shape != (operator.size,) or out.dtype != operator.dtype:
        raise SecateurError(
            f"the operator's product of {given.shape} {given.dtype} is {out.shape} {out.dtype}: it "
            "must give a vector of the same shape and dtype."
        )
