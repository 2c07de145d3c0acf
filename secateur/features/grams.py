"""Gram matrices of what goes through the layers of a network, and how far two networks' lie apart.

    H (P, units): what P examples are in a layer;    G = H H^T, (P, P)

Kumar (figure 5) takes the pre-activations H = X W^T of a ticket and of its dense parent at equal
steps on the same examples, and |G_ticket - G_parent|_F. That distance mixes scale and direction:
at the start a ticket of density rho has about rho times its parent's G. So it is given raw, over
the parent's norm, and with alignments, which do not see scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.network import Network, Stats
from secateur.core.trees import Params
from secateur.kernels.alignment import kernel_alignment
from secateur.structure.layers import layer_values


@dataclass(frozen=True)
class Gram:
    """How a Gram matrix is taken. The defaults are Kumar's: H H^T and nothing else.

    A unit that no path of weights reaches, or leaves, is the same for all examples: it adds a
    constant to every entry of a Gram matrix that is not centred.

    Attributes:
        side: "pre", "post" or "in" (`structure.layers.SIDES`): pre-activations, activations, or
            what enters the layer. Of a convolution all positions of all maps are features.
        centred: features less their means over the examples, which is H_c K H_c of the kernel.
        per_feature: divided by the number of features, so that widths compare.
        per_example: divided by the number of examples, so that eigenvalues keep their size as
            examples are added.
    """

    side: str = "pre"
    centred: bool = False
    per_feature: bool = False
    per_example: bool = False

    def of(self, features: jax.Array) -> jax.Array:
        """The Gram matrix (n, n) of features (n, ...)."""
        h = jnp.reshape(features, (features.shape[0], -1))
        if self.centred:
            h = h - jnp.mean(h, axis=0)
        size = (h.shape[1] if self.per_feature else 1) * (h.shape[0] if self.per_example else 1)
        return h @ h.T / size


KUMAR = Gram()


def grams(
    network: Network,
    params: Params,
    stats: Stats,
    x: jax.Array,
    form: Gram = KUMAR,
    *,
    layers: Sequence[str] | None = None,
) -> dict[str, jax.Array]:
    """Kernel -> the Gram matrix (n, n) of its layer; may be traced and mapped over.

    Args:
        params: as they are used: give a ticket's masked ones.
        x: (n, *input_shape), the same examples for what shall be compared.
        layers: kernels, by name; None: all that can be read.

    Raises:
        SecateurError: for a layer that is none, or that cannot be read, with the reason.
    """
    values = layer_values(network, params, stats, x, side=form.side, layers=layers)
    return {name: form.of(h) for name, h in values.items()}


@dataclass(frozen=True)
class Distance:
    """How far two Gram matrices of the same examples lie apart.

    Attributes:
        raw: |G - G'|_F, as Kumar plots it.
        relative: over |G'|_F; None where G' is 0.
        alignment: <G, G'> / (|G| |G'|): 1 for equal up to scale; None where one of them is 0.
        centred_alignment: the same of the centred matrices (linear CKA); None where the features
            of one are the same for all examples.
    """

    raw: float
    relative: float | None
    alignment: float | None
    centred_alignment: float | None


def gram_distance(first: Any, second: Any) -> Distance:
    """How far ``first`` (a ticket's Gram) lies from ``second`` (its parent's); float64.

    Raises:
        SecateurError: for what are not two square matrices of one size.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or a.shape != b.shape:
        raise SecateurError(
            f"Gram matrices of shapes {a.shape} and {b.shape} cannot be compared; give two (n, n) "
            "of the same examples."
        )
    size, raw = float(np.linalg.norm(b)), float(np.linalg.norm(a - b))
    return Distance(
        raw, raw / size if size else None, _aligned(a, b, "plain"), _aligned(a, b, "centred")
    )


def gram_distances(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Distance]:
    """`gram_distance` layer by layer, of the layers that both have.

    Raises:
        SecateurError: where they have none in common, or as `gram_distance`.
    """
    common = [name for name in first if name in second]
    if not common:
        raise SecateurError(
            f"the networks have no layer in common: {', '.join(first)} and {', '.join(second)}."
        )
    return {name: gram_distance(first[name], second[name]) for name in common}


def over_training(first: Any, second: Any) -> dict[str, np.ndarray]:
    """Distances at each of T records, (T,) each: "raw", "relative", "alignment", ...

    Args:
        first, second: (T, n, n), at equal steps (`features.records.gram_record`).

    Returns:
        NaN where a number is None.

    Raises:
        SecateurError: as `gram_distance`, and for different numbers of records.
    """
    if len(first) != len(second):
        raise SecateurError(
            f"there are {len(first)} and {len(second)} records; take both at the same steps."
        )
    found = [gram_distance(a, b) for a, b in zip(first, second)]
    names = ("raw", "relative", "alignment", "centred_alignment")
    return {k: np.array([getattr(d, k) for d in found], np.float64) for k in names}


def _aligned(a: np.ndarray, b: np.ndarray, form: str) -> float | None:
    try:
        return kernel_alignment(a, b, form=form)
    except SecateurError:  # one of them is zero in this form
        return None
