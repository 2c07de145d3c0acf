"""Films for the page: read from the cells' results, quantised, thinned, deflated.

A number of a film is an integer of 16 or 8 bits and stands as its difference to the frame before:
bytes of slow changes, which deflate well. What that costs is stated with each kind in `KINDS`.
"""

from __future__ import annotations

import base64
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np

LIMIT = 1_500_000  # characters of packed films in a page, which can still be mailed
FEWEST = 8  # frames to which a film is thinned at most

KINDS = {
    "length": "16 bits of the logarithm: to 1 part in 2,000 over ten decades; 0 is 0",
    "direction": "a vector's coordinates over its norm, in steps of 1 / 32,767",
    "cosine": "in steps of 1 / 1,000",
    "gram cosine": "an entry over the root of its two on the diagonal, in steps of 1 / 127",
}
STEPS = {"direction": 32_767, "cosine": 1_000, "gram cosine": 127}


@dataclass(frozen=True)
class Film:
    """A training to be played.

    Attributes:
        place: the words and numbers that tell it from the page's other films.
        seed: of its cell.
        arrays: those of `studies.films.film`, without ``film:{k}:`` before their names.
        classes: names of the labels.
        row: which of the page's runs it belongs to: of ``branch`` and ``level``, what is known.
    """

    place: Mapping[str, Any]
    seed: int
    arrays: Mapping[str, np.ndarray]
    classes: Sequence[str] = ()
    row: Mapping[str, Any] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        return len(self.arrays["steps"])

    def parts(self, kind: str) -> dict[str, np.ndarray]:
        """Arrays by what follows ``kind:`` in their names, in the order of `natural`."""
        head = kind + ":"
        found = {n.removeprefix(head): a for n, a in self.arrays.items() if n.startswith(head)}
        return {name: found[name] for name in sorted(found, key=natural)}

    def grams(self) -> dict[str, dict[str, np.ndarray]]:
        """Layer -> network -> (T, n, n). A layer's name may hold colons, a network's may not."""
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, gram in self.parts("gram").items():
            layer, _, network = name.rpartition(":")
            found.setdefault(layer, {})[network] = gram
        return found


def natural(name: str) -> tuple[bool, list[Any]]:
    """Sorts names whose order the store forgot: numbers by size, the dense network last."""
    parts = re.split(r"(\d+)", name)
    return name.rpartition(":")[2] == "dense", [int(p) if p.isdigit() else p for p in parts]


def read(
    values: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    seed: int,
    cell: Mapping[str, Any] | None = None,
) -> list[Film]:
    """The films of a cell's result; those whose arrays are missing are left out.

    Args:
        cell: its place, which is part of the films' own.
    """
    found = []
    for k, entry in enumerate(values.get("films", ())):
        head = f"film:{k}:"
        own = {n.removeprefix(head): a for n, a in arrays.items() if n.startswith(head)}
        if "steps" not in own:
            continue
        own_place = entry.get("place", {})
        place = {**own_place, **{n: v for n, v in (cell or {}).items() if n not in own_place}}
        row = entry.get("row", {n: place[n] for n in ("branch", "level") if n in place})
        found.append(Film(place, seed, own, tuple(entry.get("classes", ())), dict(row)))
    return found


@dataclass(frozen=True)
class Packed:
    """What the page is given.

    Attributes:
        films: one dict a film, as JSON.
        controls: name and values of each control that tells films apart.
        thinned: (frames shown, frames kept by the study), over all films.
        left_out: films that found no room.
    """

    films: list[dict[str, Any]]
    controls: list[dict[str, Any]]
    thinned: tuple[int, int]
    left_out: int


def pack(films: Sequence[Film], limit: int) -> Packed:
    """All films in at most ``limit`` characters, by seed and then as the study lists them.

    Where they need more, each keeps the same part of its frames, evenly spaced, the first and the
    last among them; where `FEWEST` frames of each are still too much, the last films are left out.
    """
    ordered = sorted(films, key=lambda film: film.seed)
    frames = [film.frames for film in ordered]
    made = [packed(film, np.arange(n)) for film, n in zip(ordered, frames, strict=True)]
    while (size := sum(len(m["packed"]) for m in made)) > limit:
        fewer = [max(min(n, FEWEST), int(0.97 * n * limit / size)) for n in frames]
        if fewer == frames:
            break
        frames = fewer
        made = [packed(film, evenly(film.frames, n)) for film, n in zip(ordered, frames)]
    fit = int(np.sum(np.cumsum([len(m["packed"]) for m in made]) <= limit))
    shown = made[: max(1, fit)]
    thinned = (sum(len(m["steps"]) for m in shown), sum(m["all"] for m in shown))
    return Packed(shown, controls(shown), thinned, len(made) - len(shown))


def evenly(frames: int, kept: int) -> np.ndarray:
    """Which of so many frames are kept: (kept,) rising, the first and the last among them."""
    return np.unique(np.rint(np.linspace(0, frames - 1, kept)).astype(int))


def controls(made: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each name in the films' places that tells apart what those before it do not.

    Its values: numbers rise, words as they come.
    """
    names = dict.fromkeys(name for m in made for name in m["place"] if name != "seed")
    result: list[dict[str, Any]] = []
    groups = 1
    for name in [*names, "seed"]:
        kept = [*(control["name"] for control in result), name]
        apart = len({tuple(m["place"].get(n) for n in kept) for m in made})
        if apart == groups:
            continue
        groups = apart
        values = list(dict.fromkeys(m["place"].get(name) for m in made))
        if all(isinstance(v, int | float) for v in values):
            values.sort()
        result.append({"name": name, "values": values})
    return result


def packed(film: Film, at: np.ndarray) -> dict[str, Any]:
    """One film at the frames ``at``, for the page's JSON."""
    body: list[bytes] = []
    layers = {
        name: _layer(film, name, vectors, at, body)
        for name, vectors in film.parts("vectors").items()
    }
    grams = {name: _grams(networks, at, body) for name, networks in film.grams().items()}
    labels = film.arrays.get("labels")
    return {
        "place": {**film.place, "seed": film.seed},
        "row": {**film.row, "seed": film.seed},
        "classes": list(film.classes),
        "labels": None if labels is None else labels.tolist(),
        "steps": film.arrays["steps"][at].tolist(),
        "all": film.frames,
        "losses": {name: digits(loss[at]) for name, loss in film.parts("loss").items()},
        "layers": layers,
        "grams": grams,
        "packed": base64.b64encode(zlib.compress(b"".join(body), 9)).decode("ascii"),
    }


def _layer(
    film: Film, name: str, vectors: np.ndarray, at: np.ndarray, body: list[bytes]
) -> dict[str, Any]:
    v = vectors.astype(np.float64)
    norms = film.parts("norms").get(name)
    exact = norms is None
    length = np.linalg.norm(v, axis=-1) if norms is None else norms.astype(np.float64)
    over = np.where(length > 0, length, 1)
    angles = film.parts("cosines").get(name)
    if angles is None:
        u = v / over[..., None]
        x = np.clip(u @ u.swapaxes(1, 2), -1, 1)
    else:
        x = angles.astype(np.float64)
    blocks = {
        "norms": block("length", length[at], body),
        "directions": block("direction", (v / over[..., None])[at], body),
    }
    if not exact:
        blocks["cosines"] = block("cosine", triangle(x)[at], body)
    signs, patterns = film.parts("sign").get(name), film.parts("patterns").get(name)
    total = float(np.sum(length**2))
    return {
        "units": v.shape[1],
        "coordinates": v.shape[2],
        "exact": exact,
        "held": digits(np.sum(v**2, axis=(0, 1)) / total) if total else None,
        "scale": {definition: scale(x, definition) for definition in ("code", "text")},
        "signs": None if signs is None else signs.tolist(),
        "patterns": None if patterns is None else digits(patterns),
        "blocks": blocks,
    }


def scale(cosines: np.ndarray, definition: str) -> float:
    """s of the alignment graph: the mean of d over frames and pairs, the diagonal's 0 included.

    As `features.graphs.alignment_graph` takes it from the weights themselves; 0.5 where all units
    point the same way and s means nothing.
    """
    d = (1 - cosines) / 2 if definition == "code" else np.sqrt(1 - cosines)
    n = d.shape[-1]
    found = float(np.sum(d * (1 - np.eye(n))) / d.size)
    return float(f"{found:.6g}") if found > 0 else 0.5


def _grams(networks: Mapping[str, np.ndarray], at: np.ndarray, body: list[bytes]) -> dict[str, Any]:
    kept = {name: gram[at].astype(np.float64) for name, gram in networks.items()}
    blocks = {}
    for name, gram in kept.items():
        size = np.sqrt(np.clip(np.diagonal(gram, axis1=1, axis2=2), 0, None))
        over = np.where(size > 0, size, 1)
        cosine = np.clip(gram / (over[:, :, None] * over[:, None, :]), -1, 1)
        blocks[name] = {
            "norms": block("length", size, body),
            "cosines": block("gram cosine", triangle(cosine), body),
        }
    return {
        "examples": next(iter(kept.values())).shape[1],
        "blocks": blocks,
        "distances": [
            {"of": a, "to": b, **distances(kept[a], kept[b])} for a, b in permutations(kept, 2)
        ],
    }


def distances(first: np.ndarray, second: np.ndarray) -> dict[str, list[float | None]]:
    """|G - G'| / |G'| and <G, G'> / (|G| |G'|) at each frame; None where a G is 0."""
    norm = lambda g: np.sqrt(np.sum(g**2, axis=(1, 2)))
    a, b, inner = norm(first), norm(second), np.sum(first * second, axis=(1, 2))
    apart = norm(first - second)
    part = lambda x, y: [float(f"{p / q:.5g}") if q else None for p, q in zip(x, y)]
    return {"relative": part(apart, b), "alignment": part(inner, a * b)}


def triangle(symmetric: np.ndarray) -> np.ndarray:
    """(T, n, n) -> (T, n (n - 1) / 2): above the diagonal, row by row."""
    i, j = np.triu_indices(symmetric.shape[-1], k=1)
    return symmetric[:, i, j]


def block(kind: str, values: np.ndarray, body: list[bytes]) -> dict[str, Any]:
    """Appends the bytes of ``values`` (T, ...) to ``body``; what is needed to read them.

    Differences between frames, modulo the bits: of 16 first all low bytes, then all high ones.
    """
    told: dict[str, Any] = {"kind": kind, "shape": list(values.shape)}
    if kind == "length":
        positive = values[values > 0]
        low = float(positive.min()) if positive.size else 1.0
        span = math.log(float(positive.max()) / low) if positive.size else 0.0
        where = np.log(np.where(values > 0, values, low) / low) / (span or 1)
        whole = np.where(values > 0, 1 + np.rint(65_534 * np.clip(where, 0, 1)), 0)
        told |= {"low": low, "span": span}
    else:
        whole = np.rint(np.clip(values, -1, 1) * STEPS[kind])
    q = whole.astype(np.int64).reshape(len(values), -1)
    change = np.diff(q, axis=0, prepend=np.zeros((1, q.shape[1]), np.int64))
    if kind == "gram cosine":
        body.append((change & 255).astype(np.uint8).tobytes())
    else:
        body += [((change >> shift) & 255).astype(np.uint8).tobytes() for shift in (0, 8)]
    return told


def digits(values: np.ndarray) -> Any:
    """Nested lists of numbers with five significant digits."""
    if values.ndim:
        return [digits(part) for part in values]
    return float(f"{float(values):.5g}")
