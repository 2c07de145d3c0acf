"""Paths one by one: an oracle for flows that multiplies nothing but what a path says.

An activation at a place is the list of paths that end there, each ``(coefficient, weights)``; a
layer makes longer lists. R is then a sum over the lists of the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Path = tuple[float, tuple[tuple[str, tuple[int, ...]], ...]]


def start(input_shape: tuple[int, ...], v: np.ndarray) -> np.ndarray:
    """One path of no weights at each input; v is its coefficient (already to the power it has)."""
    x = np.empty(input_shape, object)
    for place in np.ndindex(*input_shape):
        x[place] = [(float(v[place]), ())]
    return x


def dense(x: np.ndarray, leaf: str, out: int) -> np.ndarray:
    y = np.empty(out, object)
    for t in range(out):
        y[t] = [(c, (*w, (leaf, (j, t)))) for j in range(len(x)) for c, w in x[j]]
    return y


def conv(x: np.ndarray, leaf: str, size: int, out: int, groups: int = 1) -> np.ndarray:
    """SAME, stride 1, odd size."""
    h, w, channels = x.shape
    each, half = channels // groups, size // 2
    y = np.empty((h, w, out), object)
    for a, b, t in np.ndindex(h, w, out):
        found: list[Path] = []
        for i, j, k in np.ndindex(size, size, each):
            r, s = a + i - half, b + j - half
            if 0 <= r < h and 0 <= s < w:
                source = x[r, s, t // (out // groups) * each + k]
                found += [(c, (*ws, (leaf, (i, j, k, t)))) for c, ws in source]
        y[a, b, t] = found
    return y


def times(x: np.ndarray, c: Any) -> np.ndarray:
    """Each path's coefficient times c, an array that broadcasts."""
    c = np.broadcast_to(c, x.shape)
    y = np.empty(x.shape, object)
    for place in np.ndindex(*x.shape):
        y[place] = [(coefficient * float(c[place]), w) for coefficient, w in x[place]]
    return y


def windows(x: np.ndarray, size: int) -> np.ndarray:
    """All paths of each window, stride = size; (h, w, c) -> (h / size, w / size, c)."""
    h, w, c = x.shape
    y = np.empty((h // size, w // size, c), object)
    for a, b, k in np.ndindex(*y.shape):
        patch = x[a * size : (a + 1) * size, b * size : (b + 1) * size, k]
        y[a, b, k] = [path for paths in patch.ravel() for path in paths]
    return y


def added(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    y = np.empty(a.shape, object)
    for place in np.ndindex(*a.shape):
        y[place] = a[place] + b[place]
    return y


def flow(outputs: np.ndarray, u: Mapping[str, np.ndarray], power: int) -> Any:
    """R, and dR/du of each leaf by products over the other weights of each path.

    The coefficients are raised to ``power``; those of the start too.
    """
    r, gradient = 0.0, {name: np.zeros(np.shape(w)) for name, w in u.items()}
    for paths in outputs.ravel():
        for c, weights in paths:
            values = [u[leaf][place] for leaf, place in weights]
            r += abs(c) ** power * np.prod(values)
            for k, (leaf, place) in enumerate(weights):
                others = np.prod(values[:k]) * np.prod(values[k + 1 :])
                gradient[leaf][place] += abs(c) ** power * others
    return r, gradient


def on_paths(outputs: np.ndarray, masks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Kept weights on a path of kept weights."""
    found = {name: np.zeros(np.shape(m), bool) for name, m in masks.items()}
    for paths in outputs.ravel():
        for c, weights in paths:
            if c and all(masks[leaf][place] for leaf, place in weights):
                for leaf, place in weights:
                    found[leaf][place] = True
    return found
