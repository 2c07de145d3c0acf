"""The kernel between two halves of a batch, for every pair of outputs, to be differentiated.

``K[n, m, c, d] = sum_e r_e df_c(x_n)/dw_e df_d(x_m)/dw_e`` over all parameters e. With r the mask
(1 where nothing may be pruned) it is the *masked* kernel J diag(m) J^T, which governs the training
of a pruned network; with r = 1 the *full* kernel at the same weights, which counts derivatives by
pruned weights, too (Liu & Zenke 2020, supplement A and published code).

A dense layer's part is formed from what enters it, a (n, I), and what it is felt by, d (n, C, J):
full ``(a a'^T)[n, m] (d d'^T)[n, c, m, d]``, masked ``sum_j G[n, m, j] d[n, c, j] d'[m, d, j]``
with ``G = sum_i m_ij a_i a'_i``. Nothing of the size of a Jacobian is held. Every other leaf takes
its Jacobian of every example, and what that costs: n C times its size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params, flatten, unflatten
from secateur.structure.capture import tapped
from secateur.structure.reader import read

KERNELS = {
    "masked": "counts surviving weights and what is never pruned: the kernel of masked training",
    "full": "counts pruned weights, too, at the same point, as the published code of NTT",
}


@dataclass(frozen=True)
class Plan:
    """How each leaf's part of the kernel is formed. Hashable, so that it is part of a program.

    Attributes:
        dense: kernel and number of units of each layer that is formed by products.
        biases: bias and the layer it is added to: d itself is its Jacobian.
        rest: leaves that take their Jacobian of every example.
        why: the reason of each of these.
    """

    dense: tuple[tuple[str, int], ...]
    biases: tuple[tuple[str, str], ...]
    rest: tuple[str, ...]
    why: tuple[tuple[str, str], ...]

    def sentence(self) -> str:
        """How the kernel is formed, in words."""
        said = "by products: " + (", ".join(name for name, _ in self.dense) or "no layer")
        reasons = "; ".join(f"{name} ({why})" for name, why in self.why)
        return said + (f"; by Jacobians: {reasons}" if reasons else "")


class Factors(NamedTuple):
    """What kernels are formed from, of n examples.

    Attributes:
        entered: kernel -> (n, inputs).
        felt: kernel -> (n, outputs, units).
        rows: every other leaf -> (n, outputs, *shape).
    """

    entered: dict[str, jax.Array]
    felt: dict[str, jax.Array]
    rows: dict[str, jax.Array]

    def of(self, part: slice) -> Factors:
        """The same of some of the examples."""
        return jax.tree.map(lambda a: a[part], self)


def plan(network: Network, params: Params, stats: Stats, structured: bool = True) -> Plan:
    """Reads which leaves are dense layers and their biases, and verifies it by numbers.

    Two examples with random inputs, at perturbed weights: the gradient of a random combination of
    the outputs must be what the products say, to 1e-3 of its largest entry. What fails is demoted
    to its Jacobian, slower and right.

    Args:
        structured: False reads nothing: every leaf takes its Jacobian.
    """
    flat = flatten(params)
    why = dict.fromkeys(flat, "asked for")
    dense: dict[str, int] = {}
    biases: dict[str, str] = {}
    if structured:
        structure = read(network, params, stats)
        why = {k: structure.unread.get(k, "no dense layer, and no bias of one") for k in flat}
        sites = {
            s.kernel: s
            for s in structure.layers
            if s.kernel not in structure.unread and (s.in_axis, s.out_axis) == (0, 1)
        }
        dense = {name: np.shape(flat[name])[1] for name in sites}
        owner = {site.out_group: name for name, site in sites.items()}
        for group, name in owner.items():
            for leaf, _ in structure.groups[group].members:
                if np.shape(flat[leaf]) == (dense[name],):
                    biases[leaf] = name
        dense, biases = _verified(network, params, stats, dense, biases, why)
    rest = tuple(name for name in flat if name not in dense and name not in biases)
    return Plan(tuple(dense.items()), tuple(biases.items()), rest, tuple((k, why[k]) for k in rest))


def _verified(
    network: Network,
    params: Params,
    stats: Stats,
    dense: dict[str, int],
    biases: dict[str, str],
    why: dict[str, str],
) -> tuple[dict[str, int], dict[str, str]]:
    """The layers and biases whose products are their gradients; ``why`` learns of the others."""
    rng = np.random.default_rng(0)
    noisy = lambda a: np.asarray(a + 0.1 * rng.standard_normal(np.shape(a)), a.dtype)
    w = jax.tree.map(noisy, jax.tree.map(np.asarray, params))
    dtype = jax.tree.leaves(w)[0].dtype
    x = rng.standard_normal((2, *network.input_shape)).astype(dtype)
    u = rng.standard_normal(network.outputs).astype(dtype)
    seen: list[str] = []

    @jax.jit
    def both(w: Params) -> Any:
        taps = {name: jnp.zeros((2, units), dtype) for name, units in dense.items()}
        forward = lambda t: tapped(network, w, stats, jnp.asarray(x), t)
        _, pull, entered = jax.vjp(forward, taps, has_aux=True)
        (felt,) = pull(jnp.tile(u, (2, 1)))
        seen.extend(entered)
        one = lambda i: jax.grad(
            lambda p: network.apply(p, stats, jnp.asarray(x[i : i + 1]))[0] @ u
        )(w)
        return entered, felt, [one(0), one(1)]

    entered, felt, right = both(w)
    gradients = [flatten(g) for g in right]
    close = lambda a, b: np.max(np.abs(a - b)) <= 1e-3 * np.max(np.abs(b))
    held: dict[str, int] = {}
    for name, units in dense.items():
        if name not in seen:
            why[name] = "its product is no matrix times it"
        elif not all(
            close(np.outer(entered[name][i], felt[name][i]), np.asarray(gradients[i][name]))
            for i in (0, 1)
        ):
            why[name] = "its products are not its gradient"
        else:
            held[name] = units
    added: dict[str, str] = {}
    for leaf, name in biases.items():
        if name in held and all(
            close(np.asarray(felt[name][i]), np.asarray(gradients[i][leaf])) for i in (0, 1)
        ):
            added[leaf] = name
    return held, added


def factors(
    how: Plan, network: Network, params: Params, stats: Stats, x: jax.Array
) -> tuple[jax.Array, Factors]:
    """The logits (n, C) and what kernels are formed from: one forward, C backward passes.

    Args:
        params: the weights at which the kernel is taken: mask times theta.
        x: (n, *input_shape).
    """
    n, dtype = len(x), jax.tree.leaves(params)[0].dtype
    taps = {name: jnp.zeros((n, units), dtype) for name, units in how.dense}
    forward = lambda t: tapped(network, params, stats, x, t)
    logits, pull, entered = jax.vjp(forward, taps, has_aux=True)
    each = jnp.broadcast_to(
        jnp.eye(network.outputs, dtype=logits.dtype)[:, None, :],
        (network.outputs, n, network.outputs),
    )
    (felt,) = jax.vmap(pull)(each)  # (C, n, units)
    flat = flatten(params)

    def one(leaves: dict[str, jax.Array], example: jax.Array) -> jax.Array:
        return network.apply(unflatten(flat | leaves, params), stats, example[None])[0]

    rest = {name: flat[name] for name in how.rest}
    rows = jax.vmap(jax.jacrev(one), in_axes=(None, 0))(rest, x) if rest else {}
    felt = {name: jnp.swapaxes(d, 0, 1) for name, d in felt.items()}
    return logits, Factors({name: entered[name] for name, _ in how.dense}, felt, rows)


def between(how: Plan, first: Factors, second: Factors, mask: Mask | None = None) -> jax.Array:
    """The kernel of n examples with m others, (n, m, C, C).

    Args:
        mask: the mask of the masked kernel; None gives the full one.
    """
    masks = {} if mask is None else {k: v for k, v in flatten(mask).items() if v is not None}
    owners = [name for _, name in how.biases]
    total: Any = 0.0
    for name, _ in how.dense:
        a, b = first.entered[name], second.entered[name]
        d, e = first.felt[name], second.felt[name]
        count = owners.count(name)
        if name in masks:
            total = total + _masked(a, b, d, e, masks[name], count)
        else:
            felt = jnp.einsum("ncj,mdj->nmcd", d, e)
            total = total + (a @ b.T + count)[:, :, None, None] * felt
    for name, row in first.rows.items():
        left = row if name not in masks else jnp.where(masks[name], row, 0)
        n, c = row.shape[:2]
        other = second.rows[name]
        m = len(other)
        flat = left.reshape(n * c, -1) @ other.reshape(m * c, -1).T
        total = total + jnp.swapaxes(flat.reshape(n, c, m, c), 1, 2)
    return total


def _masked(
    a: jax.Array, b: jax.Array, d: jax.Array, e: jax.Array, mask: jax.Array, bias: int
) -> jax.Array:
    """sum_j (bias + sum_i m_ij a_ni b_mi) d_ncj e_mdj; (n, m, C, C).

    G is one product (n m, I) by (I, J): n m I J multiplications, whatever the number of outputs.
    """
    n, m, inputs = len(a), len(b), a.shape[1]
    pairs = (a[:, None, :] * b[None, :, :]).reshape(n * m, inputs)
    gram = (pairs @ mask.astype(a.dtype)).reshape(n, m, -1) + bias
    out = _contract(gram, d, e)
    return jnp.moveaxis(out, 3, 2)


@jax.custom_vjp
def _contract(gram: jax.Array, d: jax.Array, e: jax.Array) -> jax.Array:
    """out[n, m, k, c] = sum_j gram[n, m, j] d[n, c, j] e[m, k, j], one n at a time.

    The array of all n (32 of them: 12 MB for LeNet-300-100) would leave the cache, and XLA's own
    derivative of it takes 30 to 50 ms on one core where this takes 4.5.
    """
    return jax.lax.map(lambda part: _weighed(part[0], e) @ part[1].T, (gram, d)).reshape(
        *gram.shape[:2], e.shape[1], d.shape[1]
    )


def _weighed(gram: jax.Array, e: jax.Array) -> jax.Array:
    """gram (m, J) and e (m, C, J) to (m C, J)."""
    return (gram[:, None, :] * e).reshape(-1, e.shape[2])


def _contract_forward(gram: jax.Array, d: jax.Array, e: jax.Array) -> tuple[jax.Array, Any]:
    return _contract(gram, d, e), (gram, d, e)


def _contract_backward(held: Any, out: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    gram, d, e = held

    def one(by_e: jax.Array, part: Any) -> tuple[jax.Array, Any]:
        g, d_n, out_n = part
        flat = out_n.reshape(-1, out_n.shape[-1])  # (m C, C)
        by_weighed = (flat @ d_n).reshape(e.shape)
        by_gram = jnp.sum(by_weighed * e, axis=1)
        return by_e + by_weighed * g[:, None, :], (by_gram, flat.T @ _weighed(g, e))

    by_e, (by_gram, by_d) = jax.lax.scan(one, jnp.zeros_like(e), (gram, d, out))
    return by_gram, by_d, by_e


_contract.defvjp(_contract_forward, _contract_backward)
