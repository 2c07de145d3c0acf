"""What goes through the layers of any network: pre-activations, activations, and what enters.

A layer is a leaf that meets the input in a dense product or a convolution (`structure.sites`). Its
*pre-activation* is that product with the bias that is added to it. Its *activation* is the last
value of the same shape that comes of the pre-activation alone: behind norms and nonlinearities,
before a pooling, a sum with a shortcut or the next layer. Where a sum follows at once, as in the
last convolution of a residual block whose norm comes first, both are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError, nearest
from secateur.core.network import Network, Stats
from secateur.core.trees import Params
from secateur.structure.sites import Function, flattened, read_sites, resized

SIDES = {
    "pre": "the layer's product and its bias",
    "post": "what norms and nonlinearities make of it",
    "in": "what enters the layer",
}
_LAYERS = ("dense", "conv")
_PRODUCTS = frozenset(["dot_general", "conv_general_dilated"])


@dataclass(frozen=True)
class Layer:
    """Where a layer's values are in the flattened program.

    Attributes:
        kind: ``dense`` or ``conv``.
        places: side -> (number of the value, its axis of examples).
    """

    kind: str
    places: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Layers:
    """What was read.

    Attributes:
        found: kernel -> its layer, in the order of the program; a kernel of which a loop takes one
            slice after the other has one for each, ``"kernel[0]"``.
        why: leaf with two or more axes -> why it has no layer.
        steps: number of equations, by which another reading of the same function is recognised.
    """

    found: dict[str, Layer]
    why: dict[str, str]
    steps: int

    def named(self, names: Sequence[str] | None) -> dict[str, Layer]:
        """The layers of these names, or all.

        Raises:
            SecateurError: for one that is none, with the reason where it could not be read; where
                the function has no layer at all.
        """
        if names is None and self.found:
            return self.found
        if names is None:
            said = "; ".join(f"{leaf}: {why}" for leaf, why in self.why.items())
            raise SecateurError(f"no layer could be read ({said or 'there is none'}).")
        for name in names:
            if name in self.why:
                raise SecateurError(f"{name!r} cannot be read as a layer: {self.why[name]}.")
            if name not in self.found:
                hint = nearest(name, list(self.found))
                raise SecateurError(f"there is no layer {name!r}. {hint}")
        return {name: self.found[name] for name in names}


def read_layers(f: Function, params: Any, x: Any) -> Layers:
    """The layers of ``f(params, x)``; nothing is computed. See `sites.read_sites`."""
    sites = read_sites(f, params, x)
    shapes = dict(zip(sites.names, map(np.shape, jax.tree.leaves(params))))
    why = {name: said for name, said in sites.why.items() if len(shapes[name]) >= 2}
    structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype), params)
    flat = flattened(f, structs, resized(x, 7), frozenset())[0]
    met = [(s, len(found) > 1) for found in sites.found.values() for s in found]
    found = {}
    for site, sliced in sorted(met, key=lambda pair: pair[0].step):
        if site.kind not in _LAYERS:
            continue
        name = f"{site.leaf}[{'.'.join(map(str, site.part))}]" if sliced else site.leaf
        behind = _alone(flat, site.tap)
        found[name] = Layer(
            site.kind,
            {
                "pre": (site.tap, site.felt_example),
                "post": (behind, site.felt_example),
                "in": (flat.steps[site.step].ins[1 - site.side], site.example),
            },
        )
    return Layers(found, why, sites.steps)


def _alone(flat: Any, first: int) -> int:
    """The last value of the same shape that the input reaches through ``first`` alone."""
    alone, last = {first}, first
    for step in flat.steps:
        fed = [k for k in step.ins if k in flat.fed]
        if not fed or step.name in _PRODUCTS or not all(k in alone for k in fed):
            continue
        alone.update(step.outs)
        last = next((k for k in step.outs if flat.shapes[k] == flat.shapes[first]), last)
    return last


def run_layers(
    f: Function, params: Any, x: Any, layers: Layers, side: str, names: Sequence[str] | None = None
) -> dict[str, jax.Array]:
    """Name -> (n, ...), one row an example, of one side of each layer.

    Raises:
        ValueError: the program is another one than was read.
    """
    wanted = {name: layer.places[side] for name, layer in layers.named(names).items()}
    flat, args, _ = flattened(f, params, x, frozenset())
    if len(flat.steps) != layers.steps:
        raise ValueError("the program depends on the number of examples")
    values: dict[int, Any] = dict(flat.consts)
    values.update(zip(args, [*jax.tree.leaves(params), *jax.tree.leaves(x)]))
    missing = {value for value, _ in wanted.values()} - set(values)
    for step in flat.steps:
        if not missing:
            break
        values.update(zip(step.outs, step.run(*(values[k] for k in step.ins))))
        missing -= set(step.outs)
    return {name: jnp.moveaxis(values[value], axis, 0) for name, (value, axis) in wanted.items()}


def layer_values(
    network: Network,
    params: Params,
    stats: Stats,
    x: jax.Array,
    *,
    side: str = "pre",
    layers: Sequence[str] | None = None,
) -> dict[str, jax.Array]:
    """What goes through the layers of a network in evaluation mode; may be traced and mapped over.

    Args:
        x: (n, *input_shape).
        side: "pre", "post" or "in"; see SIDES.
        layers: kernels, by name; None: all that can be read.

    Returns:
        kernel -> (n, units), or (n, height, width, channels) of a convolution.

    Raises:
        SecateurError: for a side or a layer that is none, or that cannot be read, with the reason.
    """
    if side not in SIDES:
        raise SecateurError(f"there is no side {side!r} of a layer. {nearest(side, SIDES)}")

    def f(params: Params, x: jax.Array) -> jax.Array:
        return network.apply(params, stats, x)

    return run_layers(f, params, x, read_layers(f, params, x), side, layers)


def layer_names(network: Network) -> Layers:
    """The layers of a network in evaluation mode, and why other kernels are none."""
    params, stats = jax.eval_shape(network.init, jax.random.key(0))
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), stats)

    def f(params: Params, x: jax.Array) -> jax.Array:
        return network.apply(params, zeros, x)

    x = jax.ShapeDtypeStruct((2, *network.input_shape), np.dtype(jnp.result_type(float)))
    return read_layers(f, params, x)
