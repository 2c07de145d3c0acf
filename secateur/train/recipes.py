"""How a network is trained, as data; the recipes of the papers by name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import optax

from secateur.core.errors import SecateurError, lookup
from secateur.data.augment import AUGMENTATIONS
from secateur.train.adam import scale_by_adam
from secateur.train.losses import LOSSES

OPTIMISERS = ("adam", "sgd", "momentum", "nesterov")


@dataclass(frozen=True)
class Recipe:
    """One training: optimiser, batch, steps, schedule and what is evaluated when.

    Attributes:
        optimiser: ``adam`` (b1 .9, b2 .999, eps 1e-8), ``sgd`` (plain), ``momentum``, ``nesterov``.
        rate: learning rate before the schedule.
        batch: examples a step. Batches run through one permutation of the training set after the
            other without a gap, so every example is seen equally often; a last short batch of an
            epoch is completed from the next one.
        steps: optimiser steps of one training, a multiple of ``evaluate_every``.
        evaluate_every: steps between two evaluations on the validation set; there is one at step 0.
        momentum: of ``momentum`` and ``nesterov``.
        weight_decay: lambda; coupled (added to the gradient) unless ``decoupled``.
        drops: the rate is multiplied by a factor from a step on: ``((32_000, .1), (48_000, .1))``.
        warmup: steps over which the rate grows linearly from 0.
        augment: a name in `data.augment.AUGMENTATIONS`: ``none``, ``pad_crop_flip`` (pad 4, random
            crop, horizontal flip), ``resized_crop_flip``, ...
        loss: a name in `losses.LOSSES`.
    """

    optimiser: str = "adam"
    rate: float = 1.2e-3
    batch: int = 60
    steps: int = 50_000
    evaluate_every: int = 100
    momentum: float = 0.9
    weight_decay: float = 0.0
    decoupled: bool = False
    drops: tuple[tuple[int, float], ...] = ()
    warmup: int = 0
    augment: str = "none"
    loss: str = "cross_entropy"

    def __post_init__(self) -> None:
        lookup("optimiser", self.optimiser, dict.fromkeys(OPTIMISERS))
        lookup("augmentation", self.augment, AUGMENTATIONS)
        lookup("loss", self.loss, LOSSES)
        if not self.rate > 0:
            raise SecateurError(f"the learning rate is positive, not {self.rate}.")
        for name in ("batch", "steps", "evaluate_every"):
            if getattr(self, name) < 1:
                raise SecateurError(f"{name} is at least 1, not {getattr(self, name)}.")
        if self.warmup < 0 or any(at < 0 or factor < 0 for at, factor in self.drops):
            raise SecateurError(
                f"steps and factors of a schedule are not negative: {self.drops}, {self.warmup}."
            )
        if not 0 <= self.momentum < 1:
            raise SecateurError(f"momentum is in [0, 1), not {self.momentum}.")
        if self.weight_decay < 0:
            raise SecateurError(f"weight_decay is not negative, unlike {self.weight_decay}.")
        if self.steps % self.evaluate_every:
            raise SecateurError(
                f"steps ({self.steps}) must be a multiple of evaluate_every "
                f"({self.evaluate_every}), so that the last step is evaluated."
            )

    def rates(self, steps: np.ndarray) -> np.ndarray:
        """The learning rate at each step; step 0 is the first one taken."""
        rates = np.full(len(steps), self.rate, np.float64)
        for at, factor in self.drops:
            rates[steps >= at] *= factor
        if self.warmup:
            rates *= np.minimum(1.0, (steps + 1) / self.warmup)
        return rates

    def transformation(self, weight_decay: float) -> optax.GradientTransformation:
        """The direction of a step, before the rate: the update is ``-rate * direction``.

        Args:
            weight_decay: lambda, perhaps traced; used where the recipe's own is not 0.
        """
        parts = []
        if self.weight_decay and not self.decoupled:
            parts.append(optax.add_decayed_weights(weight_decay))
        if self.optimiser == "adam":
            parts.append(scale_by_adam())
        elif self.optimiser in ("momentum", "nesterov"):
            parts.append(optax.trace(self.momentum, nesterov=self.optimiser == "nesterov"))
        if self.weight_decay and self.decoupled:
            parts.append(optax.add_decayed_weights(weight_decay))
        return optax.chain(optax.identity(), *parts)


RECIPES: dict[str, Recipe] = {
    # Frankle & Carbin 2019, figure 2, LeNet-300-100.
    "frankle-carbin": Recipe("adam", 1.2e-3, batch=60, steps=50_000, evaluate_every=100),
    # facebookresearch/open_lth, models/mnist_lenet.py: 40 epochs of 469 steps; open_lth trains on
    # all 60,000 images, here the validation set is held out, so 40 epochs become 43.7.
    "open-lth": Recipe("sgd", 0.1, batch=128, steps=18_760, evaluate_every=469),
    # Liu & Zenke 2020 (fmi-basel/neural-tangent-transfer), supervised stage on MNIST: 50 epochs
    # of 844 steps of 64.
    "ntt": Recipe("adam", 1e-3, batch=64, steps=42_200, evaluate_every=100),
    # A level in half a CPU second: long enough that every branch keeps its order.
    "quick": Recipe("adam", 1.2e-3, batch=60, steps=400, evaluate_every=20),
}
