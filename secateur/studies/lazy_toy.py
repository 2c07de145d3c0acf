"""Lottery tickets of a committee machine, lazy and rich, on easy and hard tasks.

Kumar, figures 3 and 4: the loss against the weights that remain, over the output scale alpha and
over epsilon, for three ways of going on after pruning. The text does not say what alpha does to the
teacher: with ``teacher=shared`` both have it, and the loss scales by alpha^2 whatever is learnt;
with ``teacher=fixed``, the default, the task stays what it is. Losses are shown over the variance
of the labels.

A cell is one way of rewinding, one epsilon, one number of samples and one seed: all alphas are
lanes of one program, and every level of every alpha is a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import msgspec

from secateur.core.errors import SecateurError, lookup
from secateur.lab.cells import Cell, Result
from secateur.studies import trained
from secateur.studies.lazy_toy_claims import (
    REWINDS,
    branches,
    citation,
    claims,
    figures,
    name_of,
    notes,
    sentence,
)

name = "lazy-toy"
title = "Lazy and rich tickets of a committee machine"
meaning = 1  # raise when results change meaning: the golden cell in the tests says when
summary = "loss against weights remaining over output scale and task, in a toy with closed forms"
__all__ = ["branches", "citation", "claims", "figures", "notes", "sentence"]

TEACHERS = {
    "fixed": "the teacher's output scale is 1, its labels have variance 1",
    "shared": "the teacher has the student's output scale, as one may read the text",
    "single-index": "y = (beta.x)^2 / 2, as in the published code, its labels have variance 1",
}
PROBE = 50  # inputs of the kernel whose movement is shown


class Fields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the study varies.

    Attributes:
        inputs, units: D and N of the student; ``teacher_units`` of the teacher.
        alphas, epsilons: output scales and weights of the quadratic part; a teacher shares epsilon.
        samples: numbers of examples; 0 for all of the population, in closed form.
        rewinds: ``rewind``, ``random``, ``none``.
        teacher: a word of `TEACHERS`.
        centred: train alpha (f - f_0).
        optimiser: ``gd`` at rate 0.5 N / alpha^2 (smaller for large epsilon), or ``adam`` at 0.01,
            which does not see the scale of a loss.
        steps: of each level. levels: how often a fifth of the weights goes.
    """

    inputs: int = 20
    units: int = 100
    teacher_units: int = 4
    alphas: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
    epsilons: tuple[float, ...] = (0.5,)
    samples: tuple[int, ...] = (200,)
    rewinds: tuple[str, ...] = REWINDS
    teacher: str = "fixed"
    centred: bool = False
    optimiser: str = "gd"
    steps: int = 1500
    levels: int = 20


presets: dict[str, Fields] = {
    "quick": Fields(),
    "epsilon": Fields(alphas=(1.0,), epsilons=(0.05, 0.25, 0.5, 1.0, 2.0)),
    "samples": Fields(alphas=(1.0,), epsilons=(0.25, 1.0), samples=(50, 100, 200, 400, 0)),
    "text": Fields(teacher="shared", optimiser="adam", steps=1000),
    "centred": Fields(centred=True),
    "published": Fields(
        inputs=100,
        units=500,
        teacher="single-index",
        samples=(550,),
        epsilons=(0.25,),
        alphas=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
        steps=5000,
    ),
}
seeds = {"quick": 10, "epsilon": 10, "samples": 10, "text": 10, "centred": 10, "published": 3}


def check(fields: Fields) -> None:
    """Refuses what cannot be run, before anything is.

    Raises:
        SecateurError: one sentence: what is wrong, what was expected.
    """
    lookup("teacher", fields.teacher, TEACHERS)
    lookup("optimiser", fields.optimiser, dict.fromkeys(("gd", "adam")))
    for word in fields.rewinds:
        lookup("way of rewinding", word, dict.fromkeys(REWINDS))
    for what, values in (("alphas", fields.alphas), ("epsilons", fields.epsilons)):
        if not values or min(values) <= 0:
            raise SecateurError(f"{what} are numbers above 0, not {list(values)}.")
    if not fields.samples or any(n < 0 or n == 1 for n in fields.samples):
        raise SecateurError(
            f"samples are at least 2, or 0 for the population, not {list(fields.samples)}."
        )
    sizes = (fields.inputs, fields.units, fields.teacher_units, fields.steps, fields.levels)
    if min(sizes) < 1:
        raise SecateurError(
            f"inputs, units, teacher_units, steps and levels are at least 1, not {sizes}."
        )


def cells(fields: Fields, seeds: Sequence[int], data: str) -> list[Cell]:
    """Every cell of the study."""
    described = trained.described(fields, apart=("epsilons", "samples", "rewinds"))
    axes = itertools.product(seeds, fields.epsilons, fields.samples, fields.rewinds)
    cost = fields.steps * (fields.levels + 1) * len(fields.alphas)
    return [
        Cell(
            name,
            meaning,
            described,
            seed,
            {"rewind": rewind, "epsilon": epsilon, "samples": samples},
            trained.data_address(data),
            {},
            cost,
        )
        for seed, epsilon, samples, rewind in axes
    ]


def takes(fields: Fields) -> dict[str, Any]:
    """What a cell takes: steps, CPU seconds a step, compiled programs, bytes of memory and disk."""
    size = fields.inputs * fields.units / 2000
    return {
        "steps": fields.steps * (fields.levels + 1) * len(fields.alphas),
        "seconds_per_step": 1e-5 * size,
        "programs": "1 for each number of samples",
        "memory": 4e8,
        "disk": 1e5,
    }


def work(cell: Cell, inputs: Mapping[str, Result]) -> Generator[Any, Any, Result]:
    """All levels of all alphas, one program. The lab drives it; nothing is asked of its trainer."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from secateur.core.keys import key
    from secateur.data import toys
    from secateur.prune import toy_lottery
    from secateur.prune.toy_lottery import chain, counts_of
    from secateur.train.committee import Population, rate_for, sample

    yield from ()  # a generator, as the lab drives it
    fields = msgspec.convert(cell.fields, Fields)
    epsilon, n = float(cell.place["epsilon"]), int(cell.place["samples"])
    size, seed = fields.inputs, cell.seed
    if fields.teacher == "single-index":
        one = toys.single_index(key(seed, "teacher"), size)
    else:
        one = toys.committee_teacher(
            key(seed, "teacher"), size, fields.teacher_units, epsilon=epsilon
        )
    one = one.scaled(1 / jnp.sqrt(one.variance()))
    x = toys.gaussian(key(seed, "examples"), n or 2, size)
    probe = toys.gaussian(key(seed, "probe"), PROBE, size)
    alphas = jnp.asarray(fields.alphas, float)
    counts = jnp.asarray(counts_of(size * fields.units, fields.levels))

    def lane(alpha: jax.Array) -> Any:
        teacher = one.scaled(alpha) if fields.teacher == "shared" else one
        problem = sample(x, teacher(x)) if n else Population(teacher)
        rate = rate_for(fields.units, alpha, epsilon) if fields.optimiser == "gd" else 0.01
        return chain(
            key(seed, "weights"),
            problem,
            teacher,
            counts,
            probe,
            rewind=toy_lottery.REWINDS.index(cell.place["rewind"]),
            alpha=alpha,
            epsilon=epsilon,
            rate=rate,
            centred=float(fields.centred),
            units=fields.units,
            steps=fields.steps,
            optimiser=fields.optimiser,
        )

    found = jax.tree.map(np.asarray, jax.jit(jax.vmap(lane))(alphas))
    scale = np.asarray(alphas**2 if fields.teacher == "shared" else jnp.ones(len(alphas)))
    rows = [
        _row(cell, fields, found, float(scale[k]), k, level)
        for k in range(len(fields.alphas))
        for level in range(fields.levels + 1)
    ]
    finite = [row for row in rows if row is not None]
    values = {
        "rewind": cell.place["rewind"],
        "epsilon": epsilon,
        "samples": n,
        "diverged": len(rows) - len(finite),
        "rows": finite,
    }
    kept = np.round(found.density[0] * size * fields.units).astype(int)
    checks = {"exact counts": kept.tolist() == np.asarray(counts).tolist()}
    return Result(values, {}, checks)


def _row(
    cell: Cell, fields: Fields, found: Any, scale: float, k: int, level: int
) -> dict[str, Any] | None:
    """One level of one alpha; None where training diverged."""
    import numpy as np

    rewind, alpha = cell.place["rewind"], fields.alphas[k]
    terms = [float(term[k, level]) for term in found.error]
    numbers = [*terms, *(float(part[k, level]) for part in (found.loss, found.moved))]
    numbers += [float(found.kernel_moved[k, level]), float(found.turned[k, level])]
    if not np.all(np.isfinite(numbers)):
        return None
    total = sum(terms)
    about = {"alpha": alpha, "epsilon": cell.place["epsilon"], "samples": cell.place["samples"]}
    return {
        "branch": name_of(about, len(fields.alphas) > 1),
        # A run has one row a level; ways of rewinding stand one behind the other.
        "level": level + 100 * REWINDS.index(rewind),
        **about,
        "density": float(found.density[k, level]),
        "loss": {rewind: total / scale},
        "raw_loss": {rewind: total},
        "train_loss": {rewind: 2 * float(found.loss[k, level]) / scale},
        "terms": {
            n: term / scale for n, term in zip(("linear", "traceless", "trace"), terms, strict=True)
        },
        "moved": {rewind: numbers[4]},
        "kernel_moved": {rewind: numbers[5]},
        "turned": {rewind: numbers[6]},
    }
