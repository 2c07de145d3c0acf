"""Networks of Flax linen."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from secateur.core.errors import SecateurError
from secateur.core.network import Network, kernels_only
from secateur.networks.adapters.parts import (
    Choice,
    Prepare,
    choose,
    finish,
    mode_arguments,
    parameter_names,
    prepared,
)


def from_flax_linen(
    module: Any,
    input_shape: tuple[int, ...],
    *,
    rngs: tuple[str, ...] = ("dropout",),
    prunable: Choice | None = None,
    prepare: Prepare | None = None,
    name: str | None = None,
) -> Network:
    """A Flax linen module.

    Parameters are the collection ``params``, with Flax's names; every other collection that
    ``init`` makes (``batch_stats``) is carried as statistics and is mutable in training only. The
    module is told its mode by the argument of ``__call__``, or the field, called ``train``,
    ``training``, ``is_training``, ``deterministic`` or ``use_running_average``. ``init(key)``
    gives exactly what ``module.init(key, x)`` gives.

    Args:
        module: the module, not bound, e.g. ``Net(features=10)``.
        input_shape: shape of one example.
        rngs: names of the random streams that training needs; each gets its own key.
        prunable: ``(name, leaf) -> bool``; default: leaves called ``kernel``.
        prepare: one example as the data has it to what the module takes, e.g. ``jnp.ravel``.
        name: default: the class's name in lower case.

    Raises:
        SecateurError: if it is a class, or does not map (n, *input_shape) to (n, outputs), or
            changes statistics while it evaluates.
    """
    if isinstance(module, type):
        raise SecateurError(
            f"from_flax_linen was given the class {module.__name__}; expected a module: call it "
            f"with its fields, {module.__name__}(...)."
        )
    ready = prepared(prepare)
    training, evaluation = mode_arguments(parameter_names(module.__call__))
    # A mode that is a field of the module is set on a copy; a field cannot be given to __call__.
    fields = tuple(f.name for f in dataclasses.fields(module) if f.name not in training)
    field_training, field_evaluation = mode_arguments(fields)
    trained, evaluated = module.clone(**field_training), module.clone(**field_evaluation)

    def init(key: Any) -> tuple[Any, Any]:
        x = ready(jnp.zeros((1, *input_shape)))
        variables = dict(evaluated.init(key, x, **evaluation))
        return variables.pop("params", {}), variables

    def apply(params: Any, stats: Any, x: Any) -> Any:
        return evaluated.apply({"params": params, **stats}, ready(x), **evaluation)

    def train(params: Any, stats: Any, x: Any, key: Any) -> tuple[Any, Any]:
        streams = {stream: jax.random.fold_in(key, i) for i, stream in enumerate(rngs)}
        logits, changed = trained.apply(
            {"params": params, **stats},
            ready(x),
            **training,
            rngs=streams,
            mutable=list(stats),
        )
        return logits, {**stats, **changed}

    return finish(
        Network(
            name=name or type(module).__name__.lower(),
            input_shape=tuple(input_shape),
            outputs=0,
            init=init,
            apply=apply,
            train=train,
            prunable=kernels_only if prunable is None else choose(prunable),
        )
    )
