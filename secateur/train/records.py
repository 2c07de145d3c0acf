"""What is read of a network while it trains: pure functions at chosen steps.

Training knows neither kernels nor features: a record is a plain function of the network, and what
it gives is stacked over its steps in `training.Fitted.records`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from secateur.core.network import Network
from secateur.core.trees import flatten
from secateur.structure.canonical import canonical

Read = Callable[..., Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Record:
    """Something to be read of a network at some steps of its training.

    Attributes:
        name: of the entry in `training.Fitted.records`.
        read: ``(network, params, stats, mask, *given) -> dict of arrays`` (dicts in it may be
            nested), of the full-size network with its pruned places at 0. A function of a module,
            not a new lambda each time: equal functions share a program.
        steps: where evaluations are.
        given: arrays beside the network, as a probe's examples: data, not baked into the program.
        compiled: ``read`` is traced, once for all lanes. False for a function that works on the
            host itself (`kernels.ntk.ntk` plans there): it is called lane by lane with arrays.
    """

    name: str
    read: Read
    steps: tuple[int, ...]
    given: tuple[Any, ...] = ()
    compiled: bool = True

    def program(self) -> Hashable:
        """Records of equal program may be taken of the lanes of one training."""
        return self.name, self.read, self.steps, self.compiled, len(self.given)


@lru_cache(maxsize=64)
def _program(read: Read, network: Network, lanes: bool) -> Any:
    function: Any = partial(read, network)
    return jax.jit(canonical(jax.vmap(function) if lanes else function))


def take(
    records: Sequence[Record], network: Network, params: Any, stats: Any, mask: Any, lanes: bool
) -> list[dict[str, np.ndarray]]:
    """One record of every lane: leaves by name.

    Args:
        records: one a lane, of equal `Record.program`.
        params, stats, mask: with a leading axis of lanes where ``lanes``.
    """
    first, count = records[0], range(len(records))
    given = [jax.tree.map(np.asarray, record.given) for record in records]
    if first.compiled and lanes:
        together = jax.tree.map(lambda *leaves: np.stack(leaves), *given)
        whole = _program(first.read, network, True)(params, stats, mask, *together)
        whole = jax.tree.map(np.asarray, whole)
        found = [jax.tree.map(lambda a, k=k: a[k], whole) for k in count]
    else:
        read = _program(first.read, network, False) if first.compiled else first.read
        read = read if first.compiled else partial(read, network)
        of = lambda tree, k: jax.tree.map(lambda a: a[k], tree) if lanes else tree
        found = [read(*(of(tree, k) for tree in (params, stats, mask)), *given[k]) for k in count]
    return [{k: np.asarray(v) for k, v in flatten(dict(tree)).items()} for tree in found]
