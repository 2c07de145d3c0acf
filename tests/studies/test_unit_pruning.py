"""The study `unit-pruning`: its cells, its claims on known rows, a small run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from secateur.core.errors import SecateurError
from secateur.data.registry import DATASETS
from secateur.lab.cells import closure, rows_of
from secateur.lab.progress import Progress
from secateur.lab.run import run
from secateur.lab.store import Store
from secateur.studies import unit_pruning
from secateur.studies import unit_pruning_claims as said

DATA = DATASETS["mnist5k"].sha256
TINY = msgspec.structs.replace(
    unit_pruning.presets["quick"],
    steps=100,
    again=100,
    points=4,
    orders=("norm smallest", "frame potential smallest"),
    widths=(12,),
)


def test_every_preset_is_possible_and_every_cell_its_own() -> None:
    from secateur.prune.orders import ORDERS

    assert set(unit_pruning.presets) == set(unit_pruning.seeds)
    for fields in unit_pruning.presets.values():
        unit_pruning.check(fields)
        cells = unit_pruning.cells(fields, range(2), DATA)
        assert len(cells) == len({c.address for c in cells})
        assert closure(cells) == cells
    assert {by for by, _ in said.ORDERS.values()} <= set(ORDERS)
    assert {way for way in unit_pruning.RETRAINED if way != "none"} == {
        f"{by} {end}" for by, end in (way.split(" ") for way in unit_pruning.RETRAINED[1:])
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"orders": ("norm",)}, "norm smallest"),
        ({"again": 150}, "multiple of evaluate_every"),
        ({"cut": 100}, "percentage"),
        ({"widths": (2,)}, "at least 3"),
        ({"network": "lenet"}, "lenet-300-100"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SecateurError, match=words):
        unit_pruning.check(msgspec.structs.replace(TINY, **change))


def test_claims_read_their_rows() -> None:
    curve = lambda branch, values: [
        {"seed": 0, "branch": branch, "removed": k / 10, "accuracy": v}
        for k, v in zip((3, 4, 5), values, strict=True)
    ]
    rows: list[dict[str, Any]] = curve("a", (0.9, 0.8, 0.7)) + curve("b", (0.9, 0.75, 0.7))
    assert said.lead("a", "b", 0.4)(rows)[0] == pytest.approx(5.0)
    assert said.lead("a", "b", 0.6)(rows) == {}
    again = [
        {"seed": 1, "branch": f"retrained: {w}", "last": {"test_accuracy": v}}
        for w, v in (("none", 0.9), ("norm largest", 0.95))
    ]
    assert said.retrained("norm largest", "none")(again)[1] == pytest.approx(5.0)
    widths = [
        {"seed": 2, "branch": "width", "width": w, "error": e, "concentration": {"gini": 2 * e}}
        for w, e in ((12, 0.3), (400, 0.1), (50, 0.2))
    ]
    assert said.wider("error", 100)(widths)[2] == pytest.approx(-20)
    assert said.wider("concentration.gini", 1)(widths)[2] == pytest.approx(-0.4)


@pytest.mark.long
def test_a_small_run_ends_curves_where_they_must(tmp_path: Path) -> None:
    assert unit_pruning.meaning == 1
    store, cells = Store(tmp_path), unit_pruning.cells(TINY, (0,), DATA)
    run(cells, unit_pruning.work, store, "serial", progress=Progress(quiet=True))
    rows = [r for cell in cells for r in rows_of(store.read(cell).values)]
    dense = next(r for r in rows if r["branch"] == "network")
    for order in TINY.orders:
        curve = [r for r in rows if r["branch"] == order]
        assert [r["removed"] for r in curve] == [0, 0.25, 0.5, 0.75, 1]
        assert curve[0]["accuracy"] == pytest.approx(dense["last"]["test_accuracy"], abs=1e-6)
        assert curve[-1]["accuracy"] <= 0.2, "one class for every image"
    again = {r["way"]: r for r in rows if "way" in r}
    assert set(again) == set(unit_pruning.RETRAINED)
    size = dense["size_by_layer"]["dense_1/kernel"]
    for way, row in again.items():
        assert row["alive_by_layer"]["dense_1/kernel"] == size * (1 if way == "none" else 0.8)
    wide = next(r for r in rows if r["branch"] == "width")
    assert wide["error"] == pytest.approx(1 - wide["last"]["test_accuracy"])
    assert 0 <= dense["concentration"]["gini"] <= 1
