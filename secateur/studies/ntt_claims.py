"""What Liu & Zenke 2020 claim of neural tangent transfer, as data, and the numbers that tell.

Their numbers stand for LeNet-300-100 on MNIST at 3 % of the weights in each layer, 20 epochs of
transfer and 50 of supervised training. Those of two runs each are in the demonstration notebook of
fmi-basel/neural-tangent-transfer; distances there are of the full kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from secateur.lab.verdicts import Claim
from secateur.studies.measured import LAST, Measured, Row, difference, value_at

_PAPER = {
    "dataset": "mnist",
    "network": "lenet-300-100",
    "steps": 42_200,
    "transfer_epochs": 20,
    "gamma_squared": 1e-3,
}
_LZ = "Liu & Zenke 2020"
_HERE = "derived here from the definition of the full kernel"
LOW = 0.03
_AT = "at 3 % of the weights in each layer"


def early(step: int) -> Any:
    """The validation accuracy after so many steps, in points."""

    def found(row: Row) -> float:
        place = list(row["curve"]["step"]).index(step)
        return 100 * float(row["curve"]["validation_accuracy"][place])

    return found


def fall(distance: str, branch: str, density: float) -> Any:
    """per seed: how many times smaller a distance is after the transfer than before it."""

    def of(row: Row) -> float:
        curve = row["transfer"]["curve"][distance]
        return float(curve[0]) / max(float(curve[-1]), 1e-30)

    return value_at(of, branch, density)


def sooner(step: int, a: str, b: str, density: float) -> Any:
    """per seed: validation accuracy after ``step`` steps, branch a minus branch b."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        seen = [r for r in rows if step in r.get("curve", {}).get("step", ())]
        return difference(early(step), (a, density), (b, density))(seen)

    return per_seed


def _claim(
    id: str,
    statement: str,
    measure: str,
    per_seed: Any,
    margin: float,
    *,
    comparison: str = "above",
    source: str = _LZ,
    paper: float | None = None,
    unit: str = "points",
    only: Mapping[str, Any] = MappingProxyType({}),
) -> Measured:
    needs = {**_PAPER, **only}
    claim = Claim(id, source, statement, measure, comparison, margin, needs, paper, unit)
    return Measured(claim, per_seed, only)


CLAIMS: tuple[Measured, ...] = (
    _claim(
        "NTT-1",
        "A network with 3 % of its weights, initialised by transfer, is more accurate than one "
        "pruned at random.",
        f"test accuracy at the last step, transfer minus uniform random, {_AT}",
        difference(LAST, ("ntt", LOW), ("random", LOW)),
        2.0,
        paper=3.1,
    ),
    _claim(
        "NTT-1a",
        "It reads 96 % of the test images right.",
        f"test accuracy at the last step, transfer, {_AT}",
        value_at(LAST, "ntt", LOW),
        96.0,
        paper=96.46,
        unit="%",
    ),
    _claim(
        "NTT-2",
        "So is a convolutional network.",
        f"test accuracy at the last step, transfer minus uniform random, {_AT}",
        difference(LAST, ("ntt", LOW), ("random", LOW)),
        1.0,
        paper=1.65,
        only={"network": "lenet-5-relu"},
    ),
    _claim(
        "NTT-3",
        "It learns faster.",
        f"validation accuracy after 500 steps, transfer minus uniform random, {_AT}",
        sooner(500, "ntt", "random", LOW),
        4.0,
        paper=7.7,
    ),
    _claim(
        "NTT-4",
        "Transfer brings the student's kernel near the teacher's (here: of masked training).",
        f"distance of the masked kernel on held-out images, before over after, {_AT}",
        fall("kernel_masked", "ntt", LOW),
        8.0,
        unit="ratio",
    ),
    _claim(
        "NTT-4 full",
        "The same with the kernel of the published code.",
        f"distance of the full kernel on held-out images, before over after, {_AT}",
        fall("kernel_full", "ntt-full", LOW),
        8.0,
        paper=15.0,
        unit="ratio",
    ),
    _claim(
        "NTT-4 other",
        "The published code's objective leaves the kernel of masked training far from the "
        "teacher's.",
        f"distance of the masked kernel, transfer by the full one, before over after, {_AT}",
        fall("kernel_masked", "ntt-full", LOW),
        2.0,
        comparison="below",
        source=_HERE,
        unit="ratio",
    ),
    _claim(
        "NTT-5",
        "Transfer brings the student's outputs near the teacher's.",
        f"distance of the outputs on held-out images, before over after, {_AT}",
        fall("output", "ntt", LOW),
        6.0,
        unit="ratio",
    ),
    _claim(
        "NTT-5 full",
        "The same with the kernel of the published code.",
        f"distance of the outputs, transfer by the full kernel, before over after, {_AT}",
        fall("output", "ntt-full", LOW),
        6.0,
        paper=12.5,
        unit="ratio",
    ),
    _claim(
        "NTT-8",
        "Ranked over all layers, transfer is on a par with SNIP (a figure; the margin is ours).",
        "test accuracy at the last step, transfer minus SNIP, both ranked globally, at 3 %",
        difference(LAST, ("ntt-global", LOW), ("snip", LOW)),
        1.0,
        comparison="within",
        source=f"{_LZ}, supplement, figure 2",
    ),
    _claim(
        "NTT-weights",
        "What transfer gains lies in its weights as well as in its mask.",
        f"test accuracy at the last step, transfer minus its mask on the initial weights, {_AT}",
        difference(LAST, ("ntt", LOW), ("ntt-mask", LOW)),
        0.0,
        source="a control of this study",
    ),
)
