"""The table is tidy, and the same in every format."""

from __future__ import annotations

import csv
import json
import sys

import pytest
import standin_study

from secateur.core.errors import SecateurError
from secateur.lab.export import export
from secateur.lab.progress import Progress
from secateur.lab.run import run
from secateur.lab.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    cells = standin_study.cells(2, 1, steps=40)
    run(cells, standin_study.work, store, "serial", progress=Progress(quiet=True),
        trainer="standin_trainer")  # fmt: skip
    return store


def test_one_row_a_cell(store, tmp_path):
    assert export(store, "tiny", tmp_path / "t.json") == 6
    table = json.loads((tmp_path / "t.json").read_text())
    row = next(r for r in table if r["place.branch"] == "control" and r["seed"] == 1)
    assert row["study"] == "tiny"
    assert row["field.steps"] == 40
    assert row["nested.of.seed"] == 1
    assert row["alive"] == 11
    assert row["checks.finite"] is True
    assert row["executor"] == "serial"
    assert "curve.mean" not in row
    assert len({r["address"] for r in table}) == 6


def test_curves_are_long(store, tmp_path):
    assert export(store, "tiny", tmp_path / "t.json", curves=True) == 24
    table = json.loads((tmp_path / "t.json").read_text())
    first = [r for r in table if r["place.branch"] == "dense" and r["seed"] == 0]
    assert [r["point"] for r in first] == [0, 1, 2, 3]
    assert {r["curve"] for r in first} == {"curve"}
    (entry,) = [e for e in store.entries() if e.label == "dense level 0, seed 0"]
    assert [r["mean"] for r in first] == entry.values["curve"]["mean"]


def test_csv_and_parquet_hold_the_same(store, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    for suffix in ("json", "csv", "parquet"):
        export(store, "tiny", tmp_path / f"t.{suffix}")
    table = json.loads((tmp_path / "t.json").read_text())
    assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == table
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, told in zip(rows, table, strict=True):
        assert row.keys() == told.keys()
        for name, value in told.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            assert row[name] == text


def test_mistakes_are_one_sentence(store, tmp_path, monkeypatch):
    with pytest.raises(SecateurError, match=r"ends in \.csv, \.json, \.parquet, not '\.xls'"):
        export(store, "tiny", tmp_path / "t.xls")
    with pytest.raises(SecateurError, match="no results of 'tinny'; it has tiny"):
        export(store, "tinny", tmp_path / "t.csv")
    with pytest.raises(SecateurError, match="cannot write"):
        export(store, "tiny", tmp_path / "none" / "t.csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SecateurError, match=r"pip install 'secateur\[parquet\]'"):
        export(store, "tiny", tmp_path / "t.parquet")
