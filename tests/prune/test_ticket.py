"""Tickets: one file, bit for bit, and one sentence for every file that is none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from secateur.core.errors import SecateurError
from secateur.core.trees import fingerprint
from secateur.prune.ticket import Provenance, Ticket, ticket


@pytest.fixture
def made() -> Ticket:
    rng = np.random.default_rng(0)
    params = {
        "conv_1": {"kernel": rng.normal(size=(3, 3, 1, 4)).astype(np.float32)},
        "bn_1": {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)},
        "heads": [(rng.normal(size=(4, 2)), np.float32(1.5))],  # float64, and a number
    }
    mask = {
        "conv_1": {"kernel": rng.random((3, 3, 1, 4)) < 0.5},
        "bn_1": {"scale": None, "bias": None},
        "heads": [(rng.random((4, 2)) < 0.5, None)],
    }
    stats = {"bn_1": {"mean": np.zeros(4, np.float32), "count": np.asarray(3, np.int32)}}
    told = Provenance("magnitude", options={"over": "one"}, network="net", asked=0.5, seed=3)
    return ticket(mask, params, stats, told)


def test_round_trip_bit_for_bit(made: Ticket, tmp_path: Path) -> None:
    back = Ticket.load(made.save(tmp_path / "deep" / "one.ticket"))
    for tree in ("mask", "params", "stats"):
        assert fingerprint(getattr(back, tree)) == fingerprint(getattr(made, tree))
    assert back.provenance == made.provenance
    assert back.checksum == made.checksum
    assert type(back.params["heads"][0]) is tuple
    assert back.mask["bn_1"] == {"scale": None, "bias": None}
    assert (
        back.save(tmp_path / "two").read_bytes() == (tmp_path / "deep" / "one.ticket").read_bytes()
    )
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["one.ticket"]  # nothing left over


def test_pruned_places_are_zero_and_counted(made: Ticket) -> None:
    kernel, mask = made.params["conv_1"]["kernel"], made.mask["conv_1"]["kernel"]
    assert (kernel[~mask] == 0).all()
    p = made.provenance
    assert (p.kept, p.of) == (mask.sum() + made.mask["heads"][0][0].sum(), 44)
    assert p.density == p.kept / 44
    assert p.all_parameters == 36 + 8 + 8 + 1
    assert p.density_of_all == (53 - 44 + p.kept) / 53
    assert p.excluded == ["bn_1/bias", "bn_1/scale", "heads/0/1"]
    assert f"{p.kept} of 44" in repr(made)


def test_anything_changes_the_checksum(made: Ticket) -> None:
    other = replace(made, provenance=replace(made.provenance, seed=4))
    flipped = replace(
        made, stats={"bn_1": {"mean": np.ones(4, np.float32), "count": made.stats["bn_1"]["count"]}}
    )
    assert len({made.checksum, other.checksum, flipped.checksum}) == 3


def _changed(path: Path, **header: Any) -> None:
    """The same arrays under another header."""
    with safe_open(path, "numpy") as file:
        told = json.loads(file.metadata()["secateur"]) | header
    save_file(load_file(path), path, {"secateur": json.dumps(told)})


def test_every_flipped_byte_of_the_arrays_is_noticed(made: Ticket, tmp_path: Path) -> None:
    path = made.save(tmp_path / "x")
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for at in range(start, len(whole), 17):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(SecateurError, match="damaged"):
            Ticket.load(path)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda p: p.unlink(), "there is no ticket at"),
        (lambda p: p.write_bytes(b""), "is no ticket, or a damaged one"),
        (lambda p: p.write_bytes(b"hello" * 100), "is no ticket, or a damaged one"),
        (lambda p: p.write_bytes(p.read_bytes()[:-7]), "is no ticket, or a damaged one"),
        (lambda p: save_file({"a": np.ones(3)}, p), "holds arrays but is no ticket"),
        (lambda p: _changed(p, format=99), "has format 99"),
        (lambda p: _changed(p, trees="{"), "damaged ticket"),
        (lambda p: _changed(p, provenance=[]), "damaged"),
        (lambda p: _changed(p, sha256=None), "do not match its checksum"),
        (lambda p: _changed(p, provenance={"method": "snip"}), "do not match"),
    ],
)  # fmt: skip
def test_other_and_damaged_files(made: Ticket, tmp_path: Path, damage: Any, word: str) -> None:
    path = made.save(tmp_path / "x")
    damage(path)
    with pytest.raises(SecateurError, match=word) as caught:
        Ticket.load(path)
    assert len(str(caught.value).splitlines()) == 1


def test_what_cannot_be_written(made: Ticket, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SecateurError, match="cannot be written"):
        made.save(tmp_path / "file" / "x")
    with pytest.raises(SecateurError, match="without '/'"):
        replace(made, stats={"a/b": np.ones(2)}).save(tmp_path / "x")
    with pytest.raises(SecateurError, match="is a str"):
        replace(made, stats={"a": "word"}).save(tmp_path / "x")
