"""The smaller network of a ticket: what is dead is gone, the function is the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.keys import Key
from secateur.core.network import Network, Stats, check_fit, check_network
from secateur.core.trees import Mask, Params, flatten, unflatten
from secateur.prune.ticket import Ticket
from secateur.structure.channels import read_channels
from secateur.structure.compact import Plan, masked, plan
from secateur.structure.reader import depends
from secateur.structure.shrink import Selection

INEXACT = ("refuse", "keep")
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}  # of the largest logit, to find a wrong function


@dataclass(frozen=True)
class Compacted:
    """A smaller network that computes what the masked one does.

    It unpacks into the first three: ``network, params, stats = compact(...)``.

    Attributes:
        network: runs the given network's own functions on smaller arrays. Its ``init`` cuts what
            the given one draws.
        params, stats: numpy arrays; ``params`` masked.
        mask: what is left of the mask: unstructured tickets still have zeros inside.
        widths: row of units -> ``{"full": n, "left": n}``, for every row that was cut.
        folded: how many constants went into a bias or a running mean (those that are 0, too).
        kept: row of units -> unit -> why it stays although it is a constant.
    """

    network: Network
    params: Params
    stats: Stats
    mask: Mask
    widths: dict[str, dict[str, int]]
    folded: int
    kept: dict[str, dict[int, str]]
    _training: Callable[[], str | None] = field(repr=False, compare=False)

    @cached_property
    def training(self) -> str | None:
        """Why training mode is not the same function, or None; computed when first asked for.

        Where constants were folded, the biases that made them are no longer trained, even where
        this is None.
        """
        return self._training()

    def __iter__(self) -> Iterator[Any]:
        return iter((self.network, self.params, self.stats))

    @property
    def size(self) -> int:
        """Entries of all parameters."""
        return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(self.params))


def compact(
    network: Network,
    ticket: Ticket | Mask,
    *,
    params: Params | None = None,
    stats: Stats | None = None,
    inexact: str = "refuse",
) -> Compacted:
    """Remove every unit and channel without a live path; the function stays the same.

    What no output hears is left out. What no input reaches is a constant phi(b), with batch norm in
    evaluation mode phi(gamma (b - mu) / sqrt(var + eps) + beta); it is added to the next bias or
    taken from the next running mean, then left out as well. Channels of one residual stream go if
    no writer of the stream is live; a channel that is flattened goes with all its positions; both
    sides of a depthwise convolution go together; inputs and outputs stay. Logits are equal up to
    the order of sums, which is checked on two random inputs; gradients of what stays are equal.

    Args:
        ticket: a ticket, or a mask with ``params`` (and ``stats``, if the network has any).
        params, stats: instead of the ticket's, for instance after training.
        inexact: what to do with a constant that cannot be folded, as it is not 0 and zeros are
            padded around its map: ``"refuse"``, or ``"keep"`` the channel.

    Raises:
        SecateurError: for such a constant under ``"refuse"``, for a network whose function depends
            on its widths or that does not run on others, or a mask without parameters or
            statistics.
    """
    check_network(network)
    if inexact not in INEXACT:
        raise SecateurError(f"inexact is 'refuse' or 'keep', not {inexact!r}.")
    if stats is None and not isinstance(ticket, Ticket) and has_statistics(network):
        raise SecateurError(
            f"the constants of {network.name!r} depend on its batch statistics: give stats, or a "
            "ticket."
        )
    mask, params, stats = of(network, ticket, params, stats)
    channels = read_channels(network, params, stats)
    found = plan(network, channels, params, stats, mask)
    names = found.selection.names
    kept = {names[n]: dict(units) for n, units in found.kept.items() if units}
    if kept and inexact == "refuse":
        row, units = next(iter(kept.items()))
        unit, why = next(iter(units.items()))
        raise SecateurError(
            f"channel {unit} of {row!r} has no live input and a constant that is not 0, and "
            f'cannot be folded exactly: {why}; inexact="keep" keeps such channels '
            f"({sum(map(len, kept.values()))} here)."
        )
    chosen = found.selection
    whole = masked(mask, params)
    small_params = chosen.take(_with(whole, found.added))
    small_stats = chosen.take_statistics(_with(stats, found.added_statistics))
    small = smaller(network, chosen)
    _same_function(network, small, (small_params, small_stats), found)
    widths = {
        names[n]: {"full": chosen.sizes[n], "left": len(units)}
        for n, units in chosen.units.items()
        if n not in channels.parts
    }
    return Compacted(
        small,
        jax.tree.map(np.asarray, small_params),
        jax.tree.map(np.asarray, small_stats),
        chosen.take(mask),
        widths,
        sum(found.folded.values()),
        kept,
        partial(_training, network, (whole, stats), small, (small_params, small_stats)),
    )


def of(
    network: Network, ticket: Ticket | Mask, params: Params | None, stats: Stats | None
) -> tuple[Mask, Params, Stats]:
    """Mask, parameters and statistics of a ticket, or of a mask and what is given beside it.

    Raises:
        SecateurError: for a mask without parameters, or parameters of another network.
    """
    mask: Mask = ticket
    if isinstance(ticket, Ticket):
        mask = ticket.mask
        params = ticket.params if params is None else params
        stats = ticket.stats if stats is None else stats
    if params is None:
        raise SecateurError(
            "a mask alone says nothing about the weights under it: give params, or a ticket."
        )
    check_fit(network, params)
    return mask, params, {} if stats is None else stats


def has_statistics(network: Network) -> bool:
    """Whether the network has batch statistics."""
    return bool(jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0))[1]))


def smaller(network: Network, chosen: Selection) -> Network:
    """The network on the arrays of ``chosen``; the functions are the given network's."""

    def init(key: Key) -> tuple[Params, Stats]:
        params, stats = network.init(key)
        return _cut(params, chosen.axes, chosen), _cut(stats, chosen.statistics, chosen)

    return replace(network, name=f"{network.name}-compact", init=init)


def _cut(tree: Any, axes: Any, chosen: Selection) -> Any:
    """`Selection.take` for arrays that are traced, too."""
    flat = flatten(tree)
    for name, cut in axes.items():
        for axis, group in cut.items():
            flat[name] = jnp.take(flat[name], jnp.asarray(chosen.units[group]), axis=axis)
    return unflatten(flat, tree)


def _with(tree: Any, added: dict[str, np.ndarray]) -> Any:
    flat = flatten(tree)
    for name, value in added.items():
        leaf = np.asarray(flat[name])
        flat[name] = (leaf + value.reshape(leaf.shape)).astype(leaf.dtype)
    return unflatten(flat, tree)


def _same_function(network: Network, small: Network, cut: Any, found: Plan) -> None:
    """Refuses a smaller network that is another function.

    A width that is written into the code is found here: 1 / sqrt(width), a fixed shape, a shortcut
    that is there if two widths happen to be equal.
    """
    advice = "it cannot be made smaller; train and run it with its mask instead."
    expected = found.logits
    try:
        logits = np.asarray(jax.jit(small.apply)(*cut, found.x))
    except Exception as error:  # whatever a network raises on a shape that it did not expect
        raise SecateurError(
            f"{network.name!r} does not run on smaller widths ({type(error).__name__}): {advice}"
        ) from error
    scale = np.abs(expected).max(initial=0) + np.finfo(expected.dtype).tiny
    allowed = TOLERANCE.get(str(expected.dtype), 1e-2)
    if logits.shape != expected.shape or not np.abs(logits - expected).max() <= allowed * scale:
        raise SecateurError(
            f"the function of {network.name!r} depends on its widths, so that the smaller network "
            f"is another one: {advice}"
        )


def _training(network: Network, full: Any, small: Network, cut: Any) -> str | None:
    """Why training mode of the smaller network is another function, or None."""
    dtype = jnp.result_type(*jax.tree.leaves(full[0]))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((8, *network.input_shape)), dtype)
    key = jax.random.key(3)
    jaxpr = jax.make_jaxpr(network.train)(*full, x, key).jaxpr
    if any(depends(jaxpr, [v is jaxpr.invars[-1] for v in jaxpr.invars])):
        return "it draws random numbers by shape (dropout)"
    expected = np.asarray(jax.jit(network.train)(*full, x, key)[0])
    other = np.asarray(jax.jit(small.train)(*cut, x, key)[0])
    scale = np.abs(expected).max(initial=0) + np.finfo(expected.dtype).tiny
    # Batch norm of few examples magnifies rounding.
    if not np.abs(other - expected).max() <= (1e-6 if dtype == jnp.float64 else 1e-2) * scale:
        return (
            "batch norm of a channel without live inputs gives phi(beta) in training, which is not "
            "its constant in evaluation"
        )
    return None
