"""The trace of the empirical neural tangent kernel, and how much of it hangs on each weight.

tr Theta = ||J||_F^2 = sum over examples n, outputs c, weights e of (m_e df_c(x_n)/dw_e)^2, at
w = m * theta. The kernel is positive semidefinite, so this is its nuclear norm: what NTK-SAP takes
for the whole spectrum. Wang, Li & Sun, ICLR 2023.

In layer form the network is passed through once forward and once backward for each output, of all
examples together. With a what enters a layer and d what feels its output, a dense layer's part is

    sum_n,ij m_ij^2 a_ni^2 sum_c d_ncj^2

two products of matrices. Where a weight is shared between positions p, as in a convolution, squares
come after the sum over them: sum_n,c,ij m_ij^2 (sum_p a_npi d_ncpj)^2, one product of matrices an
example; or, where every weight counts once and it is less work, sum_n,pq <a_np, a_nq> <d_np, d_nq>.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params, flatten, map_mask, unflatten
from secateur.kernels.factors import felt_by, jacobian_of_site, layout, met
from secateur.structure.sites import Function, Site, Sites, read_sites, tap_shapes, views

COUNTED = {
    "masked": "the kernel of the masked network: each weight's column times its gate (NTK-SAP)",
    "full": "all prunable weights, pruned ones too, at the masked point (J_w J_w^T)",
}
FORMS = {
    "layers": "one backward pass of the batch for each output; leaves that cannot be read, refused",
    "examples": "one backward pass for each example and each output; any network",
    "auto": "each leaf in layer form where its place in the network is read, else by examples",
}
# Bytes of what feels the layers, for all outputs, above which examples go in parts and each part is
# passed through again on the way back; of the Jacobians that are held together.
FELT, JACOBIAN = 256e6, 64e6


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
    sites = read_sites(_function(network, stats), params, x)
    counted = sorted(name for name, m in flatten(gates).items() if m is not None)
    return {name: sites.why[name] for name in counted if name not in sites.found}


def _function(network: Network, stats: Stats) -> Function:
    return lambda params, x: network.apply(params, stats, x)


def by_leaf(
    network: Network,
    params: Params,
    stats: Stats,
    gates: Mask,
    x: jax.Array,
    *,
    counted: str = "masked",
    form: str = "auto",
    chunk: int | None = None,
) -> dict[str, jax.Array]:
    """Each counted leaf's part of the trace; they sum to it. Differentiable by the gates.

    Under ``jit``, `structure.canonical.canonical` makes most convolutions faster.

    Args:
        network: its ``apply`` is taken: row n of the outputs depends on ``x[n]`` alone.
        params: theta; the network is taken at ``gates * params``.
        gates: the mask, booleans or real numbers; None where a leaf is not counted.
        x: ``(n, *input_shape)``.
        counted: a key of `COUNTED`.
        form: a key of `FORMS`; `unreadable` tells which leaves ``auto`` takes by examples.
        chunk: examples at a time; None for as many as some hundred megabytes hold.

    Raises:
        SecateurError: for an unknown word, or in ``form="layers"`` a leaf that cannot be read.
    """
    lookup("reading of the trace", counted, COUNTED)
    lookup("form of the trace", form, FORMS)
    gates = as_gates(gates, params)
    names = [name for name, m in flatten(gates).items() if m is not None]
    f, read = _function(network, stats), None
    if form != "examples":
        read = read_sites(f, params, x)
        lost = [name for name in names if name not in read.found]
        if form == "layers" and lost:
            raise SecateurError(
                f"the trace in layer form needs to read where a leaf meets the input, and of "
                f'{lost[0]!r} it cannot ({read.why[lost[0]]}): take form="examples", or an '
                "estimator by draws."
            )
    # How often each weight's squared derivative counts: m^2, or once.
    masks = flatten(gates)
    squares = {name: masks[name] ** 2 if counted == "masked" else None for name in names}
    w = gated(gates, params)
    layers = {} if read is None else {k: r for k, r in squares.items() if k in read.found}
    rest = {k: r for k, r in squares.items() if k not in layers}
    parts = _by_layers(f, read, w, layers, x, chunk) if read is not None and layers else {}
    parts |= _by_examples(f, w, rest, x, chunk) if rest else {}
    return {name: parts[name] for name in names}


def _by_layers(
    f: Function,
    read: Sites,
    w: Params,
    squares: dict[str, jax.Array | None],
    x: jax.Array,
    chunk: int | None,
) -> dict[str, jax.Array]:
    """Every leaf from its sites: of all examples at once, or of some after the other."""
    read = replace(read, found={name: read.found[name] for name in squares})
    leaves, n = flatten(w), len(x)
    like = jax.eval_shape(f, w, x)
    of_one = [s.size for s in tap_shapes(f, w, x[:1], read).values()]
    held = like.shape[1] * sum(of_one) * like.dtype.itemsize
    size = min(chunk or max(1, int(FELT / max(held, 1))), n)
    simple = all(_is_kernel(s) and s.plain for sites in read.found.values() for s in sites)

    def of(some: jax.Array) -> dict[str, jax.Array]:
        each = jnp.eye(like.shape[1], dtype=like.dtype)
        _, entered, felt = felt_by(f, w, some, read, each)
        seen = {} if simple else views(f, w, some[:1], read)
        found: dict[str, jax.Array] = {}
        for name, r in squares.items():
            for s in read.found[name]:
                view = seen.get((name, s.step))
                part = _of_site(s, view, leaves[name], r, entered[s.step], felt[s.tap])
                found[name] = found.get(name, 0) + part
        return found

    if size < n:
        count = -(-n // size)
        size = -(-n // count)  # as even as can be; the last one stands in for those that lack
        filled = jnp.concatenate([x, jnp.repeat(x[-1:], count * size - n, axis=0)])
        parts = jax.lax.map(jax.checkpoint(of), filled.reshape(count, size, *x.shape[1:]))
    else:
        parts = of(x)
    return {name: jnp.sum(part.reshape(-1)[:n]) for name, part in parts.items()}


def _is_kernel(site: Site) -> bool:
    return site.kind in ("dense", "conv")


def _of_site(
    site: Site, view: Any, leaf: jax.Array, r: jax.Array | None, entered: jax.Array, felt: jax.Array
) -> jax.Array:
    """Each example's sum of r J^2 over outputs and the leaf's entries that are used here, (n,)."""
    if not _is_kernel(site):
        rows = jacobian_of_site(site, view, leaf, entered, felt) ** 2
        return jnp.sum(rows if r is None else rows * r, axis=range(1, rows.ndim))
    if not site.plain:  # what the function itself multiplies the leaf by counts as its square
        once = view(jnp.ones_like(leaf))
        r = layout(site, once * (once if r is None else view(r)))
    elif r is not None:
        r = layout(site, r.reshape(site.shape))
    a, d = jax.eval_shape(lambda *both: met(site, *both), entered, felt)
    if a.shape[1] == 1:
        a, d = met(site, entered, felt)
        into, out = a[:, 0] ** 2, jnp.sum(d[:, :, 0] ** 2, axis=1)  # (n, groups, inputs or units)
        if r is None:
            return jnp.sum(jnp.sum(into, axis=2) * jnp.sum(out, axis=2), axis=1)
        return jnp.sum(jnp.einsum("ngj,gji->ngi", into, r) * out, axis=(1, 2))

    @jax.checkpoint
    def of_one(both: tuple[jax.Array, jax.Array]) -> jax.Array:
        a, d = met(
            site,
            jnp.expand_dims(both[0], site.example),
            jnp.expand_dims(both[1], site.felt_example + 1),
        )
        return _shared(a[0], d[0], r)

    each = jnp.moveaxis(entered, site.example, 0), jnp.moveaxis(felt, site.felt_example + 1, 0)
    return jax.lax.map(of_one, each)


def _shared(a: jax.Array, d: jax.Array, r: jax.Array | None) -> jax.Array:
    """sum r J^2 of one example, weights shared between positions.

    Args:
        a: (positions, groups, inputs). d: (C, positions, groups, units).
        r: (groups, inputs, units); None where all count once.
    """
    places, groups, inputs = a.shape
    c, units = d.shape[0], d.shape[3]
    if r is None and places * (inputs + c * units) < inputs * c * units:
        into = jnp.einsum("pgj,qgj->gpq", a, a)
        return jnp.sum(into * jnp.einsum("cpgi,cqgi->gpq", d, d))
    fit = JACOBIAN / (groups * inputs * units * a.dtype.itemsize)
    some = max(k for k in range(1, c + 1) if c % k == 0 and (k <= fit or k == 1))

    def of(d: jax.Array) -> jax.Array:
        rows = jnp.einsum("cpgi,pgj->gcij", d, a) ** 2
        return jnp.sum(rows if r is None else rows * jnp.swapaxes(r, 1, 2)[:, None])

    if some == c:
        return of(d)
    return jnp.sum(jax.lax.map(jax.checkpoint(of), d.reshape(c // some, some, *d.shape[1:])))


def _by_examples(
    f: Function, w: Params, squares: dict[str, jax.Array | None], x: jax.Array, chunk: int | None
) -> dict[str, jax.Array]:
    """Jacobians of single examples, squared and summed in chunks; made again going backward."""
    flat = flatten(w)
    like = jax.eval_shape(f, w, x)
    entries = like.shape[1] * sum(np.size(flat[name]) for name in squares)
    size = chunk or int(np.clip(4 * JACOBIAN / (entries * like.dtype.itemsize), 1, 8))

    def outputs(leaves: dict[str, jax.Array], one: jax.Array) -> jax.Array:
        return f(unflatten({**flat, **leaves}, w), one[None])[0]

    @jax.checkpoint
    def of_one(one: jax.Array) -> dict[str, jax.Array]:
        jacobian = jax.jacrev(outputs)({name: flat[name] for name in squares}, one)
        weighed = lambda j, r: jnp.sum(j**2 if r is None else j**2 * r)
        return {name: weighed(jacobian[name], r) for name, r in squares.items()}

    parts = jax.lax.map(of_one, x, batch_size=min(size, len(x)))
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
