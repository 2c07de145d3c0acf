"""One training, or several as lanes of one program: prepare, run in chunks, scatter back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.trees import apply_mask, flatten
from secateur.data import examples as sets
from secateur.data.stored import Stored
from secateur.train import feed
from secateur.train.form import Form, choose
from secateur.train.host import Host, lane, marked, stack
from secateur.train.program import (
    Carry,
    Examples,
    Given,
    masks_on_device,
    programs,
    static_of,
)
from secateur.train.training import Fitted, NoWatch, Training, Watch


def fit(training: Training, watch: Watch | None = None) -> Fitted:
    """Trains once.

    The loop is compiled once for a (network, recipe) pair. The start is masked, gradients and
    updates are masked, and at the end of every chunk the largest magnitude at a pruned place, in
    parameters and moments, is recorded: `Fitted.checks` says that it was exactly 0.

    Raises:
        SecateurError: for data that does not fit the network or the batch.
    """
    return _fit([training], [watch or NoWatch()], lanes=False)[0]


def fit_lanes(
    trainings: Sequence[Training], watches: Sequence[Watch] | None = None
) -> list[Fitted]:
    """Trains several at once, as lanes of one vmapped program.

    Each lane gets what it would get alone, up to the order of floating-point sums.

    Raises:
        SecateurError: where the trainings differ in more than data (`Training.program`).
    """
    if len({t.program() for t in trainings}) != 1:
        raise SecateurError(
            "lanes share network, data and recipe up to rate, schedule and decay; "
            "train those that differ separately."
        )
    return _fit(list(trainings), list(watches or [NoWatch()] * len(trainings)), lanes=True)


@lru_cache(maxsize=8)
def _on_device(
    examples: _ById, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any
) -> Examples:
    held = examples.held
    return Examples(
        jnp.asarray(held.images),
        jnp.asarray(held.labels),
        jnp.asarray(mean, dtype),
        jnp.asarray(std, dtype),
    )


class _ById:
    """Arrays have no hash; a set of examples is the same one if it is the same object."""

    def __init__(self, held: sets.Examples) -> None:
        self.held = held

    def __hash__(self) -> int:
        return id(self.held)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.held is self.held


def _device(examples: sets.Examples, data: sets.Sets) -> Examples:
    dtype = jnp.result_type(float)  # float64 where x64 is on
    return _on_device(_ById(examples), tuple(data.mean), tuple(data.std), dtype)


def _cut(data: Examples, features: np.ndarray) -> Examples:
    """The set with the features that a smaller network reads; means and deviations per feature."""
    images = np.asarray(data.images).reshape(len(data.labels), -1)[:, features]
    shape = data.images.shape[1:]
    spread = lambda v: jnp.broadcast_to(v, shape).reshape(-1)[features]
    return Examples(jnp.asarray(images), data.labels, spread(data.mean), spread(data.std))


def _fits(training: Training) -> bool:
    """Whether images have the network's shape, or are larger where that is meant.

    Images of a decoded folder are stored larger than networks take them, and a resized crop makes
    its own size; other images are not cut silently.
    """
    shape = tuple(training.data.train.images.shape[1:])
    wanted = tuple(training.network.input_shape)
    if shape == wanted:
        return True
    stored = isinstance(training.data.train.images, Stored)
    meant = stored or training.recipe.augment.startswith("resized_crop")
    larger = all(a >= b for a, b in zip(shape, wanted)) and shape[2:] == wanted[2:]
    return meant and len(shape) == len(wanted) == 3 and larger


def _check(training: Training) -> None:
    data, network = training.data, training.network
    if not _fits(training):
        raise SecateurError(
            f"{network.name} takes inputs of shape {tuple(network.input_shape)}, but the examples "
            f"of {data.name} have shape {tuple(data.train.images.shape[1:])}; give the network "
            "that input_shape."
        )
    highest = int(max(np.max(e.labels) for e in (data.train, data.validation, data.test)))
    if highest >= network.outputs:
        raise SecateurError(
            f"{data.name} has label {highest}, but {network.name} has {network.outputs} outputs; "
            f"give it at least {highest + 1}."
        )
    left = training.recipe.steps - training.first_step
    if left < 0 or left % training.recipe.evaluate_every:
        raise SecateurError(
            f"from step {training.first_step} to {training.recipe.steps} is no multiple of "
            f"evaluate_every ({training.recipe.evaluate_every}); rewind to a step that is."
        )
    every, first, last = training.recipe.evaluate_every, training.first_step, training.recipe.steps
    wrong = [k for k in marked(training) if k % every or not first <= k <= last]
    if wrong:
        raise SecateurError(
            f"a copy can be kept, and a record taken, where evaluations are, each {every} steps "
            f"from {first} to {last}, not at step {wrong[0]}."
        )
    names = [record.name for record in training.records]
    if len(set(names)) < len(names) or not all(record.steps for record in training.records):
        raise SecateurError(
            f"each record has a name of its own and at least one step; given {names}."
        )


def _fit(trainings: list[Training], watches: list[Watch], lanes: bool) -> list[Fitted]:
    for training in trainings:
        _check(training)
    began = time.perf_counter(), time.process_time()
    first = trainings[0]
    recipe, network = first.recipe, first.network
    starts = [jax.tree.map(np.asarray, apply_mask(t.mask, t.start)) for t in trainings]
    forms = choose(trainings)
    run = programs(static_of(network, recipe, forms[0].static()), lanes)
    small = [form.of(start) for form, start in zip(forms, starts)]
    dtype = np.asarray(jax.tree.leaves(first.start)[0]).dtype
    state = Host(trainings, watches, forms, starts, lanes, dtype)
    same = tuple(first.data.train.images.shape[1:]) == tuple(network.input_shape)
    told = lanes or feed.streams(first.data) or not same
    inside = _given(trainings, forms, lanes, dtype, told)
    begins = stack(small, lanes), stack([t.stats for t in trainings], lanes)
    through = _in_pieces if feed.streams(first.data) else _on_one_device
    return _finish(state, through(state, run, inside, begins), began)


def _on_one_device(state: Host, run: dict[str, Any], inside: Given, begins: Any) -> Carry:
    """All steps, with the sets on the device: a call is a chunk of steps and evaluations."""
    data, features = state.trainings[0].data, state.forms[0].features()
    train, validation = _device(data.train, data), _device(data.validation, data)
    if features is not None and inside.features is None:
        train, validation = _cut(train, features), _cut(validation, features)
    carry = state.begin(*run["begin"](inside, *begins, validation))
    while state.step < state.recipe.steps:
        carry, points = run["chunk"](inside, carry, state.chunk(), train, validation)
        state.record(carry, points)
    return carry


def _in_pieces(state: Host, run: dict[str, Any], inside: Given, begins: Any) -> Carry:
    """All steps, with images that come in pieces: a call is some steps between two evaluations."""
    data, recipe = state.trainings[0].data, state.recipe

    def compare(carry: Carry) -> tuple[Carry, dict[str, Any]]:
        loss, right = feed.evaluate(
            run, inside, carry.params, carry.stats, data.validation, data, state.lanes
        )
        return run["best"](carry, loss), {"validation_loss": loss, "validation_right": right}

    carry = state.begin(*compare(run["start"](inside, *begins)))
    with feed.pieces(data, recipe, state.orders, state.step) as ready:
        following = next(ready, None)
        while following is not None:
            piece = following
            rows = stack(list(piece.order), state.lanes)
            steps = np.arange(piece.step, piece.step + piece.order.shape[1])
            rates = [t.recipe.rates(steps).astype(state.dtype) for t in state.trainings]
            train = feed.on_device(piece.examples, data)
            carry, checks = run["steps"](inside, carry, rows, stack(rates, state.lanes), train)
            following = next(ready, None)  # while the steps are computed
            state.checked(checks)
            if (int(steps[-1]) + 1 - state.trainings[0].first_step) % recipe.evaluate_every == 0:
                carry, point = compare(carry)
                state.note(steps[-1:] + 1, point)
            state.reached(int(steps[-1]) + 1, carry)
    return carry


def _given(
    trainings: list[Training], forms: Sequence[Form], lanes: bool, dtype: Any, told: bool
) -> Given:
    """What the program is given beside the carry.

    Args:
        told: whether the program cuts the input features of smaller networks itself: lanes have
            features of their own, and no cut copy is made of sets in pieces or of larger images.
    """
    features = [form.features() for form in forms] if told else [None]
    return Given(
        masks_on_device(stack([form.of_mask(t.mask) for form, t in zip(forms, trainings)], lanes)),
        jnp.stack([t.key for t in trainings]) if lanes else trainings[0].key,
        stack([np.asarray(t.alpha, dtype) for t in trainings], lanes),
        stack([np.asarray(t.recipe.weight_decay, dtype) for t in trainings], lanes),
        None if features[0] is None else stack([np.asarray(f, np.int32) for f in features], lanes),
        stack([dict(form.places) for form in forms], lanes),
    )


def _finish(
    state: Host,
    carry: Carry,
    began: tuple[float, float],
) -> list[Fitted]:
    """Full shapes again; and the one look at the test set, at the best parameters and the last."""
    trainings, lanes = state.trainings, state.lanes
    data = trainings[0].data
    run = programs(static_of(trainings[0].network, trainings[0].recipe), lanes)
    given = _given(trainings, [Form() for _ in trainings], lanes, state.dtype, told=False)

    forms, count = state.forms, range(len(trainings))
    last = [state.whole(carry.params, k) for k in count]
    best = [state.whole(carry.best_params, k) for k in count]

    def score(params: list[Any], stats: Any, examples: sets.Examples) -> np.ndarray:
        net = stack(params, lanes)
        if feed.streams(data):
            loss, right = feed.evaluate(run, given, net, stats, examples, data, lanes)
        else:
            loss, right = run["evaluate"](given, net, stats, _device(examples, data))
        accuracy = np.asarray(right, np.float64) / len(examples.labels)
        return np.stack([np.reshape(loss, -1), np.reshape(accuracy, -1)])

    at_last, at_train = score(last, carry.stats, data.test), score(last, carry.stats, data.train)
    at_best = score(best, carry.best_stats, data.test)
    wall = (time.perf_counter() - began[0]) / len(trainings)
    cpu = (time.process_time() - began[1]) / len(trainings)
    fitted = []
    for k, training in enumerate(trainings):
        curve = {name: np.concatenate([p[k] for p in parts]) for name, parts in state.curve.items()}
        curve["validation_accuracy"] = curve.pop("validation_right") / len(data.validation.labels)
        lowest = int(np.argmin(curve["validation_loss"]))
        pruned = [
            float(np.max(np.abs(np.where(m, 0, p)), initial=0))
            for m, p in zip(flatten(training.mask).values(), flatten(last[k]).values())
            if m is not None
        ]
        fitted.append(
            Fitted(
                last[k],
                lane(carry.stats, k, lanes),
                best[k],
                lane(carry.best_stats, k, lanes),
                {
                    step: (state.whole(pair[0], k), lane(pair[1], k, lanes))
                    for step, pair in state.kept.items()
                },
                curve,
                _point(curve, lowest, at_best[:, k]),
                _point(curve, -1, at_last[:, k])
                | {"train_loss": float(at_train[0, k]), "train_accuracy": float(at_train[1, k])},
                forms[k].widths(),
                {name: len(places) for name, places in forms[k].places.items()},
                {
                    "pruned weights and moments exactly zero": state.leak == 0,
                    "pruned weights of the result exactly zero": max(pruned, default=0.0) == 0,
                    "finite parameters and moments": state.finite,
                    "finite losses": bool(np.all(np.isfinite(curve["validation_loss"]))),
                },
                {"cpu": cpu, "wall": wall},
                state.recorded(k),
            )
        )
    return fitted


def _point(curve: dict[str, np.ndarray], at: int, test: np.ndarray) -> dict[str, float]:
    return {
        "step": int(curve["step"][at]),
        "validation_loss": float(curve["validation_loss"][at]),
        "validation_accuracy": float(curve["validation_accuracy"][at]),
        "test_loss": float(test[0]),
        "test_accuracy": float(test[1]),
    }
