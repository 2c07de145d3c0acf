"""Curvature of a loss over surviving weights: products, sharpness, spectral density.

For ``L = 1/N sum_n l(f(x_n; w), y_n)`` at the effective weights w = m * theta,

    H v = m * d/ds grad L(w + s (m * v))      forward over reverse, about 2 to 3 gradients,
    G v = m * J^T B J (m * v) / N             Gauss-Newton, B the Hessian of l in the outputs.

Vectors hold surviving weights and what is never pruned, leaf by leaf in the order of
`core.trees.flatten`. G is positive semidefinite for a convex l. **H is not**: what is derived from
an `Operator` by roots or logarithms of its eigenvalues has no meaning for it.

With the squared loss G has the non-zero eigenvalues of Theta / N; with cross-entropy those of
``B^(1/2) Theta B^(1/2) / N``, B = diag(p) - p p^T for each example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from secateur.core.errors import SecateurError, lookup
from secateur.core.trees import Mask, Params, apply_mask, flatten, unflatten
from secateur.kernels import krylov
from secateur.kernels.operator import Operator

FIRST, MOST = 40, 640  # products of the first run of Lanczos, and of the longest
Loss = Callable[[jax.Array, jax.Array], jax.Array]


def _squared(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum((outputs - y) ** 2, axis=-1) / 2


def _cross_entropy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    if y.ndim == outputs.ndim:
        return optax.softmax_cross_entropy(outputs, y)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y)


LOSSES: dict[str, Loss] = {"squared": _squared, "cross_entropy": _cross_entropy}
KINDS = {
    "hessian": "the Hessian of the loss: may have negative eigenvalues",
    "gauss-newton": "J^T B J / N: the Hessian without the network's own curvature",
}


@dataclass(frozen=True)
class Curvature:
    """A curvature matrix of a loss, by its products.

    Attributes:
        operator: over the (size,) vector of surviving and never pruned weights.
        kind: "hessian" or "gauss-newton".
        definite: whether no eigenvalue can be below zero: False for the Hessian.
        places: leaf -> positions in its flattened array, in the vector's order.
    """

    operator: Operator
    kind: str
    definite: bool
    places: dict[str, np.ndarray]

    @property
    def size(self) -> int:
        """Rows: surviving weights and what is never pruned."""
        return self.operator.size

    def product(self, v: jax.Array) -> jax.Array:
        """(size,) -> (size,)."""
        return self.operator.product(v)

    def dense(self) -> np.ndarray:
        """The matrix, (size, size), by one product a row. For small networks."""
        identity = jnp.eye(self.size, dtype=self.operator.dtype)
        matrix = np.asarray(_rows(Partial(self.operator.product), identity), np.float64)
        return (matrix + matrix.T) / 2

    def sharpness(self, key: Any = None, *, tolerance: float = 1e-4) -> float:
        """The largest eigenvalue, by Lanczos.

        The largest by value, not by size: power iteration may find a negative one.

        Args:
            key: of the random start; `jax.random.key(0)` if None.
            tolerance: of the residual, relative; the value's own error is about its square.

        Raises:
            SecateurError: where Lanczos does not converge.
        """
        return self._edge(0, key, tolerance)

    def lowest(self, key: Any = None, *, tolerance: float = 1e-4) -> float:
        """The smallest eigenvalue, by Lanczos; see `sharpness`. Of a Hessian often negative."""
        return self._edge(-1, key, tolerance)

    def density(self, key: Any = None, *, probes: int = 10, steps: int = 60) -> Density:
        """The distribution of eigenvalues, by stochastic Lanczos quadrature.

        Ghorbani, Krishnan & Xiao 2019, algorithm 1.

        Args:
            key: of the random signs; `jax.random.key(0)` if None.
            probes: random vectors. The error of a moment falls with their root.
            steps: products for each: moments up to 2 steps - 1 are exact for a probe.
        """
        given = jax.random.key(0) if key is None else key
        nodes = krylov.quadrature(self.operator, probes, steps, given)
        return Density(nodes.values, nodes.weights / self.size)

    def _edge(self, end: int, key: Any, tolerance: float) -> float:
        """The first or last Ritz value of a run long enough for its residual."""
        given = jax.random.key(0) if key is None else key
        start = jax.random.normal(given, (1, self.size), self.operator.dtype)
        rounding = 16 * float(jnp.finfo(self.operator.dtype).eps)
        steps = FIRST
        while True:
            (run,) = krylov.tridiagonal(self.operator, start, steps)
            values, _, residuals = run.ritz()
            value, residual = float(values[end]), float(residuals[end])
            bound = max(tolerance * abs(value), rounding * float(np.abs(values).max()))
            if residual <= bound or steps >= self.size:
                return value
            steps *= 2
            if steps > MOST:
                raise SecateurError(
                    f"an eigenvalue near {value:.4g} is known to {residual:.1g} after {steps // 2} "
                    f"products; give a tolerance above {residual / max(abs(value), 1e-300):.1g}."
                )


@dataclass(frozen=True)
class Density:
    """A spectral density as Gauss nodes.

    Attributes:
        values: (probes, k), nodes.
        weights: (probes, k), their masses; each row sums to 1.
    """

    values: np.ndarray
    weights: np.ndarray

    def at(self, points: Any, width: float) -> np.ndarray:
        """The density smoothed by Gaussians, per unit of the eigenvalue.

        Args:
            points: where; any shape.
            width: standard deviation of the Gaussians, in units of the eigenvalue.

        Raises:
            SecateurError: for a width that is not above zero.
        """
        if not width > 0:
            raise SecateurError(f"width is {width}; expected a number above 0.")
        x = np.asarray(points, np.float64)[..., None, None]
        bells = np.exp(-((x - self.values) ** 2) / (2 * width**2)) / (width * np.sqrt(2 * np.pi))
        return (bells * self.weights).sum(axis=-1).mean(axis=-1)

    def moment(self, power: int) -> tuple[float, float]:
        """tr H^power / size, and its standard error over probes (infinite for one)."""
        each = (self.weights * self.values**power).sum(axis=1)
        error = each.std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else np.inf
        return float(each.mean()), float(error)


def hessian(
    f: Callable[[Params, Any], jax.Array],
    params: Params,
    x: Any,
    y: Any,
    *,
    mask: Mask | None = None,
    loss: str | Loss = "cross_entropy",
    kind: str = "hessian",
    batch: int | None = None,
) -> Curvature:
    """The curvature of the mean loss over examples, for products.

    Args:
        f: ``(params, x) -> (n, C)``, examples independent of each other.
        params: theta; the curvature is taken at m * theta.
        x: (N, ...), all examples.
        y: (N,) labels or (N, C) targets.
        mask: rows and columns are surviving weights and leaves where it is None; None keeps all.
        loss: "cross_entropy", "squared" (half of it, for targets (N, C)), or a function
            ``(outputs, y) -> (n,)``.
        kind: "hessian" or "gauss-newton".
        batch: examples at once. None takes all together, linearised once for all products; a
            number bounds the memory and computes the network anew in each.

    Raises:
        SecateurError: for an unknown loss or kind, examples and targets of different numbers, a
            mask of another structure, or one that leaves nothing.
    """
    lookup("kind of curvature", kind, KINDS)
    each = loss if callable(loss) else lookup("loss", loss, LOSSES)
    x, y = jax.tree.map(jnp.asarray, x), jnp.asarray(y)
    n = len(jax.tree.leaves(x)[0])
    if n != len(y):
        raise SecateurError(f"there are {n} examples and {len(y)} targets; give one for each.")
    if batch is not None and batch < 1:
        raise SecateurError(f"batch is {batch}; expected at least one example, or None for all.")
    leaves = flatten(params)
    places = _places(leaves, mask)
    effective = params if mask is None else apply_mask(mask, params)
    flat = flatten(effective)
    dtype = jnp.result_type(*flat.values())
    flat = {k: jnp.asarray(leaf) for k, leaf in flat.items()}
    start = jnp.concatenate([jnp.ravel(flat[k])[p].astype(dtype) for k, p in places.items()])
    cuts = np.cumsum([len(p) for p in places.values()])[:-1]

    def network(v: jax.Array, x: Any) -> jax.Array:
        """Outputs at the surviving weights v; the others are not variables at all."""
        parts = dict(zip(places, jnp.split(v, cuts)))
        full = {
            k: _put(leaf, places[k], parts[k]) if k in places else leaf for k, leaf in flat.items()
        }
        return f(unflatten(full, params), x)

    def second(v: jax.Array, x: Any, y: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """The sum of the examples' curvatures, as a linear function."""
        if kind == "hessian":
            return jax.linearize(jax.grad(lambda v: jnp.sum(each(network(v, x), y))), v)[1]
        outputs, forward = jax.linearize(lambda v: network(v, x), v)
        middle = jax.linearize(jax.grad(lambda o: jnp.sum(each(o, y))), outputs)[1]
        return Partial(_gauss_newton, forward, middle)

    product: Callable[[jax.Array], jax.Array]
    if batch is None or batch >= n:
        # Compiled: its residuals come out as arrays, once for all products.
        product = Partial(_mean, jax.jit(second)(start, x, y), n)
    else:
        product = _over_batches(second, start, x, y, n, batch)
    definite = kind == "gauss-newton" and each in LOSSES.values()
    return Curvature(Operator(len(start), dtype, product), kind, definite, places)


@jax.jit
def _rows(product: Any, vectors: jax.Array) -> jax.Array:
    return jax.vmap(product)(vectors)


def _put(leaf: jax.Array, places: np.ndarray, part: jax.Array) -> jax.Array:
    part = part.astype(leaf.dtype)
    if len(part) == leaf.size:
        return part.reshape(leaf.shape)
    return jnp.ravel(leaf).at[places].set(part).reshape(leaf.shape)


def _gauss_newton(forward: Any, middle: Any, u: jax.Array) -> jax.Array:
    return jax.linear_transpose(forward, u)(middle(forward(u)))[0]


def _mean(total: Any, n: int, u: jax.Array) -> jax.Array:
    return total(u) / n


def _over_batches(
    second: Callable[..., Callable[[jax.Array], jax.Array]],
    start: jax.Array,
    x: Any,
    y: jax.Array,
    n: int,
    batch: int,
) -> Callable[[jax.Array], jax.Array]:
    """The mean of the products with the batches' curvatures, one batch in memory at a time."""
    whole = n - n % batch
    cut = lambda a: a[:whole].reshape(whole // batch, batch, *a.shape[1:])
    parts = jax.tree.map(cut, (x, y))
    rest = jax.tree.map(lambda a: a[whole:], (x, y))

    def product(u: jax.Array) -> jax.Array:
        add = lambda total, part: (total + second(start, *part)(u), None)
        total, _ = jax.lax.scan(add, jnp.zeros_like(u), parts)
        if whole < n:
            total, _ = add(total, rest)
        return total / n

    return product


def _places(leaves: dict[str, Any], mask: Mask | None) -> dict[str, np.ndarray]:
    """Positions of surviving weights in each leaf."""
    masks = dict.fromkeys(leaves) if mask is None else flatten(mask)
    wrong = [k for k in leaves if k not in masks] or [k for k in masks if k not in leaves]
    wrong = wrong or [
        k for k, m in masks.items() if m is not None and np.shape(m) != np.shape(leaves[k])
    ]
    if wrong:
        raise SecateurError(
            f"the mask does not fit the parameters at {wrong[0]}; give a tree of their structure, "
            "None where nothing is pruned and arrays of the same shapes elsewhere."
        )
    places = {
        k: np.arange(np.size(leaf)) if masks[k] is None else np.flatnonzero(np.asarray(masks[k]))
        for k, leaf in leaves.items()
    }
    places = {k: p for k, p in places.items() if len(p)}
    if not places:
        raise SecateurError("the mask leaves no weight: there is no curvature; keep at least one.")
    return places
