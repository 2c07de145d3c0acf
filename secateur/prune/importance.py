"""What units are worth, measured: how the network does without each of them alone.

Nothing is trained again. All units of a row are removed in turn in one compiled pass. A unit
enters the rest of the network only through the products that read it, so its contribution is
subtracted from them and what follows is run again; what comes before is computed once. Of m
units of LeNet-300-100 that costs m times the last layers, not m networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import key
from secateur.core.network import Network, Stats, check_fit
from secateur.core.trees import Params, flatten, unflatten
from secateur.data.examples import Dataset, Sets
from secateur.prune.examples import Source, gather
from secateur.prune.rows import HOW, Row, row_of
from secateur.structure.canonical import canonical
from secateur.structure.gates import Gated, Meeting, gated
from secateur.train.losses import cross_entropy

BLOCK = 250  # examples at once: of Conv-2's filters half the memory of 1,000, no slower
TOGETHER = 16  # units at once on an accelerator; on the CPU one by one, which stays in the cache
MEASURES = ("accuracy", "loss")


def examples(network: Network, params: Params, data: Any, part: str, name: str) -> Source:
    """Images and labels to measure on, as `secateur.find` takes data; of sets, one part.

    Raises:
        SecateurError: no data or labels, or such as do not fit the network.
    """
    if isinstance(data, Sets | Dataset):
        parts = [k for k in ("train", "validation", "test") if hasattr(data, k)]
        lookup(f"part of {data.name}", part, dict.fromkeys(parts))
        data = replace(data, train=getattr(data, part))
    needs: Any = SimpleNamespace(needs=frozenset({"images", "labels"}))
    found = gather(network, params, data, name, needs, 1, key(0, "units"))
    if isinstance(data, Sets | Dataset):
        found.record["part"] = part
    return found


def blocks(source: Source) -> Iterator[tuple[Any, Any]]:
    """Images and labels, `BLOCK` examples at a time."""
    for at in range(0, len(source.images), BLOCK):
        yield source.images[at : at + BLOCK], source.labels[at : at + BLOCK]


def statistics_of(network: Network, params: Params, stats: Stats | None) -> Stats:
    """The statistics given, or {} where the network has none.

    Raises:
        SecateurError: for parameters of another network, or missing statistics.
    """
    check_fit(network, params)
    if stats is None:
        if flatten(jax.eval_shape(network.init, jax.random.key(0))[1]):
            raise SecateurError(
                f"{network.name} has batch statistics; give stats= together with params."
            )
        return {}
    return stats


def silent(network: Network, row: Row, params: Params, stats: Stats, x: jax.Array) -> Any:
    """What each reader meets where the row's incoming weights are all 0: kernel -> (1, ...).

    A constant for each unit and position, whatever the input. Traceable.
    """
    flat = dict(flatten(params))
    for place in row.made:
        flat[place.leaf] = jnp.zeros_like(flat[place.leaf])
    kernels = [place.leaf for place in row.read]
    met: dict[str, jax.Array] = {}

    def look(meeting: Meeting) -> jax.Array:
        met[meeting.kernel] = meeting.operand
        return meeting.again(meeting.operand, meeting.weights)

    gated(network, unflatten(flat, params), stats, jnp.zeros_like(x[:1]), kernels)(look)
    return met


def opened(
    network: Network, row: Row, params: Params, stats: Stats, x: jax.Array, how: str
) -> tuple[Gated, dict[str, Any], dict[str, jax.Array]]:
    """The network in front of a row's readers, what a removed unit emits, and units' places."""
    rest = gated(network, params, stats, x, [place.leaf for place in row.read])
    base = silent(network, row, params, stats, x) if how == "incoming" else {}
    return rest, base, {p.leaf: jnp.asarray(row.places(p.leaf)) for p in row.read}


def score(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum of the cross-entropy, and how many are right."""
    right = jnp.sum(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.int32)
    return jnp.sum(cross_entropy(logits, labels)), right


@lru_cache(maxsize=32)
def _alone(network: Network, name: str, prepare: Callable[[Any], Any], how: str) -> Any:
    """(params, stats, images, labels) -> sums of the whole network, and without each unit."""
    row = row_of(network, name)

    def measure(params: Params, stats: Stats, images: jax.Array, labels: jax.Array) -> Any:
        x = prepare(images)
        rest, base, places = opened(network, row, params, stats, x, how)
        products = {k: met.again(met.operand, met.weights) for k, met in rest.early.items()}
        whole = lambda met: products[met.kernel] if met.early else met.again(*_operands(met))

        def one(unit: jax.Array) -> Any:
            def rule(met: Meeting) -> jax.Array:
                return whole(met) - met.of(places[met.kernel][unit], base.get(met.kernel))

            return score(rest(rule), labels)

        at_once = None if jax.default_backend() == "cpu" else TOGETHER
        return score(rest(whole), labels), jax.lax.map(
            one, jnp.arange(row.size), batch_size=at_once
        )

    return jax.jit(canonical(measure))


def _operands(met: Meeting) -> tuple[jax.Array, jax.Array]:
    return met.operand, met.weights


@dataclass(frozen=True)
class Importance:
    """How the network does whole, and without each unit of a row alone.

    Attributes:
        accuracy, loss: of the whole network: a fraction; mean cross-entropy in nats.
        accuracy_without, loss_without: of each unit: float64 (units,).
        examples: measured on.
    """

    row: str
    accuracy: float
    loss: float
    accuracy_without: np.ndarray
    loss_without: np.ndarray
    examples: int

    def drop(self, measure: str = "accuracy") -> np.ndarray:
        """What removing each unit costs: the fall in accuracy, or the rise in loss.

        Negative for units that do harm.

        Raises:
            SecateurError: for another measure.
        """
        lookup("measure of importance", measure, dict.fromkeys(MEASURES))
        if measure == "accuracy":
            return self.accuracy - self.accuracy_without
        return self.loss_without - self.loss


def importance(
    network: Network,
    params: Params,
    data: Any,
    row: str,
    *,
    stats: Stats | None = None,
    part: str = "test",
    how: str = "whole",
) -> Importance:
    """Measured importance of every unit of a row: the drop when it alone is removed.

    Heitmann 2020 ("Sources of Redundancy in Neural Networks"): accuracy a minus a_p without the
    unit, nothing trained again. Evaluation mode.

    Args:
        params: trained parameters; masked ones, if the network is pruned.
        data: as `secateur.find` takes them, with labels.
        row: a name in ``[row.name for row in rows(network)]``.
        part: of sets, what is measured on.
        how: what goes with a unit, ``"whole"`` or ``"incoming"`` (`rows.silence`).

    Raises:
        SecateurError: for an unknown row, parameters or data that do not fit, or missing
            statistics.
    """
    stats = statistics_of(network, params, stats)
    lookup("way to remove a unit", how, dict.fromkeys(HOW))
    row_of(network, row)
    source = examples(network, params, data, part, "measured importance")
    program = _alone(network, row, source.prepare, how)
    found = [program(params, stats, *block) for block in blocks(source)]
    (loss, right), (losses, rights) = jax.tree.map(
        lambda *sums: np.sum(np.asarray(sums, np.float64), axis=0) / len(source.images), *found
    )
    return Importance(row, float(right), float(loss), rights, losses, len(source.images))


@lru_cache(maxsize=32)
def _active(network: Network, name: str, prepare: Callable[[Any], Any]) -> Any:
    row = row_of(network, name)

    def measure(params: Params, stats: Stats, images: jax.Array) -> Any:
        rest, _, places = opened(network, row, params, stats, prepare(images), "whole")
        sizes, shares = [], []

        def look(met: Meeting) -> jax.Array:
            rows = jnp.moveaxis(met.operand, met.axis, 0)[places[met.kernel].ravel()]
            rows = rows.reshape(row.size, -1)
            sizes.append(jnp.mean(jnp.abs(rows), axis=1))
            shares.append(jnp.mean(rows != 0, axis=1, dtype=rows.dtype))
            return met.again(met.operand, met.weights)

        rest(look)
        return sum(sizes) / len(sizes), sum(shares) / len(shares)

    return jax.jit(canonical(measure))


def activity(
    network: Network,
    params: Params,
    data: Any,
    row: str,
    *,
    stats: Stats | None = None,
    part: str = "validation",
) -> tuple[np.ndarray, np.ndarray]:
    """Mean |activation| of each unit, and the share of its activations that are not 0.

    One minus the share is APoZ, the average percentage of zeros (Hu et al. 2016, eq. 1). Both are
    means over examples and positions of what the next layer reads: behind the activation and,
    where there is one, the pooling (the paper counts in front of the pooling).

    Returns:
        float64 (units,) each.

    Raises:
        SecateurError: as `importance`.
    """
    stats = statistics_of(network, params, stats)
    source = examples(network, params, data, part, "activation")
    program = _active(network, row, source.prepare)
    total = active = np.zeros(row_of(network, row).size)
    for images, _ in blocks(source):
        size, share = program(params, stats, images)
        weight = len(images) / len(source.images)
        total = total + weight * np.asarray(size, np.float64)
        active = active + weight * np.asarray(share, np.float64)
    return total, active
