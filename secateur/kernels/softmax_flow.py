"""Linearised training by cross-entropy: an ordinary differential equation in function space.

``df/dt = -Theta (softmax(f) - y) / N`` has no closed form. Its state here is not f but the dual
coefficients ``a(t) = int softmax(f) - y dt``, (N, C): f and every test output are read off them,
``f = f_0 - Theta a / N``, so that the state does not grow with the test set.

An explicit Runge-Kutta method of adaptive step (diffrax; Dormand & Prince's 8(5,3), or Tsitouras's
5(4)): the implicit ones solve dense systems of N C unknowns and are slower here. Its steps grow
with lambda_1 t / N.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.kernels.linearised import Linearised
from secateur.kernels.operator import Operator
from secateur.kernels.trajectory import Trajectory

SOLVERS = {"dopri8": "Dopri8", "tsit5": "Tsit5"}
PROBABILITIES = 1e-6  # what rows of targets may be off their sum, 1
Product = Callable[[Any, jax.Array], jax.Array]


def softmax_flow(problem: Linearised, products: int) -> SoftmaxTrajectory:
    """The trajectory, its targets checked.

    Raises:
        SecateurError: for targets whose rows are no probabilities.
    """
    y = problem.y
    if np.any(y < 0) or np.any(np.abs(np.sum(y, axis=1) - 1) > PROBABILITIES):
        raise SecateurError(
            "targets of cross-entropy are rows of probabilities, one column a class; make labels "
            "such rows, or give loss='squared'."
        )
    return SoftmaxTrajectory(problem, products)


@dataclass(frozen=True)
class SoftmaxTrajectory(Trajectory):
    """Linearised training by cross-entropy. Kernels given as matrices are taken in float64.

    Attributes:
        solver: "dopri8" or "tsit5".
        rtol: relative tolerance of a step; at least 30 epsilon of an operator's dtype is used.
        atol: absolute tolerance of a step, in dual coefficients.
        most: steps of the solver before it gives up.
    """

    solver: str = "dopri8"
    rtol: float = 1e-7
    atol: float = 1e-9
    most: int = 100_000
    _kept: dict[bytes, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    loss_name = "cross_entropy"

    def with_solver(self, solver: str, rtol: float = 1e-7, atol: float = 1e-9) -> SoftmaxTrajectory:
        """The same training by another solver or to other tolerances.

        Raises:
            SecateurError: for an unknown solver.
        """
        lookup("solver", solver, SOLVERS)
        return replace(self, solver=solver, rtol=rtol, atol=atol, _kept={})

    # ------------------------------------------------------------------------------------ outputs

    def _train(self, times: np.ndarray) -> np.ndarray:
        return self._outputs(self._dual(times))

    def _train_steps(self, counts: np.ndarray, rate: float) -> np.ndarray:
        return self._outputs(self._dual_steps(counts, rate))

    def _outputs(self, dual: np.ndarray) -> np.ndarray:
        with self._precision():
            product, kernel, dtype = self._product()
            moved = [np.asarray(product(kernel, jnp.asarray(a, dtype)), np.float64) for a in dual]
        return self.problem.f0 - np.stack(moved) / self.problem.examples

    # ------------------------------------------------------------------------------------- duals

    def _dual(self, times: np.ndarray) -> np.ndarray:
        if not np.all(np.isfinite(times)):
            raise SecateurError(
                "cross-entropy has no limit to give for t = inf: outputs of separable examples "
                "grow for ever; give finite times."
            )
        if times.tobytes() not in self._kept:  # the test outputs of the same times come free
            ordered, back = np.unique(times, return_inverse=True)
            found = self._solve(ordered)[back]
            self._kept.clear()
            self._kept[times.tobytes()] = found
        return self._kept[times.tobytes()]

    def _solve(self, times: np.ndarray) -> np.ndarray:
        """a at ascending times."""
        try:
            import diffrax  # noqa: F401
        except ImportError as error:
            raise SecateurError(
                "linearised training by cross-entropy is solved by diffrax, which is not "
                "installed; `pip install diffrax`, or ask for discrete steps."
            ) from error
        if times[-1] == 0:
            return np.zeros((len(times), *self.problem.f0.shape))
        with self._precision():
            product, kernel, dtype = self._product()
            eps = float(jnp.finfo(dtype).eps)
            solved, steps, success = _integrate(
                SOLVERS[self.solver],
                product,
                self.most,
                kernel,
                *self._arrays(dtype),
                jnp.asarray(times, dtype),
                max(self.rtol, 30 * eps),
                max(self.atol, 30 * eps),
            )
            result = np.asarray(solved, np.float64)
        if not success or not np.all(np.isfinite(result)):
            raise SecateurError(
                f"the solver gave up after {int(steps)} steps on the way to t = {times[-1]:g}; "
                "give shorter times: its steps grow with lambda_1 t / N."
            )
        return result

    def _dual_steps(self, counts: np.ndarray, rate: float) -> np.ndarray:
        """Gradient descent on the linearised network, step by step: no closed form either."""
        found: dict[int, np.ndarray] = {}
        with self._precision():
            product, kernel, dtype = self._product()
            f0, y, ridge = self._arrays(dtype)
            dual, done = jnp.zeros_like(f0), 0
            for count in np.unique(counts):
                dual = _descend(
                    product, kernel, f0, y, ridge, jnp.asarray(rate, dtype), dual, count - done
                )
                found[int(count)], done = np.asarray(dual, np.float64), count
        return np.stack([found[int(count)] for count in counts])

    def _precision(self) -> AbstractContextManager[Any]:
        """An operator's product is traced as its maker's settings have it."""
        return nullcontext() if isinstance(self.problem.kernel, Operator) else jax.enable_x64(True)

    def _product(self) -> tuple[Product, Any, Any]:
        """The function of the kernel and (N, C) coefficients, the kernel, its dtype."""
        kernel = self.problem.kernel
        if isinstance(kernel, Operator):
            # Partial: the operator's own arrays are arguments of the compiled loop.
            whole = jax.tree_util.Partial(kernel.product)
            return _by_product, whole, kernel.dtype
        return (_alike if self.problem.alike else _full), jnp.asarray(kernel), jnp.float64

    def _arrays(self, dtype: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        p = self.problem
        return jnp.asarray(p.f0, dtype), jnp.asarray(p.y, dtype), jnp.asarray(p.ridge, dtype)


def _full(kernel: jax.Array, a: jax.Array) -> jax.Array:
    return (kernel @ a.reshape(-1)).reshape(a.shape)


def _alike(kernel: jax.Array, a: jax.Array) -> jax.Array:
    return kernel @ a


def _by_product(kernel: Any, a: jax.Array) -> jax.Array:
    return kernel(a.reshape(-1)).reshape(a.shape)


def _slope(
    product: Product, kernel: Any, f0: jax.Array, y: jax.Array, ridge: jax.Array, a: jax.Array
) -> jax.Array:
    """da/dt = softmax(f_0 - Theta a / N) - y - rho a / N."""
    n = len(f0)
    return jax.nn.softmax(f0 - product(kernel, a) / n) - y - ridge / n * a


@partial(jax.jit, static_argnums=(0, 1, 2))
def _integrate(
    solver: str,
    product: Product,
    most: int,
    kernel: Any,
    f0: jax.Array,
    y: jax.Array,
    ridge: jax.Array,
    times: jax.Array,
    rtol: float,
    atol: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    import diffrax

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, a, given: _slope(product, given, f0, y, ridge, a)),
        getattr(diffrax, solver)(),
        t0=jnp.zeros_like(times[0]),
        t1=times[-1],
        dt0=None,
        y0=jnp.zeros_like(f0),
        args=kernel,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        adjoint=diffrax.ForwardMode(),  # nothing is differentiated: the plainest loop
        max_steps=most,
        throw=False,
    )
    return solution.ys, solution.stats["num_steps"], solution.result == diffrax.RESULTS.successful


@partial(jax.jit, static_argnums=0)
def _descend(
    product: Product,
    kernel: Any,
    f0: jax.Array,
    y: jax.Array,
    ridge: jax.Array,
    rate: jax.Array,
    dual: jax.Array,
    count: int,
) -> jax.Array:
    step = lambda _, a: a + rate * _slope(product, kernel, f0, y, ridge, a)
    return jax.lax.fori_loop(0, count, step, dual)
