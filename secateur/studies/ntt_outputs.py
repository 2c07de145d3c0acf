"""The outputs of a dense teacher and of its pruned students over supervised training.

Liu & Zenke, ICML 2020, section 4.1, and figure 1 of its supplement: 250 images of the digit 0 and
250 of the digit 1, two linear outputs, squared loss, full-batch gradient descent. A student made by
neural tangent transfer follows its teacher; one pruned at random does not.

A cell is one point of one run's curve; the cell of the last point trains, the others read from it.
On LeNet-300-100 a run takes about 2 CPU minutes at a transfer batch of 64. At the paper's 500 a
step multiplies 15 billion pairs: about a second, an hour in all; of LeNet-5 more.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from secateur.core.errors import SecateurError, lookup
from secateur.lab.cells import Cell, Result
from secateur.lab.verdicts import Claim
from secateur.studies import trained
from secateur.studies.figures import Branch, Curves
from secateur.studies.measured import Measured, Row
from secateur.studies.ntt_words import citation

if TYPE_CHECKING:
    from secateur.data.examples import Sets
    from secateur.train.training import Fitted, Training

name = "ntt-outputs"
title = "Outputs of teacher and student"
meaning = 1  # raise when results change meaning: the golden cell in the tests says when
summary = "whether a pruned network's outputs follow the dense network's over training"
__all__ = ["citation"]

STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ntt": ("ntt", {}),
    "ntt-full": ("ntt", {"kernel": "full"}),
    "random": ("random-layerwise", {}),
    "magnitude": ("magnitude", {"scope": "per-layer"}),
}
branches = (
    Branch("teacher", "dense teacher", "The dense network itself."),
    Branch("ntt", "transfer", "Neural tangent transfer by the kernel of masked training."),
    Branch("ntt-full", "transfer, full kernel", "The same by the kernel of the published code."),
    Branch("random", "random", "Each layer's share at random places, the teacher's weights."),
    Branch("magnitude", "magnitude", "The teacher's largest weights: where transfer begins."),
)


class Fields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the study varies.

    Attributes:
        dataset: a name of ``secateur data``; of its classes 0 and 1 the first ``images`` / 2 each.
        network: a built-in network, by name, with two outputs.
        steps: of gradient descent at ``learning_rate``, on all images at once; ``points`` of the
            curve, which divide it.
        pruned: percent of the weights that go. students: branches.
        transfer_steps, transfer_batch, transfer_rate, gamma_squared, mask_every: of transfer
            without weight decay.
    """

    dataset: str = "mnist"
    network: str = "lenet-300-100"
    images: int = 500
    steps: int = 1000
    points: int = 20
    learning_rate: float = 0.01
    pruned: int = 97
    students: tuple[str, ...] = tuple(STUDENTS)
    transfer_steps: int = 5000
    transfer_batch: int = 500
    transfer_rate: float = 1e-3
    gamma_squared: float = 1e-5
    mask_every: int = 100


_CNN: dict[str, Any] = {"network": "lenet-5-relu", "transfer_rate": 5e-4, "gamma_squared": 1e-6}
presets: dict[str, Fields] = {
    "quick": Fields(dataset="mnist5k", transfer_steps=2000, transfer_batch=64),
    "mlp": Fields(transfer_batch=64),
    "paper": Fields(),
    "cnn": Fields(transfer_batch=32, students=("ntt", "random"), **_CNN),
    "cnn-paper": Fields(**_CNN),
}
seeds = {"quick": 3, "mlp": 3, "paper": 3, "cnn": 3, "cnn-paper": 3}

_X: dict[str, Any] = {"x": "step", "x_title": "steps of training"}
figures = (
    Curves(
        name="ones",
        title="The output for 1 on images of a 1",
        caption="Mean over the images that are trained on. The target is 1.",
        y="outputs.one_of_ones",
        y_title="output",
        **_X,
    ),
    Curves(
        name="zeros",
        title="The output for 1 on images of a 0",
        caption="Mean over the images that are trained on. The target is 0.",
        y="outputs.one_of_zeros",
        y_title="output",
        **_X,
    ),
    Curves(
        name="apart",
        title="How far the student's outputs are from the teacher's",
        caption="Root of the mean square of the difference, both outputs of all images.",
        y="apart",
        y_title="distance",
        **_X,
    ),
)


def _trajectory(rows: Sequence[Row]) -> dict[int, float]:
    """per seed: the student's distance from the teacher's curve over that of random pruning."""
    found: dict[tuple[str, int], float] = {
        (row["branch"], row["seed"]): row["trajectory"] for row in rows if "trajectory" in row
    }
    both = sorted(s for branch, s in found if branch == "ntt" and ("random", s) in found)
    return {s: found["ntt", s] / max(found["random", s], 1e-30) for s in both}


claims = (
    Measured(
        Claim(
            "NTT-9",
            "Liu & Zenke 2020, figure 1",
            "A student made by transfer follows its teacher's outputs; one pruned at random does "
            "not.",
            "distance of the student's outputs from the teacher's over all of training, transfer "
            "over random",
            "below",
            0.5,
            {"dataset": "mnist", "images": 500, "transfer_steps": 5000, "transfer_batch": 500},
            unit="ratio",
        ),
        _trajectory,
    ),
)


def sentence(rows: Sequence[Row], fields: Any, data: str) -> str:
    """What was run on what data, and how far the students were from the teacher."""
    begun = f"{fields.network} with {100 - fields.pruned} % of its weights in each layer, "
    begun += f"{fields.images} images of two classes. Data: {data}."
    labels = {branch.name: branch.label for branch in branches}
    far: dict[str, list[float]] = {}
    for row in rows:
        if "trajectory" in row and row["branch"] != "teacher":
            far.setdefault(row["branch"], []).append(row["trajectory"])
    said = ", ".join(f"{labels[k]} {sum(v) / len(v):.2f}" for k, v in far.items())
    return f"{begun} Distance from the teacher's outputs, relative to their size: {said}."


def notes(rows: Sequence[Row], fields: Any) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    said = ["The loss is half the squared distance to the one-hot label, averaged over images."]
    if fields.transfer_batch < fields.images:
        said.append(
            f"Transfer saw {fields.transfer_batch} images a step; the paper's saw all "
            f"{fields.images}."
        )
    return said


def check(fields: Fields) -> None:
    """Refuses what cannot be run, before anything is.

    Raises:
        SecateurError: one sentence: what is wrong, what was expected.
    """
    from secateur.networks.registry import entry

    _recipe(fields)
    entry(fields.network)
    for branch in fields.students:
        lookup("student", branch, STUDENTS)
    if not 1 <= fields.pruned <= 99:
        raise SecateurError(f"pruned is a percentage from 1 to 99, not {fields.pruned}.")
    if fields.images < 4 or fields.images % 2:
        raise SecateurError(f"images is even and at least 4, not {fields.images}.")
    if fields.transfer_batch > fields.images:
        raise SecateurError(
            f"transfer_batch is at most the number of images ({fields.images}), not "
            f"{fields.transfer_batch}."
        )
    _options(fields)


def cells(fields: Fields, seeds: Sequence[int], data: str) -> list[Cell]:
    """Every cell of the study: of each run its training first, then the other points.

    Args:
        data: SHA-256 of the data set.
    """
    described = msgspec.to_builtins(fields)
    del described["students"]
    data = trained.data_address(data)
    made: list[Cell] = []

    def cell(seed: int, branch: str, level: int, cost: float, **needs: Cell) -> Cell:
        place = {"branch": branch, "level": level}
        made.append(Cell(name, meaning, described, seed, place, data, needs, cost))
        return made[-1]

    last = fields.points
    for seed in seeds:
        teacher = cell(seed, "teacher", last, fields.steps)
        runs = {"teacher": teacher}
        for branch in fields.students:
            extra = 3 * fields.transfer_steps if STUDENTS[branch][0] == "ntt" else 0
            runs[branch] = cell(seed, branch, last, fields.steps + extra, teacher=teacher)
        for branch, run in runs.items():
            for level in range(last):
                cell(seed, branch, level, 0.0, run=run, teacher=teacher)
    return made


def takes(fields: Fields) -> dict[str, Any]:
    """What a cell takes: steps, CPU seconds a step, compiled programs, bytes of memory and disk."""
    seconds = {"lenet-300-100": 8e-3, "lenet-5-relu": 200e-3}.get(fields.network, 1.0)
    return {
        "steps": fields.steps,
        "seconds_per_step": seconds * (fields.transfer_batch / 64) ** 2,
        "programs": "1 of training, 2 of each transfer",
        "memory": 2e9,
        "disk": 2e5,
    }


def _recipe(fields: Fields) -> Any:
    from secateur.train.recipes import Recipe

    if fields.points < 1 or fields.steps % fields.points:
        raise SecateurError(f"points ({fields.points}) divides steps ({fields.steps}).")
    return Recipe(
        "sgd",
        fields.learning_rate,
        batch=fields.images,
        steps=fields.steps,
        evaluate_every=fields.steps // fields.points,
        loss="mse",
    )


def _options(fields: Fields) -> dict[str, Any]:
    """The options of transfer, checked."""
    from secateur.prune.transfer import NeuralTangentTransfer

    told: dict[str, Any] = {
        "steps": fields.transfer_steps,
        "batch": fields.transfer_batch,
        "rate": fields.transfer_rate,
        "gamma_squared": fields.gamma_squared,
        "mask_every": fields.mask_every,
        "beta": 0.0,
        "held_out": 0.0,
    }
    NeuralTangentTransfer(**told)
    return told


def sets(fields: Fields) -> Sets:
    """The images of two classes: the first ones to train on, the next to validate, all to test.

    Raises:
        SecateurError: where the data are not at hand, or have too few images of a class.
    """
    return _sets(fields.dataset, fields.images)


@lru_cache(maxsize=2)
def _sets(dataset: str, images: int) -> Sets:
    import numpy as np

    from secateur.data.examples import Sets
    from secateur.data.registry import load

    held = load(dataset)
    of = [np.flatnonzero(held.train.labels == label) for label in (0, 1)]
    half = images // 2
    if min(map(len, of)) <= half:
        raise SecateurError(f"{dataset} has fewer than {half + 1} images of a class to train on.")
    first = np.sort(np.concatenate([rows[:half] for rows in of]))
    after = np.sort(np.concatenate([rows[half : 2 * half] for rows in of]))
    return Sets(
        name=held.name,
        train=held.train.take(first),
        validation=held.train.take(after),
        test=held.test.take(np.flatnonzero(held.test.labels < 2)),
        classes=held.classes[:2],
        mean=held.mean,
        std=held.std,
        sha256=held.sha256,
        source=held.source,
        title=held.title,
        split={"classes": "0 and 1", "first": half},
    )


def work(cell: Cell, inputs: Mapping[str, Result]) -> Generator[Training, Fitted, Result]:
    """Trains a teacher or a student, or reads one point of its curve. The lab drives it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from secateur.core import trees
    from secateur.core.keys import key
    from secateur.data.augment import normalise
    from secateur.networks.registry import network as built_in
    from secateur.prune import lottery
    from secateur.prune.find import find
    from secateur.train.training import Training

    fields = msgspec.convert({**cell.fields, "students": []}, Fields)
    branch, level, seed = cell.place["branch"], int(cell.place["level"]), cell.seed
    if "run" in inputs:
        outputs, goal = inputs["run"].arrays["outputs"], inputs["teacher"].arrays["outputs"]
        labels = inputs["run"].arrays["labels"]
        return Result(_point(branch, level, fields, outputs, goal, labels))

    data = sets(fields)
    shape = tuple(data.train.images.shape[1:])
    network = built_in(fields.network, input_shape=shape, outputs=2)
    initial, stats, ones = lottery.begin(network, seed)
    params, mask = initial, ones
    record: dict[str, Any] = {}
    if branch != "teacher":
        method, options = STUDENTS[branch]
        ticket = find(
            network,
            data,
            method,
            (100 - fields.pruned) / 100,
            seed=key(seed, "find", branch),
            params=initial,
            stats=stats,
            progress=False,
            **(_options(fields) if method == "ntt" else {}),
            **options,
        )
        mask, params = ticket.mask, jax.tree.map(np.asarray, ticket.params)
        record = dict(ticket.provenance.record)
    start = jax.tree.map(np.asarray, trees.apply_mask(mask, params))
    every = fields.steps // fields.points
    keep_at = tuple(range(0, fields.steps + 1, every))
    fitted = yield Training(
        network,
        start,
        stats,
        data,
        _recipe(fields),
        mask,
        key(seed, "train"),
        keep_at=keep_at,
    )
    mean, std = jnp.asarray(data.mean), jnp.asarray(data.std)
    x = normalise(jnp.asarray(data.train.images), mean, std, "float32")
    apply = jax.jit(network.apply)
    outputs = np.stack([np.asarray(apply(*fitted.kept[step], x)) for step in keep_at])
    goal = inputs["teacher"].arrays["outputs"] if inputs else outputs
    values = {
        **_point(branch, level, fields, outputs, goal, data.train.labels),
        **trained.told(mask, fitted, data, {"initial": initial, "start": start}),
        "trajectory": float(np.linalg.norm(outputs - goal) / np.linalg.norm(goal)),
    }
    if record:
        values["transfer"] = record
    arrays = {
        "outputs": outputs.astype(np.float32),
        "labels": data.train.labels.astype(np.int32),
        **trained.pack_mask(mask),
    }
    return Result(values, arrays, fitted.checks)


def _point(
    branch: str, level: int, fields: Fields, outputs: Any, goal: Any, labels: Any
) -> dict[str, Any]:
    """One point of a curve; outputs and goal are (points + 1, images, 2)."""
    import numpy as np

    one = outputs[level, :, 1]
    return {
        "branch": branch,
        "level": level,
        "step": level * (fields.steps // fields.points),
        "density": 1.0 if branch == "teacher" else 1 - fields.pruned / 100,
        "outputs": {
            "one_of_ones": float(np.mean(one[labels == 1])),
            "one_of_zeros": float(np.mean(one[labels == 0])),
        },
        "apart": float(np.sqrt(np.mean((outputs[level] - goal[level]) ** 2))),
    }
