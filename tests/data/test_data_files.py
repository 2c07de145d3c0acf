"""Readers give what was written in the publishers' formats, and one sentence for anything else."""

from __future__ import annotations

import gzip
import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import published
import pytest
from published import random_examples

from secateur.core.errors import SecateurError
from secateur.data import Examples, files


def same(found: Examples, wanted: Examples) -> None:
    assert found.images.dtype == np.uint8
    assert found.labels.dtype == np.int32
    np.testing.assert_array_equal(found.images, wanted.images)
    np.testing.assert_array_equal(found.labels, wanted.labels)


def sentence(caught: pytest.ExceptionInfo[SecateurError]) -> str:
    """The message; one sentence: one line, one full stop, at its end."""
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith((".", "?"))
    assert ". " not in text
    return text


# --- idx ------------------------------------------------------------------------------------------


def test_idx_by_hand(tmp_path: Path) -> None:
    data = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 1, 2, 3, 40, 50, 255])
    (tmp_path / "images").write_bytes(data)
    (tmp_path / "labels").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
    found = files.read_idx(tmp_path / "images", tmp_path / "labels")
    assert found.images.tolist() == [[[[1], [2], [3]]], [[[40], [50], [255]]]]
    assert found.labels.tolist() == [7, 9]


@pytest.mark.parametrize("pack", [bytes, published.packed], ids=["raw", "gz"])
def test_idx_packed_or_not(tmp_path: Path, pack: type[bytes]) -> None:
    wanted = random_examples(9, (28, 28, 1), 0)
    # The name says nothing: what is gzip is seen from its content.
    (tmp_path / "images").write_bytes(pack(published.idx(wanted.images[..., 0])))
    (tmp_path / "labels").write_bytes(pack(published.idx(wanted.labels)))
    same(files.read_idx(tmp_path / "images", tmp_path / "labels"), wanted)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "begins with nothing"),
        (b"<html>404</html>", "begins with 3c 68 74 6d"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 1, 0, 0, 0, 0]), "type 0x0d with 1 axes"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 3, 1, 2]), "has 10 bytes (uncompressed) where its header"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 1, 1, 2]), "promises 9"),
        (bytes([0, 0, 8, 3, 0, 0, 0, 1]), "has 8 bytes"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12, "where its header promises 79,228,162,458"),
    ],
)
def test_idx_wrong(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(data)
    with pytest.raises(SecateurError) as caught:
        files.idx_array(files.read_file(path))
    assert says in sentence(caught)
    assert str(path) in str(caught.value)


def test_idx_swapped_or_of_another_length(tmp_path: Path) -> None:
    few, more = published.idx(np.zeros((3, 2, 2))), published.idx(np.zeros(4))
    images, labels = files.Raw("IMAGES", few), files.Raw("LABELS", more)
    with pytest.raises(SecateurError, match="swapped"):
        files.idx_examples(labels, images)
    with pytest.raises(
        SecateurError, match=r"LABELS holds labels of shape \(4,\).*3 images of IMAGES"
    ):
        files.idx_examples(images, labels)


@pytest.mark.parametrize("length", [3, 12, 500, -9, -1])
def test_gzip_truncated_anywhere(tmp_path: Path, length: int) -> None:
    whole = published.packed(published.idx(np.arange(256).repeat(40)))
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(whole[:length])
    with pytest.raises(SecateurError) as caught:
        files.read_file(path)
    assert "ends early" in sentence(caught) or "damaged" in str(caught.value)


def test_gzip_bit_flips_are_noticed(tmp_path: Path) -> None:
    """A flipped bit of the body changes the content, which the file's own checksum notices."""
    data = published.idx(np.random.default_rng(0).integers(0, 256, 3000))
    whole = bytearray(published.packed(data))
    path = tmp_path / "labels.gz"
    for place in np.random.default_rng(1).integers(10, len(whole), 40):
        broken = whole.copy()
        broken[place] ^= 1 << int(place % 8)
        path.write_bytes(broken)
        with pytest.raises(SecateurError):
            files.read_file(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match=r"cannot read .*nowhere"):
        files.read_file(tmp_path / "nowhere")
    with pytest.raises(SecateurError, match="cannot read"):
        files.read_file(tmp_path)


# --- CIFAR ----------------------------------------------------------------------------------------


def test_cifar_planes_by_hand() -> None:
    """A row is the red plane, the green, the blue; each row by row."""
    row = np.zeros((1, 3072), np.uint8)
    row[0, 0], row[0, 1024 + 1], row[0, 2048 + 32] = 10, 20, 30
    raw = files.Raw("batch", published.python2_pickle({b"data": row, b"labels": [6]}))
    image = files.cifar_examples(raw).images[0]
    assert image[0, 0].tolist() == [10, 0, 0]  # (row 0, column 0) red
    assert image[0, 1].tolist() == [0, 20, 0]  # (row 0, column 1) green
    assert image[1, 0].tolist() == [0, 0, 30]  # (row 1, column 0) blue
    assert image.sum() == 60


def test_the_test_file_looks_like_python_2s() -> None:
    """What these tests read is protocol 2 with Python 2's byte strings and numpy's old module."""
    wanted = random_examples(2, (32, 32, 3), 0)
    operations = list(pickletools.genops(published.cifar_batch(wanted.images, wanted.labels)))
    names = {operation.name for operation, _, _ in operations}
    assert {"SHORT_BINSTRING", "BINSTRING"} <= names
    assert not names & {"BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"}
    asked = {argument for operation, argument, _ in operations if operation.name == "GLOBAL"}
    assert asked == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}


def test_cifar_folder_and_archive(tmp_path: Path) -> None:
    one, two = random_examples(3, (32, 32, 3), 1), random_examples(4, (32, 32, 3), 2)
    held = {
        "folder/b1": published.cifar_batch(one.images, one.labels),
        "folder/b2": published.cifar_batch(two.images, two.labels),
    }
    published.write(tmp_path, held)
    (tmp_path / "a.tar.gz").write_bytes(published.tar_gz(held))
    (tmp_path / "dotted.tar.gz").write_bytes(
        published.tar_gz({f"./{name}": data for name, data in held.items()})
    )
    both = files.concatenate([two, one])
    for path in ("folder", "a.tar.gz", "dotted.tar.gz"):
        same(files.read_cifar(tmp_path / path, ["folder/b2", "folder/b1"]), both)


def test_cifar100_uses_the_fine_labels() -> None:
    wanted = random_examples(3, (32, 32, 3), 1, classes=100)
    raw = files.Raw("b", published.cifar_batch(wanted.images, wanted.labels, b"fine_labels"))
    same(files.cifar_examples(raw, "fine_labels"), wanted)
    with pytest.raises(
        SecateurError, match=r"not a CIFAR batch.*fine_labels.*expected.*and labels"
    ):
        files.cifar_examples(raw)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickles_of_todays_python_and_numpy_are_read_too(protocol: int) -> None:
    """Written by this numpy: another module name, bytes through _codecs.encode in protocol 2."""
    data = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    raw = files.Raw("b", pickle.dumps({b"data": data, b"labels": [1, 2]}, protocol=protocol))
    if protocol == 5:  # numpy then uses a function that CIFAR's files never need
        with pytest.raises(SecateurError, match="_frombuffer"):
            files.unpickle(raw)
    else:
        np.testing.assert_array_equal(files.unpickle(raw)[b"data"], data)


class _Call:
    def __init__(self, function: object, *arguments: object) -> None:
        self.made = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.made


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "evil",
    [
        _Call(os.system, "touch {}"),
        _Call(eval, "open('{}', 'w')"),
        _Call(getattr, 1, "real"),
        _Call(np.load, "{}"),
        _Call(Path.touch, Path("{}")),
    ],
    ids=["os.system", "eval", "getattr", "numpy.load", "pathlib"],
)
def test_a_malicious_pickle_is_refused(tmp_path: Path, evil: _Call, protocol: int) -> None:
    victim = tmp_path / "victim"
    function, arguments = evil.made
    filled = [a.format(victim) if isinstance(a, str) else a for a in arguments]
    data = pickle.dumps({b"data": _Call(function, *filled), b"labels": []}, protocol=protocol)
    with pytest.raises(SecateurError) as caught:
        files.cifar_examples(files.Raw("batch", data))
    assert "batch is refused: it asks for" in sentence(caught)
    assert not victim.exists()


def test_codecs_encode_admits_only_what_numpy_needs() -> None:
    import codecs

    data = pickle.dumps(_Call(codecs.encode, "a" * 99, "zip"), protocol=2)
    with pytest.raises(SecateurError, match="encoding 'zip'"):
        files.unpickle(files.Raw("batch", data))


@pytest.mark.parametrize("length", [0, 1, 30, 200, 5000, -1])
def test_a_truncated_pickle(length: int) -> None:
    wanted = random_examples(2, (32, 32, 3), 0)
    data = published.cifar_batch(wanted.images, wanted.labels)[:length]
    with pytest.raises(SecateurError) as caught:
        files.cifar_examples(files.Raw("batch", data))
    assert "batch" in sentence(caught)


@pytest.mark.parametrize(
    "batch",
    [
        {b"data": np.zeros((2, 3071), np.uint8), b"labels": [1, 2]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [b"cat"]},
        {b"data": b"pixels", b"labels": [1]},
        {b"labels": [1]},
        [1, 2],
    ],
)
def test_a_pickle_of_something_else(batch: object) -> None:
    with pytest.raises(SecateurError) as caught:
        files.cifar_examples(files.Raw("batch", published.python2_pickle(batch)))
    assert "batch" in sentence(caught)


def test_archives_that_are_not_whole(tmp_path: Path) -> None:
    whole = published.tar_gz({"folder/a": os.urandom(5000), "folder/b": os.urandom(5000)})
    path = tmp_path / "cifar-10-python.tar.gz"
    for data in (whole[:2000], whole[:6000], whole[:-400], b"not an archive", b""):
        path.write_bytes(data)
        with pytest.raises(SecateurError) as caught:
            files.read_tar(path, ["folder/a", "folder/b"])
        assert str(path) in sentence(caught)
    path.write_bytes(whole)
    with pytest.raises(SecateurError, match=r"holds no folder/c"):
        files.read_tar(path, ["folder/a", "folder/c"])


# --- SVHN -----------------------------------------------------------------------------------------


def test_svhn(tmp_path: Path) -> None:
    wanted = random_examples(12, (32, 32, 3), 0)
    wanted.labels[3] = 0  # written as 10, as published
    (tmp_path / "train_32x32.mat").write_bytes(published.mat(wanted.images, wanted.labels))
    same(files.read_svhn(tmp_path / "train_32x32.mat"), wanted)


def test_svhn_wrong(tmp_path: Path) -> None:
    wanted = random_examples(4, (32, 32, 3), 0)
    whole = published.mat(wanted.images, wanted.labels)
    damaged = [b"", b"<html>", whole[:100], whole[:3000], whole[:-5]]
    other = [published.mat(wanted.images[:, :30], wanted.labels)]
    for data in damaged + other + [published.mat(wanted.images, wanted.labels[:3])]:
        with pytest.raises(SecateurError) as caught:
            files.svhn_examples(files.Raw("train_32x32.mat", data))
        assert "train_32x32.mat" in sentence(caught)


def test_raw_is_what_gzip_says(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"one") + gzip.compress(b"two"))
    assert files.read_file(tmp_path / "a.gz").data == b"onetwo"
