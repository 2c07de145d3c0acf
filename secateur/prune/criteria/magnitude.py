"""Magnitude, plain and rescaled by layer, and LAMP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from secateur.core.errors import lookup
from secateur.core.keys import Key
from secateur.core.trees import Mask, Params, map_mask
from secateur.prune.criterion import Criterion, Scores
from secateur.prune.problem import Problem

OVER = {
    "one": lambda t: jnp.ones((), t.dtype),
    "std": lambda t: jnp.std(t),
    "norm": lambda t: jnp.sqrt(jnp.sum(t * t)),
}


@dataclass(frozen=True)
class Magnitude(Criterion):
    """s = |theta|, over one scale for each layer: none, its standard deviation, or its norm.

    At initialisation a ranking over the network by plain magnitude prunes the layers with the
    smallest initial scale: of Gaussian weights with deviation sigma_l the part
    2 (1 - Phi(tau / sigma_l)) of layer l lies above the threshold tau.

    Attributes:
        over: ``"one"``, ``"std"`` or ``"norm"`` of all weights of the layer, pruned ones included.
    """

    title: ClassVar[str] = "magnitude"
    source: ClassVar[str] = "Han et al. 2015; at initialisation a baseline"
    passes: ClassVar[str] = "none"
    trap: ClassVar[str] = "Over the whole network it ranks layers by the scale of their weights."
    codes: ClassVar[tuple[str, ...]] = (
        "google-research/jaxpruner divides each layer by its norm before it ranks globally.",
    )

    over: str = "one"

    def __post_init__(self) -> None:
        lookup("scale of magnitudes", self.over, OVER)

    def score(self, problem: Problem, params: Params, mask: Mask, key: Key) -> Scores:
        scale = OVER[self.over]
        return map_mask(
            lambda m, t: None if m is None else jnp.abs(t) / scale(jnp.asarray(t)), mask, params
        )


@dataclass(frozen=True)
class Lamp(Criterion):
    """s_e = theta_e^2 / sum over theta_e'^2 of those in its layer that are at least as large.

    Pruned weights count as 0. The largest weight of a layer scores 1 (k equal ones 1/k), so that a
    ranking over the network empties no layer. Lee, Park, Mo, Ahn & Shin, ICLR 2021, eq. 3.
    """

    title: ClassVar[str] = "LAMP"
    source: ClassVar[str] = "Lee, Park, Mo, Ahn & Shin, ICLR 2021, eq. 3"
    passes: ClassVar[str] = "none; one sort of each layer"

    def score(self, problem: Problem, params: Params, mask: Mask, key: Key) -> Scores:
        def one(m: jax.Array | None, t: jax.Array) -> jax.Array | None:
            if m is None:
                return None
            u = jnp.where(m, t * t, 0).ravel()
            largest = jnp.sort(u)[::-1]
            sums = jnp.cumsum(largest)
            # of equal weights all get the sum down to the last of them
            last = jnp.searchsorted(-largest, -u, side="right") - 1
            total = sums[last]
            # Where all weights of a layer are 0, so is its total; a total of NaN stays NaN.
            return jnp.where(total == 0, 0, u / jnp.where(total == 0, 1, total)).reshape(t.shape)

        return map_mask(one, mask, params)
