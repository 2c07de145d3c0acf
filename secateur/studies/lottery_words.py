"""What the page of the study `lottery` says in words, from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.prune.branches import BRANCHES
from secateur.studies.figures import Branch
from secateur.studies.measured import LAST, Row, at, value

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


def mean(
    rows: Sequence[Row],
    branch: str,
    density: float,
    of: Any = LAST,
    seeds: set[int] | None = None,
) -> float | None:
    """The mean over seeds (or these seeds) at a density, or None where there are none."""
    found = at(rows, branch, density)
    values = [of(row) for seed, row in found.items() if seeds is None or seed in seeds]
    return sum(values) / len(values) if values else None


_PARTS = {"train": "to train on", "validation": "for validation", "test": "for test"}


def sentence(rows: Sequence[Row], fields: Any, data: str) -> str:
    """What was run on what data and what came out, over the seeds that all branches share there."""
    network = "-".join(map(str, fields.hidden))
    network = f"LeNet-{network}" if network == "300-100" else f"A network of widths {network}"
    begun = f"{network}, {fields.steps:,} steps a level. Data: {data}."
    others = (
        ("control", "the same mask re-initialised"),
        ("chain", "re-initialised at every level"),
        ("none", "not rewound at all"),
    )
    there = {row["branch"] for row in rows}
    wanted = [(branch, words) for branch, words in others if branch in there]
    for density in (0.0358, 0.0447, 0.0695, 0.1083, 0.211, 0.513):
        shared = set(at(rows, "rewind", density)) & set(at(rows, "dense", 1.0))
        for branch, _ in wanted:
            shared &= set(at(rows, branch, density))
        if not shared:
            continue
        numbers = {b: mean(rows, b, density, seeds=shared) for b in ("rewind", *dict(wanted))}
        dense = mean(rows, "dense", 1.0, seeds=shared)
        said = f"With {100 * density:.2g} % of its weights the rewound ticket reads "
        said += f"{numbers['rewind']:.1f} % of the test images right (dense: {dense:.1f})"
        said += "".join(f"; {words} {numbers[branch]:.1f}" for branch, words in wanted)
        count = f"{len(shared)} seed{'s' if len(shared) != 1 else ''}"
        return f"{begun} {said}. Means over {count}."
    dense = mean(rows, "dense", 1.0)
    return begun if dense is None else f"{begun} Dense, {dense:.1f} % of the test images are right."


def notes(rows: Sequence[Row], fields: Any) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    said = [
        "Nothing is chosen by test accuracy: it is read at the last step and at early stopping.",
    ]
    split = next((row["split"] for row in rows if row.get("split")), None)
    if split:
        parts = [f"{split[k]:,} {words}" for k, words in _PARTS.items() if k in split]
        said.append(
            f"All seeds share one cut of the data ({', '.join(parts)}): the intervals are "
            "over initial weights and data order, not over test images."
        )
    ends = [row["best"]["step"] for row in rows if row["branch"] != "none"]
    late = sum(step == fields.steps for step in ends)
    if late:
        said.append(
            f"In {late} of {len(ends)} trainings the validation loss was lowest at the end: "
            "early stopping would have come later, or never. A network that is not "
            "rewound begins trained, so its lowest loss may be at step 0."
        )
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
