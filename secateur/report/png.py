"""A PNG writer for 8-bit greyscale and colour, so that the page needs no imaging library."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np


def encode(pixels: np.ndarray) -> bytes:
    """The PNG file of `pixels`: uint8, (height, width) or (height, width, 1 or 3).

    Raises:
        ValueError: for another dtype or shape, or an empty image.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    shape = pixels.shape
    if pixels.dtype != np.uint8 or len(shape) != 3 or shape[2] not in (1, 3) or pixels.size == 0:
        raise ValueError(f"a PNG needs uint8 (h, w[, 1 or 3]), not {pixels.dtype} {shape}")
    height, width, channels = shape
    lines = np.zeros((height, 1 + width * channels), np.uint8)  # each line begins with filter 0
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )


def address(pixels: np.ndarray) -> str:
    """The same as a ``data:`` address, for ``<img src>``."""
    return "data:image/png;base64," + base64.b64encode(encode(pixels)).decode("ascii")
