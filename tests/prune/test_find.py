"""`find`: exact counts, one program, lanes, data of every kind, one sentence for each mistake."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur import data
from secateur.core.errors import SecateurError
from secateur.core.keys import key
from secateur.core.network import Network
from secateur.core.trees import alive, apply_mask, fingerprint, flatten, map_mask
from secateur.networks.mlp import mlp
from secateur.prune import find as module
from secateur.prune.criterion import Criterion, Scores
from secateur.prune.find import declared_order, find, find_lanes
from secateur.prune.scopes import Given, NofM

NET = mlp(8, 6, input_shape=(4, 3, 1), outputs=3)
N = 12 * 8 + 8 * 6 + 6 * 3  # 162


@cache
def arrays(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 4, 3, 1)).astype(np.float32), np.arange(n) % 3


@dataclass(frozen=True)
class Planted(Criterion):
    """|theta|, but one score of dense_2 is a bias, while that layer's density is below another.

    Biases are data: one program plants whatever the test says.
    """

    title: ClassVar[str] = "planted"
    source: ClassVar[str] = "this test"

    def score(self, problem: Any, params: Any, mask: Any, key: Any) -> Scores:
        s = map_mask(lambda m, t: None if m is None else jnp.abs(t), mask, params)
        value, below = params["dense_2"]["bias"][:2]
        layer = s["dense_2"]["kernel"]
        planted = layer.at[0, 0].set(value)
        s["dense_2"]["kernel"] = jnp.where(
            jnp.mean(mask["dense_2"]["kernel"]) < below, planted, layer
        )
        return s


def planted(value: float, below: float = 2.0) -> Any:
    params = NET.init(key(0, "initial"))[0]
    bias = jnp.zeros(6).at[0].set(value).at[1].set(below)
    return {**params, "dense_2": {**params["dense_2"], "bias": bias}}


def test_magnitude_is_numpys() -> None:
    found = find(NET, None, "magnitude", 0.3, seed=3, progress=False)
    assert found.provenance.kept == 49
    dense, _ = NET.init(key(3, "initial"))
    order = declared_order(NET, found.mask)
    flat = np.concatenate([np.abs(flatten(dense)[n]).ravel() for n in order])
    wanted = np.zeros(N, bool)
    wanted[np.argsort(-flat, kind="stable")[:49]] = True
    got = np.concatenate([flatten(found.mask)[n].ravel() for n in order])
    assert (got == wanted).all()
    assert fingerprint(found.params) == fingerprint(apply_mask(found.mask, dense))


def test_the_order_is_the_networks_and_not_the_alphabets() -> None:
    deep = mlp(*[2] * 10, input_shape=(2,), outputs=2)
    order = declared_order(deep, deep.prunable(jax.eval_shape(deep.init, jax.random.key(0))[0]))
    assert order == tuple(f"dense_{l}/kernel" for l in range(1, 12))


@pytest.mark.parametrize("schedule", ["exponential", "linear", "inverse", "cubic", [0.8, 0.5, 0.2]])
def test_masks_of_rounds_are_nested_and_exact(schedule: Any) -> None:
    rounds = None if isinstance(schedule, list) else 4
    found = find(NET, arrays(), "snip", 0.2, schedule=schedule, rounds=rounds, progress=False)
    kept = found.provenance.kept_by_round
    assert kept[-1] == found.provenance.kept == round(0.2 * N)
    assert found.provenance.revived == 0
    assert sum(alive(found.mask).values()) == kept[-1]


def test_one_program_serves_all_rounds_densities_seeds_and_weights() -> None:
    find(NET, arrays(), "snip", 0.5, rounds=2, progress=False)
    compiled = module.run_rounds._cache_size()
    other = jax.tree.map(lambda x: x + 1, NET.init(jax.random.key(9))[0])
    find(NET, arrays(), "snip", 0.1, rounds=40, schedule="linear", seed=4, progress=False)
    find(NET, arrays(), "snip", 0.2, params=other, progress=False)
    find(NET, (arrays()[0] * 2, arrays()[1]), "snip", 0.3, progress=False)
    assert module.run_rounds._cache_size() == compiled


@pytest.mark.long
def test_where_rounds_are_divided_makes_no_difference() -> None:
    """By key of the round: a driver that calls for one round at a time gives the same mask."""
    seen: list[tuple[int, int]] = []
    a = find(NET, arrays(), "random", 0.1, rounds=12, schedule="exponential", progress=False)
    b = find(
        NET, arrays(), "random", 0.1, rounds=12, schedule="exponential",
        progress=lambda done, of: seen.append((done, of)),
    )  # fmt: skip
    assert fingerprint(a.mask) == fingerprint(b.mask)
    assert seen[-1] == (12, 12)
    assert [d for d, _ in seen] == sorted({d for d, _ in seen})
    asked, mask = module.plan(
        NET, a.params, None, "random", 0.1, schedule="exponential", rounds=12,
        key=module._keys(0)[1],
    )  # fmt: skip
    carry = module._begin(mask, 3)
    table = module._padded(asked.counts)
    weights, stats = NET.init(jax.random.key(0))
    for k in range(12):
        carry = module.run_rounds(
            asked.criterion, asked.scope, asked.order, asked.ties, False, asked.problem,
            stats, weights, carry, table, module._keys(0)[1], jnp.int32(k), jnp.int32(k + 1),
        )  # fmt: skip
    assert fingerprint(jax.tree.map(np.asarray, carry.mask)) == fingerprint(a.mask)


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "method", ["snip", pytest.param("magnitude", marks=LONG), pytest.param("random", marks=LONG)]
)
@pytest.mark.long
def test_lanes_are_single_runs(method: str) -> None:
    seeds = [0, 5, 7]
    lanes = find_lanes(NET, arrays(), method, 0.25, seeds=seeds, progress=False)
    for seed, lane in zip(seeds, lanes):
        alone = find(NET, arrays(), method, 0.25, seed=seed, progress=False)
        assert fingerprint(lane.mask) == fingerprint(alone.mask)
        assert fingerprint(lane.params) == fingerprint(alone.params)
        assert replace(lane.provenance, data={}) == replace(alone.provenance, data={})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.long
def test_scores_without_a_rank_are_refused_with_layer_and_round(value: float) -> None:
    with pytest.raises(SecateurError, match=r"in dense_2/kernel \(1\), round 1,"):
        find(NET, None, Planted(), 0.5, params=planted(value), progress=False)
    with pytest.raises(SecateurError, match=r"in dense_2/kernel \(1\), round [2-9],"):
        find(NET, None, Planted(), 0.5, params=planted(value, 0.999), rounds=4, progress=False)


def test_a_pruned_weight_may_score_anything() -> None:
    low = find(NET, None, Planted(), 0.5, params=planted(0.0), progress=False)
    assert not flatten(low.mask)["dense_2/kernel"][0, 0]
    # NaN once the layer has lost weights; the planted place is lost first
    kernel = planted(float("nan"), 0.999)
    kernel["dense_2"]["kernel"] = kernel["dense_2"]["kernel"].at[0, 0].set(0)
    found = find(NET, None, Planted(), schedule=[0.5, 0.4], params=kernel, progress=False)
    assert found.provenance.kept == 65


@pytest.mark.long
def test_revival_is_counted_and_only_if_asked() -> None:
    settings: dict[str, Any] = {"schedule": [0.6, 0.5, 0.4], "progress": False}
    monotone = find(NET, None, "random", **settings)
    again = find(NET, None, "random", revival=True, **settings)
    assert monotone.provenance.revived == 0
    assert again.provenance.revived > 0
    assert again.provenance.kept == monotone.provenance.kept


@pytest.mark.long
def test_data_of_every_kind_give_one_mask() -> None:
    x, y = arrays()
    settings: dict[str, Any] = {"density": 0.2, "progress": False}
    wanted = find(NET, (x, y), "snip", **settings)
    batches = [(x[i : i + 20], y[i : i + 20]) for i in range(0, 60, 20)]
    forms = [
        [x, y],
        data.Examples(x, y.astype(np.int32)),
        batches,
        iter(batches),
        ({"image": a, "label": b} for a, b in batches),
    ]
    for form in forms:
        found = find(NET, form, "snip", **settings)
        assert fingerprint(found.mask) == fingerprint(wanted.mask)
        assert found.provenance.data["sha256"] == wanted.provenance.data["sha256"]
    assert found.provenance.data["batches"] == 3
    sets = data.from_arrays("own", (x, y), (x, y), (x, y), mean=[0.0], std=[1.0])
    found = find(NET, sets, "snip", **settings)
    assert fingerprint(found.mask) == fingerprint(wanted.mask)
    assert found.provenance.data["part"] == "train"


@pytest.mark.long
def test_batches_are_read_until_there_are_enough() -> None:
    x, y = arrays()
    read = []

    def endless() -> Any:
        while True:
            read.append(1)
            yield x[:20], y[:20]

    found = find(NET, endless(), "snip", 0.3, progress=False)
    assert len(read) == found.provenance.data["batches"] == 7  # 128 examples in batches of 20


@LONG
def test_bytes_are_normalised_in_the_program() -> None:
    x = np.random.default_rng(1).integers(0, 256, (60, 4, 3, 1), np.uint8)
    y = arrays()[1]
    found = find(NET, (x, y), "snip", 0.2, examples=60, progress=False)
    mean, std = x.mean() / 255, x.std() / 255
    floats = ((x / 255 - mean) / std).astype(np.float32)
    same = find(NET, (floats, y), "snip", 0.2, examples=60, progress=False)
    assert fingerprint(found.mask) == fingerprint(same.mask)
    assert found.provenance.data["normalised"]["own"]


@LONG
def test_double_precision(x64: None) -> None:
    found = find(NET, arrays(), "snip", 0.2, progress=False)
    assert flatten(found.params)["dense_1/kernel"].dtype == np.float64
    assert found.provenance.versions["float"] == "float64"


def test_what_may_be_pruned() -> None:
    first = "dense_1/kernel"
    for out in ([first], lambda name: name != first, "dense_1/*"):
        found = find(NET, None, "magnitude", 0.2, prunable=out, progress=False)  # type: ignore[arg-type]
        assert flatten(found.mask)[first] is None
        assert found.provenance.of == N - 96
        assert first in found.provenance.excluded


@LONG
def test_own_scopes_say_their_density() -> None:
    wanted = {"dense_1/kernel": 0.25, "dense_2/kernel": 0.5, "dense_3/kernel": 1.0}
    found = find(NET, None, "magnitude", scope=Given(tuple(wanted.items())), progress=False)
    assert alive(found.mask) == {"dense_1/kernel": 24, "dense_2/kernel": 24, "dense_3/kernel": 18}
    found = find(
        NET, None, "magnitude", scope=NofM(1, 2), prunable=["dense_9/*"][:0], progress=False
    )
    assert found.density == 0.5


def test_parity_follows_the_published_rules() -> None:
    params, _ = NET.init(key(0, "initial"))

    def asked(**other: Any) -> module.Plan:
        return module.plan(NET, params, arrays(), "snip", 0.9, key=key(0), **other)[0]

    found = asked(parity="synaptic-flow")
    p = found.provenance
    assert found.counts.tolist() == [[N - int((1 - 0.9) * N)]]
    assert (p.bn, p.options["examples"], p.revival, p.ties) == ("init", 30, True, "threshold-drop")
    assert p.parity is not None
    assert p.parity["code"] == "synaptic-flow"
    plain = asked()
    assert plain.counts.tolist() == [[146]]
    assert (plain.provenance.bn, plain.provenance.parity) == ("batch", None)
    assert asked(parity="synaptic-flow", options={"examples": 7}).criterion.examples == 7  # type: ignore[union-attr]


def test_inputs_are_not_changed() -> None:
    x, y = arrays()
    params, stats = NET.init(jax.random.key(0))
    before = fingerprint({"p": params, "x": x, "y": y})
    found = find(NET, (x, y), "snip", 0.3, params=params, stats=stats, progress=False)
    assert fingerprint({"p": params, "x": x, "y": y}) == before
    assert found.provenance.start == {"from": "given", "sha256": fingerprint(params)}


def unprunable() -> Network:
    return replace(NET, name="odd", prunable=lambda p: jax.tree.map(lambda _: None, p))


X, Y = arrays()


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"density": 0}, "density is the fraction of prunable weights that is kept, above 0"),
        ({"density": 1.5}, "not 1.5"),
        ({"density": 0.001}, "leaves less than one of the 162"),
        ({"data": None}, "snip scores weights on examples and labels; give data"),
        ({"data": (X, None)}, r"snip needs labels, and the data have none"),
        ({"data": X}, r"snip needs labels, and the data have none"),
        ({"data": (X[:, :3], Y)}, r"shape \(3, 3, 1\) each, but mlp-8-6 takes \(4, 3, 1\)"),
        ({"data": (X, Y + 1)}, "labels go from 1 to 3, but mlp-8-6 has 3 outputs"),
        ({"per_class": 10**3}, "1000 examples of each class, and class . has"),
        ({"data": (X, Y * 0), "per_class": 1}, "the data have none of class 1; give some"),
        ({"data": (X, Y[:5])}, "60 examples but 5 labels"),
        ({"data": (X, np.eye(3)[Y])}, r"one-hot rows give labels.argmax\(1\)"),
        ({"data": (X * np.nan, Y)}, "60 examples hold NaN"),
        ({"data": (X[:0], Y[:0])}, "no examples"),
        ({"data": "mnist"}, "not the name 'mnist'"),
        ({"data": 3}, "data is a int"),
        ({"data": [3, 4, 5]}, "a batch of the data is a int"),
        ({"data": []}, "no batches"),
        ({"method": "snap"}, "there is no method 'snap'. Did you mean 'snip'"),
        ({"exampels": 3}, "snip has no option 'exampels'. Did you mean 'examples'"),
        ({"examples": "many"}, "option examples of snip is int, not 'many'"),
        ({"scope": "everywere"}, "Did you mean 'everywhere'"),
        ({"schedule": "linear"}, "say how many rounds"),
        ({"parity": "synflow"}, "no published code 'synflow'"),
        ({"count": "near"}, "Did you mean 'nearest'"),
        ({"loss": "mze"}, "Did you mean 'mse'"),
        ({"prunable": ["dense_4/kernel"]}, "Did you mean"),
        ({"prunable": lambda name: False}, "nothing is left to prune"),
        ({"network": unprunable()}, "nothing can be pruned in odd"),
        ({"params": {"dense_1": {}}}, "dense_1/bias is missing"),
        ({"stats": {}}, "give both, or neither"),
        ({"seed": 0.5}, "seed is a whole number or a key"),
        ({"keep_at_least": -1}, "whole number from 0"),
        ({"method": "magnitude", "scope": "n-of-m", "density": 0.2}, "leave density out"),
        ({"method": "ntt-random-fixed", "rounds": 3}, "rounds means nothing to it"),
    ],
)  # fmt: skip
def test_one_sentence_for_each_mistake(asked: dict[str, Any], word: str) -> None:
    given: dict[str, Any] = {"network": NET, "data": (X, Y), "method": "snip", "progress": False}
    with pytest.raises(SecateurError, match=word):
        find(**{**given, **asked})
