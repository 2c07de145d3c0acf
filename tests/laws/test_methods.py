"""Laws over the whole table of methods, in double precision, on a tiny bias-free ReLU network.

Every criterion is compiled once: its scores for several sets of weights are lanes of one program.
What a criterion declares of itself (`permutes`, `rescales`, `signed`, `needs`) is what is tested.
"""

from __future__ import annotations

import dataclasses
import typing
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.keys import key
from secateur.core.trees import alive, fingerprint, flatten, map_mask
from secateur.networks.mlp import mlp
from secateur.prune.criterion import Construction, Criterion
from secateur.prune.find import find, find_lanes
from secateur.prune.methods import METHODS, fits, load, method
from secateur.prune.problem import Problem
from secateur.prune.scopes import SCOPES

NET = mlp(5, 4, input_shape=(3, 2, 1), outputs=3, bias=False)
N = 6 * 5 + 5 * 4 + 4 * 3
QUICK = {"random", "magnitude", "lamp", "snip", "synflow"}  # the others take minutes together
RTOL = 1e-9

CRITERIA = [name for name in METHODS if issubclass(load(name), Criterion)]
CONSTRUCTIONS = [name for name in METHODS if issubclass(load(name), Construction)]


def quick(names: list[str]) -> list[Any]:
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in names]


@cache
def examples() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 3, 2, 1)), np.arange(60) % 3


def problem() -> Problem:
    x, y = examples()
    return Problem(NET, {}, jnp.asarray(x), jnp.asarray(y, jnp.int32))


def weights() -> Any:
    params = NET.init(key(0, "laws"))[0]
    return jax.tree.map(lambda x: x.astype(jnp.float64), params)


def mask() -> Any:
    """Some weights are pruned already, but every unit has a live path."""
    rng = np.random.default_rng(1)
    return map_mask(
        lambda m: None if m is None else jnp.asarray(rng.random(m.shape) < 0.8),
        NET.prunable(weights()),
    )


HIDDEN = (("dense_1/kernel", "dense_2/kernel", 5), ("dense_2/kernel", "dense_3/kernel", 4))


def permuted(tree: Any, back: bool = False) -> Any:
    """The units of both hidden layers in another order."""
    leaves = {k: np.asarray(v) for k, v in flatten(tree).items()}
    for i, (into, out, units) in enumerate(HIDDEN):
        order = np.random.default_rng(i).permutation(units)
        order = np.argsort(order) if back else order
        leaves[into], leaves[out] = leaves[into][:, order], leaves[out][order]
    return {k.split("/")[0]: {"kernel": jnp.asarray(v)} for k, v in leaves.items()}


def rescaled(tree: Any) -> Any:
    """Incoming weights of each hidden unit divided by a number of its own, outgoing multiplied."""
    leaves = {k: np.asarray(v) for k, v in flatten(tree).items()}
    for i, (into, out, units) in enumerate(HIDDEN):
        by = np.random.default_rng(i).uniform(0.3, 3, units)
        leaves[into], leaves[out] = leaves[into] / by, leaves[out] * by[:, None]
    return {k.split("/")[0]: {"kernel": jnp.asarray(v)} for k, v in leaves.items()}


def live(scores: Any, m: Any) -> np.ndarray:
    """Scores of the places that compete, as one row."""
    s, kept = flatten(scores), flatten(m)
    return np.concatenate([np.asarray(s[k])[np.asarray(kept[k])] for k in kept])


@pytest.mark.parametrize("name", quick(CRITERIA))
def test_scores(name: str, x64: None) -> None:
    criterion = method(name)
    assert isinstance(criterion, Criterion)
    params, m, of, draw = weights(), mask(), problem(), key(0, "score")
    before = fingerprint([params, m, of.images, of.labels])
    worlds = [(params, m), (permuted(params), permuted(m)), (rescaled(params), m), (params, m)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *worlds)
    lanes = jax.jit(jax.vmap(lambda p, m, of: criterion.score(of, p, m, draw), (0, 0, None)))
    found = lanes(*stacked, of)
    plain, moved, scaled, again = (jax.tree.map(lambda s, i=i: s[i], found) for i in range(4))

    assert jax.tree.structure(plain) == jax.tree.structure(m)
    for k, s in flatten(plain).items():
        assert s.shape == flatten(m)[k].shape
        assert s.dtype == np.float64
    wanted = live(plain, m)
    assert np.isfinite(wanted).all()
    assert (wanted == live(again, m)).all()
    assert criterion.signed or (wanted >= 0).all()
    scale = np.abs(wanted).max()
    if criterion.permutes:
        np.testing.assert_allclose(live(permuted(moved, back=True), m), wanted, RTOL, RTOL * scale)
    if criterion.rescales:
        np.testing.assert_allclose(live(scaled, m), wanted, RTOL, RTOL * scale)
    assert fingerprint([params, m, of.images, of.labels]) == before


@pytest.mark.long
@pytest.mark.parametrize("name", CRITERIA)
def test_scores_alone_are_those_of_a_lane_and_of_chunks(name: str, x64: None) -> None:
    criterion = method(name)
    params, m, of, draw = weights(), mask(), problem(), key(0, "score")

    def score(criterion: Any) -> Any:
        return jax.jit(lambda p, m, of: criterion.score(of, p, m, draw))(params, m, of)

    alone = live(score(criterion), m)
    one = jax.tree.map(lambda x: x[None], (params, m))
    lane = jax.jit(jax.vmap(lambda p, m, of: criterion.score(of, p, m, draw), (0, 0, None)))(
        *one, of
    )
    scale = np.abs(alone).max()
    np.testing.assert_allclose(
        live(jax.tree.map(lambda s: s[0], lane), m), alone, RTOL, RTOL * scale
    )
    if hasattr(criterion, "chunk"):
        split = dataclasses.replace(criterion, chunk=7)
        np.testing.assert_allclose(live(score(split), m), alone, RTOL, RTOL * scale)


@pytest.mark.parametrize("name", quick(CRITERIA))
def test_find_keeps_exactly_what_was_asked_and_nothing_returns(name: str) -> None:
    kind = load(name)
    found = find(NET, examples(), name, 0.3, rounds=3, schedule="exponential", progress=False)
    p = found.provenance
    assert p.kept == sum(alive(found.mask).values()) == p.kept_by_round[-1] == 19
    assert p.revived == 0 or kind.revival  # type: ignore[union-attr]
    if not kind.revival:  # type: ignore[union-attr]
        # one round more keeps a subset
        steps = [*p.schedule["densities"], 0.2]
        less = find(NET, examples(), name, schedule=steps, progress=False)
        assert all(
            (b | ~a).all() for a, b in zip(jax.tree.leaves(less.mask), jax.tree.leaves(found.mask))
        )
    assert (p.title, p.source) == (kind.title, kind.source)
    assert bool(p.data) == ("images" in kind.needs)
    for k, m in flatten(found.mask).items():
        assert (flatten(found.params)[k][~m] == 0).all()


@pytest.mark.long
@pytest.mark.parametrize("name", CRITERIA)
def test_lanes_are_single_runs(name: str) -> None:
    lanes = find_lanes(NET, examples(), name, 0.3, seeds=[0, 1], progress=False)
    for seed, lane in enumerate(lanes):
        alone = find(NET, examples(), name, 0.3, seed=seed, progress=False)
        differ = sum(
            int((a != b).sum())
            for a, b in zip(jax.tree.leaves(lane.mask), jax.tree.leaves(alone.mask))
        )
        assert differ <= 2  # products of lanes round otherwise; a pair at the border may swap


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [n for n in CONSTRUCTIONS if n.split("-")[0] != "ntt" or "random" in n]
)
def test_constructions_keep_what_was_asked(name: str) -> None:
    found = find(NET, examples(), name, 0.5, progress=False)
    assert 31 <= found.provenance.kept <= 31 + 2  # PHEW: at most one a layer more, less one
    assert found.provenance.kept == sum(alive(found.mask).values())
    again = find(NET, examples(), name, 0.5, progress=False)
    assert fingerprint(again.mask) == fingerprint(found.mask)


@pytest.mark.parametrize("name", ["magnitude", pytest.param("snip", marks=pytest.mark.long)])
def test_weights_that_are_not_finite_are_refused_with_their_layer(name: str) -> None:
    params = NET.init(key(0))[0]
    kernel = params["dense_2"]["kernel"].at[0, 0].set(jnp.nan)
    broken = {**params, "dense_2": {"kernel": kernel}}
    with pytest.raises(SecateurError, match=r"NaN or infinite in .*dense_2/kernel \("):
        find(NET, examples(), name, 0.3, params=broken, progress=False)


PAIRS = [
    (scope, schedule)
    for scope in SCOPES
    if scope not in ("given", "smart-ratio", "n-of-m")  # other densities, other networks
    for schedule in ("linear", "cubic", "inverse")
]


@pytest.mark.long
@pytest.mark.parametrize(("scope", "schedule"), PAIRS)
def test_scopes_and_schedules_in_pairs(scope: str, schedule: str) -> None:
    found = find(
        NET, examples(), "snip", 0.5, scope=scope, schedule=schedule, rounds=3, progress=False
    )
    p = found.provenance
    assert p.revived == 0
    if SCOPES[scope].exact:
        assert p.kept == 31
    else:
        assert 0 < p.kept <= 31 + len(p.layers)
    small = find(
        NET, examples(), "snip", 0.5, scope=scope, schedule=schedule, rounds=3, keep_at_least=1,
        progress=False,
    )  # fmt: skip
    assert min(alive(small.mask).values()) >= 1


@pytest.mark.parametrize("name", METHODS)
def test_every_row_of_the_table_is_whole(name: str) -> None:
    made = method(name)
    kind = type(made)
    assert kind.title
    assert kind.source
    assert kind.__doc__
    assert kind.needs <= {"images", "labels"}
    assert hash(made) == hash(method(name))  # a program is compiled once for equal options
    if isinstance(made, Criterion):
        assert made.scope in SCOPES
    hints = typing.get_type_hints(kind)
    for f in dataclasses.fields(made):
        assert fits(getattr(made, f.name), hints[f.name])
