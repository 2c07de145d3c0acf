"""A mask's health before training: whether anything can flow, and through how much of it."""

from __future__ import annotations

import ast
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.network import Network, Stats, check_network
from secateur.core.trees import Mask, Params, flatten, ones_mask, sizes
from secateur.kernels.path import path_trace
from secateur.kernels.trace import trace
from secateur.networks.mlp import mlp
from secateur.networks.registry import network as by_name
from secateur.prune.compact import of
from secateur.prune.ticket import Ticket
from secateur.structure.canonical import canonical
from secateur.structure.channels import Channels, read_channels
from secateur.structure.compact import Liveness, liveness
from secateur.structure.flow import Reach, reachable
from secateur.structure.reader import OUTPUT

MLP = re.compile(r"mlp(?P<widths>(-\d+)+)(-(?P<phi>tanh|linear))?(-relu)?(?P<nobias>-nobias)?")
NTK_EXAMPLES = 8
# Entries of one example's Jacobian above which the NTK's trace is not computed unasked: 200 MB.
NTK_ENTRIES = 50_000_000


@dataclass(frozen=True)
class Layer:
    """One prunable leaf.

    Attributes:
        name: of the leaf; shape: of it.
        size: its weights. kept: of them under the mask. effective: of these on a path of kept
            weights from an input to an output; None where paths cannot be followed.
        units: what its product makes, channels of a convolution; None where it is no such product.
        live: units through which a path leads.
        no_input: units without a live input that an output hears: constants.
        no_output: units with a live input that no output hears.
        neither: units without either.
        cut_off: units with live inputs and outputs, but no path leads through both: the two lie at
            different positions, or at different blocks of a residual stream.
    """

    name: str
    shape: tuple[int, ...]
    size: int
    kept: int
    effective: int | None
    units: int | None
    live: int | None
    no_input: int | None
    no_output: int | None
    neither: int | None
    cut_off: int | None

    @property
    def density(self) -> float:
        """Kept over all weights of the leaf."""
        return self.kept / self.size

    @property
    def effective_density(self) -> float | None:
        """Effective over all weights of the leaf."""
        return None if self.effective is None else self.effective / self.size


@dataclass(frozen=True)
class Health:
    """What can flow through a mask.

    Attributes:
        network: its name. method: of the ticket, or "mask".
        layers: in the order of the program, then what it does not show.
        collapsed: no path of kept weights leads from an input to an output (layer collapse).
        empty: leaves without any kept weight. In a residual network that need not be a collapse.
        path_trace: log10 of the path kernel's trace under the mask; -inf where no path is left.
        dense_path_trace: of the dense network; None without its weights.
        ntk_trace, dense_ntk_trace: trace of the NTK on ``ntk_examples`` inputs.
        ntk_examples: how many, and of what kind.
        missing: measure -> why it is None.
    """

    network: str
    method: str
    layers: tuple[Layer, ...]
    collapsed: bool
    empty: tuple[str, ...]
    path_trace: float | None
    dense_path_trace: float | None
    ntk_trace: float | None
    dense_ntk_trace: float | None
    ntk_examples: str
    missing: dict[str, str]

    @property
    def density(self) -> float:
        """Direct density: kept over all prunable weights."""
        return sum(l.kept for l in self.layers) / sum(l.size for l in self.layers)

    @property
    def effective_density(self) -> float | None:
        """Effective over all prunable weights. Vysogorets & Kempe 2021, arXiv:2107.02306."""
        found = [l.effective for l in self.layers if l.effective is not None]
        if len(found) < len(self.layers):
            return None
        return sum(found) / sum(l.size for l in self.layers)

    @property
    def narrowest(self) -> Layer | None:
        """Of the layers that lost units, the one with the fewest left; None if none did.

        Without shortcuts all that passes goes through them.
        """
        lost = [l for l in self.layers if l.live is not None and l.live != l.units]
        return min(lost, key=lambda l: l.live or 0, default=None)

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a layer, for tables and figures."""
        return [
            {
                **asdict(l),
                "shape": list(l.shape),
                "density": l.density,
                "effective_density": l.effective_density,
            }
            for l in self.layers
        ]

    def values(self) -> dict[str, Any]:
        """The whole as JSON: numbers without layers, and the rows. -inf is None."""
        plain = lambda v: None if isinstance(v, float) and not math.isfinite(v) else v
        given = {k: plain(v) for k, v in asdict(self).items() if k != "layers"}
        return {
            **given,
            "empty": list(self.empty),
            "density": self.density,
            "effective_density": self.effective_density,
            "layers": self.rows(),
        }

    def table(self) -> str:
        """The rows as plain text, one line a layer."""
        head = ["layer", "weights", "kept", "effective", "units", "live"]
        head += ["no input", "no output", "neither", "cut off"]
        body = [
            [
                l.name,
                f"{l.size:,}",
                _share(l.kept, l.size),
                _share(l.effective, l.size),
                *(
                    "-" if n is None else f"{n:,}"
                    for n in (l.units, l.live, l.no_input, l.no_output, l.neither, l.cut_off)
                ),
            ]
            for l in self.layers
        ]
        widths = [max(len(line[k]) for line in [head, *body]) for k in range(len(head))]
        lines = [
            "  ".join(
                c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(r, widths))
            )
            for r in [head, *body]
        ]
        return "\n".join(line.rstrip() for line in lines)

    def __str__(self) -> str:
        return "\n".join([*self._head(), "", self.table(), *self._notes()])

    def _head(self) -> Iterator[str]:
        effective = self.effective_density
        total = sum(l.size for l in self.layers)
        yield f"{self.method} on {self.network}"
        yield f"direct density     {self.density:.4%} of {total:,} prunable weights"
        if effective is not None:
            yield f"effective density  {effective:.4%}: weights that are on a path at all"
        if self.collapsed:
            yield "LAYER COLLAPSE: no path of kept weights leads from an input to an output."
        else:
            narrow = self.narrowest
            if narrow is not None:
                live = f"live units {narrow.live:,} of {narrow.units:,}"
                yield f"narrowest layer    {narrow.name}: {live}"
        if self.empty:
            yield "empty layers       " + ", ".join(self.empty)
        if self.path_trace is not None:
            yield "path-kernel trace  " + _against(self.path_trace, self.dense_path_trace)
        if self.ntk_trace is not None:
            log10 = lambda v: None if v is None else (math.log10(v) if v > 0 else -math.inf)
            log = log10(self.ntk_trace)
            assert log is not None
            yield (
                "NTK trace          "
                + _against(log, log10(self.dense_ntk_trace))
                + (f" ({self.ntk_examples})")
            )

    def _notes(self) -> list[str]:
        return [""] * bool(self.missing) + [f"{k}: {why}" for k, why in self.missing.items()]


def _share(n: int | None, of: int) -> str:
    return "-" if n is None else f"{n:,} ({100 * n / of:.3g}%)"


def _against(log: float, dense: float | None) -> str:
    if log == -math.inf:
        return "0: no path is left"
    text = f"10^{log:.2f}"
    return text if dense is None else f"{text}, 10^{log - dense:+.2f} of the dense network's"


def examine(
    network: Network,
    ticket: Ticket | Mask,
    *,
    params: Params | None = None,
    stats: Stats | None = None,
    x: jax.Array | None = None,
    ntk: bool | None = None,
) -> Health:
    """The health of a mask before training.

    Layer collapse, dead units by kind, direct and effective density (spatially exact for
    convolutions), live units, and the traces of the path kernel and the NTK against the dense
    network. Traces are of evaluation mode at the given weights.

    Args:
        ticket: a ticket, or a mask.
        params: all weights before they were masked: what "dense" means. Without them a ticket's
            own are taken, which are 0 where it is pruned, and nothing is compared with dense.
        stats: batch statistics, if the network has any; by default the ticket's, else new ones.
        x: inputs ``(n, *input_shape)`` for the NTK's trace; by default 8 of independent normals.
        ntk: whether to compute it; by default where one example's Jacobian is below 200 MB.

    Raises:
        SecateurError: for a mask without parameters. What cannot be measured is None, and
            ``missing`` says why.
    """
    check_network(network)
    dense_known = params is not None
    if stats is None and not isinstance(ticket, Ticket):
        # Only what is returned is computed: no weights are drawn.
        stats = jax.jit(lambda key: network.init(key)[1])(jax.random.key(0))
    mask, params, stats = of(network, ticket, params, stats)
    missing: dict[str, str] = {}

    channels = read_channels(network, params, stats)
    live = liveness(channels, params, mask)
    reach = None
    try:
        reach = reachable(network, params, stats, mask)
    except SecateurError as error:
        missing["effective density"] = str(error)
    layers = _layers(channels, live, mask, reach)
    some = any(l.kept if l.effective is None else l.effective for l in layers)
    outputs = [n for n, g in enumerate(channels.groups) if g.fixed == OUTPUT]
    cut = bool(outputs) and not any(live.fed[n].any() for n in outputs)

    dense = ones_mask(network.prunable(params))
    path = dense_path = None
    try:
        of_mask = lambda m: float(_log_path(network, params, stats, m)) / math.log(10)
        path = of_mask(mask)
        dense_path = of_mask(dense) if dense_known else None
    except SecateurError as error:
        missing["path-kernel trace"] = str(error)

    kind = "inputs given"
    if x is None:
        dtype = jnp.result_type(*jax.tree.leaves(params))
        x = jax.random.normal(jax.random.key(0), (NTK_EXAMPLES, *network.input_shape), dtype)
        kind = "normal inputs"
    ntk_trace = dense_ntk = None
    entries = sum(sizes(mask).values()) * network.outputs
    if ntk is False or (ntk is None and entries > NTK_ENTRIES):
        big = f"the Jacobian of one example has {entries:,} entries; ntk=True computes it"
        missing["NTK trace"] = "it was not asked for" if ntk is False else big
    else:
        try:
            measured = lambda m: float(_ntk(network)(params, stats, m, x))
            ntk_trace = measured(mask)
            dense_ntk = measured(dense) if dense_known else None
        except SecateurError as error:
            missing["NTK trace"] = str(error)
    if not dense_known:
        missing["dense traces"] = (
            "a ticket holds masked weights alone; params= gives those of the dense network"
        )
    return Health(
        network.name,
        ticket.provenance.method if isinstance(ticket, Ticket) else "mask",
        layers,
        cut or not some,
        tuple(l.name for l in layers if l.kept == 0),
        path,
        dense_path,
        ntk_trace,
        dense_ntk,
        f"{len(x)} {kind}",
        missing,
    )


@partial(jax.jit, static_argnums=0)
def _log_path(network: Network, params: Params, stats: Stats, mask: Mask) -> jax.Array:
    return path_trace(network, params, stats, mask).log


@lru_cache(maxsize=64)
def _ntk(network: Network) -> Callable[[Params, Stats, Mask, jax.Array], jax.Array]:
    return jax.jit(canonical(partial(trace, network)))


def _layers(
    channels: Channels, live: Liveness, mask: Mask, reach: Reach | None
) -> tuple[Layer, ...]:
    """The rows of the table, in the order of the program."""
    masks = {k: np.asarray(m) for k, m in flatten(mask).items() if m is not None}
    effective = {} if reach is None else flatten(reach.effective)
    by_kernel = {l.kernel: l for l in channels.layers if l.kernel not in channels.unread}
    order = [k for k in by_kernel if k in masks] + [k for k in masks if k not in by_kernel]
    found = []
    for name in order:
        m = masks[name]
        on_path = None if name not in effective else int(np.sum(effective[name]))
        counts: list[int | None] = [None] * 6
        if name in by_kernel:
            layer = by_kernel[name]
            fed = np.asarray(live.joins[name][live.fed[layer.in_group]].any(axis=0))
            heard = live.heard[layer.out_group]
            through = fed & heard
            if reach is not None and name in reach.units:
                through = np.asarray(reach.units[name])
            kinds = (through, ~fed & heard, fed & ~heard, ~fed & ~heard, fed & heard & ~through)
            counts = [len(fed), *(int(kind.sum()) for kind in kinds)]
        found.append(Layer(name, m.shape, m.size, int(m.sum()), on_path, *counts))
    return tuple(found)


def examine_file(path: str | os.PathLike[str], network: str = "", **options: Any) -> Health:
    """The health of a saved ticket: its text is what the command prints.

    Args:
        path: of a file that `Ticket.save` wrote.
        network: its name in `networks.registry`; by default the one that the ticket names.
        options: of the network's maker; the number of outputs is the ticket's.

    Raises:
        SecateurError: no such ticket or network, or they do not fit each other.
    """
    ticket = Ticket.load(path)
    return examine(network_of(ticket, network, **options), ticket)


def network_of(ticket: Ticket, name: str = "", **options: Any) -> Network:
    """The built-in network that a ticket was made for.

    Args:
        name: default: the ticket's own, which says its options: ``resnet-20,width=32``.
        options: of its maker, ``input_shape`` for instance.

    Raises:
        SecateurError: for an unknown name, or a network of other parameters than the ticket's.
    """
    name, *said = (name or ticket.provenance.network).split(",")
    told = dict(part.split("=", 1) for part in said if "=" in part)
    given = {k: np.shape(v) for k, v in flatten(ticket.params).items()}
    layers = ticket.provenance.layers
    options = {k: _value(v) for k, v in told.items()} | options
    if layers:
        options.setdefault("outputs", layers[-1]["shape"][-1])
    if found := MLP.fullmatch(name):
        widths = [int(n) for n in found["widths"].split("-") if n]
        shape = (layers[0]["shape"][0],) if layers else ()
        options = {"input_shape": shape, "activation": found["phi"] or "relu"} | options
        made = mlp(*widths, bias=not found["nobias"], **options)
    else:
        made = by_name(name, **options)
    params, stats = jax.eval_shape(made.init, jax.random.key(0))
    shapes = {k: np.shape(v) for k, v in flatten(params).items()}
    if shapes != given or set(flatten(stats)) != set(flatten(ticket.stats)):
        other = next((k for k in given if shapes.get(k) != given[k]), "its parameters")
        raise SecateurError(
            f"the ticket does not fit the network {name!r} ({other} differs); name the network "
            "that it was made for, with its options."
        )
    return made


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
