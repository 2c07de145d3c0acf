"""Two observations of Heitmann on weight vectors, as numbers over seeds.

    python scripts/heitmann.py [--seeds 5]

Writes docs/results/heitmann.csv: part, measure, mean, low, high, seeds (95 % t intervals).

- H-4: after training, the alignment graph of a first dense layer is one large component of long
  weight vectors and short ones that stay outside. The correlation of a unit's norm and its degree
  over the 300 units of LeNet-300-100, before and after 600 steps. Edges: of weight 0.37 and more,
  as in the published code, or of an inner product of 0.25 and more, as in its figure.
- H-5: filters do not depend on the classifier behind them. Conv-2 with 16 filters a layer, 300
  steps, from one draw of the filters and one order of the data, with two draws of the dense layers:
  cosines of each filter with its twin (matched) and with the others (unmatched), of the filters as
  they are and of what training has added to them, for twins share their start. Beside it the same
  dense layers with another order (the most to be expected), and other filters (the least).

Both on the MNIST images inside the package.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from secateur import data
from secateur.core.keys import key
from secateur.core.trees import flatten, ones_mask, unflatten
from secateur.features.directions import cosines_between, norms
from secateur.features.graphs import AlignmentGraph, alignment_graph
from secateur.lab.verdicts import interval
from secateur.networks.conv import conv_net
from secateur.networks.mlp import lenet_300_100
from secateur.train.fit import fit
from secateur.train.recipes import Recipe
from secateur.train.training import Training

TABLE = Path(__file__).parents[1] / "docs" / "results" / "heitmann.csv"
Found = dict[tuple[str, str], float]


def trained(network: Any, sets: Any, params: Any, order: Any, steps: int, rate: float) -> Any:
    recipe = Recipe(rate=rate, batch=60, steps=steps, evaluate_every=100)
    mask = ones_mask(network.prunable(params))
    return fit(Training(network, params, {}, sets, recipe, mask, order, shrink=False))


def degrees(graph: AlignmentGraph, snapshot: int, cosine: float | None) -> np.ndarray:
    """Neighbours of each unit: all edges of the graph, or those of at least an inner product."""
    edges = graph.edges[snapshot]
    pairs = edges.pairs if cosine is None else edges.pairs[edges.cosines >= cosine]
    return np.bincount(pairs.ravel(), minlength=graph.norms.shape[1])


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's; None where one does not vary."""
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else None


def dense_layer(sets: Any, seed: int) -> Found:
    """H-4."""
    network = lenet_300_100()
    params, _ = network.init(key(seed, "initial"))
    fitted = trained(network, sets, params, key(seed, "train"), 600, 1.2e-3)
    kernels = [flatten(tree)["dense_1/kernel"] for tree in (params, fitted.params)]
    graph = alignment_graph(kernels)
    found: Found = {("H-4", "test accuracy"): fitted.last["test_accuracy"]}
    for snapshot, when in enumerate(("start", "end")):
        length = np.asarray(norms(kernels[snapshot]))
        for cosine, words in ((None, "edges of .37"), (0.25, "inner product .25")):
            degree = degrees(graph, snapshot, cosine)
            about = f"{words}, {when}"
            found["H-4", f"mean degree, {about}"] = float(np.mean(degree))
            if (r := correlation(length, degree)) is not None:
                found["H-4", f"norm and degree, {about}"] = r
    return found


def filters(sets: Any, seed: int) -> Found:
    """H-5."""
    network = conv_net(2, input_shape=(28, 28, 1), width=16, hidden=64)
    draws = [flatten(network.init(key(seed, "initial", k))[0]) for k in range(2)]
    like = network.init(key(seed, "initial", 0))[0]
    join = lambda conv, dense: unflatten(
        {n: (draws[conv] if n.startswith("conv") else draws[dense])[n] for n in draws[0]}, like
    )
    # filters, dense layers, order of the data
    runs = {"first": (0, 0, 0), "dense": (0, 1, 0), "order": (0, 0, 1), "filters": (1, 1, 0)}
    ends, accuracy = {}, {}
    for word, (conv, dense, order) in runs.items():
        start = join(conv, dense)
        fitted = trained(network, sets, start, key(seed, "train", order), 300, 1.2e-3)
        ends[word], accuracy[word] = (flatten(start), flatten(fitted.params)), fitted.last
    found: Found = {("H-5", "test accuracy"): accuracy["first"]["test_accuracy"]}
    names = {"dense": "other dense layers", "order": "other order", "filters": "other filters"}
    for word, layer in itertools.product(names, ("conv_1/kernel", "conv_2/kernel")):
        for what in ("filters", "added"):
            one, other = (
                np.asarray(end[layer]) - (np.asarray(start[layer]) if what == "added" else 0)
                for start, end in (ends["first"], ends[word])
            )
            cosines = np.asarray(cosines_between(one, other), np.float64)
            twins = np.diag(cosines)
            about = f"{names[word]}, {layer.split('/')[0]}, {what}"
            off = cosines[~np.eye(len(cosines), dtype=bool)]
            found["H-5", f"matched, {about}"] = float(np.mean(twins))
            found["H-5", f"unmatched, {about}"] = float(np.mean(off))
            found["H-5", f"matched less unmatched, {about}"] = float(np.mean(twins) - np.mean(off))
            nearest = np.argmax(cosines, axis=1) == np.arange(len(cosines))
            found["H-5", f"twin is nearest, {about}"] = float(np.mean(nearest))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    sets = data.split(data.load("mnist5k"), 500)
    every: dict[tuple[str, str], list[float]] = {}
    for seed in range(asked.seeds):
        for place, value in (dense_layer(sets, seed) | filters(sets, seed)).items():
            every.setdefault(place, []).append(value)
        print(f"seed {seed}", flush=True)
    with open(TABLE, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["part", "measure", "mean", "low", "high", "seeds"])
        for (part, measure), values in every.items():
            over = interval(values)
            numbers = [f"{n:.4g}" for n in (over.mean, over.low, over.high)]
            writer.writerow([part, measure, *numbers, over.n])


if __name__ == "__main__":
    main()
