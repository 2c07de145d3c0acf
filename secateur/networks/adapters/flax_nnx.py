"""Networks of Flax nnx."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from secateur.core.errors import SecateurError
from secateur.core.network import Network, kernels_only
from secateur.networks.adapters.parts import (
    Choice,
    Named,
    Prepare,
    choose,
    finish,
    finished_model,
    first_line,
    mode_arguments,
    parameter_names,
    prepared,
)


def from_flax_nnx(
    model: Any,
    input_shape: tuple[int, ...],
    *,
    same_start: bool = False,
    prunable: Choice | None = None,
    prepare: Prepare | None = None,
    name: str | None = None,
) -> Network:
    """A Flax nnx model.

    ``nnx.Param`` is trained; random streams inside the model are given new keys, one each, from the
    key of every training step; all other variables (``BatchStat``) are carried as statistics.
    Evaluation is what ``model.eval()`` sets, training what ``model.train()`` sets, besides an
    argument of ``__call__`` called ``train``, ``deterministic`` or the like. Names are the model's
    attributes: ``layers/0/kernel``.

    Args:
        model: the class or a constructor ``rngs -> model``, so that every seed draws its own
            weights; with ``same_start=True`` also a finished model.
        input_shape: shape of one example.
        prunable: ``(name, leaf) -> bool``; default: leaves called ``kernel``.
        prepare: one example as the data has it to what the model takes, e.g. ``jnp.ravel``.
        name: default: the class's name in lower case.

    Raises:
        SecateurError: if the constructor fails, or the model does not map (n, *input_shape) to
            (n, outputs).
    """
    from flax import nnx

    finished = isinstance(model, nnx.Module)
    if finished and not same_start:
        raise finished_model("from_flax_nnx", "rngs")
    ready = prepared(prepare)

    def build(key: Any) -> Any:
        return nnx.clone(model) if finished else _call_with_rngs(model, nnx.Rngs(key))

    try:
        made = build(jax.random.key(0))
    except Exception as error:
        raise SecateurError(
            f"calling the constructor with rngs failed ({first_line(error)}); expected a function "
            "rngs -> model: wrap yours as `lambda rngs: Model(..., rngs=rngs)`."
        ) from error
    made.eval()
    evaluated, weights, streams, rest = _split(made)
    made.train()
    trained = _split(made)[0]
    params_names, stats_names = Named.of(weights), Named.of(rest)
    names = parameter_names(made.__call__)
    training, evaluation = mode_arguments(names)

    def init(key: Any) -> tuple[Any, Any]:
        _, weights, _, rest = _split(build(key))
        return params_names.dict(weights), stats_names.dict(rest)

    def call(
        graph: Any, params: Any, stats: Any, x: Any, random: Any, mode: dict[str, bool], key: Any
    ) -> tuple[Any, Any]:
        inside = nnx.merge(graph, params_names.tree(params), random, stats_names.tree(stats))
        extra = {"rngs": nnx.Rngs(key)} if "rngs" in names and key is not None else {}
        logits = inside(ready(x), **mode, **extra)
        return logits, _split(inside)[3]

    def apply(params: Any, stats: Any, x: Any) -> Any:
        return call(evaluated, params, stats, x, streams, evaluation, None)[0]

    def train(params: Any, stats: Any, x: Any, key: Any) -> tuple[Any, Any]:
        logits, rest = call(trained, params, stats, x, _renewed(streams, key), training, key)
        return logits, stats_names.dict(rest)

    return finish(
        Network(
            name=name or type(made).__name__.lower(),
            input_shape=tuple(input_shape),
            outputs=0,
            init=init,
            apply=apply,
            train=train,
            prunable=kernels_only if prunable is None else choose(prunable),
        )
    )


def _split(model: Any) -> tuple[Any, Any, Any, Any]:
    """Graph, parameters, random streams, and all other variables."""
    from flax import nnx

    split: Any = nnx.split  # its own types do not say how many parts there are
    return split(model, nnx.Param, nnx.RngState, ...)


def _call_with_rngs(constructor: Callable[..., Any], rngs: Any) -> Any:
    function = constructor.func if isinstance(constructor, functools.partial) else constructor
    if "rngs" in parameter_names(function):
        return constructor(rngs=rngs)
    return constructor(rngs)


def _renewed(streams: Any, key: Any) -> Any:
    """The random streams with a key each, drawn from ``key``, and their counts at 0.

    Not nnx.reseed: it gives one key to all streams of a name, so two dropout layers of one shape
    would drop the same units.
    """
    leaves, structure = jax.tree.flatten(streams)
    renewed = [
        jax.random.fold_in(key, i)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.zeros_like(leaf)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, renewed)
