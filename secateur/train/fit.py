"""One training, or several as lanes of one program: prepare, run in chunks, scatter back."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.trees import apply_mask, flatten, unflatten
from secateur.data import examples as sets
from secateur.data.stored import Stored
from secateur.train import feed
from secateur.train.form import Form, choose
from secateur.train.order import Order
from secateur.train.program import (
    Carry,
    Chunk,
    Examples,
    Given,
    masks_on_device,
    programs,
    static_of,
)
from secateur.train.training import Fitted, NoWatch, Training, Watch

CHUNK = 1000  # steps of one call: seconds at most, so that a kill loses little and a tick is prompt


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


def _stack(trees: Sequence[Any], lanes: bool) -> Any:
    if not lanes:
        return jax.tree.map(jnp.asarray, trees[0])
    # In numpy: as a JAX operation each shape would be a program to compile.
    return jax.tree.map(
        lambda *leaves: jnp.asarray(np.stack([np.asarray(a) for a in leaves])), *trees
    )


def _lane(tree: Any, k: int, lanes: bool) -> Any:
    return jax.tree.map(lambda a: np.array(np.asarray(a)[k]) if lanes else np.asarray(a), tree)


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
    wrong = [k for k in training.keep_at if k % every or not first <= k <= last]
    if wrong:
        raise SecateurError(
            f"a copy can be kept where evaluations are, each {every} steps from {first} to {last}, "
            f"not at step {wrong[0]}."
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
    state = _Run(trainings, watches, forms, lanes, dtype)
    same = tuple(first.data.train.images.shape[1:]) == tuple(network.input_shape)
    told = lanes or feed.streams(first.data) or not same
    inside = _given(trainings, forms, lanes, dtype, told)
    begins = _stack(small, lanes), _stack([t.stats for t in trainings], lanes)
    through = _in_pieces if feed.streams(first.data) else _on_one_device
    return _finish(state, through(state, run, inside, begins), starts, forms, began)


def _on_one_device(state: _Run, run: dict[str, Any], inside: Given, begins: Any) -> Carry:
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


def _in_pieces(state: _Run, run: dict[str, Any], inside: Given, begins: Any) -> Carry:
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
            rows = _stack(list(piece.order), state.lanes)
            steps = np.arange(piece.step, piece.step + piece.order.shape[1])
            rates = [t.recipe.rates(steps).astype(state.dtype) for t in state.trainings]
            train = feed.on_device(piece.examples, data)
            carry, checks = run["steps"](inside, carry, rows, _stack(rates, state.lanes), train)
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
        masks_on_device(_stack([form.of_mask(t.mask) for form, t in zip(forms, trainings)], lanes)),
        jnp.stack([t.key for t in trainings]) if lanes else trainings[0].key,
        _stack([np.asarray(t.alpha, dtype) for t in trainings], lanes),
        _stack([np.asarray(t.recipe.weight_decay, dtype) for t in trainings], lanes),
        None if features[0] is None else _stack([np.asarray(f, np.int32) for f in features], lanes),
        _stack([dict(form.places) for form in forms], lanes),
    )


class _Run:
    """The host's side of a training: position, data order, curves, copies, checkpoints."""

    def __init__(
        self,
        trainings: list[Training],
        watches: list[Watch],
        forms: Sequence[Form],
        lanes: bool,
        dtype: Any,
    ) -> None:
        first = trainings[0]
        self.forms, self.marks = forms, [form.mark() for form in forms]
        self.trainings, self.watches, self.lanes, self.dtype = trainings, watches, lanes, dtype
        self.recipe = first.recipe
        self.step = first.first_step
        examples = len(first.data.train.labels)
        self.orders = [Order(t.key, examples, self.recipe.batch) for t in trainings]
        if feed.streams(first.data):  # ticks come between evaluations too, a piece apart
            apart = f"{feed.steps_at_once(self.recipe, len(trainings), first.data)}".encode()
            self.marks = [np.append(m, np.frombuffer(apart, np.uint8)) for m in self.marks]
        self.curve: dict[str, list[np.ndarray]] = {}
        self.kept: dict[int, Any] = {}
        self.leak, self.finite = 0.0, True
        every = self.recipe.evaluate_every
        evaluations = (self.recipe.steps - first.first_step) // every
        # Chunks end where copies are kept; all have one size, so that one program serves them.
        stops = [evaluations, *((k - first.first_step) // every for k in first.keep_at)]
        common = math.gcd(*stops) or 1
        per = max(1, CHUNK // every)
        self.per_chunk = max(d for d in range(1, min(per, common) + 1) if common % d == 0)

    def begin(self, carry: Carry, point: Any) -> Carry:
        """The carry to go on from: the start, or a published checkpoint."""
        first = self.trainings[0]
        shift = lambda c: c._replace(step=c.step + first.first_step)
        carry = shift(carry)._replace(best_step=carry.best_step + first.first_step)
        self.note(np.asarray([first.first_step]), point)
        self._keep(carry)
        saved = [s for s in (w.load() for w in self.watches) if s is not None]
        if len(saved) < len(self.watches) or len({int(s["step"]) for s in saved}) != 1:
            return carry
        if any(not np.array_equal(s.get("form", ()), m) for s, m in zip(saved, self.marks)):
            # Of another version or another form of the network: the training begins again.
            return carry
        return self._restore(carry, saved)

    def chunk(self) -> Chunk:
        """Data order and rates of the next chunk."""
        every, n = self.recipe.evaluate_every, self.per_chunk
        steps = np.arange(self.step, self.step + n * every)
        index = [o.indices(self.step, n * every).reshape(n, every, -1) for o in self.orders]
        rate = [t.recipe.rates(steps).reshape(n, every).astype(self.dtype) for t in self.trainings]
        return Chunk(_stack(index, self.lanes), _stack(rate, self.lanes))

    def record(self, carry: Carry, points: Any) -> None:
        """After a chunk: what was checked, the curves, copies and the watches."""
        every = self.recipe.evaluate_every
        self.checked({name: points.pop(name) for name in ("leak", "finite")})
        steps = self.step + every * np.arange(1, self.per_chunk + 1)
        self.note(steps, points)
        self.reached(int(steps[-1]), carry)

    def checked(self, checks: Any) -> None:
        self.leak = max(self.leak, float(np.max(checks["leak"])))
        self.finite = self.finite and bool(np.all(checks["finite"]))

    def reached(self, step: int, carry: Carry) -> None:
        """The position, a copy where one is wanted, and the watches' turn."""
        self.step = step
        self._keep(carry)
        for k, watch in enumerate(self.watches):
            watch.tick(self.step, self.recipe.steps, lambda k=k: self._state(carry, k))  # type: ignore[misc]

    def note(self, steps: np.ndarray, points: Any) -> None:
        """Appends to the curves; arrays are (lanes, evaluations) or (evaluations,)."""
        lanes = len(self.trainings)
        self.curve.setdefault("step", []).append(np.tile(steps, (lanes, 1)))
        for name, values in points.items():
            self.curve.setdefault(name, []).append(np.asarray(values).reshape(lanes, -1))

    def _keep(self, carry: Carry) -> None:
        if self.step in self.trainings[0].keep_at:
            copy = lambda tree: jax.tree.map(np.array, tree)
            self.kept[self.step] = (copy(carry.params), copy(carry.stats))

    def _state(self, carry: Carry, k: int) -> dict[str, np.ndarray]:
        state = {f"carry/{n}": a for n, a in flatten(_lane(carry, k, self.lanes)).items()}
        for step, pair in self.kept.items():
            for n, a in flatten(_lane(pair, k, self.lanes)).items():
                state[f"kept/{step}/{n}"] = a
        for name, parts in self.curve.items():
            state[f"curve/{name}"] = np.concatenate([p[k] for p in parts])
        state["step"], state["form"] = np.asarray(self.step), self.marks[k]
        state["leak"], state["finite"] = np.asarray(self.leak), np.asarray(self.finite)
        return state

    def _restore(self, carry: Carry, saved: list[dict[str, np.ndarray]]) -> Carry:
        part = lambda s, prefix: {
            k.removeprefix(prefix): a for k, a in s.items() if k.startswith(prefix)
        }
        self.step = int(saved[0]["step"])
        self.leak = max(float(s["leak"]) for s in saved)
        self.finite = all(bool(s["finite"]) for s in saved)
        curves = [part(s, "curve/") for s in saved]
        self.curve = {name: [np.stack([c[name] for c in curves])] for name in curves[0]}
        template = (carry.params, carry.stats)
        for step in self.trainings[0].keep_at:
            if step <= self.step:
                pairs = [unflatten(part(s, f"kept/{step}/"), template) for s in saved]
                self.kept[step] = jax.tree.map(np.asarray, _stack(pairs, self.lanes))
        return _stack([unflatten(part(s, "carry/"), carry) for s in saved], self.lanes)


def _finish(
    state: _Run,
    carry: Carry,
    starts: list[Any],
    forms: Sequence[Form],
    began: tuple[float, float],
) -> list[Fitted]:
    """Full shapes again; and the one look at the test set, at the best parameters and the last."""
    trainings, lanes = state.trainings, state.lanes
    data = trainings[0].data
    run = programs(static_of(trainings[0].network, trainings[0].recipe), lanes)
    given = _given(trainings, [Form() for _ in trainings], lanes, state.dtype, told=False)

    def whole(params: Any, k: int) -> Any:
        return forms[k].full(_lane(params, k, lanes), starts[k])

    count = range(len(trainings))
    last = [whole(carry.params, k) for k in count]
    best = [whole(carry.best_params, k) for k in count]

    def score(params: list[Any], stats: Any, examples: sets.Examples) -> np.ndarray:
        net = _stack(params, lanes)
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
                _lane(carry.stats, k, lanes),
                best[k],
                _lane(carry.best_stats, k, lanes),
                {
                    step: (whole(pair[0], k), _lane(pair[1], k, lanes))
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
