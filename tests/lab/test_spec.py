"""--set and --grid: every field by type, every mistake one sentence."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest

from secateur.core.errors import SecateurError
from secateur.lab.spec import variants


class Inner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    momentum: float = 0.9


class Fields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    steps: Annotated[int, msgspec.Meta(gt=0)] = 400
    rate: float = 1e-3
    density: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1
    layers: tuple[int, ...] = (300, 100)
    pair: tuple[int, str] = (1, "a")
    words: list[str] = []
    shrink: bool = True
    data: str = "mnist5k"
    scope: Literal["global", "layer"] = "layer"
    stop: int | None = None
    either: float | str = "auto"
    inner: Inner = Inner()
    table: dict[str, int] = {}


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("steps=50_000", "steps", 50_000),
        ("steps=1e3", "steps", 1000),
        ("rate=1.2e-3", "rate", 1.2e-3),
        ("rate=1", "rate", 1.0),
        ("density=1", "density", 1.0),
        ("layers=20,10,5", "layers", (20, 10, 5)),
        ("layers=[20, 10]", "layers", (20, 10)),
        ("layers=", "layers", ()),
        ("pair=3,b", "pair", (3, "b")),
        ("words=a,b", "words", ["a", "b"]),
        ("shrink=no", "shrink", False),
        ("shrink=TRUE", "shrink", True),
        (" data = mnist ", "data", "mnist"),
        ("data=a=b", "data", "a=b"),
        ("scope=global", "scope", "global"),
        ("stop=none", "stop", None),
        ("stop=7", "stop", 7),
        ("either=0.5", "either", 0.5),
        ("either=auto", "either", "auto"),
        ("inner.momentum=0.5", "inner", Inner(momentum=0.5)),
    ],
)
def test_text_becomes_a_value(text, field, value):
    (fields,) = variants(Fields(), [text])
    assert getattr(fields, field) == value
    assert type(getattr(fields, field)) is type(value)


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["step=3"], "there is no field 'step'. Did you mean 'steps'?"),
        (["inner.momentun=3"], "there is no field 'inner.momentun'. Did you mean 'momentum'?"),
        (["rate.x=3"], "there is no field 'rate.x'. 'rate' has no parts."),
        (["steps"], "expected field=value, not 'steps'"),
        (["=3"], "expected field=value, not '=3'"),
        (["steps=many"], "steps is a whole number, not 'many'"),
        (["steps=1.5"], "steps is a whole number, not '1.5'"),
        (["steps=0"], "steps: expected int >= 1, not 0"),
        (["rate=fast"], "rate is a finite number, not 'fast'"),
        (["rate=nan"], "rate is a finite number, not 'nan'"),
        (["density=1.5"], "density: expected float <= 1.0, not 1.5"),
        (["shrink=maybe"], "shrink is true or false, not 'maybe'"),
        (["scope=globall"], "scope cannot be 'globall'. Did you mean 'global'?"),
        (["pair=1"], "pair takes 2 values, not '1'"),
        (["layers=1,x"], "layers is a whole number, not 'x'"),
        (["table=1"], "table cannot be set on the command line: use Python, or another preset"),
        (["steps=1", "steps=2"], "field 'steps' is given twice: give it once"),
    ],
)
def test_mistakes_are_one_sentence(texts, sentence):
    with pytest.raises(SecateurError) as error:
        variants(Fields(), texts)
    assert str(error.value) == sentence


def test_grids_multiply():
    made = variants(Fields(), ["steps=10"], ["rate=0.1,0.2", "scope=global,layer", "layers=3,2;4"])
    assert [(f.rate, f.scope, f.layers) for f in made] == [
        (rate, scope, layers)
        for rate in (0.1, 0.2)
        for scope in ("global", "layer")
        for layers in ((3, 2), (4,))
    ]
    assert {f.steps for f in made} == {10}


@pytest.mark.parametrize(
    ("grids", "sentence"),
    [
        (["rate=0.1,,0.2"], "a value is missing"),
        (["rate=0.1,x"], "rate is a finite number, not 'x'"),
        (["rates=0.1"], "Did you mean 'rate'"),
        (["rate=0.1", "rate=0.2"], "given twice"),
    ],
)
def test_grids_are_checked(grids, sentence):
    with pytest.raises(SecateurError, match=sentence):
        variants(Fields(), [], grids)
