"""Networks of Equinox."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from secateur.core.network import Network
from secateur.core.trees import Mask, Params, flatten, unflatten
from secateur.networks.adapters.parts import (
    Choice,
    Named,
    Prepare,
    call_with_key,
    choose,
    construct,
    finish,
    finished_model,
    mode_arguments,
    parameter_names,
    part,
)


def from_equinox(
    model: Any,
    input_shape: tuple[int, ...],
    *,
    same_start: bool = False,
    prunable: Choice | None = None,
    prepare: Prepare | None = None,
    name: str | None = None,
) -> Network:
    """An Equinox model, which works on single examples: batches are mapped over inside.

    Arrays of floating point are trained; all other arrays and the states of stateful layers
    (BatchNorm) are carried as statistics; the rest is fixed. Evaluation is what
    ``eqx.nn.inference_mode(model)`` does, training what ``inference_mode(model, value=False)``
    does. In training every example has its own key, ``jax.random.split(key, n)``, given to the
    model where its ``__call__`` has an argument ``key``; a model with states is called
    ``model(x, state)`` and gives ``(logits, state)``, as everywhere in Equinox. Names are the
    model's attributes: ``layers/0/weight``.

    Args:
        model: the class or a constructor ``key -> model`` (or ``key -> (model, state)``), so that
            every seed draws its own weights; with ``same_start=True`` also a finished model or
            ``(model, state)``.
        input_shape: shape of one example as the data has it; images are (height, width, channels).
        prunable: ``(name, leaf) -> bool``. Default: ``weight`` of ``eqx.nn.Linear``, ``Conv`` and
            ``ConvTranspose``, and in a user's own layers leaves of two or more axes called
            ``weight`` or ``kernel``.
        prepare: one example as the data has it to what the model takes: ``jnp.ravel`` for
            ``eqx.nn.MLP``, ``lambda x: jnp.moveaxis(x, -1, 0)`` for Equinox's convolutions.
        name: default: the class's name in lower case.

    Raises:
        SecateurError: if the constructor fails, or the model does not map (n, *input_shape) to
            (n, outputs).
    """
    import equinox as eqx

    pair = isinstance(model, tuple)
    finished = pair or isinstance(model, eqx.Module)
    if finished and not same_start:
        raise finished_model("from_equinox", "key")

    def build(key: Any) -> tuple[Any, Any]:
        if pair:
            return model
        made = model if finished else call_with_key(model, key)
        return made if isinstance(made, tuple) else eqx.nn.make_with_state(lambda: made)()

    built: list[Any] = []
    construct(build, built.append)
    made, state = built[0]
    weights, others = eqx.partition(made, eqx.is_inexact_array)
    constants, fixed = eqx.partition(others, eqx.is_array)
    params_names, constants_names = Named.of(weights), Named.of(constants)
    places = _state_places(made)
    stateful = bool(places)
    states_names = Named.of(_states(places, state)) if stateful else None
    axis = _batch_axis(made)
    names = parameter_names(made.__call__)
    training, evaluation = mode_arguments(names)

    def pack(state: Any, constants: Any) -> dict[str, Any]:
        stats: dict[str, Any] = {}
        if states_names is not None:
            stats["state"] = states_names.dict(_states(places, state))
        if constants_names.parts:
            stats["constants"] = constants_names.dict(constants)
        return stats

    def init(key: Any) -> tuple[Any, Any]:
        made, state = build(key)
        weights, others = eqx.partition(made, eqx.is_inexact_array)
        return params_names.dict(weights), pack(state, eqx.filter(others, eqx.is_array))

    def call(
        params: Any, stats: Any, x: Any, inference: bool, mode: dict[str, bool], key: Any
    ) -> tuple[Any, Any]:
        held = constants_names.tree(stats.get("constants", {}))
        inside = eqx.combine(params_names.tree(params), held, fixed)
        inside = eqx.nn.inference_mode(inside, value=inference)
        keys = None if key is None or "key" not in names else jax.random.split(key, len(x))
        # Evaluation has no key; the argument is left out, so that the model's own default holds.
        with_key = "key" in names and (keys is not None or _needs(made, "key"))

        def one(example: Any, key: Any, state: Any) -> Any:
            ready = example if prepare is None else prepare(example)
            states = (state,) if stateful else ()
            extra = {"key": key} if with_key else {}
            return inside(ready, *states, **mode, **extra)

        state_in = None
        if states_names is not None:
            # A new State each time: setting a value makes the old one unusable, by design.
            values = states_names.tree(stats["state"])
            by_marker = {index.marker: values[name] for name, index in places.items()}
            _, order = state.tree_flatten()
            state_in = type(state).tree_unflatten(order, [by_marker[m] for m in order])
        out = jax.vmap(
            one,
            in_axes=(0, None if keys is None else 0, None),
            out_axes=(0, None) if stateful else 0,
            axis_name=axis,
        )(x, keys, state_in)
        if not stateful:
            return out, stats
        logits, state_out = out
        return logits, pack(state_out, held)

    def train(params: Any, stats: Any, x: Any, key: Any) -> tuple[Any, Any]:
        return call(params, stats, x, False, training, key)

    return finish(
        Network(
            name=name or type(made).__name__.lower(),
            input_shape=tuple(input_shape),
            outputs=0,
            init=init,
            apply=lambda params, stats, x: call(params, stats, x, True, evaluation, None)[0],
            train=train,
            prunable=_weights_of(made, weights) if prunable is None else choose(prunable),
        )
    )


def _is_index(node: Any) -> bool:
    import equinox as eqx

    return isinstance(node, eqx.nn.StateIndex)


def _state_places(model: Any) -> dict[str, Any]:
    """The places of the states by name, in the model's order: ``{"norm/batch_counter": index}``."""
    pairs = jax.tree_util.tree_flatten_with_path(model, is_leaf=_is_index)[0]
    return {"/".join(map(part, path)): leaf for path, leaf in pairs if _is_index(leaf)}


def _states(places: dict[str, Any], state: Any) -> dict[str, Any]:
    """The values of the states by the name of their place."""
    return {name: state.get(index) for name, index in places.items()}


def _batch_axis(model: Any) -> Any:
    """The name by which the model's BatchNorms know the batch; ``"batch"`` where there are none."""
    import equinox as eqx

    def is_norm(node: Any) -> bool:
        return isinstance(node, eqx.nn.BatchNorm)

    for node in jax.tree.leaves(model, is_leaf=is_norm):
        if is_norm(node):
            name = node.axis_name
            return name[0] if isinstance(name, (tuple, list)) else name
    return "batch"


def _needs(model: Any, argument: str) -> bool:
    """Whether the model's ``__call__`` has the argument without a default."""
    import inspect

    wanted = inspect.signature(model.__call__).parameters[argument]
    return wanted.default is inspect.Parameter.empty


def _weights_of(model: Any, weights: Any) -> Any:
    """The default choice: weights of linear and convolutional layers, by the class of the owner."""
    import equinox as eqx

    layers = (eqx.nn.Linear, eqx.nn.Conv, eqx.nn.ConvTranspose)
    chosen = set()
    for path, leaf in jax.tree_util.tree_flatten_with_path(weights)[0]:
        owner = functools.reduce(_step, path[:-1], model)
        last = part(path[-1]) if path else ""
        own_layer = not type(owner).__module__.startswith("equinox.")
        if (isinstance(owner, layers) and last == "weight") or (
            own_layer and last in ("weight", "kernel") and np.ndim(leaf) >= 2
        ):
            chosen.add("/".join(map(part, path)))

    def prunable(params: Params) -> Mask:
        flat = {
            name: np.ones(np.shape(leaf), bool) if name in chosen else None
            for name, leaf in flatten(params).items()
        }
        return unflatten(flat, params)

    return prunable


def _step(node: Any, entry: Any) -> Any:
    if isinstance(entry, jax.tree_util.GetAttrKey):
        return getattr(node, entry.name)
    return node[getattr(entry, "key", getattr(entry, "idx", None))]
