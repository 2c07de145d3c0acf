"""Kernels as records: read at chosen steps of a training (`train.records`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params
from secateur.kernels import trace
from secateur.kernels.ntk import ntk
from secateur.train.records import Record


@dataclass(frozen=True)
class _Kernel:
    """The kernel over the surviving weights; it plans on the host."""

    outputs: str

    def __call__(
        self, network: Network, params: Params, stats: Stats, mask: Mask, x: Any
    ) -> dict[str, Any]:
        found = ntk(network, params, x, stats=stats, mask=mask, outputs=self.outputs)
        return {"kernel": found.values}


def kernel_record(
    x: Any, steps: tuple[int, ...], *, outputs: str = "full", name: str = "ntk"
) -> Record:
    """The empirical kernel of the surviving weights on ``x``, as `kernels.ntk.ntk` gives it.

    Of ``(steps, ...)`` entries under ``"kernel"``: hand them to `kernels.alignment`,
    `kernels.spectrum`, `kernels.dynamics`.

    Args:
        x: ``(n, *input_shape)``, examples as the network takes them.
        steps: where evaluations are.
        outputs: "full", "trace", "mean" or "diagonal".
    """
    return Record(name, _Kernel(outputs), steps, (x,), compiled=False)


def _by_leaf(
    network: Network, params: Params, stats: Stats, mask: Mask, x: jax.Array
) -> dict[str, Any]:
    parts = trace.by_leaf(network, params, stats, mask, x)
    return {"total": sum(parts.values()), "leaves": parts}


def trace_record(x: Any, steps: tuple[int, ...], *, name: str = "ntk_trace") -> Record:
    """The kernel's exact trace over prunable weights, ``"total"`` and ``"leaves/LEAF"``.

    Compiled, and one program for all lanes: a backward pass for each output (`kernels.trace`).
    """
    return Record(name, _by_leaf, steps, (x,))
