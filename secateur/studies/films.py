"""Films: trainings kept frame by frame, for the page to play.

A study that keeps films puts a list into its values, one entry a film, and the films' arrays into
its arrays:

    values["films"] = [{"place": {"width": 8}}]
    arrays = film(0, steps, {"training loss": loss}, vectors={"dense_1": kernels})

``place`` are the words and numbers that tell the films of a study apart, beside the place and the
seed of their cell; the page offers a control for each that tells films apart. An entry may
also have ``classes``, names of the Grams' labels, and ``row``, which of the page's rows
the film belongs to ({"level": 8}) where that is not the ``branch`` and ``level`` of its place.

Everything is computed in float64. Cosines, and Grams whose size allows it, are kept in float16,
which is exact to 1 in 2,000; the rest in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from secateur.core.errors import SecateurError

COORDINATES = 6
UNITS = 64  # 2,016 pairs a frame; the page's films of a study share some megabytes


def film(
    k: int,
    steps: Any,
    losses: Mapping[str, Any],
    *,
    vectors: Mapping[str, Any] | None = None,
    grams: Mapping[str, Mapping[str, Any]] | None = None,
    labels: Any = None,
    signs: Mapping[str, Any] | None = None,
    patterns: Mapping[str, Any] | None = None,
    coordinates: int = COORDINATES,
    units: int = UNITS,
) -> dict[str, np.ndarray]:
    """The arrays of a study's film number ``k``, for `Result.arrays`.

    Args:
        k: where the film stands in ``values["films"]``.
        steps: (T,), of the frames, rising.
        losses: curve -> (T,), one or more.
        vectors: layer -> kernels (T, ..., units): a unit's weight vector is the part with its
            index, flattened. In the plane they are kept as they are; longer ones in their first
            principal directions over all frames and units (about 0, not about their mean), with
            the norms and cosines of the whole vectors beside them.
        grams: layer -> network -> (T, n, n), of the same n examples; 50 to 100 of them are seen
            well, and the film's size grows with their square.
        labels: (n,), the class of each of these, in rising order.
        signs: layer -> (units,) of 1 and -1, which side a unit is on.
        patterns: layer -> (p, 2), directions to be drawn behind vectors of the plane.
        coordinates: how many principal directions are kept.
        units: those after the first so many are left out.

    Raises:
        SecateurError: for shapes that do not fit, steps or labels that do not rise, numbers that
            are not finite, and matrices that are no Grams.
    """
    about = f"film {k}"
    at = np.asarray(steps)
    if at.ndim != 1 or not at.size or np.any(np.diff(at) <= 0):
        raise SecateurError(f"the steps of {about} are (T,) and rise; given {at.tolist()}.")
    if not losses:
        raise SecateurError(f"{about} has no loss; give at least one curve.")
    frames, head = len(at), f"film:{k}:"
    made: dict[str, np.ndarray] = {head + "steps": at.astype(np.int64)}
    for curve, loss in losses.items():
        values = _finite(loss, f"loss {curve!r} of {about}")
        if values.shape != (frames,):
            raise _shape(f"loss {curve!r} of {about}", values, f"({frames},)")
        made[f"{head}loss:{curve}"] = values
    counts = {}
    for layer, kernels in (vectors or {}).items():
        found = rows(kernels, frames, f"vectors {layer!r} of {about}")[:, :units]
        counts[layer] = found.shape[1]
        made |= {f"{head}{name}:{layer}": a for name, a in _layer(found, coordinates).items()}
    for layer, given in (signs or {}).items():
        side = np.sign(_finite(given, f"signs {layer!r} of {about}")).astype(np.int8)[:units]
        if side.shape != (counts.get(layer),):
            raise _shape(f"signs {layer!r} of {about}", side, f"({counts.get(layer, 'a unit')},)")
        made[f"{head}sign:{layer}"] = side
    for layer, given in (patterns or {}).items():
        drawn = _finite(given, f"patterns {layer!r} of {about}")
        if drawn.ndim != 2 or drawn.shape[1] != 2:
            raise _shape(f"patterns {layer!r} of {about}", drawn, "(p, 2)")
        made[f"{head}patterns:{layer}"] = drawn.astype(np.float32)
    sizes = set()
    for layer, networks in (grams or {}).items():
        for network, given in networks.items():
            made[f"{head}gram:{layer}:{network}"] = gram = _gram(
                given, frames, f"Gram {layer!r} of {network!r}, {about}"
            )
            sizes.add(gram.shape[1])
    if labels is not None:
        of = np.asarray(labels)
        if {len(of)} != sizes or np.any(np.diff(of) < 0):
            raise SecateurError(
                f"the labels of {about} are one an example of its Grams, in rising order; given "
                f"{len(of)} for Grams of {sorted(sizes) or 'none'}. Sort the examples by class."
            )
        made[head + "labels"] = of.astype(np.int64)
    return made


def rows(kernels: Any, frames: int, what: str) -> np.ndarray:
    """Kernels (T, ..., units) as weight vectors (T, units, weights of one), float64.

    Raises:
        SecateurError: for another number of frames, or numbers that are not finite.
    """
    w = _finite(kernels, what)
    if w.ndim < 3 or len(w) != frames or 0 in w.shape:
        raise _shape(what, w, f"({frames}, ..., units)")
    return np.moveaxis(w.reshape(frames, -1, w.shape[-1]), 1, 2)


def principal(vectors: np.ndarray, coordinates: int) -> np.ndarray:
    """Orthonormal directions (weights, d) that hold most of the vectors' squared length.

    About the origin: the origin stays where it is, so that lengths and angles are seen. Each
    direction's largest entry is positive.

    Args:
        vectors: (..., weights).
    """
    x = vectors.reshape(-1, vectors.shape[-1])
    d = min(coordinates, x.shape[1])
    if len(x) < x.shape[1]:  # the smaller of the two products has the same eigenvalues
        _, found = np.linalg.eigh(x @ x.T)
        spanned = x.T @ found[:, ::-1][:, :d]
        # What has no length gives no direction: the factorisation completes those that are there.
        basis = np.linalg.qr(np.pad(spanned, ((0, 0), (0, d - spanned.shape[1]))))[0]
    else:
        basis = np.linalg.eigh(x.T @ x)[1][:, ::-1][:, :d]
    largest = np.take_along_axis(basis, np.abs(basis).argmax(0)[None], 0)
    return basis * np.where(largest < 0, -1, 1)


def cosines(vectors: np.ndarray) -> np.ndarray:
    """Between the vectors (T, units, weights) of each frame, (T, units, units); 0 for one of 0."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    u = vectors / np.where(length > 0, length, 1)
    return np.clip(u @ u.swapaxes(1, 2), -1, 1)


def _layer(vectors: np.ndarray, coordinates: int) -> dict[str, np.ndarray]:
    size = vectors.shape[-1]
    if size <= 2:
        flat = np.pad(vectors, ((0, 0), (0, 0), (0, 2 - size)))
        return {"vectors": flat.astype(np.float32)}
    return {
        "vectors": (vectors @ principal(vectors, max(2, coordinates))).astype(np.float32),
        "norms": np.linalg.norm(vectors, axis=-1).astype(np.float32),
        "cosines": cosines(vectors).astype(np.float16),
    }


def _gram(given: Any, frames: int, what: str) -> np.ndarray:
    g = _finite(given, what)
    if g.ndim != 3 or len(g) != frames or g.shape[1] != g.shape[2] or not g.size:
        raise _shape(what, g, f"({frames}, n, n)")
    size = np.diagonal(g, axis1=1, axis2=2)
    top = float(np.abs(g).max())
    bound = np.sqrt(np.clip(size, 0, None))
    off = np.abs(g) - bound[:, :, None] * bound[:, None, :]
    if max(np.abs(g - g.swapaxes(1, 2)).max(), off.max(), -size.min()) > 1e-3 * top:
        raise SecateurError(
            f"{what} is no Gram matrix: expected H H^T, symmetric, no entry above the geometric "
            "mean of the two on the diagonal. Give the matrices before anything is subtracted."
        )
    return g.astype(np.float16 if 1e-2 <= top <= 6e4 else np.float32)


def _finite(given: Any, what: str) -> np.ndarray:
    array = np.asarray(given, np.float64)
    if not np.all(np.isfinite(array)):
        raise SecateurError(f"{what} has entries that are not finite; keep frames up to there.")
    return array


def _shape(what: str, array: np.ndarray, expected: str) -> SecateurError:
    return SecateurError(f"{what} has shape {array.shape}, expected {expected}.")
