"""Folders of images: what is stored of an image, what is refused, and that a kill costs little."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")

import pictures
from pictures import encoded, ordinary, picture, tiny, write
from PIL import Image

from secateur.core.errors import SecateurError
from secateur.data import DATASETS, decode, load, read_folder, registry, split
from secateur.data.stored import Stored


def torchvision(data: bytes, size: int, shorter: int) -> np.ndarray:
    """Resize(shorter), CenterCrop(size) of ``ImageFolder``'s ``convert("RGB")``, as they say it."""
    import io

    image = Image.open(io.BytesIO(data)).convert("RGB")
    w, h = image.size
    if min(w, h) != shorter:
        new = (shorter, int(shorter * h / w)) if w <= h else (int(shorter * w / h), shorter)
        image = image.resize(new, Image.Resampling.BILINEAR)
    w, h = image.size
    top, left = round((h - size) / 2.0), round((w - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(("size", "shorter"), [(24, 24), (16, 20), (28, 40)])
def test_images_are_stored_as_the_published_pipelines_see_them(
    tmp_path: Path, size: int, shorter: int
) -> None:
    """Every image, in the order of classes and names, whatever mode and shape it has."""
    files = ordinary()
    data = read_folder(write(tmp_path / "mine", files), size, shorter, cache=tmp_path / "cache")
    assert data.classes == ("ant", "bee", "cat")
    for part, examples in (("train", data.train), ("val", data.test)):
        names = sorted(
            (name for name in files if name.startswith(f"{part}/") and "/." not in name),
            key=lambda name: (name.split("/")[1], name),
        )
        names = [n for n in names if n.lower().endswith((".jpeg", ".jpg", ".png"))]
        assert len(examples) == len(names) == {"train": 22, "val": 3}[part]
        expected = np.stack([torchvision(files[name], size, shorter) for name in names])
        np.testing.assert_array_equal(np.asarray(examples.images), expected)
        assert [data.classes[k] for k in examples.labels] == [n.split("/")[1] for n in names]
    pixels = np.asarray(data.train.images) / 255
    np.testing.assert_allclose(data.mean, pixels.mean((0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(data.std, pixels.std((0, 1, 2)), atol=1e-12)
    assert data.name == "mine"


def test_stored_images_are_read_as_an_array_is(tmp_path: Path) -> None:
    data = read_folder(write(tmp_path / "mine", ordinary()), 16, cache=tmp_path / "cache")
    stored, whole = data.train.images, np.asarray(data.train.images)
    assert isinstance(stored, Stored)
    rows = np.array([[5, 2, 2], [0, 21, 3]])
    for index in (3, slice(2, 20, 3), rows, rows[0], np.array([], int), whole[:, 0, 0, 0] > 99):
        np.testing.assert_array_equal(stored[index], whole[index])
    view = data.train.take(rows[1])
    assert isinstance(view.images, Stored)
    np.testing.assert_array_equal(view.images[1:], whole[rows[1]][1:])
    assert view.images.shape == (3, 16, 16, 3)
    assert view.images.nbytes == whole[:3].nbytes
    sent = pickle.dumps(view)
    assert len(sent) < 1500, "the path is sent and not the pixels"
    np.testing.assert_array_equal(pickle.loads(sent).images[:], whole[rows[1]])
    stored[0][:] = 0  # a copy
    np.testing.assert_array_equal(np.asarray(stored), whole)


def test_a_validation_set_is_cut_without_reading_a_pixel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_folder(write(tmp_path / "mine", ordinary()), 16, cache=tmp_path / "cache")
    monkeypatch.setattr(Stored, "__getitem__", lambda *_: pytest.fail("read"))
    sets = split(data, validation=6)
    monkeypatch.undo()
    assert (len(sets.train), len(sets.validation), len(sets.test)) == (16, 6, 3)
    both = np.concatenate([sets.train.images[:], sets.validation.images[:]])
    assert sorted(map(bytes, both)) == sorted(map(bytes, np.asarray(data.train.images)))


def test_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = write(tmp_path / "mine", ordinary()), tmp_path / "cache"
    first = read_folder(root, 16, cache=cache)
    monkeypatch.setattr(decode, "pixels", lambda *_: pytest.fail("decoded again"))
    again = read_folder(root, 16, cache=cache)
    assert again.sha256 == first.sha256
    np.testing.assert_array_equal(again.train.images[:], first.train.images[:])
    monkeypatch.undo()
    assert read_folder(root, 16, 20, cache=cache).sha256 != first.sha256
    copy = write(tmp_path / "elsewhere" / "copy", ordinary())
    assert read_folder(copy, 16, cache=tmp_path / "other").sha256 == first.sha256


def test_another_pixel_another_hash(tmp_path: Path) -> None:
    files = ordinary()
    one = read_folder(write(tmp_path / "1", files), 16, cache=tmp_path / "c1")
    files["val/bee/bee.jpg"] = encoded(picture(7, 33, 44))
    two = read_folder(write(tmp_path / "2", files), 16, cache=tmp_path / "c2")
    assert one.sha256 != two.sha256


def test_a_file_replaced_after_decoding_is_noticed(tmp_path: Path) -> None:
    root = write(tmp_path / "mine", ordinary())
    read_folder(root, 16, cache=tmp_path / "cache")
    (root / "train/ant/ant_0.JPEG").write_bytes(encoded(picture(7, 41, 30)))
    with pytest.raises(SecateurError, match=r"changed since they were decoded: delete .*cache"):
        read_folder(root, 16, cache=tmp_path / "cache")


def test_a_cache_cut_short_is_noticed(tmp_path: Path) -> None:
    root = write(tmp_path / "mine", ordinary())
    stored = read_folder(root, 16, cache=tmp_path / "cache").train.images
    assert isinstance(stored, Stored)
    os.truncate(stored.path, 1000)
    with pytest.raises(SecateurError, match=r"delete .* to decode them again"):
        read_folder(root, 16, cache=tmp_path / "cache")


# --- damage ---------------------------------------------------------------------------------------


def damage(files: dict[str, bytes]) -> dict[str, bytes]:
    files["train/bee/bee_3.JPEG"] = files["train/bee/bee_3.JPEG"][:-200]  # ends early
    files["train/cat/cat_1.JPEG"] = b"<html>404 Not Found</html>"
    files["val/ant/ant.jpg"] = b""
    return files


def test_damaged_images_are_named_in_one_sentence(tmp_path: Path) -> None:
    root = write(tmp_path / "mine", damage(ordinary()))
    for _ in range(2):  # the same from the journal
        with pytest.raises(SecateurError) as caught:
            read_folder(root, 16, cache=tmp_path / "cache")
        text = str(caught.value)
        assert "\n" not in text
        assert "3 of the 25 images" in text
        assert "train/bee/bee_3.JPEG (image file is truncated" in text
        assert "train/cat/cat_1.JPEG (cannot identify image file)" in text
        assert "val/ant/ant.jpg" in text
        assert "damaged='leave-out'" in text


def test_damaged_images_can_be_left_out(tmp_path: Path) -> None:
    root = write(tmp_path / "mine", damage(ordinary()))
    data = read_folder(root, 16, damaged="leave-out", cache=tmp_path / "cache")
    assert (len(data.train), len(data.test)) == (20, 2)
    assert data.test.labels.tolist() == [1, 2]
    kept = np.asarray(data.train.images) / 255
    np.testing.assert_allclose(data.mean, kept.mean((0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(data.std, kept.std((0, 1, 2)), atol=1e-12)
    whole = read_folder(write(tmp_path / "whole", ordinary()), 16, cache=tmp_path / "cache2")
    assert data.sha256 != whole.sha256
    with pytest.raises(SecateurError, match="3 of the 25 images"):
        read_folder(root, 16, cache=tmp_path / "cache")


def test_mended_images_cost_their_part_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "PART", 4 * 16 * 16 * 3)  # four images a part
    files = ordinary()
    root = write(tmp_path / "mine", damage(dict(files)))
    with pytest.raises(SecateurError, match="cannot be read"):
        read_folder(root, 16, cache=tmp_path / "cache")
    write(root, {name: files[name] for name in files if "bee_3" in name or "cat_1" in name})
    write(root, {"val/ant/ant.jpg": files["val/ant/ant.jpg"]})
    asked: list[str] = []
    real = decode._decode
    monkeypatch.setattr(decode, "_decode", lambda s, f, r: asked.append(f) or real(s, f, r))
    data = read_folder(root, 16, cache=tmp_path / "cache")
    assert len(asked) == 4 + 4 + 3, "the parts of the three images"
    whole = read_folder(write(tmp_path / "whole", ordinary()), 16, cache=tmp_path / "cache2")
    assert data.sha256 == whole.sha256


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"train/a/x.png": b""}, "has no images in test/"),
        ({"val/a/x.png": b""}, "has no images in train/"),
        ({"train/x.png": b"", "val/a/x.png": b""}, "no class folders"),
        ({"train/a/x.png": b"", "val/x.png": b""}, r"sort them into val/CLASS/"),
        ({"train/a/x.png": b"", "val/b/x.png": b""}, "a class b that train/ has not"),
        (
            {"train/a/x.png": b"", "val/val_annotations.txt": b"", "val/images/x.png": b""},
            "no line",
        ),
    ],
)
def test_another_layout_is_one_sentence(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    with pytest.raises(SecateurError, match=said) as caught:
        read_folder(write(tmp_path / "mine", files), 16, cache=tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_bad_arguments_are_one_sentence(tmp_path: Path) -> None:
    root = write(tmp_path / "mine", ordinary())
    with pytest.raises(SecateurError, match="1 <= size <= shorter"):
        read_folder(root, 32, 16)
    with pytest.raises(SecateurError, match="damaged is 'keep'"):
        read_folder(root, 16, damaged="keep")
    with pytest.raises(SecateurError, match="is not a folder"):
        read_folder(tmp_path / "nowhere", 16)


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    root = write(tmp_path / "mine", ordinary())
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(SecateurError, match=r"need 0\.0 GB in .*name another directory"):
        read_folder(root, 16, cache=tmp_path / "cache")


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "mine", ordinary())
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(SecateurError, match=r"pip install 'secateur\[images\]'"):
        read_folder(root, 16, cache=tmp_path / "cache")


# --- kills, and several processes -----------------------------------------------------------------

SLOW = textwrap.dedent(
    """
    import sys, time
    from secateur.data import decode, read_folder
    decode.PART = 2 * 16 * 16 * 3  # two images a part
    real = decode.pixels
    def slow(data, rule):
        time.sleep(float(sys.argv[3]))
        print("decoded", flush=True)
        return real(data, rule)
    decode.pixels = slow
    print("ready", flush=True)
    print(read_folder(sys.argv[1], 16, cache=sys.argv[2]).sha256)
    """
)


def decoding(root: Path, cache: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(root), str(cache), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_at_many_moments_it_goes_on_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache = write(tmp_path / "mine", ordinary()), tmp_path / "cache"
    expected = read_folder(root, 16, cache=tmp_path / "whole").train
    asked = 0
    for after in (3, 9, 8):
        process = decoding(root, cache, 0.01)
        assert process.stdout is not None
        for _ in range(1 + after):
            asked += process.stdout.readline() == "decoded\n"
        os.kill(process.pid, signal.SIGKILL)
        rest, _ = process.communicate(timeout=60)
        asked += rest.count("decoded")
        assert not list(cache.rglob("cache.json"))
    [journal] = cache.rglob("journal.jsonl")
    with journal.open("a") as file:
        file.write('{"part": 3, "pix')  # as a kill in the middle of a line leaves it
    monkeypatch.setattr(decode, "PART", 2 * 16 * 16 * 3)
    last: list[str] = []
    real = decode._decode
    monkeypatch.setattr(decode, "_decode", lambda s, f, r: last.append(f) or real(s, f, r))
    found = read_folder(root, 16, cache=cache).train
    np.testing.assert_array_equal(found.images[:], expected.images[:])
    assert 0 < len(last) < 25, "what was done before the kills is not done again"
    # A kill loses the part being written and the one decoded ahead of it.
    assert asked + len(last) <= 25 + 3 * 2 * 2 + 3 * 2


def test_pixels_that_are_not_what_the_journal_says_are_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "PART", 4 * 16 * 16 * 3)
    root, cache = write(tmp_path / "mine", ordinary()), tmp_path / "cache"
    whole = read_folder(root, 16, cache=cache)
    assert isinstance(whole.train.images, Stored)
    [summary] = cache.rglob("cache.json")
    summary.unlink()  # as if killed just before the end
    with whole.train.images.path.open("r+b") as file:
        file.seek(5 * 16 * 16 * 3)
        file.write(b"\0\1\2\3")
    last: list[str] = []
    real = decode._decode
    monkeypatch.setattr(decode, "_decode", lambda s, f, r: last.append(f) or real(s, f, r))
    again = read_folder(root, 16, cache=cache)
    assert len(last) == 4, "the part that holds image 5"
    assert again.sha256 == whole.sha256
    assert json.loads(summary.read_text())["pillow"]


def test_two_processes_decode_once(tmp_path: Path) -> None:
    root, cache = write(tmp_path / "mine", ordinary()), tmp_path / "cache"
    one, two = decoding(root, cache, 0.02), decoding(root, cache, 0.02)
    (out1, err1), (out2, err2) = (p.communicate(timeout=120) for p in (one, two))
    assert one.returncode == two.returncode == 0, err1 + err2
    assert out1.splitlines()[-1] == out2.splitlines()[-1]
    assert (out1 + out2).count("decoded") == 25, "each image by one of them alone"


def test_progress_is_told_and_no_thread_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = threading.active_count()
    read_folder(write(tmp_path / "mine", ordinary()), 16, cache=tmp_path / "cache")
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
    said = capsys.readouterr().err
    assert "Decoding mine: 0 of 25 images" in said
    assert "25 of 25 images" in said


# --- by name --------------------------------------------------------------------------------------


@pytest.fixture
def small_tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Tiny-ImageNet's row for three classes, its archive and all."""
    files = tiny()
    entry = DATASETS["tiny-imagenet"]
    import published

    archive = pictures.packed(files, "tiny-imagenet-200")
    offered = dataclasses.replace(
        entry.downloads[0],
        bytes=len(archive),
        sha256=published.sha256(archive),
        mirrors=("http://127.0.0.1:9/",),
    )
    assert entry.images is not None
    monkeypatch.setitem(
        DATASETS,
        "tiny-imagenet",
        dataclasses.replace(
            entry,
            classes=("0", "1", "2"),
            images=dataclasses.replace(entry.images, train=12, test=6),
            downloads=(offered,),
        ),
    )
    return files | {"archive": archive}


@pytest.mark.parametrize("form", ["unpacked", "in its folder", "renamed", "archive"])
def test_tiny_imagenet(small_tiny: dict[str, bytes], tmp_path: Path, form: str) -> None:
    """Wherever it lies: the same images, the labels of val_annotations.txt, names of words.txt."""
    archive = small_tiny.pop("archive")
    where = {
        "unpacked": tmp_path / "data/tiny-imagenet-200",
        "in its folder": tmp_path / "data/tiny-imagenet/tiny-imagenet-200",
        "renamed": tmp_path / "data/tiny-imagenet",
    }.get(form)
    if where is None:
        write(tmp_path / "data", {"tiny-imagenet/tiny-imagenet-200.zip": archive})
    else:
        write(where, small_tiny)
    data = load("tiny-imagenet", str(tmp_path / "data"), download=False)
    assert data.classes == ("goldfish", "European fire salamander", "albatross")
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    tested = [small_tiny[f"val/images/val_{k}.JPEG"] for k in (0, 3, 1, 4, 2, 5)]  # by class
    expected = np.stack([torchvision(one, 64, 64) for one in tested])
    np.testing.assert_array_equal(np.asarray(data.test.images), expected)
    one = torchvision(small_tiny["train/n01629819/images/n01629819_2.JPEG"], 64, 64)
    np.testing.assert_array_equal(data.train.images[6], one)
    pixels = np.asarray(data.train.images) / 255
    np.testing.assert_allclose(data.mean, pixels.mean((0, 1, 2)), atol=1e-12)
    cached = tmp_path / "data" / "decoded"
    assert list(cached.glob("tiny-imagenet-64-*/cache.json")), "beside the data that were named"
    grasp = load("tiny-imagenet", str(tmp_path / "data"), normalisation="grasp")
    assert grasp.mean == (0.48025, 0.44807, 0.39755)
    assert grasp.sha256 == data.sha256


def test_tiny_imagenet_in_the_environment_is_decoded_into_the_cache(
    small_tiny: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tiny.pop("archive")
    write(tmp_path / "shared/tiny-imagenet-200", small_tiny)
    monkeypatch.setenv("SECATEUR_DATA", str(tmp_path / "shared"))
    load("tiny-imagenet", download=False)
    assert not (tmp_path / "shared/decoded").exists()
    assert list((registry.cache() / "decoded").glob("tiny-imagenet-64-*/cache.json"))


def test_too_few_images_are_not_tiny_imagenet(small_tiny: dict[str, bytes], tmp_path: Path) -> None:
    small_tiny.pop("archive")
    del small_tiny["train/n01629819/images/n01629819_2.JPEG"]
    write(tmp_path / "tiny-imagenet-200", small_tiny)
    with pytest.raises(SecateurError, match="holds 11 training and 6 test images of 3 classes"):
        load("tiny-imagenet", str(tmp_path))


def test_another_archive_is_refused(small_tiny: dict[str, bytes], tmp_path: Path) -> None:
    write(tmp_path, {"tiny-imagenet-200.zip": small_tiny["archive"] + b"x"})
    with pytest.raises(SecateurError, match="is not the publisher's archive"):
        load("tiny-imagenet", str(tmp_path))


def test_what_lies_in_train_of_any_directory_is_not_tiny_imagenet(tmp_path: Path) -> None:
    write(tmp_path, ordinary())
    assert registry.find(DATASETS["tiny-imagenet"], str(tmp_path)) is None


def test_imagenet_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(SecateurError) as caught:
        load("imagenet", str(tmp_path))
    text = str(caught.value)
    assert "\n" not in text
    assert "imagenet/train/CLASS/*.JPEG" in text
    assert "image-net.org" in text
    assert "--data-dir or SECATEUR_DATA" in text


def test_imagenet_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = DATASETS["imagenet"]
    assert entry.images is not None
    few = dataclasses.replace(entry.images, rule=decode.Rule(32, 32), train=22, test=3)
    monkeypatch.setitem(
        DATASETS, "imagenet", dataclasses.replace(entry, images=few, classes=("0", "1", "2"))
    )
    write(tmp_path / "imagenet", ordinary())
    data = load("imagenet", str(tmp_path))
    assert data.mean == (0.485, 0.456, 0.406)
    assert data.train.images.shape == (22, 32, 32, 3)
