"""J_pi and J_v entry by entry, from paths that are lists: an oracle for kernels of any network.

Where a path passes an input or an activation it gets a mark, a weight by a name that begins with
"@": what the mark is worth at an input x is x itself or the activation's slope there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.network import Network
from secateur.networks import layers

_place = Path(__file__).parents[1] / "structure" / "enumerated.py"
_spec = importlib.util.spec_from_file_location("enumerated", _place)
assert _spec is not None
assert _spec.loader is not None
enumerated: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(enumerated)


def marked(x: np.ndarray, name: str) -> np.ndarray:
    y = np.empty(x.shape, object)
    for place in np.ndindex(*x.shape):
        y[place] = [(c, (*w, (name, place))) for c, w in x[place]]
    return y


def shift(x: np.ndarray, by: Any) -> np.ndarray:
    """Paths that begin here: of a leaf (a name), or of a fixed factor for each channel."""
    y = np.empty(x.shape, object)
    for place in np.ndindex(*x.shape):
        k = place[-1]
        begin = (1.0, ((by, (k,)),)) if isinstance(by, str) else (float(by[k]), ())
        y[place] = [*x[place], begin]
    return y


@dataclass(frozen=True)
class Oracle:
    """Paths of kept weights alone; columns of ``j_pi`` are the kept weights in order."""

    paths: list[Any]
    ends: np.ndarray
    outputs: int
    j_pi: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, ends: np.ndarray, w: Mapping[str, np.ndarray], mask: Mapping[str, Any]) -> Oracle:
        kept = [(k, at) for k, m in mask.items() if m is not None for at in np.ndindex(*m.shape)]
        kept = [(k, at) for k, at in kept if mask[k][at]]
        column = {edge: i for i, edge in enumerate(kept)}
        whole = [
            (end, c, [e for e in weights if e[0][0] != "@"], [e for e in weights if e[0][0] == "@"])
            for end, found in enumerate(ends)
            for c, weights in found
        ]
        live = [path for path in whole if all(edge in column for edge in path[2])]
        j_pi = np.zeros((len(live), len(kept)))
        for p, (_, c, weights, _) in enumerate(live):
            for edge in weights:
                j_pi[p, column[edge]] = c * np.prod(
                    [w[k][at] for k, at in weights if (k, at) != edge]
                )
        values = np.array([c * np.prod([w[k][at] for k, at in edges]) for _, c, edges, _ in live])
        where = np.array([path[0] for path in live], int)
        return cls([path[3] for path in live], where, len(ends), j_pi, values)

    @property
    def dual(self) -> np.ndarray:
        return self.j_pi.T @ self.j_pi

    def j_v(self, at: Mapping[str, np.ndarray]) -> np.ndarray:
        """(n C, paths); ``at`` says what marks are worth, each ``(n, *places)``."""
        n = len(next(iter(at.values())))
        rows = np.zeros((n, self.outputs, len(self.paths)))
        for p, marks in enumerate(self.paths):
            rows[:, self.ends[p], p] = np.prod(
                [at[name][(slice(None), *place)] for name, place in marks] or [np.ones(n)], axis=0
            )
        return rows.reshape(-1, len(self.paths))


def mixed() -> Network:
    """conv, norm, leaky relu, average pooling, dense, relu, a residual block, dense; biases."""

    def init(key: Any) -> Any:
        rng = np.random.default_rng(7)
        draw = lambda *shape: jnp.asarray(rng.standard_normal(shape))
        params = {
            "conv": {"kernel": draw(3, 3, 1, 2), "bias": draw(2)},
            "norm": {"scale": draw(2), "bias": draw(2)},
            "a": {"kernel": draw(8, 3), "bias": draw(3)},
            "b": {"kernel": draw(3, 3)},
            "c": {"kernel": draw(3, 2), "bias": draw(2)},
        }
        return params, {"norm": {"mean": draw(2), "var": draw(2) ** 2}}

    apply = lambda p, s, x: mixed_forward(p, s, x, [])
    return Network("mixed", (4, 4, 1), 2, init, apply, lambda p, s, x, key: (apply(p, s, x), s))


def mixed_forward(p: Any, s: Any, x: Any, seen: list[Any]) -> Any:
    """``seen`` gets what enters each activation."""
    z = layers.batch_norm(p["norm"], s["norm"], layers.conv(p["conv"], x), False)[0]
    a = layers.dense(p["a"], layers.flat(layers.average_pool(jax.nn.leaky_relu(z, 0.1), 2)))
    h = jax.nn.relu(a)
    b = layers.dense(p["b"], h)
    seen += [z, a, b]
    return layers.dense(p["c"], h + jax.nn.relu(b))


def mixed_paths(params: Any, stats: Any, bias: bool) -> np.ndarray:
    begin = lambda x, by: shift(x, by) if bias else x
    x = marked(enumerated.start((4, 4, 1), np.ones((4, 4, 1))), "@x")
    x = begin(enumerated.conv(x, "conv/kernel", 3, 2), "conv/bias")
    scale = params["norm"]["scale"] / np.sqrt(stats["norm"]["var"] + layers.EPSILON)
    x = enumerated.times(begin(x, -stats["norm"]["mean"]), scale)
    x = marked(begin(x, params["norm"]["bias"]), "@z")
    x = enumerated.times(enumerated.windows(x, 2), 0.25).ravel()
    h = marked(begin(enumerated.dense(x, "a/kernel", 3), "a/bias"), "@a")
    b = marked(enumerated.dense(h, "b/kernel", 3), "@b")
    return begin(enumerated.dense(enumerated.added(h, b), "c/kernel", 2), "c/bias")
