"""What the papers claim of lottery tickets, as data, and the numbers that tell.

The statements and numbers of Frankle & Carbin 2019 stand for LeNet-300-100 on MNIST, Adam 1.2e-3,
batch 60, 50,000 steps, 20 % a level and 10 % of the output layer. "Early stop" is the step of the
lowest validation loss; accuracies there are on the test set.
"""

from __future__ import annotations

from secateur.lab.verdicts import Claim
from secateur.studies.measured import (
    EARLY,
    LAST,
    STOP,
    Measured,
    difference,
    lowest,
    ratio,
    value,
)

_PAPER = {
    "dataset": "mnist",
    "steps": 50_000,
    "hidden": [300, 100],
    "initialiser": "glorot_normal",
    "optimiser": "adam",
    "learning_rate": 1.2e-3,
    "batch": 60,
    "prune": 0.2,
    "prune_output": 0.1,
    "scope": "layer",
}
# Kumar, Zhou and Su print no settings for MNIST that could be met or missed beyond these.
_MNIST = {"dataset": "mnist", "steps": 5_000, "hidden": [300, 100]}
_FC = "Frankle & Carbin 2019"
_KUMAR = "Kumar, figure 1"
_ZHOU = "Zhou et al. 2019"


_DENSE = ("dense", 1.0)

CLAIMS: tuple[Measured, ...] = (
    Measured(
        Claim(
            "FC-1",
            _FC,
            "Winning tickets with 21 % of the weights are as accurate as the dense network.",
            "test accuracy at early stop, ticket at 21.1 % minus dense",
            "above",
            -0.1,
            _PAPER,
            unit="points",
        ),
        difference(EARLY, ("rewind", 0.211), _DENSE),
    ),
    Measured(
        Claim(
            "FC-2",
            _FC,
            "They learn faster: at 21 % of the weights early stopping comes 38 % earlier.",
            "step of early stop, ticket at 21.1 % over dense",
            "below",
            0.82,
            _PAPER,
            paper=0.62,
            unit="ratio",
        ),
        ratio(STOP, ("rewind", 0.211), _DENSE),
    ),
    Measured(
        Claim(
            "FC-3",
            _FC,
            "At 13.5 % of the weights they are more accurate than the dense network.",
            "test accuracy at early stop, ticket at 13.5 % minus dense",
            "above",
            0.0,
            _PAPER,
            paper=0.3,
            unit="points",
        ),
        difference(EARLY, ("rewind", 0.135), _DENSE),
    ),
    Measured(
        Claim(
            "FC-4",
            _FC,
            "At 3.6 % of the weights they are back at the accuracy of the dense network.",
            "test accuracy at early stop, ticket at 3.6 % minus dense",
            "within",
            0.3,
            _PAPER,
            paper=0.0,
            unit="points",
        ),
        difference(EARLY, ("rewind", 0.0358), _DENSE),
    ),
    Measured(
        Claim(
            "FC-5",
            _FC,
            "Re-initialised, the same mask is less accurate: by half a point at 21 %.",
            "test accuracy at early stop, ticket minus its mask re-initialised, at 21.1 %",
            "above",
            0.0,
            _PAPER,
            paper=0.5,
            unit="points",
        ),
        difference(EARLY, ("rewind", 0.211), ("control", 0.211)),
    ),
    Measured(
        Claim(
            "FC-5b",
            _FC,
            "Re-initialised, it learns slower: the ticket is 2.51 times faster at 21 %.",
            "step of early stop, ticket's mask re-initialised over ticket, at 21.1 %",
            "above",
            1.3,
            _PAPER,
            paper=2.51,
            unit="ratio",
        ),
        ratio(STOP, ("control", 0.211), ("rewind", 0.211)),
    ),
    Measured(
        Claim(
            "FC-6",
            _FC,
            "Pruning iteratively finds better small tickets than pruning once.",
            "test accuracy at early stop, ticket minus one-shot, at 3.6 %",
            "above",
            0.0,
            _PAPER,
            unit="points",
        ),
        difference(EARLY, ("rewind", 0.0358), ("one-shot", 0.0358)),
    ),
    Measured(
        Claim(
            "FC-8",
            _FC,
            "Tickets with at least 5 % of the weights fit the training set completely.",
            "lowest training accuracy at the last step of all tickets with 5 % or more",
            "above",
            99.9,
            _PAPER,
            paper=100.0,
            unit="%",
        ),
        lowest(value("last.train_accuracy", 100), "rewind", 0.05),
    ),
    Measured(
        Claim(
            "K-1a",
            _KUMAR,
            "Without rewinding, accuracy degrades rapidly: rewinding is necessary.",
            "test accuracy at the last step, rewound minus not rewound, at 2.3 %",
            "above",
            0.0,
            _MNIST,
            unit="points",
        ),
        difference(LAST, ("rewind", 0.0231), ("none", 0.0231)),
    ),
    Measured(
        Claim(
            "K-1b",
            _KUMAR,
            "Rewinding to new random weights degrades rapidly where rewinding to the old does not.",
            "test accuracy at the last step, rewound minus re-initialised at every level, at 2.3 %",
            "above",
            0.0,
            _MNIST,
            unit="points",
        ),
        difference(LAST, ("rewind", 0.0231), ("chain", 0.0231)),
    ),
    Measured(
        Claim(
            "ZH-1",
            _ZHOU,
            "The signs are what counts: new magnitudes with the old signs train as well.",
            "test accuracy at the last step, ticket minus same-sign re-initialisation, at 2.3 %",
            "within",
            2.0,
            _MNIST,
            unit="points",
        ),
        difference(LAST, ("rewind", 0.0231), ("same-sign", 0.0231)),
    ),
    Measured(
        Claim(
            "SU-1",
            "Su et al. 2020",
            "The ticket's mask matters beyond its layer densities.",
            "test accuracy at the last step, ticket minus its mask shuffled, at 3.6 %",
            "above",
            2.0,
            _MNIST,
            unit="points",
        ),
        difference(LAST, ("rewind", 0.0358), ("shuffled", 0.0358)),
    ),
)
