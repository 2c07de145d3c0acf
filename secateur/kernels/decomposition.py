"""The tangent kernel as data and paths: Theta = J_v Pi J_v^T. Gebhart, Saxena & Schrater 2021.

Holds for networks of homogeneous, piecewise linear activations (relu, leaky relu, none), everywhere
and at kinks in JAX's convention. Theta is the kernel over the mask's kept weights. Both factors are
had without their paths: Pi by its dual (`kernels.path_operator`), J_v by its Gram matrix
K = J_v J_v^T (`kernels.activity`), which has its eigenvalues but for zeros; of J_v by itself only
the product J_v J_pi = J is small enough to be had.

From the eigenvalues of both, sorted, follow bounds of the trace (von Neumann):

    tr Theta <= sum_i lambda_i(K) lambda_i(Pi) <= lambda_1(K) tr Pi and <= lambda_1(Pi) tr K

They are loose, often by orders of magnitude: tr Pi does not estimate tr Theta. `Bounds.looseness`
says by how much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from secateur.core.errors import SecateurError
from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params, apply_mask, map_mask
from secateur.kernels.activity import activity
from secateur.kernels.operator import Operator
from secateur.kernels.path_operator import DENSE, PathKernel, path_kernel

TOP = 10  # eigenvalues of Pi in the bounds where it has too many edges to be decomposed


class Bounds(NamedTuple):
    """Natural logarithms of tr Theta and of what it is at most.

    Attributes:
        trace: tr Theta.
        neumann: sum_i lambda_i(K) lambda_i(Pi); where not all of Pi's eigenvalues are known, the
            smallest known one stands for the rest.
        activity: lambda_1(K) tr Pi.
        paths: lambda_1(Pi) tr K.
    """

    trace: float
    neumann: float
    activity: float
    paths: float

    @property
    def looseness(self) -> dict[str, float]:
        """Each bound over tr Theta: 1 where it is reached."""
        bounds = self._asdict()
        trace = bounds.pop("trace")
        return {name: math.exp(min(bound - trace, 700)) for name, bound in bounds.items()}


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Theta of a batch, and its two factors. Rows run over (n, c), c fastest.

    Attributes:
        theta: ``(n C, n C)``, by its products: one backward and one forward pass.
        paths: Pi.
        activity: K / exp(activity_log), ``(n C, n C)``, by its products.
        activity_log: natural logarithm of what was taken out of K.
        blocks: ``(C, n, n)`` float64: of K / exp(activity_log), output by output; between different
            outputs K is 0.
    """

    theta: Operator
    paths: PathKernel
    activity: Operator
    activity_log: float
    blocks: np.ndarray

    def activity_eigenvalues(self) -> np.ndarray:
        """Logarithms of the eigenvalues of K that are not 0, largest first, float64."""
        values = np.sort(np.linalg.eigvalsh(self.blocks).ravel())[::-1]
        least = self.blocks.shape[1] * float(jnp.finfo(self.activity.dtype).eps) * values[0]
        return np.log(values[values > max(least, 0)]) + self.activity_log

    def bounds(self) -> Bounds:
        """How far tr Pi and the spectra of both factors bound tr Theta.

        Raises:
            SecateurError: where no path is active on any input, so that Theta is 0.
        """
        k = self.activity_eigenvalues()
        if not len(k) or not self.theta.trace:
            raise SecateurError(
                "no path is active on any of these inputs, so the tangent kernel is 0 and bounds "
                "say nothing: give other inputs or keep more weights."
            )
        count = min(len(k), len(self.paths.edges))
        if len(self.paths.edges) <= DENSE:
            pi = self.paths.eigenvalues().log
            pi = np.append(pi, np.full(max(count - len(pi), 0), -np.inf))
        else:
            top = self.paths.top(min(count, TOP), tolerance=1e-2)
            pi = top.log + np.log1p(top.errors)
            pi = np.append(pi, np.full(max(count - len(pi), 0), pi[-1]))
        return Bounds(
            math.log(self.theta.trace),
            float(np.logaddexp.reduce(k[:count] + pi[:count])),
            float(k[0]) + self.paths.log_trace,
            float(pi[0] + np.logaddexp.reduce(k)),
        )


def decomposition(
    network: Network, params: Params, stats: Stats, mask: Mask, x: jax.Array
) -> Decomposition:
    """Theta = J_v Pi J_v^T over the kept weights on a batch, by operators.

    Args:
        mask: concrete. Shifts are paths that begin there; a bias counts as a weight, an edge from a
            constant 1, if the mask has its leaf.
        x: ``(n, *input_shape)``. K takes n (n + 1) / 2 forward passes and n^2 C numbers.

    Raises:
        SecateurError: for a network whose tangent kernel does not factor so (another activation,
            max-pooling, gates, attention), without a path, or with outputs that are not finite.
    """
    x = jnp.asarray(x, jnp.result_type(*jax.tree.leaves(params)))
    if x.shape[1:] != network.input_shape or not len(x):
        raise SecateurError(
            f"inputs of {network.name!r} have the shape (n, {str(network.input_shape)[1:]}, not "
            f"{x.shape}: give at least one example, in a batch."
        )
    found = activity(network, params, stats, mask, x)
    paths = path_kernel(network, params, stats, mask, keep_bias=True)
    n, outputs = found.logits.shape
    w = apply_mask(mask, params)
    product = Partial(_Tangent(network), w, stats, mask, x)
    trace = float(_trace(network, w, stats, mask, x))
    if not math.isfinite(trace):
        raise SecateurError(
            f"the tangent kernel of {network.name!r} leaves the range of {x.dtype}: give float64, "
            "or weights of another scale."
        )
    values = np.asarray(found.values, np.float64)
    return Decomposition(
        theta=Operator(n * outputs, x.dtype, product, trace),
        paths=paths,
        activity=Operator(
            n * outputs,
            x.dtype,
            Partial(_blockwise, found.values),
            float(np.trace(values, axis1=1, axis2=2).sum()),
        ),
        activity_log=float(found.exponent) * math.log(2),
        blocks=values,
    )


def _blockwise(blocks: jax.Array, y: jax.Array) -> jax.Array:
    """The product of blocks ``(C, n, n)`` with ``(n C,)``."""
    return jnp.einsum("cnm,mc->nc", blocks, y.reshape(blocks.shape[1], -1)).ravel()


def _outputs(network: Network, w: Params, stats: Stats, mask: Mask, x: jax.Array) -> Any:
    """The prunable leaves, and the logits as a function of them."""
    leaves = map_mask(lambda m, leaf: None if m is None else leaf, mask, w)

    def f(leaves: Any) -> jax.Array:
        pick = lambda m, p, q: q if m is None else jnp.where(m, p, 0)
        return network.apply(map_mask(pick, mask, leaves, w), stats, x)

    return leaves, f


@dataclass(frozen=True)
class _Tangent:
    """The product with Theta. Equal for equal networks: one program."""

    network: Network

    def __call__(self, *operands: Any) -> jax.Array:
        return _product(self.network, *operands)


@partial(jax.jit, static_argnums=0)
def _product(
    network: Network, w: Params, stats: Stats, mask: Mask, x: jax.Array, y: jax.Array
) -> jax.Array:
    """J (m * (J^T y))."""
    leaves, f = _outputs(network, w, stats, mask, x)
    logits, pull = jax.vjp(f, leaves)
    return jax.jvp(f, (leaves,), pull(y.reshape(logits.shape)))[1].ravel()


@partial(jax.jit, static_argnums=0)
def _trace(network: Network, w: Params, stats: Stats, mask: Mask, x: jax.Array) -> jax.Array:
    """||J||^2, one example and one output after the other."""

    def one(x: jax.Array) -> jax.Array:
        leaves, f = _outputs(network, w, stats, mask, x[None])
        rows = jax.jacrev(f)(leaves)
        return sum((jnp.sum(row**2) for row in jax.tree.leaves(rows)), jnp.zeros((), x.dtype))

    return jnp.sum(jax.lax.map(one, x, batch_size=min(8, len(x))))
