"""Views made up for tests: no network was trained, every number comes from a formula and a draw."""

from __future__ import annotations

import hashlib

import numpy as np

from secateur.report.view import View
from secateur.studies.figures import Branch, Curves

BRANCHES = (
    Branch("rewind", "Rewound to initialisation", "survivors go back to their first values"),
    Branch("control", "Ticket, re-initialised", "the ticket's mask with new random values"),
    Branch("chain", "Re-initialised at each level", "prunes along its own path"),
    Branch("none", "Not rewound", "training goes on from where it stood"),
)

ACCURACY = Curves(
    name="accuracy",
    title="Test accuracy as weights are removed",
    caption="At the lowest validation loss.",
    x="density",
    y="best.test_accuracy",
    x_title="Weights remaining",
    y_title="Test accuracy",
    x_log=True,
    x_reverse=True,
    percent_x=True,
    percent_y=True,
)
STEP = Curves(
    name="step",
    title="When validation loss is lowest",
    caption="The early-stopping step of each level.",
    x="density",
    y="best.step",
    x_title="Weights remaining",
    y_title="Step of the lowest validation loss",
    x_log=True,
    x_reverse=True,
    percent_x=True,
)
TOTAL = Curves(
    name="total",
    title="What the training cost",
    caption="Not rewinding trains on; the others begin anew at each level.",
    x="total_steps",
    y="best.test_accuracy",
    x_title="Steps trained from the dense start",
    y_title="Test accuracy",
    percent_y=True,
)

SIZES = {"dense_1/kernel": 235200, "dense_2/kernel": 30000, "dense_3/kernel": 1000}
RATES = {"dense_1/kernel": 0.2, "dense_2/kernel": 0.2, "dense_3/kernel": 0.1}


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def alive(level: int) -> dict[str, int]:
    """What is left of LeNet-300-100 after `level` rounds of 20 %, 20 % and 10 %."""
    counts = dict(SIZES)
    for _ in range(level):
        counts = {name: n - round(RATES[name] * n) for name, n in counts.items()}
    return counts


def row(branch: str, level: int, seed: int, rng: np.random.Generator) -> dict:
    left = alive(level)
    density = sum(left.values()) / sum(SIZES.values())
    sparse = level / 17
    fall = {"rewind": 1.6, "control": 4.2, "chain": 5.6, "none": 1.0, "dense": 0}[branch]
    accuracy = 0.931 + 0.02 * sparse * (1 - sparse) - fall / 100 * sparse**3
    accuracy += rng.normal(0, 0.003)
    step = 400 * (0.85 - 0.3 * sparse + (0.5 * sparse if branch in ("control", "chain") else 0))
    best = {
        "step": int(step + rng.normal(0, 12)),
        "validation_loss": 0.24 + 0.1 * (0.95 - accuracy),
        "validation_accuracy": accuracy + 0.004,
        "test_loss": 0.26,
        "test_accuracy": accuracy,
    }
    return {
        "branch": branch,
        "level": level,
        "seed": seed,
        "density": density,
        "alive": sum(left.values()),
        "alive_by_layer": left,
        "size_by_layer": SIZES,
        "first_step": 0,
        "steps": 400,
        "total_steps": 400 * (level + 1),
        "best": best,
        "last": {**best, "step": 400, "train_loss": 0.02, "train_accuracy": 0.999},
        "shape": {
            "full": [784, 300, 100, 10],
            "trained": [max(64, int(784 * (1 - 0.7 * sparse))), 300 - 8 * level, 100, 10],
        },
        "hashes": {
            "start": digest(branch, level, seed, "start"),
            "initial": digest(seed, "initial"),
            "mask": digest(branch, level, seed, "mask"),
        },
        "address": digest(branch, level, seed),
        "checks": {
            "masked_parameters_zero": True,
            "masked_moments_zero": True,
            "exact_counts": True,
            "nested_masks": True,
            "start_is_masked_initial": True,
            "finite_losses": True,
        },
        "made": {
            "seconds_cpu": 0.5 + 0.1 * rng.random(),
            "seconds_wall": 0.6,
            "versions": {"secateur": "0.1.0", "jax": "0.10.2", "python": "3.11.7"},
            "device": "cpu",
            "threads": 1,
            "data": digest("data"),
        },
    }


def inputs_alive(level: int, importance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Counts (28, 28) that keep more weights where `importance` is high, as real masks do."""
    left = alive(level)["dense_1/kernel"]
    weight = importance ** (level / 6)
    expected = weight / weight.sum() * left
    return (
        np.minimum(300, rng.poisson(expected)).astype(np.int16)
        if level
        else np.full((28, 28), 300, np.int16)
    )


CLAIMS = (
    {
        "id": "FC-1",
        "source": "Frankle & Carbin 2019",
        "statement": "A ticket with 21% of the weights is at least as accurate as the dense net.",
        "measure": "accuracy at 21.1% minus dense",
        "paper": 0.0,
        "ours": 0.41,
        "low": 0.12,
        "high": 0.70,
        "margin": -0.1,
        "unit": "points",
        "n": 5,
        "verdict": "reproduced",
        "note": "400 steps a level instead of 50,000; 5,000 images instead of 60,000.",
    },
    {
        "id": "FC-2",
        "source": "Frankle & Carbin 2019",
        "statement": "The ticket's validation loss is lowest earlier than the dense net's.",
        "measure": "early-stopping step at 21.1% / dense",
        "paper": 0.62,
        "ours": 0.91,
        "low": 0.84,
        "high": 0.98,
        "margin": 0.82,
        "n": 5,
        "verdict": "not reproduced",
        "note": "400 steps a level instead of 50,000.",
    },
    {
        "id": "K-1",
        "source": "Kumar 2024, figure 1",
        "statement": "Without rewinding, accuracy falls behind the ticket's at high sparsity.",
        "measure": "accuracy at 2.4%, rewound minus not rewound",
        "paper": "> 0",
        "ours": -0.2,
        "low": -1.1,
        "high": 0.7,
        "margin": 0.0,
        "unit": "points",
        "n": 5,
        "needed": 19,
        "verdict": "too few seeds to tell",
    },
)


def view(
    seeds: int = 5,
    levels: int = 18,
    names: tuple[str, ...] = ("rewind", "control", "chain", "none"),
    pictures: bool = True,
    **changes: object,
) -> View:
    """A View of the study "lottery", in the lab's format, with level 0 under the first branch."""
    rng = np.random.default_rng(7)
    centre = np.hypot(*(np.mgrid[:28, :28] - 13.5)) / 14
    rows, images = [], []
    for seed in range(seeds):
        importance = np.exp(-2.5 * centre**2) + 0.02 + 0.1 * rng.random((28, 28))
        for level in range(levels):
            ticket = inputs_alive(level, importance, rng)
            for name in names:
                if level == 0 and name != names[0]:
                    continue  # level 0 of a seed is trained once and shared
                rows.append(row(name, level, seed, rng))
                own = name not in ("rewind", "control")
                images.append(inputs_alive(level, importance, rng) if own else ticket)
    squares = [np.zeros((28, 28), np.uint8) for _ in range(10)]
    for place, square in enumerate(squares):
        square[6:22, 6 + place : 10 + place] = 255
    settings = {
        "network": "lenet_300_100",
        "data": "mnist5k",
        "steps": 400,
        "recipe": {"name": "quick", "optimiser": "adam", "rate": 0.0012, "batch": 60},
        "levels": levels,
    }
    base: dict = {
        "study": "lottery",
        "title": "Lottery tickets",
        "sentence": (
            "LeNet-300-100 on 5,000 fabricated digits, pruned by 20% a level down to 2.3% of its "
            "weights: rewound tickets stay within a point of the dense network, re-initialised "
            "ones fall four points behind."
        ),
        "data": "Fabricated rows and squares, for tests only.",
        "command": "secateur run lottery --preset quick --seeds 5",
        "rows": rows,
        "images": images if pictures else (),
        "figures": (ACCURACY, STEP, TOTAL),
        "branches": BRANCHES,
        "samples": squares,
        "sample_labels": [str(place) for place in range(10)],
        "claims": CLAIMS,
        "citation": [
            (
                "@inproceedings{frankle2019lottery,\n  title = {The Lottery Ticket Hypothesis: "
                "Finding Sparse, Trainable Neural Networks},\n  author = {Frankle, Jonathan and "
                "Carbin, Michael},\n  booktitle = {ICLR},\n  year = {2019}\n}"
            )
        ],
        "settings": settings,
        "notes": ["Test accuracy is read once, at the step of the lowest validation loss."],
        "version": "0.1.0",
    }
    return View(**{**base, **changes})
