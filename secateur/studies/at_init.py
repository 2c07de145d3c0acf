"""Tickets found before training: every method, its shuffled control, and the lottery ticket.

A cell is one training: of the dense network, of one method's ticket at one density, of a sanity
control of it (the mask shuffled within its layers; others where they are asked for), or one level
of the lottery ticket (iterative magnitude pruning with rewinding), which is found by training: 20 %
a level by one ranking over the network, so that its counts are the others'; the study `lottery`
ranks within layers. All trainings of a seed begin with the same weights and see the same examples
in the same order, so that methods are paired.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from secateur.core.errors import SecateurError, lookup
from secateur.lab.cells import Cell, Result
from secateur.studies import trained
from secateur.studies.at_init_claims import CLAIMS
from secateur.studies.at_init_presets import APART, LATER, WORK, Fields, presets, seeds
from secateur.studies.at_init_words import CONTROLS, branches, citation, notes, sentence
from secateur.studies.figures import Curves

if TYPE_CHECKING:
    from secateur.data.examples import Sets
    from secateur.train.training import Fitted, Training

name = "at-init"
title = "Tickets found before training"
meaning = 1  # raise when results change meaning: the golden cell in the tests says when
claims = CLAIMS
summary = "accuracy against weights remaining: every method before training, and its shuffled mask"
__all__ = ["Fields", "branches", "citation", "notes", "presets", "seeds", "sentence"]

_X: dict[str, Any] = {
    "x": "density",
    "x_title": "weights remaining",
    "x_log": True,
    "x_reverse": True,
}
figures = (
    Curves(
        name="accuracy",
        title="Test accuracy against weights remaining",
        caption="At the last step of training. The dense network stands at the left.",
        y="last.test_accuracy",
        y_title="test accuracy",
        percent_x=True,
        percent_y=True,
        **_X,
    ),
    Curves(
        name="lost-by-shuffling",
        title="What a method loses when its mask is shuffled within its layers",
        caption="Points of test accuracy, paired over seeds: the method's mask minus the same "
        "number of weights in each layer at random places. Near zero, only the densities of the "
        "layers mattered.",
        y="lost_by_shuffling",
        y_title="points lost",
        percent_x=True,
        **_X,
    ),
    Curves(
        name="effective",
        title="Weights that can do something",
        caption="The fraction of the kept weights that lie on an unbroken path from input to "
        "output, before training.",
        y="effective_share",
        y_title="on a live path",
        percent_x=True,
        percent_y=True,
        **_X,
    ),
)


def check(fields: Fields) -> None:
    """Refuses what cannot be run, before anything is.

    Raises:
        SecateurError: one sentence: what is wrong, what was expected.
    """
    from secateur.data.normalisation import NORMALISATIONS
    from secateur.lab.spec import values_of
    from secateur.networks.registry import option_types
    from secateur.prune.methods import METHODS as KNOWN

    trained.recipe(fields)
    values_of(f"option of {fields.network}", option_types(fields.network), fields.network_options)
    published = NORMALISATIONS.get(fields.dataset, {})
    lookup(f"normalisation of {fields.dataset}", fields.normalisation, {"own": None, **published})
    for method in fields.methods:
        lookup("method", method, KNOWN)
    for method in fields.methods or ("snip",):
        options_of(fields, method)
    for control in fields.controls:
        lookup("control", control, CONTROLS)
    if not 0 < fields.keep < 1:
        raise SecateurError(f"keep is between 0 and 1, not {fields.keep}: level c keeps keep^c.")
    if not fields.methods and not fields.ticket:
        raise SecateurError("methods names at least one method; known: " + ", ".join(KNOWN) + ".")
    if not fields.levels or min(fields.levels) < 1:
        raise SecateurError(
            f"levels lists whole numbers of at least 1, not {fields.levels}: level c keeps "
            f"{fields.keep:g}^c."
        )
    if fields.validation < 1:
        raise SecateurError(f"validation is at least 1, not {fields.validation}.")


def cells(fields: Fields, seeds: Sequence[int], data: str) -> list[Cell]:
    """Every cell of the study, each after those it needs.

    Args:
        data: SHA-256 of the data set.
    """
    described = trained.described(fields, APART, LATER)
    data, cost = trained.data_address(data), float(fields.steps)
    made = []

    def cell(seed: int, branch: str, level: int, **needs: Cell) -> Cell:
        own = _texts(fields, branch.partition(" ")[0])
        told = {**described, "method_options": own} if own else described
        place = {"branch": branch, "level": level}
        made.append(Cell(name, meaning, told, seed, place, data, needs, cost))
        return made[-1]

    for seed in seeds:
        dense = cell(seed, "dense", 0)
        tickets = [dense]
        if fields.ticket:
            for level in range(1, max(fields.levels) + 1):
                tickets.append(cell(seed, "ticket", level, previous=tickets[-1]))
        for level in fields.levels:
            found = {method: cell(seed, method, level) for method in fields.methods}
            if fields.ticket:
                found["ticket"] = tickets[level]
            for method, masked in found.items():
                for control in (*(("shuffled",) if fields.shuffled else ()), *fields.controls):
                    if _makes_sense(control, method):
                        cell(seed, f"{method} {control}", level, mask=masked)
    return made


def _makes_sense(control: str, method: str) -> bool:
    """Whether a control of a method is anything but the method itself, and can be made."""
    from secateur.prune.criterion import Construction
    from secateur.prune.methods import load

    if control == "shuffled" or method == "ticket":
        return control == "shuffled"
    if control == "reinitialised":
        return True
    needs = {"random-labels": {"labels"}, "noise": {"images"}}.get(control, set())
    kind = load(method)
    return not issubclass(kind, Construction) and method != "random" and needs <= kind.needs


def takes(fields: Fields) -> dict[str, Any]:
    """What a cell takes: steps, CPU seconds a step, compiled programs, bytes of memory and disk."""
    seconds = {"lenet-300-100": 1.25e-3, "lenet-5-relu": 25e-3}.get(fields.network)
    if seconds is None:  # 22 billion multiply-adds a second, as measured for ResNet-20 at batch 128
        seconds = 60 * 3 * WORK.get(fields.network, 1000) / 22_000  # of others a guess
    return {
        "steps": fields.steps,
        "seconds_per_step": seconds * fields.batch / 60,
        "programs": "1 of training, and 1 a method that scores",
        "memory": 1.2e9 if fields.dataset.endswith(("mnist", "mnist5k")) else 8e9,
        "disk": 1e5,
    }


def sets(fields: Fields) -> Sets:
    """The three sets of a run.

    Raises:
        SecateurError: where the data are not at hand or cannot be cut like this.
    """
    return trained.sets(fields.dataset, fields.validation, fields.split, fields.normalisation)


def _texts(fields: Fields, method: str) -> list[str]:
    """The options of one method, as they are written."""
    return [text for text in fields.method_options if text.startswith(f"{method}.")]


def options_of(fields: Fields, method: str) -> dict[str, Any]:
    """What `find` is told of a method beyond its paper's choices.

    Raises:
        SecateurError: for an option that no method has, or a value of the wrong type.
    """
    from secateur.lab.spec import values_of
    from secateur.prune.methods import METHODS as KNOWN
    from secateur.prune.methods import option_types

    for text in fields.method_options:
        lookup("method in method_options", text.partition(".")[0], KNOWN)
    kinds = {"rounds": int, "scope": str, "schedule": str, **option_types(method)}
    told = [text.removeprefix(f"{method}.") for text in _texts(fields, method)]
    return values_of(f"option of {method}", kinds, told)


def kept(weights: int, level: int, keep: float = 0.8) -> int:
    """How many weights level ``level`` keeps: keep^level of all, to the nearest whole number."""
    return int(keep**level * weights + 0.5)


def work(cell: Cell, inputs: Mapping[str, Result]) -> Generator[Training, Fitted, Result]:
    """Finds one mask and trains it. The lab drives it."""
    import jax
    import numpy as np

    from secateur.core import trees
    from secateur.core.keys import key
    from secateur.prune import lottery
    from secateur.prune.controls import control
    from secateur.prune.examine import examine
    from secateur.prune.find import find
    from secateur.prune.magnitude import keep_largest
    from secateur.train.training import Training

    fields = msgspec.convert({**cell.fields, "levels": [], "methods": []}, Fields)
    data = sets(fields)
    network = trained.network_for(fields.network, data, fields.network_options)
    branch, level, seed = cell.place["branch"], int(cell.place["level"]), cell.seed
    initial, stats, ones = lottery.begin(network, seed)
    weights = sum(trees.sizes(ones).values())
    params, provenance = initial, {}
    method, _, changed = branch.partition(" ")

    if branch == "dense":
        mask = ones
    elif branch == "ticket":
        before = inputs["previous"]
        outer = ones if level == 1 else trained.unpack_mask(before, ones)
        last = trained.unpack(before, initial)[1]
        mask = keep_largest(last, outer, kept(weights, level, fields.keep))
    elif changed == "shuffled":
        mask = trained.unpack_mask(inputs["mask"], ones)
        mask = lottery.shuffle_within_layers(mask, seed, "shuffled", branch, level)
    else:
        ticket = find(
            network,
            data,
            method,
            fields.keep**level,
            seed=key(seed, "find", method, level),
            params=initial,
            stats=stats,
            progress=False,
            **options_of(fields, method),
        )
        if changed:
            given = {"data": data, "params": initial, "stats": stats, "progress": False}
            ticket = control(ticket, network, changed, seed, **given)
        mask, params = ticket.mask, ticket.params
        told = msgspec.to_builtins(ticket.provenance)
        provenance = {k: told[k] for k in ("title", "source", "options", "scope", "rounds", "bn")}
    start = jax.tree.map(np.asarray, trees.apply_mask(mask, params))
    health = examine(network, mask, params=params, stats=stats, ntk=False)
    fitted = yield Training(
        network,
        start,
        stats,
        data,
        trained.recipe(fields),
        mask,
        key(seed, "train"),  # of all methods: the same examples in the same order
        siblings=10,
        grain=128,
    )
    values = {
        "branch": branch,
        "level": level,
        **trained.told(mask, fitted, data, {"initial": initial, "start": start}),
        "collapsed": health.collapsed,
        "path_trace": {"log10": health.values()["path_trace"]},
    }
    if health.effective_density is not None:
        values["effective_share"] = health.effective_density / health.density
    if changed:
        whole = inputs["mask"].values["last"]["test_accuracy"]
        lost = "lost_by_shuffling" if changed == "shuffled" else "lost_by_control"
        values[lost] = 100 * (whole - fitted.last["test_accuracy"])
        values["method"] = method
    if provenance:
        values["provenance"] = provenance
    arrays = trained.pack_mask(mask)
    if branch in ("dense", "ticket"):
        arrays |= trained.pack(mask, fitted.params)
    wanted = kept(weights, level, fields.keep)
    checks = {**fitted.checks, **_checks(branch, wanted, mask, ones, inputs)}
    return Result(values, arrays, checks)


def _checks(
    branch: str, wanted: int, mask: Any, ones: Any, inputs: Mapping[str, Result]
) -> dict[str, bool]:
    """The trust card of a mask."""
    from secateur.core import trees

    alive = trees.alive(mask)
    checks = {}
    method, _, changed = branch.partition(" ")
    if method == "phew":  # whole walks: an end may be over
        over = sum(alive.values()) - wanted
        checks["count within one walk of what was asked"] = 0 <= over < len(alive)
    else:
        checks["exact counts"] = sum(alive.values()) == wanted
    if changed in ("shuffled", "reinitialised"):
        before = trained.unpack_mask(inputs["mask"], ones)
        checks["as many weights in each layer as the method's mask"] = trees.alive(before) == alive
    return checks
