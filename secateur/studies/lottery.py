"""Lottery tickets: what rewinding, re-initialising and going on do to a pruned network.

Frankle & Carbin 2019 (LeNet-300-100 on MNIST) and Kumar, "Feature-aware pruning in MLPs", figure 1.
A cell is one trained level of one branch of one seed; level 0 of a seed is the dense network, which
all its branches share.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from secateur.core.errors import SecateurError, lookup
from secateur.lab.cells import Cell, Result
from secateur.studies import tickets, trained
from secateur.studies.figures import Curves
from secateur.studies.lottery_claims import CLAIMS
from secateur.studies.lottery_words import branches, citation, notes, sentence

if TYPE_CHECKING:
    from secateur.data.examples import Sets
    from secateur.prune import lottery as prune
    from secateur.train.recipes import Recipe
    from secateur.train.training import Fitted, Training

name = "lottery"
title = "Lottery tickets"
meaning = 1  # raise when results change meaning: the golden cell in the tests says when
claims = CLAIMS
summary = "accuracy against weights remaining: rewound, re-initialised, not rewound"
__all__ = ["branches", "citation", "notes", "sentence"]


class Fields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the study varies. Every field is in a cell's address but ``levels`` and ``branches``.

    Attributes:
        dataset: a name of ``secateur data``.
        validation: examples held out of the training part; ``split`` is the seed of that cut,
            the same for all seeds of the study, so that they are paired.
        hidden: widths of the hidden layers.
        initialiser: of the kernels: glorot_normal, glorot_uniform, kaiming_normal, kaiming_uniform.
        optimiser: adam, sgd, momentum or nesterov, with ``learning_rate``, ``momentum`` and
            (coupled) ``weight_decay``.
        steps: of each level; ``evaluate_every`` divides it.
        drops: steps at which the learning rate is multiplied by ``drop_factor``; ``warmup`` steps
            over which it grows from 0. With a constant rate ``none`` and ``rate-rewind`` are the
            same but for their data order.
        prune: fraction of a layer's surviving weights that goes at a level; ``prune_output`` the
            same of the output layer (0 spares it).
        scope: layer (each layer by itself) or global (one ranking over the layers with a positive
            rate).
        rewind_step: k of the branch ``late``.
        levels: the last level. branches: names, as in the docs.
        shrink: train the exact smaller network where that pays; false never does.
    """

    dataset: str = "mnist"
    validation: int = 5000
    split: int = 0
    hidden: tuple[int, ...] = (300, 100)
    initialiser: str = "glorot_normal"
    optimiser: str = "adam"
    learning_rate: float = 1.2e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch: int = 60
    steps: int = 50_000
    evaluate_every: int = 100
    drops: tuple[int, ...] = ()
    drop_factor: float = 0.1
    warmup: int = 0
    prune: float = 0.2
    prune_output: float = 0.1
    scope: str = "layer"
    rewind_step: int = 0
    levels: int = 18
    branches: tuple[str, ...] = ("rewind", "control")
    shrink: bool = True


presets: dict[str, Fields] = {
    "quick": Fields(
        dataset="mnist5k",
        validation=500,
        steps=400,
        evaluate_every=20,
        levels=17,
        branches=("rewind", "control", "chain", "none"),
    ),
    "paper": Fields(),
    "open-lth": Fields(
        initialiser="kaiming_normal",
        optimiser="sgd",
        learning_rate=0.1,
        batch=128,
        steps=18_760,
        evaluate_every=469,
        prune_output=0.0,
        scope="global",
        levels=20,
    ),
}
seeds = {"quick": 5, "paper": 5, "open-lth": 3}

figures = (
    Curves(
        name="accuracy",
        title="Test accuracy against weights remaining",
        caption="Accuracy at the last step of each level. The network is dense at the left; each "
        "point has been pruned once more.",
        x="density",
        y="last.test_accuracy",
        x_title="weights remaining",
        y_title="test accuracy",
        x_log=True,
        x_reverse=True,
        percent_x=True,
        percent_y=True,
    ),
    Curves(
        name="early-stop",
        title="When training would have been stopped",
        caption="The step of the lowest validation loss, Frankle and Carbin's measure of how fast "
        "a network learns.",
        x="density",
        y="best.step",
        x_title="weights remaining",
        y_title="step of the lowest validation loss",
        x_log=True,
        x_reverse=True,
        percent_x=True,
    ),
    Curves(
        name="total-steps",
        title="Test accuracy against all steps spent",
        caption="All steps from the dense start on, so a level stands at the same place in every "
        "branch. What differs is how many of them are behind the weights themselves: one level's "
        "where they were set back, all of them where they never were.",
        x="total_steps",
        y="last.test_accuracy",
        x_title="steps spent along the way",
        y_title="test accuracy",
        percent_y=True,
    ),
)


def cross_checks(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """What of a row can be told only beside others: that its mask is the ticket's."""
    if row["branch"] not in ("control", "same-sign"):
        return {}
    ticket = [
        other
        for other in rows
        if (other["branch"], other["level"], other["seed"]) == ("rewind", row["level"], row["seed"])
    ]
    if not ticket:
        return {}
    return {"mask is the ticket's": row["hashes"]["mask"] == ticket[0]["hashes"]["mask"]}


def check(fields: Fields) -> None:
    """Refuses what cannot be run, before anything is.

    Raises:
        SecateurError: one sentence: what is wrong, what was expected.
    """
    from secateur.prune.branches import BRANCHES
    from secateur.prune.magnitude import SCOPES

    _recipe(fields)
    for branch in fields.branches:
        lookup("branch", branch, BRANCHES)
    if not fields.branches:
        raise SecateurError(
            "branches names at least one branch; known: " + ", ".join(BRANCHES) + "."
        )
    lookup("scope", fields.scope, dict.fromkeys(SCOPES))
    if fields.scope == "global" and fields.prune_output not in (0, fields.prune):
        raise SecateurError(
            f"one ranking over all layers has one rate: set prune_output to {fields.prune}, or to "
            f"0 to spare the output layer, not {fields.prune_output}."
        )
    if ("late" in fields.branches) != (fields.rewind_step > 0):
        raise SecateurError(
            "branch late and rewind_step go together: set rewind_step to the step k to rewind to."
        )
    if fields.rewind_step % fields.evaluate_every or not 0 <= fields.rewind_step < fields.steps:
        raise SecateurError(
            f"rewind_step is a multiple of evaluate_every ({fields.evaluate_every}) below "
            f"steps ({fields.steps}), not {fields.rewind_step}."
        )
    tickets.check(fields)


def cells(fields: Fields, seeds: Sequence[int], data: str) -> list[Cell]:
    """Every cell of the study, each after those it needs.

    Args:
        data: SHA-256 of the data set.
    """
    from secateur.prune.branches import BRANCHES

    described = msgspec.to_builtins(fields)
    for varied in ("levels", "branches"):
        del described[varied]
    if not fields.drops:  # a constant rate has the addresses it had before schedules came
        del described["drops"], described["drop_factor"]
    if not fields.warmup:
        del described["warmup"]
    data = trained.data_address(data)
    cost = float(fields.steps)
    made = []
    for seed in seeds:
        dense = Cell(
            name, meaning, described, seed, {"branch": "dense", "level": 0}, data, cost=cost
        )
        made.append(dense)
        found: dict[tuple[str, int], Cell] = {}

        def level(
            branch: str,
            l: int,
            seed: int = seed,
            dense: Cell = dense,
            found: dict[tuple[str, int], Cell] = found,
        ) -> Cell:
            if l == 0:
                return dense
            if (branch, l) not in found:
                way = BRANCHES[branch]
                previous = {"own": branch, "ticket": "rewind", "dense": "dense"}[way.follows]
                before = level(previous, 0 if previous == "dense" else l - 1)
                found[branch, l] = Cell(
                    name,
                    meaning,
                    described,
                    seed,
                    {"branch": branch, "level": l},
                    data,
                    {"dense": dense, "previous": before},
                    cost,
                )
                made.append(found[branch, l])
            return found[branch, l]

        for l in range(1, fields.levels + 1):
            for branch in fields.branches:
                level(branch, l)
    return made


def takes(fields: Fields) -> dict[str, Any]:
    """What a cell takes: steps, CPU seconds a step, compiled programs, bytes of memory and disk."""
    widths = tickets.widths(fields)
    return {
        "steps": fields.steps,
        "seconds_per_step": tickets.seconds_per_step(fields),
        "programs": "3 of the full network and 2 for each smaller shape that pays",
        "memory": 6e8 + 3 * 70_000 * widths[0],  # MNIST's size; others are near it
        "disk": 3e5 + sum(a * b for a, b in itertools.pairwise(widths)),
    }


def _recipe(fields: Fields) -> Recipe:
    from secateur.train.recipes import Recipe

    return Recipe(
        optimiser=fields.optimiser,
        rate=fields.learning_rate,
        batch=fields.batch,
        steps=fields.steps,
        evaluate_every=fields.evaluate_every,
        momentum=fields.momentum,
        weight_decay=fields.weight_decay,
        drops=tuple((at, fields.drop_factor) for at in fields.drops),
        warmup=fields.warmup,
    )


def sets(fields: Fields) -> Sets:
    """The three sets of a run.

    Raises:
        SecateurError: where the data are not at hand or cannot be cut like this.
    """
    return trained.sets(fields.dataset, fields.validation, fields.split)


def work(cell: Cell, inputs: Mapping[str, Result]) -> Generator[Training, Fitted, Result]:
    """Trains one level of one branch of one seed. The lab drives it."""
    from secateur.core import trees
    from secateur.prune import lottery as prune

    fields = msgspec.convert({**cell.fields, "levels": 0, "branches": []}, Fields)
    data = sets(fields)
    network, recipe = tickets.dense_network(fields, data), _recipe(fields)
    branch = prune.BRANCHES.get(cell.place["branch"])
    level, seed = int(cell.place["level"]), cell.seed
    initial, stats, ones = prune.begin(network, seed)
    rates = prune.rates_of(network, fields.prune, fields.prune_output)

    if branch is None:
        begins = prune.Start(ones, initial, stats, 0)
    else:
        dense, previous = _unpack(inputs["dense"], inputs["previous"], initial, stats, fields)
        begins = prune.start(
            branch, level, seed, network, dense, previous, rates, fields.scope, fields.rewind_step
        )
    keep_at = (fields.rewind_step,) if branch is None and fields.rewind_step else ()
    long = fields.steps >= 5000  # worth a program of its own for every few widths
    fitted = yield prune.training(
        branch,
        level,
        seed,
        network,
        data,
        recipe,
        begins,
        keep_at=keep_at,
        shrink=fields.shrink,
        siblings=1 if long else 10,  # seeds and branches that share a level, in one process
        grain=32 if long else 128,
    )
    result = _result(cell, inputs, fields, begins, initial, rates, recipe, data, fitted)
    if branch is not None and branch.weights in ("late", "trained"):
        source = dense.at_rewind[0] if branch.weights == "late" else previous.trained
        expected = trees.fingerprint(trees.apply_mask(begins.mask, source))
        where = "of step k" if branch.weights == "late" else "of the level before"
        held = result.values["hashes"]["start"] == expected
        result.checks[f"start is mask times the weights {where}, bit for bit"] = held
    return result


def _unpack(
    dense: Result, previous: Result, initial: Any, stats: Any, fields: Fields
) -> tuple[prune.Dense, prune.Before]:
    """The types of the pruning room from stored results. These networks have no statistics."""
    from secateur.prune import lottery as prune

    mask, params = trained.unpack(dense, initial)
    late = trained.unpack(dense, initial, "late:")[1] if fields.rewind_step else initial
    shared = prune.Dense(initial, stats, params, (late, stats))
    mask, params = trained.unpack(previous, initial)
    return shared, prune.Before(mask, params, stats)


def _result(
    cell: Cell,
    inputs: Mapping[str, Result],
    fields: Fields,
    begins: prune.Start,
    initial: Any,
    rates: Mapping[str, float],
    recipe: Recipe,
    data: Sets,
    fitted: Fitted,
) -> Result:
    import numpy as np

    from secateur.core import trees

    mask = begins.mask
    taken = recipe.steps - begins.first_step
    before = inputs["previous"].values["total_steps"] if inputs else 0
    if cell.place["branch"] == "one-shot":
        before = inputs["dense"].values["total_steps"]
    arrays = trained.pack_mask(mask) | trained.pack(mask, fitted.params)
    for _, (params, _stats) in fitted.kept.items():
        arrays |= trained.pack(mask, params, "late:")
    first = next(k for k, m in trees.flatten(mask).items() if m is not None)
    image = data.train.images.shape[1:]
    if image[-1] == 1:
        live = arrays[f"mask:{first}"].sum(axis=1).reshape(image[:2])
        arrays["inputs_alive"] = live.astype(np.int16)
    values = {
        "branch": cell.place["branch"],
        "level": cell.place["level"],
        "first_step": begins.first_step,
        "steps": taken,
        "total_steps": before + taken,
        **trained.told(mask, fitted, data, {"initial": initial, "start": begins.params}),
    }
    return Result(
        values,
        arrays,
        {**fitted.checks, **_checks(cell, inputs, fields, begins, initial, rates, data)},
    )


def _checks(
    cell: Cell,
    inputs: Mapping[str, Result],
    fields: Fields,
    begins: prune.Start,
    initial: Any,
    rates: Mapping[str, float],
    data: Sets,
) -> dict[str, bool]:
    """The trust card: what must hold of the mask and the start, tested on what was trained."""
    import numpy as np

    from secateur.core import trees
    from secateur.prune.branches import BRANCHES

    mask = trees.flatten(begins.mask)
    checks = {
        "data is what the address says": data.sha256 == cell.data.partition(" ")[0],
        "exact counts": _counts_hold(begins.mask, rates, int(cell.place["level"]), fields.scope),
    }
    branch = BRANCHES.get(cell.place["branch"])
    if branch is None:
        return checks
    same = trees.fingerprint(initial) == inputs["dense"].values["hashes"]["initial"]
    checks["initial weights are the dense run's, bit for bit"] = same
    if branch.masks != "shuffled":
        outer = {
            k: inputs["previous"].arrays[f"mask:{k}"] for k, m in mask.items() if m is not None
        }
        checks["mask nested in the level before"] = all(
            not np.any(np.asarray(mask[k]) & ~outer[k]) for k in outer
        )
    start = trees.fingerprint(begins.params)
    rewound = trees.fingerprint(trees.apply_mask(begins.mask, initial))
    if branch.weights == "initial":
        checks["start is mask times initial weights, bit for bit"] = start == rewound
    elif branch.weights in ("fresh", "same-sign"):
        checks["start differs from the initial weights"] = start != rewound
    return checks


def _counts_hold(mask: Any, rates: Mapping[str, float], level: int, scope: str) -> bool:
    """Counts from the sizes alone, by repeating the rule; independent of how the mask was made."""
    from secateur.core import trees
    from secateur.prune.magnitude import removed

    counts = trees.sizes(mask)
    if scope == "layer":
        for _ in range(level):
            counts = {k: n - removed(rates[k], n) for k, n in counts.items()}
        return trees.alive(mask) == counts
    ranked = [k for k in counts if rates[k] > 0]
    total = sum(counts[k] for k in ranked)
    for _ in range(level):
        total -= removed(max(rates.values()), total)
    return sum(trees.alive(mask)[k] for k in ranked) == total
