"""The pages on toy worlds and on whole units run, block by block."""

from __future__ import annotations

import pytest
from test_pages import run


@pytest.mark.long
def test_the_page_on_toy_worlds_runs() -> None:
    assert run("docs/toys.md") == 5


@pytest.mark.long
def test_the_page_on_units_runs() -> None:
    assert run("docs/units.md") == 4
