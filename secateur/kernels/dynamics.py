"""Training predicted from the kernel: linearised gradient descent, in closed form where one is.

For ``L = 1/(2N) sum_n |f(x_n) - y_n|^2`` and r_0 = f_0 - y (Lee et al. 2019, equations 8 to 11),

    f(t) = y + e^{-Theta t / N} r_0,
    g(t) = g_0 - Theta_* Theta^{-1} (1 - e^{-Theta t / N}) r_0,

and after T steps of descent at rate eta the same with (1 - eta Theta / N)^T in place of the
exponential. One decomposition serves all times, and both. Weights that a mask has cut do not move
if the kernel is that of the surviving weights.

Cross-entropy has no closed form: `softmax_flow`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.kernels.linearised import linearised
from secateur.kernels.trajectory import Trajectory

LOSSES = {
    "squared": "1/(2N) sum_n |f(x_n) - y_n|^2, in closed form",
    "cross_entropy": "-1/N sum_n y_n . log softmax f(x_n), an ordinary differential equation",
}
TOLERANCE = 1e-4  # of |r_0|: what Lanczos may leave out


def linearise(
    kernel: Any,
    f0: Any,
    y: Any,
    *,
    cross: Any = None,
    f0_test: Any = None,
    loss: str = "squared",
    ridge: float = 0.0,
    products: int = 100,
) -> Trajectory:
    """Training of the network linearised at its start, as its kernel predicts it.

    >>> import numpy as np
    >>> training = linearise(np.diag([1.0, 4.0]), np.ones((2, 1)), np.zeros((2, 1)))
    >>> training.steps([0, 1, 2], rate=0.25)[..., 0]
    array([[1.      , 1.      ],
           [0.875   , 0.5     ],
           [0.765625, 0.25    ]])
    >>> training.max_learning_rate()
    1.0

    Args:
        kernel: ``[N, C, N, C]``; (N C, N C) with rows (n, c), c fastest; (N, N), for every output
            alike (with C > 1 the mean over outputs, not the sum); a `ntk.Kernel` (its sum is made
            the mean); or an `Operator` of N C (or N) rows, which is only multiplied with.
        f0: (N, C), the network's outputs at the start; zeros for a network centred there.
        y: (N, C), targets: one column a class. With cross-entropy, rows of probabilities.
        cross: the kernel of M test points with the N training points in the same form; beside an
            operator also its product (N C,) -> (M C,).
        f0_test: (M, C), outputs at the start on the test points.
        loss: "squared" or "cross_entropy".
        ridge: rho over the kernel's mean eigenvalue: adds ``rho / (2 N) |w - w_0|^2``.
        products: steps of Lanczos for an operator, started at r_0: one decomposition for all
            times. About ``sqrt(lambda_1 t / N)`` of them, times a few, reach time t. A time they
            do not reach to 1e-4 of |r_0| is refused, not approximated.

    Raises:
        SecateurError: for shapes that do not fit, numbers that are not finite, a kernel that is
            not symmetric or not positive semidefinite, targets that are no probabilities.
    """
    lookup("loss", loss, LOSSES)
    problem = linearised(kernel, f0, y, cross=cross, f0_test=f0_test, ridge=ridge)
    if loss == "squared":
        return SquaredTrajectory(problem, products)
    from secateur.kernels.softmax_flow import softmax_flow

    return softmax_flow(problem, products)


@dataclass(frozen=True)
class SquaredTrajectory(Trajectory):
    """Linearised training by the squared loss: every time costs one matrix product."""

    loss_name = "squared"

    def loss(self, times: Any) -> np.ndarray:
        """``1/(2N) |f - y|^2`` at each time, without the ridge's term. Costs no product."""
        array = np.asarray(times, np.float64)
        remaining, bracket = self._flow(array.reshape(-1))
        self._reached(bracket)
        energy = np.sum(self.modes.coefficients**2, axis=1)
        return ((remaining**2) @ energy / (2 * self.problem.examples)).reshape(array.shape)

    def convergence_times(self, fraction: float = 1 / np.e) -> np.ndarray:
        """(k,), when each mode has come within ``fraction`` of the way that was before it.

        ``N log(1/fraction) / (lambda + rho)``; infinite where the kernel is zero. Of an operator,
        for the Ritz values of its Lanczos run.

        Raises:
            SecateurError: for a fraction outside (0, 1).
        """
        if not 0 < fraction < 1:
            raise SecateurError(f"fraction is {fraction}; expected a number between 0 and 1.")
        rates = (self.modes.values + self.problem.ridge) / self.problem.examples
        with np.errstate(divide="ignore"):
            return -np.log(fraction) / rates

    def error(self, times: Any) -> np.ndarray:
        """A bound on |f(t) - exact| over training points at each time; 0 for eigenvectors.

        ``beta_k |e_k^T a(t)|``: what the last Lanczos vector has led out of the subspace until
        then. The residual of the Krylov solution integrated over time (Botchev, Grimm & Hochbruck
        2013, section 2), in closed form since it does not change sign. It holds in exact
        arithmetic: rounding, about 1e-6 of |r_0| for an operator in float32, is not in it.
        """
        array = np.asarray(times, np.float64)
        return self._bound(self._flow(array.reshape(-1))[1]).reshape(array.shape)

    # ------------------------------------------------------------------------------- the two laws

    def _flow(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What remains of each mode's residual, and (1 - e^{-mu t/N}) / mu, mu = lambda + rho.

        At t = inf modes below the noise stay where they are: the pseudo-inverse.
        """
        rate = (self.modes.values + self.problem.ridge)[None]
        t = times[:, None] / self.problem.examples
        still = (rate <= self.problem.noise * np.max(rate)) & np.isinf(t)
        exponent = rate * np.where(still, 0.0, np.minimum(t, 1e200))
        gone = -np.expm1(-exponent)
        with np.errstate(invalid="ignore", divide="ignore"):
            bracket = np.where(rate > 0, gone / rate, np.where(still, 0.0, t))
        return self._remaining(np.exp(-exponent), bracket), bracket

    def _descent(self, counts: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
        """The same after T steps: with q^T, q = 1 - eta mu / N, in place of the exponential.

        For eta mu / N above 1 descent overshoots and still converges: q is negative there, and
        log1p of it NaN.
        """
        values = (self.modes.values + self.problem.ridge)[None]
        step = rate * values / self.problem.examples
        count = counts[:, None].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            small = count * np.log1p(-np.minimum(step, 0.5))
            power = np.where(step < 0.5, np.exp(small), np.power(1 - step, count))
            gone = np.where(step < 0.5, -np.expm1(small), 1 - power)
            limit = count * rate / self.problem.examples
            bracket = np.where(values > 0, gone / values, limit)
        return self._remaining(power, bracket), bracket

    def _remaining(self, decay: np.ndarray, bracket: np.ndarray) -> np.ndarray:
        """1 - lambda bracket; without a ridge the decay itself, exact where it is tiny."""
        ridge = self.problem.ridge
        return decay if not ridge else decay + ridge * bracket

    # ------------------------------------------------------------------------------------ outputs

    def _train(self, times: np.ndarray) -> np.ndarray:
        remaining, bracket = self._flow(times)
        self._reached(bracket)
        return self.problem.y + self.problem.rows(self.modes.apply(remaining))

    def _train_steps(self, counts: np.ndarray, rate: float) -> np.ndarray:
        remaining, bracket = self._descent(counts, rate)
        self._reached(bracket)
        with np.errstate(over="ignore", invalid="ignore"):
            return self.problem.y + self.problem.rows(self.modes.apply(remaining))

    def _dual(self, times: np.ndarray) -> np.ndarray:
        bracket = self._flow(times)[1]
        self._reached(bracket)
        return self.problem.examples * self.problem.rows(self.modes.apply(bracket))

    def _dual_steps(self, counts: np.ndarray, rate: float) -> np.ndarray:
        bracket = self._descent(counts, rate)[1]
        self._reached(bracket)
        with np.errstate(over="ignore", invalid="ignore"):
            return self.problem.examples * self.problem.rows(self.modes.apply(bracket))

    def _bound(self, bracket: np.ndarray) -> np.ndarray:
        # With a ridge the part that has not decayed is rho times an integral of the same error.
        return self.modes.outside(bracket) * (2.0 if self.problem.ridge else 1.0)

    def _reached(self, bracket: np.ndarray) -> None:
        if not np.any(self.modes.leaves):
            return
        bound = float(np.max(self._bound(bracket), initial=0.0))
        scale = float(np.linalg.norm(self.problem.start()))
        if bound > TOLERANCE * scale:
            raise SecateurError(
                f"{len(self.modes.values)} products of Lanczos reach these times only to "
                f"{bound / scale:.1e} of the first residual, expected {TOLERANCE:.0e}; give more "
                "products, or shorter times."
            )
