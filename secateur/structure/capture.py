"""What enters a dense layer: the network run with a tap behind each of its matrix products.

A tap is an array of zeros added to the product ``a W``. The derivative by the tap is what the
layer's output is felt by, for all examples at once; together with ``a`` it gives the derivative by
``W`` of every example as a product, without ever forming it.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from secateur.core.network import Network, Stats
from secateur.core.trees import Params, flatten
from secateur.structure.sites import Site, read_sites, run_tapped


def tapped(
    network: Network,
    params: Params,
    stats: Stats,
    x: jax.Array,
    taps: Mapping[str, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """``network.apply`` with a tap behind the matrix product of each named kernel.

    Differentiable in all its arguments; computes what ``apply`` computes where the taps are 0.

    Args:
        x: (n, *input_shape).
        taps: kernel -> (n, units), added to ``a W``. Kernels are matrices (inputs, units).

    Returns:
        The logits (n, outputs), and what enters each layer: kernel -> a (n, inputs). A kernel whose
        product is not ``a W`` of a matrix a is missing there, and its tap has no effect.
    """

    def f(params: Params, x: jax.Array) -> jax.Array:
        return network.apply(params, stats, x)

    read = read_sites(f, params, x)
    shapes = {name: np.shape(leaf) for name, leaf in flatten(params).items()}
    found = {
        name: sites[0]
        for name, sites in read.found.items()
        if name in taps and len(sites) == 1 and _is_product(sites[0], shapes[name])
    }
    behind = {site.tap: taps[name] for name, site in found.items()}
    logits, entered = run_tapped(f, params, x, read, behind)
    return logits, {name: entered[site.step] for name, site in found.items()}


def _is_product(site: Site, shape: tuple[int, ...]) -> bool:
    """Whether it is ``a W``, with one row of a for each example, and W the leaf itself."""
    if site.kind != "dense" or not site.plain or site.shape != shape or site.side != 1:
        return False
    return site.params["dimension_numbers"] == (((1,), (0,)), ((), ())) and site.example == 0
