"""Does a high learning rate rescue new weights? Tickets and their controls under SGD with momentum.

Liu et al. 2019, section 6: trained by SGD with momentum at a high rate, a pruned network gains
nothing from the initial weights of its ticket over new random ones; at a low rate it does. Here
tickets are found and trained at several rates; beside each the same mask with new weights. The
training loss stands beside every accuracy, so that a rate at which nothing is learnt is seen.

A cell is one seed at one rate: the chain, its controls, a row a level of each. The rate falls to a
tenth at half and at three quarters of the steps, at every first rate alike.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from secateur.core.errors import SecateurError
from secateur.lab.cells import Cell, Result
from secateur.studies import gains, tickets, trained
from secateur.studies.sgd_rescue_claims import (
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

name = "sgd-rescue"
title = "Does a high learning rate rescue new weights?"
meaning = 1  # raise when results change meaning: the golden cell in the tests says when
summary = "tickets against their masks with new weights, over learning rates of SGD with momentum"
__all__ = ["branches", "citation", "claims", "figures", "notes", "sentence"]


class Fields(tickets.Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the study varies; see `tickets.Settings`.

    Attributes:
        learning_rate: multiplied by each of ``times``: the first rates that are tried.
        drops: steps at each of which the rate falls to a tenth.
    """

    optimiser: str = "momentum"
    learning_rate: float = 0.01
    times: tuple[float, ...] = (0.3, 1, 3, 10)
    drops: tuple[int, ...] = (2500, 3750)
    prune: float = 0.5
    prune_output: float = 0.25
    levels: int = 6


presets: dict[str, Fields] = {
    "quick": Fields(
        dataset="mnist5k",
        validation=500,
        hidden=(100, 50),
        steps=1200,
        drops=(600, 900),
    ),
    "mnist": Fields(),
}
seeds = {"quick": 5, "mnist": 5}


def check(fields: Fields) -> None:
    """Refuses what cannot be run, before anything is.

    Raises:
        SecateurError: one sentence: what is wrong, what was expected.
    """
    trained.recipe(fields)
    tickets.check(fields)
    if not fields.times or min(fields.times) <= 0 or len(set(fields.times)) < len(fields.times):
        raise SecateurError(
            "times lists factors of the learning rate, each above 0 and only once, not "
            f"{list(fields.times)}."
        )
    if any(not 0 < step < fields.steps for step in fields.drops):
        raise SecateurError(
            f"drops are steps between 0 and steps ({fields.steps}), not {list(fields.drops)}."
        )


def rates(fields: Fields) -> list[float]:
    """The learning rates, rising; to 12 digits, as 0.01 x 3 has 17."""
    return sorted(float(f"{fields.learning_rate * times:.12g}") for times in fields.times)


def cells(fields: Fields, seeds: Sequence[int], data: str) -> list[Cell]:
    """One a seed and rate.

    Args:
        data: SHA-256 of the data set.
    """
    told = trained.described(fields, apart=("times", "learning_rate"))
    address = trained.data_address(data)
    cost = float((2 * fields.levels + 1) * fields.steps)
    return [
        Cell(name, meaning, told, seed, {"rate": rate}, address, cost=cost)
        for seed in seeds
        for rate in rates(fields)
    ]


def takes(fields: Fields) -> dict[str, Any]:
    """What a cell takes: steps, CPU seconds a step, compiled programs, bytes of memory and disk."""
    return {
        "steps": (2 * fields.levels + 1) * fields.steps,
        "seconds_per_step": tickets.seconds_per_step(fields),
        "programs": "1 of training, 1 of evaluation",
        "memory": 1e9,
        "disk": 1e5,
    }


def sets(fields: Fields) -> Sets:
    """The three sets of a run.

    Raises:
        SecateurError: where the data are not at hand or cannot be cut like this.
    """
    return trained.sets(fields.dataset, fields.validation, fields.split)


def work(cell: Cell, inputs: Mapping[str, Result]) -> Generator[Training, Fitted, Result]:
    """A chain of tickets and its controls at one learning rate. The lab drives it."""
    rate, seed = float(cell.place["rate"]), cell.seed
    fields = msgspec.convert({**cell.fields, "learning_rate": rate, "times": [1]}, Fields)
    data = sets(fields)
    network, recipe = tickets.dense_network(fields, data), trained.recipe(fields)

    def row(way: str, level: int, begins: Start, fitted: Fitted) -> dict[str, Any]:
        told = trained.told(begins.mask, fitted, data, {"start": begins.params})
        return {"branch": branch_of(way, rate), "level": level, "way": way, "rate": rate, **told}

    ticket = yield from tickets.chain("rewind", seed, network, data, recipe, fields)
    rows = [row("ticket", one.level, one.start, one.fitted) for one in ticket]
    rows.append({**rows[0], "way": "control", "branch": branch_of("control", rate)})
    checks = [one.fitted.checks for one in ticket]
    for level in range(1, fields.levels + 1):
        begins, asked = tickets.beside(
            "control", seed, network, data, recipe, fields, ticket, level
        )
        fitted = yield asked
        rows.append(row("control", level, begins, fitted))
        checks.append(fitted.checks)
        with_new, own = rows[-1]["last"], rows[level]["last"]
        rows[level]["gain"] = 100 * (own["test_accuracy"] - with_new["test_accuracy"])
    return Result({"rows": rows}, {}, gains.together(checks))
