"""How far weights have moved, and whether they moved as a linearised network's would.

|theta_T - theta_0| over the weights that a mask has left, relative to |theta_0| on them. A lazy
network moves inside the span of the gradients of its outputs at the start, J^T a: what lies
outside that span is 0 in the lazy limit under gradient descent from theta_0, with or without
momentum. Adam leaves the span at once, as it divides each weight's gradient by its own size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params, apply_mask, flatten
from secateur.kernels.ntk import ntk


class Movement(NamedTuple):
    """Lengths, leaf by leaf; scalars, or arrays over whatever was mapped over.

    Attributes:
        moved: leaf -> |theta_T - theta_0|.
        size: leaf -> |theta_0|.
    """

    moved: dict[str, jax.Array]
    size: dict[str, jax.Array]

    def relative(self, leaf: str | None = None) -> jax.Array:
        """|theta_T - theta_0| / |theta_0|, of a leaf or of all; NaN where it started at 0."""
        moved = self.total() if leaf is None else self.moved[leaf]
        size = _length(self.size) if leaf is None else self.size[leaf]
        return jnp.where(size > 0, moved / jnp.where(size > 0, size, 1), jnp.nan)

    def total(self) -> jax.Array:
        """|theta_T - theta_0| of all leaves."""
        return _length(self.moved)


def movement(start: Params, params: Params, mask: Mask = None, *, masked: bool = False) -> Movement:
    """How far each leaf has moved inside the mask; may be traced and mapped over.

    Args:
        start, params: trees of one structure.
        mask: None: all weights.
        masked: only leaves that have a mask, so no biases and norms.
    """
    if mask is not None:
        start, params = apply_mask(mask, start), apply_mask(mask, params)
    first, last = flatten(start), flatten(params)
    if masked and mask is not None:
        first = {name: first[name] for name, m in flatten(mask).items() if m is not None}
    norm = lambda a: jnp.sqrt(jnp.sum(jnp.square(a)))
    return Movement(
        {name: norm(jnp.asarray(last[name]) - first[name]) for name in first},
        {name: norm(jnp.asarray(first[name])) for name in first},
    )


def _length(parts: dict[str, jax.Array]) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.stack([jnp.square(part) for part in parts.values()]), axis=0))


@lru_cache(maxsize=16)
def _products(network: Network) -> tuple[Any, Any]:
    """J d and J^T a, compiled."""

    def forward(point: Params, stats: Stats, x: Any, d: Params) -> jax.Array:
        return jax.jvp(lambda p: network.apply(p, stats, x), (point,), (d,))[1]

    def backward(point: Params, stats: Stats, x: Any, a: jax.Array) -> Params:
        return jax.vjp(lambda p: network.apply(p, stats, x), point)[1](a)[0]

    return jax.jit(forward), jax.jit(backward)


@dataclass(frozen=True)
class Span:
    """A movement, split by the span of the gradients at the start.

    Attributes:
        moved: its length.
        outside: the length of the part that is orthogonal to all gradients.
        rank: of the span: eigenvalues of the kernel that count as more than rounding.
    """

    moved: float
    outside: float
    rank: int

    @property
    def share(self) -> float:
        """outside / moved; 0 where nothing moved."""
        return self.outside / self.moved if self.moved else 0.0


def outside_span(
    network: Network,
    start: Params,
    params: Params,
    x: Any,
    *,
    stats: Stats | None = None,
    mask: Mask = None,
    memory: float = 1e9,
) -> Span:
    """The part of ``params - start`` outside span{grad f_c(x_n)} at the start, inside the mask.

    With J (N C, weights) it is what is left of the movement d after J^T (J J^T)^+ J d is taken
    away, twice, as one pass leaves the rounding of the kernel. Eigenvalues below
    N C eps times the largest, eps that of the outputs, do not count: their directions are rounding.
    Where the span has as many dimensions as there are weights, nothing can be outside.

    Args:
        x: (n, *input_shape), the examples that were trained on; all of them, or what the others
            pull along counts as outside.
        memory: bytes beside the kernel (N C, N C), see `kernels.ntk.ntk`.

    Raises:
        SecateurError: as `kernels.ntk.ntk`.
    """
    stats = {} if stats is None else stats
    x = jnp.asarray(x)
    point = start if mask is None else apply_mask(mask, start)
    point = jax.tree.map(jnp.asarray, point)
    last = params if mask is None else apply_mask(mask, params)
    gap = jax.tree.map(lambda a, b: jnp.asarray(a) - b, last, point)

    kernel = ntk(network, point, x, stats=stats, mask=mask, memory=memory)
    matrix = np.asarray(kernel.matrix(), np.float64)
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    if not np.all(np.isfinite(values)):
        raise SecateurError("the kernel at the start is not finite: the start is no network's.")
    eps = float(jnp.finfo(kernel.values.dtype).eps)
    counted = values > len(values) * eps * max(values[-1], 0.0)
    basis, inverse = vectors[:, counted], 1 / values[counted]

    forward, backward = _products(network)
    rest = gap
    for _ in range(2):
        pulled = np.asarray(forward(point, stats, x, rest), np.float64)
        a = basis @ (inverse * (basis.T @ pulled.ravel()))
        back = backward(point, stats, x, jnp.asarray(a.reshape(pulled.shape), kernel.values.dtype))
        back = back if mask is None else apply_mask(mask, back)
        rest = jax.tree.map(np.subtract, rest, back)
    size = lambda tree: float(
        np.sqrt(sum(np.sum(np.asarray(a, np.float64) ** 2) for a in jax.tree.leaves(tree)))
    )
    return Span(size(gap), size(rest), int(counted.sum()))
