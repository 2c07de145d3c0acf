"""Iterative SNIP and FORCE: SNIP's score after pruning, not before. de Jorge et al. 2021."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from secateur.core.keys import Key
from secateur.core.trees import Mask, Params, apply_mask, map_mask
from secateur.prune.criteria.snip import Snip
from secateur.prune.criterion import Scores
from secateur.prune.gradients import added
from secateur.prune.problem import Problem

_LINEAR = (
    "naver/force scores with nll_loss on networks that return raw logits: that is the linear loss "
    '-f_y, not cross-entropy, and gives clearly other masks; loss="linear_logit" reproduces it.'
)
_COUNT = (
    "naver/force keeps int(d N) weights and all that tie with the last of them, and prunes in 10 "
    "rounds by default; the paper and its README prune in 60."
)


@dataclass(frozen=True)
class IterativeSnip(Snip):
    """s = |w * g|, g = mean over ``batches`` of dL/dw at w = m * theta; SNIP anew in every
    round of an exponential schedule. de Jorge et al., ICLR 2021.

    What was pruned scores 0 and stays pruned: the masks are nested. One round is SNIP.
    Scoring the pruned network avoids much of SNIP's collapse, as layers that become small gain
    score; still nothing forbids it.

    Attributes:
        batches: independent batches, each of ``examples`` (or ``per_class``) drawn anew, whose
            gradients are averaged: the authors take 1 on CIFAR-10, 10 on CIFAR-100, 20 on
            Tiny-ImageNet, 40 on ImageNet.
        examples, per_class, bn, loss, chunk, average: as for `Snip`.
    """

    title: ClassVar[str] = "Iterative SNIP"
    source: ClassVar[str] = "de Jorge et al., ICLR 2021; code naver/force, method 1"
    passes: ClassVar[str] = "1 forward, 1 backward for each batch, in every round"
    rounds: ClassVar[int] = 60
    schedule: ClassVar[str] = "exponential"
    codes: ClassVar[tuple[str, ...]] = (
        _LINEAR,
        _COUNT,
        (
            "YiteWang/NTK-SAP has an IterSNIP of its own, theta * dL/dtheta, the same score; what "
            "ganguli-lab/Synaptic-Flow does when SNIP is given several rounds is FORCE."
        ),
    )

    batches: int = 1

    def gradient(self, problem: Problem, w: Params, key: Key) -> Params:
        """The mean of SNIP's gradients over ``batches`` independent batches."""
        if self.batches == 1:  # the very batch that SNIP draws by this key
            return super().gradient(problem, w, key)
        one = super().gradient
        total = added(lambda k: one(problem, w, k), jax.random.split(key, self.batches))
        return jax.tree.map(lambda g: g / self.batches, total)


@dataclass(frozen=True)
class Force(IterativeSnip):
    """s = |theta * g|, theta the original weight, g = mean over ``batches`` of dL/dw at
    w = m * theta, also at pruned places: all weights compete in every round, and a pruned one may
    return ("foresight connection sensitivity"). de Jorge et al., ICLR 2021.

    It seeks the mask c with the largest saliency *after* pruning, the sum over kept weights of
    theta * dL/dw at w = c * theta. One round is SNIP.

    Attributes:
        batches, examples, per_class, bn, loss, chunk, average: as for `IterativeSnip`.
    """

    title: ClassVar[str] = "FORCE"
    source: ClassVar[str] = "de Jorge et al., ICLR 2021; code naver/force, method 3"
    revival: ClassVar[bool] = True
    trap: ClassVar[str] = (
        "Weights return only while signal flows: once a hidden layer of a bias-free ReLU network "
        "is empty every gradient is 0, and position alone chooses the survivors."
    )
    codes: ClassVar[tuple[str, ...]] = (
        _LINEAR,
        _COUNT,
        'Method 2 of naver/force, "GRASP-It", ranks g^2 with nested masks: it is not GraSP.',
    )

    def score(self, problem: Problem, params: Params, mask: Mask, key: Key) -> Scores:
        g = self.gradient(problem, apply_mask(mask, params), key)
        return map_mask(lambda m, t, g: None if m is None else jnp.abs(t * g), mask, params, g)
