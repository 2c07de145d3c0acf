"""Structured pruning: whole units and filters go, and what is left is a truly smaller network.

`prune_units` gives a ticket, `secateur.compact` the smaller network of it. Orders are those of
`prune.orders`; nothing is trained here.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params, fingerprint, ones_mask
from secateur.prune.find import declared_order
from secateur.prune.importance import examples, statistics_of
from secateur.prune.magnitude import removed
from secateur.prune.orders import ORDERS, Order, order
from secateur.prune.rows import HOW, rows, silence, without
from secateur.prune.ticket import Provenance, Ticket, table, ticket, versions

WITHIN = ("layer", "everywhere")


def _counts(orders: Mapping[str, Order], rate: float | Mapping[str, float]) -> dict[str, int]:
    """How many units of each row go."""
    rates = rate if isinstance(rate, Mapping) else dict.fromkeys(orders, rate)
    for name, value in rates.items():
        _checked(name, value)
    return {k: min(removed(rates[k], len(o.units)), len(o.units) - 1) for k, o in orders.items()}


def _checked(name: str, rate: float) -> None:
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise SecateurError(
            f"rate is the fraction of units that goes, in [0, 1), not {rate!r} (of {name}); 0.5 "
            "removes half."
        )


def _ranked(orders: Mapping[str, Order], rate: float, scale: bool) -> dict[str, int]:
    """How many of each row go where all rows are ranked together, each in its own order.

    Of the units that are next in their rows the one with the lowest score goes (or the highest);
    of equal ones the earlier row's. One unit stays in each row.
    """
    goes = removed(rate, sum(len(o.units) for o in orders.values()))
    counts = dict.fromkeys(orders, 0)
    heads: list[tuple[float, int, str]] = []

    def push(place: int, name: str) -> None:
        one, k = orders[name], counts[name]
        if k < len(one.units) - 1:
            by = abs(one.mean) if scale and one.mean else 1.0
            sign = 1 if one.remove == "smallest" else -1
            heapq.heappush(heads, (sign * float(one.scores[k]) / by, place, name))

    for place, name in enumerate(orders):
        push(place, name)
    while goes and heads:
        _, place, name = heapq.heappop(heads)
        counts[name] += 1
        goes -= 1
        push(place, name)
    return counts


def prune_units(
    network: Network,
    params: Params,
    data: Any = None,
    rate: float | Mapping[str, float] = 0.5,
    by: str = "norm",
    remove: str = "smallest",
    *,
    within: str = "layer",
    scale: bool | None = None,
    how: str = "whole",
    mask: Mask | None = None,
    stats: Stats | None = None,
    start: Params | None = None,
    part: str = "validation",
    seed: int = 0,
) -> Ticket:
    """A ticket without some units and filters; `secateur.compact` makes the smaller network of it.

    Args:
        params: trained parameters, by which units are ordered.
        data: as `secateur.find` takes them; orders by activation and importance need them.
        rate: the fraction of units that goes, of those that are there, half to even; one number,
            or row -> number, and other rows stay whole. One unit stays in each row.
        by, remove: a name in `orders.ORDERS`; ``"smallest"`` or ``"largest"`` goes first.
        within: ``"layer"``: each row loses its fraction; ``"everywhere"``: one ranking.
        scale: with ``"everywhere"``, whether scores are divided by their row's mean; by default as
            the order says (norms and potentials are, importances are not).
        how: what goes with a unit, ``"whole"`` or ``"incoming"`` (`rows.silence`).
        mask: what is left already, for pruning step by step: what is gone stays so.
        stats: batch statistics, if the network has any.
        start: where training goes on from; by default ``params``. Silenced as well.
        part: of sets, the one that importances and activations are measured on.
        seed: of the random order.

    Raises:
        SecateurError: for a network without such units, an unknown name, a rate outside [0, 1), or
            parameters, statistics or data that are missing or do not fit.
    """
    stats = statistics_of(network, params, stats)
    rule = lookup("order of units", by, ORDERS)
    lookup("ranking of units", within, dict.fromkeys(WITHIN))
    lookup("way to remove a unit", how, dict.fromkeys(HOW))
    known = {row.name: row for row in rows(network)}
    for name in rate if isinstance(rate, Mapping) else ():
        lookup("row of units", name, known)
    old = ones_mask(network.prunable(params)) if mask is None else mask
    chosen = {n: r for n, r in known.items() if not isinstance(rate, Mapping) or n in rate}
    orders = {}
    for name, row in chosen.items():
        alive = row.alive(old)
        if alive.any():
            orders[name] = order(
                network, params, name, by, remove,
                data=data, stats=stats, part=part, seed=seed, how=how, alive=alive,
            )  # fmt: skip
    scale = rule.scaled if scale is None else scale
    if within == "layer":
        counts = _counts(orders, rate)
    else:
        if isinstance(rate, Mapping):
            raise SecateurError(
                "one ranking of all rows has one rate; give a number, or within='layer'."
            )
        _checked("all rows", rate)
        counts = _ranked(orders, rate, scale)
    gone = {name: orders[name].units[:k] for name, k in counts.items()}
    told: dict[str, Any] = {"rate": dict(rate) if isinstance(rate, Mapping) else rate}
    told |= {"by": by, "remove": remove, "within": within, "how": how}
    if within == "everywhere":
        told["scale"] = scale
    record: dict[str, Any] = {}
    if rule.needs_data:
        record = examples(network, params, data, part, by).record
    made = cut_units(
        network, params if start is None else start, gone, how=how, mask=old, stats=stats
    )
    provenance = made.provenance
    return ticket(
        made.mask,
        made.params,
        made.stats,
        Provenance(
            **{
                **vars(provenance),
                "title": f"whole units, {rule.title}, the {remove} first",
                "source": rule.source,
                "options": told,
                "seed": seed if by == "random" else None,
                "data": record,
                "record": {
                    **provenance.record,
                    "scores": {n: orders[n].scores[:k].tolist() for n, k in counts.items()},
                },
            }
        ),
    )


def cut_units(
    network: Network,
    params: Params,
    units: Mapping[str, Sequence[int] | np.ndarray],
    *,
    how: str = "whole",
    mask: Mask | None = None,
    stats: Stats | None = None,
) -> Ticket:
    """The ticket without the units that are named.

    Args:
        units: row -> the units that go, by number.
        mask: what is left already.

    Raises:
        SecateurError: for an unknown row or unit, or parameters that do not fit.
    """
    stats = statistics_of(network, params, stats)
    old = ones_mask(network.prunable(params)) if mask is None else mask
    new = without(network, old, units, how)
    left = {row.name: int(row.alive(new).sum()) for row in rows(network)}
    record = {
        "removed": {name: [int(u) for u in chosen] for name, chosen in units.items()},
        "left": left,
        "units": {row.name: row.size for row in rows(network)},
    }
    told = Provenance(
        method="units",
        title="whole units",
        options={"how": how},
        network=network.name,
        start={"from": "given", "sha256": fingerprint(params)},
        layers=table(new, declared_order(network, new)),
        record=record,
        versions=versions(),
    )
    return ticket(new, silence(network, params, units, how), stats, told)
