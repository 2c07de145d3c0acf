"""The path kernel as an operator: products, top eigenvalues, spectrum. Gebhart et al. 2021.

Pi = J_pi J_pi^T has a row for each path of the network; everything here is read from its dual
D = J_pi^T J_pi, which has a row for each kept weight and the same eigenvalues but for zeros
(`kernels.path`). One power of two is taken out of D, so that float32 does for deep networks:
eigenvalues are given as natural logarithms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from secateur.core.errors import SecateurError, lookup
from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params, flatten, unflatten
from secateur.kernels.krylov import eigenpairs
from secateur.kernels.operator import Operator
from secateur.kernels.path import path_product, squared_gradient, squares
from secateur.kernels.path_rank import path_rank
from secateur.kernels.spectrum import Spectrum, spectrum
from secateur.structure.flow import Reading, run

POOLING = {
    "refuse": "a network with max-pooling is refused",
    "sum": "every place of a max-pooling's window is on a path of its own",
}
DENSE = 4000  # rows up to which D is formed and decomposed: 128 MB in double precision


class Eigenvalues(NamedTuple):
    """Some or all eigenvalues, largest first, on the host.

    Attributes:
        log: ``(k,)`` float64, natural logarithms.
        errors: ``(k,)``, a bound on the distance to an eigenvalue, relative to the value; 0 where
            the matrix itself was decomposed (there rounding is all: eps times the largest).
    """

    log: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True, eq=False)
class PathKernel:
    """Pi of one network, by its dual D = operator * exp(log).

    Attributes:
        operator: D / exp(log) over the kept weights, in the order of leaves and in each in C order;
            its largest diagonal entry is between 1/2 and 1.
        log: natural logarithm of what was taken out.
        diagonal: ``(operator.size,)`` float64, of the operator: T_e / exp(log), the sum of
            (pi_p / theta_e)^2 over the paths through e.
        leaves: leaf -> its kept weights; they lie in this order in a vector.
        log_trace: log tr Pi.
        shares: leaf -> its part of tr Pi; they sum to 1.
        source: network, params, stats, mask.
        options: v, pooling, keep_bias.
    """

    operator: Operator
    log: float
    diagonal: np.ndarray
    leaves: dict[str, int]
    log_trace: float
    shares: dict[str, float]
    source: tuple[Network, Params, Stats, Mask]
    options: dict[str, Any]

    @cached_property
    def edges(self) -> np.ndarray:
        """Where in a vector the weights on paths are: all other rows of D are 0."""
        return np.flatnonzero(self.diagonal > 0)

    def matrix(self) -> np.ndarray:
        """D / exp(log) at `edges`, ``(len(edges), len(edges))`` float64, exactly symmetric.

        Raises:
            SecateurError: for more than 4,000 edges.
        """
        if len(self.edges) > DENSE:
            raise SecateurError(
                f"the path kernel of {len(self.edges):,} edges would be a matrix of "
                f"{8 * len(self.edges) ** 2 / 1e9:.1f} GB, and up to {DENSE:,} edges are formed: "
                'take top(k), or spectrum(method="deflated").'
            )
        a = self.operator
        rows = _rows(a.product, a.size, np.dtype(a.dtype), jnp.asarray(self.edges))
        found = np.asarray(rows, np.float64)
        return (found + found.T) / 2

    def eigenvalues(self) -> Eigenvalues:
        """All that are not 0, from the matrix: those above rows * eps * the largest.

        In float32 the smallest may be lost in rounding: LeNet-300-100 at density 0.01 shows 179
        where `rank` counts 189. Give float64 weights for all.

        Raises:
            SecateurError: for more than 4,000 edges.
        """
        values = np.linalg.eigvalsh(self.matrix())[::-1]
        least = len(values) * float(jnp.finfo(self.operator.dtype).eps) * values[0]
        values = values[values > least]
        return Eigenvalues(np.log(values) + self.log, np.zeros(len(values)))

    def spectrum(self, method: str = "auto", **options: Any) -> Spectrum:
        """Of D / exp(log), whose numbers without a scale (effective rank, participation, stable
        rank, condition) are those of Pi. The matrix up to 4,000 edges, else its products.

        Args:
            method, options: as of `kernels.spectrum.spectrum`; ``auto`` beyond 4,000 edges takes
                the largest by Lanczos and the rest by quadrature, with errors.

        Raises:
            SecateurError: as there, and for ``eigh`` beyond 4,000 edges.
        """
        formed = method == "eigh" or (method == "auto" and len(self.edges) <= DENSE)
        dtype = np.dtype(self.operator.dtype)
        return spectrum(self.matrix().astype(dtype) if formed else self.operator, method, **options)

    def top(self, k: int = 1, tolerance: float = 1e-6) -> Eigenvalues:
        """The k largest eigenvalues by the Lanczos process, with residual bounds.

        Args:
            tolerance: the largest residual, relative to the value.

        Raises:
            SecateurError: for more than there are edges, or where they do not converge.
        """
        if not 1 <= k <= len(self.edges):
            raise SecateurError(
                f"{k} eigenvalues of a path kernel of {len(self.edges):,} edges: ask for 1 to "
                f"{len(self.edges):,}."
            )
        found = eigenpairs(self.operator, k, jax.random.key(0), tolerance=tolerance)
        values, residuals = found.values[:k], found.residuals[:k]
        positive = np.maximum(values, np.finfo(float).tiny)
        return Eigenvalues(np.log(positive) + self.log, residuals / positive)

    @cached_property
    def rank(self) -> int:
        """Of Pi: edges on paths less hidden units on paths, counted. See `path_rank`.

        Raises:
            SecateurError: where the law does not say: paths from biases, inputs left out by v.
        """
        if self.options["keep_bias"] or not np.all(np.asarray(self.options["v"]) > 0):
            raise SecateurError(
                "the rank of a path kernel is counted for paths from all inputs and from no bias; "
                "take the number of its eigenvalues()."
            )
        return path_rank(*self.source)


def path_kernel(
    network: Network,
    params: Params,
    stats: Stats,
    mask: Mask,
    v: jax.Array | float = 1.0,
    *,
    pooling: str = "refuse",
    keep_bias: bool = False,
) -> PathKernel:
    """Pi of the kept weights of a network.

    Exact for paths as they are: those of a dense network, of convolutions (an entry of the kernel
    at one place of each map), residual sums, average pooling and folded batch norm, whose fixed
    factors count squared. Activations are the identity: Pi knows nothing of them, nor of data.

    Args:
        mask: concrete. Its kept weights are the edges; a bias is one if the mask has its leaf and
            ``keep_bias`` is set.
        v: what each input's paths count; see `path_saliency`.
        pooling: a key of `POOLING`.
        keep_bias: shifts are paths that begin where they are added: an edge from a constant 1.

    Raises:
        SecateurError: for a network whose paths cannot be followed, with max-pooling unless
            ``pooling="sum"``, or in which no path is left.
    """
    lookup("pooling of the path kernel", pooling, POOLING)
    if pooling == "refuse":
        refuse_pooling(network, params, stats, mask)
    kept = {k: np.flatnonzero(np.asarray(m)) for k, m in flatten(mask).items() if m is not None}
    begins = np.cumsum([0, *(np.size(flatten(mask)[name]) for name in kept)])
    # One array, so that masks that share their layers in another way share the program.
    places = jnp.asarray(np.concatenate([b + at for b, at in zip(begins, kept.values())]))
    source = (params, stats, mask, jnp.asarray(v))
    t, exponent = _saliency(network, keep_bias, *source)
    flat = flatten(t)
    leaves = {name: np.asarray(flat[name], np.float64).ravel()[at] for name, at in kept.items()}
    diagonal = np.concatenate(list(leaves.values()))
    if not (diagonal > 0).any():
        raise SecateurError(
            f"{network.name!r} has no path of kept weights from its input to an output, so its "
            "path kernel is 0: keep at least one weight of each layer, one behind the other."
        )
    if not np.isfinite(diagonal).all():
        raise SecateurError(
            f"the squares of the weights of {network.name!r} leave the range of "
            f"{jnp.result_type(*jax.tree.leaves(params))}: give weights between 1e-18 and 1e18, or "
            "float64."
        )
    down = 2.0 ** math.frexp(float(diagonal.max()))[1]
    diagonal = diagonal / down
    log = float(exponent) * math.log(2) + math.log(down)
    total = float(diagonal.sum())
    dtype = jnp.result_type(*jax.tree.leaves(params))
    product = Partial(_Dual(network, keep_bias), *source, places, jnp.asarray(1 / down, dtype))
    return PathKernel(
        operator=Operator(len(diagonal), dtype, product, total),
        log=log,
        diagonal=diagonal,
        leaves={name: len(at) for name, at in kept.items()},
        log_trace=math.log(total) + log,
        shares={name: float(part.sum()) / down / total for name, part in leaves.items()},
        source=(network, params, stats, mask),
        options={"v": v, "pooling": pooling, "keep_bias": keep_bias},
    )


@partial(jax.jit, static_argnums=(0, 1))
def _saliency(
    network: Network, keep_bias: bool, params: Params, stats: Stats, mask: Mask, v: jax.Array
) -> tuple[Any, jax.Array]:
    gradient = squared_gradient(network, params, stats, v, keep_bias=keep_bias)
    return gradient(squares(mask, params))


@dataclass(frozen=True)
class _Dual:
    """The product with D over a vector of kept weights. Equal for equal networks: one program."""

    network: Network
    keep_bias: bool

    def __call__(self, *operands: Any) -> jax.Array:
        return _product(self.network, self.keep_bias, *operands)


@partial(jax.jit, static_argnums=(0, 1))
def _product(
    network: Network,
    keep_bias: bool,
    params: Params,
    stats: Stats,
    mask: Mask,
    v: jax.Array,
    places: jax.Array,
    scale: jax.Array,
    x: jax.Array,
) -> jax.Array:
    shapes = {name: m.shape for name, m in flatten(mask).items() if m is not None}
    sizes = [math.prod(shape) for shape in shapes.values()]
    whole = jnp.zeros(sum(sizes), x.dtype).at[places].set(x)
    parts = dict(zip(shapes, jnp.split(whole, np.cumsum(sizes)[:-1])))
    flat = dict.fromkeys(flatten(mask)) | {k: p.reshape(shapes[k]) for k, p in parts.items()}
    tree = unflatten(flat, mask)
    product, _ = path_product(network, params, stats, mask, tree, v, keep_bias=keep_bias)
    found = flatten(product)
    return scale * jnp.concatenate([found[name].ravel() for name in shapes])[places]


@partial(jax.jit, static_argnums=(1, 2))
def _rows(product: Any, size: int, dtype: Any, edges: jax.Array) -> jax.Array:
    row = lambda e: product(jnp.zeros(size, dtype).at[e].set(1))[edges]
    return jax.lax.map(row, edges, batch_size=32)


class _Poolings(Reading):
    """Refuses the largest of several values."""

    def equation(self, eqn: Any, ins: list[Any]) -> list[Any]:
        name = eqn.primitive.name
        if eqn.params.get("name") == "max_pool" or name in ("reduce_max", "reduce_window_max"):
            raise SecateurError(
                f"{self.name!r} has max-pooling, which chooses a path by the data, and a path "
                'kernel knows no data: give pooling="sum" to count all places of a window, or '
                "replace it by average pooling."
            )
        return super().equation(eqn, ins)


def refuse_pooling(network: Network, params: Params, stats: Stats, mask: Mask) -> None:
    """Nothing, or a SecateurError for a network with max-pooling."""
    reading = _Poolings(network.name)
    jax.eval_shape(
        lambda p, s, u: run(reading, network, p, s, u, jnp.ones(())).value,
        params,
        stats,
        squares(mask, params),
    )
