"""Masks and parameters as trees, and by name.

A mask has the structure of the parameters, with a boolean array where weights may be pruned and
``None`` where nothing may be. ``None`` is an empty subtree to JAX, so every function here walks the
mask first and treats ``None`` as a leaf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError

Params = Any  # PyTree[Array]
Mask = Any  # PyTree[Bool[Array, "..."] | None], the structure of Params


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(
        str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", getattr(p, "value", p)))))
        for p in path
    )


def _is_none(leaf: object) -> bool:
    return leaf is None


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves by name, ``{"dense_1/kernel": array}``, in JAX's order; ``None`` leaves are kept.

    Raises:
        SecateurError: for two leaves of one name: ``{"a/b": x, "a": {"b": y}}``.
    """
    pairs = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_none)[0]
    flat = {_name(path): leaf for path, leaf in pairs}
    if len(flat) != len(pairs):
        names = [_name(path) for path, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise SecateurError(f"two parameters are called {twice!r}; give one of them another name.")
    return flat


def unflatten(flat: Mapping[str, Any], like: Any) -> Any:
    """The tree with the structure of ``like`` and the leaves of ``flat``, by name.

    Raises:
        KeyError: if a leaf of ``like`` is missing in ``flat``.
    """
    pairs, structure = jax.tree_util.tree_flatten_with_path(like, is_leaf=_is_none)
    return jax.tree_util.tree_unflatten(structure, [flat[_name(path)] for path, _ in pairs])


def map_mask(f: Callable[..., Any], mask: Mask, *trees: Any) -> Any:
    """``f(m, *leaves)`` for each leaf; ``m`` is ``None`` where nothing may be pruned."""
    return jax.tree.map(f, mask, *trees, is_leaf=_is_none)


def apply_mask(mask: Mask, params: Params) -> Params:
    """``m * theta``; a NaN under a pruned place becomes 0, unlike with a product."""
    return map_mask(
        lambda m, p: p if m is None else jnp.where(m, p, 0).astype(p.dtype), mask, params
    )


def ones_mask(prunable: Mask) -> Mask:
    """The mask that keeps every prunable weight, as numpy arrays."""
    return map_mask(lambda m: None if m is None else np.ones(np.shape(m), bool), prunable)


def alive(mask: Mask) -> dict[str, int]:
    """Surviving weights of each prunable leaf, by name."""
    return {k: int(np.sum(np.asarray(m))) for k, m in flatten(mask).items() if m is not None}


def sizes(mask: Mask) -> dict[str, int]:
    """All prunable weights of each prunable leaf, by name."""
    return {k: int(np.size(m)) for k, m in flatten(mask).items() if m is not None}


def density(mask: Mask) -> float:
    """Kept over prunable weights. Biases and norms are not prunable and are not counted."""
    return sum(alive(mask).values()) / sum(sizes(mask).values())


def fingerprint(tree: Any) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all leaves: equal only for equal bits."""
    digest = hashlib.sha256()
    for name, leaf in flatten(tree).items():
        if leaf is None:
            continue
        array = np.ascontiguousarray(np.asarray(leaf))
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
