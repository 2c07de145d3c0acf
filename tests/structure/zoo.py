"""Small networks that the tests of structure share: a function and the shapes of its leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.network import Network
from secateur.structure.reader import Group, Structure, read


def relu(z: Any) -> Any:
    """max(z, 0), for tracers and numpy alike."""
    return (abs(z) + z) / 2


def network(
    shapes: Mapping[str, tuple[int, ...]],
    apply: Callable[[dict[str, Any], Any], Any],
    input_shape: tuple[int, ...] = (6,),
    outputs: int = 2,
    train: Callable[..., Any] | None = None,
) -> Network:
    """``apply(params, x) -> logits`` over a flat dict; matrices may be pruned."""

    def init(key: Any) -> Any:
        names = sorted(shapes)
        return {
            k: jax.random.normal(jax.random.fold_in(key, i), shapes[k]) for i, k in enumerate(names)
        }, {}

    def training(params: Any, stats: Any, x: Any, key: Any) -> Any:
        return apply(params, x) if train is None else train(params, x, key), stats

    return Network(
        "zoo",
        input_shape,
        outputs,
        init,
        lambda params, stats, x: apply(params, x),
        training,
        lambda params: {
            k: np.ones(np.shape(p), bool) if np.ndim(p) >= 2 else None for k, p in params.items()
        },
    )


def structure(net: Network) -> Structure:
    return read(net, *jax.eval_shape(net.init, jax.random.key(0)))


def group(found: Structure, leaf: str, axis: int) -> Group:
    """The group that an axis of a leaf belongs to."""
    (one,) = [g for g in found.groups if (leaf, axis) in g.members]
    return one


TWO = {"a": (6, 4), "b": (4,), "c": (4, 2), "d": (2,)}


def two_layers(p: Any, x: Any) -> Any:
    return relu(x @ p["a"] + p["b"][None]) @ p["c"] + p["d"][None]


def _layer_norm(p: Any, x: Any) -> Any:
    z = x @ p["a"] + p["b"][None]
    z = z - jnp.mean(z, axis=-1, keepdims=True)
    return relu(z) @ p["c"] + p["d"][None]


def _ntk(p: Any, x: Any) -> Any:
    h = relu(x @ p["a"] / np.sqrt(x.shape[-1]) + p["b"][None])
    return h @ p["c"] / np.sqrt(h.shape[-1]) + p["d"][None]


@jax.custom_vjp
def centred_backwards(x: Any) -> Any:
    """The identity, whose gradient is centred over the units: what the forward pass cannot show."""
    return x


centred_backwards.defvjp(
    lambda x: (x, None), lambda _, g: (g - jnp.mean(g, axis=-1, keepdims=True),)
)

ZOO: dict[str, Network] = {
    "plain": network(TWO, two_layers),
    "no biases": network(
        {"z": (6, 4), "m": (4, 5), "a": (5, 2)},
        lambda p, x: relu(relu(x @ p["z"]) @ p["m"]) @ p["a"],
    ),
    "residual": network(
        {"in": (6, 4), "f": (4, 4), "g": (4,), "out": (4, 2)},
        lambda p, x: (lambda h: h + relu(h @ p["f"] + p["g"][None]))(relu(x @ p["in"])) @ p["out"],
    ),
    "gated": network(
        {"a": (6, 4), "g": (6, 4), "c": (4, 2)},
        lambda p, x: ((x @ p["a"]) * jax.nn.sigmoid(x @ p["g"])) @ p["c"],
    ),
    "transposed": network(
        {"a": (4, 6), "b": (4,), "c": (2, 4)},
        lambda p, x: relu(x @ p["a"].T + p["b"][None]) @ p["c"].T,
    ),
    "kernel first": network(
        {"a": (4, 6), "c": (2, 4)}, lambda p, x: (p["c"] @ relu(p["a"] @ x.T)).T
    ),
    "softmax": network(TWO, lambda p, x: jax.nn.softmax(two_layers(p, x))),
    "layer norm": network(TWO, _layer_norm),
    "tied": network(
        {"a": (6, 4), "b": (4,)}, lambda p, x: relu(x @ p["a"] + p["b"][None]) @ p["a"].T, outputs=6
    ),
    "mask inside": network(
        TWO, lambda p, x: two_layers({**p, "a": np.tri(6, 4, dtype=np.float32) * p["a"]}, x)
    ),
    "weights exponentiated": network(TWO, lambda p, x: two_layers({**p, "c": jnp.exp(p["c"])}, x)),
    "product of parameters": network(
        {"a": (6, 3), "b": (3, 4), "c": (4, 2)}, lambda p, x: relu(x @ (p["a"] @ p["b"])) @ p["c"]
    ),
    "constant of unit width": network(
        TWO, lambda p, x: relu(x @ p["a"] * np.arange(4.0, dtype=np.float32)[None]) @ p["c"]
    ),
    "vector readout": network(
        {"a": (6, 4), "v": (4,), "d": (2,)},
        lambda p, x: (relu(x @ p["a"]) @ p["v"])[:, None] + p["d"][None],
    ),
    "doubled narrow kernel": network(
        {"a": (6, 4), "c": (4, 1), "d": (2,)},
        lambda p, x: relu(x @ p["a"]) @ (2 * p["c"]) + p["d"][None],
    ),
    "one unit": network({"a": (6, 1), "c": (1, 2)}, lambda p, x: relu(x @ p["a"]) @ p["c"]),
    "scan": network(
        {"a": (6, 6), "c": (6, 2)},
        lambda p, x: (
            jax.lax.scan(lambda h, _: (relu(h @ p["a"]), None), x, None, length=3)[0] @ p["c"]
        ),
    ),
    "custom gradient": network(
        TWO, lambda p, x: centred_backwards(relu(x @ p["a"] + p["b"][None])) @ p["c"]
    ),
    "ntk": network(TWO, _ntk),
    "other training": network(TWO, two_layers, train=lambda p, x, key: _layer_norm(p, x)),
    "noisy training": network(
        TWO, two_layers, train=lambda p, x, key: two_layers(p, x + jax.random.normal(key, x.shape))
    ),
    "idle key": network(
        TWO, two_layers, train=lambda p, x, key: (jax.random.split(key), two_layers(p, x))[1]
    ),
}

WRAPPED: dict[str, Network] = {
    "jit": network(TWO, jax.jit(two_layers)),
    "jit inside jit": network(TWO, jax.jit(lambda p, x: jax.jit(two_layers)(p, x))),
    "checkpoint": network(TWO, jax.checkpoint(two_layers)),
    "checkpoint of jit": network(TWO, jax.checkpoint(jax.jit(two_layers))),
    "static policy": network(
        TWO,
        partial(jax.checkpoint, policy=jax.checkpoint_policies.everything_saveable)(two_layers),
    ),
    "cast there and back": network(
        TWO,
        lambda p, x: two_layers(
            {k: v.astype(jnp.bfloat16).astype(jnp.float32) for k, v in p.items()}, x
        ),
    ),
}
