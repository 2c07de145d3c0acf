"""The one kind of error a user meets: a sentence that says what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class SecateurError(Exception):
    """A mistake that one sentence explains: what is wrong, what was expected, what to do.

    The command prints it without a traceback and exits with status 2.
    """


def nearest(name: str, known: Mapping[str, object] | list[str] | tuple[str, ...]) -> str:
    """The hint that ends an unknown-name error: the nearest known name, or all of them."""
    close = difflib.get_close_matches(name, list(known), 1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return "Known: " + ", ".join(sorted(known)) + "."


def lookup(where: str, name: str, known: Mapping[str, T]) -> T:
    """`known[name]`, or a SecateurError that names the nearest known name.

    Args:
        where: what the name stands for, e.g. ``"study"``; begins the sentence.
    """
    if name in known:
        return known[name]
    raise SecateurError(f"there is no {where} {name!r}. {nearest(name, known)}")
