"""The study `feature-dynamics`: its cells, its claims on known rows, what small runs keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.data.registry import DATASETS
from secateur.features.grams import gram_distance
from secateur.lab.cells import Result, rows_of
from secateur.lab.progress import Progress
from secateur.lab.run import run
from secateur.lab.store import Store
from secateur.studies import feature_dynamics
from secateur.studies import feature_dynamics_claims as said

TOY = msgspec.structs.replace(
    feature_dynamics.presets["quick"],
    inputs=4,
    units=10,
    samples=30,
    probe=12,
    steps=20,
    records=2,
    levels=2,
    watched=(1,),
    alphas=(1.0,),
)
IMAGES = msgspec.structs.replace(
    feature_dynamics.presets["mnist"],
    hidden=(8,),
    steps=20,
    records=2,
    evaluate_every=10,
    levels=1,
    watched=(1,),
    probe=12,
)


def test_every_preset_is_possible_and_every_cell_its_own() -> None:
    assert set(feature_dynamics.presets) == set(feature_dynamics.seeds)
    for fields in feature_dynamics.presets.values():
        feature_dynamics.check(fields)
        cells = feature_dynamics.cells(fields, range(2), "")
        assert len(cells) == len({c.address for c in cells}) == 2 * len(fields.alphas)


@pytest.mark.parametrize(
    ("fields", "change", "words"),
    [
        (TOY, {"world": "toys"}, "toy"),
        (TOY, {"alphas": ()}, "above 0"),
        (TOY, {"records": 3}, "multiple of records"),
        (TOY, {"steps": 0}, "at least 1"),
        (TOY, {"prune": 2.0}, "fraction of weights"),
        (TOY, {"watched": (1, 1)}, "once"),
        (TOY, {"watched": (3,)}, "from 1 to 2"),
        (TOY, {"dataset": "mnist5k"}, "no dataset"),
        (IMAGES, {"dataset": ""}, "has a dataset"),
        (IMAGES, {"centred": True}, "does not centre"),
        (IMAGES, {"evaluate_every": 20}, "multiple of evaluate_every"),
        (IMAGES, {"probe": 1}, "probe is at least 2"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(fields: Any, change: Any, words: str) -> None:
    with pytest.raises(SecateurError, match=words):
        feature_dynamics.check(msgspec.structs.replace(fields, **change))


def test_claims_read_their_rows() -> None:
    rows: list[dict[str, Any]] = [
        {
            "seed": 0,
            "arm": arm,
            "alpha": 1.0,
            "density": 0.4096,
            "features": {"layer 1": {"ratio": r, "relative_end": e}},
        }
        for arm, r, e in (("ticket", 0.3, 0.2), ("control", 0.6, 0.5))
    ]
    assert said.of("ratio", "ticket", 0.41)(rows) == {0: 0.3}
    assert said.apart("relative_end", "control", 0.41)(rows)[0] == pytest.approx(0.3)
    assert said.apart("relative_end", "control", 0.41, alpha=4.0)(rows) == {}
    verdicts = {m.claim.id: m.verdict(rows, {}) for m in said.claims}
    assert verdicts["K-8 41 % alpha 1"] is not None
    assert verdicts["K-8 41 % alpha 4"] is None
    assert verdicts["K-9c alpha 1"] is None


def small(fields: Any, folder: Path, data: str) -> tuple[list[dict[str, Any]], Result]:
    feature_dynamics.check(fields)
    store, cells = Store(folder), feature_dynamics.cells(fields, (0,), data)
    run(cells, feature_dynamics.work, store, "serial", progress=Progress(quiet=True))
    result = store.read(cells[0])
    return [{"seed": 0, **r} for r in rows_of(result.values)], result


def told_of_films(rows: list[dict[str, Any]], result: Result, level: int) -> None:
    """What a film shows is what the rows tell: the same distance, where it holds all examples."""
    for k, entry in enumerate(result.values["films"]):
        label = entry["place"]["network"]
        arm = next(a for a, branch in said.ARMS.items() if branch.label == label)
        mine = next(r for r in rows if r["arm"] == arm and r["level"] == level)
        one, dense = (result.arrays[f"film:{k}:gram:layer 1:{n}"] for n in (label, "dense"))
        for at, place in ((0, "start"), (-1, "end")):
            found = gram_distance(one[at].astype(float), dense[at].astype(float))
            assert found.relative == pytest.approx(
                mine["features"]["layer 1"][f"relative_{place}"], rel=0.01
            )


@pytest.mark.long
def test_a_small_toy_compares_four_networks_with_the_dense_one(tmp_path: Path) -> None:
    rows, result = small(TOY, tmp_path, "")
    assert {r["arm"] for r in rows} == set(said.ARMS)
    assert len(rows) == 4 * (2 + 3)  # a row a level, three records of the watched one
    first = {r["arm"]: r["features"]["layer 1"] for r in rows if r["level"] == 1}
    # At the start a ticket's weights are some of the dense network's own, new ones are not.
    assert first["ticket"]["alignment_start"] > first["control"]["alignment_start"]
    along = {r["arm"]: r["along"]["w0"]["layer 1"] for r in rows if r.get("step") == 20}
    assert along["ticket"]["relative"] == first["ticket"]["relative_end"]
    # What is not rewound stands nearer to a dense network that was trained as long as it was.
    on = first["none"]
    assert on["longer_relative_end"] < on["relative_end"]
    assert "longer_relative_end" not in first["ticket"]
    told_of_films(rows, result, 1)


@pytest.mark.long
def test_a_small_run_on_images_compares_all_layers(tmp_path: Path) -> None:
    rows, result = small(IMAGES, tmp_path, DATASETS["mnist5k"].sha256)
    assert len(rows) == 4 * (1 + 3)
    first = {r["arm"]: r["features"] for r in rows if r["level"] == 1}
    assert set(first["ticket"]) == {"layer 1", "layer 2"}
    # Under equal masks and data order, but with other weights, features are further away.
    ends = {arm: of["layer 1"]["relative_end"] for arm, of in first.items()}
    assert ends["ticket"] < ends["control"]
    assert ends["ticket"] == pytest.approx(GOLDEN, rel=1e-3)
    told_of_films(rows, result, 1)
    kept = result.arrays["film:0:norms:layer 1"]
    assert kept.shape == (3, 8)
    assert np.all(kept > 0)


GOLDEN = 0.294725  # measured once with the stated meaning
