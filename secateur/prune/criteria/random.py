"""Random pruning: honest, and as the code of Neural Tangent Transfer does it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.keys import Key
from secateur.core.trees import Mask, Params, flatten, map_mask, unflatten
from secateur.prune.criterion import Construction, Criterion, Progress, Scores
from secateur.prune.problem import Problem


@dataclass(frozen=True)
class Random(Criterion):
    """s ~ U(0, 1), independent. Each weight stays with the same probability; the count is exact."""

    title: ClassVar[str] = "random"
    source: ClassVar[str] = "none: the control of every other method"
    passes: ClassVar[str] = "none"
    ties: ClassVar[str] = "random"
    resamples: ClassVar[bool] = True
    permutes: ClassVar[bool] = False
    codes: ClassVar[tuple[str, ...]] = (
        "JJGO/shrinkbench draws each weight on its own, so its count is not exact.",
        "ganguli-lab/Synaptic-Flow draws normals, anew in every round, and lets weights return.",
    )

    def score(self, problem: Problem, params: Params, mask: Mask, key: Key) -> Scores:
        flat, leaves = flatten(mask), flatten(params)
        drawn = {
            name: None
            if m is None
            else jax.random.uniform(jax.random.fold_in(key, i), m.shape, leaves[name].dtype)
            for i, (name, m) in enumerate(flat.items())
        }
        return unflatten(drawn, mask)


@dataclass(frozen=True)
class NttRandom(Construction):
    """The "random" baseline of Neural Tangent Transfer's code: each layer's magnitude mask, its
    entries shuffled along the first axis of the kernel, always with key 0. Not uniform.

    Each unit of a dense layer keeps the fan-in of the magnitude mask; entries of a convolution move
    only along the rows of the kernel. Liu & Zenke 2020, fmi-basel/neural-tangent-transfer
    (get_masks_from_jax_params).

    Attributes:
        rescale: the kept weights times 1/sqrt(density), one of the code's two forms.
        seed: 0 in that code, whatever the run's; the shuffle is this JAX's, not that of 2020.
    """

    title: ClassVar[str] = "random as in NTT's code"
    source: ClassVar[str] = "fmi-basel/neural-tangent-transfer, utils.py"
    passes: ClassVar[str] = "none"
    trap: ClassVar[str] = "Not a random mask: units keep the fan-in that magnitude gave them."
    codes: ClassVar[tuple[str, ...]] = (
        "That code rounds each layer on its own; here the total is exact by largest remainder.",
    )

    rescale: bool = False
    seed: int = 0

    def construct(
        self,
        problem: Problem,
        params: Params,
        mask: Mask,
        keep: int,
        key: Key,
        progress: Progress = lambda done, of: None,
    ) -> tuple[Mask, Params, dict[str, Any]]:
        from secateur.prune.magnitude import keep_largest
        from secateur.prune.quotas import PerLayer

        shapes = {k: np.shape(m) for k, m in flatten(mask).items() if m is not None}
        counts = dict(zip(shapes, PerLayer().quotas(shapes, keep)))
        largest = flatten(keep_largest(params, mask, counts))
        shuffle = jax.random.key(self.seed)
        moved = {
            name: None
            if m is None
            else np.asarray(jax.random.permutation(shuffle, jnp.asarray(m), independent=True))
            for name, m in largest.items()
        }
        chosen = unflatten(moved, mask)
        if self.rescale:
            scale = math.sqrt(sum(math.prod(s) for s in shapes.values()) / keep)
            params = map_mask(
                lambda m, p: p if m is None else (np.asarray(p) * scale).astype(p.dtype),
                mask,
                params,
            )
        progress(1, 1)
        return chosen, params, {"shuffled": "along axis 0 of each kernel, one key for all layers"}
