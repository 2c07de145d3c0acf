"""The path kernel's trace, and what each weight is worth to it. Gebhart, Saxena & Schrater 2021.

The NTK of a bias-free network of homogeneous activations factors into J_v Pi J_v^T, where the path
kernel Pi = J_pi J_pi^T holds the architecture and the weights and J_v all the data. With
R(u) = sum over paths of v * prod(u) at u = theta^2 (`structure.flow`),

    T_i = dR/du_i = sum over paths through i of (pi_p / theta_i)^2,   Tr Pi = sum of kept T_i

so one forward and one backward pass give the trace, also where a kept weight is 0. With v the mean
of x^2 over data, 2^(1 - L) Tr_x Pi is the NTK's trace averaged over independent random signs of the
weights of a ReLU network of L layers (without the factor: of a linear one).

T of a weight scales with all layers but its own, so unlike shares of a flow it has no scale-free
form: everything here carries one logarithm.

Pi has a row for each path, far too many to number (2.35e8 in LeNet-300-100). Its dual
D = J_pi^T J_pi has a row for each kept weight and the same spectrum but for zeros, and

    D_ef = sum over paths through e and f of pi_p^2 / (theta_e theta_f)
    D x = x * T + theta * (H (theta * x))        H the Hessian of R by u, at kept weights

is one Hessian-vector product: `path_product`, and `kernels.path_operator` for whole spectra.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from secateur.core.errors import lookup
from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params, flatten, map_mask
from secateur.structure.flow import NOTHING, POOLING, Reading, Scaled, Term, run


class Logged(NamedTuple):
    """A tree of arrays times ``exp(log)``.

    Attributes:
        tree: the structure of a mask; None where nothing may be pruned.
        log: ``()``.
    """

    tree: Any
    log: jax.Array


class PathTrace(NamedTuple):
    """Tr Pi in logarithms.

    Attributes:
        log: log Tr Pi, ``()``; -inf where no path is left.
        shares: leaf -> its weights' part of Tr Pi, ``()``; they sum to 1, or are 0 without a path.
    """

    log: jax.Array
    shares: dict[str, jax.Array]


def squares(mask: Mask, params: Params) -> Any:
    """u = m * theta^2, in the structure of the mask."""
    return map_mask(
        lambda m, t: None if m is None else jnp.where(m, t * t, 0).astype(t.dtype), mask, params
    )


def path_saliency(
    network: Network,
    params: Params,
    stats: Stats,
    mask: Mask,
    v: jax.Array | float = 1.0,
    **options: Any,
) -> Logged:
    """T_i = dR/du_i of every prunable weight, also of pruned ones: what its path values' squares
    would sum to with theta_i = 1. Gebhart et al. 2021.

    Args:
        v: >= 0, ``input_shape`` or anything that broadcasts to it: 1 for Tr Pi, the mean of x^2
            for Tr_x Pi.
        options: ``pooling``, ``keep_bias`` of `structure.flow.flow`.

    Raises:
        SecateurError: for a network whose paths cannot be followed.
    """

    t, exponent = squared_gradient(network, params, stats, v, **options)(squares(mask, params))
    return Logged(t, _log(exponent, t))


def path_trace(
    network: Network,
    params: Params,
    stats: Stats,
    mask: Mask,
    v: jax.Array | float = 1.0,
    **options: Any,
) -> PathTrace:
    """log Tr Pi (or log Tr_x Pi) and each leaf's share. Arguments as for `path_saliency`.

    A pruned weight would lie on paths, too, but is no parameter: T_i of kept weights alone is
    summed. Gebhart et al. 2021, section 3.
    """
    t, log = path_saliency(network, params, stats, mask, v, **options)
    kept = map_mask(lambda m, t: None if m is None else jnp.where(m, t, 0), mask, t)
    parts = {name: jnp.sum(leaf) for name, leaf in flatten(kept).items() if leaf is not None}
    total = jnp.sum(jnp.stack(list(parts.values())))
    alive = total > 0
    safe = jnp.where(alive, total, 1)
    shares = {name: part / safe for name, part in parts.items()}
    return PathTrace(jnp.where(alive, jnp.log(safe) + log, -jnp.inf), shares)


def path_trace_drops(
    network: Network,
    params: Params,
    stats: Stats,
    mask: Mask,
    v: jax.Array | float = 1.0,
    **options: Any,
) -> Logged:
    """By how much Tr Pi falls if this weight alone is pruned and counts no more, for each kept one:

        D_e = T_e + u_e * (H m)_e,   H the Hessian of R by u

    Exact, as R is linear in each u_e. In a layered network of L layers they sum to L Tr Pi. One
    Hessian-vector product; arguments as for `path_saliency`; 0 for pruned weights.
    """
    gradient = squared_gradient(network, params, stats, v, **options)
    u = squares(mask, params)
    ones = map_mask(lambda m, w: None if m is None else jnp.asarray(m, w.dtype), mask, u)
    t, h, exponent = jax.jvp(gradient, (u,), (ones,), has_aux=True)
    drops = map_mask(
        lambda m, t, w, h: None if m is None else jnp.where(m, t + w * h, 0), mask, t, u, h
    )
    return Logged(drops, _log(exponent, t))


def path_product(
    network: Network,
    params: Params,
    stats: Stats,
    mask: Mask,
    x: Any,
    v: jax.Array | float = 1.0,
    **options: Any,
) -> Logged:
    """D x = J_pi^T J_pi x without either factor: one Hessian-vector product.

    Args:
        x: real numbers in the structure of the mask; only those of kept weights count, as only
            kept weights are edges, and the product is 0 elsewhere.

    Its logarithm does not depend on x. Other arguments as for `path_saliency`.
    """
    gradient = squared_gradient(network, params, stats, v, **options)
    kept = lambda tree: map_mask(
        lambda m, leaf: None if m is None else jnp.where(m, leaf, 0).astype(leaf.dtype), mask, tree
    )
    w, x = kept(params), kept(x)
    t, h, exponent = jax.jvp(
        gradient, (squares(mask, params),), (jax.tree.map(jnp.multiply, w, x),), has_aux=True
    )
    product = jax.tree.map(lambda x, t, w, h: x * t + w * h, x, kept(t), w, kept(h))
    return Logged(product, _log(exponent, t))


class _Squared(Reading):
    """A flow of nothing keeps its scale.

    Where all weights of a layer are kept but 0 (a head that starts at 0), R is 0 and T is not: what
    the scale of R no longer says, its derivatives still need.
    """

    def settled(self, term: Term) -> Term:
        found = super().settled(term)
        nothing = found.exponent == NOTHING
        return replace(found, exponent=jnp.where(nothing, term.exponent, found.exponent))


def squared_gradient(
    network: Network,
    params: Params,
    stats: Stats,
    v: jax.Array | float,
    *,
    pooling: str = "sum",
    keep_bias: bool = False,
) -> Any:
    """The function u -> (dR/du over 2**exponent, exponent), R the sum of squared path values.

    Arguments and errors as for `path_saliency`.
    """
    sums = lookup("pooling of flows", pooling, POOLING)

    def r(u: Any) -> Scaled:
        dtype = jnp.result_type(*jax.tree.leaves(u))
        reading = _Squared(network.name, 2, sums, keep_bias)
        out = run(reading, network, params, stats, u, jnp.asarray(v, dtype))
        return Scaled(jnp.sum(out.value), out.exponent)

    return jax.grad(r, has_aux=True)


def _log(exponent: jax.Array, tree: Any) -> jax.Array:
    return exponent.astype(jnp.result_type(*jax.tree.leaves(tree))) * math.log(2)
