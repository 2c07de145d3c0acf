"""Golden cells of `sap-limit` and `ntt`: small ones whose numbers a study's ``meaning`` stands for.

If one fails, results changed meaning: raise ``meaning`` of the study and renew its numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from secateur.data.registry import DATASETS
from secateur.lab.cells import Cell, closure
from secateur.lab.progress import Progress
from secateur.lab.run import run
from secateur.lab.store import Store
from secateur.studies import ntt, sap_limit

Golden = dict[tuple[str, int], dict[str, float]]  # (branch, level) -> path in the values -> number

DATA = DATASETS["mnist5k"].sha256
SAP_LIMIT = msgspec.structs.replace(
    sap_limit.presets["quick"],
    hidden=(12, 8),
    steps=400,
    levels=(6,),
    level=6,
    draws=(8,),
    budgets=(2,),
    closed=40,
)
NTT = msgspec.structs.replace(
    ntt.presets["quick"],
    steps=300,
    evaluate_every=100,
    transfer_steps=6,
    transfer_batch=16,
    mask_every=2,
    methods=("ntt", "random", "ntt-mask"),
)


def at(values: Any, path: str) -> Any:
    """``"last.validation_loss"`` in nested dicts; leaves' names have no dot in them."""
    for part in path.split("."):
        values = values[part]
    return values


def measured(
    module: ModuleType, fields: Any, places: Iterable[tuple[str, int]], folder: Path
) -> dict[tuple[str, int], Any]:
    """(branch, level) -> values of its cell, run through the lab with what it needs."""
    module.check(fields)
    of = lambda cell: (cell.place["branch"], cell.place["level"])
    every: dict[tuple[str, int], Cell] = {of(c): c for c in module.cells(fields, [0], DATA)}
    store = Store(folder)
    cells = closure([every[place] for place in places])
    run(cells, module.work, store, "serial", progress=Progress(quiet=True))
    return {of(cell): store.read(cell).values for cell in cells}


def compare(
    found: dict[tuple[str, int], Any], golden: Golden, loosely: Golden | None = None
) -> None:
    for numbers_of, tolerance in ((golden, 1e-3), (loosely or {}, 1e-2)):
        for place, numbers in numbers_of.items():
            for path, number in numbers.items():
                assert at(found[place], path) == pytest.approx(number, rel=tolerance), (place, path)


def test_untrained_cells_of_sap_limit_have_the_numbers_that_its_meaning_stands_for(
    tmp_path: Path,
) -> None:
    assert sap_limit.meaning == 1
    compare(measured(sap_limit, SAP_LIMIT, SCORES, tmp_path), SCORES)


@pytest.mark.long
def test_masks_of_sap_limit_have_the_numbers_that_its_meaning_stands_for(tmp_path: Path) -> None:
    assert sap_limit.meaning == 1
    found = measured(sap_limit, SAP_LIMIT, [*MASKS, *DRAWN_MASKS], tmp_path)
    compare(found, MASKS, loosely=DRAWN_MASKS)


@pytest.mark.long
def test_cells_of_ntt_have_the_numbers_that_its_meaning_stands_for(tmp_path: Path) -> None:
    assert ntt.meaning == 1
    compare(measured(ntt, NTT, TRANSFERS, tmp_path), TRANSFERS)


# Measured once with the stated meanings; tolerance for other processors' order of sums.
SCORES: Golden = {
    ("vjp scores", 1): {
        "spread_by_layer.dense_1/kernel": 0.686809,
        "spread_by_layer.dense_2/kernel": 0.741380,
        "spread_by_layer.dense_3/kernel": 0.570580,
    },
    ("closed form", 1): {"mean": 29771.88, "formula": 30783.26, "standard_error": 0.126972},
}
MASKS: Golden = {
    ("dense", 0): {"last.validation_loss": 1.035528},
    ("limit", 6): {
        "last.validation_loss": 0.859655,
        "alive_by_layer.dense_1/kernel": 2336,
        "overlap": 0.312102,
    },
    ("limit shuffled", 6): {"last.validation_loss": 0.793286},
    ("synflow", 6): {"last.validation_loss": 1.190651, "alive_by_layer.dense_1/kernel": 2342},
}
# Over 20 rounds of a few draws one weight that rounding swaps for another moves those after it.
DRAWN_MASKS: Golden = {
    ("ntk-sap", 6): {"last.validation_loss": 0.647758, "alive_by_layer.dense_1/kernel": 2357},
    ("vjp masks", 1): {"density_by_layer.dense_1/kernel": 0.249256},
}
TRANSFERS: Golden = {
    ("dense", 0): {"last.validation_loss": 0.214136},
    ("ntt", 97): {
        "last.validation_loss": 0.961667,
        "transfer.left.output": 0.962508,
        "transfer.left.objective": 0.984699,
    },
    ("random", 97): {"last.validation_loss": 1.167344},
    ("ntt-mask", 97): {"last.validation_loss": 0.959775},
}
