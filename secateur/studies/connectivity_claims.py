"""What Frankle et al. claim of stability and tickets, as data, and what the page says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from secateur.lab.verdicts import Claim
from secateur.studies.figures import Branch, Curves
from secateur.studies.gains import DENSITY
from secateur.studies.measured import Measured, Row, at, value

CONTROLS = ("control", "shuffled", "random")
STEPS = (20, 100, 300, 1000)  # of the presets; lines of others have no sentence of their own
SPARSE, SPARSEST = (
    0.035,
    0.018,
)  # of the weights: where Frankle et al. look at LeNet; the last level
MATCHING = 0.005  # below the dense network's accuracy; our wording of "matching"


def name_of(branch: str, step: int) -> str:
    """A line's name: tickets that are rewound later are told apart by their step."""
    return f"step {step}" if branch == "late" else branch


branches = (
    Branch("rewind", "ticket", "Pruned by magnitude, back to its initial weights at every level."),
    Branch("control", "re-initialised", "The ticket's mask with a new draw of weights."),
    Branch("shuffled", "mask shuffled", "Initial weights; the mask permuted inside each layer."),
    Branch("random", "random mask", "Initial weights; as many weights a layer, chosen at random."),
    *(
        Branch(
            f"step {k}",
            f"rewound to step {k}",
            f"Tickets of their own chain, back to the weights after {k} steps of the dense run.",
        )
        for k in STEPS
    ),
)
citation = (
    """@inproceedings{frankle2020linear,
  title={Linear Mode Connectivity and the Lottery Ticket Hypothesis},
  author={Frankle, Jonathan and Dziugaite, Gintare Karolina and Roy, Daniel M and Carbin, Michael},
  booktitle={International Conference on Machine Learning},
  year={2020}
}""",
)

_BARRIER = "Highest point of the line between two copies, over the mean of its ends"
figures = (
    Curves(
        name="barrier",
        title="The barrier between two copies",
        caption=f"{_BARRIER}: test error. Below 2 points a network is called stable.",
        y="barrier.test_error",
        y_title="barrier in test error",
        percent_y=True,
        **DENSITY,
    ),
    Curves(
        name="train_loss",
        title="The same in training loss",
        caption=f"{_BARRIER}: cross-entropy of training images.",
        y="barrier.train_loss",
        y_title="barrier in training loss",
        **DENSITY,
    ),
    Curves(
        name="accuracy",
        title="What the copies have learnt",
        caption="Mean test accuracy of both, at their last step.",
        y="accuracy",
        y_title="test accuracy",
        percent_y=True,
        **DENSITY,
    ),
    Curves(
        name="matching",
        title="Accuracy against the barrier",
        caption="A point a level. Density moves both: what stability itself has to do with "
        "accuracy is seen at equal density, in the claims.",
        x="barrier.test_error",
        x_title="barrier in test error",
        percent_x=True,
        y="accuracy",
        y_title="test accuracy",
        percent_y=True,
    ),
    Curves(
        name="apart",
        title="How far the copies part",
        caption="Distance between them over the mean distance that they went; 1.41 if each went "
        "its own way.",
        y="apart",
        y_title="distance over way",
        **DENSITY,
    ),
)

BARRIER = value("barrier.test_error", 100)
ACCURACY = value("accuracy", 100)


def chain(rows: Sequence[Row], branch: str) -> dict[tuple[int, int], Row]:
    """(seed, level) -> the row of a line of networks."""
    own = [row for row in rows if row["branch"] == branch]
    return {(row["seed"], row["level"]): row for row in own}


def latest(rows: Sequence[Row]) -> str | None:
    """The line that is rewound to the latest step; None where all go back to the start."""
    steps = [row["step"] for row in rows if row.get("step")]
    return name_of("late", max(steps)) if steps else None


def beyond(branch: str, times: float = 3.0, density: float = SPARSE) -> Any:
    """per seed: a control's barrier less ``times`` the ticket's; no ratio, which may be by 0."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        a, b = at(rows, branch, density), at(rows, "rewind", density)
        return {s: BARRIER(a[s]) - times * BARRIER(b[s]) for s in sorted(a.keys() & b.keys())}

    return per_seed


def later(rows: Sequence[Row], dense: bool) -> dict[int, float]:
    """seed -> the barrier with the latest rewinding less that with none, mean over the levels.

    Args:
        dense: of level 0 alone; else of all others.
    """
    last = latest(rows)
    if last is None:
        return {}
    mine, start = chain(rows, last), chain(rows, "rewind")
    found: dict[int, list[float]] = {}
    for seed, level in sorted(mine.keys() & start.keys()):
        if (level == 0) == dense:
            gap = BARRIER(mine[seed, level]) - BARRIER(start[seed, level])
            found.setdefault(seed, []).append(gap)
    return {seed: sum(gaps) / len(gaps) for seed, gaps in found.items()}


def judged(rows: Sequence[Row], controls: bool) -> dict[int, list[tuple[bool, bool]]]:
    """seed -> (matching, stable) of its sparse networks, at all levels and steps of rewinding.

    Matching: the mean accuracy of the copies is at most `MATCHING` below the dense network's.

    Args:
        controls: count them, too; else tickets alone.
    """
    dense = {s: row["accuracy"] for (s, level), row in chain(rows, "rewind").items() if not level}
    found: dict[int, list[tuple[bool, bool]]] = {}
    for row in rows:
        if not row["level"] or row["seed"] not in dense:
            continue
        if controls or row["branch"] not in CONTROLS:
            matching = row["accuracy"] >= dense[row["seed"]] - MATCHING
            found.setdefault(row["seed"], []).append((matching, bool(row["stable"])))
    return found


def stable_where_matching(rows: Sequence[Row], controls: bool) -> dict[int, float]:
    """seed -> the share in % of its matching networks that are stable.

    Where all of a seed's networks are stable the share is 100 % of itself, and says nothing.
    """
    found = judged(rows, controls)
    telling = {
        s: [b for a, b in every if a] for s, every in found.items() if not _all_stable(every)
    }
    return {s: 100 * sum(own) / len(own) for s, own in telling.items() if own}


def _all_stable(every: Sequence[tuple[bool, bool]]) -> bool:
    return all(stable for _, stable in every)


def stable_gains(rows: Sequence[Row]) -> dict[int, float]:
    """seed -> points by which stable networks match more often than others, if it has both."""
    found: dict[int, float] = {}
    for seed, pairs in judged(rows, controls=True).items():
        stable, other = ([a for a, b in pairs if b is which] for which in (True, False))
        if stable and other:
            found[seed] = 100 * (sum(stable) / len(stable) - sum(other) / len(other))
    return found


def at_equal_density(rows: Sequence[Row]) -> dict[int, float]:
    """seed -> rank correlation of barrier and error over the ways of starting, mean over levels.

    Levels at which fewer than 3 ways are known, or all are equal, say nothing.
    """
    groups: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        if row["level"]:
            groups.setdefault((row["seed"], row["level"]), []).append(row)
    found: dict[int, list[float]] = {}
    for (seed, _), own in sorted(groups.items()):
        r = rank_correlation([BARRIER(row) for row in own], [-ACCURACY(row) for row in own])
        if r is not None:
            found.setdefault(seed, []).append(r)
    return {seed: sum(values) / len(values) for seed, values in found.items()}


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's, equal values at their mean rank; None of fewer than 3 or of a constant."""
    if len(a) < 3:
        return None
    # Twice the mean rank of equal values, less what makes the sum 0.
    ranks = lambda v: [sum((y < x) - (y > x) for y in v) for x in v]
    x, y = ranks(a), ranks(b)
    size = math.sqrt(sum(r * r for r in x) * sum(r * r for r in y))
    return sum(r * s for r, s in zip(x, y)) / size if size else None


_F = "Frankle et al. 2020"
_NEEDS = {"dataset": "mnist", "hidden": (300, 100), "steps": 24_000}
Seeds = Callable[[Sequence[Row]], dict[int, float]]


def _claim(id: str, statement: str, measure: str, per_seed: Seeds, **more: Any) -> Measured:
    told = {"source": _F, "unit": "points", "needs_settings": _NEEDS} | more
    return Measured(Claim(id=id, statement=statement, measure=measure, **told), per_seed)


def _barrier(density: float) -> Seeds:
    return lambda rows: {s: BARRIER(row) for s, row in at(rows, "rewind", density).items()}


_THREE = "barrier in test error, less three times the ticket's"
_STATEMENTS = (
    "With new weights the ticket's mask is far less stable.",
    "So is the shuffled mask.",
    "So is a random mask.",
)
claims = (
    _claim(
        "LMC-1",
        "A small network is stable from its start.",
        "barrier in test error between two copies of the dense network",
        _barrier(1.0),
        comparison="below",
        margin=2.0,
    ),
    _claim(
        "LMC-1b",
        "So is its ticket with 3.5 % of the weights.",
        "the same of the ticket, rewound to the start",
        _barrier(SPARSE),
        comparison="below",
        margin=2.0,
    ),
    *(
        _claim(
            f"LMC-2 {branch} {density:.1%}",
            statement,
            f"{_THREE}: at {100 * density:.1f} % of the weights",
            beyond(branch, density=density),
        )
        for density in (SPARSE, SPARSEST)
        for branch, statement in zip(CONTROLS, _STATEMENTS)
    ),
    _claim(
        "LATE-1",
        "Rewinding later makes tickets more stable.",
        "barrier in test error, tickets of the latest step minus those of step 0, mean over levels",
        lambda rows: later(rows, dense=False),
        comparison="below",
        source=f"{_F}, our wording",
    ),
    _claim(
        "LATE-2",
        "So it does dense networks.",
        "the same of the dense network",
        lambda rows: later(rows, dense=True),
        comparison="below",
        source=f"{_F}, our wording",
    ),
    _claim(
        "MATCH-1",
        "Tickets match their dense network only where they are stable.",
        "stable ones among tickets within half a point of the dense accuracy, all levels and steps",
        lambda rows: stable_where_matching(rows, controls=False),
        margin=95.0,
        unit="%",
        source=f"{_F}, our wording",
    ),
    _claim(
        "MATCH-1b",
        "Sparse networks of any kind match only where they are stable.",
        "the same of tickets and controls",
        lambda rows: stable_where_matching(rows, controls=True),
        margin=95.0,
        unit="%",
        source=f"{_F}, our wording",
    ),
    _claim(
        "MATCH-2",
        "Stable networks match more often than others.",
        "share of stable sparse networks that match minus share of others, tickets and controls",
        stable_gains,
        source=f"{_F}, our wording",
    ),
    _claim(
        "MATCH-3",
        "Of equally sparse networks the less stable are the worse.",
        "rank correlation of barrier and test error over the ways of starting, mean over levels",
        at_equal_density,
        unit="",
        source=f"{_F}, our wording",
    ),
)


def sentence(rows: Sequence[Row], fields: Any, data: str) -> str:
    """What was run on what data, and how high the barriers are."""
    hidden = "-".join(map(str, fields.hidden))
    begun = (
        f"Two copies each of a {hidden} network and its tickets, {fields.steps:,} steps of "
        f"{fields.optimiser} at {fields.learning_rate:g}. Data: {data}."
    )
    said = []
    dense = at(rows, "rewind", 1.0)
    if dense:
        said.append(f"dense ({_mean(dense):.1f})")
    for branch in branches:
        found = at(rows, branch.name, SPARSE)
        if found:
            said.append(f"{branch.label} ({_mean(found):.1f})")
    if not said:
        return begun
    return (
        f"{begun} Barrier in test error in points, sparse networks with 3.5 % of the weights: "
        f"{', '.join(said)}."
    )


def _mean(found: dict[int, Row]) -> float:
    return sum(map(BARRIER, found.values())) / len(found)


def notes(rows: Sequence[Row], fields: Any) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    lines = (
        f"A line has {fields.points} points. On the training part it is walked over the first "
        f"{fields.compared:,} images, on the test part over all."
    )
    ends = (
        "A barrier is measured over the mean of both ends, as in the paper. It is never below half "
        "the difference of the ends, which the order of the data alone makes; over the chord "
        "between the ends (barrier.test_error_chord in an export) it may be 0."
    )
    steps = (
        "From a later step fewer steps are left in which copies can part: some of what late "
        "rewinding brings is that. The optimiser begins anew there, for all copies alike."
    )
    density = (
        "Density moves accuracy and stability alike. MATCH-1 and MATCH-2 say whether both go "
        "together, not that one makes the other; MATCH-3 holds the density fixed."
    )
    every = [pair for pairs in judged(rows, controls=False).values() for pair in pairs]
    unstable = sum(not stable for _, stable in every)
    count = f"{unstable} of {len(every)} tickets are not stable"
    if every and not unstable:
        count += ", so that MATCH-1 holds of itself and is not shown"
    return [lines, ends, steps, f"{density} {count}."]
