"""What the page of the study `ntt` says in words, from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.studies.figures import Branch
from secateur.studies.lottery_words import mean
from secateur.studies.measured import Row, at

branches = (
    Branch("ntt", "transfer", "Neural tangent transfer by the kernel of masked training."),
    Branch(
        "ntt-full",
        "transfer, full kernel",
        "The same by the kernel of the published code, which counts derivatives by pruned weights.",
    ),
    Branch("ntt-global", "transfer, global", "Ranked over all layers, begun from Logit-SNIP."),
    Branch("ntt-mask", "transfer's mask", "Transfer's mask on the initial weights."),
    Branch("ntt-shuffled", "transfer, shuffled", "Its layer counts at random places."),
    Branch("random", "random", "Each layer's share at uniformly random places."),
    Branch(
        "ntt-random-variable",
        "random, as the code",
        "The published baseline: the magnitude mask shuffled along one axis, always by one key.",
    ),
    Branch(
        "ntt-random-fixed", "random, as the code, rescaled", "The same, weights over sqrt(density)."
    ),
    Branch("snip", "SNIP", "One ranking over all layers."),
    Branch("layerwise-snip", "SNIP, layerwise", "The same density in each layer."),
    Branch("logit-snip", "Logit-SNIP", "Without labels; one ranking over all layers."),
    Branch("layerwise-logit-snip", "Logit-SNIP, layerwise", "The same density in each layer."),
    Branch("magnitude-layerwise", "magnitude", "Where transfer begins: each layer's largest."),
)

citation = (
    """@inproceedings{liu2020finding,
  title={Finding trainable sparse networks through Neural Tangent Transfer},
  author={Liu, Tianlin and Zenke, Friedemann},
  booktitle={International Conference on Machine Learning},
  year={2020}
}""",
)


def sentence(rows: Sequence[Row], fields: Any, data: str) -> str:
    """What was run on what data and what came out at the lowest density."""
    length = f"{fields.transfer_steps:,} steps" if fields.transfer_steps else ""
    length = length or f"{fields.transfer_epochs} epochs"
    begun = f"{fields.network}, {length} of transfer, {fields.steps:,} steps of training."
    begun += f" Data: {data}."
    levels = [row["level"] for row in rows if row["level"]]
    if not levels:
        return begun
    density = 1 - max(levels) / 100
    labels = {branch.name: branch.label for branch in branches}
    names = dict.fromkeys(row["branch"] for row in rows if row["branch"] != "dense")
    found = {name: mean(rows, name, density) for name in names}
    ranked = sorted(((v, k) for k, v in found.items() if v is not None), reverse=True)
    said = ", ".join(f"{labels.get(name, name)} {value:.1f}" for value, name in ranked)
    dense = mean(rows, "dense", 1.0)
    ends = f" (dense: {dense:.1f})" if dense is not None else ""
    return f"{begun} With {100 * density:.2g} % of the weights, test accuracy in %: {said}{ends}."


def notes(rows: Sequence[Row], fields: Any) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    said = [
        "Test accuracy is read at the last step; nothing is chosen by it.",
        "All trainings of a seed see the same examples in the same order.",
        (
            "Transfer sees the images that are trained on, without their labels; the published "
            "code took all but 0.2 % of the published training part."
        ),
        (
            "Distances are mean squared differences on held-out images. Two kernels are recorded "
            "of each run: the masked one, which counts surviving weights and governs the training "
            "of the pruned network, and the full one at the same weights, which the published "
            "code lowers."
        ),
    ]
    if fields.network == "lenet-300-100":
        said.append("Biases begin at 0; in the published code at N(0, 0.01^2).")
    density = 1 - max((row["level"] for row in rows), default=0) / 100
    other = at(rows, "ntt-full", density)
    pairs = [row["transfer"]["curve"] for row in other.values()]
    if pairs:
        share = [p["kernel_masked"][-1] / p["kernel_masked"][0] for p in pairs]
        said.append(
            "After transfer by the full kernel the distance of the masked kernel is "
            f"{100 * sum(share) / len(share):.0f} % of what it was at the start "
            f"({len(pairs)} seed{'s' if len(pairs) != 1 else ''})."
        )
    return said
