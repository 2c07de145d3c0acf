"""A mask's health against paths that are counted one by one."""

from __future__ import annotations

import itertools
import json
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.core.trees import flatten, map_mask, ones_mask, unflatten
from secateur.networks.layers import conv, dense, global_average_pool
from secateur.networks.mlp import mlp
from secateur.prune.examine import examine, examine_file, network_of
from secateur.prune.ticket import Provenance, Ticket, ticket

NET = mlp(5, 4, input_shape=(4,), outputs=3)
quiet = partial(examine, ntk=False)


def start(net: Network, seed: int = 0) -> Any:
    """Weights as numpy; drawn by numpy, so that nothing is compiled."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    return jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32), shapes)


def sparse(net: Network, seed: int, density: float) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    params, stats = start(net, seed)
    ones = ones_mask(net.prunable(params))
    mask = map_mask(lambda m: None if m is None else rng.random(m.shape) < density, ones)
    return params, stats, mask


def paths(masks: list[np.ndarray]) -> list[np.ndarray]:
    """Of each dense layer, the weights on a path of kept ones: every path is walked."""
    on_path = [np.zeros_like(m) for m in masks]
    widths = [masks[0].shape[0], *(m.shape[1] for m in masks)]
    for path in itertools.product(*(range(w) for w in widths)):
        steps = list(itertools.pairwise(path))
        if all(m[step] for m, step in zip(masks, steps, strict=True)):
            for one, step in zip(on_path, steps, strict=True):
                one[step] = True
    return on_path


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.long
def test_effective_weights_and_dead_units_of_an_mlp(seed):
    params, _, mask = sparse(NET, seed, 0.35)
    health = quiet(NET, mask, params=params)
    masks = [flatten(mask)[f"dense_{l}/kernel"] for l in (1, 2, 3)]
    expected = paths(masks)
    total = sum(m.size for m in masks)
    assert [l.name for l in health.layers] == ["dense_1/kernel", "dense_2/kernel", "dense_3/kernel"]
    assert [l.effective for l in health.layers] == [int(m.sum()) for m in expected]
    assert [l.kept for l in health.layers] == [int(m.sum()) for m in masks]
    assert health.effective_density == pytest.approx(sum(m.sum() for m in expected) / total)
    assert health.density == pytest.approx(sum(m.sum() for m in masks) / total)
    assert health.effective_density <= health.density
    fed = [np.ones(4, bool)]
    for m in masks:
        fed.append((m & fed[-1][:, None]).any(0))
    heard = [np.ones(3, bool)]
    for m in masks[::-1]:
        heard.insert(0, (m & heard[0]).any(1))
    for l, layer in enumerate(health.layers, start=1):
        f, h = fed[l], heard[l]
        assert (layer.units, layer.live) == (len(f), (f & h).sum())
        assert (layer.no_input, layer.no_output) == ((~f & h).sum(), (f & ~h).sum())
        assert (layer.neither, layer.cut_off) == ((~f & ~h).sum(), 0)
        assert layer.live == expected[l - 1].any(0).sum()
    assert health.collapsed == (not any(m.any() for m in expected))


def convolutional(size: int) -> Network:
    """Two 3x3 convolutions, SAME, on a map of size x size; global average; dense."""
    shapes = {"conv_1": (3, 3, 1, 2), "conv_2": (3, 3, 2, 2), "dense_1": (2, 2)}

    def init(key: Any) -> Any:
        return {k: {"kernel": jnp.ones(s), "bias": jnp.ones(s[-1])} for k, s in shapes.items()}, {}

    def apply(p: Any, s: Any, x: Any) -> Any:
        x = jax.nn.relu(conv(p["conv_1"], x))
        x = jax.nn.relu(conv(p["conv_2"], x))
        return dense(p["dense_1"], global_average_pool(x))

    return Network(
        "tiny", (size, size, 1), 2, init, apply, lambda p, s, x, key: (apply(p, s, x), s)
    )


def walk_all(masks: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """Of `convolutional`, the entries on a path: every path over positions is walked."""
    places = list(itertools.product(range(size), repeat=2))
    windows = list(itertools.product(range(3), repeat=2))
    found = {k: np.zeros_like(m) for k, m in masks.items()}

    def before(at: Any, window: Any) -> Any:
        return tuple(a + w - 1 for a, w in zip(at, window, strict=True))

    for at, w2, w1 in itertools.product(places, windows, windows):
        middle = before(at, w2)
        if middle not in places or before(middle, w1) not in places:
            continue
        for a, b, c in itertools.product(range(2), repeat=3):
            steps = {"conv_1": (*w1, 0, a), "conv_2": (*w2, a, b), "dense_1": (b, c)}
            if all(masks[k][step] for k, step in steps.items()):
                for k, step in steps.items():
                    found[k][step] = True
    return found


@pytest.mark.parametrize(("size", "density"), [(1, 1.1), (2, 0.3)])
@pytest.mark.long
def test_effective_entries_of_convolutions_are_exact_in_space(size, density):
    """On a map of one pixel, corners of a 3x3 window see padding alone."""
    net = convolutional(size)
    params, _, mask = sparse(net, 3, density)
    masks = {k: flatten(mask)[f"{k}/kernel"] for k in ("conv_1", "conv_2", "dense_1")}
    expected = walk_all(masks, size)
    health = quiet(net, mask, params=params)
    assert {l.name: l.effective for l in health.layers} == {
        f"{k}/kernel": int(m.sum()) for k, m in expected.items()
    }
    if size == 1:
        assert [l.effective for l in health.layers] == [2, 4, 4]
        assert health.density == 1.0
        assert health.effective_density == 10 / 58


def test_a_unit_between_two_corners_is_cut_off():
    """It has a live input and a live output, but at different positions."""
    net = convolutional(1)
    params, _, mask = sparse(net, 0, 1.1)
    mask["conv_2"]["kernel"][1, 1, 0] = False  # what reads channel 0 does so from the corners
    layer = quiet(net, mask, params=params).layers[0]
    assert (layer.live, layer.units) == (1, 2)
    assert layer.no_output + layer.cut_off == 1


def test_collapse_and_empty_layers():
    params, _, mask = sparse(NET, 0, 1.1)
    mask["dense_2"]["kernel"][:] = False
    health = quiet(NET, mask, params=params)
    assert health.collapsed
    assert health.empty == ("dense_2/kernel",)
    assert health.path_trace == -math.inf
    assert health.effective_density == 0
    assert "LAYER COLLAPSE" in str(health)
    json.dumps(health.values(), allow_nan=False)


def test_an_empty_branch_of_a_residual_network_is_no_collapse():
    def apply(p: Any, s: Any, x: Any) -> Any:
        h = dense(p["in"], x)
        return dense(p["out"], h + dense(p["branch"], jax.nn.relu(h)))

    shapes = {"in": (3, 4), "branch": (4, 4), "out": (4, 2)}
    init = lambda key: ({k: {"kernel": jnp.ones(s)} for k, s in shapes.items()}, {})
    net = Network("skip", (3,), 2, init, apply, lambda p, s, x, key: (apply(p, s, x), s))
    params, _, mask = sparse(net, 0, 1.1)
    mask["branch"]["kernel"][:] = False
    health = quiet(net, mask, params=params)
    assert not health.collapsed
    assert health.empty == ("branch/kernel",)
    assert {l.name: l.effective for l in health.layers}["in/kernel"] == 12


def test_traces_against_their_definitions():
    net = mlp(4, input_shape=(3,), outputs=2, bias=False)
    params, _, mask = sparse(net, 1, 0.7)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)
    health = examine(net, mask, params=params, x=x)

    def definition(masks: list[np.ndarray]) -> tuple[float, float]:
        w = [m * params[f"dense_{l}"]["kernel"].astype(float) for l, m in enumerate(masks, 1)]
        path = 0.0  # sum over paths and kept weights of the product of the others, squared
        for i, j, k in itertools.product(range(3), range(4), range(2)):
            if masks[0][i, j] and masks[1][j, k]:
                path += w[0][i, j] ** 2 + w[1][j, k] ** 2
        ntk = 0.0
        for one in np.asarray(x, float):
            h = one @ w[0]
            for k in range(2):
                first = np.outer(one, (h > 0) * w[1][:, k]) * masks[0]
                second = np.maximum(h, 0) * masks[1][:, k]
                ntk += (first**2).sum() + (second**2).sum()
        return path, ntk

    both = [flatten(mask)[f"dense_{l}/kernel"] for l in (1, 2)]
    path, ntk = definition(both)
    dense_path, dense_ntk = definition([np.ones_like(m) for m in both])
    assert 10**health.path_trace == pytest.approx(path, rel=1e-5)
    assert 10**health.dense_path_trace == pytest.approx(dense_path, rel=1e-5)
    assert health.ntk_trace == pytest.approx(ntk, rel=1e-5)
    assert health.dense_ntk_trace == pytest.approx(dense_ntk, rel=1e-5)


@pytest.mark.long
def test_what_cannot_be_measured_is_none_with_the_reason():
    """A product of two rows has no paths; the rest is still told."""

    def apply(p: Any, s: Any, x: Any) -> Any:
        return dense(p["c"], dense(p["a"], x) * jax.nn.sigmoid(dense(p["g"], x)))

    shapes = {"a": (3, 4), "g": (3, 4), "c": (4, 2)}
    init = lambda key: ({k: {"kernel": jnp.ones(s)} for k, s in shapes.items()}, {})
    net = Network("gated", (3,), 2, init, apply, lambda p, s, x, key: (apply(p, s, x), s))
    params, _, mask = sparse(net, 0, 1.1)
    mask["c"]["kernel"][1] = False
    health = quiet(net, mask, params=params)
    assert health.path_trace is None
    assert health.effective_density is None
    assert set(health.missing) == {"effective density", "path-kernel trace", "NTK trace"}
    rows = {l.name: l for l in health.layers}
    assert rows["a/kernel"].live == 3
    assert rows["a/kernel"].no_output == 1
    assert "cannot be followed" in str(health)


def test_a_mask_without_weights_is_refused():
    with pytest.raises(SecateurError, match="give params"):
        examine(NET, sparse(NET, 0, 0.5)[2])


def saved(tmp_path: Any, net: Network, seed: int = 0) -> tuple[Ticket, Any]:
    params, stats, mask = sparse(net, seed, 0.4)
    layers = [
        {"name": k, "shape": list(m.shape)} for k, m in flatten(mask).items() if m is not None
    ]
    made = ticket(mask, params, stats, Provenance("snip", network=net.name, layers=layers))
    return made, made.save(tmp_path / "one.ticket")


@pytest.mark.long
def test_a_saved_ticket_is_examined_by_its_file(tmp_path):
    made, path = saved(tmp_path, NET)
    assert network_of(Ticket.load(path)).name == NET.name
    text = str(examine_file(path))
    assert text.startswith("snip on mlp-5-4\n")
    assert f"{made.density:.4%}" in text
    assert "params= gives" in text  # a ticket alone says nothing of the dense network
    with pytest.raises(SecateurError, match="does not fit"):
        examine_file(path, "mlp-5-5")
    with pytest.raises(SecateurError, match="there is no network"):
        examine_file(path, "lenet-300")
    with pytest.raises(SecateurError, match="there is no ticket"):
        examine_file(tmp_path / "none")


def test_the_table_and_the_figure_show_every_layer():
    from secateur.report.health import draw

    params, _, mask = sparse(NET, 1, 0.4)
    health = quiet(NET, mask, params=params)
    lines = health.table().splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert all(l.name in health.table() for l in health.layers)
    figure = draw(health)
    units = figure["datasets"]["units"]
    for l in health.layers:
        mine = [u for u in units if u["layer"] == l.name]
        assert sum(u["count"] for u in mine) == l.units
        assert sum(u["share"] for u in mine) == pytest.approx(1)
    kept = {w["layer"]: w["count"] for w in figure["datasets"]["weights"] if w["kind"] == "kept"}
    assert kept == {l.name: l.kept for l in health.layers}


def test_nothing_given_is_changed():
    params, _, mask = sparse(NET, 2, 0.4)
    flat = {k: None if m is None else m.copy() for k, m in flatten(mask).items()}
    before = jax.tree.map(np.copy, params), unflatten(flat, mask)
    quiet(NET, mask, params=params)
    jax.tree.map(np.testing.assert_array_equal, before, (params, mask))
