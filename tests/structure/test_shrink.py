"""The smaller network of a mask is the masked one: in value, in gradient, and in nothing less."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from graphs import Graph, graphs, masks, weights
from hypothesis import example, given, settings
from hypothesis import strategies as st
from zoo import ZOO, relu, structure

from secateur.core.trees import apply_mask, flatten, ones_mask
from secateur.networks.mlp import mlp
from secateur.structure import shrink

CASES = settings.get_profile(settings._current_profile).max_examples * 2  # each takes 30 ms
SKIPPED = Graph((4, 4, 4, 2), ((0,), (1,), (2,)), ((0,), (0, 1), ()))


def drawn(graph, seed, density):
    rng = np.random.default_rng(seed)
    start, mask = weights(graph, rng), masks(graph, rng, density)
    x = rng.standard_normal((3, graph.widths[0]))
    return start, mask, x, rng.standard_normal((3, graph.widths[-1]))


def masked(mask, p):
    return {k: v if mask[k] is None else np.where(mask[k], v, 0) for k, v in p.items()}


def groups_of(graph, kept):
    """Number of the group of each removable set of rows."""
    found = {}
    for rows in graph.rows_that_are_one():
        leaves = {(f"bias_{l}", 0) for l in rows if l}
        for n in kept.needed:
            group = kept.structure.groups[n]
            if leaves & set(group.members) or (group.is_input and 0 in rows):
                found[frozenset(rows)] = n
    return found


@settings(max_examples=CASES)
@given(graphs(), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.3, 0.6]), st.integers(1, 3))
@example(SKIPPED, 0, 0.3, 1)
def test_logits_and_gradients_are_those_of_the_masked_network(graph, seed, density, grain):
    """In float64 to 1e-12; what is cut has a gradient of exactly 0 in the masked network."""
    start, mask, x, y = drawn(graph, seed, density)
    net = graph.network()
    kept = shrink.kept(net, mask, start, decays=False)
    selection = shrink.select([kept], grain)[0]
    whole = masked(mask, start)
    small = selection.take(whole)
    features = selection.features()
    cut_x = x if features is None else x[:, features]

    full_logits = graph.forward(whole, x)[0][-1]
    np.testing.assert_allclose(graph.forward(small, cut_x)[0][-1], full_logits, atol=1e-12)

    expected = masked(mask, graph.gradient(whole, x, y))
    found = masked(selection.take(mask), graph.gradient(small, cut_x, y))
    scattered = selection.put(found, {k: np.zeros_like(v) for k, v in whole.items()})
    for k in expected:
        np.testing.assert_allclose(scattered[k], expected[k], atol=1e-12 * (1 + abs(y).max()))
        trained = selection.put(
            {n: np.ones_like(v) for n, v in small.items()},
            {n: np.zeros_like(v) for n, v in whole.items()},
        )[k]
        assert np.all(expected[k][trained == 0] == 0)


@settings(max_examples=CASES)
@given(graphs(), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.3, 0.6]))
@example(SKIPPED, 1, 0.3)
def test_needed_are_the_units_with_a_path_to_an_output(graph, seed, density):
    """Against a walk from every unit, and against the number of paths of surviving weights.

    Rows that a skip adds are cut as one, so there a unit stays if any of its rows needs it.
    """
    start, mask, _, _ = drawn(graph, seed, density)
    kept = shrink.kept(graph.network(), mask, start, decays=False)
    paths, reaching = graph.paths(mask), graph.reaching(mask)
    numbers = groups_of(graph, kept)
    assert len(numbers) == len(kept.needed)
    for rows, n in numbers.items():
        one = reaching[min(rows)]
        np.testing.assert_array_equal(kept.needed[n], one)
        some = np.any([paths[l] > 0 for l in rows], axis=0)
        assert np.all(kept.needed[n] >= some)
        if not any(graph.skips):
            np.testing.assert_array_equal(kept.needed[n], some)


@settings(max_examples=CASES)
@given(graphs(), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.3]))
def test_with_weight_decay_whatever_would_decay_is_kept(graph, seed, density):
    """Everything outside is masked or 0 already: decay has nothing to move there."""
    start, mask, _, _ = drawn(graph, seed, density)
    rng = np.random.default_rng(seed)
    start = {k: v * (rng.random(v.shape) < 0.5) if v.ndim == 1 else v for k, v in start.items()}
    net = graph.network()
    kept = shrink.kept(net, mask, start, decays=True)
    selection = shrink.select([kept], 1)[0]
    whole = masked(mask, start)
    outside = selection.put(
        jax.tree.map(np.zeros_like, selection.take(whole)),
        {k: np.copy(v) for k, v in whole.items()},
    )
    assert all(np.all(v == 0) for v in outside.values())
    less = shrink.kept(net, mask, start, decays=False)
    assert all(np.all(kept.needed[n] >= less.needed[n]) for n in kept.needed)


@settings(max_examples=CASES // 4)
@given(graphs(), st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_masks_that_share_a_program_have_one_shape_and_keep_what_each_needs(graph, seed, grain):
    net = graph.network()
    lanes = [drawn(graph, seed + k, 0.1 * (k + 1)) for k in range(3)]
    kepts = [shrink.kept(net, mask, start, False) for start, mask, _, _ in lanes]
    found = shrink.select(kepts, grain)
    shapes = [
        jax.tree.map(np.shape, s.take(start)) for s, (start, *_) in zip(found, lanes, strict=True)
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    for one, kept in zip(found, kepts, strict=True):
        for n, units in one.units.items():
            size, need = len(kept.needed[n]), kept.needed[n]
            assert set(np.flatnonzero(need)) <= set(units.tolist())
            assert np.all(np.diff(units) > 0)
            assert len(units) % grain == 0
            assert len(units) < size
            assert one.live[n] == need.sum()
            assert max(k.needed[n].sum() for k in kepts) > len(units) - grain or len(units) == grain


@settings(max_examples=CASES // 4)
@given(graphs(), st.integers(0, 2**32 - 1))
def test_what_is_taken_out_and_put_back_is_where_it_was(graph, seed):
    start, mask, _, _ = drawn(graph, seed, 0.2)
    selection = shrink.select([shrink.kept(graph.network(), mask, start, False)], 1)[0]
    back = selection.put(selection.take(start), start)
    assert all(np.array_equal(back[k], start[k]) for k in start)
    other = {k: v + 1 for k, v in start.items()}
    back = selection.put(selection.take(other), start)  # outside: as it was; inside: as trained
    for k in start:
        changed = back[k] != start[k]
        assert changed.sum() == selection.take(start)[k].size
        assert np.array_equal(back[k][changed], other[k][changed])


def test_a_unit_without_inputs_stays_as_a_constant_and_one_without_outputs_goes():
    net = mlp(3, input_shape=(4,), outputs=2)
    params = jax.tree.map(np.asarray, net.init(jax.random.key(0))[0])
    mask = ones_mask(net.prunable(params))
    first, second = mask["dense_1"]["kernel"], mask["dense_2"]["kernel"]
    first[:, 0] = False  # unit 0: a constant
    second[1, :] = False  # unit 1: nobody reads it
    first[2, 2] = False  # input 2: only the units 0 and 1 would read it
    kept = shrink.kept(net, mask, params, decays=False)
    found = shrink.select([kept], 1)[0]
    assert found.widths() == {
        "dense_1": {"full": 3, "live": 2, "trained": 2},
        "input": {"full": 4, "live": 3, "trained": 3},
    }
    assert found.features().tolist() == [0, 1, 3]
    small = found.take(params)
    np.testing.assert_array_equal(
        small["dense_1"]["kernel"], params["dense_1"]["kernel"][[0, 1, 3]][:, [0, 2]]
    )
    np.testing.assert_array_equal(small["dense_2"]["kernel"], params["dense_2"]["kernel"][[0, 2]])
    assert small["dense_2"]["bias"].shape == (2,)


def test_widths_are_named_after_the_layer_that_makes_them():
    """In a tree where the reading layer sorts before the making one, as in "a reads z"."""
    net = ZOO["no biases"]
    params = jax.tree.map(np.asarray, net.init(jax.random.key(0))[0])
    mask = {k: np.zeros(v.shape, bool) for k, v in params.items()}
    widths = shrink.select([shrink.kept(net, mask, params, False)], 1)[0].widths()
    assert {k: w["full"] for k, w in widths.items()} == {"input": 6, "z": 4, "m": 5}


def test_an_empty_mask_still_makes_a_network_that_runs():
    net = mlp(5, 4, input_shape=(6,), outputs=2)
    params = jax.tree.map(np.asarray, net.init(jax.random.key(0))[0])
    mask = jax.tree.map(np.zeros_like, ones_mask(net.prunable(params)))
    found = shrink.select([shrink.kept(net, mask, params, False)], 2)[0]
    assert {n: w["trained"] for n, w in found.widths().items()} == {
        "input": 2,
        "dense_1": 2,
        "dense_2": 2,
    }
    assert shrink.agrees(net, found, params, mask) is None


def selection_of(net, grain=1, dead_first_layer=False):
    params = jax.tree.map(np.asarray, net.init(jax.random.key(0))[0])
    mask = ones_mask(net.prunable(params))
    for k, m in flatten(mask).items():
        if k == "a":
            m[4:] = False
            m[:] &= not dead_first_layer
        if k == "c":
            m[:2] = False
    found = shrink.select([shrink.kept(net, mask, params, False)], grain)[0]
    assert found.units
    return found, params, mask


def test_a_network_that_depends_on_its_widths_is_found_out():
    """NTK parametrisation: 1/sqrt(width) is not the same number in the smaller network."""
    net = ZOO["ntk"]
    assert shrink.reason_full(net) is None
    found, params, mask = selection_of(net)
    assert shrink.agrees(net, found, params, mask) == "its function depends on its widths"


def test_it_is_found_out_although_all_biases_are_zero_and_the_first_layer_is_dead():
    """Only constants reach the second layer, and at the start they are 0: any factor fits."""
    net = ZOO["ntk"]
    found, params, mask = selection_of(net, dead_first_layer=True)
    params = {k: v if v.ndim > 1 else np.zeros_like(v) for k, v in params.items()}
    assert shrink.agrees(net, found, params, mask) == "its function depends on its widths"


def test_a_width_written_into_the_code_is_found_out():
    import jax.numpy as jnp
    from zoo import TWO, network

    def fixed(p, x):
        h = relu(x @ p["a"] + p["b"][None])
        return h.reshape(len(x), 4) @ p["c"] + p["d"][None]  # no change at full width: elided

    net = network(TWO, fixed)
    found, params, mask = selection_of(net)
    assert shrink.agrees(net, found, params, mask).startswith("it does not run on smaller widths")

    def infinite(p, x):
        return jnp.where(p["a"].shape == (6, 4), 1, jnp.nan) * (relu(x @ p["a"]) @ p["c"])

    net = network({"a": (6, 4), "c": (4, 2)}, infinite)
    found, params, mask = selection_of(net)
    assert shrink.agrees(net, found, params, mask) == "its function depends on its widths"


@pytest.mark.parametrize("name", ["plain", "residual", "gated", "transposed", "kernel first"])
def test_others_agree(name):
    net = ZOO[name]
    params = jax.tree.map(np.asarray, net.init(jax.random.key(0))[0])
    rng = np.random.default_rng(1)
    mask = {k: rng.random(v.shape) < 0.3 if v.ndim > 1 else None for k, v in params.items()}
    found = shrink.select([shrink.kept(net, mask, params, False)], 1)[0]
    assert found.units
    assert shrink.agrees(net, found, params, mask) is None
    # and a wrong selection does not: the units of the first row that stay, shifted by one
    n = next(iter(found.units))
    wrong = {**found.units, n: (found.units[n] + 1) % found.sizes[n]}
    import dataclasses

    full = {k: v is None or np.ones_like(v) for k, v in mask.items()}
    full = {k: None if mask[k] is None else np.ones_like(mask[k]) for k in full}
    assert shrink.agrees(net, dataclasses.replace(found, units=wrong), params, full) is not None
    x = rng.standard_normal((3, 6)).astype(np.float32)
    features = found.features()
    small = net.apply(
        found.take(apply_mask(mask, params)), {}, x if features is None else x[:, features]
    )
    whole = net.apply(apply_mask(mask, params), {}, x)
    np.testing.assert_allclose(small, whole, rtol=1e-5, atol=1e-6)


def test_a_skip_from_the_input_makes_input_and_units_one_row():
    found = structure(SKIPPED.network())
    (row,) = [g for g in found.groups if g.is_input]
    assert {leaf for leaf, _ in row.members} == {
        "kernel_0_1",
        "bias_1",
        "kernel_1_2",
        "bias_2",
        "kernel_2_3",
    }
    assert row.fixed is None
