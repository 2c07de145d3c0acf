"""Data for these tests: small sets in the publishers' formats, and the real ones where they are."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import published
import pytest
from published import Small, random_examples
from publisher import Publisher

from secateur.data import DATASETS, Dataset, load, registry

REAL = os.environ.get("SECATEUR_DATA", "")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the data, or writes to the cache, of the person who runs it."""
    monkeypatch.delenv("SECATEUR_DATA", raising=False)
    monkeypatch.setattr(registry, "cache", lambda: tmp_path / "cache")


def _register(name: str, small: Small, monkeypatch: pytest.MonkeyPatch) -> Small:
    offered = {
        old.name: dataclasses.replace(
            old,
            bytes=len(small.offered[old.name]),
            sha256=published.sha256(small.offered[old.name]),
            mirrors=("http://127.0.0.1:9/",),  # the discard port: nobody answers
        )
        for old in DATASETS[name].downloads
    }
    entry = dataclasses.replace(
        DATASETS[name],
        files={file: published.sha256(data) for file, data in small.files.items()},
        downloads=tuple(offered.values()),
    )
    monkeypatch.setitem(DATASETS, name, entry)
    return small


@pytest.fixture
def small_mnist(monkeypatch: pytest.MonkeyPatch) -> Small:
    train, test = random_examples(30, (28, 28, 1), 1), random_examples(12, (28, 28, 1), 2)
    arrays = (train.images[..., 0], train.labels, test.images[..., 0], test.labels)
    files = {name: published.idx(a) for name, a in zip(DATASETS["mnist"].files, arrays)}
    offered = {f"{name}.gz": published.packed(data) for name, data in files.items()}
    return _register("mnist", Small(train, test, files, offered), monkeypatch)


@pytest.fixture
def small_cifar10(monkeypatch: pytest.MonkeyPatch) -> Small:
    train, test = random_examples(20, (32, 32, 3), 3), random_examples(6, (32, 32, 3), 4)
    files = {
        f"data_batch_{i + 1}": published.cifar_batch(
            train.images[4 * i : 4 * i + 4], train.labels[4 * i : 4 * i + 4]
        )
        for i in range(5)
    } | {"test_batch": published.cifar_batch(test.images, test.labels)}
    inside = {f"cifar-10-batches-py/{name}": data for name, data in files.items()}
    offered = {"cifar-10-python.tar.gz": published.tar_gz({**inside, "readme.html": b"hello"})}
    return _register("cifar10", Small(train, test, files, offered), monkeypatch)


@pytest.fixture
def small_cifar100(monkeypatch: pytest.MonkeyPatch) -> Small:
    train = random_examples(7, (32, 32, 3), 5, classes=100)
    test = random_examples(5, (32, 32, 3), 6, classes=100)
    files = {
        "train": published.cifar_batch(train.images, train.labels, b"fine_labels"),
        "test": published.cifar_batch(test.images, test.labels, b"fine_labels"),
    }
    inside = {f"cifar-100-python/{name}": data for name, data in files.items()}
    offered = {"cifar-100-python.tar.gz": published.tar_gz(inside)}
    return _register("cifar100", Small(train, test, files, offered), monkeypatch)


@pytest.fixture
def small_svhn(monkeypatch: pytest.MonkeyPatch) -> Small:
    train, test = random_examples(40, (32, 32, 3), 7), random_examples(6, (32, 32, 3), 8)
    files = {
        "train_32x32.mat": published.mat(train.images, train.labels),
        "test_32x32.mat": published.mat(test.images, test.labels),
    }
    return _register("svhn", Small(train, test, files, files), monkeypatch)


# --- a publisher's server -------------------------------------------------------------------------


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    server = Publisher()
    yield server
    server.close()


@pytest.fixture
def second_publisher() -> Iterator[Publisher]:
    server = Publisher()
    yield server
    server.close()


# --- the real data --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def real_mnist() -> Dataset:
    return _real("mnist")


@pytest.fixture(scope="session")
def real_fashion_mnist() -> Dataset:
    return _real("fashion-mnist")


def _real(name: str) -> Dataset:
    if not REAL or registry.find(DATASETS[name], REAL) is None:
        pytest.skip(f"{name} is in no directory of SECATEUR_DATA")
    return load(name, REAL, download=False)


@pytest.fixture(scope="session")
def real_cifar10(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """CIFAR-10 as published, or rebuilt by the script unpack.py where a packed form is at hand."""
    if REAL and registry.find(DATASETS["cifar10"], REAL) is not None:
        return load("cifar10", REAL, download=False)
    scripts = [Path(part) / "cifar10" / "unpack.py" for part in REAL.split(os.pathsep) if part]
    for script in scripts:
        if script.is_file():
            folder = tmp_path_factory.mktemp("data")
            subprocess.run(
                [sys.executable, str(script), str(folder / "cifar10")],
                check=True,
                capture_output=True,
            )
            return load("cifar10", str(folder), download=False)
    pytest.skip("cifar10 is in no directory of SECATEUR_DATA")
