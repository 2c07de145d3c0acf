"""Sets in pieces: the same training as with the sets on the device, resumed at any piece."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from problems import SHORT, digits, problem
from test_fit import Recorder, Resumer, far

from secateur.core.errors import SecateurError
from secateur.core.keys import key
from secateur.core.trees import ones_mask
from secateur.data.examples import Examples, Sets
from secateur.data.stored import Stored
from secateur.networks.mlp import mlp
from secateur.train import feed
from secateur.train.fit import fit, fit_lanes
from secateur.train.training import Fitted, Training

BRIEF = replace(SHORT, steps=60, evaluate_every=20, batch=10)
STEPS = 5  # of a piece


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing fits the device, and a piece is five steps of one lane."""
    monkeypatch.setenv("SECATEUR_DEVICE_BYTES", "0")
    monkeypatch.setattr(feed, "PIECE", STEPS * BRIEF.batch * 784)
    before = threading.active_count()
    yield
    assert threading.active_count() == before, "the thread that reads ahead has ended"


def stored(examples: Examples, path: Path) -> Examples:
    """The same examples in a file."""
    images = np.asarray(examples.images)
    path.write_bytes(images.tobytes())
    return Examples(Stored(path, images.shape), examples.labels)


def in_files(data: Sets, folder: Path) -> Sets:
    return replace(
        data,
        train=stored(data.train, folder / "train"),
        validation=stored(data.validation, folder / "validation"),
        test=stored(data.test, folder / "test"),
        sha256="stored" + data.sha256,
    )


def equal(a: Fitted, b: Fitted) -> None:
    """Bit for bit: weights, curves, and what was measured."""
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(jax.tree.leaves(a.kept), jax.tree.leaves(b.kept), strict=True):
        np.testing.assert_array_equal(x, y)
    assert a.best == b.best
    assert a.last == b.last
    assert all(np.array_equal(a.curve[k], b.curve[k]) for k in a.curve)


@pytest.mark.parametrize("shrink", [False, pytest.param(True, marks=pytest.mark.long)])
def test_pieces_train_the_same_weights(
    tmp_path: Path, pieces: None, monkeypatch: pytest.MonkeyPatch, shrink: bool
) -> None:
    """From files, in pieces, against arrays on the device; also as a smaller network."""
    t = problem(BRIEF, 0.05, shrink=shrink, keep_at=(20,))
    streamed = fit(replace(t, data=in_files(t.data, tmp_path)))
    monkeypatch.delenv("SECATEUR_DEVICE_BYTES")
    resident = fit(t)
    assert bool(streamed.widths) == shrink
    assert all(streamed.checks.values()), streamed.checks
    assert far(streamed.params, resident.params) < 1e-6
    assert far(streamed.kept[20], resident.kept[20]) < 1e-6
    assert streamed.curve["step"].tolist() == [0, 20, 40, 60]
    for a, b in ((streamed.best, resident.best), (streamed.last, resident.last)):
        assert a == pytest.approx(b, rel=1e-5)


def test_stored_images_on_the_device_are_the_same_bits(tmp_path: Path) -> None:
    """Within the budget, a decoded folder is put on the device like any other set."""
    t = problem(BRIEF, 0.05, shrink=False)
    equal(fit(replace(t, data=in_files(t.data, tmp_path))), fit(t))


@pytest.mark.long
def test_lanes_in_pieces_get_what_they_get_alone(pieces: None) -> None:
    """Each lane has a data order of its own; a piece holds the examples of all."""
    with jax.enable_x64(True):
        trainings = [problem(BRIEF, 0.05, k, shrink=False) for k in range(3)]
        for lane, t in zip(fit_lanes(trainings), trainings, strict=True):
            alone = fit(t)
            assert far(lane.params, alone.params) < 1e-9
            assert lane.best == pytest.approx(alone.best, rel=1e-9)
            assert lane.last == pytest.approx(alone.last, rel=1e-9)


@pytest.mark.parametrize("at", [pytest.param(20, marks=pytest.mark.long), 35])
def test_resumed_at_a_piece_it_is_bit_identical(pieces: None, at: int) -> None:
    """Between two evaluations, and at one."""
    t = problem(BRIEF, 0.05, keep_at=(20,), shrink=False)
    recorder = Recorder(at)
    whole = fit(t, recorder)
    resumer = Resumer(recorder.kept)  # type: ignore[arg-type]
    equal(fit(t, resumer), whole)
    assert resumer.steps == list(range(at + STEPS, 61, STEPS))


@pytest.mark.long
def test_a_checkpoint_between_evaluations_is_not_taken_by_a_training_in_chunks(
    pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = problem(BRIEF, 0.05, shrink=False)
    recorder = Recorder(35)
    fit(t, recorder)
    monkeypatch.delenv("SECATEUR_DEVICE_BYTES")
    resumer = Resumer(recorder.kept)  # type: ignore[arg-type]
    equal(fit(t, resumer), fit(t))


def test_what_goes_wrong_while_reading_is_raised(
    tmp_path: Path, pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = problem(BRIEF, 0.05, shrink=False)
    t = replace(t, data=in_files(t.data, tmp_path))
    read = feed._read
    calls: list[int] = []

    def failing(examples: Any, rows: Any) -> Any:
        calls.append(1)
        if len(calls) > 4:
            raise OSError("the disk is gone")
        return read(examples, rows)

    monkeypatch.setattr(feed, "_read", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        fit(t)


@pytest.mark.long
def test_large_stored_images_are_cut_and_others_are_not(tmp_path: Path) -> None:
    """Images of 28 x 28 for a network of 20 x 20: the centre is evaluated, resized crops train."""
    data = digits()
    net = mlp(12, input_shape=(20, 20, 1))
    params, _ = net.init(key(0))
    mask = ones_mask(net.prunable(params))
    t = Training(net, params, {}, data, BRIEF, mask, key(0, "train"), shrink=False)
    with pytest.raises(SecateurError, match="takes inputs of shape"):
        fit(t)
    large = fit(replace(t, data=in_files(data, tmp_path)))

    def cut(e: Examples) -> Examples:
        return Examples(np.asarray(e.images)[:, 4:24, 4:24], e.labels)

    parts = {name: cut(getattr(data, name)) for name in ("train", "validation", "test")}
    small = fit(replace(t, data=replace(data, **parts, sha256="cut")))
    equal(large, small)
    crops = replace(BRIEF, augment="resized_crop_flip_tiny")
    other = fit(replace(t, recipe=crops))
    assert other.curve["validation_loss"][0] == pytest.approx(large.curve["validation_loss"][0])
    assert far(other.params, large.params) > 1e-3


def test_the_budget_is_over_all_three_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    data = digits()
    parts = (data.train, data.validation, data.test)
    size = sum(part.images.nbytes for part in parts)
    monkeypatch.setenv("SECATEUR_DEVICE_BYTES", str(size))
    assert not feed.streams(data)
    monkeypatch.setenv("SECATEUR_DEVICE_BYTES", str(size - 1))
    assert feed.streams(data)
    monkeypatch.setenv("SECATEUR_DEVICE_BYTES", "4 GB")
    with pytest.raises(SecateurError, match="give the bytes of images"):
        feed.streams(data)
    monkeypatch.delenv("SECATEUR_DEVICE_BYTES")
    assert not feed.streams(data)
