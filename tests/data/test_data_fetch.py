"""Downloads from a local server: mirrors in turn, continued, checked, never a half file."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from published import Small, offer
from publisher import Publisher

from secateur.core.errors import SecateurError
from secateur.data import DATASETS, load
from secateur.data.fetch import Unreachable, fetch

DATA = np.random.default_rng(0).bytes(300_000)


def left(folder: Path) -> set[str]:
    """The files that a user sees."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_plain(publisher: Publisher, tmp_path: Path) -> None:
    publisher.files["a.gz"] = DATA
    path = fetch(offer("a.gz", DATA, publisher.mirror), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "a.gz"
    assert path.read_bytes() == DATA
    assert left(path.parent) == {"a.gz"}
    assert publisher.asked == [("a.gz", None)]
    assert publisher.encodings == {"identity"}
    fetch(offer("a.gz", DATA, publisher.mirror), path.parent)
    assert len(publisher.asked) == 1, "what is there is not asked for again"


def test_the_next_mirror(publisher: Publisher, second_publisher: Publisher, tmp_path: Path) -> None:
    """One that is not there, one without the file, one that sends something else, one that does."""
    third = Publisher()
    try:
        second_publisher.files["a"] = b"<html>please log in</html>"
        third.files["a"] = DATA
        mirrors = ("http://127.0.0.1:9/", publisher.mirror, second_publisher.mirror, third.mirror)
        assert fetch(offer("a", DATA, *mirrors), tmp_path).read_bytes() == DATA
    finally:
        third.close()
    assert left(tmp_path) == {"a"}
    assert third.asked == [("a", None)], "nothing of the wrong file was continued"


def test_wrong_everywhere(
    publisher: Publisher, second_publisher: Publisher, tmp_path: Path
) -> None:
    publisher.files["a"] = DATA[:-1] + b"x"
    with pytest.raises(Unreachable) as caught:
        fetch(offer("a", DATA, publisher.mirror, second_publisher.mirror), tmp_path)
    assert "sent another file (SHA-256" in str(caught.value)
    assert "answers 404" in str(caught.value)
    assert left(tmp_path) == set()


def test_continued_where_it_broke_off(publisher: Publisher, tmp_path: Path) -> None:
    publisher.files["a"] = DATA
    (tmp_path / "a.part").write_bytes(DATA[:123_456])
    assert fetch(offer("a", DATA, publisher.mirror), tmp_path).read_bytes() == DATA
    assert publisher.asked == [("a", "bytes=123456-")]


def test_a_line_that_breaks_again_and_again(publisher: Publisher, tmp_path: Path) -> None:
    """Each try brings 80 kB, and the next goes on from there."""
    publisher.files["a"], publisher.break_after = DATA, 80_000
    assert fetch(offer("a", DATA, publisher.mirror), tmp_path).read_bytes() == DATA
    starts = [wanted for _, wanted in publisher.asked]
    assert starts == [None, "bytes=80000-", "bytes=160000-", "bytes=240000-"]


def test_the_next_mirror_and_the_next_call_go_on(
    publisher: Publisher, second_publisher: Publisher, tmp_path: Path
) -> None:
    publisher.files["a"], publisher.break_after = DATA, 10_000
    with pytest.raises(Unreachable, match="broke off 5 times"):
        fetch(offer("a", DATA, publisher.mirror), tmp_path)
    assert left(tmp_path) == {"a.part"}
    second_publisher.files["a"] = DATA
    assert fetch(offer("a", DATA, second_publisher.mirror), tmp_path).read_bytes() == DATA
    assert second_publisher.asked == [("a", "bytes=50000-")]


def test_a_server_without_ranges(publisher: Publisher, tmp_path: Path) -> None:
    publisher.files["a"], publisher.ranges = DATA, False
    (tmp_path / "a.part").write_bytes(DATA[:1000])
    assert fetch(offer("a", DATA, publisher.mirror), tmp_path).read_bytes() == DATA
    assert len(publisher.asked) == 1, "the whole file, which came, replaces the part"


@pytest.mark.parametrize("rest", [b"x" * 1000, DATA + b"more", DATA[:-1] + b"x"])
def test_a_part_of_something_else_is_not_built_upon(
    publisher: Publisher, tmp_path: Path, rest: bytes
) -> None:
    publisher.files["a"] = DATA
    (tmp_path / "a.part").write_bytes(rest)
    assert fetch(offer("a", DATA, publisher.mirror), tmp_path).read_bytes() == DATA


def test_a_whole_part_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(DATA)
    assert fetch(offer("a", DATA, "http://127.0.0.1:9/"), tmp_path).read_bytes() == DATA


def test_a_wrong_size_in_the_registry_does_no_harm(publisher: Publisher, tmp_path: Path) -> None:
    """Sizes are for the progress bar; the hash decides."""
    publisher.files["a"] = DATA
    for n, wrong in enumerate((10, len(DATA) * 2)):
        wanted = dataclasses.replace(offer("a", DATA, publisher.mirror), bytes=wrong)
        assert fetch(wanted, tmp_path / str(n)).read_bytes() == DATA


def test_two_at_once_download_once(publisher: Publisher, tmp_path: Path) -> None:
    publisher.files["a"] = DATA
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(fetch, offer("a", DATA, publisher.mirror), tmp_path) for _ in range(4)]
    assert all(job.result().read_bytes() == DATA for job in jobs)
    assert len(publisher.asked) == 1


def test_a_folder_that_cannot_be_written(publisher: Publisher, tmp_path: Path) -> None:
    publisher.files["a"] = DATA
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SecateurError, match=r"cannot write a to .*--data-dir\.$"):
        fetch(offer("a", DATA, publisher.mirror), tmp_path / "file" / "mnist")


def _offered_by(publisher: Publisher, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = DATASETS[name]
    downloads = tuple(
        dataclasses.replace(d, mirrors=("http://127.0.0.1:9/", publisher.mirror))
        for d in entry.downloads
    )
    monkeypatch.setitem(DATASETS, name, dataclasses.replace(entry, downloads=downloads))


def test_load_downloads_into_the_cache(
    small_cifar10: Small, publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _offered_by(publisher, "cifar10", monkeypatch)
    publisher.files |= small_cifar10.offered
    monkeypatch.setenv("SECATEUR_DATA", str(tmp_path / "shared"))
    found = load("cifar10")
    np.testing.assert_array_equal(found.train.images, small_cifar10.train.images)
    assert found.source == str(tmp_path / "cache" / "cifar10")
    assert not (tmp_path / "shared").exists(), "shared directories are read, never written"
    load("cifar10")
    assert len(publisher.asked) == 1


def test_load_downloads_into_the_directory_given(
    small_mnist: Small, publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is missing; a file that is there unpacked is not fetched."""
    _offered_by(publisher, "mnist", monkeypatch)
    publisher.files |= small_mnist.offered
    first = next(iter(small_mnist.files))
    folder = tmp_path / "a" / "mnist"
    folder.mkdir(parents=True)
    (folder / first).write_bytes(small_mnist.files[first])
    found = load("mnist", f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}")
    np.testing.assert_array_equal(found.test.labels, small_mnist.test.labels)
    assert found.source == str(folder)
    assert [name for name, _ in publisher.asked] == [
        f"{name}.gz" for name in small_mnist.files if name != first
    ]
    assert not (tmp_path / "b").exists()


def test_progress_is_one_line_on_stderr(
    publisher: Publisher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publisher.files["a"] = DATA
    fetch(offer("a", DATA, publisher.mirror), tmp_path)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "a from 127.0.0.1" in captured.err
    assert "0.3 MB" in captured.err


def test_progress_is_a_bar_in_a_terminal(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    publisher.files["a"], publisher.break_after = DATA, 80_000
    assert fetch(offer("a", DATA, publisher.mirror), tmp_path).read_bytes() == DATA
