"""When do two copies of a ticket stay linearly connected?

Frankle, Dziugaite, Roy & Carbin, "Linear Mode Connectivity and the Lottery Ticket Hypothesis"
(2020): two copies of a network start from one point and see the data in two orders. Where neither
error nor loss rises on the straight line between what they become, the network is stable. Tickets
are said to match their dense network only where they are stable, and to become stable when they are
rewound to a later step.

A cell is one way of starting, all levels of a seed; a level is a row. Ways: the ticket (masks of
its own, rewound to the start or to a later step), the ticket's masks with new weights, those masks
shuffled, random masks. The first copy of a level says which weights go next; both copies of the
next level see the data in orders of their own.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from secateur.core.errors import SecateurError, lookup
from secateur.lab.cells import Cell, Result
from secateur.studies import tickets, trained
from secateur.studies.connectivity_claims import (
    CONTROLS,
    branches,
    citation,
    claims,
    figures,
    name_of,
    notes,
    sentence,
)

if TYPE_CHECKING:
    from secateur.core.network import Network
    from secateur.data.examples import Sets
    from secateur.features.connectivity import Line
    from secateur.prune.lottery import Start
    from secateur.train.training import Fitted, Training

    Trains = Generator[Training, Fitted, Any]

name = "connectivity"
title = "Linear connectivity of tickets"
meaning = 1  # raise when results change meaning: the golden cell in the tests says when
summary = "error and loss between two copies of a ticket, over density, rewinding and controls"
__all__ = ["branches", "citation", "claims", "figures", "notes", "sentence"]


class Fields(tickets.Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the study varies, beside what every study of tickets does (`tickets.Settings`).

    Attributes:
        rewinds: steps of the dense run from whose weights copies also start, dense and as tickets;
            multiples of evaluate_every. Step 0 is always there.
        controls: of `CONTROLS`.
        points: on a line, its ends included.
        compared: training examples on which a line is walked, the first of the training part; the
            test images are taken whole.
    """

    rewinds: tuple[int, ...] = (100, 300, 1000)
    controls: tuple[str, ...] = CONTROLS
    points: int = 30
    compared: int = 5000
    # Three levels of the usual 20 % and 10 % in one: 3.5 % of the weights are left after five.
    prune: float = 0.488
    prune_output: float = 0.271
    steps: int = 3000
    levels: int = 6


_QUICK: dict[str, Any] = {
    "dataset": "mnist5k",
    "validation": 500,
    "hidden": (100, 50),
    "steps": 600,
    "evaluate_every": 20,
    "rewinds": (20, 300),
    "compared": 1000,
}
presets: dict[str, Fields] = {
    "quick": Fields(**_QUICK),
    # A rate at which dense networks are not stable from their start.
    "fast": Fields(**_QUICK, learning_rate=0.01),
    "mnist": Fields(),
}
seeds = {"quick": 5, "fast": 5, "mnist": 5}


def check(fields: Fields) -> None:
    """Refuses what cannot be run, before anything is.

    Raises:
        SecateurError: one sentence: what is wrong, what was expected.
    """
    tickets.check(fields)
    trained.recipe(fields)
    if not fields.levels:
        raise SecateurError("levels is at least 1: without a pruned level there is no ticket.")
    for word in fields.controls:
        lookup("control", word, dict.fromkeys(CONTROLS))
    every, steps = fields.evaluate_every, fields.steps
    wrong = [k for k in fields.rewinds if k % every or not 0 < k < steps]
    if wrong:
        raise SecateurError(
            f"rewinds are multiples of evaluate_every ({every}) above 0 and below steps ({steps}), "
            f"not {wrong[0]}; step 0 is always there."
        )
    if fields.points < 3 or fields.compared < 1:
        raise SecateurError(
            "a line needs at least 3 points, one of them between its ends, and 1 example; given "
            f"points={fields.points}, compared={fields.compared}."
        )


def cells(fields: Fields, seeds: Sequence[int], data: str) -> list[Cell]:
    """Every cell of the study.

    Args:
        data: SHA-256 of the data set.
    """
    described = trained.described(fields, apart=("rewinds", "controls"))
    address = trained.data_address(data)
    made: list[Cell] = []

    def cell(seed: int, branch: str, step: int, **needs: Cell) -> Cell:
        cost = step + 2 * (fields.levels + 1) * (fields.steps - step)
        place = {"branch": branch, "step": step}
        made.append(Cell(name, meaning, described, seed, place, address, needs, cost))
        return made[-1]

    for seed in seeds:
        ticket = cell(seed, "rewind", 0)
        for step in dict.fromkeys(fields.rewinds):
            cell(seed, "late", step)
        for branch in dict.fromkeys(fields.controls):
            # Random masks follow none; those of the others are the ticket's.
            cell(seed, branch, 0, **({} if branch == "random" else {"ticket": ticket}))
    return made


def takes(fields: Fields) -> dict[str, Any]:
    """What a cell takes: steps, CPU seconds a step, compiled programs, bytes of memory and disk.

    A line of LeNet-300-100 over 2,000 images takes about 1.2 s, as long as 1,000 of its steps.
    """
    return {
        "steps": 2 * (fields.levels + 1) * fields.steps,
        "seconds_per_step": 1.6 * tickets.seconds_per_step(fields),
        "programs": f"{2 + 2 * len(fields.rewinds)} of training",
        "memory": 1e9,
        "disk": 2e5,
    }


def sets(fields: Fields) -> Sets:
    """The three sets of a run.

    Raises:
        SecateurError: where the data are not at hand or cannot be cut like this.
    """
    return trained.sets(fields.dataset, fields.validation, fields.split)


def work(cell: Cell, inputs: Mapping[str, Result]) -> Trains:
    """All levels of one way of starting, two copies each. The lab drives it."""
    from secateur.prune import lottery

    fields = msgspec.convert(cell.fields, Fields)
    data, seed, step = sets(fields), cell.seed, int(cell.place["step"])
    network, recipe = tickets.dense_network(fields, data), trained.recipe(fields)
    branch = str(cell.place["branch"])
    way = lottery.BRANCHES[branch]
    initial, stats, ones = lottery.begin(network, seed)
    begins = lottery.Start(ones, initial, stats, 0)
    if step:
        begins = yield from _later(step, seed, network, data, fields, begins)
    dense = lottery.Dense(initial, stats, initial, (begins.params, begins.stats))
    rates = tickets.rates_of(fields, network)
    own_masks = branch in ("rewind", "late")
    rows: list[dict[str, Any]] = []
    arrays: dict[str, Any] = {}
    checks: dict[str, bool] = {}
    previous = lottery.Before(ones, initial, stats)
    for level in range(0 if own_masks else 1, fields.levels + 1):
        if "ticket" in inputs:  # its mask is at hand: from that, nothing goes
            mask = _mask(inputs["ticket"], level, initial)
            previous = lottery.Before(mask, initial, stats)
            rates = dict.fromkeys(rates, 0.0)
        if level:
            begins = lottery.start(
                way, level, seed, network, dense, previous, rates, rewind_step=step
            )
        asked = lottery.training(way, level, seed, network, data, recipe, begins, shrink=False)
        first, row, held = yield from _pair(cell, fields, asked, begins)
        rows.append({"branch": name_of(branch, step), "level": level, "step": step, **row})
        checks |= {f"{words}, level {level}": value for words, value in held.items()}
        if own_masks:
            previous = lottery.Before(begins.mask, first.params, first.stats)
            arrays |= {f"level {level}/{k}": m for k, m in trained.pack_mask(begins.mask).items()}
        else:  # random masks follow one another: what was trained under them says nothing
            previous = lottery.Before(begins.mask, initial, stats)
    return Result({"rows": rows}, arrays, checks)


def _later(
    step: int, seed: int, network: Network, data: Sets, fields: Fields, begins: Start
) -> Trains:
    """The dense network of a seed after its first steps: one run, however many are asked for."""
    from secateur.prune import lottery

    recipe = trained.recipe(msgspec.structs.replace(fields, steps=step))
    fitted = yield lottery.training(None, 0, seed, network, data, recipe, begins, shrink=False)
    return lottery.Start(begins.mask, fitted.params, fitted.stats, step)


def _pair(cell: Cell, fields: Fields, asked: Training, begins: Start) -> Trains:
    """Two copies of a training and what lies between them: the first, a row, what was checked."""
    from secateur.core.trees import fingerprint
    from secateur.features.connectivity import copies

    one, other = copies(asked)
    first = yield one
    second = yield other
    start, mask = fingerprint(begins.params), fingerprint(begins.mask)
    both = [(fingerprint(t.start), fingerprint(t.mask)) for t in (one, other)]
    held = {
        "both copies have one start and one mask": both == [(start, mask)] * 2,
        "and two orders of the data": _bits(one.key) != _bits(other.key),
        **{words: value and second.checks[words] for words, value in first.checks.items()},
    }
    found = {
        "test": _line(asked, first, second, "test", fields),
        "train": _line(asked, first, second, "train", fields),
    }
    row = trained.told(begins.mask, first, asked.data, {"start": begins.params})
    row |= {
        "accuracy": (first.last["test_accuracy"] + second.last["test_accuracy"]) / 2,
        "train_accuracy": (first.last["train_accuracy"] + second.last["train_accuracy"]) / 2,
        "second": {"best": second.best, "last": second.last},
        "barrier": {key: value for part, line in found.items() for key, value in _told(part, line)},
        "stable": found["test"].stable,
        "stable_train": found["train"].stable,
        "apart": _apart(begins.params, first.params, second.params),
    }
    return first, row, held


def _line(asked: Training, first: Fitted, second: Fitted, part: str, fields: Fields) -> Line:
    from dataclasses import replace

    import numpy as np

    from secateur.features.connectivity import instability

    if part == "train":
        whole = asked.data.train
        few = whole.take(np.arange(min(fields.compared, len(whole))))
        asked = replace(asked, data=replace(asked.data, train=few))
    return instability(asked, first, second, part=part, points=fields.points)


def _told(part: str, line: Line) -> list[tuple[str, float]]:
    """Each barrier by its name: error and loss, over the mean of the ends and over their chord."""
    return [
        (f"{part}_{of}" + ("" if convention == "mean" else "_chord"), line.barrier(of, convention))
        for of in ("error", "loss")
        for convention in ("mean", "chord")
    ]


def _apart(start: Any, first: Any, second: Any) -> float:
    """Distance between the copies over the mean distance that they went; sqrt 2 if at random."""
    import jax
    import numpy as np

    flat = [
        np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])
        for tree in (start, first, second)
    ]
    went = [np.linalg.norm(end - flat[0]) for end in flat[1:]]
    return float(np.linalg.norm(flat[1] - flat[2]) / np.mean(went))


def _mask(ticket: Result, level: int, like: Any) -> Any:
    """The ticket's mask of a level."""
    prefix = f"level {level}/"
    own = {k.removeprefix(prefix): a for k, a in ticket.arrays.items() if k.startswith(prefix)}
    return trained.unpack_mask(Result({}, own), like)


def _bits(key: Any) -> list[int]:
    import jax
    import numpy as np

    found: list[int] = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return found
