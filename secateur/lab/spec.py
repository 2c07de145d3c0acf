"""``--set field=value`` and ``--grid field=a,b,c``: text into a study's fields, checked by type."""

from __future__ import annotations

import itertools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from secateur.core.errors import SecateurError, lookup, nearest

S = TypeVar("S", bound=msgspec.Struct)
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
_NOTHING = ("none", "null")


def variants(base: S, sets: Sequence[str] = (), grids: Sequence[str] = ()) -> list[S]:
    """The fields that a command line asks for: one for every combination of its grids.

    Args:
        base: the preset.
        sets: ``["steps=400", "rate=1e-3"]``.
        grids: ``["steps=400,800"]``; for a field that is itself a list, ``;`` stands between.

    Raises:
        SecateurError: unknown field, wrong type, value out of bounds, a field given twice.
    """
    _once([*sets, *grids])
    fixed = with_fields(base, sets)
    axes = [[f"{name}={value}" for value in values] for name, values in map(_axis(base), grids)]
    return [with_fields(fixed, combination) for combination in itertools.product(*axes)]


def with_fields(base: S, sets: Sequence[str]) -> S:
    """`base` with fields replaced by ``field=value`` texts; see `variants`."""
    told = msgspec.to_builtins(base)
    for text in sets:
        name, value = _split(text)
        place, kind = told, _kind(type(base), name)
        *path, leaf = name.split(".")
        for step in path:
            place = place[step]
        place[leaf] = _value(name, value, kind)
    try:
        return msgspec.convert(told, type(base))
    except msgspec.ValidationError as error:
        raise SecateurError(_in_words(str(error), told)) from None


def values_of(what: str, kinds: Mapping[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """``name=value`` texts as values of the types in ``kinds``: ``{"draws": 5}``.

    Args:
        what: has these names, e.g. ``"option of snip"``; begins an error's sentence.

    Raises:
        SecateurError: unknown name, wrong type, a name given twice.
    """
    _once(sets)
    found = {}
    for text in sets:
        name, value = _split(text)
        found[name] = _value(name, value, lookup(what, name, kinds))
    return found


def _axis(base: msgspec.Struct) -> Any:
    def axis(text: str) -> tuple[str, list[str]]:
        name, values = _split(text)
        between = ";" if _is_list(_kind(type(base), name)) else ","
        parts = [part.strip() for part in values.split(between)]
        if not all(parts):
            raise SecateurError(f"--grid {text}: a value is missing; give {name}=a{between}b")
        return name, parts

    return axis


def _once(texts: Sequence[str]) -> None:
    seen: set[str] = set()
    for text in texts:
        name = _split(text)[0]
        if name in seen:
            raise SecateurError(f"field {name!r} is given twice: give it once")
        seen.add(name)


def _split(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise SecateurError(f"expected field=value, not {text!r}")
    return name.strip(), value.strip()


def _kind(struct: type[msgspec.Struct], name: str) -> Any:
    """The declared type of a (dotted) field, without its constraints."""
    kind: Any = struct
    for part in name.split("."):
        names = list(kind.__struct_fields__) if hasattr(kind, "__struct_fields__") else []
        if part not in names:
            hint = nearest(part, names) if names else f"{name.rpartition('.')[0]!r} has no parts."
            raise SecateurError(f"there is no field {name!r}. {hint}")
        kind = _bare(typing.get_type_hints(kind)[part])
    return kind


def _bare(kind: Any) -> Any:
    while typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    return kind


def _is_list(kind: Any) -> bool:
    options = typing.get_args(kind) if _is_union(kind) else (kind,)
    return any((typing.get_origin(k) or k) in (list, tuple) for k in map(_bare, options))


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _value(name: str, text: str, kind: Any) -> Any:
    """Text as a value of a type; the error says what was expected."""
    kind = _bare(kind)
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if _is_union(kind):
        return _of_union(name, text, options)
    if origin is typing.Literal:
        for option in options:
            if text == str(option):
                return option
        raise SecateurError(
            f"{name} cannot be {text!r}. {nearest(text, [str(option) for option in options])}"
        )
    if (origin or kind) in (list, tuple):
        inner = options[0] if options else str
        parts = [part.strip() for part in text.strip("[]()").split(",") if part.strip()]
        if origin is tuple and options and options[-1] is not Ellipsis:
            if len(parts) != len(options):
                raise SecateurError(f"{name} takes {len(options)} values, not {text!r}")
            return [_value(name, part, k) for part, k in zip(parts, options)]
        return [_value(name, part, inner) for part in parts]
    if kind is bool:
        if text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        raise SecateurError(f"{name} is true or false, not {text!r}")
    if kind is int:
        return _whole(name, text)
    if kind is float:
        return _number(name, text)
    if kind is str:
        return text
    raise SecateurError(f"{name} cannot be set on the command line: use Python, or another preset")


def _of_union(name: str, text: str, options: Sequence[Any]) -> Any:
    """The first type that takes the text; numbers before text."""
    if type(None) in options and text.lower() in _NOTHING:
        return None
    kinds = sorted((k for k in options if k is not type(None)), key=lambda k: k is str)
    for kind in kinds[:-1]:
        try:
            return _value(name, text, kind)
        except SecateurError:
            continue
    return _value(name, text, kinds[-1])


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise SecateurError(f"{name} is a finite number, not {text!r}")
    return number


def _whole(name: str, text: str) -> int:
    """An integer, also as 1e4 or 50_000."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        number = 0.5
    if not number.is_integer():
        raise SecateurError(f"{name} is a whole number, not {text!r}")
    return int(number)


def _in_words(message: str, told: dict[str, Any]) -> str:
    """msgspec's message with the field in front: ``density: Expected `float` <= 1.0, not 1.5``."""
    what, _, path = message.partition(" - at `$.")
    name = path.rstrip("`")
    if not name:
        return f"these fields do not go together: {what}"
    value: Any = told
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else value
    return f"{name}: {what[0].lower()}{what[1:].replace('`', '')}, not {value}"
