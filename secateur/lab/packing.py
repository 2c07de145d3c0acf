"""Arrays to bytes and back: safetensors, masks as packed bits. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from secateur.core.errors import SecateurError

_MARK = b'"sha256":"'  # unescaped quotes: no name and no note inside the header can look like it
_ZEROS = b"0" * 64


def pack(arrays: Mapping[str, np.ndarray], note: Mapping[str, Any] | None = None) -> bytes:
    """One safetensors file; shapes of packed bool arrays and the note are in its metadata.

    The metadata also holds the SHA-256 of the file itself (computed with 64 zeros in its place), so
    that one file vouches for itself wherever it is copied.

    Raises:
        SecateurError: for an array of a type that safetensors does not keep (text, objects).
    """
    from safetensors.numpy import save

    kept: dict[str, np.ndarray] = {}
    shapes: dict[str, list[int]] = {}
    for name, given in arrays.items():
        array = np.asarray(given)
        if array.dtype.kind in "OUSMmVc" and array.dtype.name != "bfloat16":
            raise SecateurError(
                f"array {name!r} holds {array.dtype}, which the store does not keep: "
                "use numbers or booleans"
            )
        if array.dtype == np.bool_:
            shapes[name] = list(array.shape)
            array = np.packbits(array.reshape(-1))
        kept[name] = np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=None)
    metadata = {
        "sha256": _ZEROS.decode(),
        "bool": json.dumps(shapes),
        "note": json.dumps(dict(note or {})),
    }
    data: bytes = save(kept, metadata)
    place = data.index(_MARK + _ZEROS) + len(_MARK)
    digest = hashlib.sha256(data).hexdigest().encode()
    return data[:place] + digest + data[place + 64 :]


def unpack(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the note.

    Raises:
        ValueError: where the bytes are not exactly those that `pack` made.
    """
    from safetensors.numpy import load

    try:
        size = int.from_bytes(data[:8], "little")
        place = data.index(_MARK, 8, 8 + size) + len(_MARK)
        whole = data[:place] + _ZEROS + data[place + 64 :]
        if hashlib.sha256(whole).hexdigest().encode() != data[place : place + 64]:
            raise ValueError("its checksum does not fit")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        arrays: dict[str, np.ndarray] = load(data)
        for name, shape in json.loads(metadata["bool"]).items():
            count = int(np.prod(shape, dtype=np.int64))
            bits = np.unpackbits(arrays[name], count=count)
            arrays[name] = bits.astype(np.bool_).reshape(shape)
        note: dict[str, Any] = json.loads(metadata["note"])
    except ValueError:
        raise
    except Exception as error:  # whatever a parser says of broken bytes
        raise ValueError(f"it cannot be read ({type(error).__name__})") from error
    return arrays, note
