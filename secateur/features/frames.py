"""Frame potential: how far the weight vectors of a layer are from pointing everywhere alike.

    FP = sum_ij <w_i, w_j>^2 over the m units' directions, the diagonal included

Heitmann, "Sources of redundancy in neural networks" (2020); Benedetto & Fickus 2003. It does not
see signs. What differs between text and code: the text gives FP, the published code FP / m^2 with
the m of the layer before pruning, so that its number falls with pruning even where nothing turns.
Here units without weights are counted out, unless they are asked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import Key
from secateur.features.directions import rows, unit_rows

NORMALISATIONS = {
    "none": "FP itself, from m to m^2",
    "m2": "FP / m^2, from 1 / n to 1",
    "excess": "(FP - E) / (m^2 - E), E that of directions at random: 0 for these, 1 for one line",
}
BASELINES = {
    "isotropic": "every support kept, directions at random on it",
    "permuted": "every support and the weights on it kept, their order at random",
}


class Bounds(NamedTuple):
    """What a potential can be, and is by chance."""

    lowest: float
    highest: float
    random: float


def bounds(units: int, inputs: int) -> Bounds:
    """Of m directions in n dimensions: max(m, m^2 / n) <= FP <= m^2; by chance m + m (m - 1) / n.

    The lower bound is Welch's; tight frames and orthonormal systems reach it.
    """
    m, n = units, inputs
    return Bounds(max(m, m**2 / n), float(m**2), m + m * (m - 1) / n)


def frame_potential(
    kernel: Any,
    mask: Any = None,
    *,
    normalise: str = "none",
    units: str = "alive",
    lengths: bool = False,
) -> jax.Array:
    """The frame potential of a kernel (..., units), a scalar; may be traced and mapped over.

    Args:
        mask: weights outside it are 0; it also says on what support directions are at random.
        normalise: "none", "m2" or "excess"; see NORMALISATIONS. The excess is 0 where there are
            fewer than two units, or all by chance are one line.
        units: "alive" counts units with weights; "all" divides by all, as the published code does.
        lengths: weight vectors as they are, not their directions ("fp_mod" of that code).

    Raises:
        SecateurError: for an unknown word, or an excess of what are no directions.
    """
    lookup("normalisation of the frame potential", normalise, NORMALISATIONS)
    lookup("way to count units", units, {"alive": None, "all": None})
    if lengths and normalise == "excess":
        raise SecateurError("only directions have an excess; take lengths=False.")
    w = rows(kernel, mask) if lengths else unit_rows(kernel, mask)
    # The smaller of the two Gram matrices has the same norm.
    small = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    found = jnp.sum(small**2)
    if normalise == "none":
        return found
    m = _alive(w) if units == "alive" else jnp.asarray(float(w.shape[0]), w.dtype)
    if normalise == "m2":
        return found / jnp.maximum(m, 1) ** 2
    by_chance = expected(kernel, mask)
    room = m**2 - by_chance
    return jnp.where(room > 1e-6 * m, (found - by_chance) / jnp.where(room > 0, room, 1), 0)


def mean_inner_product(kernel: Any, mask: Any = None, *, lengths: bool = False) -> jax.Array:
    """The mean of |<w_i, w_j>| over pairs of different units with weights; 0 without a pair.

    The published code takes the mean over all m^2 pairs of the layer before pruning, the diagonal
    included.
    """
    w = rows(kernel, mask) if lengths else unit_rows(kernel, mask)
    x = jnp.abs(w @ w.T)
    m = _alive(w)
    return (jnp.sum(x) - jnp.trace(x)) / jnp.maximum(m * (m - 1), 1)


def expected(kernel: Any, mask: Any = None, *, baseline: str = "isotropic") -> jax.Array:
    """The potential that the same units would have by chance, in closed form.

    Two directions on supports of s and t weights with o in common have <w_i, w_j>^2 = o / (s t) on
    average if they are isotropic: m + m (m - 1) / n without a mask, more or less with one. For
    ``"permuted"``, sums of entries count too: weights of one sign are alike in any order.

    Args:
        kernel: of the isotropic baseline only its units without weights matter.
        mask: (..., units), the supports; None: where the kernel is not 0.
        baseline: "isotropic" or "permuted"; see BASELINES.

    Raises:
        SecateurError: for an unknown baseline.
    """
    lookup("baseline of the frame potential", baseline, BASELINES)
    w = unit_rows(kernel, mask)
    there = rows(kernel) != 0 if mask is None else rows(jnp.asarray(mask, w.dtype)) != 0
    there = jnp.where(jnp.any(w != 0, axis=1, keepdims=True), there, False).astype(w.dtype)
    size = jnp.sum(there, axis=1)
    some = jnp.where(size > 0, size, 1)
    common = there @ there.T
    pairs = common / (some[:, None] * some[None, :])
    if baseline == "permuted":
        # E a_k a_l for k != l of one row in any order: (sum of entries)^2 less 1, over s (s - 1).
        mixed = (jnp.sum(w, axis=1) ** 2 - (size > 0)) / jnp.maximum(some * (some - 1), 1)
        pairs = pairs + common * (common - 1) * mixed[:, None] * mixed[None, :]
    return _alive(w) + jnp.sum(pairs) - jnp.trace(pairs)


def permuted_potentials(kernel: Any, key: Key, draws: int, mask: Any = None) -> np.ndarray:
    """Potentials of ``draws`` kernels with each unit's weights in a random order on its support.

    A permutation test: the share of them at or above the potential itself is its p-value.

    Returns:
        (draws,), float64.
    """
    w = np.asarray(unit_rows(kernel, mask), np.float64)
    there = np.asarray(rows(kernel) != 0 if mask is None else rows(jnp.asarray(mask)) != 0)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    places = [np.flatnonzero(row) for row in there]
    found = np.zeros(draws)
    for draw in range(draws):
        mixed = np.zeros_like(w)
        for unit, place in enumerate(places):
            mixed[unit, place] = rng.permutation(w[unit, place])
        small = mixed @ mixed.T if len(w) <= w.shape[1] else mixed.T @ mixed
        found[draw] = np.sum(small**2)
    return found


def _alive(w: jax.Array) -> jax.Array:
    return jnp.sum(jnp.any(w != 0, axis=1)).astype(w.dtype)
