"""What all adapters share: names, modes, construction and the check of the contract."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.core.trees import Mask, Params, flatten, unflatten

Choice = Callable[[str, Any], bool]  # (leaf name, leaf) -> may its weights be pruned?
Prepare = Callable[
    [jax.Array], jax.Array
]  # one example as the data has it -> as the network wants it

# The words with which networks are told that they are being trained, and the value that says so.
TRAINING_WORDS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
}


def parameter_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the arguments of a callable; empty where Python cannot tell."""
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return ()


def mode_arguments(names: tuple[str, ...]) -> tuple[dict[str, bool], dict[str, bool]]:
    """Keyword arguments for training and for evaluation, of those among ``names``."""
    training = {word: value for word, value in TRAINING_WORDS.items() if word in names}
    return training, {word: not value for word, value in training.items()}


@dataclass(frozen=True)
class Named:
    """The leaves of one kind of tree as a nested dict with readable names, and back.

    The dict is what is trained, masked, stored and shown; the library's own tree exists only inside
    a call. Attribute names and positions become the parts of a name: ``layers/0/weight``.
    """

    parts: tuple[tuple[str, ...], ...]
    structure: Any

    @classmethod
    def of(cls, tree: Any) -> Named:
        pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
        return cls(tuple(_parts(path) for path, _ in pairs), structure)

    def dict(self, tree: Any) -> dict[str, Any]:
        leaves, structure = jax.tree.flatten(tree)
        if structure != self.structure:
            raise SecateurError(
                "the network's constructor gave a different structure for another key; expected "
                "the same layers for every key: draw only the values of the weights from it."
            )
        nested: dict[str, Any] = {}
        for parts, leaf in zip(self.parts, leaves, strict=True):
            place = nested
            for part in parts[:-1]:
                place = place.setdefault(part, {})
            place[parts[-1]] = leaf
        return nested

    def tree(self, nested: Mapping[str, Any]) -> Any:
        leaves = []
        for parts in self.parts:
            place: Any = nested
            for part in parts:
                place = place[part]
            leaves.append(place)
        return jax.tree.unflatten(self.structure, leaves)


def part(entry: Any) -> str:
    """One step of a JAX path as text."""
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _parts(path: tuple[Any, ...]) -> tuple[str, ...]:
    # nnx ends every path with the attribute that holds the array; a bare array has no path at all.
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name in _HOLDERS:
        path = path[:-1]
    return tuple(part(entry) for entry in path) or ("value",)


_HOLDERS = ("value", "raw_value")


def choose(choice: Choice) -> Callable[[Params], Mask]:
    """`Network.prunable` from a choice by name: True where chosen, None elsewhere."""

    def prunable(params: Params) -> Mask:
        chosen = {
            name: np.ones(np.shape(leaf), bool) if choice(name, leaf) else None
            for name, leaf in flatten(params).items()
        }
        return unflatten(chosen, params)

    return prunable


def ends_in(words: tuple[str, ...]) -> Choice:
    """Leaves of two or more axes whose name ends in one of the words."""
    return lambda name, leaf: name.split("/")[-1] in words and np.ndim(leaf) >= 2


def prepared(prepare: Prepare | None) -> Prepare:
    """``prepare`` over a batch; nothing where there is nothing to prepare."""
    return (lambda x: x) if prepare is None else jax.vmap(prepare)


def construct(constructor: Callable[..., Any], then: Callable[[Any], Any]) -> None:
    """Build once with key 0 as ``key -> model``; a failure is one sentence."""
    try:
        made = call_with_key(constructor, jax.random.key(0))
    except Exception as error:
        raise SecateurError(
            f"calling the constructor with a key failed ({first_line(error)}); expected a function "
            "key -> model: wrap yours as `lambda key: Model(..., key=key)`."
        ) from error
    then(made)


def call_with_key(constructor: Callable[..., Any], key: Any) -> Any:
    """``constructor(key=key)`` where the argument is called so, else ``constructor(key)``."""
    if "key" in parameter_names(constructor):
        return constructor(key=key)
    return constructor(key)


def finished_model(function: str, argument: str) -> SecateurError:
    """The error for a model where a constructor is needed."""
    return SecateurError(
        f"{function} was given a finished model, whose weights cannot be drawn again for another "
        f"seed: give a constructor, {argument} -> model, or same_start=True to start every seed "
        "from these weights."
    )


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def finish(network: Network) -> Network:
    """The network with its number of outputs, once it has shown that it keeps the contract.

    It is traced, not run, with batches of 2 and 3 examples in both modes.

    Raises:
        SecateurError: if it fails, or does not give logits (n, outputs), or changes the structure
            of its statistics while training, or has nothing to prune.
    """
    dtype = jnp.result_type(float)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, stats = _trace(network, "init", network.init, key)
    outputs = 0
    for n in (2, 3):
        x = jax.ShapeDtypeStruct((n, *network.input_shape), dtype)
        logits = _trace(network, f"evaluation of {x.shape}", network.apply, params, stats, x)
        trained = _trace(network, f"training on {x.shape}", network.train, params, stats, x, key)
        for mode, made in (("evaluation", logits), ("training", trained[0])):
            shape = getattr(made, "shape", None)
            if shape is None or len(shape) != 2 or shape[0] != n:
                what = f"shape {shape}" if shape is not None else f"a {type(made).__name__}"
                raise SecateurError(
                    f"network {network.name!r} gives {what} in {mode} for inputs of shape "
                    f"{x.shape}; expected logits of shape ({n}, outputs): flatten its output to "
                    "one row an example."
                )
        outputs = int(logits.shape[1])
        if _shapes(trained[1]) != _shapes(stats):
            raise SecateurError(
                f"network {network.name!r} changes the structure of its statistics in training: "
                "expected the same names, shapes and dtypes as init gives; make them in init."
            )
    if all(leaf is None for leaf in flatten(network.prunable(params)).values()):
        raise SecateurError(
            f"network {network.name!r} has no weights to prune among its leaves "
            f"{', '.join(sorted(flatten(params))[:8]) or '(none)'}: say which with "
            "prunable=lambda name, leaf: ..."
        )
    return replace(network, outputs=outputs)


def _trace(network: Network, what: str, function: Callable[..., Any], *args: Any) -> Any:
    try:
        return jax.eval_shape(function, *args)
    except SecateurError:
        raise
    except Exception as error:
        raise SecateurError(
            f"network {network.name!r} failed in {what} ({first_line(error)}); expected it to "
            f"take batches (n, {', '.join(map(str, network.input_shape))}): correct input_shape, "
            "or give prepare=, a function from one example to what the network takes."
        ) from error


def _shapes(tree: Any) -> dict[str, tuple[Any, ...]]:
    return {name: (leaf.shape, leaf.dtype) for name, leaf in flatten(tree).items()}
