"""`feature-dynamics` of an MLP on images: Gram matrices recorded inside the training."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np

from secateur.core import trees
from secateur.data.examples import Sets
from secateur.features.records import gram_record, weight_record
from secateur.lab.cells import Cell, Result
from secateur.networks.lazy import comparable_rate
from secateur.prune.lottery import Level
from secateur.studies import gains, subsets, tickets, trained
from secateur.studies.feature_dynamics_reads import Watched, films, rows
from secateur.train.training import Fitted, Training

BRANCH = {"ticket": "rewind", "control": "control", "shuffled": "shuffled", "none": "none"}


def images(cell: Cell, fields: Any, data: Sets) -> Generator[Training, Fitted, Result]:
    """All levels of one alpha and one seed."""
    alpha, seed = float(cell.place["alpha"]), cell.seed
    network = tickets.dense_network(fields, data)
    x, at = subsets.probe(data, fields.probe)
    labels = np.asarray(data.train.labels)[at]
    order = np.argsort(labels, kind="stable")
    x, labels = x[order], labels[order]
    every = fields.steps // fields.records
    steps = tuple(range(0, fields.steps + 1, every))
    recipe = trained.recipe(fields)
    rate = comparable_rate(fields.learning_rate, alpha=alpha)
    recipe = recipe if fields.optimiser == "adam" else replace(recipe, rate=rate)
    films_of = seed == 0

    def change(level: int, training: Training) -> Training:
        records = [gram_record(x, steps)]
        if films_of and level in fields.watched:
            records.append(weight_record(steps, layers=("dense_1/kernel",)))
        return replace(training, alpha=alpha, records=tuple(records))

    chains: dict[str, list[Level]] = {}
    first: Any = None
    for arm in ("ticket", "none"):
        chains[arm] = yield from tickets.chain(
            BRANCH[arm], seed, network, data, recipe, fields, first=first, change=change
        )
        first = chains[arm][0]
    dense = _watched(first, steps)
    found: list[dict[str, Any]] = []
    kept: dict[tuple[str, int], Watched] = {}
    checks = [first.fitted.checks]
    for level in range(1, fields.levels + 1):
        ends = {arm: levels[level] for arm, levels in chains.items()}
        for arm in ("control", "shuffled"):
            begins, asked = tickets.beside(
                BRANCH[arm], seed, network, data, recipe, fields, chains["ticket"], level
            )
            fitted = yield change(level, asked)
            ends[arm] = Level(level, begins, fitted)
        for arm in BRANCH:
            end = ends[arm]
            checks.append(end.fitted.checks)
            one = _watched(end, steps)
            density = trees.density(end.start.mask)
            found += rows(fields, alpha, steps, arm, level, density, one, dense)
            if films_of and level in fields.watched and arm in ("ticket", "control"):
                kept[arm, level] = one
    entries, arrays = films(alpha, steps, kept, dense, labels)
    values = {
        "alpha": alpha,
        "dense": {"accuracy": first.fitted.last["test_accuracy"]},
        "split": {**data.split, "train": len(data.train.labels)},
        "rows": found,
        "films": entries,
    }
    return Result(values, arrays, gains.together(checks))


def _watched(level: Level, steps: tuple[int, ...]) -> Watched:
    """A trained level's Grams, losses and, where they were kept, its weights."""
    fitted = level.fitted
    short = lambda leaf: f"layer {leaf.removeprefix('dense_').removesuffix('/kernel')}"
    curve = dict(zip(fitted.curve["step"].tolist(), fitted.curve["validation_loss"].tolist()))
    return Watched(
        {short(leaf): np.asarray(g, np.float64) for leaf, g in fitted.records["grams"].items()},
        np.array([curve[step] for step in steps]),
        {short(leaf): w for leaf, w in fitted.records.get("weights", {}).items()},
        {"accuracy": fitted.last["test_accuracy"]},
    )
