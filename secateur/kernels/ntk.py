"""The empirical neural tangent kernel of any function, over the weights that a mask has left.

Theta[n, c, m, d] = sum over counted weights e of df_c(x_n)/dw_e df_d(x_m)/dw_e, w = mask * theta:
what decides how the pruned network begins to train (Jacot, Gabriel & Hongler 2018). Leaves are
taken in the form that their sites allow (`kernels.factors`), by the rule of the fewest operations
(`kernels.rules`); `plan` tells which before anything runs, and a leaf that takes every example's
own backward passes is warned of, once a function (`subject.DifferentiatedWarning`). Blocks of
examples keep to a stated memory; of a symmetric kernel one half is formed, and the other is its
mirror image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.kernels.job import Settings, check_memory, prepare
from secateur.kernels.operator import Operator
from secateur.kernels.plan import Plan
from secateur.kernels.products import operator_of
from secateur.kernels.subject import Subject, subject
from secateur.structure.sites import Function


@dataclass(frozen=True, eq=False)
class Kernel:
    """An empirical tangent kernel.

    Attributes:
        values: ``[n, C, m, C]``, ``[n, m]`` or ``[n, m, C]``, by ``outputs``.
        outputs: a key of `rules.OUTPUTS`.
        counted: the leaves whose weights are counted.
        plan: how it was formed.
        seconds: CPU seconds that it took, compiling included where something was compiled.
    """

    values: np.ndarray
    outputs: str
    counted: tuple[str, ...]
    plan: Plan
    seconds: float

    def matrix(self) -> np.ndarray:
        """As a matrix: rows (n, c), the outputs of an example side by side; (n C, m C) or (n, m).

        Raises:
            SecateurError: for the diagonal over outputs, which is C matrices.
        """
        if self.outputs == "diagonal":
            raise SecateurError(
                "the kernel of each output with itself is one matrix an output: take "
                "kernel.values[:, :, c]."
            )
        if self.outputs != "full":
            return self.values
        n, c, m, _ = self.values.shape
        return self.values.reshape(n * c, m * c)

    def trace(self) -> float:
        """Sum of the diagonal over all examples and outputs (of a mean kernel, times 1 / C).

        Raises:
            SecateurError: for a kernel between different examples.
        """
        n, m = self.plan.examples
        if n != m:
            raise SecateurError(f"a kernel of {n} with {m} examples has no trace.")
        if self.outputs == "diagonal":
            return float(np.einsum("nnc->", self.values, dtype=np.float64))
        return float(np.trace(self.matrix(), dtype=np.float64))


def ntk(
    f: Function | Network,
    params: Any,
    x: Any,
    x2: Any = None,
    *,
    stats: Any = None,
    mask: Any = None,
    masked_point: bool = True,
    counted: Callable[[str], bool] | None = None,
    outputs: str = "full",
    memory: float = 1e9,
    rule: str = "auto",
    block_size: int | None = None,
) -> Kernel:
    """The kernel between all examples of ``x``, or between those of ``x`` and of ``x2``.

    Args:
        f: a `Network` (give its ``stats``), or any ``f(params, x) -> (n, C)``.
        params: a tree of arrays.
        x, x2: examples, (n, ...) and (m, ...), or trees of such arrays.
        stats: the batch statistics of a network.
        mask: the tree of ``params`` with 0 and 1 (or booleans) where weights are masked, None where
            all of a leaf counts.
        masked_point: derivatives are taken at ``mask * params``; else at ``params``, and the mask
            only says which of them count.
        counted: which leaves count, by name; all by default.
        outputs: a key of `rules.OUTPUTS`. ``trace`` is the sum over outputs; neural-tangents'
            ``trace_axes`` is the ``mean``.
        memory: bytes beside the result that may be held; blocks are made to fit.
        rule: a key of `job.RULES`, to take one rule wherever it is exact.
        block_size: examples a side of one block; by the rules where None. Results differ by
            rounding alone.

    Returns:
        The kernel, in the dtype of the outputs.

    Raises:
        SecateurError: what `subject.subject` refuses; an unknown word; a result that is larger than
            the machine's free memory, before any work, with the numbers and what to do.
    """
    begun = time.process_time()
    settings = Settings(outputs, memory, rule, block_size)
    about = {"stats": stats, "mask": mask, "masked_point": masked_point, "counted": counted}
    job = prepare(*_subjects(f, params, x, x2, about), settings)
    check_memory(job.plan)
    values = np.zeros(job.shape, np.dtype(job.first.dtype))
    for rows, columns, part in job.blocks():
        values[job.place(rows, columns)] += part
        if job.mirrored and rows != columns:
            values[job.place(columns, rows)] += _mirror(part, outputs)
    if outputs == "mean":
        values /= job.first.outputs
    names = tuple(job.first.shown(name) for name in job.first.counted)
    return Kernel(values, outputs, names, job.plan, time.process_time() - begun)


def ntk_blocks(
    f: Function | Network,
    params: Any,
    x: Any,
    x2: Any = None,
    *,
    stats: Any = None,
    mask: Any = None,
    masked_point: bool = True,
    counted: Callable[[str], bool] | None = None,
    outputs: str = "full",
    memory: float = 1e9,
    rule: str = "auto",
    block_size: int | None = None,
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """The same block by block, for kernels that no memory holds: ``(rows, columns, block)``.

    Of a kernel of ``x`` with itself the blocks on and below the diagonal come. Arguments of `ntk`.
    """
    settings = Settings(outputs, memory, rule, block_size)
    about = {"stats": stats, "mask": mask, "masked_point": masked_point, "counted": counted}
    job = prepare(*_subjects(f, params, x, x2, about), settings, whole=True)
    scale = job.first.outputs if outputs == "mean" else 1
    for rows, columns, part in job.blocks():
        yield rows, columns, part / scale


def plan(
    f: Function | Network,
    params: Any,
    x: Any,
    x2: Any = None,
    *,
    stats: Any = None,
    mask: Any = None,
    masked_point: bool = True,
    counted: Callable[[str], bool] | None = None,
    outputs: str = "full",
    memory: float = 1e9,
    rule: str = "auto",
    block_size: int | None = None,
) -> Plan:
    """What `ntk` would do: print it. Arguments of `ntk`; three examples alone are computed."""
    settings = Settings(outputs, memory, rule, block_size)
    about = {"stats": stats, "mask": mask, "masked_point": masked_point, "counted": counted}
    return prepare(*_subjects(f, params, x, x2, about), settings).plan


def ntk_operator(
    f: Function | Network,
    params: Any,
    x: Any,
    *,
    stats: Any = None,
    mask: Any = None,
    masked_point: bool = True,
    counted: Callable[[str], bool] | None = None,
    memory: float = 1e9,
) -> Operator:
    """The full kernel as a map of vectors (n C,), outputs fastest; never formed.

    By layers (`kernels.products`) where the factors of all examples fit into ``memory`` bytes: no
    pass through the network a product, and the trace is known. Else Theta v = J (mask * (J^T v)), a
    backward and a linearised forward pass a product.

    Args:
        f, params, x: as for `ntk`.
        memory: bytes that the factors may take; 0 for passes.
        stats, mask, masked_point, counted: as for `ntk`.

    Raises:
        SecateurError: what `subject.subject` refuses.
    """
    given = subject(
        f, params, x, stats=stats, mask=mask, masked_point=masked_point, counted=counted
    )
    if memory > 0:
        job = prepare(given, None, Settings(memory=4 * memory))
        if job.part >= given.n:
            return operator_of(job.layers())
    names, tree = given.prepared.sites.names, jax.tree.structure(given.params)
    held = given.leaves()
    some = {name: held[name] for name in given.counted}

    def outputs(leaves: dict[str, Any]) -> jax.Array:
        whole = jax.tree.unflatten(tree, [(held | leaves)[name] for name in names])
        return given.prepared.f(whole, given.x).reshape(-1)

    gates = {k: jnp.asarray(given.weights[k], held[k].dtype) for k in some if k in given.weights}
    _, forward = jax.linearize(outputs, some)
    backward = jax.linear_transpose(forward, some)
    product = jax.tree_util.Partial(_product, forward, backward, gates)
    return Operator(given.n * given.outputs, given.dtype, product)


def _product(forward: Any, backward: Any, gates: dict[str, Any], v: jax.Array) -> jax.Array:
    (felt,) = backward(v)
    return forward({k: g * gates[k] if k in gates else g for k, g in felt.items()})


def _subjects(
    f: Function | Network, params: Any, x: Any, x2: Any, about: dict[str, Any]
) -> tuple[Subject, Subject | None]:
    first = subject(f, params, x, **about)
    return first, None if x2 is None else subject(f, params, x2, **about)


def _mirror(part: np.ndarray, outputs: str) -> np.ndarray:
    return np.transpose(part, (2, 3, 0, 1)) if outputs == "full" else np.swapaxes(part, 0, 1)
