"""Units that are removed: alone, one by one, by fractions, and out of the network."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import secateur
from secateur.core.errors import SecateurError
from secateur.core.trees import flatten, ones_mask, unflatten
from secateur.networks.conv import conv_net
from secateur.networks.mlp import mlp
from secateur.prune.curves import removal_curve
from secateur.prune.importance import activity, importance
from secateur.prune.orders import order
from secateur.prune.rows import row_of, rows, silence, without
from secateur.prune.structured import cut_units, prune_units

DENSE = mlp(12, 7)
CONV = conv_net(2, input_shape=(28, 28, 1), width=3, hidden=6)


def drawn(network: Any, seed: int = 0) -> Any:
    """Weights of the usual size, and biases that are not 0: float64, nothing compiled."""
    rng = np.random.default_rng(seed)
    params, stats = jax.eval_shape(network.init, jax.random.key(0))
    flat = {}
    for k, v in flatten(params).items():
        scale = np.sqrt(2 / np.prod(v.shape[:-1])) if len(v.shape) > 1 else 0.3
        flat[k] = scale * rng.standard_normal(v.shape) + (k.endswith("/scale"))
    flat_stats = {
        k: 0.5 + rng.random(v.shape) if k.endswith("/var") else 0.3 * rng.standard_normal(v.shape)
        for k, v in flatten(stats).items()
    }
    return unflatten(flat, params), unflatten(flat_stats, stats)


@lru_cache(maxsize=8)
def applied(network: Any) -> Any:
    return jax.jit(network.apply)


@pytest.fixture(scope="module")
def images(mnist5k_sets: Any) -> Any:
    """300 real images, (n, 28, 28, 1) float64, and their labels."""
    test = mnist5k_sets.test
    return (test.images[::3][:300] / 255 - 0.13) / 0.31, test.labels[::3][:300]


def scored(network: Any, params: Any, stats: Any, images: Any) -> tuple[float, float]:
    """Accuracy and mean cross-entropy by the network's own apply, in NumPy."""
    x, y = images
    z = np.asarray(applied(network)(params, stats, jnp.asarray(x)))
    z = z - z.max(axis=1, keepdims=True)
    loss = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]
    return float(np.mean(z.argmax(axis=1) == y)), float(loss.mean())


def compare_importance(network: Any, images: Any, row: str, how: str, units: Any = None) -> None:
    params, stats = drawn(network)
    found = importance(network, params, images, row, stats=stats, how=how)
    whole = scored(network, params, stats, images)
    np.testing.assert_allclose((found.accuracy, found.loss), whole, atol=1e-6)
    for u in range(row_of(network, row).size) if units is None else units:
        one = scored(network, silence(network, params, {row: [u]}, how), stats, images)
        np.testing.assert_allclose(
            (found.accuracy_without[u], found.loss_without[u]), one, atol=1e-6
        )
    assert np.ptp(found.loss_without) > 1e-4
    assert found.drop("loss")[0] == found.loss_without[0] - found.loss


@pytest.mark.parametrize(
    ("network", "row", "how"),
    [
        (DENSE, "dense_1", "whole"),
        (CONV, "conv_2", "incoming"),
        pytest.param(DENSE, "dense_2", "incoming", marks=pytest.mark.long),
        pytest.param(CONV, "conv_1", "whole", marks=pytest.mark.long),
        pytest.param(CONV, "conv_1", "incoming", marks=pytest.mark.long),
    ],
)
def test_importance_in_one_pass_is_removal_one_by_one(x64, images, network, row, how):
    compare_importance(network, images, row, how)


@pytest.mark.long
def test_units_together_are_units_one_by_one(x64, images, monkeypatch):
    """The form for accelerators, vmapped, is the same."""
    from secateur.prune import importance as module

    params, _ = drawn(CONV)
    few = (images[0][:40], images[1][:40])
    one = importance(CONV, params, few, "conv_2")
    module._alone.cache_clear()
    monkeypatch.setattr(module.jax, "default_backend", lambda: "gpu")
    together = importance(CONV, params, few, "conv_2")
    module._alone.cache_clear()
    np.testing.assert_allclose(together.loss_without, one.loss_without, rtol=1e-10)
    np.testing.assert_array_equal(together.accuracy_without, one.accuracy_without)


def compare_curve(network: Any, images: Any, row: str, how: str, **options: Any) -> None:
    params, stats = drawn(network)
    removal = order(network, params, row, data=images, stats=stats, **options)
    curve = removal_curve(network, params, images, removal, stats=stats, how=how)
    assert len(curve.accuracy) == len(removal.units) + 1
    for k in range(len(curve.accuracy)):
        gone = silence(network, params, {row: removal.units[:k]}, how)
        expected = scored(network, gone, stats, images)
        np.testing.assert_allclose((curve.accuracy[k], curve.loss[k]), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("network", "row", "how", "options"),
    [
        (DENSE, "dense_1", "incoming", {"by": "frame-potential", "alive": np.arange(12) != 3}),
        pytest.param(DENSE, "dense_2", "whole", {"by": "random"}, marks=pytest.mark.long),
        pytest.param(CONV, "conv_1", "whole", {"by": "importance"}, marks=pytest.mark.long),
        pytest.param(CONV, "conv_2", "incoming", {"by": "norm-l1"}, marks=pytest.mark.long),
    ],
)
def test_a_curve_is_removal_one_after_the_other(x64, images, network, row, how, options):
    compare_curve(network, images, row, how, **options)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options", "side", "how"),
    [
        ("resnet-20", {"width": 4}, 8, "whole"),
        ("resnet-20", {"width": 4}, 8, "incoming"),
        ("mobilenet-v1", {"width": 0.125}, 16, "whole"),
    ],
)
def test_streams_and_depthwise_convolutions_with_norms(x64, name, options, side, how):
    """A stream is read again and again, behind its own changes; depthwise sides go together."""
    network = secateur.network(name, input_shape=(side, side, 3), **options)
    rng = np.random.default_rng(0)
    data = rng.standard_normal((30, side, side, 3)), rng.integers(0, 10, 30)
    found = rows(network)
    streams = [row for row in found if len(row.made) > 1]
    assert streams
    compare_importance(network, data, streams[0].name, how, units=[0, 1])
    compare_curve(network, data, streams[0].name, how)


# -- the rows, and silence -------------------------------------------------------------------------


def test_rows_say_who_makes_and_who_reads():
    first, second = rows(mlp(12, 7))
    assert (first.name, first.size, second.name, second.size) == ("dense_1", 12, "dense_2", 7)
    leaves = lambda places: [(p.leaf, p.axis) for p in places]
    assert leaves(first.made) == [("dense_1/kernel", 1)]
    assert leaves(first.read) == [("dense_2/kernel", 0)]
    assert leaves(first.acts) == [("dense_1/bias", 0)]
    assert [row.name for row in rows(CONV)] == ["conv_1", "conv_2", "dense_1", "dense_2"]
    places = row_of(CONV, "conv_2").places("dense_1/kernel")
    np.testing.assert_array_equal(places, np.arange(14 * 14 * 3).reshape(14 * 14, 3).T)
    params, _ = drawn(CONV)
    w = row_of(CONV, "conv_2").weights(params)
    np.testing.assert_array_equal(w[1], params["conv_2"]["kernel"][..., 1].ravel())


def test_a_silenced_unit_emits_nothing_or_what_its_bias_makes(x64, images):
    """Nobody hears a unit that is gone: not even when its readers' weights come back."""
    params, _ = drawn(DENSE)
    x = jnp.asarray(images[0][:20])
    whole = silence(DENSE, params, {"dense_1": [3]})
    assert whole["dense_1"]["bias"][3] == 0
    assert not whole["dense_1"]["kernel"][:, 3].any()
    assert not whole["dense_2"]["kernel"][3].any()
    back = jax.tree.map(np.copy, whole)
    back["dense_2"]["kernel"][3] = params["dense_2"]["kernel"][3]
    np.testing.assert_array_equal(applied(DENSE)(back, {}, x), applied(DENSE)(whole, {}, x))

    incoming = silence(DENSE, params, {"dense_1": [3]}, "incoming")
    told = jax.tree.map(np.copy, whole)  # relu(b) w by hand, in the next bias
    told["dense_2"]["bias"] = (
        told["dense_2"]["bias"]
        + max(0, params["dense_1"]["bias"][3]) * (params["dense_2"]["kernel"][3])
    )
    np.testing.assert_allclose(
        applied(DENSE)(incoming, {}, x), applied(DENSE)(told, {}, x), rtol=1e-12
    )
    changed = [k for k, v in flatten(incoming).items() if np.any(v != flatten(params)[k])]
    assert changed == ["dense_1/kernel"]


def test_the_compacted_network_is_the_silenced_one(x64, images):
    """Filters go with the block of all their positions behind the flattening."""
    params, _ = drawn(CONV)
    gone = {"conv_1": [0], "conv_2": [1], "dense_1": [2, 5], "dense_2": []}
    ticket = cut_units(CONV, params, gone)
    assert ticket.provenance.record["left"] == {
        "conv_1": 2, "conv_2": 2, "dense_1": 4, "dense_2": 6,
    }  # fmt: skip
    small = secateur.compact(CONV, ticket)
    assert {k: w["left"] for k, w in small.widths.items()} == {
        "conv_1": 2, "conv_2": 2, "dense_1": 4,
    }  # fmt: skip
    assert small.folded == 0
    flat = flatten(small.params)
    rows_left = np.arange(14 * 14 * 3).reshape(-1, 3)[:, [0, 2]].ravel()
    np.testing.assert_array_equal(
        flat["dense_1/kernel"], params["dense_1"]["kernel"][rows_left][:, [0, 1, 3, 4]]
    )
    x = jnp.asarray(images[0][:20])
    silenced = silence(CONV, params, gone)
    jax.tree.map(np.testing.assert_array_equal, silenced, ticket.params)
    np.testing.assert_allclose(
        jax.jit(small.network.apply)(small.params, small.stats, x),
        applied(CONV)(silenced, {}, x),
        atol=1e-12,
    )


@pytest.mark.long
def test_what_a_bias_makes_of_a_unit_is_folded_away(x64, images):
    """The variant as written leaves constants; behind zero padding they cannot be folded."""
    params, _ = drawn(DENSE)
    x = jnp.asarray(images[0][:20])
    ticket = prune_units(DENSE, params, images, 0.5, "importance", how="incoming")
    small = secateur.compact(DENSE, ticket)
    assert small.folded == 10
    assert {k: w["left"] for k, w in small.widths.items()} == {"dense_1": 6, "dense_2": 3}
    np.testing.assert_allclose(
        jax.jit(small.network.apply)(small.params, small.stats, x),
        applied(DENSE)(ticket.params, {}, x),
        atol=1e-12,
    )
    params, _ = drawn(CONV)
    params["conv_1"]["bias"][:] = 0.5
    with pytest.raises(SecateurError, match="border"):
        secateur.compact(CONV, cut_units(CONV, params, {"conv_1": [0]}, how="incoming"))


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet-20", "mobilenet-v2", "vgg-11"])
def test_deep_networks_get_smaller_and_stay_the_same_function(x64, name):
    small = {"resnet-20": {"width": 4}, "mobilenet-v2": {"width": 0.25}, "vgg-11": {"width": 8}}
    network = secateur.network(name, input_shape=(32, 32, 3), **small[name])
    params, stats = drawn(network)
    ticket = prune_units(network, params, rate=0.5, stats=stats)
    found = secateur.compact(network, ticket)  # refuses where a constant would be left over
    left = ticket.provenance.record["left"]
    assert {k: w["left"] for k, w in found.widths.items() if k in left} == {
        k: n for k, n in left.items() if n < row_of(network, k).size
    }
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 32, 32, 3)))
    expected = applied(network)(ticket.params, stats, x)
    logits = jax.jit(found.network.apply)(found.params, found.stats, x)
    np.testing.assert_allclose(logits, expected, atol=1e-9 * np.abs(expected).max())


def test_training_moves_nothing_of_a_unit_that_is_gone(x64, images):
    params, _ = drawn(DENSE)
    ticket = cut_units(DENSE, params, {"dense_1": [1, 4]})
    x = jnp.asarray(images[0][:20])
    g = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(DENSE.apply(p, {}, x)))))(ticket.params)
    assert np.all(np.asarray(g["dense_1"]["bias"])[[1, 4]] == 0)
    assert np.all(np.asarray(g["dense_1"]["kernel"])[:, [1, 4]] == 0)
    assert np.count_nonzero(g["dense_1"]["bias"]) >= 9
    assert not ticket.mask["dense_2"]["kernel"][[1, 4]].any()


# -- activations -----------------------------------------------------------------------------------


def test_activity_is_what_the_next_layer_reads(x64, images):
    params, _ = drawn(DENSE)
    p = params
    h = np.maximum(images[0].reshape(300, -1) @ p["dense_1"]["kernel"] + p["dense_1"]["bias"], 0)
    size, share = activity(DENSE, params, images, "dense_1")
    np.testing.assert_allclose(size, h.mean(0), rtol=1e-10)
    np.testing.assert_allclose(share, (h > 0).mean(0), rtol=1e-10)
    least = order(DENSE, params, "dense_1", "apoz", data=images)
    assert least.units[0] == np.argmax((h == 0).mean(0))
    most = order(DENSE, params, "dense_1", "activation", "largest", data=images)
    assert most.units[0] == np.argmax(h.mean(0))
    assert most.scores[0] == pytest.approx(h.mean(0).max())


@pytest.mark.long
def test_activity_of_filters_is_a_mean_over_positions(x64, images):
    params, _ = drawn(CONV)
    x = jnp.asarray(images[0][:50])
    from secateur.networks.layers import conv, max_pool

    h = jax.nn.relu(conv(params["conv_1"], x))
    h = np.asarray(max_pool(jax.nn.relu(conv(params["conv_2"], h)), 2))
    size, share = activity(CONV, params, (images[0][:50], images[1][:50]), "conv_2")
    np.testing.assert_allclose(size, h.mean((0, 1, 2)), rtol=1e-10)
    np.testing.assert_allclose(share, (h > 0).mean((0, 1, 2)), rtol=1e-10)


# -- the whole network -----------------------------------------------------------------------------


def norms(params: Any, row: str) -> np.ndarray:
    return np.linalg.norm(params[row]["kernel"], axis=0)


def test_fractions_of_each_layer_and_step_by_step():
    params, _ = drawn(DENSE)
    ticket = prune_units(DENSE, params, rate=0.5)
    record = ticket.provenance.record
    assert record["left"] == {"dense_1": 6, "dense_2": 3}  # half of 7, to even: 4 go
    for name in ("dense_1", "dense_2"):
        kept = np.setdiff1d(np.arange(record["units"][name]), record["removed"][name])
        assert norms(params, name)[record["removed"][name]].max() < norms(params, name)[kept].min()
    again = prune_units(DENSE, params, rate=0.5, mask=ticket.mask)
    assert again.provenance.record["left"] == {"dense_1": 3, "dense_2": 1}
    before, after = flatten(ticket.mask), flatten(again.mask)
    assert all(m is None or np.all(after[k] <= m) for k, m in before.items())
    last = prune_units(DENSE, params, rate={"dense_2": 0.99})
    assert last.provenance.record["left"] == {"dense_1": 12, "dense_2": 1}
    largest = prune_units(DENSE, params, rate=0.25, remove="largest")
    assert largest.provenance.record["removed"]["dense_1"] == [
        int(u) for u in np.argsort(-norms(params, "dense_1"))[:3]
    ]
    assert largest.provenance.options["remove"] == "largest"


@pytest.mark.parametrize("remove", ["smallest", "largest"])
@pytest.mark.parametrize("scale", [True, False])
def test_one_ranking_of_all_rows(scale, remove):
    params, _ = drawn(DENSE)
    params["dense_2"]["kernel"] *= 0.8
    ticket = prune_units(DENSE, params, None, 0.3, "norm", remove, within="everywhere", scale=scale)
    scores = {n: norms(params, n) for n in ("dense_1", "dense_2")}
    if scale:
        scores = {n: row / row.mean() for n, row in scores.items()}
    ranked = sorted((s, name, u) for name, row in scores.items() for u, s in enumerate(row))
    first = ranked[:6] if remove == "smallest" else ranked[-6:]  # .3 of 19
    expected = {name: {u for _, row, u in first if row == name} for name in scores}
    found = ticket.provenance.record["removed"]
    assert {k: set(v) for k, v in found.items()} == expected
    assert min(map(len, expected.values())) > 0 or not scale
    default = prune_units(DENSE, params, None, 0.3, "norm", remove, within="everywhere")
    assert (default.provenance.record["removed"] == found) == scale


def test_a_row_keeps_one_unit_in_one_ranking():
    params, _ = drawn(DENSE)
    params["dense_2"]["kernel"] *= 1e-3
    options = {"within": "everywhere", "scale": False}
    ticket = prune_units(DENSE, params, rate=0.5, **options)
    assert ticket.provenance.record["left"] == {"dense_1": 8, "dense_2": 1}


def test_random_orders_go_by_seed_and_row():
    params, _ = drawn(DENSE)
    gone = lambda seed: prune_units(DENSE, params, by="random", seed=seed).provenance
    assert gone(1).record == gone(1).record
    assert gone(1).record["removed"] != gone(2).record["removed"]
    assert (gone(3).seed, prune_units(DENSE, params).provenance.seed) == (3, None)


def test_a_ticket_is_kept_in_a_file_and_starts_where_it_is_told(tmp_path):
    params, _ = drawn(DENSE, 0)
    start, _ = drawn(DENSE, 1)
    ticket = prune_units(DENSE, params, rate=0.5, start=start)
    gone = ticket.provenance.record["removed"]["dense_1"]
    assert gone == prune_units(DENSE, params, rate=0.5).provenance.record["removed"]["dense_1"]
    kept = np.setdiff1d(np.arange(12), gone)
    np.testing.assert_array_equal(
        ticket.params["dense_1"]["kernel"][:, kept], start["dense_1"]["kernel"][:, kept]
    )
    assert not ticket.params["dense_1"]["bias"][gone].any()
    assert secateur.Ticket.load(ticket.save(tmp_path / "units")).checksum == ticket.checksum


def test_bad_input_is_one_sentence(images):
    params = jax.tree.map(np.float32, drawn(DENSE)[0])
    for rate in (1.0, -0.1, "half", True, {"dense_1": 2}):
        with pytest.raises(SecateurError, match=r"rate is the fraction .* in \[0, 1\)"):
            prune_units(DENSE, params, rate=rate)
    for match, call in [
        ("'dense_9'", lambda: prune_units(DENSE, params, rate={"dense_9": 0.5})),
        ("no order of units 'nrm'.*'norm'", lambda: prune_units(DENSE, params, by="nrm")),
        ("no end to remove from", lambda: prune_units(DENSE, params, remove="least")),
        ("no ranking of units", lambda: prune_units(DENSE, params, within="globally")),
        ("no way to remove", lambda: prune_units(DENSE, params, how="row")),
        ("on examples; give data", lambda: prune_units(DENSE, params, by="activation")),
        ("one rate", lambda: prune_units(DENSE, params, rate={}, within="everywhere")),
        ("do not fit", lambda: prune_units(CONV, params)),
        ("whole numbers from 0 to 11", lambda: cut_units(DENSE, params, {"dense_1": [12]})),
        ("whole numbers from 0 to 11", lambda: cut_units(DENSE, params, {"dense_1": [0.5]})),
        ("needs labels", lambda: importance(DENSE, params, images[0], "dense_1")),
        ("give data", lambda: importance(DENSE, params, None, "dense_1")),
        ("no hidden|no units", lambda: rows(mlp())),
    ]:
        with pytest.raises(SecateurError, match=match):
            call()
    with pytest.raises(SecateurError, match="there is no part of mnist5k 'tests'"):
        importance(DENSE, params, secateur.load("mnist5k"), "dense_1", part="tests")
    norm = secateur.network("vgg-11", width=8)
    weights = jax.tree.map(np.float32, drawn(norm)[0])
    with pytest.raises(SecateurError, match="give stats"):
        prune_units(norm, weights)


def test_a_mask_that_is_given_stays_as_it_is():
    params, _ = drawn(DENSE)
    mask = ones_mask(DENSE.prunable(params))
    new = without(DENSE, mask, {"dense_1": [0]})
    assert all(m is None or np.all(m) for m in flatten(mask).values())
    assert not new["dense_1"]["kernel"][:, 0].any()
    assert not new["dense_2"]["kernel"][0].any()
    assert new["dense_2"]["kernel"][1:].all()
    row = row_of(DENSE, "dense_1")
    for how in ("whole", "incoming"):
        alive = row.alive(without(DENSE, mask, {"dense_1": [0, 5]}, how))
        assert np.flatnonzero(~alive).tolist() == [0, 5]
    assert row.alive(without(DENSE, mask, {"dense_2": range(7)}, "incoming")).sum() == 0
