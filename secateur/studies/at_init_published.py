"""Published accuracies of tickets found before training, as claims of the presets that repeat them.

Wang, Li & Sun give the best accuracy over epochs on the test set, three seeds; here it is read at
the last step. Tanaka et al.'s are the last epoch's in the result files of
ganguli-lab/Synaptic-Flow, three seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from secateur.lab.verdicts import Claim
from secateur.studies.measured import LAST, Measured, Row, difference, lead, value_at

SAP = "NTK-SAP, Wang, Li & Sun 2023"
_SYNFLOW = "SynFlow, Tanaka et al. 2020"
_R20 = {"network": "resnet-20", "dataset": "cifar10", "steps": 62_560}
_V100 = {"network": "vgg-16", "dataset": "cifar100", "steps": 62_560}
_V10 = {"network": "vgg-16", "dataset": "cifar10", "steps": 62_560}
_R18 = {"network": "resnet-18", "dataset": "tiny-imagenet", "steps": 78_200}
_I18 = {"network": "resnet-18", "dataset": "imagenet", "steps": 257_400}
_I50 = {"network": "resnet-50", "dataset": "imagenet", "steps": 257_400}
BASELINES = ("random", "magnitude", "snip", "iterative-snip", "grasp", "synflow")

# id -> (source, setting, method, its label, {density: accuracy in %}). NTK-SAP: tables 1, 12 to 14.
ACCURACIES: dict[str, tuple[str, Mapping[str, Any], str, str, dict[float, float]]] = {
    "SAP-R20": (
        SAP,
        _R20,
        "ntk-sap",
        "NTK-SAP",
        {0.8**2: 91.36, 0.8**6: 90.04, 0.8**10: 87.86, 0.8**14: 83.84, 0.8**18: 77.66},
    ),
    "SAP-V16": (
        SAP,
        _V100,
        "ntk-sap",
        "NTK-SAP",
        {0.8**2: 74.10, 0.8**6: 74.12, 0.8**10: 73.28, 0.8**14: 71.85, 0.8**18: 69.27},
    ),
    "SAP-R18": (
        SAP,
        _R18,
        "ntk-sap",
        "NTK-SAP",
        {0.8**2: 51.89, 0.8**6: 52.69, 0.8**10: 51.90, 0.8**14: 49.29, 0.8**18: 43.92},
    ),
    "SAP-I18": (SAP, _I18, "ntk-sap", "NTK-SAP", {0.8**10: 58.87, 0.8**14: 49.43}),
    "SAP-I50": (SAP, _I50, "ntk-sap", "NTK-SAP", {0.8**10: 68.28, 0.8**14: 60.79}),
    "SF-5": (
        _SYNFLOW,
        _V10,
        "synflow",
        "SynFlow",
        {0.1: 93.26, 10**-1.5: 92.12, 0.01: 90.08, 10**-2.5: 86.81, 0.001: 80.39},
    ),
    "SF-5 SNIP": (
        _SYNFLOW,
        _V10,
        "snip",
        "SNIP",
        {0.1: 92.26, 10**-1.5: 91.08, 0.01: 89.15, 10**-2.5: 84.65, 0.001: 76.25},
    ),
}


def _only(setting: Mapping[str, Any]) -> dict[str, Any]:
    return {name: setting[name] for name in ("network", "dataset")}


def _minus(number: float) -> Any:
    def of(row: Row) -> float:
        return LAST(row) - number

    return of


def _accuracies() -> Iterator[Measured]:
    for id, (source, setting, method, label, found) in ACCURACIES.items():
        for density, number in found.items():
            at = f"{100 * density:.3g} %"
            claim = Claim(
                f"{id} {at}",
                source,
                f"{label} reaches {number:.2f} % with {at} of the weights.",
                f"test accuracy at the last step, {label} at {at}, minus {number:.2f} %; a point "
                "is allowed",
                "within",
                1.0,
                setting,
                number,
                "points",
            )
            yield Measured(claim, value_at(_minus(number), method, density), _only(setting))


def first(
    id: str, setting: Mapping[str, Any], levels: tuple[int, ...], only: Mapping[str, Any]
) -> Measured:
    """NTK-SAP's own claim, at levels of 0.8^c."""
    claim = Claim(
        id,
        SAP,
        "NTK-SAP is best, or tied with the best, of seven methods at every density of 26 % and "
        "less.",
        "test accuracy at the last step, NTK-SAP minus the best of the six others, smallest over "
        "densities; tied means within half a point",
        "above",
        -0.5,
        setting,
        unit="points",
    )
    densities = [0.8**level for level in levels]
    return Measured(claim, lead("ntk-sap", BASELINES, densities), only)


_GRID = (6, 8, 10, 12, 14, 16, 18)
PUBLISHED: tuple[Measured, ...] = (
    first("SAP-1 VGG-16", _V100, _GRID, _only(_V100)),
    first("SAP-1 ResNet-18", _R18, _GRID, _only(_R18)),
    first("SAP-2 ResNet-18", _I18, (10, 14), _only(_I18)),
    first("SAP-2 ResNet-50", _I50, (10, 14), _only(_I50)),
    Measured(
        Claim(
            "SF-6 VGG-16",
            _SYNFLOW,
            "Without data, SynFlow beats SNIP at extreme densities.",
            "test accuracy at the last step, SynFlow minus SNIP, at 0.1 %",
            "above",
            0.0,
            _V10,
            paper=4.14,
            unit="points",
        ),
        difference(LAST, ("synflow", 0.001), ("snip", 0.001)),
        _only(_V10),
    ),
    Measured(
        Claim(
            "SF-7",
            _SYNFLOW,
            "Magnitude collapses all at once: at 0.3 % of the weights nothing is learned.",
            "test accuracy at the last step, magnitude, at 0.316 %",
            "below",
            15.0,
            _V10,
            paper=10.03,
            unit="%",
        ),
        value_at(LAST, "magnitude", 10**-2.5),
        _only(_V10),
    ),
    *_accuracies(),
)
