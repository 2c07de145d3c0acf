"""The page on films: its blocks run, and its tables name the controls that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_pages import ROOT, run

TEXT = (ROOT / "docs" / "page.md").read_text()
TEMPLATE = (ROOT / "secateur" / "report" / "templates" / "films.html").read_text()


@pytest.mark.long
def test_the_page_on_films_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run("docs/page.md") == 2
    assert 'id="films"' in (tmp_path / "watched.html").read_text(encoding="utf-8")


def test_every_control_is_in_its_tables() -> None:
    named = {
        cell.strip()
        for row in re.findall(r"^\| ([^|]+) \|", TEXT, re.MULTILINE)
        for cell in row.split(",")
    }
    labels = re.findall(r"<label[^>]*>([A-Z][a-z ]+) <", TEMPLATE)
    labels += re.findall(r"> ([A-Z][a-z]+)</label>", TEMPLATE)
    assert len(labels) >= 16
    for label in labels:
        assert any(name.startswith(label) for name in named), label


def test_ranges_are_those_of_the_sliders() -> None:
    for name, words in (
        ("cutoff", ".37 to 1, in steps of .005"),
        ("spread", ".25 to 2, in steps of .05"),
    ):
        low, high, step = re.search(
            rf'id="film-{name}" min="([\d.]+)" max="([\d.]+)" step="([\d.]+)"', TEMPLATE
        ).groups()
        assert words in TEXT
        numbers = [float(n) for n in re.findall(r"\.?\d+(?:\.\d+)?", words)]
        assert numbers == [float(low), float(high), float(step)]
