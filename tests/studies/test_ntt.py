"""The studies `ntt` and `ntt-outputs`: their cells, their claims on known rows, small runs."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.data.registry import DATASETS
from secateur.lab.cells import Cell, closure
from secateur.lab.run import run
from secateur.lab.store import Store
from secateur.studies import ntt, ntt_outputs
from secateur.studies.ntt_claims import CLAIMS, LOW

DATA = DATASETS["mnist5k"].sha256
TINY = msgspec.structs.replace(
    ntt.presets["quick"],
    steps=40,
    evaluate_every=20,
    transfer_steps=6,
    transfer_batch=16,
    mask_every=2,
    methods=("ntt", "random", "ntt-mask"),
)
TINY_OUTPUTS = msgspec.structs.replace(
    ntt_outputs.presets["quick"],
    images=20,
    steps=20,
    points=4,
    transfer_steps=4,
    transfer_batch=10,
    mask_every=2,
    students=("ntt", "random"),
)


def made(fields: ntt.Fields = TINY, seeds: Any = (0,)) -> list[Cell]:
    ntt.check(fields)
    return ntt.cells(fields, list(seeds), DATA)


def places(cells: list[Cell]) -> dict[tuple[str, int], Cell]:
    return {(c.place["branch"], c.place["level"]): c for c in cells}


# -- cells -----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [ntt, ntt_outputs])
def test_every_preset_is_possible_and_every_cell_its_own(module: ModuleType) -> None:
    assert set(module.presets) == set(module.seeds)
    for preset, fields in module.presets.items():
        module.check(fields)
        cells = module.cells(fields, range(2), DATA)
        assert len(cells) == len({c.address for c in cells})
        assert closure(cells) == cells
        assert module.takes(fields)["steps"] == fields.steps, preset


def test_every_method_is_a_branch_and_known_to_find() -> None:
    from secateur.prune.methods import METHODS

    assert {branch.name for branch in ntt.branches} == set(ntt.METHODS)
    assert {name for name, _ in ntt.METHODS.values() if name} <= set(METHODS)
    assert {branch.name for branch in ntt_outputs.branches} == {"teacher", *ntt_outputs.STUDENTS}


def test_levels_and_methods_change_no_address_and_transfer_only_its_own() -> None:
    one = places(made())
    more = places(made(msgspec.structs.replace(TINY, levels=(90, 97), methods=("snip", "ntt"))))
    assert one["ntt", 97] == more["ntt", 97]
    other = places(made(msgspec.structs.replace(TINY, gamma_squared=1e-2)))
    for place, cell in one.items():
        assert (cell == other[place]) == (place[0] in ("dense", "random")), place
    assert one["ntt-mask", 97].needs["ntt"] == one["ntt", 97]


def test_a_derived_branch_brings_the_transfer_it_needs() -> None:
    cells = made(msgspec.structs.replace(TINY, methods=("ntt-shuffled",)))
    assert [c.place["branch"] for c in cells] == ["dense", "ntt", "ntt-shuffled"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"methods": ("nt",)},
        {"methods": ()},
        {"levels": (100,)},
        {"levels": ()},
        {"network": "lenet"},
        {"validation": 0},
        {"transfer_batch": 1},
        {"held_out": 1.0},
        {"steps": 30},
    ],
)
def test_what_cannot_be_run_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SecateurError):
        ntt.check(msgspec.structs.replace(TINY, **wrong))


@pytest.mark.parametrize(
    "wrong",
    [
        {"students": ("snip",)},
        {"pruned": 0},
        {"images": 5},
        {"transfer_batch": 30},
        {"points": 3},
    ],
)
def test_what_cannot_be_pictured_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SecateurError):
        ntt_outputs.check(msgspec.structs.replace(TINY_OUTPUTS, **wrong))


# -- claims ----------------------------------------------------------------------------------


def row(branch: str, seed: int, accuracy: float, early: float, **curve: list[float]) -> Any:
    told = {
        "branch": branch,
        "seed": seed,
        "density": LOW,
        "last": {"test_accuracy": accuracy},
        "curve": {"step": [0, 500], "validation_accuracy": [0.1, early]},
    }
    return told | ({"transfer": {"curve": curve}} if curve else {})


def test_claims_measure_what_they_say() -> None:
    falls = {"kernel_masked": [90.0, 9.0], "kernel_full": [80.0, 4.0], "output": [1.0, 0.1]}
    rows = [
        row("ntt", 0, 0.965, 0.9, **falls),
        row("ntt-full", 0, 0.96, 0.9, **{**falls, "kernel_masked": [9.0, 6.0]}),
        row("random", 0, 0.935, 0.83),
        row("ntt-mask", 0, 0.95, 0.85),
    ]
    found = {m.claim.id: m.per_seed(rows) for m in CLAIMS}
    expected = {
        "NTT-1": 3.0,
        "NTT-1a": 96.5,
        "NTT-3": 7.0,
        "NTT-4": 10.0,
        "NTT-4 full": 20.0,
        "NTT-4 other": 1.5,
        "NTT-5": 10.0,
        "NTT-5 full": 10.0,
        "NTT-weights": 1.5,
    }
    for name, value in expected.items():
        assert list(found[name]) == [0]
        np.testing.assert_allclose(found[name][0], value, rtol=1e-12, err_msg=name)
    assert found["NTT-8"] == {}
    assert all(m.per_seed([]) == {} for m in (*CLAIMS, *ntt_outputs.claims))
    pictured = [
        {"branch": "ntt", "seed": 1, "trajectory": 0.1},
        {"branch": "random", "seed": 1, "trajectory": 0.4},
        {"branch": "random", "seed": 1},
    ]
    assert ntt_outputs.claims[0].per_seed(pictured) == {1: 0.25}


# -- runs ------------------------------------------------------------------------------------


def rows_of(module: ModuleType, fields: Any, store: Store) -> list[dict[str, Any]]:
    cells = module.cells(fields, [0], DATA)
    run(cells, module.work, store, "serial")
    rows = [{**store.read(cell).values, "seed": cell.seed} for cell in cells]
    assert all(all(store.read(cell).checks.values()) for cell in cells)
    words = module.sentence(rows, fields, "MNIST")
    assert str(fields.network) in words
    assert all(isinstance(note, str) for note in module.notes(rows, fields))
    return rows


@pytest.mark.long
def test_both_stages_run_end_to_end(tmp_path: Path) -> None:
    rows = {r["branch"]: r for r in rows_of(ntt, TINY, Store(tmp_path))}
    assert set(rows) == {"dense", "ntt", "random", "ntt-mask"}
    assert rows["ntt"]["alive_by_layer"] == rows["random"]["alive_by_layer"]
    assert rows["ntt"]["alive"] == 7986
    assert rows["ntt"]["transfer"]["curve"]["step"] == [0, 2, 4, 6]
    assert rows["ntt"]["transfer"]["left"]["output"] > 0
    assert rows["ntt-mask"]["hashes"]["mask"] == rows["ntt"]["hashes"]["mask"]
    assert rows["ntt-mask"]["hashes"]["start"] != rows["ntt"]["hashes"]["start"]


@pytest.mark.long
def test_the_picture_runs_end_to_end(tmp_path: Path) -> None:
    rows = rows_of(ntt_outputs, TINY_OUTPUTS, Store(tmp_path))
    assert len(rows) == 3 * 5
    by = {(r["branch"], r["level"]): r for r in rows}
    assert [by["teacher", k]["step"] for k in range(5)] == [0, 5, 10, 15, 20]
    assert all(by["teacher", k]["apart"] == 0 for k in range(5))
    assert by["random", 0]["apart"] > 0
    assert by["ntt", 4]["trajectory"] > 0
    # Full-batch descent: the outputs go the way of their targets.
    assert by["teacher", 4]["outputs"]["one_of_ones"] != by["teacher", 0]["outputs"]["one_of_ones"]
