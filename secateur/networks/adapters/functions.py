"""Networks written as plain functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from secateur.core.network import Network
from secateur.core.trees import flatten
from secateur.networks.adapters.parts import (
    Choice,
    Prepare,
    choose,
    ends_in,
    finish,
    prepared,
)

WEIGHT_NAMES = ("kernel", "weight", "w", "W")


def from_functions(
    init: Callable[..., Any],
    apply: Callable[..., Any],
    input_shape: tuple[int, ...],
    *,
    train: Callable[..., Any] | None = None,
    has_stats: bool = False,
    prunable: Choice | None = None,
    prepare: Prepare | None = None,
    name: str = "functions",
) -> Network:
    """A network of plain functions over any tree of arrays.

    Without statistics: ``init(key) -> params``, ``apply(params, x) -> logits`` and, where training
    differs (dropout), ``train(params, x, key) -> logits``. With ``has_stats=True`` they have the
    forms of `Network`: ``init(key) -> (params, stats)``, ``apply(params, stats, x) -> logits``,
    ``train(params, stats, x, key) -> (logits, stats)``.

    Args:
        input_shape: shape of one example.
        prunable: ``(name, leaf) -> bool``. Default: leaves of two or more axes called kernel,
            weight or w; where none is called so (lists of pairs), every leaf of two or more axes.
        prepare: one example as the data has it to what ``apply`` takes, e.g. ``jnp.ravel``.

    Raises:
        SecateurError: if the functions do not map (n, *input_shape) to (n, outputs).
    """
    ready = prepared(prepare)

    def chosen(params: Any) -> Any:
        if prunable is not None:
            return choose(prunable)(params)
        named = ends_in(WEIGHT_NAMES)
        if any(named(n, leaf) for n, leaf in flatten(params).items()):
            return choose(named)(params)
        return choose(lambda n, leaf: np.ndim(leaf) >= 2)(params)

    def training(params: Any, stats: Any, x: Any, key: Any) -> tuple[Any, Any]:
        if has_stats:
            return (
                train(params, stats, ready(x), key)
                if train is not None
                else (apply(params, stats, ready(x)), stats)
            )
        return (
            train(params, ready(x), key) if train is not None else apply(params, ready(x)),
            stats,
        )

    return finish(
        Network(
            name=name,
            input_shape=tuple(input_shape),
            outputs=0,
            init=init if has_stats else lambda key: (init(key), {}),
            apply=lambda params, stats, x: (
                apply(params, stats, ready(x)) if has_stats else apply(params, ready(x))
            ),
            train=training,
            prunable=chosen,
        )
    )
