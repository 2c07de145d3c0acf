"""Spectra of weights: what is more than noise, and how many directions a layer needs.

A layer's W has m units and n inputs. Entries that are independent, of variance v, give W W^T the
eigenvalues of Marchenko & Pastur (1967), of scale n v and ratio m / n; what training adds stands
above their edge. Under a mask at random of density rho they are those of v -> rho v; a mask by
magnitude keeps the large entries, and nothing of the kind holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.core.trees import Params, flatten, unflatten
from secateur.features.directions import host_rows

# Quantiles of the Tracy-Widom distribution of real matrices (beta = 1; Johnstone 2001, table 2).
TRACY_WIDOM = {"0.9": 0.4501, "0.95": 0.9793, "0.99": 2.0234}


@dataclass(frozen=True)
class MarchenkoPastur:
    """Eigenvalues of Z Z^T / n, Z (m, n) of independent entries, as m and n grow together.

    Attributes:
        ratio: q = m / n > 0.
        variance: s^2 of the entries of Z; of W W^T take n v.
    """

    ratio: float
    variance: float = 1.0

    def __post_init__(self) -> None:
        if not (self.ratio > 0 and self.variance > 0):
            raise SecateurError(
                f"ratio and variance are {self.ratio} and {self.variance}; both must be above 0."
            )

    @property
    def edges(self) -> tuple[float, float]:
        """s^2 (1 -+ sqrt q)^2: where the density begins and ends."""
        root = np.sqrt(self.ratio)
        return self.variance * (1 - root) ** 2, self.variance * (1 + root) ** 2

    @property
    def point_mass(self) -> float:
        """The share of eigenvalues that are exactly 0: 1 - 1 / q where units are more."""
        return max(0.0, 1 - 1 / self.ratio)

    def density(self, values: Any) -> np.ndarray:
        """sqrt((l+ - l)(l - l-)) / (2 pi s^2 q l) between the edges, else 0; without the mass."""
        l = np.asarray(values, np.float64)
        low, high = self.edges
        inside = (l > low) & (l < high)
        safe = np.where(inside, l, 1.0)
        root = np.sqrt(np.where(inside, (high - safe) * (safe - low), 0))
        return root / (2 * np.pi * self.variance * self.ratio * safe)


@dataclass(frozen=True)
class Signal:
    """Eigenvalues of a layer's W W^T beside those of noise.

    Attributes:
        values: (m,), falling; m the units with weights.
        law: what noise of ``variance`` would have.
        threshold: above it an eigenvalue counts as signal.
        count: how many do.
    """

    values: np.ndarray
    law: MarchenkoPastur
    threshold: float
    count: int


def above_noise(
    kernel: Any, mask: Any = None, *, variance: float | None = None, quantile: str = "0.99"
) -> Signal:
    """Eigenvalues of W W^T above Marchenko and Pastur's edge, with slack for finite sizes.

    The largest eigenvalue of m x n Gaussian noise lies about (sqrt(n - 1) + sqrt m)^2 v and
    scatters as Tracy and Widom's law times (sqrt(n - 1) + sqrt m)(1 / sqrt(n - 1) + 1 / sqrt m)^1/3
    (Johnstone 2001): beyond the edge by a factor of order m^-2/3. The threshold is its quantile.

    Args:
        variance: v of the entries that are noise; that of the initialisation asks what training
            has added. None: the mean square of the entries, which signal makes too large, so that
            the count is from below. Over all places, masked ones too.
        quantile: a key of TRACY_WIDOM: how often noise alone stays below.

    Raises:
        SecateurError: for an unknown quantile, or a kernel of zeros.
    """
    slack = lookup("quantile", quantile, TRACY_WIDOM)
    w = host_rows(kernel, mask)
    w = w[np.any(w != 0, axis=1)]
    m, n = w.shape
    if not m:
        raise SecateurError("the kernel is zero: it has no spectrum to tell from noise.")
    v = float(np.mean(w**2)) if variance is None else variance
    law = MarchenkoPastur(m / n, n * v)
    values = np.zeros(m)
    found = np.linalg.svd(w, compute_uv=False) ** 2
    values[: len(found)] = found
    a, b = np.sqrt(max(n - 1, 1)), np.sqrt(m)
    threshold = v * ((a + b) ** 2 + slack * (a + b) * (1 / a + 1 / b) ** (1 / 3))
    return Signal(values, law, float(threshold), int(np.sum(values > threshold)))


def truncated(params: Params, layer: str, rank: int) -> Params:
    """Parameters in which a kernel is its best approximation of this rank; in float64, cast back.

    A kernel (..., units) is taken as the matrix of its units' weight vectors, so that filters of a
    convolution are flattened. Entries that were 0 under a mask no longer are.

    Raises:
        SecateurError: for a leaf that there is not, is no matrix, or has no such rank.
    """
    flat = flatten(params)
    leaf = np.asarray(lookup("layer", layer, flat))
    _fits(leaf, layer, rank)
    u, s, v = np.linalg.svd(np.asarray(leaf, np.float64).reshape(-1, leaf.shape[-1]), False)
    small = (u[:, :rank] * s[:rank]) @ v[:rank]
    return unflatten(flat | {layer: small.reshape(leaf.shape).astype(leaf.dtype)}, params)


@dataclass(frozen=True)
class Truncation:
    """What a layer's rank-k approximations keep, for rising k.

    Attributes:
        ranks: (K,).
        kept: |W_k| / |W|, Frobenius.
        residual: |W - W_k| / |W|.
        accuracy: of the network with W_k in place of W; empty where it was not evaluated.
        whole: accuracy of the network as it is; NaN where it was not evaluated.
    """

    ranks: np.ndarray
    kept: np.ndarray
    residual: np.ndarray
    accuracy: np.ndarray
    whole: float

    @property
    def drop(self) -> np.ndarray:
        """What is lost of the accuracy."""
        return self.whole - self.accuracy

    @property
    def elbow(self) -> int:
        """The rank at which the residual's curve lies furthest below the line between its ends.

        Both axes scaled to [0, 1] ("kneedle", Satopaa et al. 2011). An elbow by eye is another
        number; the lowest rank where the curve has no bend.
        """
        k, r = self.ranks.astype(float), self.residual
        if len(k) < 3 or r[0] == r[-1]:
            return int(self.ranks[0])
        below = (1 - (k - k[0]) / (k[-1] - k[0])) - (r - r[-1]) / (r[0] - r[-1])
        return int(self.ranks[int(np.argmax(below))])


def truncation(
    params: Params,
    layer: str,
    ranks: Sequence[int] | None = None,
    evaluate: Callable[[Params], float] | None = None,
) -> Truncation:
    """The curve of a layer's rank-k approximations, put back into the network one by one.

    Args:
        ranks: rising; None: from 0 to the kernel's smaller side.
        evaluate: parameters -> accuracy, e.g. from `train.evaluation.evaluator`; None: norms only.

    Raises:
        SecateurError: as `truncated`, for ranks that do not rise, or a kernel that is zero.
    """
    leaf = np.asarray(lookup("layer", layer, flatten(params)), np.float64)
    whole = min(leaf.reshape(-1, leaf.shape[-1]).shape) if leaf.ndim >= 2 else 0
    tried = np.asarray(range(whole + 1) if ranks is None else list(ranks), int)
    if not len(tried) or np.any(np.diff(tried) <= 0):
        raise SecateurError(f"ranks are {tried.tolist()}; give one or more of them, rising.")
    for rank in (tried[0], tried[-1]):
        _fits(leaf, layer, int(rank))
    squares = np.linalg.svd(leaf.reshape(-1, leaf.shape[-1]), compute_uv=False) ** 2
    if not squares.sum():
        raise SecateurError(f"{layer!r} is zero: it has no rank to cut.")
    head = np.concatenate([[0.0], np.cumsum(squares)]) / squares.sum()
    tail = np.concatenate([np.cumsum(squares[::-1])[::-1], [0.0]]) / squares.sum()
    found = [] if evaluate is None else [evaluate(truncated(params, layer, int(k))) for k in tried]
    at_all = float("nan") if evaluate is None else float(evaluate(params))
    return Truncation(
        tried, np.sqrt(head[tried]), np.sqrt(tail[tried]), np.asarray(found, float), at_all
    )


def _fits(leaf: np.ndarray, layer: str, rank: int) -> None:
    if leaf.ndim < 2:
        raise SecateurError(f"{layer!r} has shape {leaf.shape}; only kernels have a rank to cut.")
    most = min(leaf.reshape(-1, leaf.shape[-1]).shape)
    if not 0 <= rank <= most:
        raise SecateurError(f"the rank is {rank}; {layer!r} has 0 to {most}.")
