"""Units and the kernels between them, as a graph to walk on, read from a network's program.

The reader of `structure.flow` runs over the program with numbers of units in place of values: every
entry of an array carries the number of the unit that it belongs to (all places of a channel one
number), so reshaping, pooling, padding and joining need no rules of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params, flatten, map_mask
from secateur.structure.flow import Reading, Term, reachable, run


@dataclass(frozen=True)
class Step:
    """From units to units through one kernel.

    Attributes:
        sources: (in,) the unit behind each input feature; 0 for none. After a flattening several
            features are one unit.
        units: (out,) the units it makes.
        entries: (places, in, out) where the weights are among all prunable ones, in the order of
            leaves; -1 where there is none. ``places`` are those of a convolution's kernel.
        fixed: (places, in, out) the weights of a kernel that may not be pruned, else None.
    """

    sources: np.ndarray
    units: np.ndarray
    entries: np.ndarray
    fixed: np.ndarray | None = None


@dataclass(frozen=True)
class Sum:
    """Units that are the sum of two others: where a shortcut comes back.

    Attributes:
        pairs: (n, 2). units: (n,) what they make.
    """

    pairs: np.ndarray
    units: np.ndarray


@dataclass
class Walkways:
    """Where paths can lead.

    Attributes:
        events: steps and sums, in the order of the program.
        inputs, outputs: units where walks begin and end.
        units: how many there are; numbered from 1.
        open: (all prunable weights,) whether a path leads through the weight at all.
    """

    events: list[Step | Sum]
    inputs: np.ndarray
    outputs: np.ndarray
    units: int
    open: np.ndarray


@dataclass
class _Units(Reading):
    count: int = 0
    inputs: int = 0
    events: list[Step | Sum] = field(default_factory=list)
    bundles: dict[bytes, int] = field(default_factory=dict)

    def fresh(self, n: int) -> np.ndarray:
        self.count += n
        return np.arange(self.count - n + 1, self.count + 1, dtype=np.int32)

    def raised(self, term: Term, exponent: Any) -> Any:
        return term.value

    def summed(self, eqn: Any, ins: list[Any]) -> Any:
        """A sum over the places of a unit is that unit."""
        one, p = ins[0], eqn.params
        ids = np.asarray(one.value)
        if eqn.primitive.name == "reduce_window_sum":
            return self.pooled(eqn, ins)
        if eqn.primitive.name == "cumsum":
            self.refuse(eqn, ins, "it adds up several units")
        last = ids.max(axis=tuple(p["axes"]))
        if ((ids != 0) & (ids != np.expand_dims(last, tuple(p["axes"])))).any():
            self.refuse(eqn, ins, "it adds up several units")
        return replace(one, value=jnp.asarray(last), axes=None)

    def pooled(self, eqn: Any, ins: list[Any]) -> Any:
        if eqn.primitive.name == "reduce_max":
            return self.summed(eqn, ins)
        one, p = ins[0], eqn.params
        window = (p["window_dimensions"], p["window_strides"], p["padding"])
        dilated = (p.get("base_dilation"), p.get("window_dilation"))
        pool = lambda ids, start, choose: jax.lax.reduce_window(
            ids, np.int32(start), choose, *window, *dilated
        )
        ids = jnp.asarray(one.value)
        most = pool(ids, 0, jax.lax.max)
        least = pool(jnp.where(ids == 0, 2**30, ids), 2**30, jax.lax.min)
        if bool(jnp.any((most != least) & (most != 0))):
            self.refuse(eqn, ins, "it adds up several units")
        return replace(one, value=most)

    def merged(self, a: Term, b: Term) -> Term:
        left, right = np.asarray(a.value, np.int64), np.asarray(b.value, np.int64)
        ids = np.maximum(left, right)
        two = (left != right) & (left != 0) & (right != 0)
        if two.any():
            pairs, which = np.unique(left[two] << 32 | right[two], return_inverse=True)
            made = self.fresh(len(pairs))
            self.events.append(Sum(np.stack([pairs >> 32, pairs & (2**32 - 1)], axis=1), made))
            ids[two] = made[which]
        return replace(a, value=jnp.asarray(ids, jnp.int32))

    def scaled(self, eqn: Any, ins: list[Any]) -> Term:
        one = next(i for i in ins if isinstance(i, Term))
        if eqn.primitive.name in ("mul", "div"):
            return replace(one, value=jnp.broadcast_to(one.value, eqn.outvars[0].aval.shape))
        if not one.flows:
            self.refuse(eqn, ins, "it multiplies a kernel by a fixed matrix")
        return self.multiplied(eqn, ins[0], ins[1], one)

    def multiplied(self, eqn: Any, a: Any, b: Any, like: Term) -> Term:
        first = isinstance(a, Term) and a.flows  # which operand is the flow
        flow, kernel = (a, b) if first else (b, a)
        if eqn.primitive.name == "mul" or not (isinstance(flow, Term) and flow.flows):
            self.refuse(eqn, [a, b], "walks need a kernel between two rows of units here")
        ids = np.asarray(flow.value)
        weights = np.asarray(kernel.value if isinstance(kernel, Term) else kernel)
        shape = eqn.outvars[0].aval.shape
        if eqn.primitive.name == "dot_general":
            contracted, batch = eqn.params["dimension_numbers"]
            if batch[0]:
                self.refuse(eqn, [a, b], "walks through batched products are not known")
            mine, its = (contracted[0], contracted[1]) if first else (contracted[1], contracted[0])
            features = _last(ids, mine)
            matrix = _last(weights, its).T[None]
            free = tuple(n for k, n in enumerate(weights.shape) if k not in its)
            units = self.fresh(matrix.shape[2])
            trailing = units.reshape(free if first else (*free, *(1,) * (len(shape) - len(free))))
            value = np.broadcast_to(trailing, shape)
        else:
            if not first or eqn.params["batch_group_count"] != 1:
                self.refuse(eqn, [a, b], "walks through such a convolution are not known")
            numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
            features = _last(ids, (numbers.lhs_spec[1],))
            out, into, *places = numbers.rhs_spec
            each = np.transpose(weights, (*places, into, out))
            each = each.reshape(-1, *each.shape[-2:])
            matrix = _ungrouped(each, groups, -1 if isinstance(kernel, Term) else 0)
            units = self.fresh(matrix.shape[2])
            along = [1] * len(shape)
            along[numbers.out_spec[1]] = -1
            value = np.broadcast_to(units.reshape(along), shape)
        sources = self.sources(eqn, [a, b], features)
        if isinstance(kernel, Term):
            self.events.append(Step(sources, units, matrix))
        else:
            self.events.append(Step(sources, units, np.full(matrix.shape, -1), np.abs(matrix)))
        return replace(like, value=jnp.asarray(value))

    def sources(self, eqn: Any, ins: list[Any], features: np.ndarray) -> np.ndarray:
        """The unit of each feature, (places, in) -> (in,); the pixels of a channel become one."""
        found = features.max(axis=0)
        mixed = ((features != found) & (features != 0)).any(axis=0)
        if mixed.any() and features[:, mixed].max() > self.inputs:
            self.refuse(eqn, ins, "a feature is not the same unit in all places")
        for column in np.flatnonzero(mixed):
            pixels = features[:, column].tobytes()
            if pixels not in self.bundles:
                self.bundles[pixels] = int(self.fresh(1)[0])
            found[column] = self.bundles[pixels]
        return found


def _last(array: np.ndarray, axes: Any) -> np.ndarray:
    """The other axes flattened, then ``axes`` flattened in their order."""
    rest = [k for k in range(array.ndim) if k not in axes]
    size = int(np.prod([array.shape[k] for k in axes]))
    return np.transpose(array, (*rest, *axes)).reshape(-1, size)


def _ungrouped(kernel: np.ndarray, groups: int, nothing: int) -> np.ndarray:
    """(places, in / groups, out) -> (places, in, out), ``nothing`` between groups."""
    places, each, out = kernel.shape
    full = np.full((places, each * groups, out), nothing, kernel.dtype)
    width = out // groups
    for g in range(groups):
        columns = slice(g * width, (g + 1) * width)
        full[:, g * each : (g + 1) * each, columns] = kernel[:, :, columns]
    return full


def walkways(network: Network, params: Params, stats: Stats, mask: Mask) -> Walkways:
    """The graph of units of ``network.apply``, on the host.

    Args:
        params: concrete; the values of kernels that may not be pruned are read.
        mask: where it has leaves, weights may be pruned; they are numbered in the order of its
            leaves and, inside one, of their places (C order).

    Raises:
        SecateurError: as `structure.flow.flow`, and for an operation that mixes units, such as a
            mean over channels.
    """
    sizes = [np.size(m) for m in flatten(mask).values() if m is not None]
    offsets = iter(np.concatenate([[0], np.cumsum(sizes)]).astype(int))
    numbers = map_mask(
        lambda m: (
            None
            if m is None
            else np.arange(np.size(m), dtype=np.int32).reshape(np.shape(m))
            + np.int32(next(offsets))
        ),
        mask,
    )
    size = int(np.prod(network.input_shape))
    reading = _Units(network.name, count=size, inputs=size)
    pixels = np.arange(1, size + 1, dtype=np.int32).reshape(network.input_shape)
    out = run(reading, network, params, stats, numbers, jnp.asarray(pixels))

    all_kept = map_mask(lambda m: None if m is None else np.ones(np.shape(m), bool), mask)
    open_weights = reachable(network, params, stats, all_kept).effective
    bundled = np.fromiter(reading.bundles.values(), int)
    read = [e.sources if isinstance(e, Step) else e.pairs.ravel() for e in reading.events]
    used = np.unique(np.concatenate(read))
    inputs = used[(used > 0) & ((used <= size) | np.isin(used, bundled))]
    return Walkways(
        reading.events,
        inputs,
        np.unique(np.asarray(out.value)),
        reading.count,
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(open_weights)]),
    )
