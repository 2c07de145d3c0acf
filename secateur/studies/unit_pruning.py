"""Which units matter: one layer loses its units one by one, or its largest and trains on.

Heitmann, "Sources of Redundancy in Neural Networks" (2020): units go by norm, by their contribution
to the frame potential, at random, by measured importance; nothing is trained in between. Beside it:
retraining without the largest units (Bartoldson et al. 2019), how importance concentrates and how
generalisation moves with width, and how many directions a layer needs.

A cell is one trained network: the one whose units go (its curves are rows), one that trains on
without some of its units, or one of another width.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from secateur.core.errors import SecateurError, lookup
from secateur.lab.cells import Cell, Result
from secateur.studies import trained
from secateur.studies.unit_pruning_claims import (
    ORDERS,
    branches,
    citation,
    claims,
    figures,
    notes,
    sentence,
)

if TYPE_CHECKING:
    from secateur.core.network import Network
    from secateur.data.examples import Sets
    from secateur.train.training import Fitted, Training

name = "unit-pruning"
title = "Which units matter"
meaning = 1  # raise when results change meaning: the golden cell in the tests says when
summary = "accuracy while a layer loses its units by norm, frame potential, importance or chance"
__all__ = ["branches", "citation", "claims", "figures", "notes", "sentence"]

RETRAINED = ("none", "norm largest", "norm smallest", "random smallest")


class Fields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the study varies.

    Attributes:
        dataset: a name of ``secateur data``.
        network: a built-in network, by name; ``row`` the number of its row of units that go.
        validation: examples held out of the training part, by which importance and activation are
            measured; ``split`` is the seed of that cut.
        optimiser, learning_rate, batch, steps: of each training; ``evaluate_every`` divides it.
        orders: of `ORDERS`. points: of a curve.
        cut: percent of the row's units that go before training goes on for ``again`` steps.
        widths: of other networks: dense, two layers, the second a third as wide.
    """

    dataset: str = "mnist"
    network: str = "lenet-300-100"
    row: int = 0
    validation: int = 5000
    split: int = 0
    optimiser: str = "adam"
    learning_rate: float = 1.2e-3
    batch: int = 60
    steps: int = 3000
    evaluate_every: int = 100
    orders: tuple[str, ...] = tuple(ORDERS)
    points: int = 20
    cut: int = 20
    again: int = 1000
    widths: tuple[int, ...] = (12, 25, 50, 100, 200, 400)


presets: dict[str, Fields] = {
    "quick": Fields(
        dataset="mnist5k",
        validation=500,
        steps=600,
        again=300,
        widths=(12, 50, 200),
    ),
    "mnist": Fields(),
    "conv-2": Fields(network="conv-2", row=2, learning_rate=2e-4, steps=1500, again=500, widths=()),
}
seeds = {"quick": 3, "mnist": 5, "conv-2": 5}


def check(fields: Fields) -> None:
    """Refuses what cannot be run, before anything is.

    Raises:
        SecateurError: one sentence: what is wrong, what was expected.
    """
    from secateur.networks.registry import entry

    trained.recipe(fields)
    entry(fields.network)
    for word in fields.orders:
        lookup("order of units", word, ORDERS)
    if fields.again < 0 or fields.again % fields.evaluate_every:
        raise SecateurError(
            f"again is a multiple of evaluate_every ({fields.evaluate_every}), not {fields.again}."
        )
    if not 0 < fields.cut < 100 or fields.points < 1 or fields.row < 0:
        raise SecateurError(
            "cut is a percentage from 1 to 99, points at least 1 and row at least 0; given "
            f"{fields.cut}, {fields.points}, {fields.row}."
        )
    if any(width < 3 for width in fields.widths):
        raise SecateurError(f"widths are at least 3, not {list(fields.widths)}.")


def cells(fields: Fields, seeds: Sequence[int], data: str) -> list[Cell]:
    """Every cell of the study.

    Args:
        data: SHA-256 of the data set.
    """
    described = trained.described(fields, apart=("widths",))
    address = trained.data_address(data)
    made: list[Cell] = []

    def cell(seed: int, cost: float, place: dict[str, Any], **needs: Cell) -> Cell:
        made.append(Cell(name, meaning, described, seed, place, address, needs, cost))
        return made[-1]

    for seed in seeds:
        dense = cell(seed, 2 * fields.steps, {"part": "curves"})
        for way in RETRAINED if fields.again else ():
            cell(seed, fields.again, {"part": "retrained", "way": way}, dense=dense)
        for width in fields.widths:
            cell(seed, fields.steps, {"part": "width", "width": width})
    return made


def takes(fields: Fields) -> dict[str, Any]:
    """What a cell takes: steps, CPU seconds a step, compiled programs, bytes of memory and disk."""
    return {
        "steps": fields.steps,
        "seconds_per_step": {"lenet-300-100": 3e-3}.get(fields.network, 60e-3),
        "programs": "1 of training a width, 3 of removals",
        "memory": 1.5e9,
        "disk": 2e6,
    }


def sets(fields: Fields) -> Sets:
    """The three sets of a run.

    Raises:
        SecateurError: where the data are not at hand or cannot be cut like this.
    """
    return trained.sets(fields.dataset, fields.validation, fields.split)


def work(cell: Cell, inputs: Mapping[str, Result]) -> Generator[Training, Fitted, Result]:
    """Trains a network and looks at its units. The lab drives it."""
    from secateur.core.keys import key
    from secateur.prune import lottery
    from secateur.train.training import Training

    fields = msgspec.convert(cell.fields, Fields)
    data, seed, part = sets(fields), cell.seed, cell.place["part"]
    network = _network(cell, fields, data)
    initial, stats, ones = lottery.begin(network, seed)
    if part == "retrained":
        return (yield from _again(cell, fields, network, data, inputs["dense"]))
    fitted = yield Training(
        network, initial, stats, data, trained.recipe(fields), ones, key(seed, "train")
    )
    values = trained.told(ones, fitted, data, {"initial": initial})
    values["concentration"] = _concentration(network, fields, data, fitted)
    if part == "width":
        width = int(cell.place["width"])
        last = fitted.last
        values |= {
            "branch": "width",
            "level": width,
            "width": width,
            "error": 1 - last["test_accuracy"],
            "gap": last["train_accuracy"] - last["test_accuracy"],
        }
        return Result(values, {}, fitted.checks)
    values["layer"] = _layer(network, fields, data, initial, fitted)
    # Curves and numbers of the network itself are rows: the first holds what is of the network.
    rows = [{"branch": "network", "level": 0, **values}]
    rows += _curves(network, fields, data, fitted, seed)
    arrays = trained.pack_mask(ones) | trained.pack(ones, fitted.params)
    return Result({"rows": rows}, arrays, fitted.checks)


def _network(cell: Cell, fields: Fields, data: Sets) -> Network:
    from secateur.networks.mlp import mlp

    if cell.place["part"] != "width":
        return trained.network_for(fields.network, data)
    width = int(cell.place["width"])
    shape = tuple(data.train.images.shape[1:])
    return mlp(width, width // 3, input_shape=shape, outputs=len(data.classes))


def _row(network: Network, fields: Fields) -> Any:
    from secateur.prune.rows import rows

    known = rows(network)
    if fields.row >= len(known):
        raise SecateurError(
            f"{network.name} has rows of units 0 to {len(known) - 1}, not {fields.row}."
        )
    return known[fields.row]


def _concentration(network: Network, fields: Fields, data: Sets, fitted: Fitted) -> dict[str, Any]:
    """How importance is spread over the row's units: by the rise of the loss on validation."""
    from secateur.prune.concentration import concentration
    from secateur.prune.importance import importance

    row = _row(network, fields)
    worth = importance(
        network, fitted.params, data, row.name, stats=fitted.stats, part="validation"
    )
    found = concentration(worth.drop("loss"))
    told = {"units": found.units, "mean": found.mean, "harmful": found.harmful}
    if found.gini is not None and found.top_tenth is not None:
        told |= {"gini": found.gini, "top_tenth": found.top_tenth}
    return told


def _layer(
    network: Network, fields: Fields, data: Sets, initial: Any, fitted: Fitted
) -> dict[str, Any]:
    """Directions of the row's weight vectors: frame potential, and the rank that is needed."""
    import numpy as np

    from secateur.features.frames import frame_potential
    from secateur.features.spectra import truncation
    from secateur.train.evaluation import evaluator

    row = _row(network, fields)
    excess = lambda params: float(frame_potential(row.weights(params).T, normalise="excess"))
    score = evaluator(network, data, "test")
    ranks = sorted({1, 2, 5, len(data.classes), 20, 50, row.size})
    ranks = [k for k in ranks if k <= min(row.weights(initial).shape)]
    cut = truncation(
        fitted.params, row.made[0].leaf, ranks, lambda p: score(p, fitted.stats).accuracy
    )
    at = ranks.index(len(data.classes))
    norms = np.linalg.norm(row.weights(fitted.params), axis=1)
    return {
        "excess": {"start": excess(initial), "end": excess(fitted.params)},
        "ranks": ranks,
        "kept": cut.kept.tolist(),
        "drop": cut.drop.tolist(),
        "drop_at_classes": float(cut.drop[at]),
        "norms": {"smallest": float(norms.min()), "largest": float(norms.max())},
    }


def _curves(
    network: Network, fields: Fields, data: Sets, fitted: Fitted, seed: int
) -> list[dict[str, Any]]:
    """A row a point of each order's curve, on the test images; the choice never sees them."""
    from secateur.prune.curves import removal_curve
    from secateur.prune.orders import order

    row = _row(network, fields)
    found = []
    for word in fields.orders:
        by, remove = ORDERS[word]
        removal = order(
            network,
            fitted.params,
            row.name,
            by,
            remove,
            data=data,
            stats=fitted.stats,
            part="validation",
            seed=seed,
        )
        curve = removal_curve(
            network, fitted.params, data, removal, stats=fitted.stats, part="test"
        )
        for k in range(fields.points + 1):
            gone = round(k * row.size / fields.points)
            found.append(
                {
                    "branch": word,
                    "level": k,
                    "removed": gone / row.size,
                    "accuracy": float(curve.accuracy[gone]),
                    "loss": float(curve.loss[gone]),
                }
            )
    return found


def _again(
    cell: Cell, fields: Fields, network: Network, data: Sets, dense: Result
) -> Generator[Training, Fitted, Result]:
    """Trains on without some units, for as many steps as the network that lost none."""
    import jax
    import numpy as np

    from secateur.core.keys import key
    from secateur.prune import lottery
    from secateur.prune.orders import order
    from secateur.prune.structured import cut_units
    from secateur.train.training import Training

    initial, stats, ones = lottery.begin(network, cell.seed)
    params = trained.unpack(dense, initial)[1]
    way, mask = cell.place["way"], ones
    row = _row(network, fields)
    gone = 0
    if way != "none":
        by, _, remove = way.partition(" ")
        units = order(network, params, row.name, by, remove, seed=cell.seed).units
        gone = round(fields.cut / 100 * row.size)
        ticket = cut_units(network, params, {row.name: units[:gone]})
        mask, params = ticket.mask, jax.tree.map(np.asarray, ticket.params)
    recipe = msgspec.structs.replace(fields, steps=fields.again)
    fitted = yield Training(
        network, params, stats, data, trained.recipe(recipe), mask, key(cell.seed, "again")
    )
    values = {
        "branch": f"retrained: {way}",
        "level": 0,
        "way": way,
        "removed": gone / row.size,
        **trained.told(mask, fitted, data, {"start": params}),
    }
    return Result(values, {}, fitted.checks)
