"""Lottery tickets of an MLP on MNIST, lazy and rich: what the output scale alpha does to them.

Kumar, figure 6: alpha times the logits, for three ways of going on after pruning. His toy says that
small alpha keeps tickets good longest, his MNIST that large alpha does, and he leaves open why.
The *arms* here separate what differs between the two: the optimiser, whether the outputs at the
start are subtracted, and a loss whose labels have a size. One more arm starts from large weights,
fits at once and generalises late (Liu, Michaud & Tegmark 2023).

A cell is one arm, one alpha (or scale of the weights) and one seed: the dense network, trained
once, and from it every level of each way of going on. Each level is a row.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from secateur.core.errors import SecateurError, lookup
from secateur.lab.cells import Cell, Result
from secateur.studies import gains, subsets, tickets, trained
from secateur.studies.lazy_mnist_claims import (
    ARMS,
    BATCH,
    LARGE,
    LATE,
    WAYS,
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
    from secateur.prune.lottery import Level
    from secateur.train.training import Fitted, Training

name = "lazy-mnist"
title = "Lazy and rich tickets on MNIST"
meaning = 1  # raise when results change meaning: the golden cell in the tests says when
summary = "accuracy against weights remaining over the output scale, optimiser, centring and loss"
__all__ = ["branches", "citation", "claims", "figures", "notes", "sentence"]


class Fields(tickets.Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the study varies, beside the settings of a ticket (``learning_rate`` is Adam's).

    Attributes:
        alphas: output scales.
        arms: of `ARMS`.
        ways: rewind, chain (new weights at each level), none.
        descent_rate: of plain descent on cross-entropy at alpha 1; over alpha^2 at others.
            ``square_rate`` is the same on the squared loss, whose curvature is larger.
        probe: images at which the movement of the tangent kernel is measured.
        weight_scales: of the arm that starts from large weights; none: no such arm. It trains on
            ``few`` examples for ``late_steps`` with (decoupled) ``weight_decay`` under Adam, and
            loses ``late_prune`` of its weights at each of ``late_levels`` levels.
    """

    alphas: tuple[float, ...] = (0.5, 1.0, 4.0, 16.0)
    arms: tuple[str, ...] = tuple(ARMS)
    ways: tuple[str, ...] = tuple(WAYS)
    descent_rate: float = 0.1
    square_rate: float = 0.005
    probe: int = 20
    weight_scales: tuple[float, ...] = (1.0, 8.0)
    few: int = 1000
    late_steps: int = 8000
    late_levels: int = 2
    late_prune: float = 0.64
    weight_decay: float = 0.3


_QUICK = Fields(
    dataset="mnist5k",
    validation=500,
    hidden=(100, 50),
    steps=600,
    evaluate_every=60,
    prune=0.36,  # two levels of a fifth at once
    prune_output=0.19,
    levels=9,
    arms=("adam", "sgd", "sgd-centred", "square-centred"),
)
presets: dict[str, Fields] = {
    "quick": _QUICK,
    "scales": msgspec.structs.replace(
        _QUICK,
        arms=("adam", "adam-scaled"),
        alphas=(1 / 64, 1 / 16, 0.25, 0.5, 1.0, 4.0, 16.0),
        weight_scales=(),
    ),
    "long": msgspec.structs.replace(
        _QUICK,
        arms=("sgd-centred",),
        alphas=(1.0, 4.0, 16.0),
        ways=("rewind",),
        steps=6000,
        evaluate_every=600,
        weight_scales=(),
    ),
    "arms": msgspec.structs.replace(_QUICK, arms=tuple(ARMS), weight_scales=()),
    "mnist": Fields(arms=("adam", "sgd-centred"), weight_scales=()),
}
seeds = {"quick": 3, "scales": 5, "long": 3, "arms": 5, "mnist": 3}


def check(fields: Fields) -> None:
    """Refuses what cannot be run, before anything is.

    Raises:
        SecateurError: one sentence: what is wrong, what was expected.
    """
    tickets.check(fields)
    for arm in fields.arms:
        _recipe(fields, arm, 1.0)
    if fields.weight_scales:
        late = msgspec.structs.replace(
            fields,
            levels=fields.late_levels,
            prune=fields.late_prune,
            prune_output=fields.late_prune / 2,
        )
        tickets.check_survivors(late)
    if fields.arms and not fields.ways:
        raise SecateurError(f"ways names at least one of {', '.join(WAYS)}.")
    for way in fields.ways:
        lookup("way of going on", way, WAYS)
    scales = (*fields.alphas, *fields.weight_scales)
    if not scales or min(scales) <= 0:
        raise SecateurError(f"alphas and weight_scales are numbers above 0, not {list(scales)}.")
    if min(fields.descent_rate, fields.square_rate, fields.weight_decay) <= 0:
        raise SecateurError(
            "descent_rate, square_rate and weight_decay are above 0; given "
            f"{fields.descent_rate}, {fields.square_rate}, {fields.weight_decay}."
        )
    if fields.probe < 2 or min(fields.late_steps, fields.late_levels) < 1 or fields.few < BATCH:
        raise SecateurError(
            f"probe is at least 2, few at least a batch of {BATCH}, late_steps and late_levels at "
            f"least 1; given {fields.probe}, {fields.few}, {fields.late_steps}, "
            f"{fields.late_levels}."
        )
    if not 0 < fields.late_prune < 1 or fields.late_steps % LATE:
        raise SecateurError(
            f"late_prune is in (0, 1) and late_steps a multiple of {LATE}; given "
            f"{fields.late_prune}, {fields.late_steps}."
        )


def cells(fields: Fields, seeds: Sequence[int], data: str) -> list[Cell]:
    """Every cell of the study.

    Args:
        data: SHA-256 of the data set.
    """
    told = trained.described(fields, apart=("alphas", "arms", "weight_scales"))
    address = trained.data_address(data)
    cost = fields.steps * (1 + fields.levels * len(fields.ways))
    late = fields.late_steps * (1 + 2 * fields.late_levels)
    made = []
    for seed in seeds:
        for arm in fields.arms:
            for alpha in fields.alphas:
                place = {"arm": arm, "scale": alpha}
                made.append(Cell(name, meaning, told, seed, place, address, {}, cost))
        for scale in fields.weight_scales:
            place = {"arm": LARGE, "scale": scale}
            made.append(Cell(name, meaning, told, seed, place, address, {}, late))
    return made


def takes(fields: Fields) -> dict[str, Any]:
    """What a cell takes: steps, CPU seconds a step, compiled programs, bytes of memory and disk."""
    return {
        "steps": fields.steps * (1 + fields.levels * len(fields.ways)),
        "seconds_per_step": tickets.seconds_per_step(fields),
        "programs": "1 an arm, 1 of the kernel",
        "memory": 1e9,
        "disk": 5e4,
    }


def sets(fields: Fields) -> Sets:
    """The three sets of a run.

    Raises:
        SecateurError: where the data are not at hand or cannot be cut like this.
    """
    return trained.sets(fields.dataset, fields.validation, fields.split)


def work(cell: Cell, inputs: Mapping[str, Result]) -> Generator[Training, Fitted, Result]:
    """Every level of each way of one arm, or the arm that generalises late. The lab drives it."""
    fields = msgspec.convert(cell.fields, Fields)
    if cell.place["arm"] == LARGE:
        from secateur.studies.lazy_mnist_late import late

        return (yield from late(cell, fields))
    return (yield from _arm(cell, fields, sets(fields)))


@dataclass(frozen=True)
class _Scaled:
    """Gives a training its output scale: alpha, and the point at which outputs are centred."""

    alpha: float
    centred: bool
    rewound: bool

    def __call__(self, level: int, training: Training) -> Training:
        from dataclasses import replace

        from secateur.networks.lazy import with_scale

        inner = training.stats["network"]
        # A ticket that is not rewound keeps the dense start: a centre that moved would be none.
        here = self.centred and (self.rewound or level == 0)
        origin = (training.start, inner) if here else None
        return replace(training, stats=with_scale(training.stats, self.alpha, origin))


def _arm(cell: Cell, fields: Fields, data: Sets) -> Generator[Training, Fitted, Result]:
    from secateur.networks.lazy import scaled_output

    arm, alpha, seed = cell.place["arm"], float(cell.place["scale"]), cell.seed
    centred = ARMS[arm].centred
    base = tickets.dense_network(fields, data)
    network, recipe = scaled_output(base, centred), _recipe(fields, arm, alpha)
    rows: list[dict[str, Any]] = []
    first, gone = None, 0
    checks: list[dict[str, bool]] = []
    for way in fields.ways:
        change = _Scaled(alpha, centred, way != "none")
        found = yield from tickets.chain(
            way, seed, network, data, recipe, fields, first=first, change=change
        )
        first = found[0]
        for level in found:
            about = {"arm": arm, "alpha": alpha, "way": way}
            row = _row(fields, base, network, data, level, recipe.loss, about)
            gone += row is None
            if row is not None:
                rows.append(row)
        # A training that diverged has no finite weights, and is told as such.
        checks += [one.fitted.checks for one in found if _finite(one)]
    split = {**data.split, "train": len(data.train.labels)}
    values = {"arm": arm, "diverged": gone, "split": split, "rows": rows}
    return Result(values, {}, gains.together(checks))


def _finite(level: Level) -> bool:
    import jax
    import numpy as np

    return all(bool(np.all(np.isfinite(leaf))) for leaf in jax.tree.leaves(level.fitted.params))


def _row(
    fields: Fields,
    base: Network,
    network: Network,
    data: Sets,
    level: Level,
    loss: str,
    about: Mapping[str, Any],
) -> dict[str, Any] | None:
    """One level of one way; None where its training diverged."""
    from secateur.core.trees import density
    from secateur.features.laziness import laziness
    from secateur.train.evaluation import evaluator

    if not _finite(level):
        return None
    arm, way, end = about["arm"], about["way"], level.fitted
    moved = laziness(
        base,
        level.start.params,
        end.params,
        subsets.probe(data, fields.probe)[0],
        mask=level.start.mask,
    )
    of = lambda value: {arm: {way: value}}
    train = evaluator(network, data, "train", loss=loss)(end.params, end.stats)
    return {
        "branch": name_of(about["alpha"]),
        # A run has one row a level; ways and arms stand one behind the other.
        "level": level.level + 100 * list(WAYS).index(way) + 1000 * list(ARMS).index(arm),
        "depth": level.level,
        "alpha": about["alpha"],
        "way": way,
        "density": density(level.start.mask),
        "accuracy": of(end.last["test_accuracy"]),
        "early": of(end.best["test_accuracy"]),
        "train_accuracy": of(train.accuracy),
        "moved": of(moved.weights),
        "kernel_moved": of(moved.kernel),
        "kernel_turned": of(moved.rotation),
    }


def _recipe(fields: Fields, arm: str, alpha: float) -> Any:
    from dataclasses import replace

    from secateur.networks.lazy import comparable_rate

    way = lookup("arm", arm, ARMS)
    base = fields.square_rate if way.loss == "mse" else fields.descent_rate
    base = fields.learning_rate if way.optimiser == "adam" else base
    rate = comparable_rate(base, alpha=alpha, optimiser=way.optimiser) if way.scaled else base
    made = trained.recipe(
        msgspec.structs.replace(
            fields, optimiser=way.optimiser, learning_rate=rate, weight_decay=0.0
        )
    )
    return replace(made, loss=way.loss)
