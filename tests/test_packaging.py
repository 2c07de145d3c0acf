"""What a newcomer meets first: pins, the two commands of the README, the wheel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_PINNED = {"cuda", "torch"}  # extras of other machines; no command of the README installs them


def pins() -> list[Requirement]:
    return [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()]


def set_up_commands() -> list[str]:
    """Lines of the README's fenced blocks that install something, as .ci/run takes them."""
    inside, found = False, []
    for line in (ROOT / "README.md").read_text().splitlines():
        if line.startswith("```"):
            inside = not inside
        elif inside and re.search("(pip|uv) ", line):
            found.append(line)
    return found


def test_constraints_hold_names_and_versions_only():
    """Addresses of the machine that made the file must not reach those who use it."""
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert "--" not in text
    assert "@" not in text
    for line in text.splitlines():
        assert re.fullmatch(r"[a-z0-9._-]+==[a-z0-9.]+( ; [^;]+)?", line), line


def test_every_dependency_is_pinned_within_its_bounds():
    wanted = [Requirement(r) for r in PROJECT["dependencies"]]
    for extra, requirements in PROJECT["optional-dependencies"].items():
        wanted += [Requirement(r) for r in requirements if extra not in NOT_PINNED]
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        versions = [next(iter(pin.specifier)).version for pin in pins() if pin.name == name]
        assert versions, f"{name} is not in constraints.txt"
        assert all(requirement.specifier.contains(Version(v)) for v in versions), name


def test_bounds_stay_wide():
    """An upper bound of ours would keep users from what their other packages need."""
    bounded = [r for r in PROJECT["dependencies"] if "<" in r or "==" in r]
    assert bounded == []


def test_readme_has_two_commands_of_one_line_each():
    first, second, *_ = set_up_commands()
    for line in (first, second):
        assert line.startswith("python3 -m venv .venv && "), line
        assert "-c constraints.txt" in line
        assert not line.endswith("\\")
    assert "secateur run lottery" in first
    assert "pytest" in second


def test_ci_takes_the_test_command_from_the_readme():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    done = subprocess.run([script, "--show"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == set_up_commands()[1]


@pytest.mark.long
def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    """An editable install does not show a data file that the wheel forgets."""
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True, timeout=300)
    held = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "secateur").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files <= held, files - held
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in held)
