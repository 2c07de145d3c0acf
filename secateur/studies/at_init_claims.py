"""What the papers claim of tickets found before training, as far as these sizes can tell."""

from __future__ import annotations

from secateur.lab.verdicts import Claim
from secateur.studies.at_init_published import BASELINES, PUBLISHED, first
from secateur.studies.measured import LAST, Measured, difference, lead

_FDRC = "Frankle, Dziugaite, Roy & Carbin 2021"
# Their networks are ResNets and VGG nets on CIFAR-10 and larger: every verdict here is lighter.
_RESNET = {"network": "resnet-20", "dataset": "cifar10", "steps": 60_000}
_LOW = tuple(0.8**level for level in (6, 10, 14, 18))


def _shuffled(
    method: str, level: int, comparison: str, margin: float, statement: str, source: str, id: str
) -> Measured:
    density = 0.8**level
    measure = (
        f"test accuracy at the last step, {method} minus its mask shuffled within layers, at "
        f"{100 * density:.1f} %"
    )
    needs = {} if method == "ticket" else _RESNET
    return Measured(
        Claim(id, source, statement, measure, comparison, margin, needs, unit="points"),
        difference(LAST, (method, density), (f"{method} shuffled", density)),
    )


CLAIMS: tuple[Measured, ...] = (
    *(
        _shuffled(
            method,
            10,
            "below",
            0.5,
            f"Shuffling a {label} mask within its layers does not hurt: only the densities of the "
            "layers matter.",
            _FDRC,
            f"FDRC-{method}",
        )
        for method, label in (("snip", "SNIP"), ("synflow", "SynFlow"), ("magnitude", "magnitude"))
    ),
    _shuffled(
        "ticket",
        14,
        "above",
        0.0,
        "Shuffling a mask that was found by training does hurt.",
        _FDRC,
        "FDRC-ticket",
    ),
    Measured(
        Claim(
            "FDRC-gap",
            _FDRC,
            "No method before training finds masks as good as magnitude after training.",
            "test accuracy at the last step, lottery ticket minus the best method before training, "
            "smallest over densities of 26 % and less",
            "above",
            0.0,
            _RESNET,
            unit="points",
        ),
        lead("ticket", (*BASELINES, "ntk-sap"), _LOW),
    ),
    first("SAP-1", _RESNET, (6, 10, 14, 18), only={}),
    _shuffled(
        "ntk-sap",
        14,
        "below",
        1.0,
        "Derived here: with many draws NTK-SAP cannot tell the weights of a dense layer apart, so "
        "shuffling its mask within layers costs little.",
        "symmetry of the limit of NTK-SAP",
        "SAP-13",
    ),
    Measured(
        Claim(
            "SF-6",
            "SynFlow, Tanaka et al. 2020",
            "Without data, SynFlow beats SNIP at extreme densities.",
            "test accuracy at the last step, SynFlow minus SNIP, at 1.8 %",
            "above",
            0.0,
            {"network": "vgg-16", "dataset": "cifar100"},
            unit="points",
        ),
        difference(LAST, ("synflow", 0.8**18), ("snip", 0.8**18)),
    ),
    Measured(
        Claim(
            "FORCE-1",
            "FORCE, de Jorge et al. 2021",
            "Pruning in rounds (iterative SNIP) beats SNIP at extreme densities.",
            "test accuracy at the last step, iterative SNIP minus SNIP, at 1.8 %",
            "above",
            0.0,
            _RESNET,
            unit="points",
        ),
        difference(LAST, ("iterative-snip", 0.8**18), ("snip", 0.8**18)),
    ),
    Measured(
        Claim(
            "PHEW-1",
            "PHEW, Patil & Dovrolis 2021",
            "Wider layers at a similar path-kernel trace: PHEW beats SynFlow-L2.",
            "test accuracy at the last step, PHEW minus SynFlow-L2, at 4.4 %",
            "above",
            0.0,
            _RESNET,
            unit="points",
        ),
        difference(LAST, ("phew", 0.8**14), ("synflow-l2", 0.8**14)),
    ),
    *PUBLISHED,
)
