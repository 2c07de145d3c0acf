"""How accuracy falls while the units of one row go one by one (Heitmann 2020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.core.network import Network, Stats
from secateur.core.trees import Params
from secateur.prune.importance import blocks, examples, opened, score, statistics_of
from secateur.prune.orders import Order
from secateur.prune.rows import HOW, row_of
from secateur.structure.canonical import canonical
from secateur.structure.gates import Meeting


@dataclass(frozen=True)
class Curve:
    """How the network does while the units of a row go, one after the other.

    Attributes:
        units: int (p,), first to go to last.
        accuracy, loss: float64 (p + 1,): a fraction, and mean cross-entropy in nats, after
            removing 0, 1, ..., p units.
        examples: measured on.
    """

    row: str
    units: np.ndarray
    accuracy: np.ndarray
    loss: np.ndarray
    examples: int


@lru_cache(maxsize=32)
def _sweep(network: Network, name: str, prepare: Callable[[Any], Any], how: str) -> Any:
    """(params, stats, images, labels, units) -> sums after removing 0, 1, ..., p of the units.

    From the end to the beginning: all units are gone, and one after the other comes back. What it
    adds to the products that read the row is added to them; a sum over the units that are there,
    as a product is one, while subtracting would leave the rounding of those that are not.
    """
    row = row_of(network, name)

    def measure(
        params: Params, stats: Stats, images: jax.Array, labels: jax.Array, units: jax.Array
    ) -> Any:
        x = prepare(images)
        rest, base, places = opened(network, row, params, stats, x, how)
        owner = {k: jnp.zeros(p.size, int).at[p.ravel()].set(_owners(p)) for k, p in places.items()}

        def reduced(met: Meeting, there: jax.Array) -> jax.Array:
            kept = met.keeping(there[owner[met.kernel]], base.get(met.kernel))
            return met.again(kept, met.weights)

        none = jnp.ones(row.size, bool).at[units].set(False)
        start = {k: reduced(met, none) for k, met in rest.early.items()}

        def step(state: Any, unit: jax.Array) -> Any:
            there, products = state
            found = rest(lambda met: products[met.kernel] if met.early else reduced(met, there))
            more = {
                k: value + rest.early[k].of(places[k][unit], base.get(k))
                for k, value in products.items()
            }
            return (there.at[unit].set(True), more), score(found, labels)

        back = jnp.concatenate([units[::-1], units[:1]])  # what the last step adds, nobody sees
        _, sums = jax.lax.scan(step, (none, start), back)
        return jax.tree.map(lambda a: a[::-1], sums)

    return jax.jit(canonical(measure))


def _owners(places: jax.Array) -> jax.Array:
    return jnp.repeat(jnp.arange(places.shape[0]), places.shape[1])


def removal_curve(
    network: Network,
    params: Params,
    data: Any,
    removal: Order,
    *,
    stats: Stats | None = None,
    part: str = "test",
    how: str = "whole",
) -> Curve:
    """Accuracy and loss after removing 0, 1, ..., p units of a row, in one compiled pass.

    Evaluation mode, nothing trained in between.

    Args:
        params: trained parameters; masked ones, if the network is pruned.
        data: as `secateur.find` takes them, with labels; part: of sets, what is measured on.
        removal: who goes when (`orders.order`).
        how: what goes with a unit, ``"whole"`` or ``"incoming"`` (`rows.silence`).

    Raises:
        SecateurError: for parameters, statistics or data that do not fit, or an order without
            units.
    """
    stats = statistics_of(network, params, stats)
    lookup("way to remove a unit", how, dict.fromkeys(HOW))
    row_of(network, removal.row)
    if len(removal.units) == 0:
        raise SecateurError(f"the order of {removal.row} holds no units; give at least one.")
    source = examples(network, params, data, part, "a removal curve")
    program = _sweep(network, removal.row, source.prepare, how)
    units = jnp.asarray(removal.units, jnp.int32)
    found = [program(params, stats, *block, units) for block in blocks(source)]
    n = len(source.images)
    loss, right = (np.sum(np.asarray(sums, np.float64), axis=0) / n for sums in zip(*found))
    return Curve(removal.row, np.asarray(removal.units), right, loss, n)
