"""The host's side of a training: position, data order, curves, copies, records, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.trees import flatten, unflatten
from secateur.train import feed
from secateur.train.form import Form
from secateur.train.order import Order
from secateur.train.program import Carry, Chunk
from secateur.train.records import take
from secateur.train.training import Training, Watch

CHUNK = 1000  # steps of one call: seconds at most, so that a kill loses little and a tick is prompt


def stack(trees: Sequence[Any], lanes: bool) -> Any:
    """One tree of device arrays: the only one as it is, or all with a leading axis of lanes."""
    if not lanes:
        return jax.tree.map(jnp.asarray, trees[0])
    # In numpy: as a JAX operation each shape would be a program to compile.
    return jax.tree.map(
        lambda *leaves: jnp.asarray(np.stack([np.asarray(a) for a in leaves])), *trees
    )


def lane(tree: Any, k: int, lanes: bool) -> Any:
    """Lane ``k`` of a tree, as host arrays."""
    return jax.tree.map(lambda a: np.array(np.asarray(a)[k]) if lanes else np.asarray(a), tree)


def marked(training: Training) -> list[int]:
    """The steps at which something is kept or read."""
    return sorted({*training.keep_at, *(k for record in training.records for k in record.steps)})


class Host:
    """The host's side of a training: position, data order, curves, copies, checkpoints."""

    def __init__(
        self,
        trainings: list[Training],
        watches: list[Watch],
        forms: Sequence[Form],
        starts: Sequence[Any],
        lanes: bool,
        dtype: Any,
    ) -> None:
        first = trainings[0]
        self.forms, self.starts = forms, starts
        self.marks = [form.mark() for form in forms]
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
        # Of each record, by step, the leaves of every lane.
        self.records: list[dict[int, list[dict[str, np.ndarray]]]] = [{} for _ in first.records]
        self.leak, self.finite = 0.0, True
        every = self.recipe.evaluate_every
        evaluations = (self.recipe.steps - first.first_step) // every
        # Chunks end where copies are kept and records are taken; all have one size, so that one
        # program serves them.
        stops = [evaluations, *((k - first.first_step) // every for k in marked(first))]
        common = math.gcd(*stops) or 1
        per = max(1, CHUNK // every)
        self.per_chunk = max(d for d in range(1, min(per, common) + 1) if common % d == 0)

    def begin(self, carry: Carry, point: Any) -> Carry:
        """The carry to go on from: the start, or a published checkpoint."""
        first = self.trainings[0]
        shift = lambda c: c._replace(step=c.step + first.first_step)
        carry = shift(carry)._replace(best_step=carry.best_step + first.first_step)
        self.note(np.asarray([first.first_step]), point)
        saved = [s for s in (w.load() for w in self.watches) if s is not None]
        # Of another version or another form of the network: the training begins again.
        fits = all(np.array_equal(s.get("form", ()), m) for s, m in zip(saved, self.marks))
        if len(saved) == len(self.watches) and len({int(s["step"]) for s in saved}) == 1 and fits:
            return self._restore(carry, saved)
        self._keep(carry)
        return carry

    def chunk(self) -> Chunk:
        """Data order and rates of the next chunk."""
        every, n = self.recipe.evaluate_every, self.per_chunk
        steps = np.arange(self.step, self.step + n * every)
        index = [o.indices(self.step, n * every).reshape(n, every, -1) for o in self.orders]
        rate = [t.recipe.rates(steps).reshape(n, every).astype(self.dtype) for t in self.trainings]
        return Chunk(stack(index, self.lanes), stack(rate, self.lanes))

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
        due = [self.step in record.steps for record in self.trainings[0].records]
        if not any(due):
            return
        count = range(len(self.trainings))
        params = stack([self.whole(carry.params, k) for k in count], self.lanes)
        masks = stack([t.mask for t in self.trainings], self.lanes)
        network = self.trainings[0].network
        for i in np.flatnonzero(due):
            each = [t.records[i] for t in self.trainings]
            self.records[i][self.step] = take(each, network, params, carry.stats, masks, self.lanes)

    def whole(self, params: Any, k: int) -> Any:
        """Parameters of a lane in the full shapes of the network."""
        return self.forms[k].full(lane(params, k, self.lanes), self.starts[k])

    def recorded(self, k: int) -> dict[str, dict[str, np.ndarray]]:
        """All records of a lane, stacked over their steps."""
        found = {}
        for record, by_step in zip(self.trainings[k].records, self.records):
            taken = [by_step[step][k] for step in sorted(by_step)]
            found[record.name] = {n: np.stack([one[n] for one in taken]) for n in taken[0]}
        return found

    def _state(self, carry: Carry, k: int) -> dict[str, np.ndarray]:
        state = {f"carry/{n}": a for n, a in flatten(lane(carry, k, self.lanes)).items()}
        for step, pair in self.kept.items():
            for n, a in flatten(lane(pair, k, self.lanes)).items():
                state[f"kept/{step}/{n}"] = a
        for i, by_step in enumerate(self.records):
            for step, taken in by_step.items():
                state |= {f"record/{i}/{step}/{n}": a for n, a in taken[k].items()}
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
                self.kept[step] = jax.tree.map(np.asarray, stack(pairs, self.lanes))
        for i, record in enumerate(self.trainings[0].records):
            steps = [step for step in record.steps if step <= self.step]
            self.records[i] = {t: [part(s, f"record/{i}/{t}/") for s in saved] for t in steps}
        return stack([unflatten(part(s, "carry/"), carry) for s in saved], self.lanes)
