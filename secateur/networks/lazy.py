"""Knobs that make training lazy, on any network: output scale, weight scale, label scale, width.

    knob              form                             comparable at                  lazy when
    output scale a    a (f(theta) - f(theta_0))        rate / a^2, or loss / a^2      a large
    label scale a     y -> y / a, squared loss         loss times a^2                 a large
    weight scale s    theta_0 -> s theta_0             rate s^(2 - 2p)                s large
    width n           `ntk_parametrised`               as it is                       n large

(Chizat, Oyallon & Bach 2019; Geiger et al. 2020; p is the degree in which f is homogeneous.)
Kumar et al. 2023 publish code with rate / s^2, which is p = 2, and do not centre the outputs in
their sweep of a. Without centring a large a is not lazy: the network has to unlearn a f(theta_0)
first, and the movement of its weights and kernel settles at a value that a does not lower.

None of these is a measure: say how lazy a training was by how far its weights and its kernel moved
(`features.laziness`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.keys import Key
from secateur.core.network import Network, Stats
from secateur.core.trees import Params, flatten, unflatten


@cache
def scaled_output(network: Network, centred: bool = True) -> Network:
    """alpha (f - f_0), or alpha f: the same parameters, outputs of another scale.

    alpha and the point of f_0 are kept in the statistics: data of every compiled program, so that
    a sweep over them shares one. `init` gives alpha = 1 and f_0 at the parameters drawn; give
    others with `with_scale`. f_0 is taken in evaluation mode, in training too.

    A ticket that is rewound is centred at its own start, the mask times theta_0, at each level; one
    that is not rewound keeps the dense network's, and a study that centres says which. A network
    centred like this is trained at full size: its f_0 knows nothing of the mask.
    """

    def init(key: Key) -> tuple[Params, Stats]:
        params, stats = network.init(key)
        return params, _scaled(stats, 1.0, (params, stats) if centred else None)

    def through(found: jax.Array, stats: Stats, x: jax.Array) -> jax.Array:
        if centred:
            origin = stats["origin"]
            found = found - network.apply(origin["params"], origin["stats"], x)
        return stats["alpha"].astype(found.dtype) * found

    def apply(params: Params, stats: Stats, x: jax.Array) -> jax.Array:
        return through(network.apply(params, stats["network"], x), stats, x)

    def train(params: Params, stats: Stats, x: jax.Array, key: Key) -> tuple[jax.Array, Stats]:
        found, inner = network.train(params, stats["network"], x, key)
        return through(found, stats, x), stats | {"network": inner}

    name = f"{network.name},{'centred' if centred else 'scaled'}"
    return replace(network, name=name, init=init, apply=apply, train=train)


def with_scale(stats: Stats, alpha: Any, origin: tuple[Params, Stats] | None = None) -> Stats:
    """Statistics of a `scaled_output` network with this alpha, and f_0 at this point.

    Args:
        stats: of the network as it was made by `scaled_output`.
        alpha: a number, or an array of them for many networks at once.
        origin: parameters and statistics of the network inside; None: as it is.

    Raises:
        SecateurError: for statistics of another network, or a point for one that is not centred.
    """
    if not isinstance(stats, dict) or not {"network", "alpha"} <= set(stats):
        raise SecateurError(
            "these are no statistics of a network with an output scale; take them from the init of "
            "scaled_output(network)."
        )
    if origin is not None and "origin" not in stats:
        raise SecateurError(
            "this network is not centred and has no point to be centred at; make it with "
            "scaled_output(network, centred=True)."
        )
    if origin is None and "origin" in stats:
        origin = stats["origin"]["params"], stats["origin"]["stats"]
    return _scaled(stats["network"], alpha, origin)


def _scaled(stats: Stats, alpha: Any, origin: tuple[Params, Stats] | None) -> Stats:
    found = {"network": stats, "alpha": jnp.asarray(alpha, float)}
    if origin is not None:
        found["origin"] = {"params": origin[0], "stats": origin[1]}
    return found


def scaled_weights(params: Params, scale: Any) -> Params:
    """s theta_0, all leaves: where training starts, so that a sweep over s shares one program."""
    return jax.tree.map(lambda p: p * jnp.asarray(scale, jnp.asarray(p).dtype), params)


def scaled_labels(y: Any, alpha: Any) -> jax.Array:
    """y / alpha, for the squared loss: a factor alpha^2 of the loss away from an output scale.

    Cross-entropy has no scale of labels; there the output scale is a temperature.
    """
    return jnp.asarray(y) / alpha


def comparable_rate(
    rate: float,
    *,
    alpha: float = 1.0,
    weight_scale: float = 1.0,
    degree: float = 1.0,
    optimiser: str = "sgd",
) -> float:
    """The learning rate at which outputs move per step as they do at scale 1.

    Plain descent, with or without momentum, moves outputs by the rate times the tangent kernel,
    which grows as alpha^2 s^(2p - 2): rate / (alpha^2 s^(2p - 2)). To divide the loss by alpha^2
    instead is the same thing. Adam does not see the scale of a loss: each weight moves by about
    the rate a step whatever alpha is, and outputs by alpha s^(p - 1) times that, so that its
    comparable rate is rate / (alpha s^(p - 1)), and dividing its loss changes nothing.

    Args:
        degree: p, in which f is homogeneous: the number of layers, without biases.
        optimiser: "adam", or one of the others of `train.recipes`.

    Raises:
        SecateurError: for scales that are not positive.
    """
    if not (alpha > 0 and weight_scale > 0):
        raise SecateurError(
            f"the scales are {alpha} and {weight_scale}; both of them must be above 0."
        )
    growth = alpha * weight_scale ** (degree - 1)
    return rate / (growth if optimiser == "adam" else growth**2)


@cache
def ntk_parametrised(network: Network) -> Network:
    """The same function at the start, with every prunable kernel a factor 1 / sqrt(fan-in) less.

    Parameters are the kernels times sqrt(fan-in), of variance 1 if the network draws variance
    1 / fan-in; `apply` divides. Descent moves a kernel's entries fan-in times more slowly than
    without, so that the tangent kernel keeps its size as widths grow, and training becomes lazy
    (Jacot, Gabriel & Hongler 2018). Weights of layers of unlike fan-in change their order by size:
    pruning by magnitude over all layers at once keeps others.
    """
    params = jax.eval_shape(network.init, jax.random.key(0))[0]
    masks = flatten(network.prunable(params))
    # Of the full shapes: a network that is cut down keeps its factors.
    factors = {
        name: 1 / math.sqrt(math.prod(np.shape(leaf)[:-1]))
        for name, leaf in flatten(params).items()
        if masks[name] is not None and np.ndim(leaf) >= 2
    }

    def times(params: Params, power: int) -> Params:
        flat = flatten(params)
        return unflatten(flat | {k: flat[k] * f**power for k, f in factors.items()}, params)

    def init(key: Key) -> tuple[Params, Stats]:
        params, stats = network.init(key)
        return times(params, -1), stats

    def apply(params: Params, stats: Stats, x: jax.Array) -> jax.Array:
        return network.apply(times(params, 1), stats, x)

    def train(params: Params, stats: Stats, x: jax.Array, key: Key) -> tuple[jax.Array, Stats]:
        return network.train(times(params, 1), stats, x, key)

    return replace(network, name=f"{network.name},ntk", init=init, apply=apply, train=train)
