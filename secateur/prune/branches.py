"""The ways to go on from a pruned network, by name. Plain data: nothing here needs jax."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Branch:
    """One way to go on from a pruned network.

    Attributes:
        name, title: in the command and on the page.
        sentence: what the branch does, for the reader who does not know the term.
        masks: ``own`` (pruned from its own previous level), ``ticket`` (the mask of the rewound
            ticket of the same level), ``shuffled`` (that mask permuted inside each layer),
            ``random`` (from its own previous level as many weights per layer go, chosen at
            random), ``one-shot`` (the dense network pruned once to the same counts).
        weights: ``initial``, ``late`` (step k of the dense run), ``fresh`` (a new draw each level),
            ``same-sign`` (a new draw with the signs of the initial weights), ``trained`` (go on).
        source: who proposed it.
        last_rate: the schedule is replaced by its last rate (fine-tuning, Han et al. 2015).
    """

    name: str
    title: str
    sentence: str
    masks: str
    weights: str
    source: str
    last_rate: bool = False

    @property
    def follows(self) -> str:
        """Whose previous level gives the mask: ``own``, ``ticket`` or ``dense`` (level 0)."""
        follows = {"own": "own", "random": "own", "ticket": "ticket", "shuffled": "ticket"}
        return follows.get(self.masks, "dense")


_FC = "Frankle & Carbin 2019"
BRANCHES: dict[str, Branch] = {
    b.name: b
    for b in (
        Branch(
            "rewind",
            "rewound",
            "The ticket: pruned by magnitude, back to its initial weights at every level.",
            "own",
            "initial",
            _FC,
        ),
        Branch(
            "control",
            "ticket's mask, re-initialised",
            "The mask of the ticket, with a new draw of weights.",
            "ticket",
            "fresh",
            _FC,
        ),
        Branch(
            "chain",
            "re-initialised at each level",
            "A new draw of weights at every level, whose training gives the next mask.",
            "own",
            "fresh",
            "Kumar, figure 1",
        ),
        Branch(
            "none",
            "not rewound",
            "Training goes on from the trained weights, at the schedule's last rate.",
            "own",
            "trained",
            "Han et al. 2015",
            last_rate=True,
        ),
        Branch(
            "late",
            "rewound to step k",
            "Back to the weights of step k of the dense run; the schedule begins there too.",
            "own",
            "late",
            "Frankle et al. 2020",
        ),
        Branch(
            "same-sign",
            "re-initialised, same signs",
            "The ticket's mask; new magnitudes with the signs of the initial weights.",
            "ticket",
            "same-sign",
            "Zhou et al. 2019",
        ),
        Branch(
            "rate-rewind",
            "learning rate rewound",
            "Training goes on from the trained weights; the schedule begins again.",
            "own",
            "trained",
            "Renda et al. 2020",
        ),
        Branch(
            "one-shot",
            "pruned once",
            "The dense network pruned once to the same counts, back to its initial weights.",
            "one-shot",
            "initial",
            _FC,
        ),
        Branch(
            "random",
            "random mask",
            "Initial weights; at every level as many weights per layer go, chosen at random.",
            "random",
            "initial",
            _FC,
        ),
        Branch(
            "shuffled",
            "ticket's mask shuffled",
            "Initial weights under the ticket's mask permuted inside each layer.",
            "shuffled",
            "initial",
            "Su et al. 2020",
        ),
    )
}
