"""Optimisers that keep a ticket sparse.

Zeroing the gradient alone is not enough: coupled weight decay, momentum carried over and noise all
move a pruned weight, and a mask in the forward pass alone leaves dense moments behind. So gradients
are masked before the optimiser sees them, and updates after it has spoken.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from secateur.core.trees import Mask, apply_mask, map_mask


def masked(inner: optax.GradientTransformation, mask: Mask) -> optax.GradientTransformation:
    """``inner`` confined to the surviving weights: gradients masked before it, updates after it.

    Pruned weights that start at 0 stay exactly 0, and so do their moments in the optimiser's
    state. The mask may be traced: it is data of the compiled program, not part of it.

    Args:
        mask: the structure of the parameters, booleans, ``None`` where nothing is pruned.
    """

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(apply_mask(mask, grads), state, params)
        return apply_mask(mask, updates), state

    return optax.GradientTransformation(inner.init, update)


def leak(mask: Mask, params: Any, state: Any) -> jax.Array:
    """The largest magnitude at a pruned place, in the parameters and every moment of the state.

    Moments are the subtrees of ``state`` with the structure and shapes of ``params``. Exactly 0
    when the mask was respected.
    """
    shape: Any = jax.tree.structure(params)

    def outside(tree: Any) -> list[jax.Array]:
        found = map_mask(
            lambda m, p: None if m is None else jnp.max(jnp.where(m, 0, jnp.abs(p)), initial=0),
            mask,
            tree,
        )
        return jax.tree.leaves(found)

    moments = jax.tree.leaves(state, is_leaf=lambda node: jax.tree.structure(node) == shape)
    trees = [params, *(node for node in moments if jax.tree.structure(node) == shape)]
    return jnp.max(jnp.stack([x for tree in trees for x in outside(tree)] or [jnp.zeros(())]))
