"""Neural tangent transfer in two stages: a student is made like its dense teacher, then trained.

Liu & Zenke, ICML 2020. A cell is one training: of the dense network, or of one method's ticket at
one density; for transfer the cell holds both stages. All trainings of a seed begin with the same
dense weights and see the same examples in the same order, so that methods are paired.

A seed of LeNet-300-100 on MNIST takes about 8 CPU minutes of transfer (18,000 steps of 20 to 30 ms;
a third of that by the full kernel) and 1 of training a cell.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from secateur.core.errors import SecateurError, lookup
from secateur.lab.cells import Cell, Result
from secateur.studies import trained
from secateur.studies.figures import Curves
from secateur.studies.ntt_claims import CLAIMS
from secateur.studies.ntt_words import branches, citation, notes, sentence

if TYPE_CHECKING:
    from secateur.data.examples import Sets
    from secateur.train.training import Fitted, Training

name = "ntt"
title = "Neural tangent transfer"
meaning = 1  # raise when results change meaning: the golden cell in the tests says when
claims = CLAIMS
summary = "networks made to learn like their dense teacher before they are trained"
__all__ = ["branches", "citation", "notes", "sentence"]

# Branch -> a method's name and options; the two of `_DERIVED` follow the branch ntt.
TRANSFERS: dict[str, dict[str, Any]] = {
    "ntt": {},
    "ntt-full": {"kernel": "full"},
    "ntt-global": {"ranking": "everywhere"},
}
_DERIVED = ("ntt-mask", "ntt-shuffled")
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    **{branch: ("ntt", options) for branch, options in TRANSFERS.items()},
    **dict.fromkeys(_DERIVED, ("", {})),
    "random": ("random-layerwise", {}),
    "ntt-random-variable": ("ntt-random-variable", {}),
    "ntt-random-fixed": ("ntt-random-fixed", {}),
    "snip": ("snip", {}),
    "layerwise-snip": ("layerwise-snip", {}),
    "logit-snip": ("logit-snip", {}),
    "layerwise-logit-snip": ("layerwise-logit-snip", {}),
    "magnitude-layerwise": ("magnitude", {"scope": "per-layer"}),
}


class Fields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the study varies. Only cells of transfer have the transfer's fields in their addresses.

    Attributes:
        dataset: a name of ``secateur data``. network: a built-in network, by name.
        validation: examples held out of the training part (paper: 10 %), by the seed ``split``.
        steps: of each training by Adam at ``learning_rate``; ``evaluate_every`` divides it.
        levels: percent of the weights that go, whole numbers: 97 keeps 3 %.
        methods: branches, as in the docs.
        transfer_epochs: of transfer; ``transfer_steps`` instead, where it is not 0.
        transfer_batch, transfer_rate, mask_every, gamma_squared, beta, held_out: its options, as
            `prune.transfer` has them.
    """

    dataset: str = "mnist"
    network: str = "lenet-300-100"
    validation: int = 6000
    split: int = 0
    learning_rate: float = 1e-3
    batch: int = 64
    steps: int = 42_200
    evaluate_every: int = 100
    levels: tuple[int, ...] = (97,)
    methods: tuple[str, ...] = tuple(METHODS)
    transfer_epochs: int = 20
    transfer_steps: int = 0
    transfer_batch: int = 64
    transfer_rate: float = 5e-4
    mask_every: int = 100
    gamma_squared: float = 1e-3
    beta: float = 1e-4
    held_out: float = 0.002


_LONG = ("ntt", "ntt-full", "random", "snip", "layerwise-snip", "layerwise-logit-snip")
presets: dict[str, Fields] = {
    "quick": Fields(
        dataset="mnist5k",
        validation=500,
        steps=1000,
        evaluate_every=100,
        transfer_steps=1000,
        held_out=0.02,
        methods=(*_LONG, "ntt-mask"),
    ),
    "paper": Fields(),
    "fashion": Fields(dataset="fashion-mnist"),
    # On the CPU a step of transfer of a convolutional network takes seconds: these ask for a GPU.
    "lenet-5": Fields(network="lenet-5-relu", beta=1e-5, methods=_LONG),
    "cifar10": Fields(
        dataset="cifar10",
        network="ntt-conv-4",
        validation=5000,
        steps=422_400,
        transfer_batch=32,
        beta=1e-8,
        methods=_LONG,
    ),
}
# Supervised epochs on SVHN are not stated: as many steps as on CIFAR-10.
presets["svhn"] = msgspec.structs.replace(presets["cifar10"], dataset="svhn", validation=7325)
seeds = {"quick": 3, "paper": 5, "fashion": 5, "lenet-5": 5, "cifar10": 5, "svhn": 5}

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
        name="early",
        title="Validation accuracy soon after training begins",
        caption="After 500 steps, or at the last evaluation of a shorter training.",
        y="early",
        y_title="validation accuracy",
        percent_x=True,
        percent_y=True,
        **_X,
    ),
    Curves(
        name="masked-kernel",
        title="How far transfer brings the kernel of masked training",
        caption="Mean squared difference between the student's kernel and the teacher's on "
        "held-out images, after transfer over before it. Transfer by the full kernel does not "
        "see it.",
        y="transfer.left.kernel_masked",
        y_title="distance left",
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
    from secateur.networks.registry import entry

    trained.recipe(fields)
    entry(fields.network)
    for branch in fields.methods:
        lookup("method of the study ntt", branch, METHODS)
    if not fields.methods:
        raise SecateurError("methods names at least one; known: " + ", ".join(METHODS) + ".")
    if not fields.levels or not all(1 <= level <= 99 for level in fields.levels):
        raise SecateurError(
            f"levels lists the percent of the weights that go, from 1 to 99, not {fields.levels}."
        )
    if fields.validation < 1 or fields.transfer_steps < 0:
        raise SecateurError("validation is at least 1, transfer_steps at least 0 (0: by epochs).")
    _transfer(fields, {})


_TRANSFER = (
    "transfer_epochs",
    "transfer_steps",
    "transfer_batch",
    "transfer_rate",
    "mask_every",
    "gamma_squared",
    "beta",
    "held_out",
)


def cells(fields: Fields, seeds: Sequence[int], data: str) -> list[Cell]:
    """Every cell of the study, each after those it needs.

    Args:
        data: SHA-256 of the data set.
    """
    described = trained.described(fields, ("levels", "methods"))
    plain = {k: v for k, v in described.items() if k not in _TRANSFER}
    data = trained.data_address(data)
    made: list[Cell] = []

    def cell(seed: int, branch: str, level: int, **needs: Cell) -> Cell:
        long = branch in TRANSFERS
        told = described if long or needs else plain
        cost = float(fields.steps + (15 * _transfer_steps(fields) if long else 0))
        place = {"branch": branch, "level": level}
        made.append(Cell(name, meaning, told, seed, place, data, needs, cost))
        return made[-1]

    for seed in seeds:
        cell(seed, "dense", 0)
        for level in fields.levels:
            found: dict[str, Cell] = {}
            derived = [branch for branch in _DERIVED if branch in fields.methods]
            first = ("ntt",) if derived else ()
            for branch in dict.fromkeys((*first, *fields.methods)):
                if branch not in _DERIVED:
                    found[branch] = cell(seed, branch, level)
            for branch in derived:
                cell(seed, branch, level, ntt=found["ntt"])
    return made


def _transfer_steps(fields: Fields) -> int:
    from secateur.data.registry import DATASETS

    sizes = {"mnist5k": 4000, "cifar10": 50_000, "cifar100": 50_000, "svhn": 73_257}
    lookup("data set", fields.dataset, DATASETS)
    left = (sizes.get(fields.dataset, 60_000) - fields.validation) * (1 - fields.held_out)
    return fields.transfer_steps or int(fields.transfer_epochs * left / fields.transfer_batch)


def takes(fields: Fields) -> dict[str, Any]:
    """What a cell takes: steps, CPU seconds a step, compiled programs, bytes of memory and disk.

    A step of transfer counts as 15 of training in a cell's cost.
    """
    seconds = {"lenet-300-100": 1.4e-3, "lenet-5-relu": 27e-3}.get(fields.network, 0.2)
    return {
        "steps": fields.steps,
        "seconds_per_step": seconds * fields.batch / 64,
        "programs": "1 of training, 2 of each transfer, and 1 a method that scores",
        "memory": 1.5e9,
        "disk": 5e5,
    }


def _transfer(fields: Fields, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a transfer, checked."""
    from secateur.prune.transfer import NeuralTangentTransfer

    told = {
        "epochs": fields.transfer_epochs,
        "steps": fields.transfer_steps or None,
        "batch": fields.transfer_batch,
        "rate": fields.transfer_rate,
        "mask_every": fields.mask_every,
        "gamma_squared": fields.gamma_squared,
        "beta": fields.beta,
        "held_out": fields.held_out,
        **options,
    }
    NeuralTangentTransfer(**told)
    return told


def sets(fields: Fields) -> Sets:
    """The three sets of a run.

    Raises:
        SecateurError: where the data are not at hand or cannot be cut like this.
    """
    return trained.sets(fields.dataset, fields.validation, fields.split)


def work(cell: Cell, inputs: Mapping[str, Result]) -> Generator[Training, Fitted, Result]:
    """Finds one ticket and trains it. The lab drives it."""
    import jax
    import numpy as np

    from secateur.core import trees
    from secateur.core.keys import key
    from secateur.prune import lottery
    from secateur.prune.find import find
    from secateur.train.training import Training

    fields = msgspec.convert({**cell.fields, "levels": [], "methods": []}, Fields)
    data = sets(fields)
    network = trained.network_for(fields.network, data)
    branch, level, seed = cell.place["branch"], int(cell.place["level"]), cell.seed
    initial, stats, ones = lottery.begin(network, seed)
    params, mask = initial, ones
    provenance: dict[str, Any] = {}

    if branch in _DERIVED:
        mask, params = trained.unpack(inputs["ntt"], initial, "start:")
        if branch == "ntt-mask":
            params = initial
        else:
            mask = lottery.shuffle_within_layers(mask, seed, "shuffled", branch, level)
            params = initial
    elif branch != "dense":
        method, options = METHODS[branch]
        if branch in TRANSFERS:
            options = _transfer(fields, options)
        ticket = find(
            network,
            data,
            method,
            (100 - level) / 100,
            seed=key(seed, "find", method, level),
            params=initial,
            stats=stats,
            progress=False,
            **options,
        )
        mask, params = ticket.mask, jax.tree.map(np.asarray, ticket.params)
        provenance = msgspec.to_builtins(ticket.provenance)
    start = jax.tree.map(np.asarray, trees.apply_mask(mask, params))
    fitted = yield Training(
        network,
        start,
        stats,
        data,
        trained.recipe(fields),
        mask,
        key(seed, "train"),  # of all methods: the same examples in the same order
        siblings=1 if fields.steps >= 5000 else 10,
        grain=32 if fields.steps >= 5000 else 128,
    )
    soon = int(np.searchsorted(fitted.curve["step"], 500, "right")) - 1
    values = {
        "branch": branch,
        "level": level,
        **trained.told(mask, fitted, data, {"initial": initial, "start": start}),
        "early": float(fitted.curve["validation_accuracy"][soon]),
    }
    arrays = trained.pack_mask(mask)
    if provenance:
        kept = ("method", "title", "source", "options", "scope", "rounds")
        values["provenance"] = {k: provenance[k] for k in kept}
    if branch in TRANSFERS:
        record = provenance["record"]
        curve = record["curve"]
        names = ("output", "kernel_masked", "kernel_full", "objective")
        left = {k: curve[k][-1] / curve[k][0] for k in names if curve[k][0] > 0}
        values["transfer"] = {**record, "left": left}
        arrays |= trained.pack(mask, start, "start:")
    checks = _checks(branch, level, mask, ones, inputs)
    return Result(values, arrays, {**fitted.checks, **checks})


def _checks(
    branch: str, level: int, mask: Any, ones: Any, inputs: Mapping[str, Result]
) -> dict[str, bool]:
    """The trust card of a mask."""
    from fractions import Fraction

    from secateur.core import trees

    alive, sizes = trees.alive(mask), trees.sizes(ones)
    total = sum(sizes.values())
    wanted = round(Fraction((100 - level) * total, 100))
    checks = {
        "exact counts": abs(sum(alive.values()) - wanted) <= (total * (100 - level) % 100 > 0)
    }
    if branch in ("ntt", "ntt-full", "random", *_DERIVED):
        share = Fraction(sum(alive.values()), total)
        checks["the same density in each layer"] = all(
            abs(alive[k] - share * n) <= 1 for k, n in sizes.items()
        )
    if branch == "ntt-mask":
        before = trained.unpack_mask(inputs["ntt"], ones)
        checks["mask is the transfer's"] = trees.fingerprint(before) == trees.fingerprint(mask)
    return checks
