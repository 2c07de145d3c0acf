"""How alike two kernels are, how fast a kernel moves, how it lies to the targets.

Kernels are given as ``[N, C, N, C]``, as (N C, N C) or, one for every output alike, as (N, N);
everything is computed in float64 on the host. *Centred* means that the features of each output have
mean zero over the examples: ``H K H`` with ``H = 1 - 11^T/N`` over the examples of an
``[N, C, N, C]`` kernel, output by output, and over the rows of a matrix.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.core.errors import SecateurError, lookup

ALIGNMENTS = {
    "plain": "<K, L> / (|K| |L|) (Cristianini et al. 2001)",
    "centred": "of the centred kernels (Cortes, Mohri & Rostamizadeh 2012, definition 4); the same "
    "as linear CKA of features (Kornblith et al. 2019)",
    "column": "of kernels less their column means alone, H K: the code published with Kumar et al. "
    "2023 does this where their text centres nothing",
    "unbiased": "of centred kernels without their diagonals, an unbiased estimate of HSIC above "
    "and below (Song et al. 2012; Nguyen, Raghu & Kornblith 2021); may be negative",
}
DISTANCES = {
    "frobenius": "|K - K_0| / |K_0| (Chizat, Oyallon & Bach 2019; Geiger et al. 2020)",
    "cosine": "1 - <K, K_0> / (|K| |K_0|): blind to scale (Fort et al. 2020, equation 3)",
}
TARGETS = {
    "stacked": "y^T K y / (|K| |y|^2), y all N C targets in one vector, K as it acts on it",
    "gram": "<K, Y Y^T> / (|K| |Y Y^T|), of an (N, N) kernel with the targets' own kernel",
}


def kernel_alignment(first: Any, second: Any, *, form: str = "centred") -> float:
    """The cosine between two kernels of the same examples.

    >>> kernel_alignment([[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]], form="plain")
    0.8944271909999159

    Args:
        form: "centred", "plain", "column" (both kernels) or "unbiased"; see ALIGNMENTS.

    Raises:
        SecateurError: for kernels of different shapes, or one that is zero in this form.
    """
    lookup("form of alignment", form, ALIGNMENTS)
    k, l = _pair(first, second)
    if form == "unbiased":
        return _cosine(hsic(k, l), hsic(k, k), hsic(l, l))
    k, l = _CENTRES[form](k), _CENTRES[form](l)
    return _cosine(_inner(k, l), _inner(k, k), _inner(l, l))


def target_alignment(
    kernel: Any, y: Any, *, form: str = "plain", targets: str = "stacked"
) -> float:
    """Kernel-target alignment: the share of the kernel that lies along the targets.

    ``y^T K y / (|K|_F |y|^2)``, at most 1, reached by ``K = y y^T``. An (N, N) kernel acts on each
    of C > 1 outputs alike, as K x I with ``|K x I| = sqrt(C) |K|``; there papers also mean its
    alignment with the kernel of the targets, Y Y^T.

    Args:
        kernel: of N examples, in any of the three forms.
        y: (N, C), targets.
        form: "plain", as Kumar et al. print it and call it CKA; "centred": kernel and targets
            (Cortes et al. 2012); "column": the kernel less its column means and the targets less
            their mean, which is what the code published with Kumar et al. computes; as the kernel's
            rows are not centred its norm is larger, and the number smaller, than with "centred";
            "unbiased": of an (N, N) kernel with Y Y^T, ``targets="gram"`` where C > 1. With and
            without centring the alignment may change in opposite directions.
        targets: "stacked" or "gram"; see TARGETS. They agree for C = 1.

    Raises:
        SecateurError: for shapes that do not fit, or a kernel or targets that are zero.
    """
    lookup("form of alignment", form, ALIGNMENTS)
    lookup("alignment with targets", targets, TARGETS)
    k, y = _read("kernel", kernel), np.asarray(y, np.float64)
    if y.ndim != 2:
        raise SecateurError(f"y has shape {y.shape}; expected (examples, outputs).")
    n, c = y.shape
    if k.ndim == 2 and len(k) == n * c and c > 1:
        k = k.reshape(n, c, n, c)
    if k.shape not in ((n, n), (n, c, n, c)):
        raise SecateurError(
            f"the kernel has shape {k.shape}; for {n} examples with {c} outputs expected "
            f"{(n, c, n, c)}, {(n * c, n * c)} or {(n, n)}."
        )
    if form == "unbiased":
        if targets == "stacked" and c > 1:
            raise SecateurError(
                "the unbiased alignment with several outputs is of kernels; take targets='gram'."
            )
        gram = y @ y.T
        return _cosine(hsic(k, gram), hsic(k, k), hsic(gram, gram))
    if form != "plain":
        k, y = _CENTRES[form](k), y - y.mean(axis=0)
    if targets == "gram":
        if k.ndim == 4:
            raise SecateurError(
                "targets='gram' compares an (N, N) kernel and was given one with entries between "
                "outputs; take the mean over outputs, or targets='stacked'."
            )
        gram = y @ y.T
        return _cosine(_inner(k, gram), _inner(k, k), _inner(gram, gram))
    moved = k @ y if k.ndim == 2 else np.einsum("ncmd,md->nc", k, y)
    copies = c if k.ndim == 2 else 1
    return _cosine(_inner(moved, y), copies * _inner(k, k), _inner(y, y) ** 2)


def centred(kernel: Any) -> np.ndarray:
    """H K H: over examples, output by output, for ``[N, C, M, C]``; over rows for a matrix."""
    k = np.asarray(kernel, np.float64)
    examples = (0, 2) if k.ndim == 4 else (0, 1)
    for axis in examples:
        k = k - k.mean(axis=axis, keepdims=True)
    return k


def column_centred(kernel: Any) -> np.ndarray:
    """H K: each column less its mean, output by output for ``[N, C, M, C]``. Not symmetric."""
    k = np.asarray(kernel, np.float64)
    return k - k.mean(axis=0, keepdims=True)


_CENTRES: dict[str, Callable[[Any], np.ndarray]] = {
    "plain": lambda k: k,
    "centred": centred,
    "column": column_centred,
}


def kernel_distance(kernel: Any, start: Any, *, form: str = "frobenius") -> float:
    """How far a kernel has moved from where it was.

    >>> kernel_distance([[3.0]], [[2.0]])
    0.5

    Args:
        form: "frobenius" or "cosine"; see DISTANCES.

    Raises:
        SecateurError: for kernels of different shapes, or one that is zero.
    """
    lookup("distance", form, DISTANCES)
    k, k0 = _pair(kernel, start)
    if form == "cosine":
        return 1.0 - _cosine(_inner(k, k0), _inner(k, k), _inner(k0, k0))
    size = np.sqrt(_inner(k0, k0))
    if not size:
        raise SecateurError("the kernel at the start is zero: no distance is relative to it.")
    return float(np.sqrt(_inner(k - k0, k - k0)) / size)


def velocity(kernels: Sequence[Any], times: Any, *, form: str = "cosine") -> np.ndarray:
    """How fast a kernel moves between T records of it: distance over time, (T - 1,).

    With the cosine distance this is the kernel velocity of Fort et al. 2020, section 3.

    Args:
        kernels: at each of T times, the distance of each taken to the one before.
        times: (T,), rising: steps, epochs, whatever the velocity shall be per.

    Raises:
        SecateurError: for fewer than two kernels, another number of times, or times that do not
            rise.
    """
    t = np.asarray(times, np.float64)
    if len(kernels) < 2 or t.shape != (len(kernels),) or not np.all(np.diff(t) > 0):
        raise SecateurError(
            f"a velocity takes two or more kernels, each with its time, times rising; given "
            f"{len(kernels)} kernels and times {t.tolist()}."
        )
    moved = [kernel_distance(b, a, form=form) for a, b in itertools.pairwise(kernels)]
    return np.asarray(moved) / np.diff(t)


@dataclass(frozen=True)
class Disagreement:
    """How far the linearised network is from the real one.

    Attributes:
        relative: ``|f - f_lin| / |f|``, or ``/ |f - f_0|``; Frobenius norms over (N, C).
        agreement: share of examples with the same largest output.
    """

    relative: float
    agreement: float


def disagreement(network: Any, linear: Any, start: Any = None) -> Disagreement:
    """Compares real outputs with those that linearised training predicts.

    Args:
        network: (N, C), outputs of the trained network.
        linear: (N, C), outputs of the linearised one at the same time.
        start: (N, C), outputs at the start: the distance is then relative to how far the network
            has moved. None: to the outputs themselves.

    Raises:
        SecateurError: for different shapes, or where there is nothing to be relative to.
    """
    f, lin = np.asarray(network, np.float64), np.asarray(linear, np.float64)
    from_ = np.zeros(f.shape) if start is None else np.asarray(start, np.float64)
    if f.ndim != 2 or f.shape != lin.shape or f.shape != from_.shape:
        shapes = [f.shape, lin.shape] + ([] if start is None else [from_.shape])
        raise SecateurError(
            f"outputs have shapes {shapes}; expected the same (examples, outputs) for each."
        )
    size = float(np.linalg.norm(f - from_))
    if not size:
        raise SecateurError(
            "the network's outputs are all "
            + ("zero" if start is None else "where they started")
            + ": no distance is relative to that."
        )
    same = np.mean(np.argmax(f, axis=1) == np.argmax(lin, axis=1))
    return Disagreement(float(np.linalg.norm(f - lin)) / size, float(same))


def _read(name: str, kernel: Any) -> np.ndarray:
    k = np.asarray(getattr(kernel, "values", kernel), np.float64)
    half = k.ndim // 2
    if k.ndim not in (2, 4) or k.shape[:half] != k.shape[half:]:
        raise SecateurError(
            f"the {name} has shape {k.shape}; expected [N, C, N, C] or a square matrix."
        )
    return k


def _pair(first: Any, second: Any) -> tuple[np.ndarray, np.ndarray]:
    k, l = _read("first kernel", first), _read("second kernel", second)
    if k.shape != l.shape:
        raise SecateurError(
            f"the kernels have shapes {k.shape} and {l.shape}; expected the same examples and form."
        )
    return k, l


def _inner(k: np.ndarray, l: np.ndarray) -> float:
    return float(np.vdot(k, l))


def hsic(first: Any, second: Any) -> float:
    """n (n - 3) times the unbiased estimate of HSIC (Song et al. 2012, equation 5).

    Over batches of examples, sums of it may be taken before they are divided: see `features.cka`.

    Raises:
        SecateurError: for kernels of different shapes, of fewer than 4 examples, or [N, C, N, C].
    """
    k, l = _pair(first, second)
    n = len(k)
    if k.ndim == 4:
        raise SecateurError(
            "the unbiased alignment is of (N, N) kernels and was given [N, C, N, C]; take the "
            "mean over outputs, or form='centred'."
        )
    if n < 4:
        raise SecateurError(f"the unbiased alignment takes at least 4 examples, not {n}.")
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    ones = k.sum() * l.sum() / ((n - 1) * (n - 2))
    return float(np.vdot(k, l.T) + ones - 2 / (n - 2) * (k.sum(axis=0) @ l.sum(axis=1)))


def _cosine(inner: float, first: float, second: float) -> float:
    if first <= 0 or second <= 0:
        raise SecateurError(
            "one of the two is zero, or is so once centred: nothing can be aligned with it; give "
            "a kernel (or targets) that varies."
        )
    return float(inner / np.sqrt(first * second))
