"""How importance is spread over the units of a row: do a few carry the load, or is it shared?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from secateur.core.errors import SecateurError


@dataclass(frozen=True)
class Concentration:
    """How importance is spread over units: whether a few carry the load.

    Attributes:
        gini: 0 where all are worth the same, 1 - 1 / units where one carries all; negative
            importances count as 0. None where no unit is worth anything.
        top_tenth: the share carried by the ceil(units / 10) most important; None as above.
        harmful: the share of units whose removal helps.
        quantiles: of the importances at 0, 10, 25, 50, 75, 90 and 100 %.
    """

    units: int
    mean: float
    deviation: float
    gini: float | None
    top_tenth: float | None
    harmful: float
    quantiles: tuple[float, ...]


def concentration(values: np.ndarray) -> Concentration:
    """The distribution of the importances of a row's units.

    Args:
        values: float (units,), as `Importance.drop` gives them.

    Raises:
        SecateurError: for no values, or such as are not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise SecateurError(
            f"importances are finite numbers, one a unit, not an array of shape {values.shape}; "
            "give Importance.drop()."
        )
    m = len(values)
    load = np.sort(np.maximum(values, 0))
    gini = top = None
    if load.sum() > 0:
        gini = float(np.sum((2 * np.arange(1, m + 1) - m - 1) * load) / (m * load.sum()))
        top = float(load[m - math.ceil(m / 10) :].sum() / load.sum())
    quantiles = np.quantile(values, (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1))
    return Concentration(
        m,
        float(values.mean()),
        float(values.std()),
        gini,
        top,
        float(np.mean(values < 0)),
        tuple(float(q) for q in quantiles),
    )
