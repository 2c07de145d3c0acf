"""What Heitmann and others claim of single units, as data, and what the page says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.lab.verdicts import Claim
from secateur.studies.figures import Branch, Curves
from secateur.studies.measured import Measured, Row

ORDERS: dict[str, tuple[str, str]] = {
    "norm smallest": ("norm", "smallest"),
    "frame potential smallest": ("frame-potential", "smallest"),
    "importance smallest": ("importance", "smallest"),
    "loss smallest": ("importance-loss", "smallest"),
    "activation smallest": ("activation", "smallest"),
    "random": ("random", "smallest"),
    "frame potential largest": ("frame-potential", "largest"),
    "norm largest": ("norm", "largest"),
    "importance largest": ("importance", "largest"),
}
branches = (
    Branch("norm smallest", "smallest norm first"),
    Branch(
        "frame potential smallest",
        "smallest potential first",
        "Units that share their direction least.",
    ),
    Branch(
        "importance smallest",
        "least important first",
        "By the fall of the validation accuracy without the unit alone.",
    ),
    Branch(
        "loss smallest",
        "least rise of the loss first",
        "Units without which the validation loss falls go first.",
    ),
    Branch("activation smallest", "least active first"),
    Branch("random", "at random"),
    Branch("frame potential largest", "largest potential first"),
    Branch("norm largest", "largest norm first"),
    Branch("importance largest", "most important first"),
    Branch("width", "other widths"),
    Branch("network", "the whole network"),
)
citation = (
    """@misc{heitmann2020sources,
  title={Sources of Redundancy in Neural Networks},
  author={Heitmann, Julien},
  year={2020}
}""",
)

_REMOVED: dict[str, Any] = {
    "x": "removed",
    "x_title": "units removed",
    "percent_x": True,
}
figures = (
    Curves(
        name="accuracy",
        title="Test accuracy while units go",
        caption="Units of one row go one by one, with their incoming and outgoing weights and "
        "biases; nothing is trained in between.",
        y="accuracy",
        y_title="test accuracy",
        percent_y=True,
        **_REMOVED,
    ),
    Curves(
        name="gini",
        title="How importance concentrates with width",
        caption="Gini coefficient of the rise of the loss without each unit of the first row: 0 "
        "where all units are worth the same, near 1 where one carries all.",
        x="width",
        x_title="units of the first row",
        x_log=True,
        y="concentration.gini",
        y_title="Gini coefficient",
    ),
    Curves(
        name="error",
        title="How generalisation moves with width",
        caption="Test error at the last step.",
        x="width",
        x_title="units of the first row",
        x_log=True,
        y="error",
        y_title="test error",
        percent_y=True,
    ),
)


def at(rows: Sequence[Row], branch: str, removed: float) -> dict[int, float]:
    """seed -> test accuracy in % at the point nearest to a share of units removed."""
    found: dict[int, tuple[float, float]] = {}
    for row in rows:
        if row["branch"] == branch and "accuracy" in row:
            off = abs(row["removed"] - removed)
            if off < 0.03 and off < found.get(row["seed"], (1.0, 0.0))[0]:
                found[row["seed"]] = off, 100 * row["accuracy"]
    return {seed: value for seed, (_, value) in found.items()}


def lead(a: str, b: str, removed: float) -> Any:
    """per seed: points of test accuracy by which one order is ahead of another."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        left, right = at(rows, a, removed), at(rows, b, removed)
        return {s: left[s] - right[s] for s in sorted(left.keys() & right.keys())}

    return per_seed


def _of(rows: Sequence[Row], branch: str, value: Any) -> dict[int, float]:
    return {row["seed"]: value(row) for row in rows if row["branch"] == branch}


def retrained(way: str, other: str) -> Any:
    """per seed: points of test accuracy after training on, one way minus another."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        score = lambda row: 100 * row["last"]["test_accuracy"]
        a, b = _of(rows, f"retrained: {way}", score), _of(rows, f"retrained: {other}", score)
        return {s: a[s] - b[s] for s in sorted(a.keys() & b.keys())}

    return per_seed


def wider(path: str, scale: float) -> Any:
    """per seed: a number of the widest network minus that of the narrowest."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        found: dict[int, dict[int, float]] = {}
        for row in rows:
            value: Any = row
            for part in path.split("."):
                value = value.get(part, {}) if isinstance(value, Mapping) else {}
            if row["branch"] == "width" and isinstance(value, float):
                found.setdefault(row["seed"], {})[row["width"]] = scale * value
        return {s: v[max(v)] - v[min(v)] for s, v in sorted(found.items()) if len(v) > 1}

    return per_seed


def layer(value: Any) -> Any:
    """per seed: a number of the trained network's row."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        return _of([row for row in rows if "layer" in row], "network", value)

    return per_seed


_H = "Heitmann 2020"
_NEEDS = {"dataset": "mnist", "steps": 50_000}


def _claim(
    id: str, statement: str, measure: str, per_seed: Any, margin: float = 0.0, **more: Any
) -> Measured:
    source, comparison = more.pop("source", _H), more.pop("comparison", "above")
    unit = more.pop("unit", "points")
    claim = Claim(id, source, statement, measure, comparison, margin, _NEEDS, unit=unit, **more)
    return Measured(claim, per_seed)


claims = (
    _claim(
        "H-1",
        "Pruning by norm is better than by frame potential.",
        "test accuracy without 40 % of the units, smallest norm minus smallest potential",
        lead("norm smallest", "frame potential smallest", 0.4),
    ),
    _claim(
        "H-2",
        "Removing the units of smallest potential is better than chance.",
        "test accuracy without 40 % of the units, smallest potential minus random",
        lead("frame potential smallest", "random", 0.4),
    ),
    _claim(
        "H-2b",
        "Removing those of largest potential does clear damage.",
        "test accuracy without 40 % of the units, random minus largest potential",
        lead("random", "frame potential largest", 0.4),
    ),
    _claim(
        "H-2c",
        "So does removing the largest norms.",
        "test accuracy without 40 % of the units, random minus largest norm",
        lead("random", "norm largest", 0.4),
    ),
    _claim(
        "H-3",
        "Weight vectors align in training.",
        "excess of the frame potential over random directions (100: all one), end minus start",
        layer(lambda row: 100 * (row["layer"]["excess"]["end"] - row["layer"]["excess"]["start"])),
        unit="",
    ),
    _claim(
        "H-6",
        "As many directions as classes keep most of what the layer does.",
        "test accuracy lost by the layer's best approximation of rank 10",
        layer(lambda row: 100 * row["layer"]["drop_at_classes"]),
        10.0,
        comparison="below",
        paper=6.34,
    ),
    _claim(
        "BA-1",
        "Cutting the largest units and training on generalises better.",
        "test accuracy after training on without a fifth of the units, the largest, minus with all",
        retrained("norm largest", "none"),
        source="Bartoldson et al. 2019, as quoted by Heitmann",
    ),
    _claim(
        "BA-2",
        "And better than cutting the smallest.",
        "test accuracy after training on, without the largest minus without the smallest",
        retrained("norm largest", "norm smallest"),
        source="Bartoldson et al. 2019, as quoted by Heitmann",
    ),
    _claim(
        "G-1",
        "Wider networks generalise better.",
        "test error, widest minus narrowest",
        wider("error", 100),
        comparison="below",
        source="Neyshabur et al. 2018, as quoted by Heitmann",
    ),
    _claim(
        "IMP",
        "In wider networks importance lies on fewer of the units.",
        "Gini coefficient of importance, widest minus narrowest",
        wider("concentration.gini", 1),
        source="asked by Heitmann: sparse solutions or shared load",
        unit="",
    ),
)


def sentence(rows: Sequence[Row], fields: Any, data: str) -> str:
    """What was run on what data, and what is left without 40 % of the units."""
    begun = f"{fields.network}, units of row {fields.row}, {fields.steps:,} steps. Data: {data}."
    said = []
    for branch in branches:
        own = at(rows, branch.name, 0.4)
        if own:
            said.append(f"{branch.label} {sum(own.values()) / len(own):.1f} %")
    if not said:
        return begun
    return f"{begun} Test accuracy without 40 % of the units: {', '.join(said)}."


def notes(rows: Sequence[Row], fields: Any) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    said = (
        "Importance and activation are measured on validation images, curves on test images; the "
    )
    return [said + "order never sees these."]
