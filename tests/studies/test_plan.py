"""From a request to pages and cells."""

from __future__ import annotations

from secateur.studies.plan import plan


def test_each_page_of_a_grid_is_named_by_its_own_value_the_presets_too() -> None:
    asked = plan("lottery", sets=["levels=1"], grids=["prune=0.2,0.5", "hidden=300,100;20"])
    assert [part.name for part in asked.parts] == [
        "lottery-prune-0.2-hidden-300-100",
        "lottery-prune-0.2-hidden-20",
        "lottery-prune-0.5-hidden-300-100",
        "lottery-prune-0.5-hidden-20",
    ]


def test_without_a_grid_the_page_is_named_by_the_study() -> None:
    assert [part.name for part in plan("lottery", sets=["prune=0.5"]).parts] == ["lottery"]
