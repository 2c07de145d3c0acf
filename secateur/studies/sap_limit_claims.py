"""What the limit of NTK-SAP predicts, as data, and the numbers that tell. No paper claims these.

The predictions are those of `sap_limit`; margins were set before the study was run. SAP-11d and e
were added after a look at the masks of one seed: SAP-11b did not hold there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log
from typing import Any

from secateur.lab.verdicts import Claim
from secateur.studies.measured import LAST, Measured, Row, at, difference
from secateur.studies.sap_limit_words import CLOSED, MASKS, ONCE, SCORES, SHUFFLED

_HERE = "derived here: the limit of NTK-SAP"
_SAP = "NTK-SAP, Wang, Li & Sun 2023"
_TRAINED = {"dataset": "mnist", "steps": 3000, "hidden": [300, 100]}
_DRAWS = {"hidden": [300, 100], "closed": 4096}
_LOW = ((14, "4.4"), (18, "1.8"))

PerSeed = Callable[[Sequence[Row]], dict[int, float]]


def slope_off(estimator: str) -> PerSeed:
    """per seed: slope of log variation over log draws, plus 1/2; of the layer farthest from 0."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        found: dict[int, list[Row]] = {}
        for row in rows:
            if row["branch"] == estimator + SCORES:
                found.setdefault(row["seed"], []).append(row)
        told = {}
        for seed, points in found.items():
            if len(points) < 3:
                continue
            x = [log(row["draws"]) for row in points]
            layers = points[0]["spread_by_layer"]
            off = [_slope(x, [log(row["spread_by_layer"][k]) for row in points]) for k in layers]
            told[seed] = max((s + 0.5 for s in off), key=abs)
        return told

    return per_seed


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line."""
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


def told_by(
    branch: str, path: str, scale: float = 1.0, last: bool = False, **where: Any
) -> PerSeed:
    """per seed: a number of the row of a branch; the one of the highest level if ``last``."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        found: dict[int, Row] = {}
        for row in rows:
            if row["branch"] != branch or any(row.get(k) != v for k, v in where.items()):
                continue
            if row["seed"] not in found or (last and row["level"] > found[row["seed"]]["level"]):
                found[row["seed"]] = row
        return {seed: scale * float(row[path]) for seed, row in found.items()}

    return per_seed


def more_draws(estimator: str) -> PerSeed:
    """per seed: distance of layer densities from the limit's, at most draws a round minus at 1."""
    branch = estimator + MASKS

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        few = told_by(branch, "from_limit", budget=1)(rows)
        many = told_by(branch, "from_limit", last=True)(rows)
        return {seed: many[seed] - few[seed] for seed in sorted(few.keys() & many.keys())}

    return per_seed


def overlap(branch: str, level: int) -> PerSeed:
    """per seed: points that two masks have in common beyond chance."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        found = at(rows, branch, 0.8**level)
        return {seed: 100 * row["overlap_beyond_chance"] for seed, row in found.items()}

    return per_seed


def share_of_loss(method: str, level: int) -> PerSeed:
    """per seed: what shuffling loses, over what uniform random pruning loses."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        density = 0.8**level
        mine, shuffled = at(rows, method, density), at(rows, method + SHUFFLED, density)
        uniform = at(rows, "random", density)
        told = {}
        for seed in sorted(mine.keys() & shuffled.keys() & uniform.keys()):
            lost = LAST(mine[seed]) - LAST(uniform[seed])
            if lost > 0:
                told[seed] = (LAST(mine[seed]) - LAST(shuffled[seed])) / lost
        return told

    return per_seed


def _claim(
    id: str, statement: str, measure: str, comparison: str, margin: float, **rest: Any
) -> Claim:
    return Claim(id, rest.pop("source", _HERE), statement, measure, comparison, margin, **rest)


CLAIMS: tuple[Measured, ...] = (
    Measured(
        _claim(
            "SAP-I",
            "Each layer's signed scores sum to twice the estimate, for every draw.",
            "largest relative error of a layer's sum, finite differences, in double precision",
            "below",
            1e-10,
        ),
        told_by(CLOSED, "identity"),
    ),
    Measured(
        _claim(
            "SAP-12",
            "The mean trace over random weights is the sum over surviving paths, for any mask and "
            "fixed inputs.",
            "mean of the draws minus the formula, in standard errors, half of the weights masked",
            "within",
            3.0,
            needs_settings=_DRAWS,
            unit="standard errors",
        ),
        told_by(CLOSED, "z"),
    ),
    Measured(
        _claim(
            "SAP-12b",
            "The mean scores are the derivative of that sum.",
            "correlation of the mean scores of the live weights with the formula's",
            "above",
            0.99,
            needs_settings=_DRAWS,
        ),
        told_by(CLOSED, "pearson"),
    ),
    *(
        Measured(
            _claim(
                f"SAP-10{suffix}",
                "Within a layer the scores are exchangeable: their variation falls as one over the "
                f"root of the draws ({words}).",
                "slope of log variation over log draws plus 1/2, the layer with the largest",
                "within",
                0.1,
                needs_settings={"hidden": [300, 100]},
            ),
            slope_off(estimator),
        )
        for estimator, suffix, words in (
            ("fd", "", "finite differences"),
            ("vjp", "b", "random outputs"),
        )
    ),
    *(
        Measured(
            _claim(
                f"SAP-10-overlap-{level}",
                "Two masks of one network from different draws agree no more than by chance.",
                "weights in common minus those of independent masks with the same layer densities, "
                f"over the weights kept, NTK-SAP as published at {percent} %",
                "within",
                2.0,
                needs_settings={"hidden": [300, 100]},
                unit="points",
            ),
            overlap("ntk-sap", level),
        )
        for level, percent in _LOW
    ),
    Measured(
        _claim(
            "SAP-11",
            "With an estimator of less noise the layer densities are those of SynFlow.",
            "largest relative difference of a layer's density from SynFlow's, random outputs, 5 "
            "draws a round",
            "below",
            0.1,
            needs_settings={"hidden": [300, 100], "level": 18},
        ),
        told_by("vjp" + MASKS, "from_synflow", budget=5),
    ),
    Measured(
        _claim(
            "SAP-11b",
            "The layer densities of the limit are those of SynFlow.",
            "largest relative difference of a layer's density, limit from SynFlow",
            "below",
            0.1,
            needs_settings={"hidden": [300, 100], "level": 18},
        ),
        told_by("vjp" + MASKS, "limit_from_synflow", last=True),
    ),
    Measured(
        _claim(
            "SAP-11d",
            "Where the scores of a layer do not differ, conservation makes layers end with equally "
            "many weights, those that have as many.",
            "largest relative difference of a layer's density, limit from equal counts",
            "below",
            0.1,
            needs_settings={"hidden": [300, 100], "level": 18},
        ),
        told_by("vjp" + MASKS, "limit_from_equal", last=True),
    ),
    Measured(
        _claim(
            "SAP-11e",
            "So more draws lead away from the published mask, to the limit.",
            "largest relative difference of a layer's density from the limit's, random outputs, "
            "most draws a round minus 1",
            "below",
            0.0,
            needs_settings={"hidden": [300, 100], "level": 18},
        ),
        more_draws("vjp"),
    ),
    Measured(
        _claim(
            "SAP-11c",
            "The noise of finite differences flattens the layer densities at the published budget.",
            "largest relative difference of a layer's density from the limit's, 5 draws a round",
            "above",
            0.1,
            needs_settings={"hidden": [300, 100], "level": 18},
        ),
        told_by("fd" + MASKS, "from_limit", budget=5),
    ),
    Measured(
        _claim(
            "SAP-4",
            "Many rounds help at high sparsity: one round starves the largest layer.",
            "density of the largest layer, 1 round over 20",
            "below",
            0.5,
            source=_SAP,
            needs_settings={"hidden": [300, 100], "level": 18},
            unit="ratio",
        ),
        told_by(ONCE, "once_over_rounds"),
    ),
    *(
        Measured(
            _claim(
                f"SAP-13-{level}",
                "Shuffling a mask of NTK-SAP within its layers costs little.",
                f"test accuracy at the last step, NTK-SAP minus its mask shuffled, at {percent} %",
                "below",
                1.0,
                needs_settings=_TRAINED,
                unit="points",
            ),
            difference(LAST, ("ntk-sap", 0.8**level), ("ntk-sap" + SHUFFLED, 0.8**level)),
        )
        for level, percent in _LOW
    ),
    *(
        Measured(
            _claim(
                f"SAP-13-{level}b",
                "Most of what NTK-SAP gains over uniform random pruning is in the layer densities.",
                f"what shuffling loses over what uniform random pruning loses, at {percent} %",
                "below",
                1 / 3,
                needs_settings=_TRAINED,
                unit="ratio",
            ),
            share_of_loss("ntk-sap", level),
        )
        for level, percent in _LOW
    ),
    *(
        Measured(
            _claim(
                f"SAP-limit-{level}",
                "Nothing is lost with the noise: the limit is as accurate as NTK-SAP.",
                f"test accuracy at the last step, limit minus NTK-SAP, at {percent} %",
                "above",
                -0.5,
                needs_settings=_TRAINED,
                unit="points",
            ),
            difference(LAST, ("limit", 0.8**level), ("ntk-sap", 0.8**level)),
        )
        for level, percent in _LOW
    ),
)
