"""The contract every network fulfils, built-in or brought by a user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.keys import Key
from secateur.core.trees import Mask, Params, flatten, unflatten

Stats = Any  # PyTree[Array]: batch statistics; an empty dict where there are none


def kernels_only(params: Params) -> Mask:
    """The default of what may be pruned: leaves named ``kernel`` with two or more axes.

    Biases, norms and everything else are ``None``: never pruned, never counted.
    """
    flat = {
        name: np.ones(np.shape(leaf), bool)
        if name.split("/")[-1] == "kernel" and np.ndim(leaf) >= 2
        else None
        for name, leaf in flatten(params).items()
    }
    return unflatten(flat, params)


@dataclass(frozen=True)
class Network:
    """A network as pure functions, so that every transformation of JAX applies to it.

    Attributes:
        name: as printed and hashed, e.g. ``"lenet-300-100"``.
        input_shape: shape of one example, e.g. ``(28, 28, 1)``.
        outputs: number of outputs.
        init: ``key -> (params, stats)``.
        apply: ``(params, stats, x) -> logits``, evaluation mode; x is ``(n, *input_shape)``,
            logits ``(n, outputs)``.
        train: ``(params, stats, x, key) -> (logits, stats)``, training mode: batch statistics,
            dropout.
        prunable: ``params -> Mask`` of ``True`` where weights may be pruned and ``None`` elsewhere.
    """

    name: str
    input_shape: tuple[int, ...]
    outputs: int
    init: Callable[[Key], tuple[Params, Stats]]
    apply: Callable[[Params, Stats, jax.Array], jax.Array]
    train: Callable[[Params, Stats, jax.Array, Key], tuple[jax.Array, Stats]]
    prunable: Callable[[Params], Mask] = kernels_only


def check_fit(network: Network, params: Params) -> None:
    """Refuses what is no network, and parameters of another one.

    Raises:
        SecateurError: one sentence: which leaf is missing or has another shape.
    """
    check_network(network)
    wanted = flatten(jax.eval_shape(network.init, jax.random.key(0))[0])
    found = flatten(params)
    for name, leaf in wanted.items():
        if name not in found or np.shape(found[name]) != leaf.shape:
            got = f"{np.shape(found[name])}" if name in found else "missing"
            raise SecateurError(
                f"params do not fit {network.name}: {name} is {got}, expected {leaf.shape}; give "
                "the parameters of this network."
            )


def check_network(network: Network) -> None:
    """Refuses what is no network.

    Raises:
        SecateurError: what to do.
    """
    if not isinstance(network, Network):
        raise SecateurError(
            f"a Network is expected, not a {type(network).__name__}; make one of your own network "
            "with secateur.adapt."
        )
