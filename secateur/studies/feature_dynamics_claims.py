"""What Kumar claims of the features of tickets, as data, and what the page says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import sub
from typing import Any

from secateur.lab.verdicts import Claim
from secateur.studies.figures import Branch, Curves
from secateur.studies.gains import DENSITY
from secateur.studies.lazy_toy_claims import citation as _toy
from secateur.studies.measured import Measured, Row, numbers, paired

ALONG = 1000  # levels from here on are records of a watched level
ARMS = {
    "ticket": Branch(
        "ticket", "ticket", "The mask found by magnitude, on the dense network's initial weights."
    ),
    "control": Branch("control", "new weights", "The ticket's mask on a new draw of weights."),
    "shuffled": Branch(
        "shuffled", "shuffled mask", "The ticket's mask permuted, on the initial weights."
    ),
    "none": Branch(
        "none", "not rewound", "Pruned to the same counts, training goes on where it was."
    ),
}
branches = tuple(ARMS.values())
citation = _toy[:1]

_CAPTION = "|G - G_dense| / |G_dense| of the Gram matrices of pre-activations on the same examples"
LAYERS = ("layer 1", "layer 2", "layer 3")
_NTH = ("first", "second")
_ENDS = ("start", "end")
figures = (
    *(
        Curves(
            name=f"end-{layer.replace(' ', '-')}",
            title=f"How far features end from the dense network's, {layer}",
            caption=f"{_CAPTION}, at the last step.",
            y=f"features.{layer}.relative_end",
            y_title="relative distance",
            **DENSITY,
        )
        for layer in LAYERS
    ),
    Curves(
        name="start",
        title="And where they begin, layer 1",
        caption=f"{_CAPTION}, at the first step. What is not rewound begins trained, beside a "
        "dense network that is not.",
        y="features.layer 1.relative_start",
        y_title="relative distance",
        **DENSITY,
    ),
    *(
        Curves(
            name=f"alignment-{layer.replace(' ', '-')}",
            title=f"The same without scale, {layer}",
            caption="Centred alignment <G, G_dense> / (|G| |G_dense|) at the last step: 1 for "
            "matrices equal but for their scale.",
            y=f"features.{layer}.centred_alignment_end",
            y_title="centred alignment",
            **DENSITY,
        )
        for layer in LAYERS
    ),
    *(
        Curves(
            name=f"along-aligned-{k}",
            title=f"On the way without scale, layer 1, {_NTH[k]} watched level",
            caption="Centred alignment with the dense network's Gram at equal steps.",
            x="step",
            y=f"along.w{k}.layer 1.centred_alignment",
            x_title="step",
            y_title="centred alignment",
        )
        for k in range(2)
    ),
    *(
        Curves(
            name=f"along-{k}",
            title=f"On the way, layer 1, {_NTH[k]} watched level",
            caption=f"{_CAPTION}, at equal steps.",
            x="step",
            y=f"along.w{k}.layer 1.relative",
            x_title="step",
            y_title="relative distance",
            y_log=True,
        )
        for k in range(2)
    ),
    Curves(
        name="accuracy",
        title="Test accuracy",
        caption="At the last step.",
        y="accuracy",
        y_title="test accuracy",
        percent_y=True,
        **DENSITY,
    ),
    Curves(
        name="loss",
        title="Loss over the variance of the labels",
        caption="Over all inputs, in closed form.",
        y="loss",
        y_title="loss over variance",
        y_log=True,
        **DENSITY,
    ),
)


def name_of(arm: str, alpha: float) -> str:
    """A line's name; an output scale of 1 is none."""
    return arm if alpha == 1 else f"{ARMS[arm].label}, alpha {alpha:g}"


def feature(
    rows: Sequence[Row], what: str, arm: str, density: float, layer: str = "layer 1", **more: Any
) -> dict[int, float]:
    """seed -> a number of a network's features beside the dense one's."""
    return numbers(rows, f"features.{layer}.{what}", density, arm=arm, **more)


def of(what: str, arm: str, density: float, **more: Any) -> Any:
    """per seed: a number of one network."""
    return lambda rows: feature(rows, what, arm, density, **more)


def apart(what: str, arm: str, density: float, other: str = "ticket", **more: Any) -> Any:
    """per seed: a number of one network less the ticket's."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        a = feature(rows, what, arm, density, **more)
        return paired(sub, a, feature(rows, what, other, density, **more))

    return per_seed


def _hundredths(of: Any) -> Any:
    return lambda rows: {seed: -100 * value for seed, value in of(rows).items()}


_SOURCE = "Kumar, figure 5"
_SECOND = "Kumar, section 2.2"


def _claim(
    id: str,
    source: str,
    statement: str,
    measure: str,
    per_seed: Any,
    comparison: str,
    margin: float,
) -> Measured:
    return Measured(Claim(id, source, statement, measure, comparison, margin), per_seed)


def _of_alpha(alpha: float) -> tuple[Measured, ...]:
    end = f"alpha {alpha:g}, layer 1"
    more: Mapping[str, Any] = {"alpha": alpha}
    levels = ((0.41, "41 %"), (0.168, "17 %"), (0.069, "7 %"))
    return (
        *(
            _claim(
                f"K-8 {words} alpha {alpha:g}",
                _SOURCE,
                "A ticket's features converge to those of the full network.",
                f"relative distance at the last step over that at the first, ticket of {words}, "
                + end,
                of("ratio", "ticket", density, **more),
                "below",
                0.5,
            )
            for density, words in levels
        ),
        _claim(
            f"K-9 alpha {alpha:g}",
            _SECOND,
            "This does not hold with random weights.",
            f"relative distance at the last step over that at the first, new weights, 41 %, {end}",
            of("ratio", "control", 0.41, **more),
            "above",
            0.5,
        ),
        _claim(
            f"K-9b alpha {alpha:g}",
            _SECOND,
            "A ticket ends nearer to the full network than its mask with random weights.",
            f"relative distance at the last step, 41 %, {end}: new weights minus ticket",
            apart("relative_end", "control", 0.41, **more),
            "above",
            0.0,
        ),
        _claim(
            f"K-9c alpha {alpha:g}",
            _SECOND,
            "And nearer than what is not rewound.",
            f"relative distance at the last step, 41 %, {end}: not rewound minus ticket",
            apart("relative_end", "none", 0.41, **more),
            "above",
            0.0,
        ),
        _claim(
            f"K-9c as long, alpha {alpha:g}",
            _SECOND,
            "And nearer than that is to a dense network trained as long.",
            f"relative distance at the last step, 41 %, {end}: not rewound from a dense network "
            "trained as long in all, minus ticket from its own",
            lambda rows: paired(
                sub,
                feature(rows, "longer_relative_end", "none", 0.41, **more),
                feature(rows, "relative_end", "ticket", 0.41, **more),
            ),
            "above",
            0.0,
        ),
        _claim(
            f"mask alpha {alpha:g}",
            "asked here",
            "The mask matters: shuffled, the same weights end further away.",
            f"relative distance at the last step, 41 %, {end}: shuffled mask minus ticket",
            apart("relative_end", "shuffled", 0.41, **more),
            "above",
            0.0,
        ),
        *(
            _claim(
                f"{id} blind to scale, alpha {alpha:g}",
                _SECOND,
                f"The same, seen without scale: a ticket ends nearer than {ARMS[arm].label}.",
                f"centred alignment with the dense network's Gram at the last step, 41 %, {end}: "
                f"ticket minus {ARMS[arm].label}, in hundredths",
                _hundredths(apart("centred_alignment_end", arm, 0.41, **more)),
                "above",
                0.0,
            )
            for id, arm in (("K-9b", "control"), ("K-9c", "none"), ("mask", "shuffled"))
        ),
        _claim(
            f"K-8 dynamics alpha {alpha:g}",
            _SECOND,
            "Tickets have the same feature dynamics as the full network, others have not.",
            f"relative distance over all of training, mean, 41 %, {end}: new weights minus ticket",
            apart("relative_mean", "control", 0.41, **more),
            "above",
            0.0,
        ),
    )


claims = (
    *(claim for alpha in (0.5, 1.0, 4.0) for claim in _of_alpha(alpha)),
    *(
        _claim(
            f"K-8 {layer}",
            _SOURCE,
            f"So it is in {layer}.",
            "relative distance at the last step over that at the first, ticket of 41 %, alpha 1, "
            f"{layer}",
            of("ratio", "ticket", 0.41, layer=layer, alpha=1.0),
            "below",
            0.5,
        )
        for layer in LAYERS[1:]
    ),
)


def sentence(rows: Sequence[Row], fields: Any, data: str) -> str:
    """What was run, and how far tickets' features come."""
    if fields.world == "toy":
        begun = f"A committee machine of {fields.units} units and {fields.inputs} inputs, "
        begun += f"{fields.steps:,} steps a level."
    else:
        shape = "-".join(map(str, fields.hidden))
        begun = f"An MLP {shape} on {data}, {fields.steps:,} steps a level."
    what = "Distance to the dense network's features at 41 % of the weights, first step to last"
    for alpha in fields.alphas:
        said = []
        for arm, branch in ARMS.items():
            ends = [feature(rows, f"relative_{k}", arm, 0.41, alpha=alpha) for k in _ENDS]
            if all(ends):
                first, last = (sum(e.values()) / len(e) for e in ends)
                said.append(f"{branch.label} {first:.2f} to {last:.2f}")
        if said:
            begun += f" {what}, alpha {alpha:g}: {'; '.join(said)}."
            what = "The same"
    return begun


def notes(rows: Sequence[Row], fields: Any) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    grams = "Gram matrices as Kumar takes them, H H^T: a ticket of density rho begins with about "
    grams += "rho times its parent's, so that the distance mixes scale and direction; alignment "
    grams += f"does not see scale. Rows of level {ALONG:,} and more are records on the way."
    time = (
        "What is not rewound has been trained longer than the dense network it is compared with: "
    )
    time += "its distance is one of training time, too."
    return [grams, time]
