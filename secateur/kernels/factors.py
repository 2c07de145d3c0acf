"""What a kernel is formed from: at each site of a leaf, what entered it and what felt its output.

A dense layer ``z = a W`` has the Jacobian J[(n, c), (j, i)] = a[n, j] d[n, c, i], where d is the
derivative of output c by z: kernels are sums of products of a and d (`kernels.rules`), and the
Jacobian is never formed. A convolution, a dense layer at many positions or in groups, a bias, a
norm's scale and every leaf without a site take theirs as columns, (n, C, kept weights).

One forward pass and one backward pass of the batch an output, for all leaves at once: examples do
not depend on each other, so that output c of all of them goes back together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from secateur.structure.sites import Function, Site, Sites, run_tapped, tap_shapes, views


class Product(NamedTuple):
    """Factors of one dense layer for n examples.

    Attributes:
        entered: (n, inputs).
        felt: (n, C, units).
    """

    entered: jax.Array
    felt: jax.Array


class Factors(NamedTuple):
    """What kernels of n examples are formed from.

    Attributes:
        outputs: (n, C), all outputs.
        products: one a dense layer, in the order of `Form.products`.
        columns: leaf -> (n, C, weights), in the leaf's order, or, where it is `direct`, in that of
            `columns_of_site`.
    """

    outputs: jax.Array
    products: tuple[Product, ...]
    columns: dict[str, jax.Array]

    def of(self, part: slice) -> Factors:
        """The same of some of the examples."""
        return jax.tree.map(lambda a: a[part], self)


@dataclass(frozen=True)
class Form:
    """Which leaves are taken as products, and which as columns.

    Attributes:
        sites: what was read of the function.
        products: sites of dense layers that are taken as products.
        biases: bias -> the place, in ``products``, of the layer whose output it is added to.
        columns: leaves whose Jacobians are formed, by their sites.
        rest: leaves whose Jacobians are formed, by differentiating by them.
    """

    sites: Sites
    products: tuple[Site, ...]
    biases: dict[str, int]
    columns: tuple[str, ...]
    rest: tuple[str, ...]


def form(sites: Sites, params: Any, x: Any, f: Function, counted: Sequence[str]) -> Form:
    """Takes each counted leaf in the form that its sites allow."""
    shapes = dict(zip(sites.names, map(np.shape, jax.tree.leaves(params))))
    seen = tap_shapes(f, params, x, sites)
    products: list[Site] = []
    columns, rest = [], []
    for name in counted:
        found = sites.found.get(name, ())
        if not found:
            rest.append(name)
        elif all(_is_matrix(s, seen[s.tap].shape) for s in found):
            products.extend(found)
        else:
            columns.append(name)
    at = {site.tap: k for k, site in enumerate(products)}
    biases: dict[str, int] = {}
    for name in tuple(columns):
        found = sites.found[name]
        if len(found) == 1 and found[0].kind == "bias" and found[0].plain and found[0].tap in at:
            place = at[found[0].tap]
            if shapes[name] == (_units(products[place], seen[found[0].tap].shape),):
                biases[name] = place
                columns.remove(name)
    return Form(sites, tuple(products), biases, tuple(columns), tuple(rest))


def _is_matrix(site: Site, felt: tuple[int, ...]) -> bool:
    """Whether a dense layer meets one row an example."""
    return site.kind == "dense" and len(felt) == 2 and not site.params["dimension_numbers"][1][0]


def _units(site: Site, felt: tuple[int, ...]) -> int:
    return felt[1 - site.felt_example]


def flat_rows(site: Site, entered: jax.Array) -> jax.Array:
    """What enters a dense layer, (n, positions, groups, inputs)."""
    contracted, batched = site.params["dimension_numbers"]
    over, shared = contracted[1 - site.side], batched[1 - site.side]
    places = [
        k for k in range(entered.ndim) if k not in over and k not in shared and k != site.example
    ]
    size = lambda axes: int(np.prod([entered.shape[k] for k in axes], dtype=int))
    turned = jnp.transpose(entered, (site.example, *places, *shared, *over))
    return turned.reshape(entered.shape[site.example], size(places), size(shared), size(over))


def flat_kernel(site: Site, kernel: jax.Array) -> jax.Array:
    """A dense layer's weights, or their mask, as it uses them: (groups, inputs, units)."""
    contracted, batched = site.params["dimension_numbers"]
    over, shared = contracted[site.side], batched[site.side]
    free = [k for k in range(kernel.ndim) if k not in over and k not in shared]
    size = lambda axes: int(np.prod([kernel.shape[k] for k in axes], dtype=int))
    turned = jnp.transpose(kernel, (*shared, *over, *free))
    return turned.reshape(size(shared), size(over), size(free))


def flat_felt(site: Site, felt: jax.Array, entered: tuple[int, ...]) -> jax.Array:
    """What felt a dense layer's output, (C, *output), as (n, C, positions, groups, units)."""
    contracted, batched = site.params["dimension_numbers"]
    shared = len(batched[0])
    of_other = len(entered) - len(contracted[0]) - shared  # free axes of what enters
    free = felt.ndim - 1 - shared - of_other
    first = 1 + shared + (free if site.side == 0 else 0)
    others = list(range(first, first + of_other))
    first = 1 + shared + (of_other if site.side == 1 else 0)
    units = list(range(first, first + free))
    example = site.felt_example + 1
    places = [k for k in others if k != example]
    groups = list(range(1, 1 + shared))
    size = lambda axes: int(np.prod([felt.shape[k] for k in axes], dtype=int))
    turned = jnp.transpose(felt, (example, 0, *places, *groups, *units))
    return turned.reshape(
        felt.shape[example], felt.shape[0], size(places), size(groups), size(units)
    )


def patches(site: Site, image: jax.Array, window: Sequence[int]) -> jax.Array:
    """The windows that a convolution sees, (n, positions, groups, inputs of a window).

    Strided slices of the padded image: XLA's own patches are a convolution, which takes longer.
    """
    p = site.params
    n, c, *space = p["dimension_numbers"].lhs_spec
    groups = p["feature_group_count"]
    last = jnp.transpose(image, (n, *space, c))
    edges = [(low, high, hole - 1) for (low, high), hole in zip(p["padding"], p["lhs_dilation"])]
    padded = jax.lax.pad(last, jnp.zeros((), last.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    reach = [(size - 1) * d + 1 for size, d in zip(window, p["rhs_dilation"])]
    counts = [
        (size - r) // stride + 1
        for size, r, stride in zip(padded.shape[1:-1], reach, p["window_strides"])
    ]
    shifted = []
    for place in np.ndindex(*window):
        start = [k * d for k, d in zip(place, p["rhs_dilation"])]
        stop = [a + (m - 1) * t + 1 for a, m, t in zip(start, counts, p["window_strides"])]
        cut = jax.lax.slice(
            padded,
            (0, *start, 0),
            (padded.shape[0], *stop, padded.shape[-1]),
            (1, *p["window_strides"], 1),
        )
        shifted.append(cut.reshape(cut.shape[0], -1, groups, 1, cut.shape[-1] // groups))
    rows = jnp.concatenate(shifted, axis=3)  # (n, positions, groups, places, channels)
    return rows.reshape(*rows.shape[:3], -1)


def flat_filters(site: Site, kernel: jax.Array) -> jax.Array:
    """A convolution's weights, or their mask: (groups, inputs of a window, filters of a group)."""
    o, i, *space = site.params["dimension_numbers"].rhs_spec
    groups = site.params["feature_group_count"]
    rows = jnp.transpose(kernel, (*space, i, o))
    rows = rows.reshape(-1, groups, kernel.shape[o] // groups)
    return jnp.swapaxes(rows, 0, 1)


def flat_maps(site: Site, felt: jax.Array) -> jax.Array:
    """What felt a convolution's output, as (n, C, positions, groups, filters of a group)."""
    n, c, *space = (k + 1 for k in site.params["dimension_numbers"].out_spec)
    turned = jnp.transpose(felt, (n, 0, *space, c))
    groups = site.params["feature_group_count"]
    return turned.reshape(*turned.shape[:2], -1, groups, turned.shape[-1] // groups)


def met(site: Site, entered: jax.Array, felt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What enters a layer, (n, p, g, j), and what feels its output, (n, C, p, g, i)."""
    if site.kind == "dense":
        return flat_rows(site, entered), flat_felt(site, felt, entered.shape)
    window = [site.shape[k] for k in site.params["dimension_numbers"].rhs_spec[2:]]
    return patches(site, entered, window), flat_maps(site, felt)


def layout(site: Site, kernel: jax.Array) -> jax.Array:
    """A kernel, or its mask, as its dense layer or convolution uses it: (groups, inputs, units)."""
    return flat_kernel(site, kernel) if site.kind == "dense" else flat_filters(site, kernel)


def direct(sites: Sequence[Site]) -> bool:
    """Whether a leaf's columns are written down in the order in which its one site uses them."""
    return len(sites) == 1 and sites[0].kind in ("dense", "conv") and sites[0].plain


def columns_of_site(site: Site, entered: jax.Array, felt: jax.Array) -> jax.Array:
    """A kernel's Jacobian at its one site, (n, C, weights) in the order (groups, units, inputs)."""
    a, d = met(site, entered, felt)
    n, c, positions, groups, units = d.shape
    d = jnp.transpose(d, (0, 3, 2, 1, 4)).reshape(n, groups, positions, c * units)
    there = jnp.einsum("ngpk,npgj->ngkj", d, a)
    there = there.reshape(n, groups, c, units, -1)
    return jnp.swapaxes(there, 1, 2).reshape(n, c, -1)


def jacobian_of_site(site: Site, view: Any, leaf: Any, entered: jax.Array, felt: jax.Array) -> Any:
    """d outputs / d leaf at one site, (n, C, *leaf's shape).

    Args:
        view: the leaf's view for one example.
        entered: the operand that the input is in.
        felt: (C, *output).
    """
    back = jax.linear_transpose(view, jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype))
    kernel = jax.eval_shape(view, leaf)
    if site.kind in ("dense", "conv"):
        a, d = met(site, entered, felt)
        there = jnp.einsum("npgj,ncpgi->ncgji", a, d)
        inverse = jax.linear_transpose(lambda k: layout(site, k), kernel)
        pull = lambda g: back(inverse(g)[0])[0]
    else:
        d = jnp.moveaxis(felt, site.felt_example + 1, 0)  # (n, C, *rest)
        if site.kind == "scale":
            d = d * jnp.moveaxis(entered, site.example, 0)[:, None]
        there = jnp.expand_dims(site.sign * d, site.felt_example + 2)  # one example
        shape = (1,) * (there.ndim - 2 - len(kernel.shape)) + kernel.shape
        over = [k + 2 for k, size in enumerate(shape) if size == 1]  # what it is spread over
        there = jnp.sum(there, axis=over, keepdims=True).reshape(*there.shape[:2], *kernel.shape)
        pull = lambda g: back(g)[0]
    return jax.vmap(jax.vmap(pull))(there.astype(leaf.dtype))


def felt_by(
    f: Function, params: Any, x: Any, sites: Sites, rows: jax.Array
) -> tuple[jax.Array, dict[int, jax.Array], dict[int, jax.Array]]:
    """One forward pass, and one backward pass for each of ``rows`` (k, C).

    Returns:
        The outputs (n, C); step -> what entered; tap -> (k, *value).
    """
    if not sites.found:
        return f(params, x), {}, {}
    taps = {t: jnp.zeros(s.shape, s.dtype) for t, s in tap_shapes(f, params, x, sites).items()}
    run = lambda taps: run_tapped(f, params, x, sites, taps)
    out, pull, entered = jax.vjp(run, taps, has_aux=True)
    back = lambda row: pull(jnp.broadcast_to(row.astype(out.dtype), out.shape))
    (felt,) = jax.vmap(back)(rows)
    return out, entered, felt


def factors(
    how: Form,
    f: Function,
    params: Any,
    x: Any,
    rows: jax.Array,
    kept: dict[str, jax.Array],
) -> Factors:
    """What the kernels of some combinations of the outputs are formed from.

    Args:
        x: n examples.
        rows: (k, C), one combination each: rows of the identity for the outputs themselves.
        kept: leaf -> the columns of it that count, by number; all where it is missing.
    """
    out, entered, felt = felt_by(f, params, x, how.sites, rows)
    leaves = dict(zip(how.sites.names, jax.tree.leaves(params)))
    products = tuple(
        Product(flat_rows(s, entered[s.step])[:, 0, 0], _one_row(s, entered, felt))
        for s in how.products
    )
    columns: dict[str, jax.Array] = {}
    seen = views(f, params, jax.tree.map(lambda a: a[:1], x), how.sites) if how.columns else {}
    for name in how.columns:
        found = how.sites.found[name]
        if direct(found):
            columns[name] = columns_of_site(found[0], entered[found[0].step], felt[found[0].tap])
            continue
        parts = [
            jacobian_of_site(s, seen[name, s.step], leaves[name], entered[s.step], felt[s.tap])
            for s in found
        ]
        total = sum(parts[1:], parts[0])
        columns[name] = total.reshape(*total.shape[:2], -1)
    if how.rest:
        columns |= _differentiated(how.rest, f, params, how.sites.names, x, rows)
    columns = {k: c[:, :, kept[k]] if k in kept else c for k, c in columns.items()}
    return Factors(out, products, columns)


def _one_row(site: Site, entered: dict[int, Any], felt: dict[int, Any]) -> jax.Array:
    return flat_felt(site, felt[site.tap], entered[site.step].shape)[:, :, 0, 0]


def _differentiated(
    which: Sequence[str],
    f: Function,
    params: Any,
    names: Sequence[str],
    x: Any,
    rows: jax.Array,
) -> dict[str, jax.Array]:
    """Leaf -> (n, k, weights): every example's own backward passes."""
    leaves, tree = jax.tree.flatten(params)
    held = dict(zip(names, leaves))

    def of(some: dict[str, Any], one: Any) -> jax.Array:
        whole = jax.tree.unflatten(tree, [(held | some)[name] for name in names])
        return rows @ f(whole, jax.tree.map(lambda a: a[None], one))[0]

    found = jax.vmap(jax.jacrev(of), in_axes=(None, 0))({k: held[k] for k in which}, x)
    return {name: row.reshape(*row.shape[:2], -1) for name, row in found.items()}


def in_order(sites: Sites, name: str, leaf: Any, columns: jax.Array) -> jax.Array:
    """Columns (n, weights) in the shape of their leaf, (n, *leaf)."""
    found = sites.found.get(name, ())
    if not direct(found):
        return columns.reshape(len(columns), *np.shape(leaf))
    site = found[0]
    used = lambda leaf: jnp.swapaxes(layout(site, leaf.reshape(site.shape)), 1, 2).ravel()
    back = jax.linear_transpose(used, jax.ShapeDtypeStruct(np.shape(leaf), columns.dtype))
    return jax.vmap(lambda row: back(row)[0])(columns)


def gradients(
    how: Form, f: Function, params: Any, x: Any, row: jax.Array
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Of each example's ``row @ f``: the gradient by each counted leaf from its sites, and by JAX.

    Returns:
        leaf -> (n, *leaf), twice; leaves that are differentiated by anyhow are not in the first.
    """
    made = factors(replace(how, rest=()), f, params, x, row[None], {})
    leaves = dict(zip(how.sites.names, jax.tree.leaves(params)))
    shaped = lambda name, j: in_order(how.sites, name, leaves[name], j)
    found = {name: shaped(name, j[:, 0]) for name, j in made.columns.items()}
    seen = views(f, params, jax.tree.map(lambda a: a[:1], x), how.sites)
    for site, product in zip(how.products, made.products):
        view, leaf = seen[site.leaf, site.step], leaves[site.leaf]
        used = lambda leaf, site=site, view=view: flat_kernel(site, view(leaf))
        back = jax.linear_transpose(used, jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype))
        each = jnp.einsum("nj,ni->nji", product.entered, product.felt[:, 0])[:, None]
        part = jax.vmap(lambda g, back=back: back(g)[0])(each)
        found[site.leaf] = found.get(site.leaf, 0) + part
    for name, owner in how.biases.items():
        (site,) = how.sites.found[name]
        found[name] = site.sign * made.products[owner].felt[:, 0]
    counted = (*found, *how.rest)
    right = _differentiated(counted, f, params, how.sites.names, x, row[None])
    plain = lambda name, j: j.reshape(len(j), *np.shape(leaves[name]))
    return found, {name: plain(name, j[:, 0]) for name, j in right.items()}
