"""The trace of the empirical neural tangent kernel, and how much of it hangs on each weight.

tr Theta = ||J||_F^2 = sum over examples n, outputs c, weights e of (m_e df_c(x_n)/dw_e)^2, at
w = m * theta. The kernel is positive semidefinite, so this is its nuclear norm: what NTK-SAP takes
for the whole spectrum. Wang, Li & Sun, ICLR 2023.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from secateur.core.errors import SecateurError, lookup
from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params, flatten, map_mask, unflatten
from secateur.structure.capture import tapped
from secateur.structure.reader import read

COUNTED = {
    "masked": "the kernel of the masked network: each weight's column times its gate (NTK-SAP)",
    "full": "all prunable weights, pruned ones too, at the masked point (J_w J_w^T)",
}
FORMS = {
    "layers": "one backward pass of the batch for each output; dense layers only, others refused",
    "examples": "one backward pass for each example and each output; any network",
    "auto": "each leaf in layer form where it is a dense layer's matrix, else by examples",
}


def gated(gates: Mask, params: Params) -> Params:
    """w = m * theta with real gates, in the dtype of the parameters."""
    return map_mask(lambda m, p: p if m is None else m * p, gates, params)


def as_gates(mask: Mask, params: Params) -> Mask:
    """A mask as numbers that can be differentiated by, in the dtype of the parameters."""
    return map_mask(
        lambda m, p: None if m is None else jnp.asarray(m, jnp.result_type(p)), mask, params
    )


def unreadable(
    network: Network, params: Params, stats: Stats, gates: Mask, x: jax.Array
) -> dict[str, str]:
    """Why counted leaves cannot be had in layer form, by name; empty where all can."""
    counted = {name for name, m in flatten(gates).items() if m is not None}
    structure = read(network, params, stats)
    units = {
        site.kernel: jnp.shape(flatten(params)[site.kernel])[1]
        for site in structure.layers
        if site.kernel in counted
        and site.kernel not in structure.unread
        and (site.in_axis, site.out_axis) == (0, 1)
    }
    dtype = jnp.result_type(*jax.tree.leaves(params))
    taps = {name: jax.ShapeDtypeStruct((len(x), n), dtype) for name, n in units.items()}
    # A kernel that is changed on its way to the product is behind no tap.
    entered = jax.eval_shape(lambda *given: tapped(network, *given), params, stats, x, taps)[1]
    return {
        name: structure.unread.get(name, "no product of a matrix with it is found")
        for name in sorted(counted)
        if name not in entered
    }


def by_leaf(
    network: Network,
    params: Params,
    stats: Stats,
    gates: Mask,
    x: jax.Array,
    *,
    counted: str = "masked",
    form: str = "auto",
    chunk: int = 8,
) -> dict[str, jax.Array]:
    """Each prunable leaf's part of the trace; they sum to it. Differentiable by the gates.

    Args:
        network: its ``apply`` is taken: row n of the outputs depends on ``x[n]`` alone.
        params: theta; the network is taken at ``gates * params``.
        gates: the mask, booleans or real numbers; None where a leaf is not counted.
        x: ``(n, *input_shape)``.
        counted: a key of `COUNTED`.
        form: a key of `FORMS`; `unreadable` tells which leaves ``auto`` takes by examples.
        chunk: examples at a time, by examples.

    Raises:
        SecateurError: for an unknown word, or in ``form="layers"`` a leaf that is no dense layer's.
    """
    lookup("reading of the trace", counted, COUNTED)
    lookup("form of the trace", form, FORMS)
    gates = as_gates(gates, params)
    why = unreadable(network, params, stats, gates, x) if form != "examples" else {}
    if form == "layers" and why:
        leaf, reason = next(iter(why.items()))
        raise SecateurError(
            f"the trace in layer form needs dense layers, and {leaf!r} is none ({reason}): take "
            'form="examples", or an estimator by draws.'
        )
    # How often each weight's squared derivative counts: m^2, or once.
    square = (lambda m: m * m) if counted == "masked" else jnp.ones_like
    squares = {name: square(m) for name, m in flatten(gates).items() if m is not None}
    w = gated(gates, params)
    layers = {k: m2 for k, m2 in squares.items() if form != "examples" and k not in why}
    rest = {k: m2 for k, m2 in squares.items() if k not in layers}
    parts = _by_layers(network, w, stats, layers, x) if layers else {}
    parts |= _by_examples(network, w, stats, rest, x, chunk) if rest else {}
    return {name: parts[name] for name in squares}


def _by_layers(
    network: Network, w: Params, stats: Stats, squares: dict[str, jax.Array], x: jax.Array
) -> dict[str, jax.Array]:
    """G_l = sum_n sum_ij m_ij^2 a_ni^2 sum_c d_cnj^2, d by the layer's output, a its input."""
    flat = flatten(w)
    taps = {k: jnp.zeros((len(x), m2.shape[1]), flat[k].dtype) for k, m2 in squares.items()}
    out, pull, entered = jax.vjp(lambda t: tapped(network, w, stats, x, t), taps, has_aux=True)
    # Examples do not depend on each other: output c of all of them at once.
    each = jnp.eye(out.shape[1], dtype=out.dtype)
    (felt,) = jax.vmap(lambda e: pull(jnp.broadcast_to(e, out.shape)))(each)  # (C, n, units)
    return {
        name: jnp.sum((entered[name] ** 2 @ m2) * jnp.sum(felt[name] ** 2, axis=0))
        for name, m2 in squares.items()
    }


def _by_examples(
    network: Network,
    w: Params,
    stats: Stats,
    squares: dict[str, jax.Array],
    x: jax.Array,
    chunk: int,
) -> dict[str, jax.Array]:
    """Jacobians of single examples, squared and summed in chunks; made again going backward."""
    flat = flatten(w)

    def outputs(leaves: dict[str, jax.Array], one: jax.Array) -> jax.Array:
        return network.apply(unflatten({**flat, **leaves}, w), stats, one[None])[0]

    @jax.checkpoint
    def of_one(one: jax.Array) -> dict[str, jax.Array]:
        jacobian = jax.jacrev(outputs)({name: flat[name] for name in squares}, one)
        return {name: jnp.sum(jacobian[name] ** 2 * m2[None]) for name, m2 in squares.items()}

    parts = jax.lax.map(of_one, x, batch_size=min(chunk, len(x)))
    return {name: jnp.sum(part) for name, part in parts.items()}


def trace(
    network: Network, params: Params, stats: Stats, gates: Mask, x: jax.Array, **options: Any
) -> jax.Array:
    """tr Theta over the prunable weights; arguments and errors of `by_leaf`."""
    parts = by_leaf(network, params, stats, gates, x, **options)
    return sum(parts.values(), jnp.zeros((), jnp.result_type(*jax.tree.leaves(params))))


def saliency(
    network: Network, params: Params, stats: Stats, gates: Mask, x: jax.Array, **options: Any
) -> tuple[jax.Array, Mask]:
    """tr Theta and s = m * dtr/dm, None where ``gates`` is.

    In the reading ``masked`` the scores of each layer of a bias-free ReLU network sum to 2 tr; in
    ``full`` to 2 (tr - the layer's own part). Arguments and errors of `by_leaf`.
    """
    gates = as_gates(gates, params)
    value, slope = jax.value_and_grad(lambda g: trace(network, params, stats, g, x, **options))(
        gates
    )
    return value, map_mask(lambda m, d: None if m is None else m * d, gates, slope)
