"""The alignment graph of a layer over training, as data for a figure (Heitmann 2020).

Nodes are units, drawn as large as their weight vector is long; edges join units that point the same
way, X = <w_i, w_j> of their directions:

    text    A = exp(-d^2 / s^2),  d^2 = 1 - X
    code    A = exp(-d^2 / s^2),  d = (1 - X) / 2,  s the mean of d over all snapshots and all
            pairs, the diagonal of zeros included

They differ by a square and a factor; the text leaves s open. At s = 1/2, what the code finds for
directions at random, an orthogonal pair has A = 1 / e in the code. It drops edges below 0.37 and
units after the first 512.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from secateur.core.errors import SecateurError, lookup
from secateur.features.directions import host_rows

DEFINITIONS = {"text": "d^2 = 1 - X", "code": "d = (1 - X) / 2"}
LOWEST, MOST = 0.37, 512  # of the published figures: the weakest edge, the units of a layer


@dataclass(frozen=True)
class Edges:
    """The edges of one snapshot, those of the largest weight first.

    Attributes:
        pairs: (edges, 2) int, i < j.
        weights: (edges,), A in (0, 1].
        cosines: (edges,), X.
    """

    pairs: np.ndarray
    weights: np.ndarray
    cosines: np.ndarray

    def above(self, cutoff: float) -> Edges:
        """The edges of at least this weight."""
        count = int(np.sum(self.weights >= cutoff))
        return Edges(self.pairs[:count], self.weights[:count], self.cosines[:count])


@dataclass(frozen=True)
class AlignmentGraph:
    """A layer's units over T snapshots of its training.

    Attributes:
        definition: of the weights, "text" or "code".
        scale: s.
        norms: (T, units), lengths of the weight vectors; units without weights have no edges.
        edges: one `Edges` a snapshot.
        units: of the layer; more than nodes where it was cut.
        networks: (units,) int, which network a node is of, where several were merged.
    """

    definition: str
    scale: float
    norms: np.ndarray
    edges: tuple[Edges, ...]
    units: int
    networks: np.ndarray

    def radii(self, smallest: float = 2.0, largest: float = 12.0) -> np.ndarray:
        """(T, units), growing with the norm to ``largest`` for the longest vector of all times."""
        top = self.norms.max()
        return smallest + (largest - smallest) * (self.norms / top if top else self.norms)

    def cosine_at(self, cutoff: float) -> float:
        """The inner product of a pair whose edge has this weight: for a slider of cutoffs."""
        return cosine_at(cutoff, self.scale, self.definition)

    def components(self, cutoff: float, snapshot: int = -1) -> np.ndarray:
        """(units,) int: the connected component of each node, by edges of at least ``cutoff``."""
        pairs = self.edges[snapshot].above(cutoff).pairs
        n = self.norms.shape[1]
        graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (n, n))
        return connected_components(graph, directed=False)[1]

    def component_counts(self, cutoffs: Any, snapshot: int = -1) -> np.ndarray:
        """How many components there are at each cutoff, single nodes included."""
        return np.array([self.components(c, snapshot).max() + 1 for c in np.asarray(cutoffs)])

    def component_sizes(self, cutoff: float, snapshot: int = -1) -> tuple[np.ndarray, np.ndarray]:
        """Of each component: how many nodes, and the longest weight vector in it."""
        labels = self.components(cutoff, snapshot)
        largest = np.zeros(labels.max() + 1)
        np.maximum.at(largest, labels, self.norms[snapshot])
        return np.bincount(labels), largest


def alignment_graph(
    snapshots: Sequence[Any],
    *,
    mask: Any = None,
    definition: str = "code",
    scale: float | None = None,
    lowest: float = LOWEST,
    most: int = MOST,
) -> AlignmentGraph:
    """The graph of a kernel (..., units) at each of T times.

    Two networks in one figure: give kernels side by side, with `merged`.

    Args:
        snapshots: T kernels, or the pairs that `merged` makes.
        definition: "text" or "code"; see DEFINITIONS.
        scale: s; None: the mean of d over all snapshots and pairs, as in the code.
        lowest: edges of less weight are left out.
        most: units after the first ``most`` are left out (of each network).

    Raises:
        SecateurError: for no snapshot, an unknown definition, or a scale that is not positive.
    """
    lookup("definition of the alignment graph", definition, DEFINITIONS)
    if not len(snapshots):
        raise SecateurError("an alignment graph is of one snapshot or more; given none.")
    parts = [shot if isinstance(shot, tuple) else (shot,) for shot in snapshots]
    sizes = [np.shape(kernel)[-1] for kernel in parts[0]]
    joined = [np.concatenate([host_rows(k, mask)[:most] for k in shot]) for shot in parts]
    lengths = np.stack([np.linalg.norm(w, axis=1) for w in joined])
    units = [w / np.where(n > 0, n, 1)[:, None] for w, n in zip(joined, lengths)]
    angles = [np.clip(w @ w.T, -1, 1) for w in units]
    apart = [_distance(x, definition) for x in angles]
    for d in apart:
        np.fill_diagonal(d, 0)
    s = float(np.mean(apart)) if scale is None else scale
    if not s > 0:
        raise SecateurError(
            f"the scale of the alignment graph is {s:g}, expected above 0; where all units point "
            "the same way, give one."
        )
    edges = tuple(_edges(x, d, s, lowest, n > 0) for x, d, n in zip(angles, apart, lengths))
    which = np.repeat(np.arange(len(sizes)), [min(size, most) for size in sizes])
    return AlignmentGraph(definition, s, lengths, edges, sum(sizes), which)


def merged(first: Sequence[Any], second: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Snapshots of two networks' kernels of the same inputs, to be shown in one graph.

    Raises:
        SecateurError: for other numbers of snapshots, or of inputs.
    """
    shapes = {np.shape(k)[:-1] for k in (*first, *second)}
    if len(first) != len(second) or len(shapes) != 1:
        raise SecateurError(
            f"{len(first)} and {len(second)} snapshots of units with inputs {sorted(shapes)} make "
            "no common graph; give as many of both, on the same inputs."
        )
    return list(zip(first, second))


def cosine_at(cutoff: float, scale: float, definition: str = "code") -> float:
    """X = 1 - 2 s sqrt(-ln A) (code), 1 + s^2 ln A (text): the cosine that an edge stands for.

    Raises:
        SecateurError: for a cutoff outside (0, 1].
    """
    lookup("definition of the alignment graph", definition, DEFINITIONS)
    if not 0 < cutoff <= 1:
        raise SecateurError(f"the cutoff is {cutoff}; weights of edges are in (0, 1].")
    log = -np.log(cutoff)
    return float(1 - (2 * scale * np.sqrt(log) if definition == "code" else scale**2 * log))


def _distance(x: np.ndarray, definition: str) -> np.ndarray:
    return (1 - x) / 2 if definition == "code" else np.sqrt(1 - x)


def _edges(x: np.ndarray, d: np.ndarray, s: float, lowest: float, alive: np.ndarray) -> Edges:
    i, j = np.triu_indices(len(x), k=1)
    there = alive[i] & alive[j]
    i, j = i[there], j[there]
    weights = np.exp(-((d[i, j] / s) ** 2))
    kept = np.flatnonzero(weights >= lowest)
    order = kept[np.argsort(-weights[kept], kind="stable")]
    pairs = np.stack([i[order], j[order]], axis=1)
    return Edges(pairs, weights[order], x[i[order], j[order]])
