"""On-line learning of the soft committee machine: its equations, and the simulation beside them.

Both give the same record, so that theory and simulation are two lines of one figure. Time is
a = steps / N, N the number of inputs. Saad & Solla 1995.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from secateur.core.keys import Key
from secateur.core.quadratic import ArrayLike
from secateur.networks.soft_committee import (
    Order,
    activation,
    drift,
    generalisation_error,
    order,
    slope,
)


class Course(NamedTuple):
    """Order parameters on their way; the first row is the start.

    Attributes:
        time: a = steps / N, (rows,).
        order: each with a first axis of rows.
        error: the generalisation error, (rows,).
    """

    time: jax.Array
    order: Order
    error: jax.Array


@partial(jax.jit, static_argnames=["rows"])
def integrate(
    start: Order,
    *,
    rate: ArrayLike,
    until: ArrayLike,
    rows: int,
    inner: int | jax.Array = 20,
    noise: ArrayLike = 0.0,
    second: ArrayLike = 1.0,
) -> Course:
    """The order parameters' equations, by the classical Runge-Kutta rule of fourth order.

    Args:
        until: the last time; rows are ``rows`` equal parts of it after the start.
        inner: steps in each part: the error falls with its fourth power. Steps of 0.1 in time give
            six digits at rates around 1.
        noise, second: as in `networks.soft_committee.drift`.
    """
    dt = until / (rows * inner)
    move = lambda at, by, slopes: jax.tree.map(lambda a, b: a + by * b, at, slopes)
    f = lambda at: drift(at, rate, noise, second)

    def step(_: int, at: Order) -> Order:
        k1 = f(at)
        k2 = f(move(at, dt / 2, k1))
        k3 = f(move(at, dt / 2, k2))
        k4 = f(move(at, dt, k3))
        return jax.tree.map(
            lambda a, b, c, d, e: a + dt / 6 * (b + 2 * c + 2 * d + e), at, k1, k2, k3, k4
        )

    def part(at: Order, _: None) -> tuple[Order, Order]:
        at = jax.lax.fori_loop(0, inner, step, at)
        return at, at

    _, rest = jax.lax.scan(part, start, length=rows)
    return _course(start, rest, jnp.arange(rows + 1) * inner * dt)


@partial(jax.jit, static_argnames=["rows"])
def simulate(
    student: jax.Array,
    teacher: jax.Array,
    key: Key,
    mask: ArrayLike = 1.0,
    *,
    rate: ArrayLike,
    rows: int,
    inner: int | jax.Array,
    noise: ArrayLike = 0.0,
) -> tuple[jax.Array, Course]:
    """One pass of on-line gradient descent: J_i += (eta / sqrt N) g'(h_i) (t - s) x, x never again.

    Args:
        student, teacher: (N, K), (N, M); the student starts where the mask leaves it.
        mask: (N, K), 1 or 0, or 1. With one, the equations hold no more.
        rows, inner: ``rows * inner`` steps are taken, and recorded after each ``inner``.
        noise: variance of noise that is added to the teacher's outputs.

    Returns:
        The student at the end, and its course.
    """
    size = len(student)
    first = student * mask
    kernel_of_both = lambda j: jnp.concatenate([j, teacher], axis=1)

    def step(number: jax.Array, j: jax.Array) -> jax.Array:
        at, extra = jax.random.split(jax.random.fold_in(key, number))
        x = jax.random.normal(at, (size,), student.dtype)
        h = x @ kernel_of_both(j) / size**0.5
        g = activation(h)
        units = j.shape[1]
        error = jnp.sum(g[units:]) - jnp.sum(g[:units])
        error += jnp.sqrt(noise) * jax.random.normal(extra, (), student.dtype)
        return j + (rate / size**0.5) * error * x[:, None] * slope(h[:units]) * mask

    def part(j: jax.Array, row: jax.Array) -> tuple[jax.Array, Order]:
        j = jax.lax.fori_loop(row * inner, (row + 1) * inner, step, j)
        return j, order(j, teacher)

    last, rest = jax.lax.scan(part, first, jnp.arange(rows))
    return last, _course(order(first, teacher), rest, jnp.arange(rows + 1) * inner / size)


def _course(start: Order, rest: Order, time: jax.Array) -> Course:
    whole = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, rest)
    return Course(time, whole, jax.vmap(generalisation_error)(whole))
