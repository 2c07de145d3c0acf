"""What the studies of lottery tickets share: their settings, and a chain of levels to be driven."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from secateur.core.errors import SecateurError, lookup

if TYPE_CHECKING:
    from secateur.core.network import Network
    from secateur.data.examples import Sets
    from secateur.prune.lottery import Before, Dense, Level
    from secateur.train.recipes import Recipe
    from secateur.train.training import Fitted, Training

    Change = Callable[[int, Training], Training]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields of a study that prunes a dense network level by level, to be derived from.

    Attributes:
        dataset: a name of ``secateur data``.
        validation: examples held out of the training part; ``split`` is the seed of that cut.
        hidden: widths of the hidden layers; ``initialiser`` of the kernels.
        optimiser, learning_rate, batch, steps: of each level; ``evaluate_every`` divides steps.
        prune: fraction of a layer's surviving weights that goes at a level; ``prune_output`` the
            same of the output layer.
        levels: how often weights go.
    """

    dataset: str = "mnist"
    validation: int = 5000
    split: int = 0
    hidden: tuple[int, ...] = (300, 100)
    initialiser: str = "glorot_normal"
    optimiser: str = "adam"
    learning_rate: float = 1.2e-3
    batch: int = 60
    steps: int = 5000
    evaluate_every: int = 100
    prune: float = 0.2
    prune_output: float = 0.1
    levels: int = 17


def check(fields: Any) -> None:
    """Refuses settings that cannot be run.

    Raises:
        SecateurError: one sentence: what is wrong, what was expected.
    """
    from secateur.networks.layers import INITIALISERS

    lookup("initialiser", fields.initialiser, INITIALISERS)
    for rate in ("prune", "prune_output"):
        if not 0 <= getattr(fields, rate) < 1:
            raise SecateurError(
                f"{rate} is the fraction of weights that goes at a level, in [0, 1), "
                f"not {getattr(fields, rate)}."
            )
    if fields.levels < 0:
        raise SecateurError(f"levels is 0 or more, not {fields.levels}.")
    if fields.validation < 1:
        raise SecateurError(
            f"validation is at least 1, not {fields.validation}: early stopping is measured on it."
        )
    if not fields.hidden or min(fields.hidden) < 1:
        raise SecateurError(f"hidden lists widths of at least 1, not {fields.hidden}.")
    check_survivors(fields)


def widths(fields: Any) -> list[int]:
    """Of all layers, inputs first and classes last."""
    from secateur.data.registry import DATASETS

    entry = lookup("data set", fields.dataset, DATASETS)
    return [math.prod(entry.shape), *fields.hidden, len(entry.classes)]


def check_survivors(fields: Any) -> None:
    """Refuses levels at which a layer (or, ranked globally, the network) has no weight left.

    Raises:
        SecateurError: with the first such level.
    """
    from secateur.prune.magnitude import removed

    sizes = [a * b for a, b in itertools.pairwise(widths(fields))]
    rates = [fields.prune] * (len(sizes) - 1) + [fields.prune_output]
    if getattr(fields, "scope", "layer") == "global":
        sizes = [sum(n for n, rate in zip(sizes, rates) if rate)]
        rates = [fields.prune]
    for level in range(1, fields.levels + 1):
        sizes = [n - removed(rate, n) for n, rate in zip(sizes, rates)]
        if min(sizes) == 0:
            raise SecateurError(
                f"at level {level} a layer has no weight left; set levels below {level}, or a "
                "lower prune."
            )


def seconds_per_step(fields: Any) -> float:
    """Of one core.

    A step of LeNet-300-100 at batch 60 takes about 1.2 ms (benchmarks/train_lenet.py), evaluations
    included; other widths and batches in proportion to their multiplications.
    """
    sizes = widths(fields)
    weights = sum(a * b for a, b in itertools.pairwise(sizes))
    return 1.25e-3 * (weights / 266_200) * (0.2 + 0.8 * fields.batch / 60)


def dense_network(fields: Any, data: Sets) -> Network:
    """The network of these settings, for images and classes of these data."""
    from secateur.networks.mlp import mlp

    return mlp(
        *fields.hidden,
        input_shape=tuple(data.train.images.shape[1:]),
        outputs=len(data.classes),
        initialiser=fields.initialiser,
    )


def unchanged(level: int, training: Training) -> Training:
    """The training as it is."""
    return training


def chain(
    branch: str,
    seed: int,
    network: Network,
    data: Sets,
    recipe: Recipe,
    fields: Any,
    *,
    levels: int | None = None,
    first: Level | None = None,
    change: Change = unchanged,
) -> Generator[Training, Fitted, list[Level]]:
    """Levels 0 to ``fields.levels`` of a branch whose masks are its own, to be driven by the lab.

    Args:
        branch: "rewind", "chain" (new weights at each level) or "none".
        levels: the last one; None: ``fields.levels``.
        first: the dense level, where it is at hand.
        change: (level, training) -> the training that is asked for: with records, with statistics
            of its own, with another rate.
    """
    from secateur.prune import lottery

    way, rates = lottery.BRANCHES[branch], rates_of(fields, network)
    initial, stats, ones = lottery.begin(network, seed)
    if first is None:
        begins = lottery.Start(ones, initial, stats, 0)
        asked = lottery.training(None, 0, seed, network, data, recipe, begins, **_OPTIONS)
        fitted = yield change(0, asked)
        first = lottery.Level(0, begins, fitted)
    found = [first]
    dense = dense_of(first, initial, stats)
    for level in range(1, (fields.levels if levels is None else levels) + 1):
        before = before_of(found[-1])
        begins = lottery.start(way, level, seed, network, dense, before, rates)
        asked = lottery.training(way, level, seed, network, data, recipe, begins, **_OPTIONS)
        fitted = yield change(level, asked)
        found.append(lottery.Level(level, begins, fitted))
    return found


def beside(
    branch: str,
    seed: int,
    network: Network,
    data: Sets,
    recipe: Recipe,
    fields: Any,
    ticket: list[Level],
    level: int,
) -> tuple[Any, Training]:
    """Where a branch that takes the ticket's masks begins at a level, and its training.

    Args:
        branch: "control", "same-sign", "shuffled", ...: see `prune.branches`.
        ticket: the levels of branch "rewind", at least up to ``level - 1``.
    """
    from secateur.prune import lottery

    way = lottery.BRANCHES[branch]
    initial, stats, _ = lottery.begin(network, seed)
    dense, before = dense_of(ticket[0], initial, stats), before_of(ticket[level - 1])
    rates = rates_of(fields, network)
    begins = lottery.start(way, level, seed, network, dense, before, rates)
    return begins, lottery.training(way, level, seed, network, data, recipe, begins, **_OPTIONS)


def rates_of(fields: Any, network: Network) -> Mapping[str, float]:
    """Fraction pruned at a level, by leaf."""
    from secateur.prune import lottery

    return lottery.rates_of(network, fields.prune, fields.prune_output)


def dense_of(level: Level, initial: Any, stats: Any) -> Dense:
    """The dense network, as `prune.lottery.start` takes it."""
    from secateur.prune import lottery

    return lottery.Dense(initial, stats, level.fitted.params, (initial, stats))


def before_of(level: Level) -> Before:
    """A trained level, as `prune.lottery.start` takes it."""
    from secateur.prune import lottery

    return lottery.Before(level.start.mask, level.fitted.params, level.fitted.stats)


# One program for all levels and lanes: small networks gain little by being trained smaller.
_OPTIONS: dict[str, Any] = {"shrink": False}
