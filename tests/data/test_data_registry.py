"""Where data are found, what is refused, and that their identity does not depend on packing."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import published
import pytest
from published import Small, write

from secateur.core.errors import SecateurError
from secateur.data import DATASETS, Dataset, describe, load


def same(found: Dataset, wanted: Small) -> None:
    for part, expected in ((found.train, wanted.train), (found.test, wanted.test)):
        np.testing.assert_array_equal(part.images, expected.images)
        np.testing.assert_array_equal(part.labels, expected.labels)


def test_rows_are_whole() -> None:
    for name, entry in DATASETS.items():
        assert name == entry.name
        assert entry.title
        assert entry.licence
        assert entry.citation
        assert len(entry.mean) == len(entry.std) == entry.shape[-1]
        assert len(set(entry.classes)) == len(entry.classes) in (10, 100, 200, 1000)
        hashes = [*entry.files.values(), *(d.sha256 for d in entry.downloads)]
        assert all(len(bytes.fromhex(value)) == 32 for value in hashes)
        assert all(m.endswith("/") for d in entry.downloads for m in d.mirrors)
    assert len({entry.sha256 for entry in DATASETS.values()}) == len(DATASETS)


@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw"])
@pytest.mark.parametrize("form", ["packed", "unpacked", "mixed"])
def test_mnist_layouts(small_mnist: Small, tmp_path: Path, folder: str, form: str) -> None:
    held = {"packed": small_mnist.offered, "unpacked": small_mnist.files}.get(form) or {
        name + ".gz" * (i % 2): (published.packed(data) if i % 2 else data)
        for i, (name, data) in enumerate(small_mnist.files.items())
    }
    write(tmp_path / "data" / folder, held)
    found = load("mnist", str(tmp_path / "data"), download=False)
    same(found, small_mnist)
    assert found.source == str(tmp_path / "data" / folder)
    assert found.sha256 == DATASETS["mnist"].sha256


@pytest.mark.parametrize("folder", ["cifar10", "."])
@pytest.mark.parametrize("form", ["archive", "folder"])
def test_cifar10_layouts(small_cifar10: Small, tmp_path: Path, folder: str, form: str) -> None:
    unpacked = {f"cifar-10-batches-py/{name}": data for name, data in small_cifar10.files.items()}
    write(tmp_path / folder, small_cifar10.offered if form == "archive" else unpacked)
    found = load("cifar10", str(tmp_path), download=False)
    same(found, small_cifar10)
    assert found.sha256 == DATASETS["cifar10"].sha256


def test_cifar100_and_svhn(small_cifar100: Small, small_svhn: Small, tmp_path: Path) -> None:
    write(tmp_path / "cifar100", small_cifar100.offered)
    write(tmp_path / "svhn", small_svhn.offered)
    same(load("cifar100", str(tmp_path), download=False), small_cifar100)
    same(load("svhn", str(tmp_path), download=False), small_svhn)


def test_identity_is_of_the_content(small_mnist: Small, tmp_path: Path) -> None:
    """Another packing of the same files is the same data; another file is not."""
    one = write(tmp_path / "one" / "mnist", small_mnist.files).parent
    again = {f"{name}.gz": gzip.compress(data, 1) for name, data in small_mnist.files.items()}
    two = write(tmp_path / "two" / "mnist", again).parent
    assert load("mnist", str(one)).sha256 == load("mnist", str(two)).sha256
    before = DATASETS["mnist"].sha256
    name = next(iter(small_mnist.files))
    DATASETS["mnist"].files[name] = "0" * 64  # type: ignore[index]
    assert DATASETS["mnist"].sha256 != before


def test_the_first_directory_that_holds_all_counts(
    small_mnist: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(small_mnist.offered)
    some = write(tmp_path / "some" / "mnist", {n: small_mnist.offered[n] for n in names[:3]})
    one, two, cache = (
        write(tmp_path / place / "mnist", small_mnist.offered) for place in ("1", "2", "cache")
    )

    def source(*folders: Path) -> str:
        path = os.pathsep.join(str(folder.parent) for folder in folders)
        return load("mnist", path or None, download=False).source

    nowhere = tmp_path / "nowhere" / "mnist"
    assert source(one, two) == str(one)
    assert source(two, one) == str(two)
    assert source(nowhere, some, two, one) == str(two)
    assert source(nowhere) == str(cache)
    assert source() == str(cache)
    monkeypatch.setenv("SECATEUR_DATA", f"{nowhere.parent}{os.pathsep}{two.parent}")
    assert source() == str(two)
    assert source(one) == str(one)
    assert source(some) == str(cache), "the environment counts only where no directory is given"


def test_home_directory(
    small_mnist: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "mnist", small_mnist.files)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("mnist", "~", download=False).source == str(tmp_path / "mnist")


def test_another_data_set_under_this_name_is_refused(small_mnist: Small, tmp_path: Path) -> None:
    """Fashion-MNIST has the same file names: the hash tells them apart."""
    names = list(small_mnist.files)
    held = dict(small_mnist.files) | {names[0]: published.idx(np.zeros((30, 28, 28)))}
    write(tmp_path / "mnist", held)
    with pytest.raises(SecateurError) as caught:
        load("mnist", str(tmp_path))
    text = str(caught.value)
    assert str(tmp_path / "mnist" / names[0]) in text
    assert published.sha256(held[names[0]])[:16] in text
    assert published.sha256(small_mnist.files[names[0]])[:16] in text
    assert "delete it" in text
    assert "\n" not in text


def test_one_flipped_bit_anywhere_is_noticed(small_cifar10: Small, tmp_path: Path) -> None:
    """In the unpacked folder nothing but the hash can notice a changed pixel."""
    name = "test_batch"
    folder = tmp_path / "cifar10" / "cifar-10-batches-py"
    write(folder, small_cifar10.files)
    broken = bytearray(small_cifar10.files[name])
    broken[len(broken) // 2] ^= 1
    (folder / name).write_bytes(broken)
    with pytest.raises(SecateurError, match=r"test_batch is not the publisher's test_batch"):
        load("cifar10", str(tmp_path))


def test_a_replaced_file_is_read_again(small_mnist: Small, tmp_path: Path) -> None:
    """What is kept in memory is not given for a file that has changed since."""
    write(tmp_path / "mnist", small_mnist.files)
    first = load("mnist", str(tmp_path))
    assert load("mnist", str(tmp_path)) is first
    path = tmp_path / "mnist" / next(iter(small_mnist.files))
    size, before = path.stat().st_size, path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert path.stat().st_size == size
    os.utime(path, ns=(before + 10**9, before + 10**9))
    with pytest.raises(SecateurError, match="not the publisher's"):
        load("mnist", str(tmp_path))


def test_loaded_arrays_cannot_be_changed(small_mnist: Small, tmp_path: Path) -> None:
    write(tmp_path / "mnist", small_mnist.files)
    found = load("mnist", str(tmp_path))
    for array in (found.train.images, found.test.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_neither_file_nor_network(small_mnist: Small, tmp_path: Path) -> None:
    """One sentence: what is missing, where it was looked for, from where, to put where."""
    with pytest.raises(SecateurError) as caught:
        load("mnist", str(tmp_path / "data"), download=False)
    off = str(caught.value)
    with pytest.raises(SecateurError) as caught:
        load("mnist", str(tmp_path / "data"))
    failed = str(caught.value)
    for text in (off, failed):
        assert "\n" not in text
        assert text.endswith(".")
        assert "MNIST handwritten digits" in text
        assert str(tmp_path / "data") in text
        assert "train-images-idx3-ubyte.gz" in text
        assert "--data-dir or SECATEUR_DATA" in text
    assert "downloading is off" in off
    assert "127.0.0.1:9 cannot be reached" in failed
    assert str(tmp_path / "data" / "mnist") in failed


def test_unknown_name() -> None:
    with pytest.raises(SecateurError, match=r"there is no data set 'minst'\. Did you mean 'mnist'"):
        load("minst")


def test_describe(small_mnist: Small, tmp_path: Path) -> None:
    write(tmp_path / "mnist", small_mnist.files)
    rows = {row["name"]: row for row in describe(str(tmp_path))}
    assert set(rows) == set(DATASETS)
    assert rows["mnist"]["found"] is True
    assert rows["mnist"]["where"] == str(tmp_path / "mnist")
    assert rows["mnist"]["bytes"] == sum(map(len, small_mnist.offered.values()))
    assert rows["mnist5k"]["found"] is True
    assert rows["mnist5k"]["where"] == "inside the package"
    assert 700_000 < rows["mnist5k"]["bytes"] < 900_000
    assert rows["svhn"]["found"] is False
    assert rows["svhn"]["where"] is None
    assert all(row["licence"] and row["title"] for row in rows.values())


def test_jax_is_not_imported() -> None:
    code = "import sys, secateur.data as d; d.load('mnist5k'); print('jax' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"
