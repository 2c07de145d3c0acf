"""What the study `kernel-watch` measures of a ticket: its race, its kernels, its linearisation."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.keys import key
from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params, alive
from secateur.data.augment import normalise
from secateur.data.examples import Examples, Sets
from secateur.kernels import trace
from secateur.kernels.alignment import (
    disagreement,
    kernel_alignment,
    kernel_distance,
    target_alignment,
    velocity,
)
from secateur.kernels.dynamics import linearise
from secateur.kernels.ntk import ntk
from secateur.kernels.path import path_trace
from secateur.kernels.path_operator import path_kernel
from secateur.kernels.spectrum import spectrum
from secateur.prune.examine import examine
from secateur.train.recipes import Recipe
from secateur.train.records import Record
from secateur.train.training import Fitted, Training

GOAL = 0.5  # validation loss that counts as learnt: about 85 % accuracy on MNIST
LEADING = 100  # eigenvalues in which spectra are compared


@dataclass(frozen=True, eq=False)
class Probe:
    """The images of the kernel. x, x_test: as the network takes them. y: one-hot, (n, classes)."""

    train: Examples
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def probe(data: Sets, images: int) -> Probe:
    """As many training images of each class as there are, to ``images``; the same of the test."""

    def of(examples: Examples) -> tuple[Examples, np.ndarray, np.ndarray]:
        classes = len(data.classes)
        rank = np.zeros(len(examples.labels), int)
        for label in range(classes):
            rows = np.flatnonzero(examples.labels == label)
            rank[rows] = np.arange(len(rows)) * classes + label
        some = examples.take(np.argsort(rank, kind="stable")[:images])
        mean, std = jnp.asarray(data.mean), jnp.asarray(data.std)
        x = np.asarray(normalise(jnp.asarray(some.images), mean, std, "float32"))
        return some, x, np.eye(classes)[some.labels]

    train, x, y = of(data.train)
    _, x_test, y_test = of(data.test)
    return Probe(train, x, y, x_test, y_test)


def race(fitted: Fitted) -> dict[str, Any]:
    """How fast the loss fell: its mean over training, and the first step below `GOAL`, if any."""
    loss, step = fitted.curve["validation_loss"], fitted.curve["step"]
    below = np.flatnonzero(loss <= GOAL)
    reached = {"reached": int(step[below[0]])} if len(below) else {}
    return {"mean_loss": float(np.mean(loss[1:])), **reached}


@lru_cache(maxsize=4)
def _trace(network: Network) -> Any:
    return jax.jit(partial(trace.trace, network))


def foretold(
    network: Network, start: Params, stats: Stats, mask: Mask, x: np.ndarray
) -> dict[str, Any]:
    """What is known of a ticket before it is trained, by which its race might be foretold.

    Natural logarithms of the path kernel's trace and largest eigenvalue and of the tangent kernel's
    trace; effective density; weights. -100 stands for the logarithm of 0: no path is left.
    """
    health = examine(network, mask, params=start, stats=stats, ntk=False)
    paths = float(path_trace(network, start, stats, mask).log)
    log = lambda v: float(np.log(v)) if v > 0 else -100.0
    top = path_kernel(network, start, stats, mask).top(1).log[0] if np.isfinite(paths) else -100.0
    return {
        "path_trace": max(paths, -100.0),
        "path_top": float(top),
        "ntk_trace": log(float(_trace(network)(start, stats, mask, jnp.asarray(x)))),
        "effective_density": float(health.effective_density or 0.0),
        "weights": int(sum(alive(mask).values())),
    }


def watch(
    kernels: np.ndarray, steps: Sequence[int], y: np.ndarray, parent: Mapping[str, np.ndarray]
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """A kernel's way, a number a step, and what others will be compared with.

    Args:
        kernels: ``(steps, n, C, n, C)``, over the surviving weights.
        y: ``(n, C)``, one-hot.
        parent: what this gave back for the dense network; empty for itself.
    """
    n, c = y.shape
    square = kernels.reshape(len(kernels), n * c, n * c)
    values = [spectrum(k) for k in square]
    traced = np.einsum("kncmc->knm", kernels)
    first = square[0]
    moved = velocity(list(square), steps, form="cosine")
    told: dict[str, list[float]] = {
        "drift": [kernel_distance(k, first) for k in square],
        "turned": [kernel_distance(k, first, form="cosine") for k in square],
        "alignment": [kernel_alignment(k, kernels[0]) for k in kernels],
        "target": [target_alignment(k, y, form="centred") for k in kernels],
        "velocity": [0.0, *moved.tolist()],  # of the interval that ends here
        "trace": [v.trace for v in values],
        "largest": [v.largest for v in values],
        "participation": [v.participation for v in values],
        "effective_rank": [v.effective_rank for v in values],
    }
    top = np.stack([v.top(min(LEADING, n * c)) for v in values])
    own = {"parent:top": top[0], "parent:start": first, "parent:traced": traced}
    of = parent or own
    told["of_parent"] = [
        kernel_alignment(k, p) for k, p in zip(traced, of["parent:traced"], strict=True)
    ]
    begin = kernel_distance(first, of["parent:start"]) if parent else 0.0
    tiny = np.finfo(float).tiny
    ratio = np.log(np.maximum(top[0], tiny) / np.maximum(of["parent:top"], tiny))
    # Both are of the start alone; every point carries them, so that a table has no holes.
    told["start_from_parent"] = [begin] * len(square)
    told["spectrum_from_parent"] = [float(np.mean(np.abs(ratio)))] * len(square)
    return told, own


def _outputs(
    network: Network, params: Params, stats: Stats, mask: Mask, x: jax.Array, x_test: jax.Array
) -> dict[str, Any]:
    return {
        "train": network.apply(params, stats, x),
        "test": network.apply(params, stats, x_test),
    }


def linear(
    network: Network,
    start: Params,
    stats: Stats,
    mask: Mask,
    probe: Probe,
    data: Sets,
    fields: Any,
    seed: int,
) -> Generator[Training, Fitted, tuple[dict[str, list[float]], dict[str, bool]]]:
    """Full-batch descent on the probe beside what the kernel at its start predicts.

    Distances are relative to how far the outputs have moved (0 at the start); the loss is that of
    the test images.
    """
    points = fields.linear_points
    about = {"stats": stats, "mask": mask}
    kernel = ntk(network, start, probe.x, **about)
    cross = ntk(network, start, probe.x_test, probe.x, **about)
    outputs = lambda x: np.asarray(network.apply(start, stats, jnp.asarray(x)))
    f0, f0_test = outputs(probe.x), outputs(probe.x_test)
    law = linearise(kernel, f0, probe.y, cross=cross, f0_test=f0_test)
    rate = fields.rate_share * law.max_learning_rate()
    recipe = Recipe(
        "sgd",
        rate,
        batch=len(probe.x),
        steps=points[-1],
        evaluate_every=10,
        loss="mse",
    )
    few = probe.train
    fitted = yield Training(
        network,
        start,
        stats,
        replace(data, train=few, validation=few, test=few, sha256=f"probe of {data.sha256}"),
        recipe,
        mask,
        key(seed, "linear"),
        records=(Record("outputs", _outputs, points, (probe.x, probe.x_test)),),
        siblings=10,
        grain=128,
    )
    real = fitted.records["outputs"]
    predicted = law.steps(points, rate), law.test_steps(points, rate)
    told: dict[str, list[float]] = {"rate": [rate] * len(points)}
    for part, f, guess, begin in zip(
        ("train", "test"), (real["train"], real["test"]), predicted, (f0, f0_test), strict=True
    ):
        off = [disagreement(a, b, begin) for a, b in zip(f[1:], guess[1:], strict=True)]
        told[f"off_{part}"] = [0.0, *(one.relative for one in off)]
        told[f"agreement_{part}"] = [1.0, *(one.agreement for one in off)]
    loss = lambda f: float(np.sum((f - probe.y_test) ** 2) / (2 * len(f)))
    told["loss"] = [loss(f) for f in real["test"]]
    told["loss_predicted"] = [loss(f) for f in predicted[1]]
    begun = float(np.max(np.abs(real["train"][0] - f0))) <= 1e-4 * float(np.max(np.abs(f0)))
    return told, {"the linearisation begins where training does": begun}
