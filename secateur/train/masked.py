"""Optimisers that keep a ticket sparse, in `fit` and in a training loop of one's own.

Zeroing the gradient alone is not enough: coupled weight decay, momentum carried over and noise all
move a pruned weight, and a mask in the forward pass alone leaves dense moments behind. So gradients
are masked before the optimiser sees them, and updates after it has spoken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from secateur.core.errors import SecateurError, nearest
from secateur.core.trees import Mask, apply_mask, flatten, map_mask


def masked(
    inner: optax.GradientTransformation, mask: Mask
) -> optax.GradientTransformationExtraArgs:
    """``inner`` confined to the surviving weights: gradients masked before it, updates after it.

    Pruned weights that start at 0 stay exactly 0, and so do their moments in the optimiser's state,
    whatever ``inner`` is: momentum, Adam, weight decay coupled or decoupled, a schedule. Clipping
    by the global norm inside ``inner`` sees the survivors alone. (Noise that ``inner`` adds reaches
    its moments, but no pruned weight.) The mask may be traced: it is data of the compiled program.

    Args:
        mask: the structure of the parameters, booleans, ``None`` where nothing is pruned. A
            ticket's mask is a nested dict; for parameters of another structure (an Equinox model,
            an nnx state) its leaves are found by name, as `put` finds them.

    Raises:
        SecateurError: when it is used, if a leaf of the mask is not among the parameters or has
            another shape there.
    """
    inner = optax.with_extra_args_support(inner)

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        own = mask_like(mask, grads)
        updates, state = inner.update(apply_mask(own, grads), state, params, **extra)
        return apply_mask(own, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def put(leaves: Any, model: Any) -> Any:
    """``model`` with the leaves of a ticket in their places, found by name.

    ``put(ticket.params, model)`` gives a model of your own library the ticket's weights: an
    Equinox model, an nnx state, or the dict of parameters of Flax linen or of plain JAX. A name is
    the way to a leaf, ``layers/0/weight``, as `secateur.adapt` and the ticket name it. Leaves of
    the model that the ticket does not have stay as they are.

    Raises:
        SecateurError: for a leaf of the ticket that is not in the model, or has another shape.
    """
    found = _by_name(leaves, model)
    paired, structure = _named(model)
    kept = [found.get(name, leaf) for name, leaf in paired]
    return jax.tree.unflatten(structure, kept)


def mask_like(mask: Mask, tree: Any) -> Mask:
    """The mask in the structure of ``tree``: itself if it has it, else leaf by leaf by name.

    Raises:
        SecateurError: for a leaf of the mask that is not in the tree, or has another shape.
    """
    paired, structure = _named(tree)
    if jax.tree.structure(mask, is_leaf=_is_none) == structure:
        return mask
    found = _by_name(mask, tree)
    return jax.tree.unflatten(structure, [found.get(name) for name, _ in paired])


def _is_none(leaf: object) -> bool:
    return leaf is None


def _named(tree: Any) -> tuple[list[tuple[str, Any]], Any]:
    """(name, leaf) of all leaves, ``None`` included, and the structure."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_none)
    return [(_name(path), leaf) for path, leaf in pairs], structure


def _name(path: tuple[Any, ...]) -> str:
    # nnx ends every path with the attribute that holds the array, which is no part of the name.
    last = path[-1] if path else None
    if isinstance(last, jax.tree_util.GetAttrKey) and last.name in ("value", "raw_value"):
        path = path[:-1]
    parts = (
        next((getattr(p, a) for a in ("key", "name", "idx") if hasattr(p, a)), p) for p in path
    )
    return "/".join(map(str, parts))


def _by_name(leaves: Any, model: Any) -> dict[str, Any]:
    """The leaves of a ticket that are not None, once each has a place of its shape in ``model``."""
    known: Mapping[str, Any] = dict(_named(model)[0])
    found = {name: leaf for name, leaf in flatten(leaves).items() if leaf is not None}
    for name, leaf in found.items():
        if known.get(name) is None:
            raise SecateurError(
                f"the ticket's {name} is no parameter of this model. {nearest(name, list(known))}"
            )
        if np.shape(known[name]) != np.shape(leaf):
            raise SecateurError(
                f"the ticket's {name} has shape {np.shape(leaf)}, the model's "
                f"{np.shape(known[name])}; build the model that the ticket was found for."
            )
    return found


def leak(mask: Mask, params: Any, state: Any) -> jax.Array:
    """The largest magnitude at a pruned place, in the parameters and every moment of the state.

    Moments are the subtrees of ``state`` with the structure and shapes of ``params``. Exactly 0
    when the mask was respected. The mask may be a ticket's, as for `masked`.
    """
    shape: Any = jax.tree.structure(params)
    own = mask_like(mask, params)

    def outside(tree: Any) -> list[jax.Array]:
        found = map_mask(
            lambda m, p: None if m is None else jnp.max(jnp.where(m, 0, jnp.abs(p)), initial=0),
            own,
            tree,
        )
        return jax.tree.leaves(found)

    moments = jax.tree.leaves(state, is_leaf=lambda node: jax.tree.structure(node) == shape)
    trees = [params, *(node for node in moments if jax.tree.structure(node) == shape)]
    return jnp.max(jnp.stack([x for tree in trees for x in outside(tree)] or [jnp.zeros(())]))
