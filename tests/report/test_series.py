"""What figures draw: means and intervals by another road, shared levels, paths to nowhere."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.stats
from fabricated import ACCURACY, STEP, view

from secateur.report import series
from secateur.report.page import facts
from secateur.studies.figures import Curves


def test_band_is_the_t_interval_of_scipy() -> None:
    made = view(seeds=4, levels=3)
    points = series.means(series.singles(made, ACCURACY))
    assert {(p.branch, p.level) for p in points} == {
        (name, level) for name in ("rewind", "control", "chain", "none") for level in range(3)
    }
    for point in points:
        branch = "rewind" if point.level == 0 else point.branch  # level 0 is shared
        values = [
            row["best"]["test_accuracy"]
            for row in made.rows
            if (row["branch"], row["level"]) == (branch, point.level)
        ]
        assert len(values) == point.n == 4
        assert point.y == pytest.approx(np.mean(values), rel=1e-12)
        low, high = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
        assert (point.low, point.high) == pytest.approx((low, high), rel=1e-9)


def test_minmax_band_spans_the_seeds() -> None:
    assert series.interval([3.0, 1.0, 2.0], "minmax") == (1.0, 3.0)


def test_one_seed_has_no_band() -> None:
    points = series.means(series.singles(view(seeds=1, levels=2), STEP))
    assert points
    assert all(point.low is None and point.high is None and point.n == 1 for point in points)


def test_level_0_comes_from_the_branch_dense_and_dense_is_no_branch() -> None:
    made = view(seeds=2, levels=3, pictures=False)
    rows = [{**row, "branch": "dense"} if row["level"] == 0 else row for row in made.rows]
    made = dataclasses.replace(made, rows=rows)
    assert [branch.name for branch in series.branches(made)] == [
        "rewind",
        "control",
        "chain",
        "none",
    ]
    for run in series.runs(made):
        assert [series.level(row) for row in run.rows] == [0, 1, 2]
        assert run.rows[0]["branch"] == "dense"
        assert all(row["seed"] == run.seed for row in run.rows)


def test_only_the_dense_start_is_a_page_too() -> None:
    made = view(seeds=2, levels=1, names=("dense",), pictures=False)
    assert [(run.branch, run.seed) for run in series.runs(made)] == [("dense", 0), ("dense", 1)]


def test_a_branch_keeps_its_colour_when_another_is_missing() -> None:
    whole, part = view(seeds=1, levels=2), view(seeds=1, levels=2, names=("rewind", "none"))
    assert series.colours(part)["none"] == series.colours(whole)["none"] == 3


def test_rows_without_the_value_are_left_out() -> None:
    made = view(seeds=2, levels=3)
    rows = [{**row, "best": {}} if row["level"] == 1 else row for row in made.rows]
    levels = {p.level for p in series.singles(dataclasses.replace(made, rows=rows), ACCURACY)}
    assert levels == {0, 2}


@pytest.mark.parametrize(
    "value", [None, float("nan"), float("inf"), "0.9", True, {"mean": 0.9}], ids=repr
)
def test_what_is_no_finite_number_is_no_point(value: object) -> None:
    assert series.number({"a": {"b": value}}, "a.b") is None


def test_a_path_that_leads_nowhere() -> None:
    assert series.at({"a": {"b": 1}}, "a.b.c") is None
    assert series.at({"a": {"b": 1}}, "x") is None
    assert series.at({"a": {"b": 1}}, "a.b") == 1


def test_an_unknown_band_is_refused() -> None:
    with pytest.raises(ValueError, match="t95"):
        Curves("a", "a", "", "x", "y", "x", "y", band="sd")  # type: ignore[arg-type]


def test_moments_along_a_training_are_no_levels() -> None:
    made = view(seeds=1, levels=3)
    moment = {**made.rows[-1], "level": 1000, "along": {"loss": 0.5}}
    more = dataclasses.replace(made, rows=[*made.rows, moment], images=())
    run = next(run for run in series.runs(more) if run.branch == moment["branch"])
    assert series.level(run.rows[-1]) == 1000
    assert series.level(series.last(run)) == 2
    assert facts(more, series.runs(more))[2].startswith("3 levels")


def test_a_dense_network_that_branches_share_is_one_training() -> None:
    made = view(seeds=2, levels=2)
    trained = [row for row in made.rows if "last" in row]
    twice = dataclasses.replace(
        made, rows=[*made.rows, {**trained[0], "branch": "another"}], images=()
    )
    said = [words for words in facts(twice, series.runs(twice)) if "trained" in words]
    assert said == [words for words in facts(made, series.runs(made)) if "trained" in words]
