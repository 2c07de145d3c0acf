"""Lottery tickets: iterative magnitude pruning, and every way to go on from a pruned network.

A *branch* is one such way. It says where the mask of a level comes from (its own previous level,
the ticket's, the dense network's) and where its weights start. Level l has been pruned l times;
level 0 is the dense network, trained once a seed and shared by all branches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import key as stream
from secateur.core.network import Network, Stats
from secateur.core.trees import (
    Mask,
    Params,
    alive,
    apply_mask,
    flatten,
    map_mask,
    ones_mask,
    unflatten,
)
from secateur.data.examples import Sets
from secateur.prune.branches import BRANCHES, Branch
from secateur.prune.magnitude import SCOPES, keep_largest, prune
from secateur.structure.reader import read
from secateur.train.fit import fit
from secateur.train.recipes import Recipe
from secateur.train.training import Fitted, Training


class Dense(NamedTuple):
    """What all branches of a seed share: the dense network's start, end and copy at step k."""

    initial: Params
    stats: Stats
    trained: Params
    at_rewind: tuple[Params, Stats]


class Before(NamedTuple):
    """A level that has been trained: its mask and its weights at the last step."""

    mask: Mask
    trained: Params
    stats: Stats


class Start(NamedTuple):
    """Where a level begins."""

    mask: Mask
    params: Params
    stats: Stats
    first_step: int


def _generators(mask: Mask, seed: int, *path: str | int) -> dict[str, np.random.Generator]:
    """One generator a leaf, so that no two leaves share a stream."""
    words = [int(w) for w in np.asarray(jax.random.key_data(stream(seed, *path))).ravel()]
    return {k: np.random.default_rng([*words, i]) for i, k in enumerate(flatten(mask))}


def shuffle_within_layers(mask: Mask, seed: int, *path: str | int) -> Mask:
    """The mask permuted uniformly inside each leaf: same counts, no structure.

    Synaptic-Flow's ``--shuffle`` changes nothing; NTT's "random" permutes along one axis with one
    key, so each unit keeps its count.
    """
    rngs = _generators(mask, seed, *path)
    flat = {
        k: None if m is None else rngs[k].permutation(np.asarray(m).ravel()).reshape(np.shape(m))
        for k, m in flatten(mask).items()
    }
    return unflatten(flat, mask)


def _noise(mask: Mask, seed: int, *path: str | int) -> Params:
    """Scores of random pruning: uniform, independent, a stream of its own for each leaf."""
    rngs = _generators(mask, seed, *path)
    flat = {k: None if m is None else rngs[k].random(np.shape(m)) for k, m in flatten(mask).items()}
    return unflatten(flat, mask)


def same_sign(fresh: Params, initial: Params, mask: Mask) -> Params:
    """|fresh| with the signs of the initial weights, on prunable leaves; biases as drawn.

    google-research's code samples the layer's own positive or negative initial values instead.
    """
    return map_mask(
        lambda m, new, old: new if m is None else np.abs(new) * np.sign(old), mask, fresh, initial
    )


def rates_of(network: Network, rate: float, output_rate: float) -> dict[str, float]:
    """Fraction pruned at a level, by leaf: ``output_rate`` for kernels that feed the output.

    Raises:
        SecateurError: for a rate outside [0, 1), or where no output layer is found.
    """
    for name, value in (("rate", rate), ("output_rate", output_rate)):
        if not 0 <= value < 1:
            raise SecateurError(
                f"{name} is the fraction pruned at a level, in [0, 1), not {value}."
            )
    params, stats = jax.eval_shape(network.init, jax.random.key(0))
    names = [k for k, m in flatten(network.prunable(params)).items() if m is not None]
    structure = read(network, params, stats)
    outputs = {
        layer.kernel
        for layer in structure.layers
        if structure.groups[layer.out_group].fixed == "it is the output"
    }
    if rate != output_rate and not outputs & set(names):
        raise SecateurError(
            f"no output layer was found in {network.name}, so output_rate means nothing; "
            "set it equal to the rate."
        )
    return {name: output_rate if name in outputs else rate for name in names}


def begin(network: Network, seed: int) -> tuple[Params, Stats, Mask]:
    """The dense network of a seed: initial parameters, statistics, and the mask of ones."""
    params, stats = network.init(stream(seed, "initial"))
    params = jax.tree.map(np.asarray, params)
    return params, stats, ones_mask(network.prunable(params))


def start(
    branch: Branch,
    level: int,
    seed: int,
    network: Network,
    dense: Dense,
    previous: Before,
    rates: Mapping[str, float],
    scope: str = "layer",
    rewind_step: int = 0,
) -> Start:
    """Where level ``level`` (1, 2, ...) of a branch begins.

    Args:
        previous: the trained level that the mask follows (`Branch.follows`): the branch's own, or
            the rewound ticket's, of level - 1; or the dense network.
    """
    if branch.masks == "one-shot":
        mask = previous.mask
        for _ in range(level):  # the counts of the iterative run, so that the curves share an axis
            mask = prune(previous.trained, mask, rates, scope)
    elif branch.masks == "random":
        keep = alive(prune(previous.trained, previous.mask, rates, scope))
        noise = _noise(previous.mask, seed, "mask", branch.name, level)
        mask = keep_largest(noise, previous.mask, keep)
    else:
        mask = prune(previous.trained, previous.mask, rates, scope)
        if branch.masks == "shuffled":
            mask = shuffle_within_layers(mask, seed, "mask", branch.name, level)
    first_step = 0
    stats = dense.stats
    if branch.weights == "initial":
        params = dense.initial
    elif branch.weights == "late":
        (params, stats), first_step = dense.at_rewind, rewind_step
    elif branch.weights == "trained":
        params, stats = previous.trained, previous.stats
    else:
        params, stats = network.init(stream(seed, "initial", branch.name, level))
        params = jax.tree.map(np.asarray, params)
        if branch.weights == "same-sign":
            params = same_sign(params, dense.initial, mask)
    return Start(mask, jax.tree.map(np.asarray, apply_mask(mask, params)), stats, first_step)


def training(
    branch: Branch | None,
    level: int,
    seed: int,
    network: Network,
    data: Sets,
    recipe: Recipe,
    begins: Start,
    **options: Any,
) -> Training:
    """The training of one level, with a data order of its own; no ``branch`` for the dense one."""
    name = branch.name if branch else "dense"
    if branch and branch.last_rate:
        last = float(recipe.rates(np.asarray([recipe.steps - 1]))[0])
        recipe = replace(recipe, rate=last, drops=(), warmup=0)
    return Training(
        network,
        begins.params,
        begins.stats,
        data,
        recipe,
        begins.mask,
        stream(seed, "train", name, level),
        first_step=begins.first_step,
        **options,
    )


class Level(NamedTuple):
    """One trained level of a branch."""

    level: int
    start: Start
    fitted: Fitted


def lottery(
    network: Network,
    data: Sets,
    recipe: Recipe,
    branch: str = "rewind",
    levels: int = 15,
    rate: float = 0.2,
    output_rate: float | None = None,
    scope: str = "layer",
    rewind_step: int = 0,
    seed: int = 0,
) -> Iterator[Level]:
    """Levels 0 to ``levels`` of one branch, each given back as it is trained.

    Branches whose masks follow the ticket train the ticket beside them, level by level.

    Args:
        branch: a name in `BRANCHES`.
        rate: fraction of a layer's surviving weights that goes at a level.
        output_rate: the same of the output layer; ``rate`` where None, half of it in the paper.
        rewind_step: k of branch ``late``, a multiple of the recipe's ``evaluate_every``.

    Raises:
        SecateurError: for an unknown branch or scope or an impossible rate or step.
    """
    way = lookup("branch", branch, BRANCHES)
    lookup("scope", scope, dict.fromkeys(SCOPES))
    rates = rates_of(network, rate, rate if output_rate is None else output_rate)
    initial, stats, ones = begin(network, seed)
    keep_at = (rewind_step,) if rewind_step else ()
    begins = Start(ones, initial, stats, 0)
    first = fit(training(None, 0, seed, network, data, recipe, begins, keep_at=keep_at))
    yield Level(0, begins, first)

    late = first.kept[rewind_step] if rewind_step else (initial, stats)
    dense = Dense(initial, stats, first.params, late)
    own = ticket = level_0 = Before(ones, first.params, first.stats)
    for level in range(1, levels + 1):
        previous = {"own": own, "ticket": ticket, "dense": level_0}[way.follows]
        begins = start(way, level, seed, network, dense, previous, rates, scope, rewind_step)
        fitted = fit(training(way, level, seed, network, data, recipe, begins))
        yield Level(level, begins, fitted)
        own = Before(begins.mask, fitted.params, fitted.stats)
        if way.follows == "ticket" and level < levels:
            rewind = BRANCHES["rewind"]
            begins = start(rewind, level, seed, network, dense, ticket, rates, scope)
            fitted = fit(training(rewind, level, seed, network, data, recipe, begins))
            ticket = Before(begins.mask, fitted.params, fitted.stats)
