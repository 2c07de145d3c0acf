"""What Kumar claims of lazy and rich tickets on MNIST, as data, and what the page says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import sub
from typing import Any

from secateur.lab.verdicts import Claim
from secateur.studies.figures import Branch, Curves
from secateur.studies.gains import DENSITY
from secateur.studies.lazy_toy_claims import citation as _toy
from secateur.studies.measured import Measured, Row, numbers, paired


@dataclass(frozen=True)
class Arm:
    """What differs between ways of sweeping alpha.

    Attributes:
        centred: alpha (f - f_0) is trained.
        loss: "cross_entropy", which has no size of labels, or "mse", on one-hot labels.
        scaled: the rate is the comparable one of its alpha (`networks.lazy.comparable_rate`).
    """

    label: str
    optimiser: str
    centred: bool
    loss: str = "cross_entropy"
    scaled: bool = True


ARMS = {
    "adam": Arm("Adam at one rate, alpha f", "adam", False, scaled=False),
    "adam-centred": Arm("Adam at one rate, alpha (f - f0)", "adam", True, scaled=False),
    "sgd": Arm("descent, alpha f", "sgd", False),
    "sgd-centred": Arm("descent, alpha (f - f0)", "sgd", True),
    "square": Arm("squared loss, alpha f", "sgd", False, "mse"),
    "square-centred": Arm("squared loss, alpha (f - f0)", "sgd", True, "mse"),
    "adam-scaled": Arm("Adam at a rate over alpha, alpha f", "adam", False),
    "adam-scaled-centred": Arm("Adam at a rate over alpha, alpha (f - f0)", "adam", True),
}
LARGE = "large-weights"
BATCH = 100  # of a training that generalises late
LATE = 40  # evaluations of a training that generalises late
WAYS = {
    "rewind": "rewound",
    "chain": "with new random weights at each level",
    "none": "not rewound",
}
LOW = 0.019  # weights remaining at which tickets are told apart

branches: tuple[Branch, ...] = ()  # a line is an alpha, in the order of the cells
citation = (
    _toy[0],
    """@inproceedings{chizat2019lazy,
  title={On Lazy Training in Differentiable Programming},
  author={Chizat, L{\\'e}na{\\"i}c and Oyallon, Edouard and Bach, Francis},
  booktitle={Advances in Neural Information Processing Systems},
  year={2019}
}""",
    """@inproceedings{liu2023omnigrok,
  title={Omnigrok: Grokking Beyond Algorithmic Data},
  author={Liu, Ziming and Michaud, Eric J and Tegmark, Max},
  booktitle={International Conference on Learning Representations},
  year={2023}
}""",
)

_STEP: dict[str, Any] = {"x": "step", "x_title": "step", "x_log": True, "percent_y": True}
figures = (
    *(
        Curves(
            name=f"accuracy-{arm}-{way}",
            title=f"{about.label}: tickets {words}",
            caption="Test accuracy at the last step of each level.",
            y=f"accuracy.{arm}.{way}",
            y_title="test accuracy",
            percent_y=True,
            **DENSITY,
        )
        for arm, about in ARMS.items()
        for way, words in WAYS.items()
    ),
    *(
        Curves(
            name=f"kernel-{arm}",
            title=f"{about.label}: how lazy rewound tickets were",
            caption="How far the tangent kernel has moved in the training of each level, relative "
            "to its size at that level's start, on a few training images.",
            y=f"kernel_moved.{arm}.rewind",
            y_title="movement of the kernel",
            y_log=True,
            **DENSITY,
        )
        for arm, about in ARMS.items()
    ),
    Curves(
        name="late-train",
        title="Large initial weights: training accuracy",
        caption="Of few examples, with weight decay.",
        y="along.train",
        y_title="training accuracy",
        **_STEP,
    ),
    Curves(
        name="late-validation",
        title="Large initial weights: validation accuracy",
        caption="It rises long after all training examples are right. The ticket is rewound to its "
        "large weights; beside it its mask with other weights as large.",
        y="along.validation",
        y_title="validation accuracy",
        **_STEP,
    ),
)


def name_of(alpha: float) -> str:
    """A line's name."""
    return f"alpha {alpha:g}"


def late_name(scale: float, branch: str, level: int) -> str:
    """A line's name in the arm that generalises late."""
    if level == 0:
        return f"weights times {scale:g}"
    word = "ticket" if branch == "rewind" else "mask, new weights"
    return f"weights times {scale:g}, {word}, level {level}"


def accuracy(
    rows: Sequence[Row], arm: str, way: str, alpha: float, density: float, what: str = "accuracy"
) -> dict[int, float]:
    """seed -> points of accuracy."""
    found = numbers(rows, f"{what}.{arm}.{way}", density, alpha=alpha)
    return {seed: 100 * value for seed, value in found.items()}


def lazier(arm: str, way: str = "rewind", density: float = LOW, **alphas: float) -> Any:
    """per seed: points of accuracy at the larger alpha less those at the smaller one."""
    high, low = alphas.get("high", 4.0), alphas.get("low", 1.0)

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        a = accuracy(rows, arm, way, high, density)
        return paired(sub, a, accuracy(rows, arm, way, low, density))

    return per_seed


def over_ways(arm: str, way: str, other: str, alpha: float = 1.0) -> Any:
    """per seed: points of accuracy of one way less those of another."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        a = accuracy(rows, arm, way, alpha, LOW)
        return paired(sub, a, accuracy(rows, arm, other, alpha, LOW))

    return per_seed


def _over_alphas(
    of: Callable[[Sequence[float]], float], arm: str, way: str, rows: Sequence[Row]
) -> dict[int, float]:
    """seed -> a number of the accuracies over all alphas, in rising order of alpha."""
    alphas = sorted({row["alpha"] for row in rows if "alpha" in row})
    each = [accuracy(rows, arm, way, alpha, LOW) for alpha in alphas]
    seeds = set.intersection(*(set(one) for one in each)) if len(each) > 2 else set()
    return {seed: of([one[seed] for one in each]) for seed in sorted(seeds)}


def spread(values: Sequence[float]) -> float:
    """Largest less smallest."""
    return max(values) - min(values)


def order(values: Sequence[float]) -> float:
    """|Kendall's tau| against the places: 1 where the values only rise or only fall."""
    pairs = [(a, b) for i, a in enumerate(values) for b in values[i + 1 :]]
    return abs(sum(math.copysign(1, b - a) for a, b in pairs if a != b)) / len(pairs)


def against(of: Callable[[Sequence[float]], float], arm: str, way: str) -> Any:
    """per seed: a number over alphas of one way less that of rewound tickets."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        a = _over_alphas(of, arm, way, rows)
        return paired(sub, a, _over_alphas(of, arm, "rewind", rows))

    return per_seed


def movement(arm: str, high: float, low: float) -> Any:
    """per seed: log10 of the kernel's movement at one alpha over that at another, dense."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        a, b = (
            numbers(rows, f"kernel_moved.{arm}.rewind", 1.0, alpha=alpha) for alpha in (high, low)
        )
        return paired(lambda x, y: math.log10(x / y), a, b)

    return per_seed


def late(what: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Any:
    """per seed: a number of one late training less that of another."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        a, b = (numbers(rows, f"late.{what}", **where) for where in (first, second))
        return paired(sub, a, b)

    return per_seed


_FIG6, _HERE = "Kumar, figure 6", "asked here"
_RICH, _LAZY = {"scale": 1.0, "depth": 0}, {"scale": 8.0, "depth": 0}


def _claim(
    id: str,
    source: str,
    statement: str,
    measure: str,
    per_seed: Any,
    comparison: str = "above",
    margin: float = 0.0,
    unit: str = "points",
    **more: Any,
) -> Measured:
    return Measured(
        Claim(id, source, statement, measure, comparison, margin, unit=unit, **more), per_seed
    )


def _of_arm(arm: str, about: Arm) -> tuple[Measured, ...]:
    words = f"test accuracy at 1.9 % of the weights, {about.label}"
    return (
        _claim(
            f"K-10 {arm}",
            _FIG6,
            "Lazier tickets keep their accuracy longer.",
            f"{words}: alpha 4 minus alpha 1, rewound",
            lazier(arm),
        ),
        _claim(
            f"K-10 {arm} 16",
            _FIG6,
            "The lazier the better.",
            f"{words}: alpha 16 minus alpha 1, rewound",
            lazier(arm, high=16.0),
        ),
        _claim(
            f"K-11 {arm}",
            _FIG6,
            "Alpha acts on tickets uniformly, on others in a messy way.",
            f"|Kendall's tau| of accuracy and alpha, {words}: rewound minus new random weights",
            lambda rows: {s: -v for s, v in against(order, arm, "chain")(rows).items()},
            unit="",
        ),
        _claim(
            f"K-11b {arm}",
            _FIG6,
            "Alpha moves what is not rewound to its start further than tickets.",
            f"largest minus smallest over alphas, {words}: new random weights minus rewound",
            against(spread, arm, "chain"),
        ),
    )


claims = (
    _claim(
        "K-1",
        "Kumar, figure 1",
        "Rewound tickets keep their accuracy at high sparsity, re-initialised ones do not.",
        "test accuracy at 1.9 % of the weights, Adam, alpha 1: rewound minus new random weights",
        over_ways("adam", "rewind", "chain"),
    ),
    _claim(
        "K-1 none",
        "Kumar, figure 1",
        "Nor do those that are not rewound.",
        "test accuracy at 1.9 % of the weights, Adam, alpha 1: rewound minus not rewound",
        over_ways("adam", "rewind", "none"),
    ),
    *(claim for arm, about in ARMS.items() for claim in _of_arm(arm, about)),
    *(
        _claim(
            f"K-10 {arm} small, {way}",
            _HERE,
            f"Among small output scales, too, the lazier one is better: {WAYS[way]}.",
            f"test accuracy at 1.9 % of the weights, {ARMS[arm].label}: alpha 1 minus alpha 1/64, "
            f"{WAYS[way]}",
            lazier(arm, way, high=1.0, low=1 / 64),
        )
        for arm in ("adam", "adam-scaled")
        for way in ("rewind", "chain")
    ),
    *(
        _claim(
            f"knob {arm}",
            "Chizat, Oyallon & Bach 2019",
            "A large alpha is lazy.",
            f"log10 of the kernel's movement, {about.label}, dense: alpha 16 over alpha 1",
            movement(arm, 16.0, 1.0),
            "below",
            -0.5,
            unit="",
        )
        for arm, about in ARMS.items()
    ),
    _claim(
        "late",
        "Liu, Michaud & Tegmark 2023",
        "Large initial weights generalise long after they fit.",
        "log10(step generalised / step fitted), dense: weights times 8 minus times 1",
        late("delay", _LAZY, _RICH),
        "above",
        0.5,
        unit="",
    ),
    _claim(
        "late ticket",
        _HERE,
        "The ticket of a network that generalised late does so sooner.",
        "log10 of the step it has generalised at, weights times 8: ticket of level 1 minus dense",
        lambda rows: _sooner(rows, {"kind": "rewind", "depth": 1}, {"depth": 0}),
        "below",
        unit="",
    ),
    _claim(
        "late mask",
        _HERE,
        "It is the mask that does it, not the weights.",
        "log10 of the step it has generalised at, weights times 8, level 1: ticket minus its mask "
        "with other weights",
        lambda rows: _sooner(rows, {"kind": "rewind", "depth": 1}, {"kind": "control", "depth": 1}),
        "within",
        0.1,
        unit="",
    ),
)


def _sooner(
    rows: Sequence[Row], first: Mapping[str, Any], second: Mapping[str, Any]
) -> dict[int, float]:
    """seed -> log10 of the steps at which two trainings from large weights have generalised."""
    a, b = (numbers(rows, "late.generalised", scale=8.0, **where) for where in (first, second))
    return paired(lambda x, y: math.log10(max(x, 1) / max(y, 1)), a, b)


def sentence(rows: Sequence[Row], fields: Any, data: str) -> str:
    """What was run, and accuracies of rewound tickets at few weights."""
    shape = "-".join(map(str, fields.hidden))
    begun = f"An MLP {shape} on {data}, {fields.steps:,} steps a level, {fields.levels} levels."
    said = []
    for arm in fields.arms:
        means = []
        for alpha in fields.alphas:
            found = accuracy(rows, arm, "rewind", alpha, LOW)
            if found:
                means.append(f"{sum(found.values()) / len(found):.1f}")
        if means:
            said.append(f"{ARMS[arm].label}: {', '.join(means)}")
    if not said:
        return begun
    scales = ", ".join(f"{alpha:g}" for alpha in fields.alphas)
    return f"{begun} Test accuracy at 1.9 % of the weights, rewound, alpha {scales}. " + "; ".join(
        said
    )


def notes(rows: Sequence[Row], fields: Any) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    rates = "Descent has a rate over alpha squared, so that outputs move alike at every alpha; "
    rates += "Adam does not see the scale of a loss and keeps its rate, so that alpha is a "
    rates += "temperature of its start. A row's level is that of the ticket, plus 100 for new "
    rates += "random weights, 200 for not rewound, and 1,000 for each arm."
    said = [rates]
    if set(fields.arms) - {arm for arm, about in ARMS.items() if about.centred}:
        said.append(
            "Outputs alpha f are not lazy at large alpha: training must first unlearn alpha f_0."
        )
    gone = sum({row["address"]: row["diverged"] for row in rows if "address" in row}.values())
    if gone:
        said.append(f"{gone} levels diverged and are not shown.")
    return said
