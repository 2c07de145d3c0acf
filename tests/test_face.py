"""The public names of the package: found lazily, typed, and said once each."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import secateur


def typed_names() -> dict[str, str]:
    """name -> module, as type checkers see them."""
    tree = ast.parse(Path(secateur.__file__).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    assert [ast.unparse(block.test) for block in blocks] == ["TYPE_CHECKING"]
    return {
        name.asname or name.name: node.module.removeprefix("secateur.")
        for node in blocks[0].body
        if isinstance(node, ast.ImportFrom) and node.module
        for name in node.names
    }


def test_type_checkers_see_what_is_found_at_run_time():
    assert typed_names() == secateur._WHERE
    assert list(secateur._WHERE) == secateur.__all__


@pytest.mark.parametrize("name", secateur.__all__)
def test_every_name_is_found_and_listed(name):
    assert getattr(secateur, name) is getattr(secateur, name)
    assert name in dir(secateur)


def test_a_public_name_hides_no_room():
    rooms = {path.stem for path in Path(secateur.__file__).parent.iterdir()}
    assert not rooms & set(secateur.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lotery'"):
        secateur.lotery  # noqa: B018
