"""The pages of the documentation run: every Python block, in order, in an empty folder.

A block whose first line is ``# NAME.py`` is a file: it is written there and not run. A block of
``text`` after a Python block is what it printed. Words must be the same; numbers may differ as much
as another machine's floating point makes them.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


@dataclass(frozen=True)
class Block:
    """A Python block, the line it begins at, and what the page says that it prints."""

    line: int
    code: str
    printed: str | None

    @property
    def file(self) -> str | None:
        first = self.code.partition("\n")[0]
        found = re.fullmatch(r"# (\w+\.py)", first)
        return found[1] if found else None


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [Block(text.count("\n", 0, m.start(1)) + 1, m[1], m[2]) for m in BLOCK.finditer(text)]


def same(said: str, printed: str) -> str | None:
    """Why what was printed is not what the page says, or None."""
    if NUMBER.sub("#", said) != NUMBER.sub("#", printed):
        return f"the page says\n{said}but this was printed:\n{printed}"
    for a, b in zip(NUMBER.findall(said), NUMBER.findall(printed)):
        if not math.isclose(float(a), float(b), rel_tol=0.02, abs_tol=0.06 if "." in a else 0):
            return f"the page says {a}, but {b} was printed:\n{printed}"
    return None


def run(page: str) -> int:
    """Runs the page's blocks; how many."""
    names: dict[str, Any] = {"__name__": "__page__"}
    found = blocks(page)
    for block in found:
        if block.file:
            Path(block.file).write_text(block.code)
            continue
        out = io.StringIO()
        # The empty lines make a traceback's line numbers those of the page.
        code = compile(
            "\n" * (block.line - 1) + block.code, str(ROOT / page), "exec", dont_inherit=True
        )
        with contextlib.redirect_stdout(out):
            exec(code, names)
        if block.printed is not None:
            wrong = same(block.printed, out.getvalue())
            assert wrong is None, f"{page}, line {block.line}: {wrong}"
    return len(found)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, on the path for modules; modules of pages are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) == str(tmp_path / f"{name}.py"):
            del sys.modules[name]


def test_the_readme_runs(empty_folder: Path) -> None:
    assert run("README.md") == 1


def test_the_tutorial_runs(empty_folder: Path) -> None:
    pytest.importorskip("flax")
    pytest.importorskip("equinox")
    assert run("docs/tutorial.md") >= 9


def test_the_pages_on_tickets_run(empty_folder: Path) -> None:
    assert run("docs/finding.md") >= 5
    assert run("docs/methods.md") == 2


def test_the_study_page_runs(empty_folder: Path) -> None:
    assert run("docs/studies.md") >= 6
    assert (empty_folder / "rates.html").stat().st_size > 100_000


def test_the_study_of_the_page_is_short() -> None:
    [file] = [block for block in blocks("docs/studies.md") if block.file]
    assert len(file.code.splitlines()) < 60


def test_a_page_that_says_other_numbers_or_words_fails() -> None:
    assert same("0.92 of 3\n", "0.93 of 3\n") is None
    assert same("0.92\n", "0.72\n")
    assert same("3 cells\n", "4 cells\n")
    assert same("3 cells\n", "3 rows\n")
