"""Tickets to and from PyTorch: names, layouts, and the order in which images are flattened.

A PyTorch dense weight is (out, in), a convolution (out, in, height, width), and its images are
(channels, height, width), so that the first dense layer after a convolution sees its inputs in
another order. All three are mapped; what cannot be mapped with certainty is refused. Nothing here
needs PyTorch but `to_torch`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.core.trees import flatten, unflatten
from secateur.prune.find import declared_order
from secateur.prune.ticket import Provenance, Ticket, ticket, versions

Flattened = Mapping[str, tuple[int, int, int]]  # dense kernel -> (height, width, channels)

# last part of a leaf's name -> PyTorch's, for parameters and for batch statistics
_WORDS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_STATS = {"mean": "running_mean", "var": "running_var"}


def flattenings(network: Network) -> dict[str, tuple[int, int, int]]:
    """The dense kernels that see a flattened image, and its (height, width, channels).

    Read from the program: an image is reshaped to rows, and the rows are multiplied by the kernel.
    Where height * width or channels is 1 the two orders are the same, and the kernel is left out.

    Raises:
        SecateurError: where an image is flattened and no kernel is found that sees it.
    """
    params, stats = jax.eval_shape(network.init, jax.random.key(0))
    leaves = flatten(params)
    x = jax.ShapeDtypeStruct((2, *network.input_shape), np.float32)
    program = jax.make_jaxpr(network.apply)(params, stats, x).jaxpr
    names = dict(zip(map(id, program.invars), leaves))
    images: dict[int, tuple[int, int, int]] = {}
    found: dict[str, tuple[int, int, int]] = {}
    left: list[tuple[int, int, int]] = []
    for eqn in program.eqns:
        ins, outs = list(eqn.invars), list(eqn.outvars)
        of = [images[id(v)] for v in ins if id(v) in images]
        if eqn.primitive.name == "reshape" and len(ins[0].aval.shape) == 4:
            n, h, w, c = ins[0].aval.shape
            if outs[0].aval.shape == (n, h * w * c) and h * w > 1 and c > 1:
                images[id(outs[0])] = (h, w, c)
                left.append((h, w, c))
        elif eqn.primitive.name == "dot_general" and of and id(ins[1]) in names:
            found[names[id(ins[1])]] = of[0]
        elif of and outs and outs[0].aval.shape == ins[0].aval.shape:
            images[id(outs[0])] = of[0]  # activations, dropout: the order stays
    if set(left) - set(found.values()):
        raise SecateurError(
            f"{network.name} flattens an image of {left[0]} and no dense kernel was found that "
            "sees it; say which, with flattened={'dense_1/kernel': (height, width, channels)}."
        )
    return found


def _outward(name: str, leaf: np.ndarray, flattened: Flattened) -> np.ndarray:
    """A kernel in PyTorch's layout."""
    if leaf.ndim == 4:
        return np.transpose(leaf, (3, 2, 0, 1))
    if leaf.ndim != 2:
        return leaf
    if name in flattened:
        leaf = leaf.reshape(*flattened[name], -1).transpose(2, 0, 1, 3).reshape(leaf.shape)
    return leaf.T


def _inward(name: str, leaf: np.ndarray, flattened: Flattened) -> np.ndarray:
    """A kernel in this package's layout."""
    if leaf.ndim == 4:
        return np.transpose(leaf, (2, 3, 1, 0))
    if leaf.ndim != 2:
        return leaf
    leaf = leaf.T
    if name in flattened:
        h, w, c = flattened[name]
        leaf = leaf.reshape(c, h, w, -1).transpose(1, 2, 0, 3).reshape(leaf.shape)
    return leaf


@dataclass(frozen=True)
class _Leaf:
    """One leaf and its counterpart."""

    name: str  # here
    key: str  # there
    kind: str  # params or stats


def _leaves(network: Network, modules: Mapping[str, str] | None) -> list[_Leaf]:
    """All leaves with their names in PyTorch, in the order in which the network declares them."""
    params, stats = jax.eval_shape(network.init, jax.random.key(0))
    everything = {"params": params, "stats": stats}
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), params)
    order = {name: i for i, name in enumerate(declared_order(network, ones))}
    known = {name.rpartition("/")[0] for tree in everything.values() for name in flatten(tree)}
    for module in modules or {}:
        if module not in known:
            raise SecateurError(
                f"names maps {module!r}, which is no layer of {network.name}; its layers are "
                f"{', '.join(sorted(known))}."
            )
    found = []
    for kind, tree in everything.items():
        words = _WORDS if kind == "params" else _STATS
        for name in flatten(tree):
            module, _, last = name.rpartition("/")
            if last not in words:
                raise SecateurError(
                    f"{name} has no counterpart in PyTorch; known are leaves called "
                    f"{', '.join([*_WORDS, *_STATS])}."
                )
            there = (modules or {}).get(module, module.replace("/", "."))
            found.append(_Leaf(name, f"{there}.{words[last]}", kind))
    return sorted(found, key=lambda leaf: order.get(leaf.name, len(order)))


def to_state_dict(
    of: Ticket,
    network: Network,
    names: Mapping[str, str] | None = None,
    *,
    masks: bool = False,
    flattened: Flattened | None = None,
) -> dict[str, np.ndarray]:
    """A ticket's weights and statistics as a PyTorch state dict of numpy arrays.

    Args:
        names: PyTorch's names of modules by the names here, ``{"conv_1": "features.0"}``; otherwise
            ``a/b`` becomes ``a.b``.
        masks: prunable weights as ``weight_orig`` and ``weight_mask``, which a module pruned with
            ``torch.nn.utils.prune`` loads; otherwise zeros say what is pruned.
        flattened: (height, width, channels) of the image that a dense kernel sees; read from the
            program by default.

    Raises:
        SecateurError: for a leaf or a flattening that cannot be mapped with certainty.
    """
    orders = flattenings(network) if flattened is None else flattened
    arrays = {"params": flatten(of.params), "stats": flatten(of.stats)}
    mask = flatten(of.mask)
    state = {}
    for leaf in _leaves(network, names):
        value = np.asarray(arrays[leaf.kind][leaf.name])
        m = mask.get(leaf.name) if leaf.kind == "params" else None
        out = np.ascontiguousarray(_outward(leaf.name, value, orders))
        if masks and m is not None:
            cut = _outward(leaf.name, np.asarray(m), orders).astype(value.dtype)
            state[leaf.key + "_orig"] = out
            state[leaf.key + "_mask"] = np.ascontiguousarray(cut)
        else:
            state[leaf.key] = out
        if leaf.key.endswith(".running_var"):
            counter = leaf.key.removesuffix("running_var") + "num_batches_tracked"
            state[counter] = np.asarray(0, np.int64)
    return state


def to_torch(of: Ticket, network: Network, **options: Any) -> dict[str, Any]:
    """`to_state_dict` as torch tensors, for ``module.load_state_dict``.

    Raises:
        SecateurError: where PyTorch is not installed; as `to_state_dict`.
    """
    try:
        import torch
    except ImportError as error:
        raise SecateurError(
            "PyTorch is not installed; install it (pip install torch), or take "
            "to_state_dict, which gives numpy arrays."
        ) from error
    state = to_state_dict(of, network, **options)
    return {k: torch.from_numpy(np.array(v)) for k, v in state.items()}


def from_state_dict(
    state: Mapping[str, Any],
    network: Network,
    names: Mapping[str, str] | None = None,
    *,
    flattened: Flattened | None = None,
    method: str = "imported from PyTorch",
) -> Ticket:
    """The ticket in a PyTorch state dict of tensors or arrays.

    The mask is ``weight_mask`` where there is one (``torch.nn.utils.prune``), and elsewhere what is
    not exactly 0. Where ``names`` is None and the names do not fit, modules are matched in order,
    by the shapes of all their arrays.

    Args:
        names, flattened: as in `to_state_dict`.

    Raises:
        SecateurError: for a missing array, another shape, or modules that cannot be matched.
    """
    orders = flattenings(network) if flattened is None else flattened
    given = {k: _array(v) for k, v in state.items() if not k.endswith("num_batches_tracked")}
    masks = {k.removesuffix("_mask"): v for k, v in given.items() if k.endswith("weight_mask")}
    given = {
        k.removesuffix("_orig") if k.endswith("weight_orig") else k: v
        for k, v in given.items()
        if not k.endswith("weight_mask")
    }
    leaves = _leaves(network, names)
    if names is None and not {leaf.key for leaf in leaves} <= set(given):
        leaves = _matched(leaves, given, network)
    params, stats = jax.eval_shape(network.init, jax.random.key(0))
    like = {"params": flatten(params), "stats": flatten(stats)}
    found: dict[str, dict[str, Any]] = {"params": {}, "stats": {}}
    prunable = flatten(network.prunable(params))
    cut: dict[str, Any] = {}
    for leaf in leaves:
        wanted = like[leaf.kind][leaf.name].shape
        if leaf.key not in given:
            raise SecateurError(
                f"the state dict has no {leaf.key}, which {leaf.name} of {network.name} comes "
                "from; map the modules with names={...}."
            )
        value = _fitting(leaf, given[leaf.key], wanted, orders)
        if leaf.kind == "params":
            m = None
            if prunable[leaf.name] is not None:
                m = value != 0
                if leaf.key in masks:
                    m = _fitting(leaf, masks[leaf.key], wanted, orders) != 0
            cut[leaf.name] = m
        found[leaf.kind][leaf.name] = value
    told = Provenance(
        method=method,
        title="imported",
        source="a PyTorch state dict",
        network=network.name,
        layers=[{"name": n} for n in declared_order(network, network.prunable(params))],
        start={"from": "state dict"},
        record={"modules": {leaf.name: leaf.key for leaf in leaves}},
        versions=versions(),
    )
    return ticket(
        unflatten(cut, params),
        unflatten(found["params"], params),
        unflatten(found["stats"], stats),
        told,
    )


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def _fitting(
    leaf: _Leaf, value: np.ndarray, wanted: tuple[int, ...], orders: Flattened
) -> np.ndarray:
    if value.ndim != len(wanted) or value.size != math.prod(wanted):
        raise SecateurError(
            f"{leaf.key} has shape {value.shape}, which does not fit {leaf.name} {wanted}; map the "
            "modules with names={...}."
        )
    turned = _inward(leaf.name, value, orders)
    if turned.shape != wanted:
        raise SecateurError(
            f"{leaf.key} has shape {value.shape}, which does not fit {leaf.name} {wanted}; map the "
            "modules with names={...}."
        )
    return np.ascontiguousarray(turned)


def _matched(leaves: list[_Leaf], given: Mapping[str, np.ndarray], network: Network) -> list[_Leaf]:
    """Modules in their order: the k-th here is the k-th there."""

    def modules(keys: list[str]) -> list[str]:
        return list(dict.fromkeys(key.rpartition(".")[0] for key in keys))

    here, there = modules([leaf.key for leaf in leaves]), modules(list(given))
    if len(here) != len(there):
        raise SecateurError(
            f"the state dict has {len(there)} modules with weights, {network.name} has "
            f"{len(here)} ({', '.join(here[:4])}, ...); map them with names={{...}}."
        )
    to = dict(zip(here, there))
    return [
        _Leaf(
            leaf.name, f"{to[leaf.key.rpartition('.')[0]]}.{leaf.key.rpartition('.')[2]}", leaf.kind
        )
        for leaf in leaves
    ]
