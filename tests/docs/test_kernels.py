"""The pages on kernels run, block by block, in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_pages import run


@pytest.mark.long
def test_the_page_on_kernels_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flax")
    pytest.importorskip("equinox")
    monkeypatch.chdir(tmp_path)
    assert run("docs/kernels.md") >= 14


@pytest.mark.long
def test_the_page_on_large_kernels_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("docs/large_kernels.md") >= 5
    assert (tmp_path / "kernel.npy").stat().st_size > 0
