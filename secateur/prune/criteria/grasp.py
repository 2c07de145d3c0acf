"""GraSP: keep the weights whose removal would lower the gradient flow most. Wang et al. 2020."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from secateur.core.errors import lookup
from secateur.core.keys import Key
from secateur.core.trees import Mask, Params, apply_mask, map_mask
from secateur.prune.criterion import Criterion, Scores
from secateur.prune.gradients import check_options, drawn, gradient, loss_of
from secateur.prune.problem import Problem

RANKS = {"signed": lambda s: s, "absolute": jnp.abs}
FLOWS = {"prunable": False, "all": True}  # do biases and norms count in g


@dataclass(frozen=True)
class Grasp(Criterion):
    """s = theta * (H g) at w = m * theta, signed; g and H gradient and Hessian of L, the mean loss
    at logits / T. Wang, Zhang & Grosse, ICLR 2020, eq. 8, with the sign turned: larger is kept.

    Cutting weight j changes the gradient flow |g|^2 by -2 theta_j (H g)_j to first order. The paper
    removes the largest -theta * (H g), those that would raise the flow most or lower it least; kept
    are the largest theta * (H g), whose removal would lower it most. About half of the scores are
    negative, so a density above a half keeps negative ones.

    T = 200 all but removes the curvature of the loss: as T grows, T^2 s tends to the score of the
    linear loss <1/C - y, f>, at rate 1/T, so only the curvature of the network is left.

    Known collapse: VGG-11 and VGG-16 with batch norm on Tiny-ImageNet fall to chance between
    densities 0.1 and 0.03 (stored results of Tanaka et al. 2020). Frankle et al. (ICLR 2021) found
    that the signed order does no better than its inverse, and that keeping the largest
    |theta * (H g)| does better: ``rank="absolute"``.

    Attributes:
        rank: ``"signed"``, or ``"absolute"``: the absolute value of the whole score.
        own_term: False: the published score, the derivative by m_j of 1/2 |dL/dw|^2 where pruned
            coordinates still count in the norm. True: theta * (H (m g)) + m g^2, the derivative of
            1/2 |m * dL/dw|^2, the flow of the network that will be trained.
        flow: what g consists of: ``"prunable"`` weights, as published, or ``"all"`` parameters,
            biases and norms too, as in PHEW's code.
        temperature: T; the authors' code has 200.
        per_class: examples of each class; the authors' code draws 10 on CIFAR. None: ``examples``
            at random, as in Synaptic-Flow.
        examples: size of the batch where ``per_class`` is None.
        bn, loss, chunk, average: as for `Snip`. Examples drawn by class come sorted by class, so
            with ``bn="batch"`` and a ``chunk`` of half of them batch norm sees what it sees in the
            authors' code: two halves, each with half of the classes.
    """

    title: ClassVar[str] = "GraSP"
    source: ClassVar[str] = "Wang, Zhang & Grosse, ICLR 2020, eq. 8; code alecwangcq/GraSP"
    needs: ClassVar[frozenset[str]] = frozenset({"images", "labels"})
    passes: ClassVar[str] = "1 gradient and 1 Hessian-vector product: about 3 gradients"
    signed: ClassVar[bool] = True
    trap: ClassVar[str] = (
        "Ranked by the wrong end, or by |score|, the mask looks just as reasonable: the score is "
        "signed, and torch.nn.utils.prune takes absolute values of what it is given."
    )
    codes: ClassVar[tuple[str, ...]] = (
        (
            "alecwangcq/GraSP draws the linear layers of the scored copy anew, so that they are "
            "not those that are trained, and keeps one weight too many."
        ),
        (
            "alecwangcq/GraSP adds the gradients of two halves of a batch sorted by class: without "
            "batch norm that is the whole batch; with it, each half is normalised by its own "
            'classes (bn="batch", chunk=half the batch).'
        ),
        (
            "ganguli-lab/Synaptic-Flow kept the wrong end, the largest -theta * (H g), before "
            "August 2020; since then its two passes see the shuffled, augmented examples in "
            "different orders and batches."
        ),
        (
            "ganguli-lab/Synaptic-Flow in several rounds takes g over surviving weights only, "
            "without the term g^2; with one round, as in the paper, there is no difference."
        ),
        'ShreyasMalakarjunPatil/PHEW has biases and batch norms in g (flow="all").',
    )

    rank: str = "signed"
    own_term: bool = False
    flow: str = "prunable"
    temperature: float = 200.0
    per_class: int | None = 10
    examples: int = 128
    bn: str = "batch"
    loss: str = "problem"
    chunk: int | None = None
    average: str = "examples"

    def __post_init__(self) -> None:
        check_options(self)
        lookup("rank", self.rank, RANKS)
        lookup("flow", self.flow, FLOWS)

    def score(self, problem: Problem, params: Params, mask: Mask, key: Key) -> Scores:
        draw, drop = jax.random.split(key)
        loss = loss_of(problem, self.loss, self.bn, self.temperature)
        batch = drawn(problem, draw, self.examples, self.per_class)
        # One batch and one key of dropout for both passes: H is the Hessian of the loss of g.
        dL = gradient(loss, problem, batch, drop, chunk=self.chunk, average=self.average)
        w = apply_mask(mask, params)

        def counted(m: jax.Array | None, g: jax.Array) -> jax.Array:
            if m is None:
                return g if FLOWS[self.flow] else jnp.zeros_like(g)
            return jnp.where(m, g, 0) if self.own_term else g

        g = map_mask(counted, mask, dL(w))
        Hg = jax.jvp(dL, (w,), (g,))[1]

        def one(m: jax.Array | None, t: jax.Array, g: jax.Array, h: jax.Array) -> jax.Array | None:
            if m is None:
                return None
            return RANKS[self.rank](t * h + g**2 if self.own_term else t * h)

        return map_mask(one, mask, params, g, Hg)
