"""A spectrum as a measure, and the numbers read from it, each named for what it is.

With eigenvalues lambda and weights w (1 for an eigenvalue, less or more for a node of quadrature):
sums over eigenvalues are sums of w f(lambda). Several of these numbers are called "effective rank"
or "condition" in the literature; here each has one name and one formula.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.kernels.krylov import Nodes, Pairs

QUANTITIES = {
    "trace": "sum of the eigenvalues",
    "largest": "the largest eigenvalue",
    "smallest": "the smallest eigenvalue",
    "rank": "eigenvalues above size * eps * largest, eps of the dtype the kernel was computed in",
    "condition": "largest over smallest eigenvalue of those that count in the rank",
    "effective_rank": "exp of the entropy of lambda / trace (Roy & Vetterli 2007)",
    "participation": "(sum lambda)^2 / sum lambda^2",
    "stable_rank": "trace / largest",
    "nuclear_norm": "of J: the sum of sqrt(lambda), the singular values; not the kernel's trace",
    "log_determinant": "sum of log(lambda + ridge)",
    "density": "the share of the eigenvalues about each point of a grid, smoothed",
}


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues and what they amount to.

    Args:
        values: ``(m,)`` float64, descending.
        weights: ``(m,)``: 1 where the value is an eigenvalue; for nodes of quadrature the number of
            eigenvalues that each stands for, already divided by the number of probes.
        errors: ``(m,)``: an eigenvalue lies within it of the value; the rounding of the kernel
            where all were computed, the residual for Ritz values and nodes.
        size: rows of the kernel.
        method: how it was made, a key of `secateur.kernels.spectrum.METHODS`.
        precision: eps of the dtype that the kernel was computed in.
        probe: ``(m,)``: which random vector a node belongs to; -1 for eigenvalues.
        known_trace: the trace, where it is known exactly; nodes are then weighted to have it.
        semidefinite: whether no eigenvalue is negative but by rounding.
    """

    values: np.ndarray
    weights: np.ndarray
    errors: np.ndarray
    size: int
    method: str
    precision: float
    probe: np.ndarray
    known_trace: float | None = None
    semidefinite: bool = True

    @classmethod
    def exact(cls, values: np.ndarray, method: str, precision: float) -> Spectrum:
        """Of all eigenvalues, descending; a kernel rounded by eps moves them by eps * largest."""
        errors = np.full(len(values), precision * float(np.abs(values).max()))
        none = np.full(len(values), -1)
        values = np.ascontiguousarray(values)
        return cls(values, np.ones(len(values)), errors, len(values), method, precision, none)

    @classmethod
    def of(
        cls,
        pairs: Pairs | None,
        nodes: Nodes | None,
        size: int,
        method: str,
        precision: float,
        known_trace: float | None,
    ) -> Spectrum:
        """Of what Lanczos found: eigenvalues, and the nodes of the space beside them."""
        values, errors = np.zeros(0), np.zeros(0)
        if pairs is not None:
            values, errors = pairs.values, pairs.residuals
        weights, probe = np.ones(len(values)), np.full(len(values), -1)
        if nodes is not None:
            used = nodes.weights > 0
            count = len(nodes.weights)
            # A probe's length differs a little from the dimension that it stands for.
            rest = nodes.weights * (size - len(values)) / nodes.weights.sum(axis=1, keepdims=True)
            values = np.append(values, nodes.values[used])
            errors = np.append(errors, nodes.residuals[used])
            weights = np.append(weights, rest[used] / count)
            probe = np.append(probe, np.broadcast_to(np.arange(count)[:, None], used.shape)[used])
        order = np.argsort(-values, kind="stable")
        values, weights, errors, probe = (a[order] for a in (values, weights, errors, probe))
        plain = cls(values, weights, errors, size, method, precision, probe, known_trace)
        return plain._calibrated()

    # ------------------------------------------------------------------------------- its quantities

    @property
    def trace(self) -> float:
        """Sum of the eigenvalues: exact where the operator knew it."""
        if self.known_trace is not None:
            return self.known_trace
        self._whole("trace")
        return float(self.weights @ self.values)

    @property
    def largest(self) -> float:
        """The largest eigenvalue."""
        return float(self.values[0])

    @property
    def smallest(self) -> float:
        """The smallest eigenvalue; only where all were computed."""
        self._every("smallest")
        return float(self.values[-1])

    @property
    def floor(self) -> float:
        """size * eps * largest: below it an eigenvalue cannot be told from zero."""
        return self.size * self.precision * max(self.largest, 0.0)

    @property
    def rank(self) -> float:
        """How many eigenvalues are above `floor`: the numerical rank."""
        self._whole("rank")
        return float(self.weights[self.values > self.floor].sum())

    @property
    def condition(self) -> float:
        """Largest over smallest eigenvalue of those above `floor`; only where all were computed.

        Raises:
            SecateurError: for the zero kernel, or where only part of the spectrum is known.
        """
        self._every("condition")
        if self.largest <= 0:
            raise SecateurError("the kernel is zero: it has no condition; look for dead layers.")
        return self.largest / float(self.values[self.values > self.floor][-1])

    @property
    def effective_rank(self) -> float:
        """exp(-sum p log p), p = lambda / trace: n for the identity, 0 for the zero kernel."""
        values, total = self._positive("effective_rank")
        p = values / total if total else values
        return (
            float(np.exp(-self.weights @ (p * np.log(np.where(p > 0, p, 1.0))))) if total else 0.0
        )

    @property
    def participation(self) -> float:
        """(sum lambda)^2 / sum lambda^2: n for the identity, 0 for the zero kernel."""
        values, total = self._positive("participation")
        return float(total**2 / (self.weights @ values**2)) if total else 0.0

    @property
    def stable_rank(self) -> float:
        """trace / largest: squared Frobenius over squared spectral norm of J."""
        return self.trace / self.largest if self.largest > 0 else 0.0

    @property
    def nuclear_norm(self) -> float:
        """Of J: the sum of sqrt(lambda)."""
        values, _ = self._positive("nuclear_norm")
        return float(self.weights @ np.sqrt(values))

    def log_determinant(self, ridge: float = 0.0) -> float:
        """log det(kernel + ridge), the ridge in the kernel's own units.

        Raises:
            SecateurError: where the kernel with this ridge has no positive determinant.
        """
        self._whole("log_determinant")
        shifted = self.values + ridge
        if shifted.min() <= 0 or (ridge <= 0 and self.values.min() <= self.floor):
            least = max(self.floor, -self.values.min())
            raise SecateurError(
                f"the kernel's smallest eigenvalue, {self.values.min():.3g}, leaves no determinant "
                f"with a ridge of {ridge:g}: take one above {least:.3g}."
            )
        return float(self.weights @ np.log(shifted))

    def density(self, grid: Any, width: float, log: bool = False) -> np.ndarray:
        """Share of the eigenvalues per unit at each point of the grid: a mixture of Gaussians.

        Args:
            grid: eigenvalues, ``(g,)``; positive with ``log``.
            width: the Gaussians' standard deviation, in the eigenvalues' units; with ``log`` in
                decades.
            log: over log10(lambda) and per decade. Eigenvalues up to sqrt(size) * eps * largest,
                which is what rounding leaves of zeros, are then left out: the density integrates
                to the share of the others.

        Raises:
            SecateurError: for a width or (with ``log``) a grid that is not positive.
        """
        self._whole("density")
        grid = np.asarray(grid, np.float64)
        if not width > 0 or (log and not (grid > 0).all()):
            raise SecateurError(
                "a density takes a positive width, and over logarithms a positive grid."
            )
        values, weights = self.values, self.weights
        if log:
            good = values > self.floor / math.sqrt(self.size)
            grid, values, weights = np.log10(grid), np.log10(values[good]), weights[good]
        bump = np.exp(-(((grid[:, None] - values) / width) ** 2) / 2)
        return bump @ weights / (self.size * width * math.sqrt(2 * math.pi))

    def top(self, count: int) -> np.ndarray:
        """The ``count`` largest eigenvalues, descending.

        Raises:
            SecateurError: where fewer were computed; nodes of quadrature are no eigenvalues.
        """
        known = self.values[self.probe < 0]
        if count > len(known):
            raise SecateurError(
                f"{len(known)} eigenvalues were computed, not {count}: ask for them with "
                f"top={count}."
            )
        return known[:count]

    def error_of(self, quantity: str, *given: Any, **named: Any) -> Any:
        """The standard error of a quantity over probes; 0 where all eigenvalues were computed.

        For ``largest`` and ``smallest`` it is the bound of that value's error. Quantities that take
        arguments get them here too: ``error_of("log_determinant", 0.1)``. The error that a finite
        number of steps leaves is not in it.

        Raises:
            SecateurError: for an unknown quantity.
        """
        lookup("quantity of a spectrum", quantity, QUANTITIES)
        if quantity in ("largest", "smallest"):
            getattr(self, quantity)
            return float(self.errors[0 if quantity == "largest" else -1])
        probes = np.unique(self.probe[self.probe >= 0])
        if len(probes) == 1:
            return math.inf
        each = [self._without(int(p))._read(quantity, given, named) for p in probes]
        if not each:
            return 0.0 * self._read(quantity, given, named)
        spread = np.sum((np.asarray(each) - np.mean(each, axis=0)) ** 2, axis=0)
        error = np.sqrt(spread * (len(each) - 1) / len(each))
        return float(error) if np.ndim(error) == 0 else error

    # ----------------------------------------------------------------------------------- its inside

    def _read(self, quantity: str, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        found = getattr(self, quantity)
        return found(*given, **named) if callable(found) else found

    def _without(self, probe: int) -> Spectrum:
        """The same from the other probes."""
        kept = self.probe != probe
        count = len(np.unique(self.probe[self.probe >= 0]))
        weights = np.where(self.probe < 0, 1.0, self.weights * count / (count - 1))
        parts = {n: getattr(self, n)[kept] for n in ("values", "errors", "probe")}
        return dataclasses.replace(self, weights=weights[kept], **parts)._calibrated()

    def _calibrated(self) -> Spectrum:
        """Nodes weighted so that number and sum of all eigenvalues are what they are known to be.

        w (1 + a + b lambda) with a, b from the two conditions: the calibration estimator of survey
        sampling (Deville & Sarndal 1992), which is tr f with f's regression on lambda taken out.
        What errors share with the trace's goes; a few large nodes no longer decide.
        """
        nodes = self.probe >= 0
        if self.known_trace is None or not nodes.any():
            return self
        w, v = self.weights[nodes], self.values[nodes]
        count = self.size - np.sum(~nodes)
        missing = np.array(
            [count - w.sum(), self.known_trace - self.weights @ self.values], np.float64
        )
        moments = np.array([[w.sum(), w @ v], [w @ v, w @ v**2]])
        if moments[0, 0] * moments[1, 1] <= (1 + 1e-9) * moments[0, 1] ** 2:
            return self  # all nodes are one: nothing is left to weigh
        a, b = np.linalg.solve(moments, missing)
        factor = 1 + a + b * v
        if factor.min() <= 0:
            return self  # too few probes for it
        weights = self.weights.copy()
        weights[nodes] = w * factor
        return dataclasses.replace(self, weights=weights)

    def _whole(self, quantity: str) -> None:
        if self.method == "lanczos" and len(self.values) < self.size:
            raise SecateurError(
                f"{quantity} needs the whole spectrum, and of {self.size} eigenvalues only the "
                f"largest {len(self.values)} were computed: take method='deflated' or 'eigh'."
            )

    def _every(self, quantity: str) -> None:
        self._whole(quantity)
        if (self.probe >= 0).any():
            raise SecateurError(
                f"{quantity} needs the smallest eigenvalues one by one, and quadrature does not "
                "find them: take method='eigh' or 'dual'."
            )

    def _positive(self, quantity: str) -> tuple[np.ndarray, float]:
        """Eigenvalues with rounding below zero cut, and their sum."""
        self._whole(quantity)
        if not self.semidefinite:
            raise SecateurError(
                f"{quantity} is defined for eigenvalues that are not negative: take it of a kernel."
            )
        values = np.maximum(self.values, 0.0)
        return values, float(self.weights @ values)
