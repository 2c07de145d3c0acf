"""The path-kernel criterion: keep the weights without which the path kernel's trace falls most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from secateur.core.keys import Key
from secateur.core.trees import Mask, Params
from secateur.kernels.path import path_trace_drops
from secateur.prune.criteria.synflow import input_statistic
from secateur.prune.criterion import Criterion, Scores
from secateur.prune.problem import Problem


@dataclass(frozen=True)
class PathTrace(Criterion):
    """s_e = Tr Pi(m) - Tr Pi(m without e) = T_e + theta_e^2 (H m)_e: the exact fall of the path
    kernel's trace if a weight is pruned, up to one factor for all. Gebhart et al. 2021 (the trace);
    `kernels.path` (the fall).

    Attributes:
        v: input of the flow: ``"ones"``, or ``"second_moment"`` of the data for the trace that is
            the sign-averaged NTK trace; also ``"mean"``, ``"mean_abs"``.
        examples: how many are read for a statistic.
        pooling: as for SynFlow.
    """

    title: ClassVar[str] = "Path-kernel trace"
    source: ClassVar[str] = "Gebhart, Saxena & Schrater 2021, arXiv:2101.10552, the trace of Pi"
    passes: ClassVar[str] = "1 Hessian-vector product of one input, each round"
    rounds: ClassVar[int] = 100
    schedule: ClassVar[str] = "exponential"
    trap: ClassVar[str] = "Rescaling a unit changes the score, although it changes no output."

    v: str = "ones"
    examples: int = 1000
    pooling: str = "sum"

    def score(self, problem: Problem, params: Params, mask: Mask, key: Key) -> Scores:
        dtype = jnp.result_type(*jax.tree.leaves(params))
        v = input_statistic(problem, self.v, self.examples, dtype)
        return path_trace_drops(
            problem.network, params, problem.stats, mask, v, pooling=self.pooling
        ).tree
