"""Kumar's committee machine: a network that its mean weight and second moment describe exactly.

    f(x) = (alpha / N) sum_i phi(w_i.x),    phi(h) = h + epsilon h^2 / 2,    x ~ N(0, I / D)

With wbar the mean of the w_i and M the mean of w_i w_i^T (Kumar, Bordelon, Gershman & Pehlevan
2023, "Grokking as the transition from lazy to rich training dynamics"):

    f(x) = alpha wbar.x + (alpha epsilon / 2) x^T M x

epsilon is the weight of what is quadratic and therefore hard; alpha the output scale: large is lazy
if outputs are centred. Weights are a kernel (D, N), w_i its columns. Everything here is a pure
function that may be differentiated and mapped over, alpha and epsilon included.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.keys import Key, fold
from secateur.core.network import Network, Stats
from secateur.core.quadratic import ArrayLike, Quadratic, Terms
from secateur.core.trees import Params


class Summary(NamedTuple):
    """All that the outputs depend on.

    Attributes:
        mean: wbar, (D,).
        second: M, (D, D), not centred.
    """

    mean: jax.Array
    second: jax.Array


def summary(kernel: jax.Array) -> Summary:
    """Mean and second moment of the columns of a kernel (D, N)."""
    return Summary(jnp.mean(kernel, axis=1), kernel @ kernel.T / kernel.shape[1])


def function(kernel: jax.Array, x: jax.Array, alpha: ArrayLike, epsilon: ArrayLike) -> jax.Array:
    """f at inputs (n, D), unit by unit: (n,)."""
    h = x @ kernel
    return alpha * jnp.mean(h + epsilon / 2 * h**2, axis=-1)


def closed_form(kernel: jax.Array, alpha: ArrayLike, epsilon: ArrayLike) -> Quadratic:
    """f as a quadratic function of x, through the summary."""
    mean, second = summary(kernel)
    return Quadratic(alpha * mean, alpha * epsilon / 2 * second)


def ntk(
    kernel: jax.Array,
    x: jax.Array,
    x2: jax.Array | None = None,
    *,
    epsilon: ArrayLike,
    alpha: ArrayLike = 1.0,
    normalised: bool = True,
) -> jax.Array:
    """The tangent kernel between inputs (n, D) and (m, D) (or x again): (n, m).

        x.x' + epsilon (x.x') wbar.(x + x') + epsilon^2 (x.x') x^T M x'

    This bracket is what the paper prints as the NTK; it is the kernel of gradient descent at rate
    eta N / alpha^2. The sum over weights of products of derivatives is alpha^2 / N times it:
    ``normalised=False``. Directions and eigenvalue ratios do not see the factor, eigenvalues and
    learning rates do.
    """
    mean, second = summary(kernel)
    other = x if x2 is None else x2
    linear = epsilon * (x @ mean)[:, None] + epsilon * (other @ mean)[None, :]
    bracket = (x @ other.T) * (1 + linear + epsilon**2 * (x @ second @ other.T))
    return bracket if normalised else alpha**2 / kernel.shape[1] * bracket


@dataclass(frozen=True)
class Level:
    """An eigenvalue of the normalised NTK under x ~ N(0, I / D), and whose it is.

    Attributes:
        functions: ``"linear"``, ``"traceless quadratic"`` or ``"|x|^2"``.
        multiplicity: how many independent functions have it.
    """

    functions: str
    eigenvalue: float
    multiplicity: int


def spectrum_at_start(inputs: int, epsilon: float) -> tuple[Level, Level, Level]:
    """Of infinitely many units with w ~ N(0, I): wbar = 0, M = I. All other eigenvalues are 0.

    Between traceless quadratics the eigenvalue is 2 epsilon^2 / D^2: at wbar = 0 the kernel depends
    on epsilon through its square alone. The paper prints 2 epsilon / D^2. Along |x|^2, which is not
    centred, it is D / 2 + 1 times larger. A rate eta learns a level in a time 1 / (eta eigenvalue).
    """
    d = inputs
    return (
        Level("linear", 1 / d, d),
        Level("traceless quadratic", 2 * epsilon**2 / d**2, d * (d + 1) // 2 - 1),
        Level("|x|^2", epsilon**2 * (d + 2) / d**2, 1),
    )


def spectrum(of: Summary, epsilon: float) -> np.ndarray:
    """All eigenvalues that are not 0 by necessity, of any summary, falling: (D + D (D + 1) / 2,).

    The normalised NTK maps quadratic functions to quadratic functions, so its operator is a matrix
    in an orthonormal basis of them; float64, exact, at a cost of D^6: for D up to about 60.
    """
    mean, second = (np.asarray(part, np.float64) for part in of)
    d = len(mean)
    upper = np.triu_indices(d)
    # Symmetric matrices of Frobenius norm 1, one for each pair i <= j.
    basis = np.zeros((len(upper[0]), d, d))
    scale = np.where(upper[0] == upper[1], 0.5, np.sqrt(0.5))
    for axes in (upper, upper[::-1]):
        basis[(np.arange(len(scale)), *axes)] += scale

    # K(x, x') = psi(x)^T Theta psi(x'), psi = (x, x x^T).
    mixed = epsilon * np.einsum("kij,j->ik", basis, mean)
    square = epsilon**2 * np.einsum("kij,il,mlj->km", basis, second, basis, optimize=True)
    theta = np.block([[np.eye(d), mixed], [mixed.T, (square + square.T) / 2]])
    # The root of E psi psi^T, which is I / D and A -> (2 A + tr(A) I) / D^2; eigenvectors of the
    # second are I / sqrt(D) and what is orthogonal to it.
    trace = np.einsum("kii->k", basis) / np.sqrt(d)
    root = np.sqrt(2) * np.eye(len(trace))
    root += (np.sqrt(d + 2) - np.sqrt(2)) * np.outer(trace, trace)
    whiten = np.zeros_like(theta)
    whiten[:d, :d] = np.eye(d) / np.sqrt(d)
    whiten[d:, d:] = root / d
    return np.linalg.eigvalsh(whiten @ theta @ whiten)[::-1]


def spectrum_without_mean(second: np.ndarray, epsilon: float) -> np.ndarray:
    """The same where wbar = 0, from the eigenvalues mu of M, at a cost of D^3.

    1 / D for the linear functions, epsilon^2 (mu_i + mu_j) / D^2 for x_i x_j with i < j, and the
    eigenvalues of epsilon^2 diag(mu)^1/2 C diag(mu)^1/2, C = (1 1^T + 2 I) / D^2. At finite width
    |wbar|^2 = D / N on average, which moves these by a term of that order.
    """
    mu = np.maximum(np.linalg.eigvalsh(np.asarray(second, np.float64)), 0)
    d = len(mu)
    i, j = np.triu_indices(d, k=1)
    diagonal = np.sqrt(np.outer(mu, mu)) * (np.ones((d, d)) + 2 * np.eye(d))
    own = np.linalg.eigvalsh(diagonal)
    parts = [np.full(d, 1 / d), epsilon**2 / d**2 * (mu[i] + mu[j]), epsilon**2 / d**2 * own]
    return np.sort(np.concatenate(parts))[::-1]


def population_loss(
    kernel: jax.Array,
    teacher: Quadratic,
    *,
    alpha: ArrayLike,
    epsilon: ArrayLike,
    origin: Quadratic | None = None,
) -> Terms:
    """E (f - y)^2 over x ~ N(0, I / D) for y = ``teacher(x)``, in three terms: no test set needed.

    Args:
        kernel: (D, N).
        origin: what is subtracted from f where outputs are centred: f at the start of training.
    """
    f = closed_form(kernel, alpha, epsilon)
    return ((f if origin is None else f - origin) - teacher).square()


def kernel_gradient(
    kernel: jax.Array, slopes: Quadratic, *, alpha: ArrayLike, epsilon: ArrayLike
) -> jax.Array:
    """(alpha / N) [a + epsilon B w_i] for each unit: (D, N), from the slopes of a loss by f.

    Every loss reaches the weights through f, which is quadratic: ``slopes`` holds the loss's
    derivatives by the linear coefficients (a) and by each entry of the quadratic ones (B).
    """
    pull = slopes.linear[:, None] + epsilon * (slopes.quadratic @ kernel)
    return alpha / kernel.shape[1] * pull


def population_gradient(
    kernel: jax.Array,
    teacher: Quadratic,
    *,
    alpha: ArrayLike,
    epsilon: ArrayLike,
    origin: Quadratic | None = None,
) -> jax.Array:
    """The gradient of E (f - y)^2 / 2 by the kernel, (D, N).

    All units follow the same affine map of their own weights; a mask is the only thing that treats
    them differently.
    """
    f = closed_form(kernel, alpha, epsilon)
    slopes = ((f if origin is None else f - origin) - teacher).slopes()
    return kernel_gradient(kernel, slopes, alpha=alpha, epsilon=epsilon)


def draw(key: Key, inputs: int, units: int) -> jax.Array:
    """A kernel (D, N) with w_i ~ N(0, I)."""
    return jax.random.normal(key, (inputs, units))


@cache
def committee(
    inputs: int = 20, units: int = 100, epsilon: float = 0.5, alpha: float = 1.0
) -> Network:
    """The machine as a network: one prunable leaf ``committee/kernel`` (D, N), one output.

    alpha and epsilon are kept in the statistics, as ``committee/alpha`` and ``committee/epsilon``:
    they are data of every compiled program, so that a sweep over them shares one. Give other ones
    with `with_scales`. The readout 1 / N is fixed.

    Raises:
        SecateurError: for fewer than one input or unit.
    """
    if min(inputs, units) < 1:
        raise SecateurError(
            f"a committee machine has at least one input and one unit, not {inputs} and {units}."
        )

    def init(key: Key) -> tuple[Params, Stats]:
        params = {"committee": {"kernel": draw(fold(key, "committee"), inputs, units)}}
        return params, with_scales(alpha, epsilon)

    def apply(params: Params, stats: Stats, x: jax.Array) -> jax.Array:
        scales = stats["committee"]
        weights = params["committee"]["kernel"]
        return function(weights, x, scales["alpha"], scales["epsilon"])[:, None]

    def train(params: Params, stats: Stats, x: jax.Array, key: Key) -> tuple[jax.Array, Stats]:
        return apply(params, stats, x), stats

    return Network(f"committee-{inputs}-{units}", (inputs,), 1, init, apply, train)


def with_scales(alpha: Any, epsilon: Any) -> Stats:
    """Statistics of a `committee` of these scales; of many of them, if arrays are given."""
    return {
        "committee": {"alpha": jnp.asarray(alpha, float), "epsilon": jnp.asarray(epsilon, float)}
    }
