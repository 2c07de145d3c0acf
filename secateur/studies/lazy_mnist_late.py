"""The arm of `lazy-mnist` that starts from large weights: it fits at once and generalises late.

Large initial weights make the first fit lazy, and weight decay brings the network down to where it
learns features: training accuracy is 1 long before the test accuracy rises (Liu, Michaud & Tegmark
2023; Kumar et al. 2023 call it the transition from lazy to rich). Here the ticket of the trained
network is rewound to those large weights, beside the same mask with other large weights.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import jax
import numpy as np

from secateur.core.trees import Params, apply_mask, density
from secateur.features.records import movement_record
from secateur.lab.cells import Cell, Result
from secateur.networks.lazy import scaled_weights
from secateur.prune import lottery
from secateur.studies import gains, subsets, tickets
from secateur.studies.lazy_mnist_claims import BATCH, LARGE, LATE, late_name
from secateur.train.recipes import Recipe
from secateur.train.records import Record
from secateur.train.training import Fitted, Training

FITTED = 0.99  # training accuracy that counts as fitted
NEAR = 0.02  # below its best validation accuracy: from there on a network has generalised


def late(cell: Cell, fields: Any) -> Generator[Training, Fitted, Result]:
    """The dense network, its ticket and the ticket's mask with other weights, level by level."""
    seed, scale = cell.seed, float(cell.place["scale"])
    data = subsets.part(fields.dataset, fields.validation, fields.split, fields.few)
    x, rows = subsets.probe(data, fields.few)
    y = np.asarray(data.train.labels)[rows]
    network = tickets.dense_network(fields, data)
    every = fields.late_steps // LATE
    points = tuple(range(0, fields.late_steps + 1, every))
    recipe = Recipe(
        "adam",
        fields.learning_rate,
        batch=BATCH,
        steps=fields.late_steps,
        evaluate_every=every,
        weight_decay=fields.weight_decay,
        decoupled=True,
    )
    initial, stats, ones = lottery.begin(network, seed)
    rates = lottery.rates_of(network, fields.late_prune, fields.late_prune / 2)
    large = _large(initial, scale)
    dense: Any = None
    before: Any = None
    ticket: Any = None
    found: list[dict[str, Any]] = []
    checks: list[dict[str, bool]] = []

    def asked(way: Any, level: int, begins: lottery.Start) -> Training:
        records = (
            Record("right", subsets.right, points, (x, y)),
            movement_record(begins.params, points),
        )
        return lottery.training(
            way, level, seed, network, data, recipe, begins, records=records, shrink=False
        )

    for level in range(fields.late_levels + 1):
        for branch in ("rewind", "control") if level else ("rewind",):
            if level == 0:
                begins, way = lottery.Start(ones, large, stats, 0), None
            else:
                way = lottery.BRANCHES[branch]
                begins = lottery.start(way, level, seed, network, dense, before, rates)
                if branch == "control":  # its weights are drawn here, and are as large
                    params = _large(begins.params, scale)
                    begins = begins._replace(params=apply_mask(begins.mask, params))
            fitted = yield asked(way, level, begins)
            checks.append(fitted.checks)
            found += _rows(scale, branch, level, begins, fitted)
            if branch == "rewind":
                ticket = lottery.Before(begins.mask, fitted.params, fitted.stats)
                dense = dense or lottery.Dense(large, stats, fitted.params, (large, stats))
        before = ticket
    split = {**data.split, "train": len(data.train.labels)}
    return Result(
        {"arm": LARGE, "diverged": 0, "split": split, "rows": found}, {}, gains.together(checks)
    )


def _large(params: Params, scale: float) -> Params:
    return jax.tree.map(np.asarray, scaled_weights(params, scale))


def _rows(
    scale: float, branch: str, level: int, begins: lottery.Start, fitted: Fitted
) -> list[dict[str, Any]]:
    """One row for the training, with its delay, then one for each evaluation."""
    steps = fitted.curve["step"]
    fit = fitted.records["right"]["accuracy"]
    moved = fitted.records["movement"]["relative"]
    validation = fitted.curve["validation_accuracy"]
    about = {
        "branch": late_name(scale, branch, level),
        "scale": scale,
        "kind": branch,
        "depth": level,
        "density": density(begins.mask),
    }
    told = {**delay(steps, fit, validation), "accuracy": fitted.last["test_accuracy"]}
    of = {**about, "level": 10_000, "late": told}
    points = [
        {
            **about,
            "level": 10_001 + k,
            "step": int(steps[k]),
            "along": {
                "train": float(fit[k]),
                "validation": float(validation[k]),
                "moved": float(moved[k]),
            },
        }
        for k in range(1, len(steps))
    ]
    return [of, *points]


def delay(steps: np.ndarray, fit: np.ndarray, validation: np.ndarray) -> Mapping[str, float]:
    """When a training fitted its examples, when it generalised, and log10 of the ratio.

    It has generalised at the first evaluation within `NEAR` of its best validation accuracy. A
    training that never fits has neither delay nor step.
    """
    fits = np.flatnonzero(np.asarray(fit) >= FITTED)
    good = np.flatnonzero(np.asarray(validation) >= np.max(validation) - NEAR)
    told: dict[str, float] = {"generalised": float(steps[good[0]])}
    if len(fits) and steps[fits[0]] > 0:
        told["fitted"] = float(steps[fits[0]])
        told["delay"] = float(np.log10(max(told["generalised"], 1.0) / told["fitted"]))
    return told
