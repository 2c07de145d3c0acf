"""What the page of the study `sap-limit` says in words, from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.studies.figures import Branch
from secateur.studies.lottery_words import mean
from secateur.studies.measured import Row

SHUFFLED = " shuffled"
SCORES = " scores"  # of one estimator, after some draws
MASKS = " masks"  # of one estimator, at some draws a round
ONCE = "one round"
CLOSED = "closed form"

_METHODS = (
    ("ntk-sap", "NTK-SAP", "As published: finite differences, 5 draws a round, 20 rounds."),
    ("ntk-sap vjp", "NTK-SAP, vjp", "The same with a less noisy estimator of the trace."),
    ("limit", "limit", "NTK-SAP with infinitely many draws, in closed form: counts paths."),
    ("synflow", "SynFlow", "Keeps the flow of ones through |weights|; 100 rounds, no data."),
    ("random", "uniform random", "Any weights of the network, in one draw."),
)
branches = (
    *(Branch(name, label, told) for name, label, told in _METHODS),
    *(
        Branch(name + SHUFFLED, label + ", shuffled", "The same counts, at random places.")
        for name, label, _ in _METHODS
        if name != "random"
    ),
    Branch("fd" + SCORES, "scores, fd", "Scores of the published estimator."),
    Branch("vjp" + SCORES, "scores, vjp", "Scores of |J^T u|^2, u random signs."),
    Branch("fd" + MASKS, "masks, fd", "Masks of the published estimator."),
    Branch("vjp" + MASKS, "masks, vjp", "Masks of |J^T u|^2, u random signs."),
    Branch(ONCE, "one round", "All weights removed at once."),
    Branch(CLOSED, "closed form", "The mean trace by draws and by the formula."),
)

citation = (
    """@inproceedings{wang2023ntksap,
  title={NTK-SAP: Improving neural network pruning by aligning training dynamics},
  author={Wang, Yite and Li, Dawei and Sun, Ruoyu},
  booktitle={International Conference on Learning Representations},
  year={2023}
}""",
    """@inproceedings{tanaka2020synflow,
  title={Pruning neural networks without any data by iteratively conserving synaptic flow},
  author={Tanaka, Hidenori and Kunin, Daniel and Yamins, Daniel and Ganguli, Surya},
  booktitle={Advances in Neural Information Processing Systems},
  year={2020}
}""",
)


def sentence(rows: Sequence[Row], fields: Any, data: str) -> str:
    """What was run on what data and what came out at the lowest density."""
    wide = "-".join(map(str, fields.hidden))
    wide = f"LeNet-{wide}" if wide == "300-100" else f"A network of widths {wide}"
    begun = f"{wide}, {fields.steps:,} steps. Data: {data}."
    density = 0.8 ** max(fields.levels)
    shown = [name for name, _, _ in _METHODS]
    shown = [name for method in shown for name in (method, method + SHUFFLED)]
    found = {name: mean(rows, name, density) for name in shown}
    labels = {branch.name: branch.label for branch in branches}
    said = [f"{labels[name]} {value:.1f}" for name, value in found.items() if value is not None]
    if not said:
        return begun
    return f"{begun} With {100 * density:.2g} % of the weights, test accuracy in %: " + (
        "; ".join(said) + "."
    )


def notes(rows: Sequence[Row], fields: Any) -> list[str]:
    """The derivation, step by step, and what a reader must know to read the numbers rightly."""
    alike = (
        "Why scores of a dense layer are equal on average: its weights are independent and alike, "
        "and so are the inputs, so renaming units changes no distribution; with all weights alive "
        "any weight of a layer can be renamed into any other."
    )
    conserved = (
        "What they are: each layer's signed scores sum to twice the trace, for every draw. So the "
        "expected score is 2 tr / N in a layer of N weights, and the smallest layers are kept."
    )
    mean_trace = (
        "What the mean is at any mask: given the layers below, flipping the signs of all weights "
        "into one unit swaps its gate and changes nothing else, so every gate is worth one half, "
        "and products of different paths have mean 0. With variances v_l of L layers, E tr = "
        "2^(1-L) prod v_l sum 1/v_l times the sum over inputs and surviving paths of x^2. In the "
        "limit NTK-SAP keeps paths: SynFlow with equal weights."
    )
    equal = (
        "As sums of scores are equal over layers, and within a layer of the limit so are scores, "
        "the limit removes weights from the layer that has most: all end with equally many. Scores "
        "that differ within a layer, by the weights in SynFlow or by noise in NTK-SAP, let small "
        "layers lose weights sooner."
    )
    chance = (
        "Shuffled masks and second masks (overlap) tell what is left to chance. Not all inside a "
        "layer is: rounds concentrate the weights on units that have weights left."
    )
    read = "Test accuracy is read at the last step; nothing is chosen by it."
    said = [alike, conserved, mean_trace, equal, chance, read]
    rounds = {row["provenance"]["rounds"] for row in rows if row["branch"] == "limit"}
    if rounds:
        said.append(
            f"The limit is pruned in {max(rounds)} rounds, as NTK-SAP; SynFlow in its paper's 100."
        )
    return said
