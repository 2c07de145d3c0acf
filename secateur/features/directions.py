"""Where the weight vectors of a layer point: cosines, turns, clusters, subspaces.

A unit's weight vector is the part of a kernel (..., units) with its index, flattened: a column of a
dense layer, a filter of a convolution. Biases are left out. In a masked network vectors live on
the weights that are left; two with no place in common are orthogonal whatever they learn, so that
cosines are to be read beside those of the same supports by chance (`features.frames.expected`).
Units without weights have no direction: their cosines are 0, their turn is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.cluster import hierarchy
from scipy.linalg import orth
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform

from secateur.core.errors import SecateurError, lookup


def rows(kernel: Any, mask: Any = None) -> jax.Array:
    """The weight vectors of a kernel (..., units) as rows, (units, weights of one)."""
    w = jnp.asarray(kernel)
    if mask is not None:
        w = jnp.where(jnp.asarray(mask), w, 0)
    return jnp.reshape(w, (-1, w.shape[-1])).T


def host_rows(kernel: Any, mask: Any = None) -> np.ndarray:
    """`rows` in float64 on the host."""
    w = np.asarray(kernel, np.float64)
    if mask is not None:
        w = np.where(np.asarray(mask), w, 0)
    return w.reshape(-1, w.shape[-1]).T


def unit_rows(kernel: Any, mask: Any = None) -> jax.Array:
    """`rows` of length 1; of units without weights, 0."""
    w = rows(kernel, mask)
    length = jnp.linalg.norm(w, axis=1, keepdims=True)
    return w / jnp.where(length > 0, length, 1)


def norms(kernel: Any, mask: Any = None) -> jax.Array:
    """Length of each unit's weight vector, (units,)."""
    return jnp.linalg.norm(rows(kernel, mask), axis=1)


def cosines(kernel: Any, mask: Any = None) -> jax.Array:
    """Between all pairs of units, (units, units); 1 on the diagonal, 0 for one without weights."""
    w = unit_rows(kernel, mask)
    return w @ w.T


def cosines_between(first: Any, second: Any) -> jax.Array:
    """Between units of two kernels of the same inputs, (units, units')."""
    return unit_rows(first) @ unit_rows(second).T


def turned(start: Any, now: Any, mask: Any = None) -> jax.Array:
    """Degrees by which each unit has turned, (units,); NaN for one without weights.

    By 2 atan2(|u - v|, |u + v|), exact for small angles too, where an arccos has lost its digits.
    """
    u, v = unit_rows(start, mask), unit_rows(now, mask)
    angle = 2 * jnp.arctan2(jnp.linalg.norm(u - v, axis=1), jnp.linalg.norm(u + v, axis=1))
    there = jnp.any(u != 0, axis=1) & jnp.any(v != 0, axis=1)
    return jnp.where(there, jnp.degrees(angle), jnp.nan)


@dataclass(frozen=True)
class Clusters:
    """Groups of units that point the same way.

    Attributes:
        labels: (units,) int, 0 for the cluster with most units and so on; -1 for units without
            weights.
        sizes: units of each cluster, falling.
        centres: (clusters, weights), the mean direction of each, of length 1 (0 where the members
            cancel).
        angles: (units,), degrees from each unit to its cluster's centre; NaN without one.
        largest: (clusters,), the largest weight vector's length in each.
    """

    labels: np.ndarray
    sizes: np.ndarray
    centres: np.ndarray
    angles: np.ndarray
    largest: np.ndarray


CLUSTERINGS = {
    "components": "connected components of the graph of pairs with a cosine above the cutoff",
    "average": "merged while the mean cosine between two clusters is above the cutoff",
}


def clusters(
    kernel: Any,
    cutoff: float = 0.5,
    *,
    mask: Any = None,
    how: str = "average",
    signed: bool = True,
) -> Clusters:
    """Clusters of directions, without a number of clusters given beforehand; float64, host.

    Args:
        cutoff: a cosine: 1 puts no two units together, -1 all of them.
        how: "average" (hierarchical, average linkage) or "components" (single linkage, as
            Heitmann's alignment graph shows it: long chains of neighbours are one cluster).
        signed: opposite units are far apart; False: they are alike, as to the frame potential.

    Raises:
        SecateurError: for an unknown way, or a cutoff that is no cosine.
    """
    lookup("way to cluster", how, CLUSTERINGS)
    if not -1 <= cutoff <= 1:
        raise SecateurError(f"the cutoff is {cutoff}; it is a cosine, from -1 to 1.")
    w = host_rows(kernel, mask)
    length = np.linalg.norm(w, axis=1)
    alive = np.flatnonzero(length)
    unit = w[alive] / length[alive, None]
    x = np.clip(unit @ unit.T, -1, 1)
    x = x if signed else np.abs(x)
    if len(alive) < 2:
        found = np.zeros(len(alive), int)
    elif how == "components":
        found = connected_components(x > cutoff, directed=False)[1]
    else:
        apart = 1 - x
        np.fill_diagonal(apart, 0)
        tree = hierarchy.linkage(squareform(apart, checks=False), "average")
        # Strictly nearer than the cutoff, as for components.
        near = np.nextafter(1 - cutoff, -1)
        found = hierarchy.fcluster(tree, near, "distance") - 1
    order = np.argsort(-np.bincount(found, minlength=0), kind="stable")
    place = np.argsort(order)
    labels = np.full(len(w), -1)
    labels[alive] = place[found] if len(alive) else []
    count = len(order)
    centres, largest = np.zeros((count, w.shape[1])), np.zeros(count)
    angles = np.full(len(w), np.nan)
    for k in range(count):
        members = alive[labels[alive] == k]
        own = w[members] / length[members, None]
        if not signed:  # turned to the side of the first
            own = own * np.where(own @ own[0] < 0, -1, 1)[:, None]
        mean = own.mean(axis=0)
        size = np.linalg.norm(mean)
        largest[k] = length[members].max()
        if size > 1e-12:
            centres[k] = mean / size
            across = np.linalg.norm(own - centres[k], axis=1)
            along = np.linalg.norm(own + centres[k], axis=1)
            angles[members] = np.degrees(2 * np.arctan2(across, along))
    return Clusters(labels, np.bincount(labels[alive], minlength=count), centres, angles, largest)


def subspace(kernel: Any, rank: int, *, mask: Any = None) -> np.ndarray:
    """An orthonormal basis (weights of a unit, rank) of what a layer reads most of: float64.

    The leading singular vectors, on the side of the inputs, of the units' weight vectors.

    Raises:
        SecateurError: for a rank that the kernel has not.
    """
    w = host_rows(kernel, mask)
    _, values, basis = np.linalg.svd(w, full_matrices=False)
    there = int(np.sum(values > max(w.shape) * np.finfo(float).eps * values[0])) if w.size else 0
    if not 1 <= rank <= there:
        raise SecateurError(f"the rank is {rank}; this kernel of rank {there} has 1 to {there}.")
    return basis[:rank].T


def principal_angles(first: Any, second: Any) -> np.ndarray:
    """Degrees between the spaces that the columns of (n, k) and (n, l) span, rising.

    Cosines are the singular values of U^T V; angles below 45 degrees come from sines, the singular
    values of V - U U^T V, as cosines lose half the digits there (Bjorck & Golub 1973). Float64.
    scipy.linalg.subspace_angles (1.17) means the same, but chooses in the wrong order: where one
    angle is large, a small one is the arccos after all.

    Raises:
        SecateurError: for spaces in different dimensions.
    """
    u, v = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if u.ndim != 2 or v.ndim != 2 or len(u) != len(v):
        raise SecateurError(
            f"bases have shapes {u.shape} and {v.shape}; expected (n, k) and (n, l) of the same n."
        )
    u, v = orth(u), orth(v)
    if u.shape[1] < v.shape[1]:
        u, v = v, u
    along = u.T @ v
    cosines = np.linalg.svd(along, compute_uv=False)  # falling
    sines = np.linalg.svd(v - u @ along, compute_uv=False)[::-1]  # rising, as the angles
    small = cosines**2 > 0.5
    found = np.where(small, np.arcsin(np.clip(sines, 0, 1)), np.arccos(np.clip(cosines, 0, 1)))
    return np.degrees(found)


def overlap(first: Any, second: Any) -> float:
    """The mean squared cosine of the principal angles: 1 for one inside the other; k / n by chance.

    By chance: of one of the spaces of dimension k in n dimensions, the larger where they differ.
    """
    return float(np.mean(np.cos(np.radians(principal_angles(first, second))) ** 2))
