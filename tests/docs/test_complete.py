"""What there is, is in the docs; what the docs point to, is there."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import msgspec
import pytest

from secateur import cli
from secateur.prune.branches import BRANCHES
from secateur.prune.magnitude import removed
from secateur.studies import lottery
from secateur.studies.registry import STUDIES

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
COMMANDS = [(name, command) for name, command in sorted(cli.main.commands.items())]
OPTIONS = [
    (name, option)
    for name, command in COMMANDS
    for parameter in command.params
    if isinstance(parameter, click.Option)
    for option in parameter.opts
]
# The page that explains a command, where it is not the quick start.
GUIDES = {"find": "finding.md", "examine": "finding.md"}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def rows(text: str, head: str) -> list[list[str]]:
    """The cells of the table whose first line begins with ``head``."""
    lines = text[text.index(f"\n| {head} |") + 1 :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


@pytest.mark.parametrize("name", [name for name, _ in COMMANDS])
def test_every_command_is_in_the_docs(name: str) -> None:
    assert f"secateur {name}" in page(GUIDES.get(name, "quickstart.md"))


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_is_in_the_docs(name: str, option: str) -> None:
    assert re.search(rf"{re.escape(option)}\b", page(GUIDES.get(name, "quickstart.md")))


@pytest.mark.parametrize("name", cli.EXECUTORS)
def test_every_executor_is_in_the_quick_start(name: str) -> None:
    assert f"| `{name}` |" in page("quickstart.md")


def shell_lines(name: str = "quickstart.md") -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", page(name), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.startswith("secateur")]


@pytest.mark.parametrize("line", [*shell_lines(), *shell_lines("finding.md")])
def test_every_command_line_is_understood(line: str) -> None:
    """Parsed, not run: the command, its options and its study exist. tests/cli runs them."""
    _, name, *words = shlex.split(line)
    command = cli.main.commands[name]
    context = command.make_context(name, words)
    if "study" in context.params:
        assert context.params["study"] in STUDIES


def test_every_field_of_the_study_is_in_the_quick_start_with_its_default() -> None:
    found = {field.strip("`"): value.strip("`") for field, value, _ in rows_of_fields()}
    defaults = {
        field.name: msgspec.to_builtins(field.default)
        for field in msgspec.structs.fields(lottery.Fields)
    }
    assert list(found) == list(defaults)
    for name, default in defaults.items():
        if isinstance(default, bool):
            said = str(default).lower() == found[name]
        elif isinstance(default, int | float):
            said = float(found[name]) == default
        else:
            text = ",".join(map(str, default)) if isinstance(default, list | tuple) else default
            text = text or "none"
            said = text == found[name]
        assert said, (name, default, found[name])


def rows_of_fields() -> list[list[str]]:
    return rows(page("quickstart.md"), "field | default | meaning")


@pytest.mark.parametrize("name", lottery.presets)
def test_every_preset_is_in_the_quick_start(name: str) -> None:
    assert f"`{name}`" in page("quickstart.md")


def test_every_branch_has_a_row_with_its_facts_and_a_card() -> None:
    text = page("branches.md")
    table = {
        row[0].split("`")[1]: row[1:]
        for row in rows(text, "branch | mask | weights | schedule | source")
    }
    assert list(table) == list(BRANCHES)
    for name, branch in BRANCHES.items():
        rate = (
            "last rate" if branch.last_rate else "from k" if branch.weights == "late" else "from 0"
        )
        assert table[name] == [branch.masks, branch.weights, rate, branch.source]
        assert f"\n## {name}\n" in text


def test_the_table_of_levels_is_what_the_rule_gives() -> None:
    counts = [784 * 300, 300 * 100, 100 * 10]
    whole = sum(counts)
    table = rows(page("branches.md"), "level | dense_1 | dense_2 | dense_3 | all | %")
    assert len(table) == 26
    for level, row in enumerate(table):
        left = sum(counts)
        assert row == [*map(str, (level, *counts, left)), f"{100 * left / whole:.2f}"]
        counts = [n - removed(rate, n) for n, rate in zip(counts, (0.2, 0.2, 0.1))]


def test_the_architecture_names_every_file_and_no_other() -> None:
    tree = re.search(r"^```\ncli\.py.*?^```$", page("architecture.md"), re.DOTALL | re.MULTILINE)
    assert tree
    named = re.findall(r"\w+\.py", tree[0])
    there = [p.name for p in (ROOT / "secateur").rglob("*.py") if p.name != "__init__.py"]
    assert sorted(named) == sorted(there)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_relative_link_leads_to_a_file(path: Path) -> None:
    for target in LINK.findall(path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, heading = target.partition("#")
        there = (path.parent / file) if file else path
        assert there.exists(), f"{path.name} points to {target}"
        if heading:
            slugs = [
                re.sub(r"[^\w\- ]", "", line.lstrip("# ")).lower().replace(" ", "-")
                for line in there.read_text().splitlines()
                if line.startswith("#")
            ]
            assert heading in slugs, f"{path.name} points to {target}"


def test_every_page_is_reached_from_the_readme() -> None:
    open_, seen = [ROOT / "README.md"], set()
    while open_:
        here = open_.pop()
        if here in seen or here.suffix != ".md":
            continue
        seen.add(here)
        open_ += [
            (here.parent / target.partition("#")[0]).resolve()
            for target in LINK.findall(here.read_text())
            if not re.match(r"[a-z]+:|#", target)
        ]
    assert {page.resolve() for page in PAGES} <= seen


def run_in_order(lines: list[str], tmp_path: Path) -> None:
    for line in lines:
        done = subprocess.run(
            [sys.executable, "-m", "secateur.cli", *shlex.split(line)[1:]],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


@pytest.mark.long
def test_the_commands_of_the_quick_start_run_in_order(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    first = "secateur run lottery --seeds 1 --set steps=20 --set levels=1"  # for the README's run
    run_in_order([first, *shell_lines()], tmp_path)
    for made in ("lottery-prune-0.2.html", "lottery-prune-0.5.html", "results.csv", "curves.csv"):
        assert (tmp_path / made).stat().st_size > 0
    drawn = {path.suffix for path in (tmp_path / "figures").rglob("*") if path.is_file()}
    assert drawn == {".svg", ".pdf", ".png"}


@pytest.mark.long
def test_the_commands_of_the_page_on_tickets_run_in_order(tmp_path: Path) -> None:
    run_in_order(shell_lines("finding.md"), tmp_path)
    assert (tmp_path / "ticket.safetensors").is_file()
    assert (tmp_path / "secateur-runs" / "cells" / "at-init").is_dir()


def test_the_cards_are_what_the_docstrings_say() -> None:
    spec = importlib.util.spec_from_file_location("cards", ROOT / "scripts" / "cards.py")
    assert spec is not None
    assert spec.loader is not None
    cards = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cards)
    assert page("methods.md") == cards.written(), "run: python scripts/cards.py"
