"""Tickets carried over: found on one data set, trained on another.

Morcos et al. 2019: tickets found on one data set of natural images train well on others, nearly as
well as the target's own. Here a ticket (mask and initial weights) found on each of two data sets is
trained on the other, at every level; beside it the target's own ticket, the carried mask with new
weights, and that mask shuffled inside each layer, which has the same counts.

Two kinds of cells: the search for tickets on one data set (a chain, whose rows are the own tickets
of that data set) and what came from the other data set, trained on this one. Both data sets begin
at the same initial weights of a seed: a carried ticket and an own one differ in their masks alone.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from secateur.core.errors import SecateurError, lookup
from secateur.lab.cells import Cell, Result, rows_of
from secateur.studies import gains, subsets, tickets, trained
from secateur.studies.transfer_claims import (
    branch_of,
    branches,
    citation,
    claims,
    figures,
    notes,
    sentence,
)

if TYPE_CHECKING:
    from secateur.data.examples import Sets
    from secateur.prune.lottery import Start
    from secateur.train.training import Fitted, Training

name = "transfer"
title = "Tickets carried over to other data"
meaning = 1  # raise when results change meaning: the golden cell in the tests says when
summary = "a ticket found on one data set, trained on another, beside the other's own"
__all__ = ["branches", "citation", "claims", "figures", "notes", "sentence"]


class Fields(tickets.Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the study varies; see `tickets.Settings`.

    Attributes:
        other: the second data set, of the same shape and number of classes.
        examples: training examples kept of each; 0 for all.
    """

    other: str = "fashion-mnist"
    examples: int = 0
    prune: float = 0.5
    prune_output: float = 0.25
    levels: int = 6


presets: dict[str, Fields] = {
    "quick": Fields(validation=500, examples=5000, hidden=(100, 50), steps=1000),
    "mnist": Fields(),
}
seeds = {"quick": 5, "mnist": 5}


def check(fields: Fields) -> None:
    """Refuses what cannot be run, before anything is.

    Raises:
        SecateurError: one sentence: what is wrong, what was expected.
    """
    from secateur.data.registry import DATASETS

    trained.recipe(fields)
    tickets.check(fields)
    subsets.check(fields)
    if fields.levels < 1:
        raise SecateurError("levels is at least 1: a network that is not pruned is no ticket.")
    one, two = (lookup("data set", k, DATASETS) for k in (fields.dataset, fields.other))
    if one.name == two.name:
        raise SecateurError(
            f"dataset and other are both {one.name}; a ticket is carried over between two data "
            "sets."
        )
    if (one.shape, len(one.classes)) != (two.shape, len(two.classes)):
        raise SecateurError(
            f"{one.name} has images {one.shape} of {len(one.classes)} classes and {two.name} "
            f"{two.shape} of {len(two.classes)}; a ticket fits data of one shape only."
        )


def cells(fields: Fields, seeds: Sequence[int], data: str) -> list[Cell]:
    """Four a seed: a search on each data set, and what is carried over to each.

    Args:
        data: SHA-256 of ``dataset``; that of ``other`` is the registry's. A cell's address has the
            hashes of what it reads: one of a search, both of what is carried over.
    """
    from secateur.data.registry import DATASETS

    told = trained.described(fields, apart=("dataset", "other"))
    hashes = {fields.dataset: data, fields.other: DATASETS[fields.other].sha256}
    pair = (fields.dataset, fields.other)
    made: list[Cell] = []
    for seed in seeds:
        found = {}
        for one in pair:
            place = {"part": "own", "on": one}
            cost = float((fields.levels + 1) * fields.steps)
            address = trained.data_address(hashes[one])
            found[one] = Cell(name, meaning, told, seed, place, address, cost=cost)
        made += found.values()
        for source, target in (pair, pair[::-1]):
            place = {"part": "carried", "from": source, "on": target}
            address = trained.data_address(f"{hashes[source]} then {hashes[target]}")
            needs = {"source": found[source], "target": found[target]}
            cost = float(3 * fields.levels * fields.steps)
            made.append(Cell(name, meaning, told, seed, place, address, needs, cost))
    return made


def takes(fields: Fields) -> dict[str, Any]:
    """What a cell takes: steps, CPU seconds a step, compiled programs, bytes of memory and disk."""
    return {
        "steps": 2 * fields.levels * fields.steps,
        "seconds_per_step": 1.4 * tickets.seconds_per_step(fields),
        "programs": "1 of training, 1 of evaluation",
        "memory": 2e9,
        "disk": 4e5,
    }


def sets(fields: Fields) -> dict[str, Sets]:
    """The three sets of each of the two, by name.

    Raises:
        SecateurError: where the data are not at hand or cannot be cut like this.
    """
    return {one: _sets(one, fields) for one in (fields.dataset, fields.other)}


def _sets(dataset: str, fields: Fields) -> Sets:
    return subsets.part(dataset, fields.validation, fields.split, fields.examples)


def work(cell: Cell, inputs: Mapping[str, Result]) -> Generator[Training, Fitted, Result]:
    """A chain of tickets on one data set, or what came of them on another. The lab drives it."""
    from secateur.prune import lottery

    target = cell.place["on"]
    fields = msgspec.convert({**cell.fields, "dataset": target}, Fields)
    data, seed = _sets(target, fields), cell.seed
    network, recipe = tickets.dense_network(fields, data), trained.recipe(fields)

    def row(way: str, level: int, begins: Start, fitted: Fitted) -> dict[str, Any]:
        told = trained.told(begins.mask, fitted, data, {"start": begins.params})
        return {"branch": branch_of(way, target), "level": level, "way": way, "on": target, **told}

    if cell.place["part"] == "own":
        chain = yield from tickets.chain("rewind", seed, network, data, recipe, fields)
        rows = [row("own", one.level, one.start, one.fitted) for one in chain]
        arrays = {
            _at(one.level, k): v
            for one in chain[1:]
            for k, v in trained.pack_mask(one.start.mask).items()
        }
        return Result({"rows": rows}, arrays, gains.together([c.fitted.checks for c in chain]))

    dense, ways = rows_of(inputs["target"].values)[0], tuple(LIKE)
    about = {"from": cell.place["from"]}
    rows = [{**dense, **about, "branch": branch_of(way, target), "way": way} for way in ways]
    checks = []
    for level in range(1, fields.levels + 1):
        mask = _mask(inputs["source"], level, network, seed)
        for way in ways:
            begins = _start(way, level, seed, network, mask)
            branch = lottery.BRANCHES[LIKE[way]]
            fitted = yield lottery.training(
                branch, level, seed, network, data, recipe, begins, shrink=False
            )
            rows.append({**row(way, level, begins, fitted), **about})
            checks.append(fitted.checks)
    return Result({"rows": rows}, {}, gains.together(checks))


# A carried ticket sees the images in the order in which the target's own ticket does.
LIKE = {"carried": "rewind", "control": "control", "shuffled": "shuffled"}


def _at(level: int, leaf: str) -> str:
    return f"level {level} {leaf}"


def _mask(found: Result, level: int, network: Any, seed: int) -> Any:
    """The mask of a level as the search stored it."""
    from secateur.prune import lottery

    initial, _, _ = lottery.begin(network, seed)
    begin = _at(level, "")
    own = {k.removeprefix(begin): v for k, v in found.arrays.items() if k.startswith(begin)}
    return trained.unpack_mask(Result({}, own), initial)


def _start(way: str, level: int, seed: int, network: Any, mask: Any) -> Start:
    """The carried ticket; its mask with new weights; its mask shuffled in each layer."""
    import jax
    import numpy as np

    from secateur.core.keys import key
    from secateur.core.trees import apply_mask
    from secateur.prune import lottery

    params, stats, _ = lottery.begin(network, seed)
    if way == "control":
        params, stats = network.init(key(seed, "initial", "control", level))
    if way == "shuffled":
        mask = lottery.shuffle_within_layers(mask, seed, "mask", "shuffled", level)
    return lottery.Start(mask, jax.tree.map(np.asarray, apply_mask(mask, params)), stats, 0)
