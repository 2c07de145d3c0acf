"""Functions of degree two of a Gaussian input, whose moments have closed forms.

Kumar's committee machine is such a function of its input whatever its width, and so are the
teachers that it learns from: how far two of them are apart needs no test set. All means are over
x ~ N(0, I / D), D the number of inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

ArrayLike = jax.Array | float


class Terms(NamedTuple):
    """The parts of a mean square, in the order in which training learns them.

    Attributes:
        linear: |a|^2 / D.
        traceless: 2 |B - (tr B / D) I|^2 / D^2, of the quadratic part without its trace.
        trace: (1 + 2 / D) (tr B)^2 / D^2, of the part along |x|^2.
    """

    linear: jax.Array
    traceless: jax.Array
    trace: jax.Array

    @property
    def total(self) -> jax.Array:
        return self.linear + self.traceless + self.trace


@partial(jax.tree_util.register_dataclass, data_fields=["linear", "quadratic"], meta_fields=[])
@dataclass(frozen=True)
class Quadratic:
    """y(x) = a.x + x^T B x.

    Attributes:
        linear: a, (D,).
        quadratic: B, (D, D), symmetric.
    """

    linear: jax.Array
    quadratic: jax.Array

    @classmethod
    def zero(cls, inputs: int) -> Quadratic:
        """0, of so many inputs."""
        return cls(jnp.zeros(inputs), jnp.zeros((inputs, inputs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """y at inputs (n, D): (n,)."""
        return x @ self.linear + jnp.sum((x @ self.quadratic) * x, axis=-1)

    def __sub__(self, other: Quadratic) -> Quadratic:
        return Quadratic(self.linear - other.linear, self.quadratic - other.quadratic)

    def scaled(self, by: ArrayLike) -> Quadratic:
        """``by`` times this function."""
        return Quadratic(by * self.linear, by * self.quadratic)

    def mean(self) -> jax.Array:
        """E y = tr B / D."""
        return jnp.trace(self.quadratic) / len(self.linear)

    def square(self) -> Terms:
        """E y^2 = |a|^2 / D + (2 |B|^2 + (tr B)^2) / D^2, in its three terms.

        From E x_i x_j x_k x_l = (d_ij d_kl + d_ik d_jl + d_il d_jk) / D^2.
        """
        size = len(self.linear)
        trace = jnp.trace(self.quadratic)
        traceless = self.quadratic - jnp.diag(jnp.full(size, trace / size))
        return Terms(
            jnp.sum(self.linear**2) / size,
            2 * jnp.sum(traceless**2) / size**2,
            (1 + 2 / size) * trace**2 / size**2,
        )

    def variance(self) -> jax.Array:
        """E y^2 - (E y)^2."""
        return self.square().total - self.mean() ** 2

    def slopes(self) -> Quadratic:
        """Derivatives of E y^2 / 2 by a and by each entry of B: E y x and E y x x^T."""
        size = len(self.linear)
        trace = jnp.diag(jnp.full(size, jnp.trace(self.quadratic)))
        return Quadratic(self.linear / size, (2 * self.quadratic + trace) / size**2)
