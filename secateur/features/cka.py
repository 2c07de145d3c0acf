"""CKA between layers, networks and targets, in the forms in which papers and codes compute it.

All of it in float64 on the host, from features (n, ...) of the same n examples, or from kernels
through `kernels.alignment`, whose forms these are: "plain" (nothing centred), "column" (one side),
"centred" (both sides: CKA as Kornblith et al. 2019 define it) and "unbiased" (debiased).

The biased forms of independent random features tend to 1 where features are many more than
examples; the unbiased one tends to 0 and may be a little negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist, squareform

from secateur.core.errors import SecateurError, lookup
from secateur.kernels.alignment import ALIGNMENTS, hsic, kernel_alignment, target_alignment


def linear(features: Any) -> np.ndarray:
    """The kernel H H^T, (n, n), of features (n, ...)."""
    h = _rows(features)
    return h @ h.T


def gaussian(features: Any, width: float = 0.5) -> np.ndarray:
    """exp(-d^2 / 2 s^2), (n, n), s = ``width`` times the median distance between two examples.

    Kornblith et al. 2019, section 3: 0.2 to 0.8 make little difference there.

    Raises:
        SecateurError: for a width that is not positive, or examples that are mostly the same.
    """
    distances = pdist(_rows(features))
    middle = float(np.median(distances)) if len(distances) else 0.0
    if not width > 0 or not middle > 0:
        raise SecateurError(
            f"the width is {width} of a median distance of {middle:g}; both must be above 0."
        )
    kernel = squareform(np.exp(-(distances**2) / (2 * (width * middle) ** 2)))
    np.fill_diagonal(kernel, 1.0)
    return kernel


KERNELS = {"linear": linear, "gaussian": gaussian}


def cka(first: Any, second: Any, *, form: str = "centred", kernel: str = "linear") -> float:
    """Of features (n, ...) and (n, ...) of the same examples: how alike they tell examples apart.

    Invariant to rotations and to one factor for all features, not to other linear maps.

    Args:
        form: a key of `kernels.alignment.ALIGNMENTS`.
        kernel: "linear" or "gaussian".

    Raises:
        SecateurError: for other numbers of examples, or features that are all zero in this form.
    """
    of = lookup("kernel of features", kernel, KERNELS)
    return kernel_alignment(of(first), of(second), form=form)


def target_cka(features: Any, y: Any, *, form: str = "plain", targets: str = "stacked") -> float:
    """Of features (n, ...) with targets (n, C): `kernels.alignment.target_alignment` of H H^T.

    "plain" is y^T K y / (|K| |y|^2), which Kumar et al. 2023 print as CKA; their published code
    computes "column".

    Raises:
        SecateurError: as there.
    """
    return target_alignment(linear(features), y, form=form, targets=targets)


def layer_cka(
    first: Mapping[str, Any], second: Mapping[str, Any], *, form: str = "centred"
) -> np.ndarray:
    """Every layer of one network with every layer of another (or the same): (layers, layers').

    Args:
        first, second: layer -> features (n, ...), as `structure.layers.layer_values` gives them.

    Returns:
        Rows and columns in the order of the mappings; NaN where a layer is zero in this form, as
        one is that sends no signal.

    Raises:
        SecateurError: for an unknown form, or layers of different numbers of examples.
    """
    lookup("form of alignment", form, ALIGNMENTS)
    rows, columns = ([linear(h) for h in part.values()] for part in (first, second))
    sizes = {len(k) for k in (*rows, *columns)}
    if len(sizes) > 1:
        raise SecateurError(
            f"the layers are of {sorted(sizes)} examples; give all of them the same examples."
        )
    found = np.full((len(rows), len(columns)), np.nan)
    for i, k in enumerate(rows):
        for j, l in enumerate(columns):
            try:
                found[i, j] = kernel_alignment(k, l, form=form)
            except SecateurError:
                if form == "unbiased" and len(k) < 4:
                    raise
    return found


def batched_cka(batches: Iterable[tuple[Any, Any]]) -> float:
    """The unbiased CKA of more examples than fit into one kernel (Nguyen et al. 2021, equation 3).

    Sums of the unbiased HSIC over batches, divided at the end. It tends to the one of all examples
    as batches become many; a mean of each batch's CKA would not.

    Args:
        batches: pairs of features (n, ...) of the same examples, n >= 4, all of one size.

    Raises:
        SecateurError: for no batch, batches of different sizes, or features that do not vary.
    """
    total, sizes = np.zeros(3), set()
    for first, second in batches:
        k, l = linear(first), linear(second)
        sizes.add(len(k))
        total += hsic(k, l), hsic(k, k), hsic(l, l)
    if len(sizes) != 1:
        raise SecateurError(f"batches are of {sorted(sizes)} examples; give them one size.")
    if min(total[1:]) <= 0:
        raise SecateurError("one of the two does not vary over the examples: it has no CKA.")
    return float(total[0] / np.sqrt(total[1] * total[2]))


def _rows(features: Any) -> np.ndarray:
    h = np.asarray(features, np.float64)
    if h.ndim < 2:
        raise SecateurError(
            f"features have shape {h.shape}; expected (examples, ...), a row an example."
        )
    return h.reshape(len(h), -1)
