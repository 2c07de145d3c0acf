"""The soft committee machine and its order parameters.

    s(x) = sum_i g(J_i.x / sqrt(N)),    g(h) = erf(h / sqrt(2)),    x ~ N(0, I_N)

Student J (K units) and teacher B (M units) are the same kind of network. Of Gaussian inputs their
fields J_i.x / sqrt(N) and B_n.x / sqrt(N) are Gaussian, with the order parameters as covariance:
all means over inputs are functions of K + M by K + M numbers (Saad & Solla 1995, Phys. Rev. E 52,
4225). In a joint covariance the student's K fields come first, then the teacher's M.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import erf

from secateur.core.errors import SecateurError
from secateur.core.keys import Key, fold
from secateur.core.network import Network, Stats
from secateur.core.quadratic import ArrayLike
from secateur.core.trees import Params


class Order(NamedTuple):
    """Order parameters.

    Attributes:
        Q: J_i.J_k / N, (K, K).
        R: J_i.B_n / N, (K, M).
        T: B_n.B_m / N, (M, M); the teacher stands still.
    """

    Q: jax.Array
    R: jax.Array
    T: jax.Array

    def joint(self) -> jax.Array:
        """The covariance of all fields, (K + M, K + M)."""
        return jnp.block([[self.Q, self.R], [self.R.T, self.T]])


def order(student: jax.Array, teacher: jax.Array) -> Order:
    """Of kernels (N, K) and (N, M)."""
    size = len(student)
    return Order(student.T @ student / size, student.T @ teacher / size, teacher.T @ teacher / size)


def activation(h: jax.Array) -> jax.Array:
    """g(h) = erf(h / sqrt 2)."""
    return erf(h / jnp.sqrt(2.0).astype(h.dtype))


def slope(h: jax.Array) -> jax.Array:
    """g'(h) = sqrt(2 / pi) exp(-h^2 / 2)."""
    return jnp.sqrt(2 / jnp.pi).astype(h.dtype) * jnp.exp(-(h**2) / 2)


def function(kernel: jax.Array, x: jax.Array) -> jax.Array:
    """s at inputs (n, N) for a kernel (N, units): (n,)."""
    return jnp.sum(activation(x @ kernel / len(kernel) ** 0.5), axis=-1)


def pair_mean(c: jax.Array) -> jax.Array:
    """I2 = <g(a) g(b)> = (2 / pi) asin(C_ab / sqrt((1 + C_aa) (1 + C_bb))) for all pairs."""
    one = 1 + jnp.diagonal(c)
    return 2 / jnp.pi * jnp.arcsin(c / jnp.sqrt(one[:, None] * one[None, :]))


def generalisation_error(of: Order) -> jax.Array:
    """<(s - t)^2> / 2 over x ~ N(0, I_N), t the teacher."""
    units = len(of.Q)
    mean = pair_mean(of.joint())
    sides = jnp.where(jnp.arange(len(mean)) < units, 1.0, -1.0).astype(mean.dtype)
    return sides @ mean @ sides / 2


def triple_means(c: jax.Array) -> jax.Array:
    """I3[a, b, c] = <g'(a) b g(c)> for all triples of fields of covariance C, (F, F, F)."""
    one = 1 + jnp.diagonal(c)
    a = one[:, None, None]
    root = jnp.sqrt(a * one[None, None, :] - c[:, None, :] ** 2)
    top = c[None, :, :] * a - c[:, :, None] * c[:, None, :]
    return 2 / jnp.pi * top / (root * a)


def quadruple_means(c: jax.Array, units: int) -> jax.Array:
    """I4[a, b, c, d] = <g'(a) g'(b) g(c) g(d)>, a and b among the first ``units`` fields.

    Returns:
        (units, units, F, F).
    """
    one = 1 + jnp.diagonal(c)
    a, b = one[:units, None, None, None], one[None, :units, None, None]
    ab = c[:units, :units, None, None]
    ac, ad = c[:units, None, :, None], c[:units, None, None, :]
    bc, bd = c[None, :units, :, None], c[None, :units, None, :]
    four = a * b - ab**2
    zero = four * c - bc * bd * a - ac * ad * b + ab * (ac * bd + ad * bc)

    def conditional(xa: jax.Array, xb: jax.Array, own: jax.Array) -> jax.Array:
        return four * own - xb**2 * a - xa**2 * b + 2 * ab * xa * xb

    first = conditional(ac, bc, one[None, None, :, None])
    second = conditional(ad, bd, one[None, None, None, :])
    return 4 / jnp.pi**2 * jnp.arcsin(zero / jnp.sqrt(first * second)) / jnp.sqrt(four)


def drift(of: Order, rate: ArrayLike, noise: ArrayLike = 0.0, second: ArrayLike = 1.0) -> Order:
    """d(Q, R, T) / da under on-line gradient descent at N -> infinity, a = steps / N.

    Args:
        rate: eta of J_i += (eta / sqrt N) g'(h_i) (t - s) x.
        noise: variance of noise that is added to the teacher's outputs.
        second: 0 leaves out the terms in eta^2, which is gradient flow on the population.
    """
    units = len(of.Q)
    c = of.joint()
    # t - s = sum over all fields, the teacher's with +, the student's with -.
    sides = jnp.where(jnp.arange(len(c)) < units, -1.0, 1.0).astype(c.dtype)
    pull = jnp.einsum("ibc,c->ib", triple_means(c)[:units], sides)  # <delta_i b>
    square = jnp.einsum("ikcd,c,d->ik", quadruple_means(c, units), sides, sides)
    one = 1 + jnp.diagonal(of.Q)
    square += noise * 2 / jnp.pi / jnp.sqrt(one[:, None] * one[None, :] - of.Q**2)
    own = pull[:, :units]
    dq = rate * (own + own.T) + second * rate**2 * square
    return Order(dq, rate * pull[:, units:], jnp.zeros_like(of.T))


@cache
def soft_committee(inputs: int = 1000, units: int = 2, deviation: float = 1.0) -> Network:
    """The machine as a network: one prunable leaf ``committee/kernel`` (N, K), one output.

    Args:
        deviation: of the initial weights, independent and Gaussian.

    Raises:
        SecateurError: for fewer than one input or unit.
    """
    if min(inputs, units) < 1:
        raise SecateurError(
            f"a soft committee machine has at least one input and one unit, not {inputs} and "
            f"{units}."
        )

    def init(key: Key) -> tuple[Params, Stats]:
        drawn = jax.random.normal(fold(key, "committee"), (inputs, units))
        return {"committee": {"kernel": deviation * drawn}}, {}

    def apply(params: Params, stats: Stats, x: jax.Array) -> jax.Array:
        return function(params["committee"]["kernel"], x)[:, None]

    def train(params: Params, stats: Stats, x: jax.Array, key: Key) -> tuple[jax.Array, Stats]:
        return apply(params, stats, x), stats

    return Network(f"soft-committee-{inputs}-{units}", (inputs,), 1, init, apply, train)
