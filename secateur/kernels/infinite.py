"""Kernels of dense ReLU networks over random weights: the recursions of infinite width.

Of wide networks with random weights the outputs are a Gaussian process (its covariance is the NNGP
kernel) and the tangent kernel stands still at its mean. Layer by layer (Lee et al. 2018, eq. 4;
Jacot, Gabriel & Hongler 2018, theorem 1; Lee et al. 2019; Sohl-Dickstein et al. 2020):

    Sigma_1 = s_w x.x' / n_0 + s_b            Sigma_l+1 = s_w E[phi(u) phi(v)] + s_b
    Theta_1 = G(x.x' / n_0)                   Theta_l+1 = G(E[phi(u) phi(v)])
                                                          + s_w E[phi'(u) phi'(v)] Theta_l

(u, v) Gaussian of covariance Sigma_l. G(k) is what a layer's own parameters add: s_w k + s_b in the
NTK parametrisation, n k + 1 in the standard one, n the layer's fan-in. For ReLU the means are the
arc-cosine kernels of degrees 1 and 0 (Cho & Saul 2009). A mask makes units differ; the
same recursion is then run for each unit (`masked_kernels`).

Instead of Sigma(x, x') the squared distance D = Sigma(x, x) + Sigma(x', x') - 2 Sigma(x, x') is
carried: angles between nearly equal examples, on which the derivative's kernel hangs, lose half
their digits in a cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.trees import Mask, flatten
from secateur.kernels.ensemble import DenseEnsemble


@dataclass(frozen=True, eq=False)
class InfiniteKernels:
    """The two kernels of an ensemble, float64.

    Attributes:
        nngp: E[f_c(x) f_c(x')], (n, m), the same for all outputs; (n, m, C) where a mask makes
            outputs differ.
        ntk: E[Theta] of an output with itself, likewise. Between different outputs both are 0.
    """

    nngp: np.ndarray
    ntk: np.ndarray

    def full(self, outputs: int) -> np.ndarray:
        """The NTK as `kernels.ntk.ntk` gives it, ``[n, C, m, C]``, C = ``outputs``."""
        each = self.ntk if self.ntk.ndim == 3 else np.repeat(self.ntk[:, :, None], outputs, axis=2)
        return np.einsum("nmc,cd->ncmd", each, np.eye(outputs))


def relu_moments(q1: Any, q2: Any, d: Any) -> tuple[np.ndarray, np.ndarray]:
    """Means over (u, v), Gaussian of mean 0, of what ReLU makes of them. Cho & Saul 2009.

    >>> apart, together = relu_moments(1.0, 1.0, 2.0)  # independent
    >>> round(float(apart), 6), float(together)
    (0.68169, 0.25)

    Args:
        q1, q2: E u^2 and E v^2, arrays that broadcast.
        d: E (u - v)^2.

    Returns:
        E (phi(u) - phi(v))^2, and E phi'(u) phi'(v) with phi'(0) = 0, as JAX has it.
    """
    r1, r2 = np.sqrt(q1), np.sqrt(q2)
    size, gap = r1 * r2, (r1 - r2) ** 2
    near = np.maximum(d - gap, 0)  # 2 size (1 - cos)
    far = np.maximum(2 * (np.asarray(q1) + q2) - d - gap, 0)  # 2 size (1 + cos)
    angle = 2 * np.arctan2(np.sqrt(near), np.sqrt(far))
    # E phi(u) phi(v) = size (sin + (pi - angle) cos) / 2 pi, and E phi(u)^2 = q1 / 2.
    apart = np.asarray(d) / 2 - size * (np.sin(angle) - angle * np.cos(angle)) / np.pi
    together = np.where(size > 0, (np.pi - angle) / (2 * np.pi), 0)
    return np.maximum(apart, 0)[()], together[()]


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer's constants, between kinds of units that differ: one kind where there is no mask.

    Attributes:
        mixed: (in, out), the weights' variances summed over the units of a kind.
        counted: (in, out), the squared derivatives of the acting weights by their parameters.
        shift: (out,), the biases' variance.
        counted_shift: (out,), the biases' own part of the NTK.
    """

    mixed: np.ndarray
    counted: np.ndarray
    shift: np.ndarray
    counted_shift: np.ndarray


def analytic_kernels(
    ensemble: DenseEnsemble, x: Any, x2: Any = None, *, memory: float = 1e9
) -> InfiniteKernels:
    """The NNGP kernel and the NTK of the recursion, between all examples of x and x2 (or of x).

    With one hidden layer, and on the diagonal at any depth, they are the means over weights at
    these widths, exactly (the diagonal for any symmetric weights); elsewhere the means differ by
    terms of order 1 / width. In the standard parametrisation the widths of the ensemble count.
    Where biases start at 0 a unit whose whole input is off, at one example in 2^width, is
    neglected.

    Args:
        x, x2: (n, ...), (m, ...), flattened to ``ensemble.inputs`` numbers an example.
        memory: bytes beside the result; rows are taken in blocks that fit.

    Raises:
        SecateurError: for examples of another size.
    """
    nngp, ntk = _recursion(_alike(ensemble), ensemble.inputs, x, x2, memory)
    return InfiniteKernels(nngp[:, :, 0], ntk[:, :, 0])


def masked_kernels(
    ensemble: DenseEnsemble, mask: Mask, x: Any, x2: Any = None, *, memory: float = 1e9
) -> InfiniteKernels:
    """The same for networks with this mask, unit by unit: the kernel over the surviving weights.

    Exact where `analytic_kernels` is; elsewhere the mean differs by terms of order 1 / (live inputs
    of a unit), as each unit's input is taken for Gaussian.

    Args:
        mask: as of ``ensemble.network()``: arrays for leaves ``dense_l/kernel`` (and
            ``dense_l/bias``), booleans or real gates, or None where nothing is masked, which counts
            in full.

    Returns:
        Kernels (n, m, C).

    Raises:
        SecateurError: for examples of another size or a mask that does not fit.
    """
    return InfiniteKernels(*_recursion(_units(ensemble, mask), ensemble.inputs, x, x2, memory))


def _alike(of: DenseEnsemble) -> list[_Layer]:
    """Without a mask one unit stands for all of its layer; only the inputs differ."""
    layers: list[_Layer] = []
    standard = of.parametrisation == "standard"
    for fan_in, s_w, s_b in zip(of.widths, of.weight_variances, of.bias_variances):
        kinds = 1 if layers else fan_in
        mixed = np.full((kinds, 1), s_w / kinds)
        counted = np.full((kinds, 1), fan_in / kinds) if standard else mixed
        counted_shift = (1.0 if standard else s_b) if of.biases else 0.0
        layers.append(_Layer(mixed, counted, np.array([s_b]), np.array([counted_shift])))
    return layers


def _units(of: DenseEnsemble, mask: Mask) -> list[_Layer]:
    """Every unit by itself."""
    shapes: dict[str, tuple[int, ...]] = {}
    for l, (fan_in, fan_out) in enumerate(pairwise(of.widths), start=1):
        shapes[f"dense_{l}/kernel"] = (fan_in, fan_out)
        if of.biases:
            shapes[f"dense_{l}/bias"] = (fan_out,)
    gates = flatten(mask)
    for name, gate in gates.items():
        if gate is not None and np.shape(gate) != shapes.get(name):
            raise SecateurError(
                f"the mask's leaf {name!r} is {np.shape(gate)}, expected "
                f"{shapes.get(name, 'none of this name')}; give a mask of ensemble.network()."
            )

    def squares(name: str) -> np.ndarray:
        gate = gates.get(name)
        return np.ones(shapes[name]) if gate is None else np.asarray(gate, np.float64) ** 2

    layers = []
    standard = of.parametrisation == "standard"
    each = zip(pairwise(of.widths), of.weight_variances, of.bias_variances)
    for l, ((fan_in, fan_out), s_w, s_b) in enumerate(each, start=1):
        m2 = squares(f"dense_{l}/kernel")
        b2 = squares(f"dense_{l}/bias") if of.biases else np.zeros(fan_out)
        mixed = s_w / fan_in * m2
        counted_shift = (1.0 if standard else s_b) * b2
        layers.append(_Layer(mixed, m2 if standard else mixed, s_b * b2, counted_shift))
    return layers


def _recursion(
    layers: Sequence[_Layer], inputs: int, x: Any, x2: Any, memory: float
) -> tuple[np.ndarray, np.ndarray]:
    """NNGP kernel and NTK, (n, m, kinds of outputs), in blocks of rows."""
    first, second = _examples(x, inputs), _examples(x if x2 is None else x2, inputs)
    n, m, last = len(first), len(second), layers[-1].mixed.shape[1]
    nngp, ntk = np.empty((2, n, m, last))
    # Kernels of one layer and what becomes of them: about eight arrays are held at a time.
    widest = max(max(layer.mixed.shape) for layer in layers)
    rows = max(1, int(memory / (8 * 8 * m * widest)))
    for begin in range(0, n, rows):
        block = slice(begin, begin + rows)
        nngp[block], ntk[block] = _block(layers, first[block], second)
    if x2 is None:  # what differs by rounding alone
        nngp, ntk = ((k + np.swapaxes(k, 0, 1)) / 2 for k in (nngp, ntk))
    return nngp, ntk


def _examples(x: Any, inputs: int) -> np.ndarray:
    given = np.asarray(x, np.float64)
    found = given.reshape(len(given), -1) if given.ndim > 1 else given
    if found.ndim != 2 or found.shape[1] != inputs:
        raise SecateurError(
            f"x is {given.shape}, expected (n, {inputs}), {inputs} numbers an example."
        )
    return found


def _block(
    layers: Sequence[_Layer], x: np.ndarray, x2: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One block of rows: mean squares a of what enters a layer, distances, and the kernel so far.

    Shapes: (rows, 1, kinds), (1, m, kinds), (rows, m, kinds).
    """
    a1, a2 = (x**2)[:, None, :], (x2**2)[None, :, :]
    apart = (x[:, None, :] - x2[None, :, :]) ** 2
    below: np.ndarray | None = None
    for l, layer in enumerate(layers):
        ntk = ((a1 + a2 - apart) / 2) @ layer.counted + layer.counted_shift
        if below is not None:
            ntk += below @ layer.mixed
        q1, q2 = a1 @ layer.mixed + layer.shift, a2 @ layer.mixed + layer.shift
        d = apart @ layer.mixed
        if l < len(layers) - 1:
            apart, together = relu_moments(q1, q2, d)
            a1, a2, below = q1 / 2, q2 / 2, together * ntk
    return (q1 + q2 - d) / 2, ntk
