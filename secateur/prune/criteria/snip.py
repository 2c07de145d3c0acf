"""SNIP and its relatives: how much the loss, or the logits, feel a weight. Lee et al. 2019."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from secateur.core.keys import Key
from secateur.core.trees import Mask, Params, apply_mask, map_mask
from secateur.prune.criterion import Criterion, Scores
from secateur.prune.problem import Problem, logits


@dataclass(frozen=True)
class Snip(Criterion):
    """s = |theta * dL/dw| at w = m * theta, L the mean loss of a batch: how L changes, to first
    order, if a weight is cut. Lee, Ajanthan & Torr, ICLR 2019, eq. 6.
    """

    title: ClassVar[str] = "SNIP"
    source: ClassVar[str] = "Lee, Ajanthan & Torr, ICLR 2019, eq. 6"
    needs: ClassVar[frozenset[str]] = frozenset({"images", "labels"})
    passes: ClassVar[str] = "1 forward, 1 backward"
    rescales: ClassVar[bool] = True

    examples: int = 128
    bn: str = "batch"

    def score(self, problem: Problem, params: Params, mask: Mask, key: Key) -> Scores:
        draw, drop = jax.random.split(key)
        x, y = problem.batch(draw, self.examples)

        def loss(w: Params) -> jax.Array:
            return problem.loss(logits(problem, w, x, self.bn, drop), y).mean()

        g = jax.grad(loss)(apply_mask(mask, params))
        return map_mask(lambda m, t, d: None if m is None else jnp.abs(m * t * d), mask, params, g)
