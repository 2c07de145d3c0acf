"""Addresses, labels, order of needs."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.core.errors import SecateurError
from secateur.lab.cells import Cell, canonical, closure, not_finite, plain

CELL = Cell(
    "lottery",
    1,
    {"rate": 1.2e-3, "layers": [300, 100], "nested": {"a": 1, "b": None}, "flag": True},
    3,
    {"branch": "rewind", "level": 2},
    "ab" * 32,
)

plain_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


def shuffled(value: object, rng: np.random.Generator) -> object:
    if isinstance(value, dict):
        names = list(value)
        rng.shuffle(names)
        return {name: shuffled(value[name], rng) for name in names}
    return [shuffled(part, rng) for part in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(max_size=4), plain_json, max_size=5), st.integers(0, 9))
@settings(deadline=None)
def test_address_ignores_the_order_of_dicts(fields, seed):
    other = shuffled(fields, np.random.default_rng(seed))
    cell = replace(CELL, fields=fields)
    assert replace(CELL, fields=other).address == cell.address
    place = {"level": 2, "branch": "rewind"}
    assert replace(CELL, place=place).address == CELL.address
    assert replace(CELL, place=place).slug == CELL.slug


@given(plain_json)
@settings(deadline=None)
def test_canonical_json_loses_nothing(value):
    assert json.loads(canonical(value)) == value


@pytest.mark.parametrize(
    "change",
    [
        {"study": "lottery2"},
        {"meaning": 2},
        {"fields": {**CELL.fields, "rate": 1.2000000000000001e-3}},
        {"fields": {**CELL.fields, "layers": [100, 300]}},
        {"fields": {**CELL.fields, "flag": False}},
        {"fields": {**CELL.fields, "new": None}},
        {"seed": 4},
        {"place": {"branch": "rewind", "level": 3}},
        {"place": {"branch": "control", "level": 2}},
        {"data": "ba" * 32},
    ],
    ids=str,
)
def test_every_field_changes_the_address(change):
    assert replace(CELL, **change).address != CELL.address


def test_cost_and_needs_are_not_in_the_address():
    assert replace(CELL, cost=7.0, needs={"previous": CELL}).address == CELL.address


def test_the_address_is_pinned():
    """Results of years would be lost if addresses changed in silence."""
    assert CELL.address == "70d8a5db06b88e2f1811b031c1809f12d25f5f1b7c12ff7ca64e2b22c078f18c"


def test_label_and_folder_are_readable():
    assert CELL.label == "rewind level 2, seed 3"
    assert CELL.slug == f"rewind-level-2-seed-3-{CELL.address[:16]}"
    flagged = replace(CELL, place={"late": True, "shared": False, "weird/name": "../../etc"})
    assert flagged.label == "late no shared ../../etc, seed 3"
    assert "/" not in flagged.slug
    assert not flagged.slug.startswith(".")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fields": {"x": float("nan")}}, r"\$\.fields\.x is nan"),
        ({"fields": {"x": [1.0, float("inf")]}}, r"\$\.fields\.x\[1\] is inf"),
        ({"fields": {"x": {1: 2}}}, "must be text, not 1"),
        ({"fields": {"x": np.float32(1)}}, "is a float32"),
        ({"fields": {"x": {1, 2}}}, "is a set"),
        ({"study": "../etc"}, "one word"),
    ],
    ids=str,
)
def test_what_json_cannot_say_is_refused(change, words):
    with pytest.raises(SecateurError, match=words):
        _ = replace(CELL, **change).address


def chain(length: int) -> Cell:
    cell = replace(CELL, place={"level": 0})
    for level in range(1, length):
        cell = replace(CELL, place={"level": level}, needs={"previous": cell})
    return cell


def test_closure_puts_needs_first_even_in_very_long_chains():
    order = closure([chain(3000)])
    assert [cell.place["level"] for cell in order] == list(range(3000))


def test_closure_holds_each_cell_once():
    dense = replace(CELL, place={"level": 0})
    left = replace(CELL, place={"level": 1}, needs={"a": dense})
    right = replace(CELL, place={"level": 2}, needs={"a": dense, "b": left})
    assert [c.place["level"] for c in closure([right, left, dense, right])] == [0, 1, 2]


def test_circles_are_named():
    needs: dict[str, Cell] = {}
    first = replace(CELL, place={"level": 0}, needs=needs)
    needs["later"] = replace(CELL, place={"level": 1}, needs={"earlier": first})
    with pytest.raises(SecateurError, match="in a circle"):
        closure([first])


def test_a_cell_travels_by_pickle():
    again = pickle.loads(pickle.dumps(CELL))
    assert again == CELL
    assert hash(again) == hash(CELL)


def test_not_finite_names_the_place():
    assert not_finite({"a": 1.0, "b": [1, {"c": float("inf")}]}) == "b.1.c"
    assert not_finite({"a": 1.0, "b": [1, None, "nan"]}) is None


def test_plain_unpacks_numpy():
    told = plain({"a": np.float32(0.5), "b": np.arange(3), "c": (np.bool_(True), 1)})
    assert told == {"a": 0.5, "b": [0, 1, 2], "c": [True, 1]}
    assert type(told["c"][0]) is bool


def test_the_lab_needs_no_jax():
    """`status` and `--help` answer at once."""
    code = (
        "import sys; import secateur.lab.run, secateur.lab.store, secateur.lab.export, "
        "secateur.lab.spec, secateur.lab.verdicts, secateur.lab.executors; "
        "from secateur.lab.executors import make_executor; "
        "[make_executor(name) for name in ('serial', 'processes', 'lanes', 'ray')]; "
        "print([m for m in ('jax', 'altair', 'ray', 'scipy', 'rich', 'pyarrow') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
