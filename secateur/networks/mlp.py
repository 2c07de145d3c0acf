"""Fully connected networks of any width and depth; LeNet-300-100 is one of them."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from numbers import Integral

import jax
import jax.numpy as jnp

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import Key
from secateur.core.network import Network, Stats
from secateur.core.trees import Params
from secateur.networks.layers import INITIALISERS, dense, flat

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "linear": lambda z: z}


@cache
def mlp(
    *hidden: int,
    input_shape: tuple[int, ...] = (28, 28, 1),
    outputs: int = 10,
    activation: str = "relu",
    initialiser: str = "glorot_normal",
    bias: bool = True,
) -> Network:
    """x -> dense_1 -> phi -> ... -> dense_L; leaves ``dense_l/kernel`` (in, out), ``dense_l/bias``.

    Args:
        hidden: width of each hidden layer, first to last; none gives a linear model.
        initialiser: of the kernels, a name in `layers.INITIALISERS`; biases start at 0.

    Equal arguments give the same object, so that compiled programs are shared.

    Raises:
        SecateurError: for a width below 1 or an unknown activation or initialiser.
    """
    given = (*input_shape, *hidden, outputs)
    if not all(isinstance(width, Integral) and int(width) >= 1 for width in given):
        raise SecateurError(
            "every width of an MLP is a whole number of at least 1, not "
            f"{(*hidden, outputs)} with input_shape {tuple(input_shape)}."
        )
    phi = lookup("activation", activation, ACTIVATIONS)
    draw = lookup("initialiser", initialiser, INITIALISERS)
    widths = (math.prod(input_shape), *hidden, outputs)

    def init(key: Key) -> tuple[Params, Stats]:
        params = {}
        for l, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
            params[f"dense_{l}"] = {"kernel": draw(jax.random.fold_in(key, l), (fan_in, fan_out))}
            if bias:
                params[f"dense_{l}"]["bias"] = jnp.zeros(fan_out)
        return params, {}

    def apply(params: Params, stats: Stats, x: jax.Array) -> jax.Array:
        x = flat(x)
        for l in range(1, len(widths)):
            x = dense(params[f"dense_{l}"], x)
            if l < len(widths) - 1:
                x = phi(x)
        return x

    def train(params: Params, stats: Stats, x: jax.Array, key: Key) -> tuple[jax.Array, Stats]:
        return apply(params, stats, x), stats

    name = "mlp-" + "-".join(map(str, hidden)) if hidden else "linear"
    if (activation, bias) != ("relu", True):
        name += f"-{activation}" + ("" if bias else "-nobias")
    return Network(name, tuple(input_shape), outputs, init, apply, train)


def lenet_300_100(initialiser: str = "glorot_normal") -> Network:
    """784-300-100-10, ReLU: 266,200 prunable weights (LeCun et al. 1998; Frankle & Carbin 2019)."""
    return mlp(300, 100, initialiser=initialiser)
