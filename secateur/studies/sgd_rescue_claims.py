"""What Liu et al. claim of high learning rates, as data, and what the page says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.lab.verdicts import Claim
from secateur.studies.figures import Branch, Curves
from secateur.studies.gains import DENSITY, SPARSE, dense, gain, less, mean
from secateur.studies.measured import LAST, Measured, Row, value

LOW, HIGH = 0.01, 0.1  # the rates of which the paper speaks
_RATES = (0.003, LOW, 0.03, HIGH)  # of the presets
WAYS = {"ticket": "ticket", "control": "new weights"}


def branch_of(way: str, rate: float) -> str:
    """The branch of a way ("ticket", "control") at a first rate."""
    return f"{way} {rate:g}"


branches = tuple(
    Branch(
        branch_of(way, rate),
        f"{words}, rate {rate:g}",
        {
            "ticket": "Pruned by magnitude, back to its initial weights, at this first rate.",
            "control": "The mask of that ticket with new weights, at the same rate.",
        }[way],
    )
    for rate in _RATES
    for way, words in WAYS.items()
)
citation = (
    """@inproceedings{liu2019rethinking,
  title={Rethinking the Value of Network Pruning},
  author={Liu, Zhuang and Sun, Mingjie and Zhou, Tinghui and Huang, Gao and Darrell, Trevor},
  booktitle={International Conference on Learning Representations},
  year={2019}
}""",
    """@inproceedings{frankle2019lottery,
  title={The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks},
  author={Frankle, Jonathan and Carbin, Michael},
  booktitle={International Conference on Learning Representations},
  year={2019}
}""",
)
figures = (
    Curves(
        name="accuracy",
        title="Test accuracy against weights remaining",
        caption="At the last step; each rate has tickets, and so masks, of its own.",
        y="last.test_accuracy",
        y_title="test accuracy",
        percent_y=True,
        **DENSITY,
    ),
    Curves(
        name="gain",
        title="What the ticket's weights bring",
        caption="Test accuracy of the ticket less that of its mask with new weights, points.",
        y="gain",
        y_title="gain in points",
        **DENSITY,
    ),
    Curves(
        name="train-loss",
        title="Training loss",
        caption="At the last step: where it is high, the network was not trained, and what its "
        "test accuracy says of weights is little.",
        y="last.train_loss",
        y_title="training loss",
        y_log=True,
        **DENSITY,
    ),
)

LOSS = value("last.train_loss")
_LIU = "Liu et al. 2019, section 6"
_NEEDS = {"dataset": "cifar10", "optimiser": "momentum"}
_sparse = f"mean over levels with at most {100 * SPARSE:.0f} % of the weights"


def at_rate(of: Any, rate: float) -> Any:
    """per seed: a value of the ticket less that of its control, at a rate, sparse levels."""
    return gain(of, branch_of("ticket", rate), branch_of("control", rate))


claims = (
    Measured(
        Claim(
            "L-1",
            _LIU,
            "At a low rate the ticket's weights are better than new ones.",
            f"test accuracy, ticket minus control at rate {LOW:g}, {_sparse}",
            "above",
            0.0,
            _NEEDS,
            unit="points",
        ),
        at_rate(LAST, LOW),
    ),
    Measured(
        Claim(
            "L-2",
            _LIU,
            "At a high rate they bring nothing (half a point at most: a number of ours).",
            f"test accuracy, ticket minus control at rate {HIGH:g}, {_sparse}",
            "within",
            0.5,
            _NEEDS,
            unit="points",
        ),
        at_rate(LAST, HIGH),
    ),
    Measured(
        Claim(
            "L-3",
            _LIU,
            "So they bring less at the high rate than at the low one.",
            f"gain at rate {LOW:g} minus gain at rate {HIGH:g}, {_sparse}",
            "above",
            0.0,
            _NEEDS,
            unit="points",
        ),
        less(at_rate(LAST, LOW), at_rate(LAST, HIGH)),
    ),
    Measured(
        Claim(
            "L-4",
            "our own question",
            "New weights are as good at the high rate as the ticket at the low one: rescued.",
            f"test accuracy, control at rate {HIGH:g} minus ticket at rate {LOW:g}, {_sparse}",
            "above",
            -0.5,
            unit="points",
        ),
        gain(LAST, branch_of("control", HIGH), branch_of("ticket", LOW)),
    ),
    Measured(
        Claim(
            "L-5",
            "our own question",
            "In training loss, too, the ticket's weights bring less at the high rate.",
            f"training loss, control minus ticket, at rate {LOW:g} minus the same at {HIGH:g}, "
            f"{_sparse}",
            "above",
        ),
        less(at_rate(lambda row: -LOSS(row), LOW), at_rate(lambda row: -LOSS(row), HIGH)),
    ),
)


def sentence(rows: Sequence[Row], fields: Any, data: str) -> str:
    """What was run on what data, and what the ticket's weights brought at each rate."""
    widths = "-".join(map(str, fields.hidden))
    said = f"A network of widths {widths}, {fields.steps:,} steps a level of SGD. Data: {data}."
    found = []
    for rate in sorted({row["rate"] for row in rows}):
        points = mean(at_rate(LAST, rate)(rows))
        if points is not None:
            found.append(f"{points:+.1f} at rate {rate:g}")
    if not found:
        return said
    return (
        f"{said} Points of test accuracy that the ticket's weights bring over new ones, {_sparse}: "
        f"{', '.join(found)}."
    )


def notes(rows: Sequence[Row], fields: Any) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    rates = sorted({row["rate"] for row in rows})
    falls = f"; they fall to a tenth at each of the steps {', '.join(map(str, fields.drops))}"
    said = [
        f"Rates are those of the first step{falls if fields.drops else ''}; momentum 0.9.",
        "Each rate prunes by what it trained, so two rates differ in their masks too.",
    ]
    for rate in rates:
        loss = mean(dense(LOSS, branch_of("ticket", rate))(rows))
        if loss is not None and loss > 1:
            said.append(
                f"At rate {rate:g} the dense network ends at a training loss of {loss:.2f}: it is "
                "hardly trained, and what is compared there are networks that learnt little."
            )
    return said
