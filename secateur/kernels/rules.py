"""How a block of a kernel is formed from factors, one rule a layer. Exact, all of them.

With a (n, j) what enters a dense layer, d (n, c, i) what feels its output, r its mask and b what
its bias counts, a layer's part of the kernel between examples n and m, outputs c and d is

    sum_i (b_i + G_i[n, m]) d[n, c, i] e[m, d, i],    G_i = sum_j r_ji a[n, j] a'[m, j]

``dense``: nothing is masked, G is the same for every unit, and one product of matrices remains:
    (b + a a'^T)[n, m] (d e^T)[nc, md].
``rows``: G_i unit by unit, from the inputs that are left of each, then a product an example.
``columns``: the Jacobian at the kept weights, one product of matrices. For layers with few weights
    a unit, for convolutions, norms, and what has no site.

Rows are of unlike lengths, so that they are sorted into buckets, each as long as its longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from secateur.kernels.factors import Factors, Product

BUCKETS = 8
OUTPUTS = {
    "full": "every pair of outputs: [n, C, m, C]",
    "trace": "summed over outputs: [n, m]",
    "mean": "averaged over outputs: [n, m], as neural-tangents' trace_axes",
    "diagonal": "each output with itself: [n, m, C]",
}


class Bucket(NamedTuple):
    """Units with about as many inputs left.

    Attributes:
        units: int (k,).
        inputs: int (k, longest); a number behind the last input stands for none.
        weights: (k, longest), what each counts; None where all count once.
        bias: (k,), what their bias counts.
    """

    units: Any
    inputs: Any
    weights: Any
    bias: Any


class Rule(NamedTuple):
    """Which rule a dense layer takes. Hashable: part of the program.

    Attributes:
        name: ``dense``, ``rows`` or ``columns``.
        bias: how many biases count in full, for ``dense``.
        last: its units are the outputs themselves.
    """

    name: str
    bias: int = 0
    last: bool = False


def buckets(
    mask: np.ndarray,
    bias: np.ndarray,
    live_inputs: np.ndarray,
    live_units: np.ndarray,
    coarse: bool = False,
) -> tuple[Bucket, ...]:
    """The inputs that are left of each live unit, as `Bucket`s.

    Args:
        mask: (inputs, units), what each weight counts: 0 or 1, or its square's factor.
        bias: (units,).
        live_inputs: (inputs,) bool: not 0 in every example.
        live_units: (units,) bool: felt by some output of some example.
        coarse: all units in one bucket as long as a power of two, so that masks share programs.
    """
    kept = (mask != 0) & live_inputs[:, None]
    counts = np.sum(kept, axis=0)
    if coarse:
        units, few = np.arange(len(counts)), 1
    else:
        units = np.flatnonzero(live_units & ((counts > 0) | (bias != 0)))
        units, few = units[np.argsort(counts[units], kind="stable")], BUCKETS
    binary = bool(np.all((mask == 0) | (mask == 1)))
    made = []
    for some in np.array_split(units, min(few, max(1, len(units)))):
        if not len(some):
            continue
        most = max(1, int(counts[some].max()))
        # Few lengths, so that programs are shared.
        longest = min(len(mask), 1 << (most - 1).bit_length()) if coarse else -(-most // 8) * 8
        inputs = np.full((len(some), longest), len(mask), np.int32)
        weights = np.zeros(inputs.shape, np.float32 if mask.dtype != np.float64 else np.float64)
        for k, unit in enumerate(some):
            found = np.flatnonzero(kept[:, unit])
            inputs[k, : len(found)] = found
            weights[k, : len(found)] = mask[found, unit]
        made.append(Bucket(some.astype(np.int32), inputs, None if binary else weights, bias[some]))
    return tuple(made)


def _grams(a: jax.Array, b: jax.Array, bucket: Bucket, each: Any, start: Any) -> Any:
    """Scans ``each(carry, unit, b + G)`` over a bucket's units; a, b are (inputs + 1, n)."""

    def step(carry: Any, row: Any) -> Any:
        unit, inputs, weights, bias = row
        left = a[inputs] if weights is None else a[inputs] * weights[:, None]
        return each(carry, unit, left.T @ b[inputs] + bias)

    return jax.lax.scan(step, start, bucket)


def _turned(a: jax.Array) -> jax.Array:
    """(n, inputs) as (inputs + 1, n), the last row 0."""
    return jnp.pad(a.T, ((0, 1), (0, 0)))


def _stacked(first: Product, second: Product, rows: Sequence[Bucket]) -> tuple[Any, Any, Any]:
    """b + G of all live units, (n, m, units), and what feels them, in the order of the buckets."""
    a, b = _turned(first.entered), _turned(second.entered)
    each = lambda carry, unit, gram: (carry, gram)
    grams = [_grams(a, b, bucket, each, None)[1] for bucket in rows]
    order = jnp.concatenate([bucket.units for bucket in rows])
    gram = jnp.transpose(jnp.concatenate(grams), (1, 2, 0))
    return gram, first.felt[:, :, order], second.felt[:, :, order]


def _full_rows(first: Product, second: Product, rows: Sequence[Bucket], last: bool) -> jax.Array:
    """(n, C, m, C) of a masked dense layer."""
    if last:
        gram, _, _ = _stacked(first, second, rows)
        order = jnp.concatenate([bucket.units for bucket in rows])
        c = first.felt.shape[1]
        alone = jnp.zeros((*gram.shape[:2], c), gram.dtype).at[:, :, order].set(gram)
        return jnp.einsum("nmc,cd->ncmd", alone, jnp.eye(c, dtype=gram.dtype))
    gram, d, e = _stacked(first, second, rows)
    m, c, units = e.shape

    def one(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        g, d_n = part  # (m, units), (C, units)
        return d_n @ (g[:, None, :] * e).reshape(m * c, units).T

    return jax.lax.map(one, (gram, d)).reshape(d.shape[0], c, m, c)


def _summed_rows(first: Product, second: Product, rows: Sequence[Bucket], apart: bool) -> jax.Array:
    """(n, m), or (n, m, C) with the outputs apart, of a masked dense layer."""
    a, b = _turned(first.entered), _turned(second.entered)
    d, e = jnp.moveaxis(first.felt, 2, 0), jnp.moveaxis(second.felt, 2, 0)  # (units, n, C)
    shape = (a.shape[1], b.shape[1], *((d.shape[2],) if apart else ()))

    def each(total: jax.Array, unit: jax.Array, gram: jax.Array) -> tuple[jax.Array, None]:
        if apart:
            return total + gram[:, :, None] * (d[unit][:, None, :] * e[unit][None]), None
        return total + gram * (d[unit] @ e[unit].T), None

    total = jnp.zeros(shape, a.dtype)
    for bucket in rows:
        total, _ = _grams(a, b, bucket, each, total)
    return total


@jax.jit
def kept_columns(product: Product, rows: Sequence[Bucket]) -> jax.Array:
    """The Jacobian of a dense layer at its kept weights and biases, (n, C, kept)."""
    a = jnp.pad(product.entered, ((0, 0), (0, 1)))
    parts = []
    for bucket in rows:
        there = a[:, bucket.inputs]  # (n, units, longest)
        if bucket.weights is not None:
            there = there * jnp.sqrt(bucket.weights)
        felt = product.felt[:, :, bucket.units]
        parts.append((there[:, None] * felt[..., None]).reshape(*felt.shape[:2], -1))
        parts.append(felt * jnp.sqrt(bucket.bias))
    return jnp.concatenate(parts, axis=2)


def _paired(left: jax.Array, right: jax.Array, outputs: str) -> jax.Array:
    """Columns (n, C, k) and (m, C, k) to the kernel."""
    n, c, k = left.shape
    m = right.shape[0]
    if outputs == "full":
        return (left.reshape(n * c, k) @ right.reshape(m * c, k).T).reshape(n, c, m, c)
    if outputs == "trace":
        return left.reshape(n, c * k) @ right.reshape(m, c * k).T
    return jnp.stack([left[:, j] @ right[:, j].T for j in range(c)], axis=-1)


def _dense(first: Product, second: Product, bias: int, outputs: str) -> jax.Array:
    gram = first.entered @ second.entered.T + bias
    felt = _paired(first.felt, second.felt, outputs)
    spread = {"full": (slice(None), None, slice(None), None), "trace": (), "diagonal": (..., None)}
    return gram[spread[outputs]] * felt


@partial(jax.jit, static_argnums=(0, 1))
def block(
    rules: tuple[Rule, ...],
    outputs: str,
    first: Factors,
    second: Factors,
    rows: tuple[tuple[Bucket, ...], ...],
) -> jax.Array:
    """The kernel between two blocks of examples: (n, C, m, C), (n, m) or (n, m, C).

    Args:
        rules: one a product of the factors.
        outputs: ``full``, ``trace`` or ``diagonal``.
        rows: one a product: its buckets, empty where nothing of it is masked.
    """
    total: Any = 0.0
    for rule, a, b, kept in zip(rules, first.products, second.products, rows, strict=True):
        if rule.name == "dense":
            total = total + _dense(a, b, rule.bias, outputs)
        elif not kept:
            continue  # nothing of it is left
        elif outputs == "full":
            total = total + _full_rows(a, b, kept, rule.last)
        else:
            total = total + _summed_rows(a, b, kept, outputs == "diagonal")
    for name, left in first.columns.items():
        total = total + _paired(left, second.columns[name], outputs)
    if isinstance(total, float):
        n, c = first.outputs.shape
        m = second.outputs.shape[0]
        shape = {"full": (n, c, m, c), "trace": (n, m), "diagonal": (n, m, c)}[outputs]
        return jnp.zeros(shape, first.outputs.dtype)
    return total
