"""What the page of the study `at-init` says in words, from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.studies.figures import Branch
from secateur.studies.lottery_words import mean
from secateur.studies.measured import LAST, Row

# Sanity controls, in a branch's name behind the method: "snip shuffled".
CONTROLS = {
    "shuffled": "The same counts, at random places.",
    "reinitialised": "The same mask, other initial weights.",
    "inverted": "What the method would keep goes first, in every round.",
    "random-labels": "The method, scored on random labels.",
    "noise": "The method, scored on noise.",
}

_METHODS = (
    (
        "ticket",
        "lottery ticket",
        "Found by training: 20 % a level by magnitude, ranked together, rewound.",
    ),
    ("synflow", "SynFlow", "Keeps the flow of ones through |weights|; 100 rounds, no data."),
    ("ntk-sap", "NTK-SAP", "Keeps the trace of the tangent kernel over random weights; no data."),
    ("snip", "SNIP", "Keeps the weights that change the loss most, to first order."),
    ("grasp", "GraSP", "Keeps the weights whose loss would reduce the gradient's norm most."),
    ("magnitude", "magnitude", "Keeps the largest initial weights."),
    ("random", "random", "Keeps each layer's share at random places."),
    ("iterative-snip", "iterative SNIP", "SNIP in rounds."),
    ("force", "FORCE", "SNIP in rounds, where pruned weights may come back."),
    ("logit-snip", "Logit-SNIP", "SNIP on the squared logits, without labels."),
    ("synflow-l2", "SynFlow-L2", "SynFlow with squared weights."),
    ("path-trace", "path kernel", "Keeps the trace of the path kernel."),
    ("phew", "PHEW", "Random walks along large weights, whole paths at a time."),
    ("lamp", "LAMP", "Magnitude, rescaled by what is left of the layer."),
)
branches = (
    *(Branch(name, label, told) for name, label, told in _METHODS),
    *(
        Branch(f"{name} {control}", f"{label}, {control.replace('-', ' ')}", told)
        for control, told in CONTROLS.items()
        for name, label, _ in _METHODS
    ),
)

citation = (
    """@inproceedings{frankle2021pruning,
  title={Pruning Neural Networks at Initialization: Why Are We Missing the Mark?},
  author={Frankle, Jonathan and Dziugaite, Gintare Karolina and Roy, Daniel and Carbin, Michael},
  booktitle={International Conference on Learning Representations},
  year={2021}
}""",
    """@inproceedings{wang2023ntksap,
  title={NTK-SAP: Improving neural network pruning by aligning training dynamics},
  author={Wang, Yite and Li, Dawei and Sun, Ruoyu},
  booktitle={International Conference on Learning Representations},
  year={2023}
}""",
)


def sentence(rows: Sequence[Row], fields: Any, data: str) -> str:
    """What was run on what data and what came out at the lowest density."""
    begun = f"{fields.network}, {fields.steps:,} steps. Data: {data}."
    levels = [row["level"] for row in rows if row["level"]]
    if not levels:
        return begun
    density = fields.keep ** max(levels)
    names = dict.fromkeys(row["branch"] for row in rows if row["branch"] != "dense")
    labels = {branch.name: branch.label for branch in branches}
    found = {name: mean(rows, name, density) for name in names if " " not in name}
    ranked = sorted(((v, k) for k, v in found.items() if v is not None), reverse=True)
    said = ", ".join(f"{labels.get(name, name)} {value:.1f}" for value, name in ranked)
    dense = mean(rows, "dense", 1.0, LAST)
    ends = f" (dense: {dense:.1f})" if dense is not None else ""
    return f"{begun} With {100 * density:.2g} % of the weights, test accuracy in %: {said}{ends}."


def notes(rows: Sequence[Row], fields: Any) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    paired = (
        "All trainings of a seed begin with the same weights and see the same examples in the same "
        "order; each method has its paper's rounds, schedule and options."
    )
    said = ["Test accuracy is read at the last step; nothing is chosen by it.", paired]
    dead = dict.fromkeys(
        f"{row['branch']} at level {row['level']}" for row in rows if row.get("collapsed")
    )
    if dead:
        said.append(
            "No path is left from input to output in: " + ", ".join(dead) + ". Such a network "
            "learns its output biases alone."
        )
    return said
