"""Quotas with the exact numbers of the literature's formulas; choices by rank in every scope."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.core.errors import SecateurError
from secateur.prune.quotas import saturating
from secateur.prune.schedules import SCHEDULES, counts, densities
from secateur.prune.scope import share
from secateur.prune.scopes import (
    SCOPES,
    Erk,
    Everywhere,
    Given,
    IdealGas,
    NofM,
    PerLayer,
    Scope,
    SmartRatio,
    Uniform,
    UniformPlus,
    Units,
    scope,
)

LENET = {"dense_1": (784, 300), "dense_2": (300, 100), "dense_3": (100, 10)}
SIZES = [235_200, 30_000, 1_000]
CONV = {
    "conv_1": (3, 3, 4, 8),
    "conv_2": (3, 3, 8, 8),
    "dense_1": (32, 12),
    "dense_2": (12, 4),
}
SMALL = {"a": (8, 12), "b": (12, 8), "c": (8, 4)}


@pytest.mark.parametrize(
    ("keep", "eps", "wanted"),
    [
        (26_620, 17.264151, [0.079568, 0.230189, 1.0]),
        (13_310, 8.350063, [0.038484, 0.111334, 0.918507]),
        (5_324, 3.340025, [0.015394, 0.044534, 0.367403]),
    ],
)
def test_erk_of_lenet(keep: int, eps: float, wanted: list[float]) -> None:
    found, scale = saturating([Erk.raw(s) for s in LENET.values()], SIZES, keep)
    np.testing.assert_allclose(found, wanted, atol=5e-7)
    assert scale == pytest.approx(eps, abs=5e-7)
    assert sum(d * n for d, n in zip(found, SIZES)) == pytest.approx(keep, rel=1e-12)
    counted = Erk().quotas(LENET, keep)
    assert sum(counted) == keep
    assert all(abs(c - d * n) < 1 for c, d, n in zip(counted, found, SIZES))


@pytest.mark.parametrize(
    ("keep", "f", "wanted"),
    [
        (26_620, 6.17209e-5, [0.064447, 0.350677, 0.941867]),
        (5_324, 4.148566e-4, [0.010145, 0.074373, 0.706785]),
    ],
)
def test_ideal_gas_of_lenet(keep: int, f: float, wanted: list[float]) -> None:
    found = IdealGas.pressure(SIZES, keep)
    assert found == pytest.approx(f, rel=1e-6)
    np.testing.assert_allclose([1 / (1 + found * n) for n in SIZES], wanted, atol=5e-7)
    assert sum(IdealGas().quotas(LENET, keep)) == keep


def test_erdos_renyi_of_a_convolution_counts_channels() -> None:
    raw = SCOPES["erdos-renyi"].raw((3, 3, 8, 16))  # type: ignore[attr-defined]
    assert raw == 24 / 128
    assert Erk.raw((3, 3, 8, 16)) == 30 / (9 * 128)


def test_uniform_rounds_each_layer_and_per_layer_their_sum() -> None:
    shapes = {"a": (5, 1), "b": (5, 1), "c": (5, 1)}
    assert Uniform().quotas(shapes, 8, 0.5) == [3, 3, 3]  # 9, not 8
    assert PerLayer().quotas(shapes, 8) == [3, 3, 2]


def test_uniform_plus_keeps_the_first_convolution_and_the_last_layer_denser() -> None:
    total = sum(math.prod(s) for s in CONV.values())
    keep = 450
    found = UniformPlus().quotas(CONV, keep)
    assert sum(found) == keep
    assert found[0] == 288  # all of it
    assert found[3] >= math.floor(0.2 * 48)
    rest = [found[1] / 576, found[2] / 384]
    assert abs(rest[0] - rest[1]) < 1 / 384
    with pytest.raises(SecateurError, match="too few for uniform"):
        UniformPlus().quotas(CONV, 200)
    # at a high density the last layer is as dense as the others
    dense = UniformPlus().quotas(CONV, total - 100)
    assert dense[3] / 48 == pytest.approx(dense[1] / 576, abs=1 / 48)


def test_given_densities_are_met_and_checked() -> None:
    wanted = Given(densities={"a": 0.5, "b": 0.25, "c": 1.0})  # type: ignore[arg-type]
    assert wanted.quotas(SMALL, 48 + 24 + 32) == [48, 24, 32]
    assert wanted.total(SMALL) == 104
    with pytest.raises(SecateurError, match="no density is given for c"):
        Given(densities=(("a", 0.5), ("b", 0.5))).quotas(SMALL, 10)
    with pytest.raises(SecateurError, match="no prunable layer 'd'"):
        Given(densities=(("d", 0.5),)).quotas(SMALL, 10)
    mask = {"a": {"kernel": np.arange(7) < 3, "bias": None}}
    assert Given.from_mask(mask).final({"a/kernel": (7, 1)}) == [3]


@given(
    st.lists(st.floats(0, 50), min_size=1, max_size=6),
    st.data(),
)
def test_shares_are_whole_within_bounds_and_near(targets: list[float], data: st.DataObject) -> None:
    high = [math.ceil(t) + data.draw(st.integers(0, 5)) for t in targets]
    low = [data.draw(st.integers(0, math.floor(t))) for t in targets]
    total = round(sum(targets))
    total = min(max(total, sum(low)), sum(high))
    found = share(targets, total, low, high)
    assert sum(found) == total
    assert all(a <= x <= b for a, x, b in zip(low, found, high))
    if abs(total - sum(targets)) <= 0.5:
        assert all(abs(x - t) < 1.000001 for x, t in zip(found, targets))


@pytest.mark.parametrize(
    "name", [k for k in SCOPES if k not in ("given", "n-of-m", "uniform", "units")]
)
@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_every_scope_with_every_schedule(name: str, schedule: str) -> None:
    """Exact totals, never rising, and the last round as if it were alone."""
    total = sum(math.prod(s) for s in CONV.values())
    steps = densities(schedule, 0.45, 1 if schedule == "one-shot" else 9)
    kept = counts(steps, total)
    plan = scope(name).plan(CONV, kept, steps)
    assert plan.sum(1).tolist() == kept
    assert (np.diff(plan, axis=0) <= 0).all()
    assert plan[-1].tolist() == scope(name).quotas(CONV, kept[-1], steps[-1])
    assert (plan <= scope(name).most(CONV)).all()


@given(st.lists(st.integers(1, 40), min_size=2, max_size=5), st.data())
def test_plans_never_rise_where_largest_remainders_would(
    widths: list[int], data: st.DataObject
) -> None:
    shapes = {f"l{i}": (w, 1) for i, w in enumerate(widths)}
    total = sum(widths)
    kept = sorted(data.draw(st.lists(st.integers(1, total), min_size=2, max_size=8)), reverse=True)
    for kind in (PerLayer(), IdealGas(), Erk()):
        plan = kind.plan(shapes, kept, [k / total for k in kept])
        assert plan.sum(1).tolist() == kept
        assert (np.diff(plan, axis=0) <= 0).all()


def _scores(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> list[jax.Array]:
    return [
        jax.random.normal(jax.random.key(seed + i), s).round(1)
        for i, s in enumerate(shapes.values())
    ]


@pytest.mark.parametrize("name", ["everywhere", "per-layer", "n-of-m"])
def test_choices_have_the_planned_counts_and_the_highest_scores(name: str) -> None:
    found, scores = scope(name), _scores(SMALL)
    keep = 112  # of 224
    plan = found.plan(SMALL, [keep], [0.5])
    masks = jax.jit(found.choose, static_argnames="ties")(
        scores, [s > -9 for s in scores], jnp.asarray(plan[0]), jax.random.key(0)
    )
    assert all(m.shape == s.shape for m, s in zip(masks, scores))
    if name == "everywhere":
        groups = [
            (
                np.concatenate([s.ravel() for s in scores]),
                np.concatenate([m.ravel() for m in masks]),
            )
        ]
    else:
        groups = [(np.asarray(s).ravel(), np.asarray(m).ravel()) for s, m in zip(scores, masks)]
    if name == "n-of-m":
        assert all((np.asarray(m).reshape(-1, 4, m.shape[-1]).sum(1) == 2).all() for m in masks)
        return
    for (s, m), count in zip(groups, plan[0]):
        assert m.sum() == count
        assert s[m].min() >= s[~m].max(initial=-np.inf)


def test_scopes_that_differ_by_their_quotas_choose_alike() -> None:
    own = [k for k, kind in SCOPES.items() if kind.choose is not Scope.choose]
    assert own == ["everywhere", "n-of-m", "units"]


def test_n_of_m_runs_along_the_input_axis() -> None:
    scores = [jnp.arange(8.0)[:, None] * jnp.ones((1, 3))]
    (mask,) = jax.jit(NofM(1, 4).choose)(
        scores, [scores[0] > -1], jnp.asarray([1]), jax.random.key(0)
    )
    assert mask[:, 0].tolist() == [False, False, False, True] * 2
    (mask,) = jax.jit(NofM(1, 3, axis=-1).choose)(
        scores, [scores[0] > -1], jnp.asarray([1]), jax.random.key(0)
    )
    assert mask[0].tolist() == [True, False, False]  # ties by position


@pytest.mark.parametrize(
    ("shapes", "keep", "word"),
    [
        ({"stem": (3, 3, 3, 16)}, 216, "cannot be cut into groups of 4"),
        ({"a": (8, 8)}, 10, "ask for density=0.5"),
    ],
)
def test_n_of_m_refuses(shapes: Any, keep: int, word: str) -> None:
    with pytest.raises(SecateurError, match=word):
        NofM().quotas(shapes, keep)


def test_keep_at_least_reserves_first_and_fills_by_the_one_ranking() -> None:
    scores = [jnp.asarray([9.0, 8, 7, 6]), jnp.asarray([0.1, 0.3, 0.2]), jnp.asarray([0.5])]
    alive = [s > 0 for s in scores]
    reserving = jax.jit(Everywhere(keep_at_least=2).choose)
    masks = reserving(scores, alive, jnp.asarray([6]), jax.random.key(0))
    assert [m.tolist() for m in masks] == [
        [True, True, True, False], [False, True, True], [True],
    ]  # fmt: skip
    plain = jax.jit(Everywhere().choose)(scores, alive, jnp.asarray([4]), jax.random.key(0))
    assert [int(m.sum()) for m in plain] == [4, 0, 0]  # layers may be emptied, as published
    with pytest.raises(SecateurError, match="reserves 5 weights"):
        Everywhere(keep_at_least=2).quotas({"a": (4,), "b": (3,), "c": (1,)}, 4)
    assert min(PerLayer(keep_at_least=3).quotas(LENET, 300)) == 3
    with pytest.raises(SecateurError, match="whole number from 0"):
        scope("erk", -1)


def test_smart_ratios_fall_with_depth_and_meet_the_total() -> None:
    shapes = {f"conv_{i}": (3, 3, 8, 8) for i in range(1, 5)} | {"dense_1": (72, 10)}
    found = SmartRatio().targets(shapes, 700)
    assert found[4] == pytest.approx(0.3 * 720)
    raw = np.array([j * j + j for j in (5, 4, 3, 2)])
    np.testing.assert_allclose(np.array(found[:4]) / found[0], raw / raw[0])
    assert sum(SmartRatio().quotas(shapes, 700)) == 700
    crowded = SmartRatio().targets(shapes, 1700)  # the first would be above 1
    assert crowded[0] == 576
    assert sum(crowded) == pytest.approx(1700)
    with pytest.raises(SecateurError, match="no convolution"):
        SmartRatio().quotas(LENET, 5000)


@pytest.mark.parametrize("within", ["layer", "everywhere"])
@pytest.mark.parametrize("side", ["incoming", "outgoing"])
def test_units_go_whole(within: str, side: str) -> None:
    units = Units(side=side, within=within, keep_at_least=1).bound(SMALL)
    scores = [jnp.abs(s) for s in _scores(SMALL)]
    keep = 140
    plan = units.plan(SMALL, [keep], [keep / 224])
    masks = jax.jit(units.choose)(
        scores, [s > -9 for s in scores], jnp.asarray(plan[0]), jax.random.key(0)
    )
    total = sum(int(m.sum()) for m in masks)
    assert 0 < total <= keep
    axis = -1 if side == "incoming" else -2
    for i, (s, m) in enumerate(zip(scores, masks)):
        kept = np.asarray(m.any(axis=-3 - axis))
        assert (np.asarray(m) == np.expand_dims(kept, -3 - axis)).all()  # whole units
        if i == (2 if side == "incoming" else 0):
            assert kept.all()  # outputs and inputs of the network stay
        else:
            sums = np.asarray(s.sum(axis=-3 - axis))
            assert sums[kept].min() >= sums[~kept].max(initial=-np.inf)


def test_units_of_both_sides_take_their_weights_on_both() -> None:
    from secateur.networks.mlp import mlp

    net = mlp(6, 5, input_shape=(4,), outputs=3)
    units = Units.joined(net)
    shapes = {"dense_1/kernel": (4, 6), "dense_2/kernel": (6, 5), "dense_3/kernel": (5, 3)}
    found = units.bound(shapes)
    scores = _scores(shapes)
    plan = units.plan(shapes, [30], [30 / 69])
    masks = jax.jit(found.choose)(
        scores, [s > -9 for s in scores], jnp.asarray(plan[0]), jax.random.key(0)
    )
    first, second, third = (np.asarray(m) for m in masks)
    assert (first.any(0) == second.any(1)).all()
    assert (second.any(0) == third.any(1)).all()
    assert first.any(0).sum() + second.any(0).sum() == plan.sum()
    assert first.sum() + second.sum() + third.sum() <= 30
    with pytest.raises(SecateurError, match=r"Units\.joined"):
        Units(side="both").quotas(shapes, 30)
