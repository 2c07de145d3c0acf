"""SNIP and its relatives: how much the loss, or the logits, feel a weight. Lee et al. 2019."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from secateur.core.keys import Key
from secateur.core.trees import Mask, Params, apply_mask, map_mask
from secateur.prune.criterion import Criterion, Scores
from secateur.prune.gradients import check_options, drawn, gradient, loss_of
from secateur.prune.problem import Batch, Problem, logits


@dataclass(frozen=True)
class Snip(Criterion):
    """s = |w * dL/dw| at w = m * theta, L the mean loss of a batch: how L changes, to
    first order, if a weight is cut. Lee, Ajanthan & Torr, ICLR 2019, eq. 6.

    It is |dL/dm|, the derivative by the mask at kept weights. The paper divides by the sum of all
    scores, which changes no rank and is not done here. The absolute value is taken once, after the
    sum over all examples; per example it would be another criterion.

    One ranking over all layers, once, before training. At high compression it empties whole layers,
    because layers with small gradients lose everything: VGG-16 on CIFAR-100 beyond a compression of
    about 10^3.5 (figures of Tanaka et al. 2020). In a bias-free ReLU network the *signed* scores of
    every layer have one sum, <f, dL/df>, so weights of large layers score lower. In front of a
    batch norm in batch mode the signed scores of a unit's incoming weights add up to 0.

    "Layerwise SNIP" (Liu & Zenke, ICML 2020) is this score with the scope ``per-layer``.

    Attributes:
        examples: size of the batch: the paper's 100 on MNIST, 128 on CIFAR; Synaptic-Flow takes 10
            times the number of classes, at random.
        per_class: so many examples of each class instead.
        bn: one of `problem.BN_MODES`. Published codes differ: running statistics (snip-public;
            Synaptic-Flow, where they are those of a new network) or the batch's (all others). The
            scores of deep networks depend on it strongly.
        loss: ``"problem"``: the problem's own, cross-entropy unless it was given another; or
            ``"cross_entropy"``, ``"mse"``, ``"linear_logit"``.
        chunk: examples at a time, to save memory. The same scores, unless ``bn`` uses the
            statistics of the batch: then every chunk has its own.
        average: ``"examples"``: every example weighs the same. ``"chunks"``: every chunk does, also
            a smaller last one, as where gradients of batch means are added.
    """

    title: ClassVar[str] = "SNIP"
    source: ClassVar[str] = "Lee, Ajanthan & Torr, ICLR 2019, eq. 6"
    needs: ClassVar[frozenset[str]] = frozenset({"images", "labels"})
    passes: ClassVar[str] = "1 forward, 1 backward"
    rescales: ClassVar[bool] = True
    trap: ClassVar[str] = (
        "A classifier that starts at 0 lets no gradient into the layers below, and its own weights "
        "are 0: every score is 0, and position alone chooses the survivors."
    )
    codes: ClassVar[tuple[str, ...]] = (
        (
            "namhoonlee/snip-public scores one set of weights and trains another, drawn anew; it "
            "also ranks the biases, which start at 0, score 0 and go first."
        ),
        (
            "mil-ad/snip scores a copy with weights drawn anew (Xavier), and keeps ties with its "
            "threshold, so that counts can exceed the target."
        ),
        (
            "ganguli-lab/Synaptic-Flow scores in evaluation mode with the statistics of a new "
            'network (bn="init") and adds the gradients of batch means (average="chunks"); in '
            "several rounds its gradient by the mask is not 0 at pruned weights, which can return: "
            "that is FORCE."
        ),
    )

    examples: int = 128
    per_class: int | None = None
    bn: str = "batch"
    loss: str = "problem"
    chunk: int | None = None
    average: str = "examples"

    def __post_init__(self) -> None:
        check_options(self)

    def gradient(self, problem: Problem, w: Params, key: Key) -> Params:
        """dL/dw at w over one batch drawn by ``key``, for all leaves, pruned places too."""
        draw, drop = jax.random.split(key)
        loss = loss_of(problem, self.loss, self.bn)
        batch = drawn(problem, draw, self.examples, self.per_class)
        return gradient(loss, problem, batch, drop, chunk=self.chunk, average=self.average)(w)

    def score(self, problem: Problem, params: Params, mask: Mask, key: Key) -> Scores:
        w = apply_mask(mask, params)
        g = self.gradient(problem, w, key)
        return map_mask(lambda m, w, g: None if m is None else jnp.abs(w * g), mask, w, g)


@dataclass(frozen=True)
class LogitSnip(Criterion):
    """s = |w * dZ/dw| at w = m * theta, Z = sum_i |f(x_i)|^2 over a batch: SNIP of the
    logits, without labels. Liu & Zenke, ICML 2020, supplement B.4.

    In a bias-free ReLU network the signed scores of every layer add up to 2 Z. Its mask, ranked
    over all layers, is where neural tangent transfer starts in the global setting.

    Attributes:
        examples, per_class, bn, chunk: as for `Snip`. ``per_class`` needs labels, to draw by.
    """

    title: ClassVar[str] = "Logit-SNIP"
    source: ClassVar[str] = "Liu & Zenke, ICML 2020, supplement B.4"
    needs: ClassVar[frozenset[str]] = frozenset({"images"})
    passes: ClassVar[str] = "1 forward, 1 backward"
    rescales: ClassVar[bool] = True
    trap: ClassVar[str] = (
        "A classifier that starts at 0 makes every score 0, and position alone chooses the "
        "survivors."
    )
    codes: ClassVar[tuple[str, ...]] = (
        (
            "The code of neural tangent transfer scores the first 128 training examples (100 on "
            "MNIST) in their order, and keeps ties with its threshold."
        ),
    )

    examples: int = 128
    per_class: int | None = None
    bn: str = "batch"
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_options(self)

    def gradient(self, problem: Problem, w: Params, key: Key) -> Params:
        """dZ/dw at w over one batch drawn by ``key``, for all leaves, pruned places too."""
        draw, drop = jax.random.split(key)

        def square(w: Params, batch: Batch, key: Key) -> jax.Array:
            return (logits(problem, w, batch.x, self.bn, key) ** 2).sum(axis=-1)

        batch = drawn(problem, draw, self.examples, self.per_class)
        return gradient(square, problem, batch, drop, chunk=self.chunk, average=None)(w)

    def score(self, problem: Problem, params: Params, mask: Mask, key: Key) -> Scores:
        w = apply_mask(mask, params)
        g = self.gradient(problem, w, key)
        return map_mask(lambda m, w, g: None if m is None else jnp.abs(w * g), mask, w, g)
