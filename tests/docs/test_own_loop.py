"""The page on training loops of one's own runs, block by block, in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_pages import run


@pytest.mark.long
def test_the_page_on_ones_own_loop_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("flax", "equinox", "PIL"):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    assert run("docs/own_loop.md") >= 9
    assert (tmp_path / "snip.ticket").stat().st_size > 0
