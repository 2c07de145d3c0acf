"""Controls do what they say: the traps of published codes, one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.keys import key
from secateur.core.trees import alive, apply_mask, fingerprint, flatten
from secateur.networks.mlp import mlp
from secateur.prune.controls import CONTROLS, Inverted, control
from secateur.prune.criteria.magnitude import Magnitude
from secateur.prune.find import find
from secateur.prune.ticket import Ticket

NET = mlp(8, 6, input_shape=(4, 3, 1), outputs=3)
RNG = np.random.default_rng(0)
DATA = (RNG.normal(size=(60, 4, 3, 1)).astype(np.float32), np.arange(60) % 3)


@pytest.fixture(scope="module")
def snip() -> Ticket:
    return find(NET, DATA, "snip", 0.3, seed=2, progress=False)


@pytest.fixture(scope="module")
def magnitude() -> Ticket:
    return find(NET, None, "magnitude", 0.3, seed=2, progress=False)


def dense(seed: int = 2) -> Any:
    return NET.init(key(seed, "initial"))[0]


@pytest.mark.long
def test_a_shuffle_shuffles_and_keeps_counts(snip: Ticket) -> None:
    masks = [control(snip, NET, "shuffled", seed=s) for s in (0, 1)]
    again = control(snip, NET, "shuffled", seed=0)
    prints = {fingerprint(t.mask) for t in (snip, *masks)}
    assert len(prints) == 3
    assert fingerprint(again.mask) == fingerprint(masks[0].mask)
    for t in masks:
        assert alive(t.mask) == alive(snip.mask)
        assert fingerprint(t.params) == fingerprint(apply_mask(t.mask, dense()))
    told = masks[1].provenance.control
    assert told is not None
    assert (told["kind"], told["seed"], told["of"]) == ("shuffled", 1, snip.checksum)


def test_a_shuffle_is_uniform(snip: Ticket) -> None:
    """Not along one axis, as in NTT's code: every place of a layer is kept equally often."""
    name, draws = "dense_2/kernel", 150
    sums = sum(
        flatten(control(snip, NET, "shuffled", seed=s).mask)[name].astype(int) for s in range(draws)
    )
    d = alive(snip.mask)[name] / 48
    assert np.abs(sums / draws - d).max() < 4.5 * np.sqrt(d * (1 - d) / draws)


def test_reinitialised_keeps_the_mask_and_draws_the_weights(snip: Ticket) -> None:
    found = control(snip, NET, "reinitialised", seed=5)
    assert fingerprint(found.mask) == fingerprint(snip.mask)
    kernel = flatten(found.params)["dense_1/kernel"]
    assert not np.allclose(kernel, flatten(snip.params)["dense_1/kernel"])
    assert found.provenance.start["sha256"] != snip.provenance.start["sha256"]


def test_inverted_keeps_the_lowest_also_among_zeros(magnitude: Ticket) -> None:
    """1/score, as in Synaptic-Flow, would keep zeros (NaN); the negative drops the largest."""
    params = jax.tree.map(lambda x: x.at[0].set(0), dense())
    given = find(NET, None, "magnitude", 0.3, params=params, progress=False)
    found = control(given, NET, "inverted", params=params)
    flat = np.concatenate([np.abs(np.asarray(k)).ravel() for k in _kernels(params)])
    kept = np.concatenate([m.ravel() for m in _kernels(found.mask)])
    wanted = np.zeros(len(flat), bool)
    wanted[np.argsort(flat, kind="stable")[:49]] = True
    assert (kept == wanted).all()
    assert found.provenance.method == "magnitude"
    assert np.isfinite(flat[kept]).all()


def _kernels(tree: Any) -> list[Any]:
    return [tree[f"dense_{l}"]["kernel"] for l in (1, 2, 3)]


def test_inverting_twice_is_the_method() -> None:
    twice = Inverted(Inverted(Magnitude()))
    assert hash(twice) == hash(Inverted(Inverted(Magnitude())))
    assert twice.title == "magnitude"
    assert twice.over == "one"  # options of the inner one
    params, mask = dense(), NET.prunable(dense())
    scores = twice.score(None, params, mask, None)  # type: ignore[arg-type]
    plain = Magnitude().score(None, params, mask, None)  # type: ignore[arg-type]
    assert fingerprint(scores) == fingerprint(plain)


@pytest.mark.long
def test_random_has_the_same_counts_and_another_choice(snip: Ticket) -> None:
    found = control(snip, NET, "random", seed=1)
    assert alive(found.mask) == alive(snip.mask)
    assert fingerprint(found.mask) != fingerprint(snip.mask)
    assert fingerprint(found.params) == fingerprint(apply_mask(found.mask, dense()))


@pytest.mark.parametrize("kind", ["random-labels", "noise"])
@pytest.mark.long
def test_scoring_on_what_says_nothing(snip: Ticket, kind: str) -> None:
    found = control(snip, NET, kind, seed=1, data=DATA)
    assert fingerprint(found.mask) != fingerprint(snip.mask)
    assert found.provenance.kept == snip.provenance.kept
    assert found.provenance.method == "snip"
    assert fingerprint(found.params) == fingerprint(apply_mask(found.mask, dense()))


@pytest.mark.long
def test_running_again_without_a_change_is_the_ticket(snip: Ticket) -> None:
    from secateur.prune.controls import Asked, Changed

    asked = Asked(snip, NET, 0, "none", DATA, None, None, None, None, None)
    found = asked.again(Changed)
    assert fingerprint(found.mask) == fingerprint(snip.mask)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda s, m: control(s, NET, "shufled"), "Did you mean 'shuffled'"),
        (lambda s, m: control(s, NET, "smart-ratio"), "no convolution"),
        (lambda s, m: control(m, NET, "noise"), "does not look at examples"),
        (lambda s, m: control(m, NET, "random-labels"), "does not look at labels"),
        (lambda s, m: control(s, NET, "noise"), "give data"),
        (lambda s, m: control(s, mlp(3, input_shape=(4, 3, 1))), "the ticket is of mlp-8-6"),
        (lambda s, m: control(s, NET, params=dense(3)), "not the weights that the ticket"),
    ],
)  # fmt: skip
def test_one_sentence_for_each_mistake(
    snip: Ticket, magnitude: Ticket, make: Callable[..., Any], word: str
) -> None:
    with pytest.raises(SecateurError, match=word):
        make(snip, magnitude)


def test_a_ticket_of_given_weights_asks_for_them() -> None:
    found = find(NET, None, "magnitude", 0.3, params=dense(4), progress=False)
    with pytest.raises(SecateurError, match="give params="):
        control(found, NET)
    assert alive(control(found, NET, params=dense(4)).mask) == alive(found.mask)


@pytest.mark.long
def test_other_data_are_noticed(snip: Ticket) -> None:
    with pytest.raises(SecateurError, match="not those that the ticket was scored on"):
        control(snip, NET, "inverted", data=(DATA[0] + 1, DATA[1]))


def test_the_table_says_what_it_does() -> None:
    assert all(row.did and row.source for row in CONTROLS.values())
