"""The command as a user meets it: what it prints, what it leaves, and what it refuses."""

from __future__ import annotations

import csv
import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TINY = ["--seeds", "2", "--set", "steps=20", "--set", "levels=1", "--set", "hidden=12,8"]
RUN = ["run", "lottery", *TINY, "--executor", "serial"]


def secateur(
    *words: str, cwd: Path, status: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(
        [sys.executable, "-m", "secateur.cli", *words],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == status, found.stdout + found.stderr
    assert "Traceback" not in found.stderr
    return found


def refused(*words: str, cwd: Path, **environment: str) -> str:
    """The one line that a refusal prints; exit status 2."""
    found = secateur(*words, cwd=cwd, status=2, **environment)
    lines = [l for l in found.stderr.splitlines() if l.startswith("secateur: ")]
    assert len(lines) == 1, found.stderr
    return lines[0]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which a tiny study was run, and what the run printed."""
    folder = tmp_path_factory.mktemp("run")
    return folder, secateur(*RUN, cwd=folder).stdout


def test_a_run_ends_with_the_page_and_the_store(done: tuple[Path, str]) -> None:
    folder, said = done
    page = folder / "lottery.html"
    assert f"page     {page}" in said
    assert f"results  {folder / 'secateur-runs'}" in said
    text = page.read_text()
    assert "MNIST, the first 500 training images of each digit" in text
    assert "secateur run lottery --preset quick --seeds 2 --set" in text


def test_the_same_command_computes_nothing_again(done: tuple[Path, str]) -> None:
    folder, _ = done
    cells = sorted((folder / "secateur-runs" / "cells").rglob("cell.json"))
    stamps = [c.stat().st_mtime_ns for c in cells]
    secateur(*RUN, cwd=folder)
    assert len(cells) == 2 * (1 + 4)
    assert [c.stat().st_mtime_ns for c in cells] == stamps


def test_report_remembers_the_last_run_and_changes_nothing(done: tuple[Path, str]) -> None:
    folder, _ = done
    before = sorted(p.name for p in (folder / "secateur-runs").rglob("*"))
    (folder / "lottery.html").unlink()
    secateur("report", "lottery", cwd=folder)
    assert (folder / "lottery.html").stat().st_size > 100_000
    assert sorted(p.name for p in (folder / "secateur-runs").rglob("*")) == before


def test_figures_are_the_pages_as_svg_and_pdf(done: tuple[Path, str]) -> None:
    pytest.importorskip("vl_convert")
    folder, _ = done
    secateur("report", "lottery", "--figures", "figures", cwd=folder)
    assert (folder / "figures" / "lottery-accuracy.svg").read_text().startswith("<svg")
    assert (folder / "figures" / "lottery-accuracy.pdf").read_bytes().startswith(b"%PDF")


def test_status_says_how_far_the_last_run_is(done: tuple[Path, str]) -> None:
    folder, _ = done
    assert "10 of 10 (done)" in secateur("status", cwd=folder).stdout


@pytest.mark.parametrize("ending", ["csv", "parquet", "json"])
def test_export_writes_a_row_a_cell(done: tuple[Path, str], ending: str) -> None:
    folder, _ = done
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    assert "10 rows" in secateur("export", "lottery", f"t.{ending}", cwd=folder).stdout
    if ending == "csv":
        with open(folder / "t.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["branch"] for row in rows} >= {"dense", "rewind", "none"}
        assert "place.branch" not in rows[0], "the branch stands in the table once"
        assert all(row["versions.code"] and row["versions.jax"] for row in rows)
        assert all(0 < float(row["last.test_accuracy"]) < 1 for row in rows)


def test_export_of_some_fields_leaves_the_others_out(done: tuple[Path, str]) -> None:
    folder, _ = done
    told = secateur("export", "lottery", "some.csv", *TINY, "--seeds", "1", cwd=folder).stdout
    assert "5 rows" in told
    failed = secateur("export", "lottery", "none.csv", "--set", "steps=780", cwd=folder, status=2)
    assert "none with these fields" in failed.stderr
    assert not (folder / "none.csv").exists()


def test_a_grid_makes_a_page_for_each_value(tmp_path: Path) -> None:
    words = ["run", "lottery", "--seeds", "1", "--grid", "steps=20,40", "--set", "levels=0"]
    said = secateur(*words, "--set", "hidden=12,8", "--executor", "serial", cwd=tmp_path).stdout
    assert "lottery-steps-20.html" in said
    assert "lottery-steps-40.html" in said


def test_dry_run_says_what_it_takes_and_does_nothing(tmp_path: Path) -> None:
    said = secateur("run", "lottery", "--dry-run", cwd=tmp_path).stdout
    for part in ("345", "0 are in the store", "programs", "time", "memory", "GB"):
        assert part in said
    assert list(tmp_path.iterdir()) == []


def test_studies_and_data_list_what_there_is(tmp_path: Path) -> None:
    studies = secateur("studies", cwd=tmp_path).stdout
    assert "--preset quick" in studies
    assert "steps=50000" in studies
    assert "inside the package" in secateur("data", cwd=tmp_path).stdout
    assert "4,000 training and 1,000 test" in secateur("data", "mnist5k", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "lotery"], "Did you mean 'lottery'"),
        (["rnu", "lottery"], "Did you mean 'run'"),
        (["run", "lottery", "--preset", "quik"], "Did you mean 'quick'"),
        (["run", "lottery", "--sets", "a=1"], "--set"),
        (["run", "lottery", "--set", "stesp=20"], "Did you mean 'steps'"),
        (["run", "lottery", "--set", "steps=many"], "steps"),
        (["run", "lottery", "--set", "steps"], "field=value"),
        (["run", "lottery", "--set", "prune=1.5"], "[0, 1)"),
        (["run", "lottery", "--set", "dataset=mnits"], "Did you mean 'mnist"),
        (["run", "lottery", "--seeds", "0"], "at least 1"),
        (["run", "lottery", "--executor", "procesess"], "processes"),
        (["run", "lottery", "--workers", "0"], "at least 1"),
        (["report", "lottery"], "no store"),
        (["export", "lottery", "t.csv"], "no store"),
        (["status"], "no store"),
        (["data", "cifar"], "cifar10"),
    ],
)
def test_bad_input_is_one_line_with_status_2(words: list[str], said: str, tmp_path: Path) -> None:
    assert said in refused(*words, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_a_file_or_another_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refused(*RUN, "--store", "file", cwd=tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("mine")
    assert "is no store" in refused(*RUN, "--store", "photos", cwd=tmp_path)
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "mine"


def test_an_unwritable_store_is_refused(tmp_path: Path) -> None:
    if os.access("/proc", os.W_OK) and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    assert "cannot write" in refused(*RUN, "--store", "/proc/secateur-runs", cwd=tmp_path)


def test_a_truncated_data_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for name in ("train", "t10k"):
        images = gzip.compress(b"\0\0\x08\x03" + b"\0\0\0\x05" + b"\0\0\0\x1c" * 2 + b"\0" * 100)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(images)
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(images[:10])
    line = refused(
        *RUN, "--set", "dataset=mnist", "--data-dir", str(tmp_path / "data"), cwd=tmp_path
    )
    assert "idx" in line
    assert not (tmp_path / "secateur-runs").exists()


def test_a_full_disk_loses_nothing(done: tuple[Path, str], tmp_path: Path) -> None:
    """Files larger than 20 kB cannot be written: one sentence; with room again it goes on."""

    small_files = (
        "import os, resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
        "os.execv(sys.executable, [sys.executable, '-m', 'secateur.cli', *sys.argv[1:]])"
    )
    found = subprocess.run(
        [sys.executable, "-c", small_files, *RUN],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 2, found.stderr
    assert "Traceback" not in found.stderr
    assert "make room" in found.stderr
    secateur(*RUN, cwd=tmp_path)
    a, b = (numbers(f / "secateur-runs") for f in (done[0], tmp_path))
    assert a == b


def numbers(store: Path) -> dict[str, Any]:
    from secateur.lab.store import Store

    held = Store(store, create=False)
    return {e.address: e.values for e in held.entries("lottery")}


def test_a_broken_pipe_is_no_error(tmp_path: Path) -> None:
    line = f"{sys.executable} -m secateur.cli studies | head -1"
    found = subprocess.run(
        ["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in found.stderr
    assert found.stdout.startswith("lottery")


def test_ctrl_c_after_the_work_is_done_changes_nothing() -> None:
    """While Python ends, its own callbacks run; an interrupt there is too late to stop anything."""
    program = (
        "import atexit, os, signal, sys\n"
        "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), sum(range(10**5))))\n"
        "from secateur.cli import script\n"
        "sys.argv = ['secateur', 'studies']\n"
        "script()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "lottery" in done.stdout
    assert done.stderr == ""


def test_find_writes_a_ticket_and_examine_reads_it(tmp_path: Path) -> None:
    asked = ["find", "snip", "--density", "0.05", "--network", "lenet-300-100", "--seed", "2"]
    told = secateur(*asked, "--set", "examples=40", "--out", "t.safetensors", cwd=tmp_path).stdout
    assert "direct density     5.0000% of 266,200 prunable weights" in told
    assert f"ticket   {tmp_path / 't.safetensors'}" in told
    again = secateur("examine", "t.safetensors", cwd=tmp_path).stdout
    table = told[told.index("layer           weights") : told.index("\nticket")].strip()
    assert table in again, "the table of the saved ticket is that of the found one"
    from secateur.prune.ticket import Ticket

    made = Ticket.load(tmp_path / "t.safetensors").provenance
    assert (made.method, made.seed, made.options["examples"]) == ("snip", 2, 40)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["find", "snipp", "--density", "0.1"], "Did you mean 'snip'?"),
        (["find", "synflow", "--density", "0"], "above 0"),
        (["find", "snip", "--density", "0.1", "--set", "exampels=3"], "Did you mean 'examples'?"),
        (["find", "snip", "--density", "0.1", "--set", "examples=few"], "examples"),
        (["find", "synflow", "--density", "0.1", "--network", "resnet-2"], "6 n + 2 layers"),
        (["examine", "none.safetensors"], "none.safetensors"),
    ],
)
def test_mistakes_about_tickets_are_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    assert said in refused(*words, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
