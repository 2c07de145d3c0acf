"""How lazy a training was, measured: how far its weights and its tangent kernel moved.

A knob (`networks.lazy`) says what was asked for, not what came out: without centring a large
output scale is not lazy at all. Under gradient flow, centred, the weights' and the kernel's
relative movement fall as 1 / alpha and 1 - CKA as 1 / alpha^2 (Chizat et al. 2019; Geiger et al.
2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params
from secateur.features.movement import movement, outside_span
from secateur.kernels.alignment import kernel_alignment, kernel_distance
from secateur.kernels.ntk import ntk


@dataclass(frozen=True)
class Laziness:
    """Movements over a training; all are 0 in the lazy limit.

    Attributes:
        weights: |theta_T - theta_0| / |theta_0| over the weights with a mask.
        kernel: |K_T - K_0| / |K_0|, first order in the movement.
        rotation: 1 - <K_T, K_0> / (|K_T| |K_0|), second order and blind to scale (Fort et al.
            2020).
        centred_rotation: the same of the centred kernels, 1 - CKA.
        outside: the share of the movement that no gradient at the start spans; None where it was
            not asked for.
    """

    weights: float
    kernel: float
    rotation: float
    centred_rotation: float
    outside: float | None


def laziness(
    network: Network,
    start: Params,
    params: Params,
    x: Any,
    *,
    stats: Stats | None = None,
    last_stats: Stats | None = None,
    mask: Mask = None,
    span: bool = False,
) -> Laziness:
    """How far a training has moved from ``start`` to ``params``, seen at examples ``x``.

    Args:
        x: (n, *input_shape), a probe; all training examples for ``span``.
        stats, last_stats: of the network at both ends; the last ones None: as at the start.
        mask: of both; the kernel is that of the surviving weights.
        span: also the part outside the span of the first gradients (`movement.outside_span`).

    Raises:
        SecateurError: as `kernels.ntk.ntk`, and where the first kernel is zero.
    """
    masks = network.prunable(start) if mask is None else mask
    ends = ((start, stats), (params, stats if last_stats is None else last_stats))
    first, last = (
        np.asarray(ntk(network, p, x, stats=s or {}, mask=mask).values, np.float64) for p, s in ends
    )
    moved = float(movement(start, params, masks, masked=True).relative())
    outside = None
    if span:
        outside = outside_span(network, start, params, x, stats=stats, mask=mask).share
    return Laziness(
        moved,
        kernel_distance(last, first),
        kernel_distance(last, first, form="cosine"),
        1 - kernel_alignment(last, first),
        outside,
    )
