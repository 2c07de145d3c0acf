"""The sentence a user meets."""

from __future__ import annotations

import pytest

from secateur.core.errors import SecateurError, lookup, nearest

KNOWN = {"rewind": 1, "control": 2, "chain": 3}


def test_lookup_gives_the_value():
    assert lookup("branch", "chain", KNOWN) == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rewnd", "there is no branch 'rewnd'. Did you mean 'rewind'?"),
        ("Control", "there is no branch 'Control'. Did you mean 'control'?"),
        ("xyz", "there is no branch 'xyz'. Known: chain, control, rewind."),
        ("", "there is no branch ''. Known: chain, control, rewind."),
    ],
)
def test_an_unknown_name_names_the_nearest_or_all(name, said):
    with pytest.raises(SecateurError) as error:
        lookup("branch", name, KNOWN)
    assert str(error.value) == said
    assert "\n" not in said


def test_nearest_takes_lists_as_well():
    assert nearest("adm", ["sgd", "adam"]) == "Did you mean 'adam'?"
