"""Do tickets learn the features of their dense parent? Both side by side through training.

Kumar, figure 5 and the conjecture of section 2.2: the Gram matrices H H^T of the pre-activations of
ticket and dense network differ at the start and come together as both are trained, at every level
of sparsity; without rewinding, or with other random weights, they do not. Beside the ticket stand
its mask with new weights, its mask shuffled inside each layer, and the network that is not rewound.
All are compared with the dense network at equal steps and on the same examples.

The toy is his committee machine, trained through its closed form; the other world an MLP on MNIST.
A cell is one output scale and one seed: all levels of all four.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from secateur.core.errors import SecateurError, lookup
from secateur.lab.cells import Cell, Result
from secateur.studies import tickets, trained
from secateur.studies.feature_dynamics_claims import (
    branches,
    citation,
    claims,
    figures,
    notes,
    sentence,
)

if TYPE_CHECKING:
    from secateur.data.examples import Sets
    from secateur.train.training import Fitted, Training

name = "feature-dynamics"
title = "Features of tickets and of their parent"
meaning = 2  # raise when results change meaning: the golden cell in the tests says when
summary = "Gram matrices of ticket and dense network through training, beside three controls"
__all__ = ["branches", "citation", "claims", "figures", "notes", "sentence"]

WORLDS = {"toy": "the committee machine", "images": "an MLP on a data set"}


class Fields(tickets.Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the study varies, beside the settings of a ticket.

    Attributes:
        world: "toy" or "images". The toy takes ``steps``, ``prune`` and ``levels`` of a ticket's
            settings alone.
        alphas: output scales; plain descent has a rate over alpha squared.
        centred: subtract what the network computes at its start (toy alone).
        records: how often features are compared, at equal distances in steps.
        probe: examples of the Gram matrices, of the training set.
        watched: levels whose way is drawn and, for the first seed, kept as films.
        inputs, units, teacher_units, epsilon, samples: of the toy.
    """

    world: str = "images"
    alphas: tuple[float, ...] = (1.0,)
    centred: bool = False
    levels: int = 12
    records: int = 20
    probe: int = 60
    watched: tuple[int, ...] = (4, 8)
    inputs: int = 20
    units: int = 100
    teacher_units: int = 4
    epsilon: float = 0.5
    samples: int = 200


_MNIST = Fields(dataset="mnist5k", validation=500, hidden=(100, 50), steps=600, evaluate_every=30)
presets: dict[str, Fields] = {
    "quick": Fields(world="toy", dataset="", alphas=(0.5, 4.0), steps=3000, probe=200),
    "mnist": _MNIST,
    "mnist-lazy": msgspec.structs.replace(
        _MNIST, optimiser="sgd", learning_rate=0.1, alphas=(0.5, 4.0)
    ),
    "lenet-300-100": Fields(records=10, evaluate_every=500),
}
seeds = {"quick": 10, "mnist": 5, "mnist-lazy": 5, "lenet-300-100": 3}


def check(fields: Fields) -> None:
    """Refuses what cannot be run, before anything is.

    Raises:
        SecateurError: one sentence: what is wrong, what was expected.
    """
    lookup("world", fields.world, WORLDS)
    if not fields.alphas or min(fields.alphas) <= 0:
        raise SecateurError(f"alphas are numbers above 0, not {list(fields.alphas)}.")
    if min(fields.records, fields.steps) < 1 or fields.steps % fields.records:
        raise SecateurError(
            f"steps are at least 1 and a multiple of records, at least 1: features are compared at "
            f"equal distances; given {fields.steps} and {fields.records}."
        )
    if fields.probe < 2 or fields.levels < 1:
        raise SecateurError(
            f"probe is at least 2 and levels at least 1; given {fields.probe} and {fields.levels}."
        )
    if len(set(fields.watched)) < len(fields.watched):
        raise SecateurError(f"watched lists each level once, not {list(fields.watched)}.")
    if len(fields.watched) > 2 or any(not 1 <= at <= fields.levels for at in fields.watched):
        raise SecateurError(
            f"watched lists at most two levels from 1 to {fields.levels}, not "
            f"{list(fields.watched)}."
        )
    if fields.world == "toy":
        sizes = (fields.inputs, fields.units, fields.teacher_units, fields.samples)
        if min(sizes) < 1 or fields.epsilon <= 0 or fields.dataset:
            raise SecateurError(
                "the toy has inputs, units, teacher_units and samples of at least 1, epsilon above "
                f"0 and no dataset; given {sizes}, {fields.epsilon}, {fields.dataset!r}."
            )
        if not 0 <= fields.prune < 1:
            raise SecateurError(
                f"prune is the fraction of weights that goes at a level, in [0, 1), not "
                f"{fields.prune}."
            )
        return
    if not fields.dataset or fields.centred:
        raise SecateurError(
            "the world of images has a dataset and does not centre outputs; given "
            f"{fields.dataset!r} and centred={str(fields.centred).lower()}."
        )
    trained.recipe(fields)
    tickets.check(fields)
    if (fields.steps // fields.records) % fields.evaluate_every:
        raise SecateurError(
            f"features are compared every {fields.steps // fields.records} steps, which must be a "
            f"multiple of evaluate_every ({fields.evaluate_every})."
        )


def cells(fields: Fields, seeds: Sequence[int], data: str) -> list[Cell]:
    """Every cell of the study.

    Args:
        data: SHA-256 of the data set.
    """
    told = trained.described(fields, apart=("alphas",))
    address = trained.data_address(data)
    cost = fields.steps * (1 + (5 if fields.world == "toy" else 4) * fields.levels)
    return [
        Cell(name, meaning, told, seed, {"alpha": alpha}, address, {}, cost)
        for seed in seeds
        for alpha in fields.alphas
    ]


def takes(fields: Fields) -> dict[str, Any]:
    """What a cell takes: steps, CPU seconds a step, compiled programs, bytes of memory and disk."""
    toy = fields.world == "toy"
    return {
        "steps": fields.steps * (1 + 4 * fields.levels),
        "seconds_per_step": 2e-5 if toy else tickets.seconds_per_step(fields),
        "programs": "2",
        "memory": 5e8 if toy else 1.5e9,
        "disk": 2e6,
    }


def sets(fields: Fields) -> Sets | None:
    """The three sets of a run; None for the toy, which draws its own examples.

    Raises:
        SecateurError: where the data are not at hand or cannot be cut like this.
    """
    if fields.world == "toy":
        return None
    return trained.sets(fields.dataset, fields.validation, fields.split)


def work(cell: Cell, inputs: Mapping[str, Result]) -> Generator[Training, Fitted, Result]:
    """All levels of the ticket and of what stands beside it. The lab drives it."""
    fields = msgspec.convert(cell.fields, Fields)
    data = sets(fields)
    if data is None:
        from secateur.studies.feature_dynamics_toy import toy

        yield from ()
        return toy(cell, fields)
    from secateur.studies.feature_dynamics_images import images

    return (yield from images(cell, fields, data))
