"""Small folders of real image files, as their publishers lay them out."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = ("n01443537", "n01629819", "n02058221")


def picture(seed: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A smooth picture with some noise, unlike its neighbours."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), int)
    noisy = np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(noisy).convert(mode)


def encoded(image: Image.Image, form: str = "JPEG") -> bytes:
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def ordinary() -> dict[str, bytes]:
    """train/CLASS and val/CLASS with everything that ImageNet has: odd sizes, grey, CMYK, PNG."""
    odd = [(40, 30), (31, 53), (24, 24), (25, 80), (200, 24), (24, 25)]
    files = {}
    for c, name in enumerate(("ant", "bee", "cat")):
        for k, (width, height) in enumerate(odd):
            files[f"train/{name}/{name}_{k}.JPEG"] = encoded(picture(10 * c + k, width, height))
        files[f"val/{name}/{name}.jpg"] = encoded(picture(100 + c, 33, 44))
    files["train/ant/grey.jpeg"] = encoded(picture(200, 30, 40, "L"))
    files["train/bee/cmyk.jpeg"] = encoded(picture(201, 30, 40, "CMYK"))
    files["train/cat/palette.png"] = encoded(picture(202, 30, 40, "P"), "PNG")
    files["train/cat/clear.png"] = encoded(picture(203, 30, 40, "RGBA"), "PNG")
    files["train/cat/._cat_0.JPEG"] = b"left behind by another system"
    files["train/cat/notes.txt"] = b"not an image, and does not say that it is one"
    files["train/Thumbs.db"] = b""
    return files


def tiny(per_class: int = 4, tests: int = 6) -> dict[str, bytes]:
    """Tiny-ImageNet's own layout, with fewer classes and images."""
    files = {"wnids.txt": "\n".join(reversed(WNIDS)).encode()}
    words = ("goldfish, Carassius auratus", "European fire salamander", "albatross, mollymawk")
    files["words.txt"] = "\n".join(f"{w}\t{t}" for w, t in zip(WNIDS, words)).encode()
    for c, wnid in enumerate(WNIDS):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b""
        for k in range(per_class):
            files[f"train/{wnid}/images/{wnid}_{k}.JPEG"] = encoded(picture(10 * c + k, 64, 64))
    lines = []
    for k in range(tests):
        files[f"val/images/val_{k}.JPEG"] = encoded(picture(500 + k, 64, 64))
        lines.append(f"val_{k}.JPEG\t{WNIDS[k % 3]}\t0\t32\t44\t62")
    files["val/val_annotations.txt"] = "\n".join(lines).encode()
    files["test/images/test_0.JPEG"] = encoded(picture(900, 64, 64))
    return files


def packed(files: dict[str, bytes], inside: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir(inside)
        for name, data in files.items():
            archive.writestr(f"{inside}/{name}", data)
    return out.getvalue()
