"""What is written comes back; what was damaged is noticed, named, set aside and computed again."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import standin_study
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from secateur.core.errors import SecateurError
from secateur.lab import packing
from secateur.lab.cells import Result
from secateur.lab.executors import make_executor
from secateur.lab.files import StoreError
from secateur.lab.progress import Progress
from secateur.lab.run import run
from secateur.lab.store import Damaged, Store, _format_text

CELL = standin_study.cells(1, 1)[1]
RESULT = Result(
    {"accuracy": 0.1 + 0.2, "nested": {"n": 3, "curve": [1, 2.5, None]}, "word": "é"},
    {
        "mask": np.random.default_rng(0).random((7, 3)) < 0.5,
        "none": np.zeros((0, 4), bool),
        "one": np.array(True),
        "weights": np.random.default_rng(1).random((5, 2)).astype(np.float32).T,
        "scalar": np.float64(3.5),
        "big": np.arange(4, dtype=">i4"),
    },
    {"exact counts": True},
)


def run_tiny(store: Store, **fields):
    return run(
        standin_study.cells(2, 2, **fields), standin_study.work, store, "serial",
        progress=Progress(quiet=True), trainer="standin_trainer",
    )  # fmt: skip


def same(a: Result, b: Result) -> None:
    assert a.values == b.values
    assert a.checks == b.checks
    assert a.arrays.keys() == b.arrays.keys()
    for name, array in a.arrays.items():
        assert np.asarray(array).shape == b.arrays[name].shape
        assert np.array_equal(array, b.arrays[name]), name


def test_what_is_written_comes_back(tmp_path):
    store = Store(tmp_path / "new" / "store")
    assert not store.has(CELL)
    folder = store.write(CELL, RESULT, {"seconds_cpu": 1.5})
    assert store.has(CELL)
    back = Store(store.path).read(CELL)
    same(back, RESULT)
    assert back.arrays["mask"].dtype == bool
    assert back.arrays["weights"].dtype == np.float32
    assert back.arrays["big"].dtype == np.int32
    assert folder.name == CELL.slug
    assert sorted(os.listdir(folder)) == ["arrays.safetensors", "cell.json", "checksums.json"]
    assert os.listdir(store.path / "partial") == []
    told = json.loads((folder / "cell.json").read_text())
    assert told["what"]["place"] == dict(CELL.place)
    assert told["needs"] == {"previous": CELL.needs["previous"].address}


@given(
    st.dictionaries(
        st.text(max_size=8),
        hnp.arrays(
            st.sampled_from([np.bool_, np.float32, np.float64, np.int16, np.uint8, np.int64]),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
        ),
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None)
def test_arrays_survive_packing(arrays):
    back, note = packing.unpack(packing.pack(arrays, {"sha256": "0" * 64}))
    assert note == {"sha256": "0" * 64}
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == np.asarray(array, order="C").tobytes()


def test_masks_take_a_bit_each():
    assert len(packing.pack({"m": np.ones(80_000, bool)})) < 10_500


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([None]), np.array([1j])], ids=str)
def test_arrays_that_cannot_be_kept_are_refused(tmp_path, array):
    with pytest.raises(SecateurError, match="'x' holds"):
        Store(tmp_path).write(CELL, Result({}, {"x": array}))
    assert not Store(tmp_path).has(CELL)


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    store = Store(tmp_path)
    folder = store.write(CELL, RESULT)
    rng = random.Random(0)
    for name in ("cell.json", "arrays.safetensors", "checksums.json"):
        path = folder / name
        good = path.read_bytes()
        bits = range(len(good) * 8)
        for bit in rng.sample(bits, 150):
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bad)
            with pytest.raises(Damaged) as error:
                store.read(CELL)
            if name != "checksums.json":
                assert str(path) in str(error.value)
        for length in {
            0,
            1,
            7,
            8,
            9,
            len(good) - 1,
            *(rng.randrange(len(good)) for _ in range(40)),
        }:
            path.write_bytes(good[:length])
            with pytest.raises(Damaged):
                store.read(CELL)
        path.write_bytes(good + b"\n")
        with pytest.raises(Damaged):
            store.read(CELL)
        path.unlink()
        with pytest.raises(Damaged, match="missing"):
            store.read(CELL)
        path.write_bytes(good)
    same(store.read(CELL), RESULT)


@pytest.mark.parametrize("round_", range(6))
def test_damaged_results_are_set_aside_and_computed_again(tmp_path, round_):
    """At random places of random files; every number is as before."""
    rng = random.Random(round_)
    store = Store(tmp_path / "store")
    run_tiny(store)
    cells = standin_study.cells(2, 2)
    before = {cell: store.read(cell) for cell in cells}
    hit = rng.sample(cells, 3)
    for cell in hit:
        path = store.folder(cell) / rng.choice(os.listdir(store.folder(cell)))
        data = bytearray(path.read_bytes())
        if rng.random() < 0.5:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
    outcome = run_tiny(Store(store.path))
    assert sorted(outcome.computed) == sorted(cell.address for cell in hit)
    assert len(outcome.warnings) == 3
    for cell, warning in zip(sorted(hit, key=cells.index), outcome.warnings):
        assert cell.slug in warning
        assert "is damaged" in warning
        assert "computed again" in warning
    assert len(os.listdir(store.path / "damaged")) == 3
    for cell, result in before.items():
        same(store.read(cell), result)


def test_a_folder_of_another_cell_is_not_believed(tmp_path):
    store = Store(tmp_path)
    store.write(CELL, RESULT)
    other = standin_study.cells(1, 1)[0]
    shutil.copytree(store.folder(CELL), store.folder(other))
    with pytest.raises(Damaged, match="another cell"):
        store.read(other)


def test_the_quicker_writer_wins(tmp_path):
    store = Store(tmp_path)
    store.write(CELL, RESULT, {"executor": "first"})
    store.write(CELL, RESULT, {"executor": "second"})
    assert store.entries()[0].made == {"executor": "first"}
    assert os.listdir(store.path / "partial") == []


def test_results_that_are_not_finite_are_not_kept(tmp_path):
    with pytest.raises(SecateurError, match=r"nested\.x is not finite"):
        Store(tmp_path).write(CELL, Result({"nested": {"x": float("nan")}}))


# -- the index ---------------------------------------------------------------------------------


def test_the_index_can_be_lost(tmp_path):
    store = Store(tmp_path)
    run_tiny(store)
    told = store.entries("tiny")
    assert len(told) == 10
    store.index.path.unlink()
    assert store.entries("tiny") == told
    assert store.rebuild_index() == 10
    assert store.studies() == ["tiny"]
    assert store.entries("other") == []


def test_a_damaged_index_never_lies(tmp_path):
    store = Store(tmp_path)
    run_tiny(store)
    told = store.entries()
    good = store.index.path.read_bytes()
    rng = random.Random(1)
    for round_ in range(40):
        bad = bytearray(good)
        if round_ % 4 == 0:
            del bad[rng.randrange(len(bad)) :]
        else:
            for _ in range(30):
                bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        store.index.path.write_bytes(bad)
        assert Store(store.path, create=False).entries() == told
        assert Store(store.path).entries() == told


def test_a_changed_row_is_not_believed(tmp_path):
    store = Store(tmp_path)
    store.write(CELL, RESULT)
    base = sqlite3.connect(store.index.path)
    base.execute("UPDATE cells SET text = replace(text, '0.3', '0.9')")
    base.commit()
    base.close()
    assert store.entries()[0].values["accuracy"] == 0.1 + 0.2


def test_rows_of_vanished_folders_go(tmp_path):
    store = Store(tmp_path)
    folder = store.write(CELL, RESULT)
    shutil.rmtree(folder)
    assert store.entries() == []
    assert store.index.rows() == {}


def test_looking_changes_nothing(tmp_path):
    store = Store(tmp_path)
    store.write(CELL, RESULT)
    store.index.path.unlink()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    assert len(Store(tmp_path, create=False).entries()) == 1
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


# -- what is not a store -----------------------------------------------------------------------


def test_a_file_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(SecateurError, match="is a file: give a folder"):
        Store(tmp_path / "x")


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(SecateurError, match="holds other things"):
        Store(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_newer_format_is_refused(tmp_path):
    Store(tmp_path)
    (tmp_path / "store.json").write_bytes(_format_text(2))
    for create in (True, False):
        with pytest.raises(SecateurError, match="newer than this secateur's 1"):
            Store(tmp_path, create=create)


def test_a_damaged_format_is_written_again(tmp_path):
    store = Store(tmp_path)
    store.write(CELL, RESULT)
    (tmp_path / "lottery.html").write_text("a page")
    good = (tmp_path / "store.json").read_bytes()
    for bit in random.Random(0).sample(range(len(good) * 8), 60):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        (tmp_path / "store.json").write_bytes(bad)
        same(Store(tmp_path).read(CELL), RESULT)
        assert (tmp_path / "store.json").read_bytes() == good


def test_a_missing_store_is_not_made_by_looking(tmp_path):
    with pytest.raises(SecateurError, match="there is no store at"):
        Store(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_store_is_one_sentence(tmp_path):
    store = Store(tmp_path / "store")
    os.chmod(store.path / "partial", 0o500)
    with pytest.raises(StoreError, match="Permission denied"):
        run_tiny(store)
    os.chmod(store.path / "partial", 0o700)
    os.chmod(tmp_path, 0o500)
    with pytest.raises(StoreError, match="Permission denied"):
        Store(tmp_path / "other")
    os.chmod(tmp_path, 0o700)


def test_a_store_below_a_file_is_one_sentence(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(StoreError, match="Not a directory"):
        Store(tmp_path / "x" / "store")


# -- full disk ---------------------------------------------------------------------------------


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    """The n-th write finds no space, for every n until none is left."""
    real, count, limit = os.write, 0, 0

    def write(descriptor: int, data: object) -> int:
        nonlocal count
        count += 1
        if count >= limit:
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    whole = Store(tmp_path / "whole")
    run_tiny(whole)
    path, outcome, sentences = tmp_path / "store", None, []
    Store(path)
    monkeypatch.setattr("secateur.lab.files.os.write", write)
    while outcome is None:
        count, limit = 0, 2 + 2 * len(sentences)
        try:
            outcome = run_tiny(Store(path))
        except StoreError as error:
            sentences.append(str(error))
        assert os.listdir(path / "partial") == []
        assert os.listdir(path / "claims") == []
        for entry in Store(path, create=False).entries():
            Store(path).load(entry)
    assert len(sentences) > 5
    assert all("No space left on device" in s and "\n" not in s for s in sentences)
    for cell in standin_study.cells(2, 2):
        same(Store(path).read(cell), whole.read(cell))


def test_left_overs_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path):
    from secateur.lab import owner

    store = Store(tmp_path)
    machine = owner.token().split("-")[0]
    dead = store.path / "partial" / f"{machine}-999999999-1-0"
    living = store.path / "partial" / f"{owner.token()}-77"
    elsewhere = store.path / "partial" / "00000000-1-1-0"
    old = store.path / "partial" / "00000000-1-1-1"
    for path in (dead, living, elsewhere, old):
        path.mkdir()
        (path / "cell.json").write_text("{")
    os.utime(old, (0, 0))
    store.clean()
    left = {path.name for path in Path(store.path / "partial").iterdir()}
    assert left == {living.name, elsewhere.name}


def test_executors_are_chosen_with_care(monkeypatch):
    from secateur.lab import executors, machine

    monkeypatch.setattr(executors, "has_gpu", lambda: False)
    monkeypatch.setattr(executors, "cores", lambda: 4)
    cells = standin_study.cells(1, 1)
    assert executors.default_executor(cells).name == "processes"
    assert executors.default_executor(cells[:1]).name == "serial"
    assert executors.default_executor(cells, workers=3).workers == 3
    monkeypatch.setattr(executors, "cores", lambda: 1)
    assert executors.default_executor(cells).name == "serial"
    monkeypatch.setattr(executors, "has_gpu", lambda: True)
    assert executors.default_executor(cells).name == "lanes"
    with pytest.raises(SecateurError, match="Did you mean 'serial'"):
        make_executor("seriall")
    with pytest.raises(SecateurError, match="at least 1 worker"):
        make_executor("processes", 0)
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
