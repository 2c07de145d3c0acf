"""The contract every network fulfils, built-in or brought by a user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

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
