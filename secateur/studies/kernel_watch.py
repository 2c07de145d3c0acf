"""Kernels of dense and pruned networks while they train, and what kernels at the start foretell.

Every method's ticket at every density is trained once by the same recipe: how fast its loss falls
is compared with what its path kernel and its tangent kernel say at initialisation (Gebhart, Saxena
& Schrater 2021). At one density, ``watched``, the tangent kernel of the surviving weights is read
on the way: how far it moves, how it turns to the targets, how its spectrum changes; and the ticket
is trained once more, by full-batch descent on the squared loss, beside what its linearisation
predicts.

A cell is one ticket's training, or one point of a watched one, which reads from it. Levels 1, 2,
... are the densities, level 100 + k is the k-th point of the watch.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from secateur.core.errors import SecateurError, lookup
from secateur.lab.cells import Cell, Result
from secateur.studies import trained
from secateur.studies.kernel_watch_claims import (
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

name = "kernel-watch"
title = "Kernels over training"
meaning = 1  # raise when results change meaning: the golden cell in the tests says when
summary = "how kernels of dense and pruned networks move, and what they foretell at the start"
__all__ = ["branches", "citation", "claims", "figures", "notes", "sentence"]

DENSE = ("lenet-300-100", "synflow-fc")  # path kernels of others may refuse their pooling
WATCH = 100  # the level of a watch's first point

# How `find` is asked for each method; the ticket is iterative magnitude pruning with rewinding.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lottery": ("", {}),
    "snip": ("snip", {}),
    "synflow": ("synflow", {}),
    "ntk-sap": ("ntk-sap", {}),
    "ntt": ("ntt", {}),
    "magnitude": ("magnitude", {}),
    "random": ("random-layerwise", {}),
}


class Fields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the study varies.

    Attributes:
        dataset: a name of ``secateur data``.
        network: a built-in network, by name.
        validation: examples held out of the training part; ``split`` is the seed of that cut.
        optimiser, learning_rate, batch, steps: of the training that is watched;
            ``evaluate_every`` divides ``steps``.
        methods: branches. densities: in percent of the weights, falling.
        watched: the density, one of ``densities``, at which the kernel is read on the way.
        points: the steps at which it is, multiples of ``evaluate_every``, the first of them 0.
        images: of the kernel: as many of each class from the training images, and as many test
            images for predictions.
        linear_points: steps of full-batch descent on these images at which the linearisation is
            compared; ``rate_share`` is its rate in units of the largest that is stable by the
            ticket's own kernel.
        rounds: trainings of the lottery ticket from one density to the next.
        transfer_steps, transfer_batch: of neural tangent transfer.
    """

    dataset: str = "mnist"
    network: str = "lenet-300-100"
    validation: int = 5000
    split: int = 0
    optimiser: str = "sgd"
    learning_rate: float = 0.1
    batch: int = 60
    steps: int = 2000
    evaluate_every: int = 20
    methods: tuple[str, ...] = tuple(METHODS)
    densities: tuple[float, ...] = (30.0, 10.0, 3.0, 1.0)
    watched: float = 3.0
    points: tuple[int, ...] = (0, 20, 40, 100, 200, 400, 1000, 2000)
    images: int = 100
    linear_points: tuple[int, ...] = (0, 10, 30, 100, 300, 1000)
    rate_share: float = 0.5
    rounds: int = 2
    transfer_steps: int = 1000
    transfer_batch: int = 64


presets: dict[str, Fields] = {
    "quick": Fields(
        dataset="mnist5k",
        validation=500,
        steps=400,
        points=(0, 20, 40, 100, 200, 400),
        densities=(10.0, 3.0),
        methods=("lottery", "snip", "synflow", "random"),
        images=50,
        linear_points=(0, 10, 30, 100),
    ),
    "mnist": Fields(),
    "adam": Fields(optimiser="adam", learning_rate=1.2e-3),
}
seeds = {"quick": 3, "mnist": 5, "adam": 5}
APART = ("methods", "densities")


def check(fields: Fields) -> None:
    """Refuses what cannot be run, before anything is.

    Raises:
        SecateurError: one sentence: what is wrong, what was expected.
    """
    from secateur.networks.registry import entry

    recipe = trained.recipe(fields)
    entry(fields.network)
    if fields.network not in DENSE:
        raise SecateurError(
            f"kernels are watched on dense networks ({', '.join(DENSE)}), not {fields.network}."
        )
    for branch in fields.methods:
        lookup("method", branch, METHODS)
    falling = list(fields.densities)
    inside = all(0 < d < 100 for d in falling)
    if not falling or not inside or sorted(set(falling), reverse=True) != falling:
        raise SecateurError(f"densities are percentages between 0 and 100, falling, not {falling}.")
    if fields.watched not in falling:
        raise SecateurError(f"watched is one of densities ({falling}), not {fields.watched}.")
    for what, points, every in (
        ("points", fields.points, recipe.evaluate_every),
        ("linear_points", fields.linear_points, 10),
    ):
        rising = sorted(set(points)) == list(points) and points[:1] == (0,) and len(points) > 1
        if not rising or any(step % every for step in points):
            raise SecateurError(
                f"{what} are rising multiples of {every} that begin with 0, not {list(points)}."
            )
    if fields.points[-1] > fields.steps:
        raise SecateurError(
            f"the last of points is at most steps ({fields.steps}), not {fields.points[-1]}."
        )
    if not 0 < fields.rate_share <= 1:
        raise SecateurError(f"rate_share is in (0, 1], not {fields.rate_share}.")
    if min(fields.rounds, fields.images, fields.transfer_steps, fields.transfer_batch) < 1:
        raise SecateurError(
            "rounds, images, transfer_steps and transfer_batch are at least 1; given "
            f"{fields.rounds}, {fields.images}, {fields.transfer_steps}, {fields.transfer_batch}."
        )


def cells(fields: Fields, seeds: Sequence[int], data: str) -> list[Cell]:
    """Every cell of the study: of each seed the dense network first.

    Args:
        data: SHA-256 of the data set.
    """
    described = trained.described(fields, APART)
    data = trained.data_address(data)
    made: list[Cell] = []

    def cell(seed: int, branch: str, level: int, cost: float, **needs: Cell) -> Cell:
        place: dict[str, Any] = {"branch": branch, "level": level}
        if level < WATCH and branch != "parent":
            place["density"] = fields.densities[level - 1]
        if branch == "lottery" and level < WATCH:  # its ticket depends on those before it
            place["before"] = list(fields.densities[: level - 1])
        made.append(Cell(name, meaning, described, seed, place, data, needs, cost))
        return made[-1]

    at = fields.densities.index(fields.watched) + 1
    # Eigenvalues of each point's kernel and the descent on its images, in steps of training.
    looks = fields.steps + 3e-7 * len(fields.points) * (10 * fields.images) ** 3 / 3
    looks += fields.linear_points[-1] * fields.images / fields.batch
    watch = [WATCH + k for k in range(len(fields.points))]
    for seed in seeds:
        parent = cell(seed, "parent", 1, fields.steps + looks)
        watched = {"parent": parent}
        for branch in fields.methods:
            extra = {"ntt": 10 * fields.transfer_steps, "lottery": fields.rounds * fields.steps}
            previous: dict[str, Cell] = {}
            for level in range(1, len(fields.densities) + 1):
                cost = fields.steps + extra.get(branch, 0) + (level == at) * looks
                made_ = cell(seed, branch, level, cost, parent=parent, **previous)
                previous = {"previous": made_} if branch == "lottery" else {}
                if level == at:
                    watched[branch] = made_
        for branch, run in watched.items():
            for level in watch:
                cell(seed, branch, level, 0.0, run=run)
    return made


def takes(fields: Fields) -> dict[str, Any]:
    """What a cell takes: steps, CPU seconds a step, compiled programs, bytes of memory and disk."""
    rows = 10 * fields.images  # of a kernel of all outputs
    return {
        "steps": fields.steps,
        "seconds_per_step": 3e-3,
        "programs": "2 of training, 1 a method that scores, 4 of kernels a ticket",
        "memory": 1.2e9 + (len(fields.points) + 6) * 8 * rows**2,
        "disk": 5e5 + 4 * rows**2,
    }


def sets(fields: Fields) -> Sets:
    """The three sets of a run.

    Raises:
        SecateurError: where the data are not at hand or cannot be cut like this.
    """
    return trained.sets(fields.dataset, fields.validation, fields.split)


def work(cell: Cell, inputs: Mapping[str, Result]) -> Generator[Training, Fitted, Result]:
    """Makes a ticket, trains it and watches it; or reads one point. The lab drives it."""
    import jax
    import numpy as np

    from secateur.core import trees
    from secateur.core.keys import key
    from secateur.kernels.records import kernel_record
    from secateur.prune import lottery
    from secateur.studies import kernel_watch_reads as reads
    from secateur.train.training import Training

    fields = msgspec.convert({**cell.fields, "methods": []}, Fields)
    branch, level, seed = cell.place["branch"], int(cell.place["level"]), cell.seed
    if level >= WATCH:
        return _point(cell, fields, inputs["run"])

    data = sets(fields)
    network = trained.network_for(fields.network, data)
    initial, stats, ones = lottery.begin(network, seed)
    params, mask = initial, ones
    density = cell.place.get("density", 100.0)

    def run(start: Any, mask: Any, records: Any = ()) -> Training:
        return Training(
            network,
            start,
            stats,
            data,
            trained.recipe(fields),
            mask,
            key(seed, "train"),  # of all methods: the same examples in the same order
            records=records,
            siblings=10,
            grain=128,
        )

    if branch == "lottery":
        before = [100.0, *cell.place["before"]][-1]
        mask, last = ones, inputs["parent"]
        if "previous" in inputs:
            mask, last = trained.unpack_mask(inputs["previous"], ones), inputs["previous"]
        weights = trained.unpack(last, initial)[1]
        for number in range(1, fields.rounds + 1):
            kept = before / 100 * (density / before) ** (number / fields.rounds)
            mask = lottery.keep_largest(weights, mask, _count(ones, kept))
            if number < fields.rounds:
                fitted = yield run(trees.apply_mask(mask, initial), mask)
                weights = fitted.params
    elif branch != "parent":
        mask, params = _ticket(cell, fields, network, data, initial, stats)
    start = jax.tree.map(np.asarray, trees.apply_mask(mask, params))
    watched = branch == "parent" or density == fields.watched
    probe = reads.probe(data, fields.images)
    records = (kernel_record(probe.x, fields.points),) if watched else ()
    fitted = yield run(start, mask, records)
    values: dict[str, Any] = {
        "branch": branch,
        "level": level,
        **trained.told(mask, fitted, data, {"initial": initial, "start": start}),
        "race": reads.race(fitted),
        "foretold": reads.foretold(network, start, stats, mask, probe.x),
    }
    checks = dict(fitted.checks)
    arrays = trained.pack_mask(mask)
    if branch in ("parent", "lottery"):
        arrays |= trained.pack(mask, fitted.params)
    if branch != "parent":
        checks["exact counts"] = sum(trees.alive(mask).values()) == _count(ones, density / 100)
    if watched:
        kernels = fitted.records["ntk"]["kernel"]
        parent = inputs["parent"].arrays if inputs else {}
        values["watch"], kept = reads.watch(kernels, fields.points, probe.y, parent)
        linear = yield from reads.linear(network, start, stats, mask, probe, data, fields, seed)
        values["linear"], held = linear
        checks |= held
        arrays |= kept if branch == "parent" else {}
    return Result(values, arrays, checks)


def _count(ones: Any, density: float) -> int:
    """Kept weights: to the nearest whole number."""
    from secateur.core import trees
    from secateur.prune.schedules import nearest

    return nearest(density, sum(trees.sizes(ones).values()))


def _ticket(
    cell: Cell, fields: Fields, network: Network, data: Sets, initial: Any, stats: Any
) -> tuple[Any, Any]:
    """Mask and starting weights of a method that needs no training."""
    import jax
    import numpy as np

    from secateur.core.keys import key
    from secateur.prune.find import find

    branch, density = cell.place["branch"], cell.place["density"] / 100
    method, options = METHODS[branch]
    if method == "ntt":
        options = {"steps": fields.transfer_steps, "batch": fields.transfer_batch, **options}
    ticket = find(
        network,
        data,
        method,
        density,
        seed=key(cell.seed, "find", branch, cell.place["level"]),
        params=initial,
        stats=stats,
        progress=False,
        **options,
    )
    return ticket.mask, jax.tree.map(np.asarray, ticket.params)


def _point(cell: Cell, fields: Fields, run: Result) -> Result:
    """One point of a watch."""
    k = int(cell.place["level"]) - WATCH
    values: dict[str, Any] = {
        "branch": cell.place["branch"],
        "level": int(cell.place["level"]),
        "density": run.values["density"],
        "step": fields.points[k],
        "kernel": {what: numbers[k] for what, numbers in run.values["watch"].items()},
    }
    if k < len(fields.linear_points):
        values["linear_step"] = fields.linear_points[k]
        values["linear"] = {what: numbers[k] for what, numbers in run.values["linear"].items()}
    return Result(values)
