"""A cell is the smallest result worth keeping; its address says exactly what was asked.

Source: the issue list of Hydra (hydra#3328) names the contract that sweeps without it lack.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from secateur.core.errors import SecateurError

if TYPE_CHECKING:
    import numpy as np

JSON: TypeAlias = bool | int | float | str | list[Any] | dict[str, Any] | None


@dataclass(frozen=True, eq=False)
class Cell:
    """What one result depends on.

    Attributes:
        study: the study's name; a word of letters, digits, `_` and `-`.
        meaning: raised by hand when the study's results change meaning.
        fields: the resolved fields of the study that this cell depends on.
        seed: the replicate.
        place: where it stands inside the study, e.g. ``{"branch": "rewind", "level": 3}``.
        data: SHA-256 of the data it reads.
        needs: role -> earlier cell. Needs follow from the rest, so they are not in the address.
        cost: expected work in training steps, for the estimate of time left; not in the address.
    """

    study: str
    meaning: int
    fields: Mapping[str, Any]
    seed: int
    place: Mapping[str, Any]
    data: str
    needs: Mapping[str, Cell] = field(default_factory=dict)
    cost: float = 1.0

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the address is made of, as plain JSON."""
        return {
            "study": self.study,
            "meaning": self.meaning,
            "fields": self.fields,
            "seed": self.seed,
            "place": self.place,
            "data": self.data,
        }

    @cached_property
    def address(self) -> str:
        """SHA-256 (64 hex digits) of the canonical JSON of `identity`."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", self.study):
            raise SecateurError(
                f"a study's name is one word of letters, digits, '_' and '-', not {self.study!r}"
            )
        return hashlib.sha256(canonical(self.identity).encode()).hexdigest()

    @cached_property
    def label(self) -> str:
        """How the cell is called in messages: ``rewind level 3, seed 0``."""
        place = " ".join(_spoken(name, value) for name, value in self.place.items())
        return f"{place}, seed {self.seed}" if place else f"seed {self.seed}"

    @cached_property
    def slug(self) -> str:
        """The name of the cell's folder: readable, then the first 16 digits of the address."""
        words = re.sub(r"[^A-Za-z0-9.]+", "-", canonical_label(self)).strip("-.")[:80]
        return f"{words}-{self.address[:16]}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cell) and other.address == self.address

    def __hash__(self) -> int:
        return hash(self.address)


@dataclass(frozen=True)
class Result:
    """What a cell came to.

    Attributes:
        values: numbers, words, lists of them, nested dicts; all finite.
        arrays: name -> array; bool arrays are stored as packed bits and come back as bool.
        checks: the trust card, name -> whether it held; one False fails the cell.
    """

    values: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)


# A work function is given a cell and the results of its needs by role. It yields the trainings that
# it wants done, is sent what came out of each, and returns a Result.
Work: TypeAlias = Callable[[Cell, Mapping[str, Result]], Generator[Any, Any, Result]]


def rows_of(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that a cell stands for: its values, or one for each of the list ``"rows"`` in them.

    A cell that computes many small things at once (lanes of a toy) lists what differs between them
    there; the values beside the list are of all of them.
    """
    if "rows" not in values:
        return [dict(values)]
    shared = {name: value for name, value in values.items() if name != "rows"}
    return [{**shared, **row} for row in values["rows"]]


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces; floats by repr, so that 0.1 stays 0.1.

    Raises:
        SecateurError: for NaN, infinity, keys that are not text, and types that JSON lacks.
    """
    return json.dumps(_plain(value, "$"), sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical_label(cell: Cell) -> str:
    """The label with the place's names sorted, so that a folder's name ignores the dict's order."""
    place = sorted(cell.place.items())
    # Words first: `rewind level 3` reads better than `level 3 rewind`, whatever the names are.
    words = [_spoken(n, v) for n, v in place if isinstance(v, str)]
    numbers = [_spoken(n, v) for n, v in place if not isinstance(v, str)]
    return " ".join([*words, *numbers, f"seed {cell.seed}"])


def closure(cells: Iterable[Cell]) -> list[Cell]:
    """The cells and all they need, each once, every cell after its needs.

    Raises:
        SecateurError: where cells need each other in a circle.
    """
    order: dict[str, Cell] = {}
    open_: set[str] = set()
    for first in cells:
        # A stack of our own: a chain of levels may be longer than Python's recursion limit.
        stack = [(first, iter(first.needs.values()))]
        if first.address in order:
            continue
        open_.add(first.address)
        while stack:
            cell, needs = stack[-1]
            for need in needs:
                if need.address in open_:
                    raise SecateurError(
                        f"the cells of {cell.study} need each other in a circle: "
                        f"{cell.label!r} needs {need.label!r}, which needs it in turn"
                    )
                if need.address not in order:
                    open_.add(need.address)
                    stack.append((need, iter(need.needs.values())))
                    break
            else:
                stack.pop()
                open_.discard(cell.address)
                order[cell.address] = cell
    return list(order.values())


def not_finite(values: object, where: str = "") -> str | None:
    """The dotted path of the first NaN or infinity in `values`, or None."""
    if isinstance(values, float) and not math.isfinite(values):
        return where
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(values, Mapping):
        pairs = values.items()
    elif isinstance(values, list | tuple):
        pairs = enumerate(values)
    for name, value in pairs:
        if found := not_finite(value, f"{where}.{name}" if where else str(name)):
            return found
    return None


def plain(value: Any) -> Any:
    """`value` with numpy's scalars and arrays turned into Python's numbers and lists."""
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays, jax arrays
        return value.tolist()
    return value


def _spoken(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"no {name}"
    if isinstance(value, str):
        return value
    return f"{name} {value}"


def _plain(value: object, where: str) -> JSON:
    """`value` as JSON's own types, or an error that says where it is not."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise SecateurError(f"a cell is described by finite numbers, but {where} is {value}")
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(part, f"{where}[{i}]") for i, part in enumerate(value)]
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise SecateurError(f"the names in {where} must be text, not {name!r}")
        return {name: _plain(part, f"{where}.{name}") for name, part in value.items()}
    raise SecateurError(
        f"a cell is described by plain JSON, but {where} is a {type(value).__name__}: "
        "use numbers, text, lists and dicts"
    )
