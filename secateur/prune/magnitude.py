"""Magnitude pruning by rank, with exact counts."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.trees import Mask, Params, alive, flatten, unflatten

SCOPES = ("layer", "global")


def removed(rate: float, count: int) -> int:
    """How many of ``count`` surviving weights a rate takes: ``rate * count``, half to even.

    Exact decimal arithmetic, so .1 of 25 is 2.5 and gives 2 on every machine. google-research's
    lottery-ticket code removes one more (it prunes ``|w| <= cutoff``), open_lth ``ceil + 1``.
    """
    return round(Fraction(str(rate)) * count)


def rank(scores: np.ndarray, mask: np.ndarray, keep: int) -> np.ndarray:
    """The mask of the ``keep`` highest scores among the survivors; of equals the first survive.

    Args:
        scores: float (n,). mask: bool (n,). A pruned weight never comes back, whatever its score.

    Raises:
        SecateurError: for NaN scores, or where fewer than ``keep`` weights survive.
    """
    places = np.flatnonzero(mask)
    found = scores[places]
    if np.isnan(found).any():
        raise SecateurError("some scores are NaN, so they have no rank.")
    if keep > len(places):
        raise SecateurError(f"{keep} weights cannot be kept where {len(places)} survive.")
    best = np.argsort(-found, kind="stable")[:keep]
    kept = np.zeros(len(mask), bool)
    kept[places[best]] = True
    return kept


def keep_largest(params: Params, mask: Mask, keep: Mapping[str, int] | int) -> Mask:
    """The mask of the largest ``|w|`` among the survivors.

    Args:
        keep: survivors of each leaf by name (a ranking within each layer), or one number for all
            (one ranking over all layers).

    Raises:
        SecateurError: where a surviving weight is NaN or infinite: it names the layer.
    """
    names = [name for name, m in flatten(mask).items() if m is not None]
    masks = {name: np.asarray(flatten(mask)[name]) for name in names}
    values = flatten(params)
    sizes = {name: np.abs(np.asarray(values[name])).ravel() for name in names}
    for name in names:
        if not np.isfinite(sizes[name][masks[name].ravel()]).all():
            raise SecateurError(
                f"some weights of {name} are NaN or infinite, so they have no rank; training has "
                "diverged: lower the learning rate."
            )
    if isinstance(keep, int):
        joint = rank(
            np.concatenate([sizes[n] for n in names]),
            np.concatenate([masks[n].ravel() for n in names]),
            keep,
        )
        cuts = np.cumsum([masks[n].size for n in names])[:-1]
        parts = dict(zip(names, np.split(joint, cuts)))
    else:
        parts = {n: rank(sizes[n], masks[n].ravel(), keep[n]) for n in names}
    flat = {k: parts[k].reshape(masks[k].shape) if k in parts else None for k in flatten(mask)}
    return unflatten(flat, mask)


def prune(params: Params, mask: Mask, rates: Mapping[str, float], scope: str = "layer") -> Mask:
    """One level of iterative magnitude pruning.

    Args:
        params: the weights at the end of training (not at early stopping; Frankle & Carbin 2019).
        rates: fraction of the survivors of each leaf that goes, by name. With scope ``global`` one
            fraction of all layers with a positive rate, ranked together, goes from them; open_lth
            counts the spared layers too and takes their share from the others.
        scope: ``layer`` or ``global``.

    Raises:
        SecateurError: for another scope, or different positive rates with scope ``global``.
    """
    counts = alive(mask)
    gone = {name: removed(rates[name], n) for name, n in counts.items()}
    if scope == "layer":
        return keep_largest(params, mask, {name: n - gone[name] for name, n in counts.items()})
    if scope != "global":
        raise SecateurError(f"scope is one of {', '.join(SCOPES)}, not {scope!r}.")
    positive = {rate for rate in rates.values() if rate > 0}
    if len(positive) > 1:
        raise SecateurError(
            f"one ranking over all layers has one rate, not {sorted(positive)}; give the layers "
            "the same rate, or 0 to spare one."
        )
    flat = flatten(mask)
    ranked = unflatten({k: m if rates.get(k, 0) > 0 else None for k, m in flat.items()}, mask)
    total = sum(alive(ranked).values())
    keep = total - removed(max(positive, default=0), total)
    found = flatten(keep_largest(params, ranked, keep))
    return unflatten({k: found[k] if found[k] is not None else m for k, m in flat.items()}, mask)
