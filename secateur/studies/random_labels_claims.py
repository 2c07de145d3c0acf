"""What is claimed of networks under random labels, and what the page says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.lab.verdicts import Claim
from secateur.studies.figures import Branch, Curves
from secateur.studies.gains import DENSITY, SPARSE, dense, gain, less, mean, over
from secateur.studies.measured import LAST, Measured, Row, value

LABELS = ("true", "permuted")
OTHER = "permuted, other labels"
OTHER_CONTROL = "permuted, control, other labels"
SHUFFLED = "permuted, shuffled"
FITTED = 0.99  # a training set counts as fitted from this share on


def control_of(labels: str) -> str:
    """The branch of a ticket's mask with new weights, under these labels."""
    return f"{labels}, control"


branches = (
    Branch("true", "true labels: ticket", "Pruned by magnitude, back to its initial weights."),
    Branch("true, control", "true labels: re-initialised", "The ticket's mask with new weights."),
    Branch(
        "permuted",
        "permuted labels: ticket",
        "The same, trained and pruned with the training labels in a random order.",
    ),
    Branch(
        "permuted, control",
        "permuted labels: re-initialised",
        "The mask of that ticket with new weights, the same permuted labels.",
    ),
    Branch(
        OTHER,
        "that ticket, other labels",
        "The ticket of permuted labels, mask and initial weights, trained on labels that were "
        "permuted in another way.",
    ),
    Branch(
        OTHER_CONTROL,
        "its mask re-initialised, other labels",
        "The mask of the ticket of permuted labels with new weights, trained on those others.",
    ),
    Branch(
        SHUFFLED,
        "permuted labels: mask shuffled",
        "That mask permuted inside each layer, on the ticket's initial weights.",
    ),
)
citation = (
    """@inproceedings{zhang2017understanding,
  title={Understanding Deep Learning Requires Rethinking Generalization},
  author={Zhang, Chiyuan and Bengio, Samy and Hardt, Moritz and Recht, Benjamin and Vinyals, Oriol},
  booktitle={International Conference on Learning Representations},
  year={2017}
}""",
    """@inproceedings{frankle2019lottery,
  title={The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks},
  author={Frankle, Jonathan and Carbin, Michael},
  booktitle={International Conference on Learning Representations},
  year={2019}
}""",
    """@misc{heitmann2020sources,
  title={Sources of Redundancy in Neural Networks},
  author={Heitmann, Julien},
  year={2020}
}""",
)

figures = (
    Curves(
        name="train",
        title="How much of the training set is learnt",
        caption="Training accuracy at the last step, by the labels that were trained on. Permuted "
        "labels can only be learnt by heart: what is left of the network is what they need.",
        y="last.train_accuracy",
        y_title="training accuracy",
        percent_y=True,
        **DENSITY,
    ),
    Curves(
        name="test",
        title="Test accuracy",
        caption="On true labels, at the last step.",
        y="last.test_accuracy",
        y_title="test accuracy",
        percent_y=True,
        **DENSITY,
    ),
    Curves(
        name="fit",
        title="Steps until the examples are fitted",
        caption=f"First evaluation at which {100 * FITTED:.0f} % of some training examples are "
        "right; networks that never get there have no point.",
        y="fit.step",
        y_title="steps",
        y_log=True,
        **DENSITY,
    ),
    Curves(
        name="movement",
        title="How far weights move",
        caption="Length of the change of all weights of the mask, over their length at the start.",
        y="movement.all",
        y_title="movement over start",
        **DENSITY,
    ),
    Curves(
        name="excess",
        title="Alignment of the first layer's units",
        caption="Frame potential over that of directions at random on the same supports: 0 for "
        "these, 1 if all units point along one line. After training.",
        y="excess.dense_1/kernel.end",
        y_title="excess of the frame potential",
        **DENSITY,
    ),
    Curves(
        name="trained-cka",
        title="The last hidden layer and the labels it was trained on",
        caption="Centred alignment (linear CKA) of its activations with the labels of the same "
        "training examples, after training: 1 where examples of a class are one point and classes "
        "lie apart.",
        y="cka.trained.end",
        y_title="alignment",
        **DENSITY,
    ),
    Curves(
        name="true-cka",
        title="The last hidden layer and the true labels",
        caption="The same with the true labels: what is left of the classes where other labels "
        "were learnt.",
        y="cka.true.end",
        y_title="alignment",
        **DENSITY,
    ),
)

TRAIN = value("last.train_accuracy", 100)
_OURS = "our own question"
_ZHANG = "Zhang et al. 2017"
_THEIRS = {"dataset": "cifar10", "examples": 50_000}
_FC = "Frankle & Carbin 2019, asked of permuted labels by us"
_sparse = f"mean over levels with at most {100 * SPARSE:.0f} % of the weights"


def _claim(
    id: str,
    source: str,
    statement: str,
    measure: str,
    per_seed: Any,
    margin: float = 0.0,
    **more: Any,
) -> Measured:
    comparison, needs = more.pop("comparison", "above"), more.pop("needs", {})
    claim = Claim(id, source, statement, measure, comparison, margin, needs, **more)
    return Measured(claim, per_seed)


def _chance(rows: Sequence[Row]) -> dict[int, float]:
    return {s: v - 10 for s, v in dense(LAST, "permuted")(rows).items()}


_EXCESS = "excess.dense_1/kernel"
_rise = less(
    dense(value(f"{_EXCESS}.end", 100), "permuted"),
    dense(value(f"{_EXCESS}.start", 100), "permuted"),
)

claims = (
    _claim(
        "G-2",
        _ZHANG,
        "A network fits labels that say nothing of the images.",
        "training accuracy at the last step under permuted labels, dense",
        dense(TRAIN, "permuted"),
        99.0,
        needs=_THEIRS,
        paper=100.0,
        unit="%",
    ),
    _claim(
        "G-2t",
        _ZHANG,
        "And is right on other images by chance alone.",
        "test accuracy less 10 % under permuted labels, dense",
        _chance,
        3.0,
        comparison="within",
        needs=_THEIRS,
        paper=0.0,
        unit="points",
    ),
    _claim(
        "G-2s",
        _ZHANG,
        "It takes longer by a small factor only (small: 5, a number of ours).",
        f"steps until {100 * FITTED:.0f} % of the probe is right, permuted over true labels, dense",
        over(dense(value("fit.step"), "permuted"), dense(value("fit.step"), "true")),
        5.0,
        comparison="below",
        needs=_THEIRS,
        unit="times",
    ),
    _claim(
        "G-2m",
        _OURS,
        "Weights move further for permuted labels: by half at least.",
        "length of the change of all weights, permuted over true labels, dense",
        over(dense(value("movement.all"), "permuted"), dense(value("movement.all"), "true")),
        1.5,
        unit="times",
    ),
    _claim(
        "FC-5",
        "Frankle & Carbin 2019",
        "A ticket generalises better than its mask with new weights (true labels).",
        f"test accuracy, ticket minus control, {_sparse}",
        gain(LAST, "true", "true, control"),
        needs={"dataset": "mnist", "hidden": [300, 100], "steps": 50_000},
        unit="points",
    ),
    _claim(
        "RL-1",
        _FC,
        "A ticket exists under random labels too: it fits more of them than new weights do.",
        f"training accuracy under permuted labels, ticket minus control, {_sparse}",
        gain(TRAIN, "permuted", "permuted, control"),
        unit="points",
    ),
    _claim(
        "RL-1m",
        _OURS,
        "It is a ticket for these labels: of others, permuted in another way, it fits fewer.",
        f"training accuracy, ticket on its own labels minus on others, {_sparse}",
        gain(TRAIN, "permuted", OTHER),
        unit="points",
    ),
    _claim(
        "RL-1o",
        _OURS,
        "Of others, too, it fits more than new weights under its mask do.",
        f"training accuracy on other permuted labels, ticket minus new weights, {_sparse}",
        gain(TRAIN, OTHER, OTHER_CONTROL),
        unit="points",
    ),
    _claim(
        "RL-1k",
        _OURS,
        "Its mask serves any labels: with new weights, on others, it fits more than shuffled.",
        "training accuracy, new weights on other permuted labels minus the shuffled mask on the "
        f"ticket's own, {_sparse}",
        gain(TRAIN, OTHER_CONTROL, SHUFFLED),
        unit="points",
    ),
    _claim(
        "RL-1t",
        _FC,
        "Under true labels, too, the ticket fits more of the training set.",
        f"training accuracy under true labels, ticket minus control, {_sparse}",
        gain(TRAIN, "true", "true, control"),
        unit="points",
    ),
    _claim(
        "RL-2",
        "Heitmann 2020, asked of permuted labels by us",
        "Weight vectors align in training under permuted labels too.",
        "excess of the first layer's frame potential (100: all one), end minus start, dense",
        _rise,
    ),
    _claim(
        "RL-3",
        _OURS,
        "They align more where the labels mean something.",
        "the same at the end, true minus permuted labels, dense",
        less(
            dense(value(f"{_EXCESS}.end", 100), "true"),
            dense(value(f"{_EXCESS}.end", 100), "permuted"),
        ),
    ),
    _claim(
        "RL-4",
        _OURS,
        "The last hidden layer takes up labels that mean something more than others.",
        "alignment with the labels trained on, at the end, true minus permuted labels, dense",
        less(dense(value("cka.trained.end"), "true"), dense(value("cka.trained.end"), "permuted")),
    ),
    _claim(
        "RL-5",
        _OURS,
        "To learn permuted labels it gives up the true classes.",
        "alignment with the true labels under permuted ones, end minus start, dense",
        less(dense(value("cka.true.end"), "permuted"), dense(value("cka.true.start"), "permuted")),
        comparison="below",
    ),
)


def sentence(rows: Sequence[Row], fields: Any, data: str) -> str:
    """What was run on what data, and what the dense network learnt."""
    widths = "-".join(map(str, fields.hidden))
    kept = f"{fields.examples:,} training examples" if fields.examples else "all training examples"
    said = f"A network of widths {widths}, {kept}, {fields.steps:,} steps a level. Data: {data}."
    for labels in LABELS:
        train, test = mean(dense(TRAIN, labels)(rows)), mean(dense(LAST, labels)(rows))
        if train is not None and test is not None:
            said += (
                f" Under {labels} labels the dense network has {train:.1f} % of its training and "
                f"{test:.1f} % of the test images right."
            )
    return said


def notes(rows: Sequence[Mapping[str, Any]], fields: Any) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    said = [
        "Validation and test labels are true; everything here is read at the last step.",
        "Labels are permuted among the training examples: each class keeps its number of them.",
    ]
    changed = [row["changed"] for row in rows if row["labels"] == "permuted"]
    if changed:
        said.append(
            f"{100 * sum(changed) / len(changed):.0f} % of the training labels are changed by it; "
            "the others stay true by chance."
        )
    return said
