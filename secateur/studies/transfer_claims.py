"""What Morcos et al. claim of carried tickets, as data, and what the page says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.lab.verdicts import Claim
from secateur.studies.figures import Branch, Curves
from secateur.studies.gains import DENSITY, SPARSE, gain, mean
from secateur.studies.measured import LAST, Measured, Row

PAIR = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}  # of the presets
WAYS = {
    "own": ("its own ticket", "Found and trained on this data set."),
    "carried": (
        "the other's ticket",
        "Mask and initial weights found on the other data set, trained on this one.",
    ),
    "control": ("the other's mask, new weights", "The carried mask with a new draw of weights."),
    "shuffled": (
        "the other's mask, shuffled",
        "As many weights of each layer, chosen at random, with their initial values.",
    ),
}


def branch_of(way: str, on: str) -> str:
    """The branch of a way on a data set."""
    return f"{on}: {way}"


branches = tuple(
    Branch(branch_of(way, on), f"{title}: {label}", words)
    for on, title in PAIR.items()
    for way, (label, words) in WAYS.items()
)
citation = (
    """@inproceedings{morcos2019one,
  title={One Ticket to Win Them All: Generalizing Lottery Ticket Initializations Across Datasets
    and Optimizers},
  author={Morcos, Ari S. and Yu, Haonan and Paganini, Michela and Tian, Yuandong},
  booktitle={Advances in Neural Information Processing Systems},
  year={2019}
}""",
)
figures = (
    Curves(
        name="accuracy",
        title="Test accuracy against weights remaining",
        caption="At the last step, on the data set that is named first.",
        y="last.test_accuracy",
        y_title="test accuracy",
        percent_y=True,
        **DENSITY,
    ),
    Curves(
        name="train-loss",
        title="Training loss",
        caption="At the last step.",
        y="last.train_loss",
        y_title="training loss",
        y_log=True,
        **DENSITY,
    ),
)

_MORCOS = "Morcos et al. 2019"
_NEEDS = {"dataset": "cifar10", "optimiser": "momentum"}
_sparse = f"mean over levels with at most {100 * SPARSE:.0f} % of the weights"


def _on(on: str) -> tuple[Measured, ...]:
    """The claims on one data set."""
    title = PAIR[on]
    other = next(name for key, name in PAIR.items() if key != on)
    code = title[0]
    lead = lambda a, b: gain(LAST, branch_of(a, on), branch_of(b, on))
    words = lambda a, b: f"test accuracy on {title}, {a} minus {b}, {_sparse}"
    return (
        Measured(
            Claim(
                f"MO-1{code}",
                _MORCOS,
                f"A ticket found on {other} trains better on {title} than a random one.",
                words("the other's ticket", "the same mask shuffled in each layer"),
                "above",
                0.0,
                _NEEDS,
                unit="points",
            ),
            lead("carried", "shuffled"),
        ),
        Measured(
            Claim(
                f"MO-2{code}",
                _MORCOS,
                f"It is close to {title}'s own ticket (half a point: a number of ours).",
                words("the other's ticket", "its own"),
                "within",
                0.5,
                _NEEDS,
                unit="points",
            ),
            lead("carried", "own"),
        ),
        Measured(
            Claim(
                f"MO-3{code}",
                "our own question",
                "Its initial weights count there too: new ones under its mask are worse.",
                words("the other's ticket", "its mask with new weights"),
                "above",
                0.0,
                unit="points",
            ),
            lead("carried", "control"),
        ),
        Measured(
            Claim(
                f"MO-4{code}",
                "our own question",
                "Its mask alone carries over: with new weights it is better than a random ticket.",
                words("the other's mask with new weights", "the same mask shuffled"),
                "above",
                0.0,
                unit="points",
            ),
            lead("control", "shuffled"),
        ),
    )


claims = tuple(measured for on in PAIR for measured in _on(on))


def sentence(rows: Sequence[Row], fields: Any, data: str) -> str:
    """What was run, and how far carried tickets are from own and from random ones."""
    widths = "-".join(map(str, fields.hidden))
    said = f"A network of widths {widths}, {fields.steps:,} steps a level. Data: {data} and "
    said += f"{PAIR.get(fields.other, fields.other)}."
    for on in (fields.dataset, fields.other):
        lead = {
            b: mean(gain(LAST, branch_of("carried", on), branch_of(b, on))(rows))
            for b in ("own", "shuffled")
        }
        if lead["own"] is not None and lead["shuffled"] is not None:
            said += (
                f" On {PAIR.get(on, on)} the carried ticket is {lead['own']:+.1f} points from its "
                f"own and {lead['shuffled']:+.1f} from a random one ({_sparse})."
            )
    return said


def notes(rows: Sequence[Row], fields: Any) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    return [
        "On both data sets a seed begins at the same weights: tickets differ in their masks alone.",
        "A shuffled mask knows nothing of the initial weights: it is the paper's random ticket.",
    ]
