"""A small masked network, linearised and trained in weight space: the definition, in NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Model:
    """f(w) = f0 + J (w - w0), over all weights; only those of the mask move.

    Attributes:
        f0: (N, C); g0: (M, C).
        jacobian: (N C, P); jacobian_test: (M C, P), of all weights.
        mask: bool (P,).
    """

    f0: np.ndarray
    g0: np.ndarray
    jacobian: np.ndarray
    jacobian_test: np.ndarray
    mask: np.ndarray

    @property
    def kernel(self) -> np.ndarray:
        return self.jacobian[:, self.mask] @ self.jacobian[:, self.mask].T

    @property
    def cross(self) -> np.ndarray:
        return self.jacobian_test[:, self.mask] @ self.jacobian[:, self.mask].T

    def outputs(self, moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        train = self.f0 + (self.jacobian @ moved).reshape(self.f0.shape)
        return train, self.g0 + (self.jacobian_test @ moved).reshape(self.g0.shape)

    def descend(
        self, slope: Any, counts: list[int], rate: float, ridge: float = 0.0, momentum: float = 0.0
    ) -> list[np.ndarray]:
        """w - w0 after each count of masked descent; slope(f) is N times dL/df."""
        moved, speed = np.zeros(len(self.mask)), np.zeros(len(self.mask))
        found = []
        for step in range(max(counts) + 1):
            if step in counts:
                found.append(moved.copy())
            gradient = self.jacobian.T @ slope(self.outputs(moved)[0]).reshape(-1) + ridge * moved
            speed = momentum * speed - rate * self.mask * gradient / len(self.f0)
            moved = moved + speed
        return found


def model(n: int = 6, m: int = 3, outputs: int = 2, hidden: int = 5, keep: float = 0.6) -> Model:
    """A tanh network of 3 inputs without biases, in float64."""
    rng = np.random.default_rng(n + 10 * hidden)
    shapes = ((3, hidden), (hidden, outputs))
    size = sum(a * b for a, b in shapes)
    mask = rng.random(size) < keep
    weights = rng.standard_normal(size) * mask
    x = rng.standard_normal((n + m, 3))

    def f(w: jax.Array) -> jax.Array:
        first = w[: 3 * hidden].reshape(shapes[0])
        return jnp.tanh(x @ first) @ w[3 * hidden :].reshape(shapes[1])

    with jax.enable_x64(True):
        values, jacobian = np.asarray(f(jnp.asarray(weights))), np.asarray(jax.jacfwd(f)(weights))
    rows = jacobian.reshape((n + m) * outputs, size)
    return Model(values[:n], values[n:], rows[: n * outputs], rows[n * outputs :], mask)


def probabilities(n: int, outputs: int) -> np.ndarray:
    """Targets (n, outputs): one column a class."""
    return np.eye(outputs)[np.arange(n) % outputs]
