"""What is claimed of kernels at the start and over training, and the words of `kernel-watch`.

Gebhart, Saxena & Schrater 2021 hold that the spectrum of the path kernel at initialisation
foretells how fast a pruned network trains. Here that is a rank correlation over tickets: of several
methods and densities, and of several methods at one density.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from secateur.lab.verdicts import Claim
from secateur.studies.figures import Branch, Curves
from secateur.studies.measured import Measured, Row

branches = (
    Branch("parent", "dense network", "The network before pruning."),
    Branch("lottery", "lottery ticket", "Iterative magnitude pruning, rewound to the start."),
    Branch("snip", "SNIP", "One ranking over all layers."),
    Branch("synflow", "SynFlow", "Without data, in 100 rounds."),
    Branch("ntk-sap", "NTK-SAP", "By the trace of the tangent kernel on noise, in 100 rounds."),
    Branch("ntt", "transfer", "Neural tangent transfer: mask and weights, each layer's share."),
    Branch("magnitude", "magnitude", "The largest initial weights, one ranking over all layers."),
    Branch("random", "random", "Each layer's share at random places."),
)

citation = (
    """@article{gebhart2021unified,
  title={A Unified Paths Perspective for Pruning at Initialization},
  author={Gebhart, Thomas and Saxena, Udit and Schrater, Paul},
  journal={arXiv preprint arXiv:2101.10552},
  year={2021}
}""",
)

_STEP: dict[str, Any] = {"x": "step", "x_title": "steps of training", "x_log": True}
figures = (
    Curves(
        name="drift",
        title="How far the kernel of the surviving weights moves",
        caption="Frobenius norm of the change since the start, relative to the kernel there. All "
        "outputs of the kernel's images.",
        y="kernel.drift",
        y_title="relative change",
        y_log=True,
        **_STEP,
    ),
    Curves(
        name="target",
        title="How the kernel turns to the targets",
        caption="Alignment of the centred kernel with the centred one-hot labels, which would be 1 "
        "for the kernel of the labels themselves.",
        y="kernel.target",
        y_title="alignment with the targets",
        **_STEP,
    ),
    Curves(
        name="participation",
        title="How many directions the kernel has",
        caption="Participation ratio of the eigenvalues, (sum)^2 / sum of squares.",
        y="kernel.participation",
        y_title="directions",
        **_STEP,
    ),
    Curves(
        name="of_parent",
        title="How alike the kernels of ticket and dense network are",
        caption="Centred alignment of the traced kernels after as many steps each.",
        y="kernel.of_parent",
        y_title="alignment with the dense network's kernel",
        **_STEP,
    ),
    Curves(
        name="linear",
        title="How far training is from what the kernel at the start predicts",
        caption="Full-batch descent on the squared loss; distance of the test outputs from the "
        "linearised network's, relative to how far they have moved.",
        x="linear_step",
        x_title="steps of full-batch descent",
        x_log=True,
        y="linear.off_test",
        y_title="relative distance",
    ),
    Curves(
        name="race",
        title="How fast the loss falls, and the path kernel's trace at the start",
        caption="One point a density. Mean of the validation loss over training: lower is faster.",
        x="foretold.path_trace",
        x_title="logarithm of the path kernel's trace",
        y="race.mean_loss",
        y_title="mean validation loss",
    ),
    Curves(
        name="race_ntk",
        title="How fast the loss falls, and the tangent kernel's trace at the start",
        caption="One point a density.",
        x="foretold.ntk_trace",
        x_title="logarithm of the tangent kernel's trace",
        y="race.mean_loss",
        y_title="mean validation loss",
    ),
)

NAMES = {
    "path_trace": "path kernel's trace",
    "path_top": "path kernel's largest eigenvalue",
    "ntk_trace": "tangent kernel's trace",
    "effective_density": "effective density",
    "weights": "number of weights",
}


def _ranks(values: Sequence[float]) -> Any:
    from scipy.stats import rankdata

    return rankdata(values)


def correlation(rows: Sequence[Row], by: str) -> float | None:
    """Spearman's rank correlation of what foretells with speed (minus the mean loss).

    None for fewer than three tickets, or where one of the two does not vary.
    """
    import numpy as np

    if len(rows) < 3:
        return None
    a = _ranks([row["foretold"][by] for row in rows])
    b = _ranks([-row["race"]["mean_loss"] for row in rows])
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def raced(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """seed -> its pruned networks, one row a method and density."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        if "race" in row and row["branch"] != "parent":
            found.setdefault(row["seed"], []).append(row)
    return found


def everywhere(rows: Sequence[Row], by: str) -> float | None:
    """Over all methods and densities of one seed."""
    return correlation(rows, by)


def at_one_density(rows: Sequence[Row], by: str) -> float | None:
    """Over the methods at one density, the mean over densities."""
    levels = sorted({row["level"] for row in rows})
    found = [correlation([r for r in rows if r["level"] == level], by) for level in levels]
    some = [one for one in found if one is not None]
    return sum(some) / len(some) if some else None


Over = Callable[[Sequence[Row], str], float | None]


def foretells(over: Over, by: str, rivals: Sequence[str] = ()) -> Any:
    """per seed: the rank correlation with speed, less that of the best rival."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        found: dict[int, float] = {}
        for seed, own in sorted(raced(rows).items()):
            value = over(own, by)
            others = [over(own, rival) for rival in rivals]
            if value is not None and None not in others:
                found[seed] = value - max((o for o in others if o is not None), default=0.0)
        return found

    return per_seed


def _starts(rows: Sequence[Row], what: str) -> dict[int, dict[str, float]]:
    """seed -> branch -> a number of the watch's first point."""
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        if row.get("step") == 0 and "kernel" in row and row["branch"] != "parent":
            found.setdefault(row["seed"], {})[row["branch"]] = row["kernel"][what]
    return found


def nearest(what: str, branch: str, join: Callable[[float, float], float]) -> Any:
    """per seed: a branch's number at the start, joined with the smallest of the others'."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        found: dict[int, float] = {}
        for seed, numbers in sorted(_starts(rows, what).items()):
            others = [v for other, v in numbers.items() if other != branch]
            if branch in numbers and others:
                found[seed] = join(numbers[branch], min(others))
        return found

    return per_seed


_GSS = "Gebhart, Saxena & Schrater 2021"
_ALL: dict[str, Any] = {
    "dataset": "mnist",
    "steps": 2000,
    "methods": ("lottery", "snip", "synflow", "ntk-sap", "ntt", "magnitude", "random"),
}
_RIVALS = ("ntk_trace", "effective_density", "weights")
_SPEED = "rank correlation with speed (minus the mean validation loss of training)"


def _claim(
    id: str, statement: str, measure: str, per_seed: Any, margin: float = 0.0, **more: Any
) -> Measured:
    source = more.pop("source", _GSS)
    comparison = more.pop("comparison", "above")
    return Measured(
        Claim(id, source, statement, measure, comparison, margin, _ALL, **more), per_seed
    )


claims = (
    _claim(
        "GSS-1",
        "The path kernel's trace at the start foretells how fast a pruned network trains.",
        f"{_SPEED}, over methods at one density, mean over densities",
        foretells(at_one_density, "path_trace"),
    ),
    _claim(
        "GSS-2",
        "So does its largest eigenvalue.",
        f"{_SPEED}, over methods at one density, mean over densities",
        foretells(at_one_density, "path_top"),
    ),
    _claim(
        "GSS-3",
        "The trace does so better than the tangent kernel's trace, effective density and the "
        "number of weights.",
        f"{_SPEED} over methods and densities, less that of the best of the three",
        foretells(everywhere, "path_trace", _RIVALS),
        source="asked here",
    ),
    _claim(
        "GSS-4",
        "The largest eigenvalue does.",
        f"{_SPEED} over methods and densities, less that of the best of the three",
        foretells(everywhere, "path_top", _RIVALS),
        source="asked here",
    ),
    _claim(
        "GSS-5",
        "At one density the trace does so better than the tangent kernel's trace and effective "
        "density.",
        f"{_SPEED}, over methods at one density, less that of the better of the two",
        foretells(at_one_density, "path_trace", _RIVALS[:2]),
        source="asked here",
    ),
    _claim(
        "NTT-10",
        "Of all methods, transfer gives the student whose kernel is nearest the teacher's.",
        "distance of the kernels at the start, transfer's over the nearest other's",
        nearest("start_from_parent", "ntt", lambda a, b: a / b),
        1.0,
        comparison="below",
        source="Liu & Zenke 2020, section 3",
        unit="ratio",
    ),
    _claim(
        "SAP-5",
        "Of all methods, NTK-SAP keeps the spectrum nearest the dense network's.",
        "mean |log of the ratio| of the 100 largest eigenvalues, less the smallest of the others",
        nearest("spectrum_from_parent", "ntk-sap", lambda a, b: a - b),
        comparison="below",
        source="Wang, Li & Sun 2023, figure 2",
    ),
)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def sentence(rows: Sequence[Row], fields: Any, data: str) -> str:
    """What was run on what data, and what foretold how fast tickets train."""
    begun = f"{fields.network}, {len(fields.methods)} ways to prune, {fields.steps:,} steps of "
    begun += f"{fields.optimiser}. Data: {data}."
    said = []
    for by, words in NAMES.items():
        found = foretells(everywhere, by)(rows)
        if found:
            said.append(f"{words} {_mean(list(found.values())):+.2f}")
    if not said:
        return begun
    return f"{begun} Rank correlation with how fast tickets train: {', '.join(said)}."


def notes(rows: Sequence[Row], fields: Any) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    read = f"Kernels are of {fields.images} training images, over surviving weights and all "
    read += f"biases; they are read on the way at {fields.watched:g} % of the weights. The traces "
    read += "that foretell are over surviving weights alone."
    said = [
        read,
        "Speed is minus the mean of the validation loss over training, by one recipe for all.",
        "Intervals of rank correlations are over seeds; they do not cover the choice of methods.",
    ]
    at_density: Mapping[str, dict[int, float]] = {
        words: foretells(at_one_density, by)(rows) for by, words in NAMES.items() if by != "weights"
    }
    told = [f"{words} {_mean(list(v.values())):+.2f}" for words, v in at_density.items() if v]
    if told:
        said.append(f"Rank correlation with speed over methods at one density: {', '.join(told)}.")
    return said
