"""The study `lazy-mnist`: its cells, its claims on known rows, what alpha means, a small run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.data.registry import DATASETS
from secateur.lab.cells import rows_of
from secateur.lab.progress import Progress
from secateur.lab.run import run
from secateur.lab.store import Store
from secateur.studies import lazy_mnist
from secateur.studies import lazy_mnist_claims as said
from secateur.studies.lazy_mnist_late import delay

DATA = DATASETS["mnist5k"].sha256
TINY = msgspec.structs.replace(
    lazy_mnist.presets["quick"],
    hidden=(8,),
    steps=20,
    evaluate_every=20,
    levels=1,
    alphas=(1.0, 4.0),
    arms=("sgd", "sgd-centred"),
    ways=("rewind", "none"),
    weight_scales=(),
)


def test_every_preset_is_possible_and_every_cell_its_own() -> None:
    assert set(lazy_mnist.presets) == set(lazy_mnist.seeds)
    for fields in lazy_mnist.presets.values():
        lazy_mnist.check(fields)
        cells = lazy_mnist.cells(fields, range(2), DATA)
        assert len(cells) == len({c.address for c in cells})
    few = msgspec.structs.replace(TINY, arms=("sgd",), alphas=(1.0,))
    all_of = {c.address for c in lazy_mnist.cells(TINY, (0,), DATA)}
    assert {c.address for c in lazy_mnist.cells(few, (0,), DATA)} < all_of


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arms": ("sgd-center",)}, "sgd-centred"),
        ({"ways": ("random",)}, "rewind"),
        ({"alphas": (0.0,)}, "above 0"),
        ({"descent_rate": 0.0}, "positive"),
        ({"probe": 1}, "probe is at least 2"),
        ({"late_steps": 70}, "multiple of 40"),
        ({"ways": ()}, "at least one of"),
        ({"few": 50}, "a batch of 100"),
        ({"weight_scales": (1.0,), "late_prune": 0.9, "late_levels": 9}, "no weight left"),
        ({"prune": 0.9, "levels": 9}, "no weight left"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SecateurError, match=words):
        lazy_mnist.check(msgspec.structs.replace(TINY, **change))


def row(way: str, alpha: float, value: float, seed: int = 0, **about: Any) -> dict[str, Any]:
    of = {"adam": {way: value}}
    usual = {"seed": seed, "alpha": alpha, "density": 0.019}
    return {**usual, "accuracy": of, "kernel_moved": of, **about}


def test_claims_read_their_rows() -> None:
    rows = [row("rewind", a, v) for a, v in ((0.5, 0.8), (1.0, 0.9), (4.0, 0.7), (16.0, 0.6))]
    rows += [row("chain", a, v) for a, v in ((0.5, 0.5), (1.0, 0.4), (4.0, 0.3), (16.0, 0.1))]
    assert said.lazier("adam")(rows)[0] == pytest.approx(-20)
    assert said.lazier("adam", high=16.0)(rows)[0] == pytest.approx(-30)
    assert said.over_ways("adam", "rewind", "chain")(rows)[0] == pytest.approx(50)
    assert said.against(said.spread, "adam", "chain")(rows)[0] == pytest.approx(40 - 30)
    # Rewound: one of six pairs rises, five fall; chain: all fall.
    assert said.against(said.order, "adam", "chain")(rows)[0] == pytest.approx(1 - 4 / 6)
    assert said.lazier("sgd")(rows) == {}
    dense = [row("rewind", a, 1 / a, density=1.0) for a in (1.0, 16.0)]
    assert said.movement("adam", 16.0, 1.0)(dense)[0] == pytest.approx(-np.log10(16))


def test_order_is_the_absolute_rank_correlation() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for _ in range(5):
        values = rng.normal(size=6)
        tau = stats.kendalltau(np.arange(6), values).statistic
        assert said.order(values.tolist()) == pytest.approx(abs(tau))


def test_a_delay_is_from_the_step_that_fits_to_the_one_that_generalises() -> None:
    steps = np.array([0, 10, 100, 1000])
    late = delay(steps, np.array([0.1, 1, 1, 1]), np.array([0.1, 0.5, 0.6, 0.9]))
    assert late == {"generalised": 1000, "fitted": 10, "delay": pytest.approx(2)}
    soon = delay(steps, np.array([0.1, 0.5, 1, 1]), np.array([0.1, 0.89, 0.9, 0.9]))
    assert soon["delay"] == pytest.approx(-1)
    assert "delay" not in delay(steps, np.full(4, 0.5), np.array([0.1, 0.5, 0.6, 0.9]))


@pytest.mark.long
def test_a_small_run_is_lazier_at_large_alpha_where_outputs_are_centred(tmp_path: Path) -> None:
    store, cells = Store(tmp_path), lazy_mnist.cells(TINY, (0,), DATA)
    run(cells, lazy_mnist.work, store, "serial", progress=Progress(quiet=True))
    rows = [{"seed": 0, **r} for cell in cells for r in rows_of(store.read(cell).values)]
    assert len(rows) == 2 * 2 * 2 * 2
    moved = lambda alpha: rows_at(rows, "moved.sgd-centred.rewind", alpha)
    # At a rate over alpha^2 the first steps move weights by 1 / alpha.
    assert moved(4.0) == pytest.approx(moved(1.0) / 4, rel=0.1)
    accuracy = lambda way: rows_at(rows, f"accuracy.sgd.{way}", 1.0)
    assert accuracy("rewind") == accuracy("none")  # the dense network is one and the same


def rows_at(rows: list[dict[str, Any]], path: str, alpha: float) -> float:
    return said.numbers(rows, path, 1.0, alpha=alpha)[0]


@pytest.mark.long
def test_the_arm_that_generalises_late_has_the_numbers_of_its_meaning(tmp_path: Path) -> None:
    assert lazy_mnist.meaning == 1
    fields = msgspec.structs.replace(
        lazy_mnist.presets["quick"],
        hidden=(30,),
        few=200,
        late_steps=800,
        late_levels=1,
        arms=(),
        weight_scales=(4.0,),
    )
    store, cells = Store(tmp_path), lazy_mnist.cells(fields, (0,), DATA)
    run(cells, lazy_mnist.work, store, "serial", progress=Progress(quiet=True))
    rows = [{"seed": 0, **r} for r in rows_of(store.read(cells[0]).values)]
    trained = [r for r in rows if "late" in r]
    assert [(r["kind"], r["depth"]) for r in trained] == [
        ("rewind", 0),
        ("rewind", 1),
        ("control", 1),
    ]
    assert len(rows) == 3 * (1 + 40)
    fit = [r["along"]["train"] for r in rows if r["branch"] == trained[0]["branch"] and "step" in r]
    assert fit[-1] == 1
    assert trained[0]["late"]["fitted"] == GOLDEN


GOLDEN = 300  # measured once with the stated meaning
