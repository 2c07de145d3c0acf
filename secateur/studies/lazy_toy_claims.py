"""What Kumar claims of lazy and rich tickets in the toy, as data, and what the page says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from secateur.lab.verdicts import Claim
from secateur.studies.figures import Branch, Curves
from secateur.studies.gains import DENSITY
from secateur.studies.measured import Measured, Row, numbers

REWINDS = ("rewind", "random", "none")
WAYS = {
    "rewind": "rewound to the dense start",
    "random": "with new random weights",
    "none": "not rewound",
}
branches: tuple[Branch, ...] = ()  # a line is a value of what is swept, in the order of the cells

citation = (
    """@misc{kumar2024feature,
  title={Feature-aware pruning in MLPs},
  author={Kumar, Tanishq}
}""",
    """@article{kumar2023grokking,
  title={Grokking as the transition from lazy to rich training dynamics},
  author={Kumar, Tanishq and Bordelon, Blake and Gershman, Samuel J and Pehlevan, Cengiz},
  journal={arXiv preprint arXiv:2310.06110},
  year={2023}
}""",
)

figures = (
    *(
        Curves(
            name=f"loss_{way}",
            title=f"Loss of tickets {words}",
            caption="Mean square of f - y over all inputs, in closed form, over the variance of "
            "the labels.",
            y=f"loss.{way}",
            y_title="loss over variance",
            y_log=True,
            **DENSITY,
        )
        for way, words in WAYS.items()
    ),
    Curves(
        name="raw_loss",
        title="The same loss of rewound tickets as it comes",
        caption="Not over the variance of the labels: where teacher and student share their output "
        "scale, this grows by its square whatever is learnt.",
        y="raw_loss.rewind",
        y_title="loss",
        y_log=True,
        **DENSITY,
    ),
    Curves(
        name="kernel_moved",
        title="How lazy the training of rewound tickets was",
        caption="How far the tangent kernel has moved in the training of each level, relative to "
        "its size at that level's start.",
        y="kernel_moved.rewind",
        y_title="movement of the kernel",
        y_log=True,
        **DENSITY,
    ),
)


def name_of(about: Mapping[str, Any], several: bool) -> str:
    """A line's name: alpha where several are swept, and what is not usual."""
    parts = [f"alpha {about['alpha']:g}"] if several else [f"epsilon {about['epsilon']:g}"]
    if several and about["epsilon"] != 0.5:
        parts.append(f"epsilon {about['epsilon']:g}")
    if about["samples"] != 200:
        parts.append(f"{about['samples']} samples" if about["samples"] else "population")
    return ", ".join(parts)


def found(
    rows: Sequence[Row], what: str, way: str, density: float, **axes: float
) -> dict[int, float]:
    """seed -> a number of one way of rewinding, at the level nearest to a density."""
    return numbers(rows, f"{what}.{way}", density, **axes)


def ratio(what: str, way: str, density: float, over: Mapping[str, float], under: Any) -> Any:
    """per seed: the number at ``over`` over that at ``under``."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        a = found(rows, what, way, density, **over)
        b = found(rows, what, way, density, **under)
        return {s: a[s] / b[s] for s in sorted(a.keys() & b.keys()) if b[s] > 0}

    return per_seed


def spread(rows: Sequence[Row], way: str, density: float) -> dict[int, float]:
    """seed -> the largest over the smallest loss over alphas, as a logarithm."""
    alphas = sorted({row["alpha"] for row in rows})
    each = [found(rows, "loss", way, density, alpha=alpha) for alpha in alphas]
    seeds = set.intersection(*(set(one) for one in each)) if len(each) > 1 else set()
    return {s: math.log(max(o[s] for o in each) / min(o[s] for o in each)) for s in sorted(seeds)}


def spreads(way: str, other: str, density: float) -> Any:
    """per seed: how much alpha matters for one way, over how much for the other."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        a, b = spread(rows, way, density), spread(rows, other, density)
        return {s: a[s] / b[s] for s in sorted(a.keys() & b.keys()) if b[s] > 0}

    return per_seed


def slope(what: str, low: float, high: float) -> Any:
    """per seed: of the dense network, d log(number) / d log(alpha) by least squares."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        alphas = sorted({row["alpha"] for row in rows if low <= row["alpha"] <= high})
        each = [found(rows, what, "rewind", 1.0, alpha=alpha) for alpha in alphas]
        if len(each) < 2:
            return {}
        x = [math.log(alpha) for alpha in alphas]
        mean = sum(x) / len(x)
        norm = sum((one - mean) ** 2 for one in x)
        seeds = sorted(set.intersection(*(set(one) for one in each)))
        return {
            s: sum((a - mean) * math.log(one[s]) for a, one in zip(x, each, strict=True)) / norm
            for s in seeds
        }

    return per_seed


def needs_more(density: float, hard: float, easy: float, few: int) -> Any:
    """per seed: what few samples cost a hard task, over what they cost an easy one."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        cost = {}
        for epsilon in (hard, easy):
            a = found(rows, "loss", "rewind", density, epsilon=epsilon, samples=few)
            b = found(rows, "loss", "rewind", density, epsilon=epsilon, samples=0)
            cost[epsilon] = {s: a[s] / b[s] for s in a.keys() & b.keys() if b[s] > 0}
        both = sorted(cost[hard].keys() & cost[easy].keys())
        return {s: cost[hard][s] / cost[easy][s] for s in both}

    return per_seed


_FIXED, _SHARED = {"teacher": "fixed"}, {"teacher": "shared"}
_SMALL, _LARGE = {"alpha": 0.5}, {"alpha": 4.0}
_FIG3, _FIG4 = "Kumar, figure 3", "Kumar, figure 4"


def _claim(
    id: str,
    source: str,
    statement: str,
    measure: str,
    per_seed: Any,
    comparison: str,
    margin: float,
    only: Mapping[str, Any] | None = None,
    **more: Any,
) -> Measured:
    claim = Claim(id, source, statement, measure, comparison, margin, **more)
    return Measured(claim, per_seed, only or {})


def _epsilon(way: str, comparison: str, words: str) -> Measured:
    return _claim(
        f"K-7 {way}",
        _FIG4,
        words,
        f"loss over variance at 7 % of the weights, epsilon 2 over epsilon 0.25, {WAYS[way]}",
        ratio("loss", way, 0.07, {"epsilon": 2.0}, {"epsilon": 0.25}),
        comparison,
        1.0,
        _FIXED,
        unit="ratio",
    )


claims = (
    _claim(
        "K-6",
        _FIG3,
        "Tickets of small alpha, which learn features, keep a low loss longest.",
        "loss over variance at 7 % of the weights, alpha 0.5 over alpha 4, rewound; the teacher's "
        "scale is fixed",
        ratio("loss", "rewind", 0.07, _SMALL, _LARGE),
        "below",
        1.0,
        _FIXED,
        unit="ratio",
    ),
    _claim(
        "K-6 as drawn",
        _FIG3,
        "The same with a teacher that shares alpha, and the loss as it comes.",
        "loss at 7 % of the weights, alpha 0.5 over alpha 4, rewound",
        ratio("raw_loss", "rewind", 0.07, _SMALL, _LARGE),
        "below",
        1.0,
        _SHARED,
        unit="ratio",
    ),
    _claim(
        "K-6b",
        "derived here",
        "What is drawn is the scale: with a shared alpha the loss grows by its square, whatever "
        "is learnt.",
        "loss at 1.2 % of the weights, alpha 2 over alpha 1, less 4, rewound",
        lambda rows: {
            s: v - 4
            for s, v in ratio("raw_loss", "rewind", 0.0115, {"alpha": 2.0}, {"alpha": 1.0})(
                rows
            ).items()
        },
        "within",
        0.4,
        _SHARED,
        unit="ratio",
    ),
    _claim(
        "K-6c",
        _FIG3,
        "Alpha matters visibly for rewound tickets alone.",
        "largest over smallest loss over all alphas at 7 % of the weights, as logarithms: new "
        "random weights over rewound ones",
        spreads("random", "rewind", 0.07),
        "below",
        0.5,
        _FIXED,
        unit="ratio",
    ),
    _epsilon("random", "below", "With new random weights larger epsilon is better."),
    _epsilon("none", "below", "Without rewinding larger epsilon is better."),
    _epsilon("rewind", "above", "For rewound tickets smaller epsilon is better."),
    _claim(
        "K-7b",
        "Kumar, section 2",
        "Epsilon acts through the number of samples: a harder task needs more.",
        "loss with 100 samples over that on the population, epsilon 1 over epsilon 0.25, dense",
        needs_more(1.0, 1.0, 0.25, 100),
        "above",
        1.0,
        _FIXED,
        unit="ratio",
    ),
    _claim(
        "K-13",
        "Chizat, Oyallon & Bach 2019",
        "Centred, the kernel moves as one over alpha.",
        "slope of log movement by log alpha from 4 to 64, dense, plus 1",
        lambda rows: {s: v + 1 for s, v in slope("kernel_moved", 4, 64)(rows).items()},
        "within",
        0.1,
        {"centred": True},
    ),
    _claim(
        "K-13b",
        "Chizat, Oyallon & Bach 2019",
        "And turns as its square.",
        "slope of log(1 - alignment) by log alpha from 4 to 64, dense, plus 2",
        lambda rows: {s: v + 2 for s, v in slope("turned", 4, 64)(rows).items()},
        "within",
        0.2,
        {"centred": True},
    ),
    _claim(
        "K-13c",
        "measured here",
        "Not centred, it goes on moving however large alpha is.",
        "movement of the kernel at alpha 64 over that at alpha 4, dense",
        ratio("kernel_moved", "rewind", 1.0, {"alpha": 64.0}, {"alpha": 4.0}),
        "above",
        0.5,
        {"centred": False, "teacher": "fixed"},
        unit="ratio",
    ),
)


def sentence(rows: Sequence[Row], fields: Any, data: str) -> str:
    """What was run, and the losses of rewound tickets at 7 % of the weights."""
    begun = f"A committee machine of {fields.units} units and {fields.inputs} inputs, "
    begun += f"{fields.steps:,} steps of {fields.optimiser} a level, teacher {fields.teacher}. "
    begun += f"Data: {data}."
    names = dict.fromkeys(row["branch"] for row in rows)
    said = []
    for branch in names:
        own = found([r for r in rows if r["branch"] == branch], "loss", "rewind", 0.07)
        if own:
            said.append(f"{branch} {sum(own.values()) / len(own):.3f}")
    if not said:
        return begun
    return f"{begun} Loss over variance at 7 % of the weights, rewound: {', '.join(said)}."


def notes(rows: Sequence[Row], fields: Any) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    levels = "Errors are over all inputs, in closed form; levels 100 to 199 are of new random "
    said = [levels + "weights, levels from 200 of tickets that were not rewound."]
    if fields.teacher == "shared":
        said.append("Teacher and student share alpha: see the loss as it comes.")
    if not fields.centred:
        said.append(
            "Outputs are not centred: at large alpha training must first unlearn what the start "
            "computes, so that its kernel moves; with centred=true large alpha is lazy."
        )
    gone = sum({row["address"]: row["diverged"] for row in rows if "address" in row}.values())
    if gone:
        said.append(f"{gone} levels diverged and are not shown.")
    return said
