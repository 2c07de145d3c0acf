"""A criterion: the one number of a weight by which it stays or goes. The highest stay.

A criterion is a small frozen dataclass. Its fields are the options on which papers and published
codes differ; their defaults follow the paper. Its one method is pure and reads like the equation.
One method is one file in `prune.criteria` and one line in `prune.methods`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from secateur.core.keys import Key
from secateur.core.trees import Mask, Params
from secateur.prune.problem import Problem

Scores = Any  # PyTree[Float[Array, "..."] | None], the structure of Mask; the highest are kept


@dataclass(frozen=True)
class Criterion:
    """Scores weights. What it needs and which laws it obeys are class attributes; tests read them.

    Attributes:
        title: its name as printed, e.g. ``"SNIP"``.
        source: paper, equation.
        needs: what the problem must have: ``"images"``, ``"labels"``.
        passes: forward and backward passes of one score, in words.
        rounds, schedule, scope: how the paper prunes with it; `find` takes them by default.
        revival: whether weights pruned in a round compete again in the next.
        ties: ``"index"``: of equal scores the first are kept; ``"random"``: any, by key.
        resamples: scores in every round with new weights, so that they do not depend on ``params``.
        permutes: permuting hidden units permutes the scores.
        rescales: dividing a unit's incoming weights and multiplying its outgoing ones leaves the
            scores of a bias-free ReLU network as they are.
        signed: scores may be negative.
        trap: where a network silently gives a bad score, in one sentence; "" if nothing is known.
        codes: where published code differs, one sentence each.
    """

    title: ClassVar[str]
    source: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    passes: ClassVar[str] = ""
    rounds: ClassVar[int] = 1
    schedule: ClassVar[str] = "one-shot"
    scope: ClassVar[str] = "everywhere"
    revival: ClassVar[bool] = False
    ties: ClassVar[str] = "index"
    resamples: ClassVar[bool] = False
    permutes: ClassVar[bool] = True
    rescales: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    trap: ClassVar[str] = ""
    codes: ClassVar[tuple[str, ...]] = ()

    def score(self, problem: Problem, params: Params, mask: Mask, key: Key) -> Scores:
        """The score of every prunable weight at ``mask * params``; larger is kept.

        Args:
            params: all weights, also the pruned ones; where training will start. Never changed.
            mask: the mask of the round before; booleans, None where nothing may be pruned.

        Returns:
            The structure of ``mask``: floats in the shapes of its leaves, None where it is None.
            Scores of pruned places are computed as the definition says; who calls ranks them last.
        """
        raise NotImplementedError


Progress = Callable[[int, int], None]  # (rounds or steps done, of how many)


@dataclass(frozen=True)
class Construction:
    """A method that makes its mask, and perhaps its weights, in a way of its own.

    The class attributes say the same as those of `Criterion`.
    """

    title: ClassVar[str]
    source: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    passes: ClassVar[str] = ""
    trap: ClassVar[str] = ""
    codes: ClassVar[tuple[str, ...]] = ()

    def construct(
        self,
        problem: Problem,
        params: Params,
        mask: Mask,
        keep: int,
        key: Key,
        progress: Progress = lambda done, of: None,
    ) -> tuple[Mask, Params, dict[str, Any]]:
        """A mask with ``keep`` survivors, the weights to begin with, and what is worth recording.

        Args:
            params: the initial weights. Never changed.
            mask: what may be pruned: True there, None elsewhere.
        """
        raise NotImplementedError
