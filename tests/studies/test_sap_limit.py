"""The study `sap-limit`: its cells, what it measures, its claims on rows with known answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.data.registry import DATASETS
from secateur.lab.cells import Cell, closure
from secateur.studies import sap_limit
from secateur.studies.sap_limit_claims import CLAIMS, share_of_loss, slope_off

DATA = DATASETS["mnist5k"].sha256
TINY = msgspec.structs.replace(
    sap_limit.presets["quick"],
    hidden=(12, 8),
    steps=40,
    levels=(6,),
    level=6,
    draws=(2, 8, 32),
    budgets=(1, 5),
    closed=400,
)


def made(fields: sap_limit.Fields = TINY, seeds: Any = (0,)) -> list[Cell]:
    sap_limit.check(fields)
    return sap_limit.cells(fields, list(seeds), DATA)


def alone(branch: str, level: int = 1) -> Any:
    """The result of a cell that trains nothing."""
    (cell,) = [c for c in made() if c.place["branch"] == branch and c.place["level"] == level]
    work = sap_limit.work(cell, {})
    with pytest.raises(StopIteration) as done:
        next(work)
    return done.value.value


def test_every_cell_is_its_own_and_stands_after_what_it_needs() -> None:
    cells = made(sap_limit.presets["paper"], range(sap_limit.seeds["paper"]))
    assert len(cells) == len({c.address for c in cells}) == 5 * (1 + 4 * 9 + 2 * (5 + 4) + 2)
    assert closure(cells) == cells


def test_more_levels_draws_and_budgets_leave_addresses_as_they_are() -> None:
    more = msgspec.structs.replace(TINY, levels=(6, 10), draws=(2, 8, 32, 64), budgets=(1, 5, 7))
    assert {c.address for c in made()} <= {c.address for c in made(more)}


def test_what_changes_results_changes_addresses_and_training_none_of_untrained_cells() -> None:
    for change in ({"hidden": (12, 9)}, {"initialiser": "glorot_normal"}):
        other = made(msgspec.structs.replace(TINY, **change))
        assert not {c.address for c in made()} & {c.address for c in other}
    longer = {c.address for c in made(msgspec.structs.replace(TINY, steps=60))}
    same = {c.place["branch"] for c in made() if c.address in longer}
    assert same == {
        "fd scores", "vjp scores", "fd masks", "vjp masks", "one round", "closed form"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"levels": ()}, "levels lists"),
        ({"draws": (4, 4)}, "draws lists different"),
        ({"budgets": (0,)}, "budgets lists"),
        ({"closed": 1}, "at least 2 draws"),
        ({"hidden": ()}, "at least 1"),
        ({"initialiser": "kaiming"}, "no initialiser 'kaiming'"),
        ({"steps": 50}, "multiple of evaluate_every"),
        ({"validation": 0}, "at least 1"),
    ],
)
def test_what_cannot_run_is_refused_in_one_sentence(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SecateurError, match=re.escape(said)) as caught:
        made(msgspec.structs.replace(TINY, **change))
    assert "\n" not in str(caught.value)


@pytest.mark.long
def test_the_closed_form_is_the_mean_of_the_draws_and_layers_conserve_the_score() -> None:
    found = alone("closed form").values
    assert abs(found["z"]) < 4
    assert found["standard_error"] < 0.1
    assert found["pearson"] > 0.8
    assert found["identity"] < 1e-10


def test_scores_of_a_layer_even_out_with_the_draws() -> None:
    rows = []
    for level in (1, 2, 3):
        result = alone("vjp scores", level)
        assert all(result.checks.values())
        rows.append({**result.values, "seed": 0})
    off = slope_off("vjp")(rows)
    assert abs(off[0]) < 0.2  # three points of a small network


def test_claims_read_rows_rightly() -> None:
    rows: list[dict[str, Any]] = [
        {
            "branch": "fd scores",
            "seed": 0,
            "level": k,
            "draws": 4**k,
            "spread_by_layer": {"a": 4.0 ** (-k / 2), "b": 4.0 ** (-0.4 * k)},
        }
        for k in (1, 2, 3)
    ]
    assert slope_off("fd")(rows) == {0: pytest.approx(0.1)}
    last = {"ntk-sap": 0.95, "ntk-sap shuffled": 0.94, "random": 0.75}
    rows += [
        {
            "branch": branch,
            "seed": 0,
            "level": 18,
            "density": 0.018,
            "last": {"test_accuracy": accuracy},
            "overlap_beyond_chance": 0.01,
        }
        for branch, accuracy in last.items()
    ]
    assert share_of_loss("ntk-sap", 18)(rows) == {0: pytest.approx(0.05)}
    for level, budget, apart in ((1, 1, 0.5), (2, 5, 0.05), (3, 25, 0.2)):
        distances = dict.fromkeys(("from_limit", "from_synflow"), apart)
        rows.append(
            {"branch": "vjp masks", "seed": 0, "level": level, "budget": budget, **distances}
            | {"limit_from_synflow": 0.3, "limit_from_equal": 0.01}
        )
    told = {m.claim.id: m.per_seed(rows) for m in CLAIMS}
    assert told["SAP-11"] == {0: 0.05}
    assert told["SAP-11e"] == {0: pytest.approx(-0.3)}
    assert told["SAP-13-18"] == {0: pytest.approx(1.0)}
    assert told["SAP-10-overlap-18"] == {0: pytest.approx(1.0)}
    assert told["SAP-13-14"] == {}


def test_overlap_of_independent_masks_is_chance_and_of_equal_ones_is_all() -> None:
    rng = np.random.default_rng(0)
    a = {
        "one": {"kernel": rng.random((300, 200)) < 0.1},
        "two": {"kernel": rng.random((50, 40)) < 0.7},
    }
    b = {
        "one": {"kernel": rng.random((300, 200)) < 0.1},
        "two": {"kernel": rng.random((50, 40)) < 0.7},
    }
    assert abs(sap_limit._overlap(a, b)["overlap_beyond_chance"]) < 0.01
    assert sap_limit._overlap(a, a)["overlap"] == 1
    found = sap_limit._dispersion(a)
    assert found["one/kernel"] == pytest.approx(0.9, abs=0.3)  # binomial: 1 - density


def test_equal_counts_fill_small_layers_first() -> None:
    found = sap_limit._equal({"a": 235_200, "b": 30_000, "c": 1_000}, 4_796)
    assert found == {"a": 1898 / 235_200, "b": 1898 / 30_000, "c": 1.0}


@pytest.mark.long
def test_the_whole_study_runs_and_its_page_is_written(tmp_path: Path) -> None:
    from secateur.data.registry import load
    from secateur.lab.progress import Progress
    from secateur.lab.run import run
    from secateur.lab.store import Store
    from secateur.report import build, page

    store, cells = Store(tmp_path / "store"), made(seeds=(0, 1))
    run(cells, sap_limit.work, store, "serial", progress=Progress(quiet=True))
    for cell in cells:
        assert all(store.read(cell).checks.values()), cell.label
    view = build.view(sap_limit, TINY, cells, store, load("mnist5k"), "secateur run sap-limit")
    page.write(view, tmp_path / "page.html")
    assert {claim["id"] for claim in view.claims} >= {"SAP-I", "SAP-12", "SAP-10", "SAP-11"}
    by = {(c.place["branch"], c.place["level"]): store.read(c) for c in cells if c.seed == 0}
    for method in ("ntk-sap", "limit", "synflow"):
        masked = by[method, 6].values
        assert masked["density"] == pytest.approx(0.8**6, abs=1e-4)
        assert masked["hashes"]["initial"] == by["dense", 0].values["hashes"]["initial"]
        assert masked["alive_by_layer"] == by[method + " shuffled", 6].values["alive_by_layer"]
