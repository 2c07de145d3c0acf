"""`feature-dynamics` on Kumar's committee machine: features H = X W, closed-form training."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.keys import key
from secateur.data import toys
from secateur.lab.cells import Cell, Result
from secateur.networks.committee import closed_form, draw
from secateur.prune.toy_lottery import counts_of, keep_largest
from secateur.studies.feature_dynamics_claims import ARMS
from secateur.studies.feature_dynamics_reads import Watched, films, rows
from secateur.train.committee import Descent, descend, rate_for, sample

LAYER = "layer 1"


@partial(jax.jit, static_argnames=["how"])
def _train(
    starts: jax.Array,
    masks: jax.Array,
    origins: Any,
    problem: Any,
    teacher: Any,
    about: dict[str, Any],
    how: tuple[int, int],
) -> Descent:
    """Lanes of one program, for all levels, scales and seeds."""
    steps, every = how

    def one(start: jax.Array, mask: jax.Array, origin: Any) -> Descent:
        return descend(
            start,
            problem,
            teacher,
            mask,
            **about,
            origin=origin,
            steps=steps,
            every=every,
            keep=True,
        )

    return jax.vmap(one)(starts, masks, origins)


def toy(cell: Cell, fields: Any) -> Result:
    """All levels of one alpha and one seed; those of a level are lanes of one program."""
    alpha, seed, size = float(cell.place["alpha"]), cell.seed, fields.inputs
    teacher = toys.committee_teacher(
        key(seed, "teacher"), size, fields.teacher_units, epsilon=fields.epsilon
    )
    teacher = teacher.scaled(1 / jnp.sqrt(teacher.variance()))
    x = toys.gaussian(key(seed, "examples"), fields.samples, size)
    initial = draw(key(seed, "weights"), size, fields.units)
    scales = {"alpha": alpha, "epsilon": fields.epsilon}
    problem = sample(x, teacher(x))
    every = fields.steps // fields.records
    how = (fields.steps, every)
    rate = rate_for(fields.units, alpha, fields.epsilon)
    about = {**scales, "rate": rate, "centred": float(fields.centred)}

    def together(
        starts: list[jax.Array], masks: list[jax.Array], origins: list[jax.Array]
    ) -> list[Descent]:
        """Trained from these starts; ``origins`` are the weights at which outputs are centred."""
        stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
        given = stack([closed_form(weights, **scales) for weights in origins])
        found = _train(jnp.stack(starts), jnp.stack(masks), given, problem, teacher, about, how)
        found = jax.tree.map(np.asarray, found)
        return [jax.tree.map(lambda a, k=k: a[k], found) for k in range(len(starts))]

    probe = np.asarray(x[: fields.probe], np.float64)

    def watched(run: Descent) -> Watched:
        h = np.einsum("nd,tdu->tnu", probe, np.asarray(run.kernels, np.float64))
        grams = {LAYER: h @ h.swapaxes(1, 2)}
        error = float(sum(term[-1] for term in run.error))
        told = {"loss": error, "train_loss": 2 * float(run.loss[-1]), "moved": float(run.moved[-1])}
        return Watched(grams, np.asarray(run.loss), {LAYER: np.asarray(run.kernels)}, told)

    steps = range(0, fields.steps + 1, every)
    ones = jnp.ones_like(initial)
    dense = together([initial], [ones], [initial])[0]
    parent = watched(dense)
    counts = counts_of(initial.size, fields.levels, fields.prune)
    ticket = none = longer = dense
    masks = {"ticket": ones, "none": ones}
    found, kept, exact = [], {}, True
    for level in range(1, fields.levels + 1):
        count = counts[level]
        own = keep_largest(jnp.asarray(ticket.kernel), masks["ticket"], count)
        on = keep_largest(jnp.asarray(none.kernel), masks["none"], count)
        turned = jax.random.permutation(key(seed, "shuffled", level), own.ravel())
        masks = {
            "ticket": own,
            "control": own,
            "shuffled": turned.reshape(own.shape),
            "none": on,
        }
        fresh = draw(key(seed, "weights", level), size, fields.units)
        starts = [initial, fresh, initial, jnp.asarray(none.kernel)]
        # What is not rewound keeps the dense network's centre: one that moved would be none.
        origins = [w * mask for w, mask in zip(starts[:-1], masks.values(), strict=False)]
        # Beside it a dense network that has been trained as long.
        starts.append(jnp.asarray(longer.kernel))
        *runs, longer = together(starts, [*masks.values(), ones], [*origins, initial, initial])
        ticket, none = runs[0], runs[-1]
        as_long = watched(longer)
        for arm, run in zip(ARMS, runs, strict=True):
            exact = exact and int(jnp.sum(masks[arm])) == count
            one = watched(run)
            if not np.all(np.isfinite(run.kernels)):
                continue
            density = count / initial.size
            beside = as_long if arm == "none" else None
            found += rows(fields, alpha, list(steps), arm, level, density, one, parent, beside)
            if seed == 0 and level in fields.watched and arm in ("ticket", "control"):
                kept[arm, level] = one
    entries, arrays = films(alpha, list(steps), kept, parent)
    end = {"error": float(sum(term[-1] for term in dense.error))}
    values = {"alpha": alpha, "dense": end, "rows": found, "films": entries}
    return Result(values, arrays, {"exact counts": exact})
