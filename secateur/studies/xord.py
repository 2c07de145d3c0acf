"""Exploration, clustering and generalisation against width, in the XORD problem.

Brutzkus & Globerson 2019: a network with filters to spare sees all four patterns at its start, its
filters gather at them, and it is right on every input; the smallest network that could be right
fits its examples as well and misses a pattern that they hardly show. In two dimensions all of this
can be computed exactly: errors are over all inputs, in closed form.

A cell is one width and one block of ``runs`` trainings, lanes of one program; the seeds of a claim
are blocks. Of block 0 the first network of each width is kept as a film.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import msgspec

from secateur.core.errors import SecateurError
from secateur.lab.cells import Cell, Result
from secateur.lab.verdicts import Claim
from secateur.studies import trained
from secateur.studies.figures import Branch, Curves
from secateur.studies.measured import Measured, Row

name = "xord"
title = "Width in the XORD problem"
meaning = 1  # raise when results change meaning: the golden cell in the tests says when
summary = "what filters explore, where they gather, and whether the network is right, over width"

branches = (
    Branch("all", "all networks", "Those that fitted their examples, whatever these showed."),
    Branch("diverse", "diverse examples", "Those whose examples all showed every pattern."),
)
citation = (
    """@inproceedings{brutzkus2019larger,
  title={Why do Larger Models Generalize Better? A Theoretical Perspective via the XOR Problem},
  author={Brutzkus, Alon and Globerson, Amir},
  booktitle={International Conference on Machine Learning},
  year={2019}
}""",
)


class Fields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the study varies.

    Attributes:
        widths: k, filters for and as many against.
        runs: trainings of a cell, a block of seeds.
        examples, pairs: m inputs of d pairs. diverse: how many of them show every pattern.
        gamma: margin of the hinge loss on positives.
        c_rate: c of the rate c / k; 4 / 410 by default. The theorems ask for at most 1 / 410.
        steps: of full-batch descent, at most.
    """

    widths: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    runs: int = 40
    examples: int = 12
    pairs: int = 6
    diverse: float = 0.98
    gamma: float = 8.0
    c_rate: float = 4 / 410
    steps: int = 25_830


presets: dict[str, Fields] = {"quick": Fields(), "wide": Fields(widths=(2, 8, 32, 120))}
seeds = {"quick": 5, "wide": 5}

_X: dict[str, Any] = {"x": "width", "x_title": "filters for, and against", "x_log": True}
figures = (
    Curves(
        name="errs",
        title="How often a network that fits its examples is wrong elsewhere",
        caption="Share of the networks without training error that err on some input, exactly.",
        y="errs",
        y_title="share that errs",
        percent_y=True,
        **_X,
    ),
    Curves(
        name="explored",
        title="How often all patterns are explored at the start",
        caption="Share of networks with filters nearest to each pattern that they must find. For "
        "directions at random it is [1 - 2 (3/4)^k + 2^-k]^2.",
        y="explored",
        y_title="share that explored",
        percent_y=True,
        **_X,
    ),
    Curves(
        name="angle",
        title="Where the large filters gather",
        caption="Mean angle of the large filters to the nearest pattern at the end, in degrees; "
        "22.5 at random.",
        y="angle.end",
        y_title="degrees",
        **_X,
    ),
    Curves(
        name="fitted",
        title="How often the examples are fitted",
        caption="Share of the networks without training error at the end.",
        y="fitted",
        y_title="share that fits",
        percent_y=True,
        **_X,
    ),
)


def share(what: str, width: int, branch: str = "all") -> Any:
    """per block of seeds: a number of one width."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        return {
            row["seed"]: float(row[what])
            for row in rows
            if row["branch"] == branch and row["width"] == width and what in row
        }

    return per_seed


def falls(narrow: int, wide: int) -> Any:
    """per block: the share that errs, narrow minus wide."""

    def per_seed(rows: Sequence[Row]) -> dict[int, float]:
        a, b = share("errs", narrow)(rows), share("errs", wide)(rows)
        return {s: a[s] - b[s] for s in sorted(a.keys() & b.keys())}

    return per_seed


def _claim(
    id: str,
    statement: str,
    measure: str,
    per_seed: Any,
    comparison: str,
    margin: float,
    **more: Any,
) -> Measured:
    needs = {"runs": 40, "steps": 25_830, **more.pop("needs", {})}
    source = more.pop("source", "Brutzkus & Globerson 2019")
    return Measured(
        Claim(id, source, statement, measure, comparison, margin, needs, **more), per_seed
    )


claims = (
    _claim(
        "B-1",
        "The smallest network fits its examples and misses patterns.",
        "share of the networks of 2 filters a side without training error that err on some input",
        share("errs", 2),
        "above",
        0.8,
    ),
    _claim(
        "B-2",
        "A network with filters to spare is right on every input.",
        "the same share for 32 filters a side",
        share("errs", 32),
        "below",
        0.3,
    ),
    _claim(
        "B-2 diverse",
        "So it is where the examples show every pattern.",
        "the same share for 32 filters, of networks whose examples are all diverse",
        share("errs", 32, "diverse"),
        "below",
        0.05,
    ),
    _claim(
        "B-2 falls",
        "The share falls with width.",
        "share that errs, 8 filters a side minus 32",
        falls(8, 32),
        "above",
        0.0,
    ),
    _claim(
        "B-3",
        "Filters gather at the patterns.",
        "mean angle of the large filters to the nearest pattern at the end, 32 a side, in degrees",
        share("gathered", 32),
        "below",
        1.0,
        unit="degrees",
    ),
    _claim(
        "B-4",
        "At the start wide networks have explored all patterns, narrow ones have not.",
        "share of networks that have explored, 32 filters a side minus 2",
        lambda rows: {
            s: share("explored", 32)(rows)[s] - v
            for s, v in share("explored", 2)(rows).items()
            if s in share("explored", 32)(rows)
        },
        "above",
        0.9,
    ),
)


def sentence(rows: Sequence[Row], fields: Any, data: str) -> str:
    """What was run, and how often networks that fit are wrong."""
    said = []
    for width in fields.widths:
        values = list(share("errs", width)(rows).values())
        if values:
            said.append(f"{100 * sum(values) / len(values):.0f} % at {width}")
    begun = f"{fields.examples} examples of {fields.pairs} pairs, {fields.runs} networks a block. "
    if not said:
        return begun
    return f"{begun}Of the networks that fit their examples, wrong elsewhere: {', '.join(said)}."


def notes(rows: Sequence[Row], fields: Any) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    share = 100 * fields.diverse**fields.examples
    said = (
        "A diverse positive input contains all four patterns, a diverse negative both of its own; "
    )
    said += f"an example is one with probability {fields.diverse:g}, all are in {share:.0f} % of "
    return [said + "the networks."]


def check(fields: Fields) -> None:
    """Refuses what cannot be run, before anything is.

    Raises:
        SecateurError: one sentence: what is wrong, what was expected.
    """
    from secateur.data.toys import type_probabilities

    if not fields.widths or min(fields.widths) < 1:
        raise SecateurError(f"widths are at least 1, not {list(fields.widths)}.")
    if fields.examples < 2 or min(fields.runs, fields.steps) < 1:
        raise SecateurError(
            "examples are at least 2 (one of each label), runs and steps at least 1; given "
            f"{fields.examples}, {fields.runs}, {fields.steps}."
        )
    if not 0 <= fields.diverse <= 1 or fields.gamma < 1 or fields.c_rate <= 0:
        raise SecateurError(
            "diverse is a probability, gamma at least 1 and c_rate above 0; given "
            f"{fields.diverse}, {fields.gamma}, {fields.c_rate}."
        )
    type_probabilities(fields.pairs)


def cells(fields: Fields, seeds: Sequence[int], data: str) -> list[Cell]:
    """One cell a width and block of seeds, the widest first: they take longest."""
    described = trained.described(fields, apart=("widths",))
    address = trained.data_address(data)
    return [
        Cell(name, meaning, described, seed, {"width": width}, address, {}, fields.runs * width)
        for width in sorted(fields.widths, reverse=True)
        for seed in seeds
    ]


def takes(fields: Fields) -> dict[str, Any]:
    """What a cell takes: steps, CPU seconds a step, compiled programs, bytes of memory and disk."""
    return {
        "steps": fields.steps,
        "seconds_per_step": 3e-3 * fields.steps / 25_830,
        "programs": "3 to 5 a width",
        "memory": 4e8,
        "disk": 3e4,
    }


def work(cell: Cell, inputs: Mapping[str, Result]) -> Generator[Any, Any, Result]:
    """Trains a block of networks. The lab drives it; nothing is asked of its trainer."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from secateur.core.keys import key
    from secateur.data import toys
    from secateur.features import xord as measures
    from secateur.networks import xord as network
    from secateur.train import xord as training

    yield from ()  # a generator, as the lab drives it
    fields = msgspec.convert(cell.fields, Fields)
    width = int(cell.place["width"])

    @jax.jit
    @jax.vmap
    def begin(key: jax.Array) -> Any:
        a, b = jax.random.split(key)
        return network.draw(a, width), *toys.xord(b, fields.examples, fields.pairs, fields.diverse)

    keys = jax.random.split(key(cell.seed, "xord"), fields.runs)
    starts, x, y = begin(keys)
    run = training.separate_lanes(
        starts, x, y, rates=fields.c_rate / width, gamma=fields.gamma, steps=fields.steps
    )
    uniform = jnp.asarray(toys.type_probabilities(fields.pairs, 0.5))

    @jax.jit
    @jax.vmap
    def read(start: Any, end: Any) -> Any:
        angle = lambda params: measures.gathered(params["for"]["kernel"]).angle
        return (
            jnp.any(measures.mistaken(end)),
            measures.error_rate(end, uniform),
            measures.explored(start),
            angle(start),
            angle(end),
        )

    found = [np.asarray(part) for part in read(starts, run.params)]
    fitted = np.asarray(run.fitted)
    shown = np.asarray(jax.jit(jax.vmap(toys.present))(x))
    whole = toys.is_diverse(shown).all(axis=1)
    rows = []
    for branch, chosen in (("all", fitted), ("diverse", fitted & whole)):
        if not chosen.any():
            continue
        wrong, error, _, begins, ends = (part[chosen] for part in found)
        rows.append(
            {
                "branch": branch,
                "level": width,
                "width": width,
                "networks": int(chosen.sum()),
                "fitted": float(fitted[whole | (branch == "all")].mean()),
                "errs": float(wrong.mean()),
                "error": float(error.mean()),
                "explored": float(found[2][whole | (branch == "all")].mean()),
                "angle": {"start": float(begins.mean()), "end": float(ends.mean())},
                "gathered": float(ends.mean()),
            }
        )
    films: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    if cell.seed == 0:
        first = jax.tree.map(lambda leaf: leaf[0], (starts, x, y))
        arrays = _film(first, width, fields, int(run.steps[0]))
        films = {"films": [{"place": {"width": width}, "row": {"level": width}}]}
    finite = {"finite filters": all(np.all(np.isfinite(a)) for a in jax.tree.leaves(run.params))}
    return Result({"steps": int(np.max(run.steps)), "rows": rows, **films}, arrays, finite)


def moments(rest: int) -> Any:
    """The steps of a film's frames, until nothing moves any more: every one of the first 20, in
    which small filters turn to their patterns, 20 up to half-way or 1,020, 20 more."""
    import numpy as np

    half = min((20 + rest) // 2, 1020)
    parts = np.arange(21), np.linspace(20, half, 21), np.linspace(half, rest, 21)
    steps = np.unique(np.rint(np.concatenate(parts)).astype(int))
    return steps[steps <= rest]


def _film(network: Any, width: int, fields: Fields, rest: int) -> Any:
    """The arrays of a network's film: its filters in the plane, and its loss."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from secateur.data.toys import PATTERNS
    from secateur.studies.films import film
    from secateur.train.xord import hinge, separate

    start, x, y = network

    @jax.jit
    def follow(gaps: jax.Array) -> Any:
        def go(at: Any, steps: jax.Array) -> Any:
            how = {"rate": fields.c_rate / width, "gamma": fields.gamma, "steps": steps}
            there = separate(at, x, y, **how).params
            return there, (there, hinge(there, x, y, fields.gamma))

        return jax.lax.scan(go, start, gaps)[1]

    steps = moments(rest)
    path, loss = follow(jnp.asarray(np.diff(steps, prepend=0)))  # the first gap is of no step
    filters = np.concatenate([np.asarray(path[side]["kernel"]) for side in ("for", "against")], -1)
    return film(
        0,
        steps,
        {"training loss": loss},
        vectors={"filters": filters},
        signs={"filters": np.repeat([1, -1], width)},
        patterns={"filters": PATTERNS},
        units=2 * width,
    )
