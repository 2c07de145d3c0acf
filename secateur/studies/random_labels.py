"""Tickets, movement and alignment where the labels say nothing of the images.

Zhang et al. 2017: a network fits labels that were drawn at random, and then is right on no other
image. Here the training labels are permuted, validation and test labels stay true. Under both kinds
of labels the network is pruned level by level and rewound; beside it the ticket's mask with new
weights, and, of permuted labels, the ticket trained on labels that were permuted in another way. Is
there a ticket where nothing can be generalised, and is it one for these labels or for any? Do
weights move further, do units and features align less?

A cell is one seed under one kind of labels: the chain, its controls, a row a level of each. Both
kinds begin at the same weights and see the images in the same order. Nothing but the training
accuracy of the dense network was looked at to choose the presets.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from secateur.core.errors import SecateurError
from secateur.lab.cells import Cell, Result
from secateur.studies import gains, subsets, tickets, trained
from secateur.studies.random_labels_claims import (
    FITTED,
    LABELS,
    OTHER,
    OTHER_CONTROL,
    SHUFFLED,
    branches,
    citation,
    claims,
    control_of,
    figures,
    notes,
    sentence,
)

if TYPE_CHECKING:
    from secateur.data.examples import Sets
    from secateur.prune.lottery import Start
    from secateur.train.training import Fitted, Training

name = "random-labels"
title = "Tickets and alignment under random labels"
meaning = 2  # raise when results change meaning: the golden cell in the tests says when
summary = "training accuracy, movement and alignment of tickets under true and permuted labels"
__all__ = ["branches", "citation", "claims", "figures", "notes", "sentence"]


class Fields(tickets.Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the study varies; see `tickets.Settings`.

    Attributes:
        examples: training examples kept; 0 for all.
        probe: training examples on which features are read, and on which it is seen when they
            are fitted.
    """

    examples: int = 5000
    probe: int = 1000
    steps: int = 10_000
    prune: float = 0.4
    prune_output: float = 0.2
    levels: int = 8


presets: dict[str, Fields] = {
    "quick": Fields(
        dataset="mnist5k",
        validation=500,
        examples=1000,
        hidden=(100, 50),
        steps=2000,
        evaluate_every=50,
    ),
    "mnist": Fields(),
}
seeds = {"quick": 5, "mnist": 3}


def check(fields: Fields) -> None:
    """Refuses what cannot be run, before anything is.

    Raises:
        SecateurError: one sentence: what is wrong, what was expected.
    """
    trained.recipe(fields)
    tickets.check(fields)
    subsets.check(fields)
    if fields.probe < 2:
        raise SecateurError(
            f"probe is a number of training examples, at least 2, not {fields.probe}."
        )


def cells(fields: Fields, seeds: Sequence[int], data: str) -> list[Cell]:
    """Two a seed.

    Args:
        data: SHA-256 of the data set.
    """
    told, address = trained.described(fields), trained.data_address(data)
    trainings = {"true": 2 * fields.levels + 1, "permuted": 5 * fields.levels + 2}
    costs = {labels: float(trainings[labels] * fields.steps) for labels in LABELS}
    return [
        Cell(name, meaning, told, seed, {"labels": labels}, address, cost=costs[labels])
        for seed in seeds
        for labels in LABELS
    ]


def takes(fields: Fields) -> dict[str, Any]:
    """What a cell takes: steps, CPU seconds a step, compiled programs, bytes of memory and disk."""
    return {
        "steps": (5 * fields.levels + 2) * fields.steps,
        "seconds_per_step": 1.5 * tickets.seconds_per_step(fields),
        "programs": "1 of training, 1 of evaluation, 1 of features",
        "memory": 1e9 + 3e4 * fields.probe + 1e4 * fields.examples,
        "disk": 2e5,
    }


def sets(fields: Fields) -> Sets:
    """The three sets of a run, labels true.

    Raises:
        SecateurError: where the data are not at hand or cannot be cut like this.
    """
    return subsets.part(fields.dataset, fields.validation, fields.split, fields.examples)


def work(cell: Cell, inputs: Mapping[str, Result]) -> Generator[Training, Fitted, Result]:
    """A chain of tickets and its controls, under one kind of labels. The lab drives it."""
    from dataclasses import replace

    from secateur.prune import lottery as prune
    from secateur.train.records import Record

    fields, labels, seed = msgspec.convert(cell.fields, Fields), cell.place["labels"], cell.seed
    truth = sets(fields)
    data = truth if labels == "true" else subsets.permuted(truth, seed)
    other = None if labels == "true" else subsets.permuted(truth, seed, "other labels")
    network, recipe = tickets.dense_network(fields, data), trained.recipe(fields)
    x, at = subsets.probe(data, fields.probe)
    steps = tuple(range(0, fields.steps + 1, fields.evaluate_every))

    def watched(level: int, training: Training) -> Training:
        seen = Record("right", subsets.right, steps, (x, training.data.train.labels[at]))
        return replace(training, records=(seen,))

    def row(
        branch: str, level: int, begins: Start, fitted: Fitted, data: Sets = data
    ) -> dict[str, Any]:
        return {
            "branch": branch,
            "level": level,
            "labels": labels,
            **trained.told(begins.mask, fitted, data, {"start": begins.params}),
            **_features(network, begins, fitted, x, truth.train.labels[at], data.train.labels[at]),
            "fit": _fit(fitted.records["right"]["accuracy"], steps),
        }

    ticket = yield from tickets.chain("rewind", seed, network, data, recipe, fields, change=watched)
    rows = [row(labels, one.level, one.start, one.fitted) for one in ticket]
    rows.append({**rows[0], "branch": control_of(labels)})  # both branches begin dense
    checks = [one.fitted.checks for one in ticket]
    starts = {(OTHER, one.level): one.start for one in ticket}
    beside = {"control": control_of(labels)}
    if other is not None:
        beside["shuffled"] = SHUFFLED
    for level in range(1, fields.levels + 1):
        for way, branch in beside.items():
            begins, asked = tickets.beside(way, seed, network, data, recipe, fields, ticket, level)
            fitted = yield watched(level, asked)
            rows.append(row(branch, level, begins, fitted))
            checks.append(fitted.checks)
            if way == "control":
                starts[OTHER_CONTROL, level] = begins
    if other is not None:
        for (branch, level), begins in starts.items():
            word = "rewind" if branch == OTHER else "control"  # images in that branch's order
            way_on = prune.BRANCHES[word] if level else None
            asked = prune.training(
                way_on, level, seed, network, other, recipe, begins, shrink=False
            )
            fitted = yield watched(level, asked)
            rows.append(row(branch, level, begins, fitted, other))
            checks.append(fitted.checks)
    changed = float((truth.train.labels != data.train.labels).mean())
    return Result({"rows": rows, "changed": changed}, {}, gains.together(checks))


def _fit(right: Any, steps: Sequence[int]) -> dict[str, float]:
    """The first step at which `FITTED` of the probe is right; nothing where it never is."""
    found = [step for step, share in zip(steps, right) if share >= FITTED]
    return {"step": float(found[0])} if found else {}


@lru_cache(maxsize=4)
def _read(network: Any, last: str) -> Any:
    """(start, params, stats, mask, x) -> lengths, potentials and last hidden layer; compiled."""
    import jax

    from secateur.core.trees import flatten
    from secateur.features.frames import frame_potential
    from secateur.features.movement import movement
    from secateur.structure.layers import layer_values

    def read(start: Any, params: Any, stats: Any, mask: Any, x: Any) -> dict[str, Any]:
        moved = movement(start, params, mask, masked=True)
        masks = {k: m for k, m in flatten(mask).items() if m is not None}
        told: dict[str, Any] = {
            "movement": {
                "all": moved.relative(),
                **{name: moved.relative(name) for name in moved.moved},
            }
        }
        for when, point in (("start", start), ("end", params)):
            weights = flatten(point)
            hidden = layer_values(network, point, stats, x, side="in", layers=[last])[last]
            told[when] = {
                "hidden": hidden,
                "excess": {
                    k: frame_potential(weights[k], m, normalise="excess") for k, m in masks.items()
                },
            }
        return told

    return jax.jit(read)


def _features(
    network: Any, begins: Start, fitted: Fitted, x: Any, truth: Any, labels: Any
) -> dict[str, Any]:
    """Movement, excess of the frame potential, alignment of the last hidden layer with labels."""
    import numpy as np

    from secateur.core.trees import flatten

    names = [k for k, m in flatten(begins.mask).items() if m is not None]
    read = _read(network, names[-1])
    told = read(begins.params, fitted.params, fitted.stats, begins.mask, x)
    targets = {
        kind: np.eye(network.outputs)[y] for kind, y in (("true", truth), ("trained", labels))
    }
    return {
        "movement": {k: float(v) for k, v in told["movement"].items()},
        "excess": {
            k: {when: float(told[when]["excess"][k]) for when in ("start", "end")} for k in names
        },
        "cka": {
            kind: {
                when: number
                for when in ("start", "end")
                if (number := _cka(told[when]["hidden"], y)) is not None
            }
            for kind, y in targets.items()
        },
    }


def _cka(hidden: Any, y: Any) -> float | None:
    """Linear CKA of features (n, units) and one-hot labels; None where all features are alike."""
    from secateur.features.cka import target_cka

    try:
        return target_cka(hidden, y, form="centred", targets="gram")
    except SecateurError:
        return None
