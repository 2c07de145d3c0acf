"""Descent of Kumar's committee machine, through its mean weight and second moment.

A loss of a committee machine is a function of the quadratic function that the machine is. So a set
of examples may be replaced by a matrix of the D + D (D + 1) / 2 monomials of its inputs, by no more
rows than monomials however many examples there are, and the population by its closed form. Steps
are those of training on the examples, to rounding, at a fraction of the cost.

Everything but the numbers of steps is data: `descend` may be mapped over starts, masks, scales,
rates and problems, and a sweep is one program.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from secateur.core.errors import SecateurError, lookup
from secateur.core.quadratic import ArrayLike, Quadratic, Terms
from secateur.networks.committee import closed_form, kernel_gradient


class Problem(Protocol):
    """What is descended on: half a mean of squares (f - y)^2."""

    def loss(self, f: Quadratic) -> jax.Array: ...

    def slopes(self, f: Quadratic) -> Quadratic:
        """Derivatives by the linear coefficients and by each entry of the quadratic ones."""


@partial(jax.tree_util.register_dataclass, data_fields=["teacher"], meta_fields=[])
@dataclass(frozen=True)
class Population:
    """All inputs x ~ N(0, I / D), in closed form."""

    teacher: Quadratic

    def loss(self, f: Quadratic) -> jax.Array:
        return (f - self.teacher).square().total / 2

    def slopes(self, f: Quadratic) -> Quadratic:
        return (f - self.teacher).slopes()


@partial(
    jax.tree_util.register_dataclass, data_fields=["design", "targets", "floor"], meta_fields=[]
)
@dataclass(frozen=True)
class Sample:
    """Examples, condensed: sum (f - y)^2 / n = |design c - targets|^2 + floor.

    Attributes:
        design: (rows, D + D (D + 1) / 2), monomials of the inputs over the root of their number, or
            the triangular factor of that matrix where examples are more than monomials.
        targets: (rows,).
        floor: the part that no quadratic function reaches; 0 with noiseless teachers.
    """

    design: jax.Array
    targets: jax.Array
    floor: jax.Array

    def _gap(self, f: Quadratic) -> jax.Array:
        return self.design @ coefficients(f) - self.targets

    def loss(self, f: Quadratic) -> jax.Array:
        return (jnp.sum(self._gap(f) ** 2) + self.floor) / 2

    def slopes(self, f: Quadratic) -> Quadratic:
        size = len(f.linear)
        slope = self._gap(f) @ self.design
        return Quadratic(slope[:size], slope[size:][_places(size)])


def _places(size: int) -> np.ndarray:
    """Where x_i x_j stands among the pairs i <= j, (D, D)."""
    i, j = np.triu_indices(size)
    order = np.zeros((size, size), np.int32)
    order[i, j] = order[j, i] = np.arange(len(i))
    return order


def monomials(x: jax.Array) -> jax.Array:
    """x_i, then x_i x_j for i <= j: (n, D) -> (n, D + D (D + 1) / 2)."""
    i, j = np.triu_indices(x.shape[1])
    return jnp.concatenate([x, x[:, i] * x[:, j]], axis=1)


def coefficients(f: Quadratic) -> jax.Array:
    """Of the monomials, in their order."""
    i, j = np.triu_indices(len(f.linear))
    return jnp.concatenate([f.linear, f.quadratic[i, j] * np.where(i == j, 1, 2)])


def sample(x: jax.Array, y: jax.Array) -> Sample:
    """Examples x (n, D) with labels y (n,) as a problem."""
    design, targets = monomials(x) / len(x) ** 0.5, y / len(x) ** 0.5
    if design.shape[0] <= design.shape[1]:
        return Sample(design, targets, jnp.zeros((), targets.dtype))
    q, r = jnp.linalg.qr(design)
    kept = targets @ q
    return Sample(r, kept, jnp.sum((targets - q @ kept) ** 2))


class Descent(NamedTuple):
    """A finished descent; rows are the steps 0, every, 2 every, ..., steps.

    Attributes:
        kernel: at the last step, (D, N).
        loss: what was descended on, (rows,).
        error: E (f - y)^2 over the population, in three terms of (rows,).
        moved: |W - W_0| / |W_0|, (rows,).
        kernels: (rows, D, N); none, (rows, 0), unless they were asked for.
    """

    kernel: jax.Array
    loss: jax.Array
    error: Terms
    moved: jax.Array
    kernels: jax.Array


_OPTIMISERS = {"gd": optax.sgd, "adam": optax.adam}


@partial(jax.jit, static_argnames=["steps", "every", "optimiser", "keep"])
def descend(
    start: jax.Array,
    problem: Problem,
    teacher: Quadratic,
    mask: ArrayLike = 1.0,
    *,
    alpha: ArrayLike,
    epsilon: ArrayLike,
    rate: ArrayLike,
    steps: int,
    every: int,
    centred: ArrayLike = False,
    origin: Quadratic | None = None,
    optimiser: str = "gd",
    keep: bool = False,
) -> Descent:
    """Descends on half the mean of (f - y)^2, weights under the mask only.

    Args:
        start: (D, N); what the mask removes is set to 0.
        problem: `Population(teacher)` or `sample(x, y)`.
        teacher: what ``error`` is measured against; the labels are in ``problem``.
        mask: (D, N), 1 or 0, or 1.
        rate: of a step. The comparable one for gradient descent is eta N / alpha^2, eta = 0.5, and
            0.5 / max(1, 0.3 epsilon^2) at large epsilon (`rate_for`). Adam does not see the scale
            of a loss: its rate is the length of its steps, 0.01.
        steps, every: steps in all and between records; ``every`` divides ``steps``.
        centred: subtract from f what it is at the start: at ``start`` under the mask, or
            ``origin`` where one is given (a dense start that is kept when nothing is rewound).
        optimiser: ``"gd"`` or ``"adam"``.
        keep: give back the kernels at the records.

    Raises:
        SecateurError: for an unknown optimiser, or parts that do not fit.
    """
    if every < 1 or steps % every:
        raise SecateurError(
            f"records every {every} of {steps} steps do not come out even; give a divisor of steps."
        )
    update = lookup("optimiser", optimiser, _OPTIMISERS)(rate)
    first = start * mask
    scales = {"alpha": alpha, "epsilon": epsilon}
    given = closed_form(first, **scales) if origin is None else origin
    subtracted = given.scaled(jnp.asarray(centred, start.dtype))
    length = jnp.sqrt(jnp.sum(first**2))

    def outputs(kernel: jax.Array) -> Quadratic:
        return closed_form(kernel, **scales) - subtracted

    def record(kernel: jax.Array) -> tuple[jax.Array, Terms, jax.Array, jax.Array]:
        f = outputs(kernel)
        moved = jnp.sqrt(jnp.sum((kernel - first) ** 2)) / length
        kept = kernel if keep else jnp.zeros(0, kernel.dtype)
        return problem.loss(f), (f - teacher).square(), moved, kept

    def step(_: int, carry: tuple[jax.Array, optax.OptState]) -> tuple[jax.Array, optax.OptState]:
        kernel, state = carry
        slope = kernel_gradient(kernel, problem.slopes(outputs(kernel)), **scales) * mask
        change, state = update.update(slope, state)
        return kernel + change, state

    def chunk(carry, _):  # type: ignore[no-untyped-def]
        carry = jax.lax.fori_loop(0, every, step, carry)
        return carry, record(carry[0])

    (last, _), rest = jax.lax.scan(chunk, (first, update.init(first)), length=steps // every)
    rows = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), record(first), rest)
    return Descent(last, *rows)


def rate_for(units: int, alpha: ArrayLike, epsilon: ArrayLike, eta: float = 0.5) -> jax.Array:
    """eta N / alpha^2, the same motion of f at every alpha and width; smaller for epsilon > 1.8."""
    return eta * units / jnp.asarray(alpha, float) ** 2 / jnp.maximum(1, 0.3 * epsilon**2)
