"""Features as records: read inside the compiled training at chosen steps (`train.records`).

All of them are traced, one program for all lanes. What they give is by the layer's kernel, with the
record's steps as the first axis in `train.training.Fitted.records`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from secateur.core.errors import SecateurError, lookup
from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params, flatten
from secateur.features import directions, frames
from secateur.features.grams import KUMAR, Gram, grams
from secateur.features.movement import movement
from secateur.train.records import Record


@dataclass(frozen=True)
class _Grams:
    form: Gram
    layers: tuple[str, ...] | None

    def __call__(
        self, network: Network, params: Params, stats: Stats, mask: Mask, x: jax.Array
    ) -> dict[str, jax.Array]:
        return grams(network, params, stats, x, self.form, layers=self.layers)


def gram_record(
    x: Any,
    steps: tuple[int, ...],
    form: Gram = KUMAR,
    *,
    layers: Sequence[str] | None = None,
    name: str = "grams",
) -> Record:
    """The Gram matrix (steps, n, n) of each layer on ``x``: hand two to `grams.over_training`.

    Args:
        x: (n, *input_shape), as the network takes them; the same for what shall be compared.
        form: side, centring and scale.
        layers: kernels, by name; None: all that can be read.
    """
    return Record(name, _Grams(form, _named(layers)), steps, (x,))


@dataclass(frozen=True)
class _Potentials:
    normalise: str
    units: str
    layers: tuple[str, ...] | None

    def __call__(
        self, network: Network, params: Params, stats: Stats, mask: Mask
    ) -> dict[str, jax.Array]:
        options: dict[str, Any] = {"normalise": self.normalise, "units": self.units}
        return {
            layer: frames.frame_potential(kernel, m, **options)
            for layer, (kernel, m) in _kernels(params, mask, self.layers).items()
        }


def frame_record(
    steps: tuple[int, ...],
    *,
    normalise: str = "excess",
    units: str = "alive",
    layers: Sequence[str] | None = None,
    name: str = "frame_potential",
) -> Record:
    """The frame potential (steps,) of each prunable kernel; see `frames.frame_potential`.

    Raises:
        SecateurError: for an unknown normalisation.
    """
    lookup("normalisation of the frame potential", normalise, frames.NORMALISATIONS)
    return Record(name, _Potentials(normalise, units, _named(layers)), steps)


@dataclass(frozen=True)
class _Cosines:
    layers: tuple[str, ...] | None

    def __call__(
        self, network: Network, params: Params, stats: Stats, mask: Mask
    ) -> dict[str, dict[str, jax.Array]]:
        kernels = _kernels(params, mask, self.layers)
        return {
            "cosines": {k: directions.cosines(w, m) for k, (w, m) in kernels.items()},
            "norms": {k: directions.norms(w, m) for k, (w, m) in kernels.items()},
        }


def cosine_record(
    steps: tuple[int, ...], *, layers: Sequence[str] | None = None, name: str = "directions"
) -> Record:
    """``"cosines/LAYER"`` (steps, units, units) and ``"norms/LAYER"`` (steps, units)."""
    return Record(name, _Cosines(_named(layers)), steps)


@dataclass(frozen=True)
class _Weights:
    layers: tuple[str, ...] | None

    def __call__(
        self, network: Network, params: Params, stats: Stats, mask: Mask
    ) -> dict[str, jax.Array]:
        return {k: w for k, (w, _) in _kernels(params, mask, self.layers).items()}


def weight_record(
    steps: tuple[int, ...], *, layers: Sequence[str] | None = None, name: str = "weights"
) -> Record:
    """The kernel (steps, ...) of each prunable layer itself: for films of small networks."""
    return Record(name, _Weights(_named(layers)), steps)


@dataclass(frozen=True)
class _Moved:
    masked: bool

    def __call__(
        self, network: Network, params: Params, stats: Stats, mask: Mask, start: Params
    ) -> dict[str, Any]:
        found = movement(start, params, mask, masked=self.masked)
        return {"moved": found.moved, "size": found.size, "relative": found.relative()}


def movement_record(
    start: Params, steps: tuple[int, ...], *, masked: bool = True, name: str = "movement"
) -> Record:
    """``"moved/LEAF"``, ``"size/LEAF"`` and ``"relative"``, (steps,) each, inside the mask.

    Args:
        start: where movement is counted from: data, so that each lane has its own.
        masked: leaves with a mask alone; False: biases and norms too.
    """
    return Record(name, _Moved(masked), steps, (start,))


@dataclass(frozen=True)
class _Turned:
    layers: tuple[str, ...] | None

    def __call__(
        self, network: Network, params: Params, stats: Stats, mask: Mask, start: Params
    ) -> dict[str, jax.Array]:
        first = flatten(start)
        return {
            layer: directions.turned(first[layer], kernel, m)
            for layer, (kernel, m) in _kernels(params, mask, self.layers).items()
        }


def turn_record(
    start: Params,
    steps: tuple[int, ...],
    *,
    layers: Sequence[str] | None = None,
    name: str = "turned",
) -> Record:
    """Degrees (steps, units) by which each unit's weight vector has turned; NaN without weights."""
    return Record(name, _Turned(_named(layers)), steps, (start,))


def _named(layers: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if layers is None else tuple(layers)


def _kernels(
    params: Params, mask: Mask, layers: tuple[str, ...] | None
) -> Mapping[str, tuple[jax.Array, Any]]:
    """Kernel and mask of each layer: those asked for, or all prunable ones."""
    weights, masks = flatten(params), flatten(mask)
    prunable = [k for k, m in masks.items() if m is not None and jnp.ndim(weights[k]) >= 2]
    names = prunable if layers is None else layers
    for name in names:
        if name not in weights or jnp.ndim(weights[name]) < 2:
            raise SecateurError(
                f"{name!r} is no kernel of this network; those that may be pruned are "
                f"{', '.join(prunable)}."
            )
    return {name: (weights[name], masks[name]) for name in names}
