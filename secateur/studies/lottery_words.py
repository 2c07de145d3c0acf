"""What the page of the study `lottery` says in words, from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.prune.branches import BRANCHES
from secateur.studies.figures import Branch
from secateur.studies.lottery_claims import LAST, at, value
from secateur.studies.measured import Row

branches = tuple(Branch(b.name, b.title, b.sentence) for b in BRANCHES.values())

citation = (
    """@inproceedings{frankle2019lottery,
  title={The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks},
  author={Frankle, Jonathan and Carbin, Michael},
  booktitle={International Conference on Learning Representations},
  year={2019}
}""",
    """@misc{kumar2023feature,
  title={Feature-aware pruning in MLPs},
  author={Kumar, Tanishq},
  year={2023}
}""",
)


def mean(rows: Sequence[Row], branch: str, density: float, of: Any = LAST) -> float | None:
    """The mean over seeds at a density, or None where the branch was not run there."""
    found = [of(row) for row in at(rows, branch, density).values()]
    return sum(found) / len(found) if found else None


def sentence(rows: Sequence[Row], fields: Any, data: str) -> str:
    """What was run on what data and what came out."""
    seeds = len({row["seed"] for row in rows})
    network = "-".join(map(str, fields.hidden))
    network = f"LeNet-{network}" if network == "300-100" else f"a {network} network"
    dense = mean(rows, "dense", 1.0)
    begun = f"{network} on {data}, {seeds} seed{'s' if seeds != 1 else ''}, {fields.steps:,} steps"
    if dense is None:
        return f"{begun} a level."
    for density in (0.0358, 0.0447, 0.0695, 0.1083, 0.211, 0.513):
        ticket = mean(rows, "rewind", density)
        if ticket is None:
            continue
        said = f"with {100 * density:.3g} % of its weights the rewound ticket reads {ticket:.1f} %"
        others = []
        for branch, words in (
            ("control", "the same mask re-initialised"),
            ("chain", "re-initialised at every level"),
            ("none", "not rewound at all"),
        ):
            found = mean(rows, branch, density)
            if found is not None:
                others.append(f"{words} {found:.1f}")
        return (
            f"{begun} a level: {said} of the test images right (dense: {dense:.1f})"
            + ("; " + ", ".join(others) if others else "")
            + "."
        )
    return f"{begun} a level; dense, {dense:.1f} % of the test images are right."


def notes(rows: Sequence[Row], fields: Any) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    said = [
        "Nothing is chosen by test accuracy: it is read at the last step and at early stopping.",
    ]
    density = min((row["density"] for row in rows), default=1.0)
    ticket, going = mean(rows, "rewind", density), mean(rows, "none", density)
    if ticket is not None and going is not None:
        steps = value("total_steps")
        total = mean(rows, "none", density, steps)
        which = "ahead of" if going > ticket else "behind"
        said.append(
            f"At {100 * density:.2g} % of the weights the network that was never rewound is "
            f"{abs(going - ticket):.1f} points {which} the ticket; by then it has trained "
            f"{total:,.0f} steps in a row, where the ticket's last training took {fields.steps:,}."
        )
    shrunk = [row for row in rows if row.get("widths")]
    if shrunk:
        said.append(
            f"{len(shrunk)} of {len(rows)} trainings ran as the exact smaller network (rows and "
            "columns that are entirely masked cut out)."
        )
    if "chain" in {row["branch"] for row in rows}:
        said.append(
            'Two designs of "random rewind" are shown: the ticket\'s own mask with new weights '
            "(Frankle & Carbin's control), and pruning along new weights at every level (the "
            "natural reading of Kumar)."
        )
    return said
