"""Means of finite kernels over random weights: the trace in closed form, and by draws.

Of a chain of products with ReLU between them, whose weights and biases are independent, symmetric
and of given variances, at any inputs and any mask,

    R(u) = E sum_n,c f_c(x_n)^2 = the flow of x^2 through u = m^2 sigma_l^2, halved above a ReLU
    E tr Theta_l = sigma_l^-2 sum over the weights e of layer l of u_e dR/du_e

as each gate is worth 1/2 and products of different paths have mean 0 (the proof in short is at
`prune.criteria.ntk_sap`, whose ``limit`` is the case without biases, R / sigma_l^2). What NTK-SAP
prunes by is an estimate of this number; its draws tend to it, and wide networks to the kernels of
`kernels.infinite` (Wang, Li & Sun 2023, section 3): `over_width` shows how fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.keys import Key, fold
from secateur.core.network import Network
from secateur.core.trees import Mask, flatten, unflatten
from secateur.kernels.ensemble import DenseEnsemble
from secateur.kernels.infinite import analytic_kernels, masked_kernels
from secateur.kernels.ntk import ntk
from secateur.structure.chain import Chain, chain
from secateur.structure.flow import flow

_LARGEST = math.log(np.finfo(np.float64).max)


class ExpectedTrace(NamedTuple):
    """E tr Theta in logarithms, summed over examples and outputs.

    Attributes:
        log: log E tr Theta; -inf where no path is left.
        shares: leaf -> its weights' part; they sum to 1, or are 0 without a path.
    """

    log: float
    shares: dict[str, float]

    @property
    def value(self) -> float:
        """E tr Theta itself, inf where it is beyond the largest number."""
        return math.exp(self.log) if self.log < _LARGEST else math.inf


def expected_trace(
    network: Network,
    variances: Mapping[str, float],
    x: Any,
    *,
    mask: Mask | None = None,
    counted: Callable[[str], bool] | None = None,
) -> ExpectedTrace:
    """The mean of the NTK's trace over random weights, exactly, for any width, inputs and mask.

    For chains of dense layers and convolutions with ReLU between them and a dense head
    (`structure.chain`), weights independent, symmetric about 0 and without atoms. Counted biases
    that start at 0 are counted as if no unit's whole input were ever off, which is so but for one
    example in 2^k, k the unit's live inputs.

    Args:
        variances: leaf -> variance of each of its weights; every kernel, and those biases that do
            not start at 0. `DenseEnsemble.variances` gives them.
        x: (n, *input_shape).
        mask: booleans or real gates; None, or None at a leaf, where nothing is masked.
        counted: which leaves count, by name; all by default, as in `kernels.ntk.ntk`.
            ``lambda name: "kernel" in name`` counts what NTK-SAP prunes.

    Raises:
        SecateurError: for a network that is no such chain, or variances that are missing, not
            positive or of leaves that it has not.
    """
    shapes, stats = jax.eval_shape(network.init, jax.random.key(0))
    found = chain(network, shapes, stats)
    _check(network, found, variances, flatten(shapes))
    given = {} if mask is None else flatten(mask)
    x = jnp.asarray(x)
    dtype = jnp.result_type(x.dtype, float)
    n, v = len(x), jnp.sum(x.astype(dtype) ** 2, axis=0)

    def squares(name: str) -> jax.Array:
        gate = given.get(name)
        shape = flatten(shapes)[name].shape
        return jnp.ones(shape, dtype) if gate is None else jnp.asarray(gate, dtype) ** 2

    # Without biases every path goes through all gates, wherever they stand.
    gate = 2.0 ** (-found.gates / max(len(found.kernels) - 1, 1))
    u = {
        name: squares(name) * (variances[name] * (1 if l == 0 else gate))
        for l, name in enumerate(found.kernels)
    }
    drawn = {name: squares(name) * (variances.get(name, 0) * n) for name in found.biases}

    def through(u: dict[str, jax.Array], biases: dict[str, jax.Array], v: Any) -> Any:
        """R with its frozen exponent: paths from v and from these biases, as they are."""
        rest = {k: jnp.zeros(s.shape, dtype) for k, s in flatten(shapes).items() if k not in u}
        fixed = unflatten({k: (u | rest | biases)[k] for k in flatten(shapes)}, shapes)
        weights = unflatten({k: u.get(k) for k in flatten(shapes)}, shapes)
        r = flow(network, fixed, stats, weights, v, power=1, keep_bias=True)
        return r.value, r.exponent

    is_counted = counted or (lambda name: True)
    (_, exponent), slope = jax.value_and_grad(through, has_aux=True)(u, drawn, v)
    shift = float(exponent) * math.log(2)
    logs = {
        name: _log(jnp.sum(u[name] * slope[name])) + shift - math.log(variances[name])
        for name in found.kernels
        if is_counted(name)
    }
    for name in sorted(found.biases):
        if is_counted(name):  # R is linear in what begins here
            value, exponent = through(u, {name: n * squares(name)}, 0.0)
            logs[name] = _log(value) + float(exponent) * math.log(2)
    if not logs:
        raise SecateurError(
            f"no leaf is counted; {network.name} has {', '.join(sorted({*u, *drawn}))}."
        )
    top = max(logs.values())
    if top == -math.inf:
        return ExpectedTrace(top, dict.fromkeys(logs, 0.0))
    total = top + math.log(sum(math.exp(part - top) for part in logs.values()))
    return ExpectedTrace(total, {name: math.exp(part - total) for name, part in logs.items()})


def _log(value: Any) -> float:
    return math.log(float(value)) if float(value) > 0 else -math.inf


def _check(
    network: Network, found: Chain, variances: Mapping[str, float], leaves: Mapping[str, Any]
) -> None:
    if found.why:
        raise SecateurError(
            "the mean trace is known for chains of dense layers and convolutions with ReLU between "
            f"them and a dense head, and {network.name} is none: {found.why}; take mean_kernel."
        )
    if found.biases and found.gates != len(found.kernels) - 1:
        raise SecateurError(
            f"{network.name} has biases and {found.gates} ReLU between {len(found.kernels)} "
            "products, and the mean trace is known with one between each two; take mean_kernel."
        )
    known = {*found.kernels, *found.biases}
    for name, variance in variances.items():
        if name not in known:
            raise SecateurError(
                f"there is a variance for {name!r}, and {network.name} draws {sorted(known)}."
            )
        if not 0 <= variance < math.inf or (variance == 0 and name in found.kernels):
            raise SecateurError(f"the variance of {name!r} is {variance}; give a positive number.")
    for name in found.kernels:
        if name not in variances:
            raise SecateurError(f"the variance of {name!r} is missing; give that of every kernel.")


@dataclass(frozen=True, eq=False)
class MeanKernel:
    """The mean of empirical kernels over draws of weights.

    Attributes:
        values: float64, in the shape of `kernels.ntk.ntk`.
        errors: the standard error of each value: deviation of single draws / sqrt(draws).
        draws: how many, at least 2.
        trace, trace_error: of kernels of examples with themselves, sum of the diagonal and its
            standard error; None between different examples.
    """

    values: np.ndarray
    errors: np.ndarray
    draws: int
    trace: float | None
    trace_error: float | None


def kernel_draws(
    network: Network, x: Any, x2: Any = None, *, key: Key, draws: int, **options: Any
) -> Iterator[np.ndarray]:
    """One empirical NTK after the other, float64, each at weights of its own from ``init``.

    The weights of draw k hang on ``key`` and k alone. ``options`` of `kernels.ntk.ntk`: ``mask``,
    ``outputs``, ``counted``, ``memory``; its errors.
    """
    for k in range(draws):
        params, stats = network.init(fold(key, "draw", k))
        yield ntk(network, params, x, x2, stats=stats, **options).values.astype(np.float64)


def mean_kernel(
    network: Network, x: Any, x2: Any = None, *, key: Key, draws: int = 100, **options: Any
) -> MeanKernel:
    """The expected kernel by Monte Carlo, of any network with any mask.

    Args:
        x, x2, options: as of `kernel_draws`.
        draws: of the weights; the error falls like 1 / sqrt(draws).

    Raises:
        SecateurError: for fewer than 2 draws; and what `kernels.ntk.ntk` raises.
    """
    if draws < 2:
        raise SecateurError(f"a mean with its error takes at least 2 draws, not {draws}.")
    mean = squares = np.zeros(())
    traces = []
    for k, kernel in enumerate(kernel_draws(network, x, x2, key=key, draws=draws, **options), 1):
        # Welford 1962: no difference of large sums of squares.
        step = kernel - mean
        mean = mean + step / k
        squares = squares + step * (kernel - mean)
        if x2 is None:
            traces.append(_trace(kernel))
    errors = np.sqrt(squares / (draws - 1) / draws)
    if x2 is not None:
        return MeanKernel(mean, errors, draws, None, None)
    error = float(np.std(traces, ddof=1)) / math.sqrt(draws)
    return MeanKernel(mean, errors, draws, float(np.mean(traces)), error)


def _trace(kernel: np.ndarray) -> float:
    """Of [n, C, n, C], [n, n] or [n, n, C]."""
    if kernel.ndim == 3:
        return float(np.einsum("nnc->", kernel))
    rows = math.isqrt(kernel.size)
    return float(np.trace(kernel.reshape(rows, rows)))


def over_width(
    ensemble: DenseEnsemble,
    widths: Sequence[int],
    x: Any,
    *,
    key: Key,
    draws: int = 50,
    mask: Callable[[Network], Mask] | None = None,
) -> list[dict[str, float]]:
    """Single draw, mean and analytic kernel side by side, for every hidden layer this wide.

    Wang, Li & Sun 2023, section 3: the kernel of one draw lies about its mean by 1 / sqrt(width),
    the mean comes to the analytic kernel faster (by 1 / width, and is it with one hidden layer), so
    that draws averaged stand for a wide network where one draw does not.

    Args:
        ensemble: its depth, variances and parametrisation; its own widths do not count.
        x: (n, ...).
        mask: gives each width's network its mask, booleans; the analytic kernel is then that of
            `infinite.masked_kernels`.

    Returns:
        A row for each width: ``width``, ``weights`` (their number, with biases; under a mask those
        that are left), ``draws``, and
        distances of full kernels [n, C, n, C] in the Frobenius norm over that of the analytic one:
        ``draw_to_mean`` and ``draw_to_analytic`` (root mean square over draws; the former about the
        true mean) with ``_error``, their standard errors; ``mean_to_analytic``, and
        ``mean_to_analytic_noise``, what it would be from the number of draws alone; ``trace``, the
        mean trace over the analytic one, with ``trace_error``, and ``trace_spread``, the deviation
        of a single draw's.

    Raises:
        SecateurError: for fewer than 2 draws or an ensemble without hidden layers.
    """
    if draws < 2 or not ensemble.hidden:
        raise SecateurError(
            f"kernels over width take at least 2 draws and 1 hidden layer, not {draws} and "
            f"{len(ensemble.hidden)}."
        )
    rows = []
    for width in widths:
        wide = replace(ensemble, hidden=(width,) * len(ensemble.hidden))
        network = wide.network()
        held = None if mask is None else mask(network)
        infinite = analytic_kernels(wide, x) if held is None else masked_kernels(wide, held, x)
        analytic = infinite.full(wide.outputs)
        size, own = float(np.linalg.norm(analytic)), _trace(analytic)
        key_of = fold(key, "width", width)
        each = kernel_draws(network, x, key=key_of, draws=draws, mask=held)
        kernels = np.stack(list(each)) / size
        mean, axes = kernels.mean(axis=0), (1, 2, 3, 4)
        # Deviations from the sample's own mean are smaller by (draws - 1) / draws.
        about_mean = ((kernels - mean) ** 2).sum(axis=axes) * (draws / (draws - 1))
        about_analytic = ((kernels - analytic / size) ** 2).sum(axis=axes)
        traces = np.array([_trace(kernel) for kernel in kernels]) * (size / own)
        spread = float(np.std(traces, ddof=1))
        to_mean, to_analytic = _root(about_mean), _root(about_analytic)
        rows.append(
            {
                "width": width,
                "weights": _kept(network, held),
                "draws": draws,
                "draw_to_mean": to_mean[0],
                "draw_to_mean_error": to_mean[1],
                "draw_to_analytic": to_analytic[0],
                "draw_to_analytic_error": to_analytic[1],
                "mean_to_analytic": float(np.linalg.norm(mean - analytic / size)),
                "mean_to_analytic_noise": to_mean[0] / math.sqrt(draws),
                "trace": float(traces.mean()),
                "trace_error": spread / math.sqrt(draws),
                "trace_spread": spread,
            }
        )
    return rows


def _kept(network: Network, mask: Mask | None) -> int:
    """Parameters that are left."""
    shapes = flatten(jax.eval_shape(network.init, jax.random.key(0))[0])
    gates = {} if mask is None else flatten(mask)
    of = lambda name: np.ones(shapes[name].shape) if gates.get(name) is None else gates[name]
    return sum(int(np.count_nonzero(of(name))) for name in shapes)


def _root(squared: np.ndarray) -> tuple[float, float]:
    """Root mean square with its standard error, from independent squares."""
    root = math.sqrt(float(squared.mean()))
    error = float(np.std(squared, ddof=1)) / math.sqrt(len(squared))
    return root, error / (2 * root) if root > 0 else 0.0
