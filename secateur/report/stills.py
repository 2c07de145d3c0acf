"""Stills of a film, for readers without script: first and last frame as PNG, and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secateur.report import numbers, png
from secateur.report.films import Film

SIDE = 220  # pixels
BLUE, ORANGE, GREY = (11, 107, 176), (204, 79, 8), (206, 211, 216)
LINES = 40  # of the table


def pictures(film: Film) -> list[list[dict[str, str]]]:
    """At the first frame and at the last: vectors of the first layer, Grams of the first layer."""
    both = []
    steps = film.arrays["steps"]
    for t in (0, film.frames - 1):
        found = []
        when = f"step {int(steps[t]):,}"
        for name, v in list(film.parts("vectors").items())[:1]:
            drawn = plane(v[t, :, :2], film.parts("sign").get(name))
            words = f"Weight vectors of {name}, first two coordinates, {when}; longest to the edge"
            found.append({"source": png.address(drawn), "words": words})
        for layer, networks in list(film.grams().items())[:1]:
            for network, gram in networks.items():
                words = f"Gram matrix of {layer}, {network}, {when}"
                found.append({"source": png.address(matrix(gram[t])), "words": words})
        both.append(found)
    return both


def table(films: Sequence[Film]) -> list[dict[str, Any]]:
    """What each film shows, and its losses at the first frame and at the last."""
    lines = []
    for film in films[:LINES]:
        steps = film.arrays["steps"]
        lines.append(
            {
                "place": words(film.place, film.seed),
                "frames": film.frames,
                "steps": f"{int(steps[0]):,} to {int(steps[-1]):,}",
                "losses": "; ".join(
                    f"{name} {numbers.plain(float(loss[0]))} to {numbers.plain(float(loss[-1]))}"
                    for name, loss in film.parts("loss").items()
                ),
            }
        )
    return lines


def words(place: Mapping[str, Any], seed: int) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {v}" for name, v in [*place.items(), ("seed", seed)]
    )


def plane(vectors: np.ndarray, signs: np.ndarray | None, side: int = SIDE) -> np.ndarray:
    """Lines from the middle to each vector (units, 2), the longest to the edge, as a picture.

    uint8 (side, side, 3). Blue for units of sign 1 and without sign, orange for those of -1.
    """
    picture = np.full((side, side, 3), 255, np.uint8)
    middle = (side - 1) / 2
    picture[round(middle), :] = picture[:, round(middle)] = GREY
    longest = float(np.linalg.norm(vectors, axis=1).max())
    along = np.linspace(0, 1, side)[:, None]
    for unit, vector in enumerate(vectors.astype(np.float64)):
        tip = vector / (longest or 1) * (middle - 3)
        points = np.rint(middle + along * [tip[0], -tip[1]]).astype(int)
        colour = ORANGE if signs is not None and signs[unit] < 0 else BLUE
        picture[points[:, 1], points[:, 0]] = colour
        column, line = points[-1]
        picture[max(0, line - 2) : line + 3, max(0, column - 2) : column + 3] = colour
    return picture


def matrix(gram: np.ndarray, side: int = SIDE) -> np.ndarray:
    """A Gram matrix as grey uint8 pixels: 0 is white, the entry largest in size black."""
    g = np.abs(gram.astype(np.float64))
    top = float(g.max())
    ink = np.rint(255 * (1 - g / (top or 1))).astype(np.uint8)
    each = max(1, side // len(ink))
    return np.repeat(np.repeat(ink, each, 0), each, 1)
