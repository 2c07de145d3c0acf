"""What every linearised training can be asked, whatever its loss: outputs over time, a rate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from secateur.core.errors import SecateurError
from secateur.kernels.linearised import Linearised
from secateur.kernels.modes import Modes, modes

CURVATURE = {"squared": 1.0, "cross_entropy": 0.5}  # the most d^2 loss / df^2 can be


@dataclass(frozen=True)
class Trajectory(ABC):
    """Linearised training. Made by `dynamics.linearise`.

    Time t is gradient flow dw/dt = -dL/dw; T steps of descent at rate eta come near t = eta T.
    A scalar time gives (N, C), an array of times (\\*times.shape, N, C).

    Attributes:
        problem: kernel, first outputs, targets, test points.
        products: of Lanczos, where the kernel is an operator.
    """

    problem: Linearised
    products: int

    loss_name = ""

    @cached_property
    def modes(self) -> Modes:
        """The directions in which the network learns, found once."""
        return modes(self.problem, self.products)

    @abstractmethod
    def _dual(self, times: np.ndarray) -> np.ndarray:
        """Dual coefficients at (T,) times: (T, N, C)."""

    @abstractmethod
    def _dual_steps(self, counts: np.ndarray, rate: float) -> np.ndarray:
        """Dual coefficients after (T,) steps: (T, N, C)."""

    @abstractmethod
    def _train(self, times: np.ndarray) -> np.ndarray:
        """Training outputs at (T,) times: (T, N, C)."""

    @abstractmethod
    def _train_steps(self, counts: np.ndarray, rate: float) -> np.ndarray:
        """Training outputs after (T,) steps: (T, N, C)."""

    def at(self, times: Any) -> np.ndarray:
        """Outputs on the training points under gradient flow.

        Raises:
            SecateurError: for a negative time, or one beyond what the steps of Lanczos reach.
        """
        flat, shape = _times(times)
        return self._train(flat).reshape(*shape, *self.problem.f0.shape)

    def test(self, times: Any) -> np.ndarray:
        """Outputs on the test points under gradient flow.

        Raises:
            SecateurError: as `at`, and if no test points were given.
        """
        flat, shape = _times(times)
        outputs = self.problem.test(self._dual(flat))
        return outputs.reshape(*shape, *outputs.shape[1:])

    def steps(self, counts: Any, rate: float) -> np.ndarray:
        """Outputs on the training points after full-batch gradient descent.

        Args:
            counts: numbers of steps.
            rate: eta.

        Raises:
            SecateurError: for counts below zero, a rate that is not above zero, or descent that
                diverges beyond what float64 holds.
        """
        flat, shape = _counts(counts, rate)
        outputs = self._finite(self._train_steps(flat, rate), rate)
        return outputs.reshape(*shape, *self.problem.f0.shape)

    def test_steps(self, counts: Any, rate: float) -> np.ndarray:
        """Outputs on the test points after full-batch gradient descent; see `steps`."""
        flat, shape = _counts(counts, rate)
        outputs = self.problem.test(self._finite(self._dual_steps(flat, rate), rate))
        return outputs.reshape(*shape, *outputs.shape[1:])

    def max_learning_rate(self, momentum: float = 0.0) -> float:
        """The rate above which descent on the linearised network does not converge.

        ``2 (1 + beta) N / (h lambda_1 + rho)`` with heavy-ball momentum beta (Polyak 1964);
        the loss's largest curvature h is 1 for the squared loss, where the bound is sharp, and 1/2
        for cross-entropy, where any rate below it is safe. With an operator lambda_1 is Lanczos's,
        from below.

        Raises:
            SecateurError: for momentum outside [0, 1).
        """
        if not 0 <= momentum < 1:
            raise SecateurError(f"momentum is {momentum}; expected at least 0 and below 1.")
        steepest = CURVATURE[self.loss_name] * self.modes.values[0] + self.problem.ridge
        if steepest <= 0:
            return float("inf")
        return float(2 * (1 + momentum) * self.problem.examples / steepest)

    def _finite(self, outputs: np.ndarray, rate: float) -> np.ndarray:
        if not np.all(np.isfinite(outputs)):
            raise SecateurError(
                f"descent at rate {rate:g} diverges beyond float64; give a rate below "
                f"max_learning_rate() = {self.max_learning_rate():.4g}, or fewer steps."
            )
        return outputs


def _times(times: Any) -> tuple[np.ndarray, tuple[int, ...]]:
    array = np.asarray(times, np.float64)
    if not np.all(array >= 0):  # NaN, too
        raise SecateurError(f"times are {times}; expected numbers >= 0.")
    return array.reshape(-1), array.shape


def _counts(counts: Any, rate: float) -> tuple[np.ndarray, tuple[int, ...]]:
    array = np.asarray(counts)
    if array.dtype.kind not in "iu" or np.any(array < 0):
        raise SecateurError(f"counts are {counts}; expected whole numbers of steps >= 0.")
    if not 0 < rate < np.inf:
        raise SecateurError(f"rate is {rate}; expected a learning rate above 0.")
    return array.reshape(-1).astype(np.int64), array.shape
