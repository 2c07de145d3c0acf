"""Neural tangent transfer: a sparse network whose outputs and kernel are the dense network's.

Liu & Zenke, ICML 2020. A dense teacher stays at its initial weights; a sparse student learns its
weights and its mask, without labels, so that both would learn alike. It returns a mask and new
initial weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import Key, fold
from secateur.core.trees import (
    Mask,
    Params,
    alive,
    apply_mask,
    flatten,
    map_mask,
    ones_mask,
    sizes,
)
from secateur.kernels.batch import KERNELS, Plan, between, factors, plan
from secateur.prune.criterion import Construction, Progress
from secateur.prune.magnitude import keep_largest
from secateur.prune.problem import Problem
from secateur.prune.quotas import PerLayer
from secateur.structure.canonical import canonical
from secateur.train.adam import scale_by_adam
from secateur.train.order import Order

RANKINGS = ("per-layer", "everywhere")
FIRST_MASKS = ("magnitude", "logit-snip")


class Parts(NamedTuple):
    """What the objective is made of, each without its weight.

    Attributes:
        output: mean over examples and outputs of (student - teacher)^2.
        kernel: mean over the entries of the kernel array of (student - teacher)^2.
        norm: sum of the squares of the kept weights; biases are not in it.
    """

    output: Any
    kernel: Any
    norm: Any


class Weights(NamedTuple):
    """The numbers of a transfer that are data of its program: gamma^2, beta / d, Adam's rate."""

    kernel: Any
    norm: Any
    rate: Any


def distances(
    how: Plan,
    kernels: Sequence[str],
    problem: Problem,
    teacher: Params,
    theta: Params,
    mask: Mask,
    x: jax.Array,
) -> dict[str, Parts]:
    """The parts of the objective on a batch, by each of the student's kernels.

    Args:
        kernels: names in `kernels.batch.KERNELS`.
        theta: the student's weights, also those under the mask.
        x: (n, *input_shape), n at least 2: the first n // 2 against the others.
    """
    w = apply_mask(mask, theta)
    first, second = slice(None, len(x) // 2), slice(len(x) // 2, None)
    f, still = factors(how, problem.network, teacher, problem.stats, x)
    g, moving = factors(how, problem.network, w, problem.stats, x)
    goal = between(how, still.of(first), still.of(second))
    kept = map_mask(lambda m, p: None if m is None else jnp.sum(p**2), mask, w)
    norm = sum(jax.tree.leaves(kept), jnp.zeros((), f.dtype))
    output = jnp.mean((g - f) ** 2)

    def by(kernel: str) -> Parts:
        counted = mask if kernel == "masked" else None
        student = between(how, moving.of(first), moving.of(second), counted)
        return Parts(output, jnp.mean((student - goal) ** 2), norm)

    return {kernel: by(kernel) for kernel in kernels}


def objective(parts: Parts, weights: Weights) -> Any:
    """J = |g - f|^2 / nC + gamma^2 |K_g - K_f|^2 / (n/2 C)^2 + (beta/d) |m * W|^2."""
    return parts.output + weights.kernel * parts.kernel + weights.norm * parts.norm


@dataclass(frozen=True)
class NeuralTangentTransfer(Construction):
    """J = |g - f|^2 / nC + gamma^2 |K_g - K_f|^2 / (n/2 C)^2 + (beta/d) |m * W|^2, by Adam.

    f is the dense teacher at its initial weights, g the student at m * theta, K the kernels between
    the two halves of a batch of n for all pairs of the C outputs, d the density. Every
    ``mask_every`` steps the mask becomes that of the largest |theta|. The weights under the mask
    live on: they feel no gradient, but come back when live ones shrink below them.
    Liu & Zenke, ICML 2020, eq. 14 and section 3.3.

    Attributes:
        kernel: of the student, a name in `kernels.batch.KERNELS`. ``masked``: as proposition 1
            needs it, the kernel of masked training. ``full``: as the published code computes it,
            differentiated by pruned weights, too; proposition 1 is false of it.
        ranking: ``per-layer`` (every layer the same density, as in the paper's main text) or
            ``everywhere`` (one ranking, as in its supplement).
        initial_mask: ``magnitude`` of the teacher's weights, ``logit-snip``, or None: the first
            per layer, the second everywhere, as in the paper.
        epochs: of the examples that are not held out, of ceil(n / batch) steps; or ``steps``.
        batch: examples a step, one half against the other (paper: 64; 32 for CIFAR-10).
        rate: of Adam.
        mask_every: steps between two masks; none in the last ``mask_every``.
        gamma_squared: of the kernel's distance.
        beta: of the weight decay (paper: 1e-5 for LeNet-5-Caffe, 1e-8 for Conv-4).
        held_out: fraction of the examples on which the distances are recorded, at most ``batch``
            of them; of 0, on the first batch of the others.
        code_counts: a layer of N keeps N - int((1 - d) N) - 1, as the published code prunes
            everything up to a threshold that is itself a weight (Logit-SNIP: one more). Otherwise
            the total is exact, shared out by the largest remainder.
        structured: False takes every leaf's Jacobian, which is slow and the definition.
    """

    title: ClassVar[str] = "Neural tangent transfer"
    source: ClassVar[str] = "Liu & Zenke, ICML 2020, eq. 14"
    needs: ClassVar[frozenset[str]] = frozenset({"images"})
    passes: ClassVar[str] = (
        "a step: 1 forward and C backward passes of teacher and student, differentiated once, "
        "and two kernels; 18,720 steps on MNIST"
    )
    trap: ClassVar[str] = (
        "What it lowers depends on the kernel: the published one counts derivatives by pruned "
        "weights, so it can fall while the kernel of the pruned network's own training does not."
    )
    codes: ClassVar[tuple[str, ...]] = (
        (
            "fmi-basel/neural-tangent-transfer takes the full kernel at the masked weights: "
            'kernel="full".'
        ),
        (
            "Its masks keep one weight fewer a layer than N - int((1 - d) N); those of Logit-SNIP "
            "do not: code_counts=True."
        ),
        "Its stream drops the last short batch of an epoch; here the next epoch completes it.",
    )

    kernel: str = "masked"
    ranking: str = "per-layer"
    initial_mask: str | None = None
    epochs: int = 20
    steps: int | None = None
    batch: int = 64
    rate: float = 5e-4
    mask_every: int = 100
    gamma_squared: float = 1e-3
    beta: float = 1e-4
    held_out: float = 0.002
    code_counts: bool = False
    structured: bool = True

    def __post_init__(self) -> None:
        lookup("kernel of neural tangent transfer", self.kernel, KERNELS)
        lookup("ranking of neural tangent transfer", self.ranking, dict.fromkeys(RANKINGS))
        if self.initial_mask is not None:
            lookup("initial mask", self.initial_mask, dict.fromkeys(FIRST_MASKS))
        for name, least in (("batch", 2), ("mask_every", 1), ("epochs", 1)):
            if getattr(self, name) < least:
                raise SecateurError(f"{name} is at least {least}, not {getattr(self, name)}.")
        if self.steps is not None and self.steps < 1:
            raise SecateurError(f"steps is at least 1, or None for epochs, not {self.steps}.")
        if not self.rate > 0 or min(self.gamma_squared, self.beta) < 0:
            raise SecateurError("rate is above 0, gamma_squared and beta are at least 0.")
        if not 0 <= self.held_out < 1:
            raise SecateurError(f"held_out is a fraction in [0, 1), not {self.held_out}.")

    def weights(self, density: float, dtype: Any = jnp.float32) -> Weights:
        """The numbers of the objective and of Adam, as arrays."""
        numbers = (self.gamma_squared, self.beta / density, self.rate)
        return Weights(*(jnp.asarray(x, dtype) for x in numbers))

    # -- masks -----------------------------------------------------------------------------

    def counts(self, mask: Mask, keep: int, extra: int = 0) -> dict[str, int] | int:
        """Survivors of each layer, or of all of them where the ranking is ``everywhere``.

        Args:
            mask: what may be pruned. extra: of the code's rule, 1 where it keeps the threshold.
        """
        every = sizes(mask)
        total = sum(every.values())
        if self.code_counts:
            gone = 1 - keep / total
            rule = lambda n: min(n, n - int(gone * n) - 1 + extra)
            if self.ranking == "everywhere":
                return rule(total)
            return {name: rule(n) for name, n in every.items()}
        if self.ranking == "everywhere":
            return keep
        shapes = {k: np.shape(m) for k, m in flatten(mask).items() if m is not None}
        return dict(zip(shapes, PerLayer().quotas(shapes, keep)))

    def first_mask(self, problem: Problem, params: Params, mask: Mask, keep: int, key: Key) -> Mask:
        """The mask at step 0: of the teacher's largest weights or highest Logit-SNIP scores."""
        usual = {"per-layer": "magnitude", "everywhere": "logit-snip"}
        if (self.initial_mask or usual[self.ranking]) == "magnitude":
            return keep_largest(params, mask, self.counts(mask, keep))
        from secateur.prune.criteria.snip import LogitSnip

        scores = LogitSnip(examples=128).score(problem, params, mask, fold(key, "logit-snip"))
        return keep_largest(scores, mask, self.counts(mask, keep, extra=1))

    # -- the loop --------------------------------------------------------------------------

    def construct(
        self,
        problem: Problem,
        params: Params,
        mask: Mask,
        keep: int,
        key: Key,
        progress: Progress = lambda done, of: None,
    ) -> tuple[Mask, Params, dict[str, Any]]:
        """See `Construction.construct`. The recorded dict has, beside the options' outcome,

        ``curve``: one entry at step 0, at every new mask before it is taken, and at the end: step,
        output, kernel_masked, kernel_full (the distances on held-out examples), objective, and
        returned (weights that came back with the mask taken there).

        Raises:
            SecateurError: without images, with fewer than a batch, or where weights diverge.
        """
        if problem.images is None:
            raise SecateurError("neural tangent transfer compares networks on images: give data.")
        ones = ones_mask(mask)
        total = sum(sizes(ones).values())
        if not 1 <= keep <= total:
            raise SecateurError(f"{keep} weights cannot be kept of {total}.")
        images = jnp.asarray(problem.images)
        problem = replace(problem, images=images, labels=None)
        train, held = self._examples(len(images), key)
        steps = self.steps or self.epochs * math.ceil(len(train) / self.batch)
        how = plan(problem.network, params, problem.stats, self.structured)
        teacher = jax.tree.map(jnp.asarray, params)
        weights = self.weights(keep / total, jax.tree.leaves(teacher)[0].dtype)
        run = _Run(self.kernel, how, problem, teacher, weights, held, self.mask_every)

        order = Order(fold(key, "transfer"), len(train), self.batch)
        current = self.first_mask(problem, params, ones, keep, key)
        carry = run.begin()
        run.record(0, carry, current)
        done = 0
        while done < steps:
            many = min(self.mask_every, steps - done)
            rows = train[order.indices(done, many)]
            carry = run.steps(carry, current, rows)
            done += many
            run.record(done, carry, current)
            if done % self.mask_every == 0 and done < steps - self.mask_every:
                before = current
                current = keep_largest(carry[0], ones, self.counts(ones, keep))
                run.curve["returned"][-1] = _came(before, current)
            progress(done, steps)
        found = {
            "curve": run.curve,
            "steps": steps,
            "kernel formed": how.sentence(),
            "alive": alive(current),
            "examples": len(train),
            "held_out": len(held),
        }
        return current, jax.tree.map(np.asarray, apply_mask(current, carry[0])), found

    def _examples(self, n: int, key: Key) -> tuple[np.ndarray, np.ndarray]:
        """Rows to learn on, and rows to record the distances on."""
        order = np.asarray(jax.random.permutation(fold(key, "held out"), n))
        count = max(2, round(self.held_out * n)) if self.held_out else 0
        train = np.sort(order[count:])
        if len(train) < self.batch:
            raise SecateurError(
                f"a batch of {self.batch} needs as many examples, and there are {len(train)}; give "
                "more data or set a smaller batch."
            )
        return train, order[:count][: self.batch] if count else train[: self.batch]


Carry = tuple[Params, Any]  # the student's weights, the optimiser's state


def _came(before: Mask, after: Mask) -> int:
    """Weights that were pruned and are back."""
    pairs = zip(flatten(before).values(), flatten(after).values())
    return sum(int(np.sum(~np.asarray(b) & np.asarray(a))) for b, a in pairs if b is not None)


class _Run:
    """The host's side of a transfer: compiled parts, their arguments, the curve."""

    def __init__(
        self,
        kernel: str,
        how: Plan,
        problem: Problem,
        teacher: Params,
        weights: Weights,
        held: np.ndarray,
        mask_every: int,
    ) -> None:
        self.kernel, self.how, self.problem, self.teacher = kernel, how, problem, teacher
        self.weights, self.held, self.mask_every = weights, held, mask_every
        self.curve: dict[str, list[Any]] = {
            name: []
            for name in ("step", "output", "kernel_masked", "kernel_full", "objective", "returned")
        }

    def begin(self) -> Carry:
        return self.teacher, scale_by_adam().init(self.teacher)

    def steps(self, carry: Carry, mask: Mask, rows: np.ndarray) -> Carry:
        given = (self.how, self.kernel, self.problem, self.teacher, mask, self.weights)
        padded = np.zeros((self.mask_every, rows.shape[1]), rows.dtype)
        padded[: len(rows)] = rows
        return _steps(*given, carry, padded, np.int32(len(rows)))

    def record(self, step: int, carry: Carry, mask: Mask) -> None:
        given = (self.problem, self.teacher, mask, carry[0], self.held)
        parts = {k: Parts(*map(float, p)) for k, p in _recorded(self.how, *given).items()}
        one = parts[self.kernel]
        point = {
            "step": step,
            "output": one.output,
            "kernel_masked": parts["masked"].kernel,
            "kernel_full": parts["full"].kernel,
            "objective": float(objective(one, self.weights)),
            "returned": 0,
        }
        for name, value in point.items():
            self.curve[name].append(value)


def _inputs(problem: Problem, rows: jax.Array, dtype: Any) -> jax.Array:
    assert problem.images is not None
    return problem.prepare(problem.images[rows]).astype(dtype)


def _step(
    how: Plan,
    kernel: str,
    problem: Problem,
    teacher: Params,
    mask: Mask,
    weights: Weights,
    carry: Carry,
    rows: jax.Array,
) -> Carry:
    """A step of Adam on one batch: ``rows`` (batch,)."""
    theta, state = carry
    x = _inputs(problem, rows, jax.tree.leaves(theta)[0].dtype)

    def value(theta: Params) -> Any:
        parts = distances(how, (kernel,), problem, teacher, theta, mask, x)
        return objective(parts[kernel], weights)

    direction, state = scale_by_adam().update(jax.grad(value)(theta), state)
    return jax.tree.map(lambda t, d: t - weights.rate * d, theta, direction), state


@partial(jax.jit, static_argnums=(0, 1))
def _steps(
    how: Plan,
    kernel: str,
    problem: Problem,
    teacher: Params,
    mask: Mask,
    weights: Weights,
    carry: Carry,
    rows: jax.Array,
    count: jax.Array,
) -> Carry:
    """The first ``count`` of the batches of ``rows`` (steps, batch), as one loop."""

    def loop(problem: Problem, teacher: Params, carry: Carry) -> Carry:
        def step(i: Any, carry: Carry) -> Carry:
            return _step(how, kernel, problem, teacher, mask, weights, carry, rows[i])

        return jax.lax.fori_loop(0, count, step, carry)

    return canonical(loop)(problem, teacher, carry)


@partial(jax.jit, static_argnums=0)
def _recorded(
    how: Plan, problem: Problem, teacher: Params, mask: Mask, theta: Params, rows: jax.Array
) -> dict[str, Parts]:
    """The parts of the objective by either kernel."""
    x = _inputs(problem, rows, jax.tree.leaves(theta)[0].dtype)
    return distances(how, tuple(KERNELS), problem, teacher, theta, mask, x)
