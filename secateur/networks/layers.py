"""The handful of layers and initialisers that the built-in networks are made of.

Every layer is a plain function of its parameters and works for any width: a network written with
them runs unchanged on parameters from which whole units were cut (`structure.compact`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from secateur.core.keys import Key

Initialiser = Callable[[Key, tuple[int, ...]], jax.Array]


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Fan-in and fan-out of a kernel (..., in, out); the leading axes are the receptive field."""
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field


def glorot_normal(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """w ~ N(0, 2 / (fan_in + fan_out)). Glorot & Bengio 2010; Frankle & Carbin 2019, appendix.

    Not truncated: Keras and Flax truncate at two standard deviations and rescale.
    """
    fan_in, fan_out = _fans(shape)
    return jax.random.normal(key, shape) * math.sqrt(2 / (fan_in + fan_out))


def glorot_uniform(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """w ~ U(-a, a), a = sqrt(6 / (fan_in + fan_out)). Glorot & Bengio 2010, eq. 16."""
    fan_in, fan_out = _fans(shape)
    a = math.sqrt(6 / (fan_in + fan_out))
    return jax.random.uniform(key, shape, minval=-a, maxval=a)


def kaiming_normal(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """w ~ N(0, 2 / fan_in), as in open_lth (fan-in, gain sqrt 2). He et al. 2015, eq. 10."""
    return jax.random.normal(key, shape) * math.sqrt(2 / _fans(shape)[0])


def kaiming_uniform(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """w ~ U(-a, a), a = sqrt(6 / fan_in): the variance of `kaiming_normal`. He et al. 2015."""
    a = math.sqrt(6 / _fans(shape)[0])
    return jax.random.uniform(key, shape, minval=-a, maxval=a)


INITIALISERS: dict[str, Initialiser] = {
    "glorot_normal": glorot_normal,
    "glorot_uniform": glorot_uniform,
    "kaiming_normal": kaiming_normal,
    "kaiming_uniform": kaiming_uniform,
}


def dense(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """z = x W + b; x is (n, in), ``kernel`` (in, out), ``bias`` (out,)."""
    z = x @ params["kernel"]
    return z + params["bias"][None, :] if "bias" in params else z


def flat(x: jax.Array) -> jax.Array:
    """(n, ...) -> (n, features)."""
    return jnp.reshape(x, (x.shape[0], -1))
