"""The empirical tangent kernel by every rule against J J' from JAX's own Jacobian, in float64."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.core.trees import flatten, map_mask
from secateur.kernels import job
from secateur.kernels.ntk import ntk, ntk_blocks, ntk_operator, plan
from secateur.kernels.subject import DifferentiatedWarning
from secateur.networks.mlp import mlp
from secateur.networks.registry import network

pytestmark = pytest.mark.usefixtures("x64")
NET = mlp(9, 7, input_shape=(3, 4, 1), outputs=3)


def example(n: int, net: Any = NET, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, *net.input_shape))


def weights(net: Any = NET) -> tuple[Any, Any]:
    return _weights(net)


@functools.cache
def _weights(net: Any) -> tuple[Any, Any]:
    """Noisy parameters and statistics, in float64."""
    rng = np.random.default_rng(1)
    params, stats = net.init(jax.random.key(0))
    noisy = lambda a: np.asarray(a, np.float64) + 0.1 * rng.standard_normal(np.shape(a))
    return jax.tree.map(noisy, params), jax.tree.map(lambda a: np.asarray(a, np.float64), stats)


def masked(density: float, net: Any = NET, seed: int = 2) -> Any:
    rng = np.random.default_rng(seed)
    one = lambda leaf: None if leaf is None else rng.random(leaf.shape) < density
    return jax.tree.map(one, net.prunable(weights(net)[0]), is_leaf=lambda leaf: leaf is None)


@functools.cache
def _jacobian(net: Any) -> Any:
    return jax.jit(jax.jacrev(lambda p, s, x: net.apply(p, s, x)))


def jacobian(x: np.ndarray, mask: Any = None, net: Any = NET, at: Any = None) -> np.ndarray:
    """(n, C, counted weights), at the masked parameters or at those given."""
    params, stats = weights(net)
    point = params
    if mask is not None:
        point = map_mask(lambda m, p: p if m is None else m * p, mask, params)
    rows = flatten(_jacobian(net)(point if at is None else at, stats, x))
    masks = {} if mask is None else flatten(mask)
    kept = []
    for name, j in rows.items():
        flat = np.asarray(j).reshape(*j.shape[:2], -1)
        m = masks.get(name)
        kept.append(flat if m is None else flat[:, :, np.ravel(m)])
    return np.concatenate(kept, axis=2)


def right(left: np.ndarray, other: np.ndarray, outputs: str) -> np.ndarray:
    rule = {"full": "nck,mdk->ncmd", "trace": "nck,mck->nm", "diagonal": "nck,mck->nmc"}
    return np.einsum(rule[outputs], left, other)


def close(found: np.ndarray, wanted: np.ndarray, to: float = 1e-12) -> None:
    assert found.shape == wanted.shape
    np.testing.assert_allclose(
        found, wanted, rtol=0, atol=to * np.max(np.abs(wanted), initial=1e-9)
    )


@pytest.mark.parametrize(
    "outputs", ["full", "trace", pytest.param("diagonal", marks=pytest.mark.long)]
)
@pytest.mark.parametrize(
    ("density", "rule"),
    [(1.0, "dense"), (0.4, "rows"), (0.4, "columns"), (0.02, "auto"), (0.0, "rows")],
)
def test_every_rule_is_the_product_of_jacobians(outputs, density, rule):
    """Also with layers and units that nothing is left of, and blocks that do not divide n."""
    x, mask = example(5), masked(density) if density < 1 else None
    found = ntk(NET, weights()[0], x, stats={}, mask=mask, outputs=outputs, rule=rule, block_size=2)
    j = jacobian(x, mask)
    close(found.values, right(j, j, outputs))
    matrix = np.moveaxis(found.values, 2, 0) if outputs == "diagonal" else found.matrix()
    assert np.array_equal(matrix, np.swapaxes(matrix, -1, -2)), "symmetric to the last bit"
    assert found.trace() == pytest.approx(float(np.sum(j * j)), rel=1e-12)


@pytest.mark.parametrize("rule", ["rows", "columns"])
def test_what_is_0_in_all_examples_of_a_large_kernel_is_left_out(rule, monkeypatch):
    """Inputs that are black in every example, and a unit that none of them wakes."""
    seen = []
    of = job.buckets
    monkeypatch.setattr(job, "COMPILED", 0)
    monkeypatch.setattr(job, "buckets", lambda *a: seen.append(a) or of(*a))
    x, mask = example(5), masked(0.4)
    x.reshape(5, -1)[:, ::3] = 0
    params = dict(weights()[0])
    asleep = params["dense_1"]["bias"].copy()
    asleep[4] = -99
    params["dense_1"] = {**params["dense_1"], "bias": asleep}
    found = ntk(NET, params, x, stats={}, mask=mask, rule=rule)
    j = jacobian(x, mask, at=map_mask(lambda m, p: p if m is None else m * p, mask, params))
    close(found.values, right(j, j, "full"))
    _, _, inputs, units, coarse = next(a for a in seen if len(a[3]) == 9)
    assert not coarse
    assert not inputs[::3].any()
    assert inputs[1::3].all()
    assert not units[4]


@pytest.mark.long
@pytest.mark.parametrize("outputs", ["full", "trace", "mean", "diagonal"])
@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("rule", ["dense", "rows", "columns"])
def test_rules_agree_between_two_sets_of_examples(rule, density, outputs, monkeypatch):
    """Small kernels take all units of a layer alike, large ones sort them by what is left."""
    x, y, mask = example(7), example(4, seed=5), masked(density)
    whole = right(jacobian(x, mask), jacobian(y, mask), "trace" if outputs == "mean" else outputs)
    for block_size, compiled in ((1, job.COMPILED), (7, 0)):
        monkeypatch.setattr(job, "COMPILED", compiled)
        found = ntk(
            NET,
            weights()[0],
            x,
            y,
            stats={},
            mask=mask,
            outputs=outputs,
            rule=rule,
            block_size=block_size,
        )
        close(found.values, whole / 3 if outputs == "mean" else whole)


@pytest.mark.long
def test_parts_that_fit_in_little_memory_are_the_whole():
    x, mask = example(7), masked(0.5)
    how = {"stats": {}, "mask": mask, "rule": "columns"}
    for outputs in ("full", "trace"):
        whole = ntk(NET, weights()[0], x, outputs=outputs, **how)
        parts = ntk(NET, weights()[0], x, outputs=outputs, memory=20_000, **how)
        assert parts.plan.at_once != whole.plan.at_once
        close(parts.values, whole.values)
    blocks = list(ntk_blocks(NET, weights()[0], x, block_size=3, **how))
    assert len(blocks) == 6
    whole = ntk(NET, weights()[0], x, **how)
    for rows, columns, block in blocks:
        close(block, whole.values[rows, :, columns])


@pytest.mark.long
def test_a_sum_of_leaves_and_of_masks():
    params, x = weights()[0], example(4)
    one, two = masked(0.5), masked(0.5, seed=3)
    both = jax.tree.map(np.logical_or, one, two)
    rest = jax.tree.map(lambda a, b: np.logical_and(b, ~a), one, two)
    point = map_mask(lambda m, p: p if m is None else m * p, both, params)
    kernels_only = {"stats": {}, "counted": lambda name: name.endswith("kernel")}
    at = lambda mask: ntk(NET, point, x, mask=mask, masked_point=False, **kernels_only).values
    close(at(one) + at(rest), at(both))
    parts = [
        ntk(NET, params, x, stats={}, mask=one, counted=lambda name, leaf=leaf: name == leaf)
        for leaf in flatten(params)
    ]
    close(sum(p.values for p in parts), ntk(NET, params, x, stats={}, mask=one).values)
    assert parts[0].counted == ("dense_1/bias",)


def test_laws_of_the_kernel():
    params, x, y, mask = weights()[0], example(5), example(3, seed=4), masked(0.3)
    full = ntk(NET, params, x, stats={}, mask=mask)
    lowest = np.linalg.eigvalsh(full.matrix())
    assert lowest[0] >= -1e-10 * lowest[-1]
    whole = masked(2.0)
    close(ntk(NET, params, x, stats={}, mask=whole).values, ntk(NET, params, x, stats={}).values)
    across = ntk(NET, params, x, y, stats={}, mask=mask).values
    back = ntk(NET, params, y, x, stats={}, mask=mask).values
    close(np.transpose(back, (2, 3, 0, 1)), across)
    again = ntk(NET, params, x, stats={}, mask=mask)
    assert np.array_equal(again.values, full.values)
    order = np.random.default_rng(0).permutation(9)
    turned = jax.tree.map(np.copy, params)
    turned["dense_1"] = {"kernel": params["dense_1"]["kernel"][:, order]}
    turned["dense_1"]["bias"] = params["dense_1"]["bias"][order]
    turned["dense_2"]["kernel"] = params["dense_2"]["kernel"][order]
    close(ntk(NET, turned, x, stats={}).values, ntk(NET, params, x, stats={}).values)


@pytest.mark.parametrize("memory", [1e9, pytest.param(0, marks=pytest.mark.long)])
def test_the_operator_is_the_matrix(memory):
    params, x, mask = weights()[0], example(5), masked(0.4)
    found = ntk_operator(NET, params, x, stats={}, mask=mask, memory=memory)
    matrix = ntk(NET, params, x, stats={}, mask=mask).matrix()
    close(np.asarray(found @ np.eye(15)), matrix)
    assert found.trace == (None if memory == 0 else pytest.approx(np.trace(matrix), rel=1e-12))


def test_any_function_and_a_leaf_that_no_rule_knows(getkey):
    params = {"w": jax.random.normal(getkey(), (5, 4)), "v": jax.random.normal(getkey(), (4,))}

    def f(p, x):
        return jnp.tanh(x["a"] @ jnp.exp(p["w"])) * p["v"] + x["b"]

    x = {"a": np.random.default_rng(0).standard_normal((3, 5)), "b": np.zeros((3, 4))}
    mask = {"w": np.eye(5, 4) > 0, "v": None}
    point = {"w": params["w"] * mask["w"], "v": params["v"]}
    rows = jax.jacrev(f)(point, x)
    j = np.concatenate([np.asarray(rows["v"]), np.asarray(rows["w"])[:, :, mask["w"]]], axis=2)
    assert "w: it goes through exp" in str(plan(f, params, x, mask=mask))
    with pytest.warns(DifferentiatedWarning, match="for 'w' \\(it goes through exp") as told:
        found = ntk(f, params, x, mask=mask)
    assert [Path(w.filename) for w in told] == [Path(__file__)], "once, and of the caller's line"
    again = ntk(f, params, x, outputs="trace")  # a warning would be an error
    assert again.counted == found.counted
    close(found.values, right(j, j, "full"))
    lines = {line.leaf: line for line in found.plan.lines}
    assert lines["w"].rule == "differentiated"
    assert "goes through exp" in str(found.plan)
    assert lines["w"].kept == 4


def test_the_scale_of_a_norm_is_read_beside_its_statistics():
    """They are leaves, too, but nobody differentiates by them: no leaf is warned of."""

    def apply(p: Any, stats: Any, x: Any) -> Any:
        gain = p["scale"] * jax.lax.rsqrt(stats["var"] + 1e-5)
        return jnp.tanh((x @ p["kernel"] - stats["mean"]) * gain + p["bias"])

    def init(key: Any) -> Any:
        p = {"kernel": jnp.ones((4, 3)), "scale": jnp.ones(3), "bias": jnp.zeros(3)}
        return p, {"mean": jnp.arange(3.0), "var": jnp.arange(1.0, 4.0)}

    train = lambda p, s, x, key: (apply(p, s, x), s)
    net = Network("norm", (4,), 3, init, apply, train)
    params, stats = weights(net)
    x = example(3, net)
    j = jacobian(x, None, net)
    found = ntk(net, params, x, stats=stats)
    close(found.values, right(j, j, "full"))
    assert {line.leaf: line.kind for line in found.plan.lines}["scale"] == "scale"


@pytest.mark.long
@pytest.mark.parametrize(
    "net", [network("lenet-5-caffe"), network("resnet-20", width=3)], ids=["lenet-5", "resnet-20"]
)
@pytest.mark.parametrize("density", [0.2, 1.0])
def test_convolutional_networks(net, density):
    params, stats = weights(net)
    x, mask = example(3, net), masked(density, net)
    j = jacobian(x, mask, net)
    for outputs in ("full", "trace"):
        found = ntk(net, params, x, stats=stats, mask=mask, outputs=outputs, block_size=2)
        close(found.values, right(j, j, outputs), 1e-10)


@pytest.mark.long
def test_single_precision_is_near():
    params, x, mask = weights()[0], example(4), masked(0.4)
    j = jacobian(x, mask)
    with jax.enable_x64(False):
        low = jax.tree.map(lambda a: np.asarray(a, np.float32), params)
        found = ntk(NET, low, np.asarray(x, np.float32), stats={}, mask=mask)
    assert found.values.dtype == np.float32
    close(found.values, right(j, j, "full"), 1e-5)


def test_a_plan_counts_without_computing():
    params, x = weights()[0], example(5)
    made = plan(NET, params, x, stats={}, mask=masked(0.4), rule="rows")
    assert made.result == 5 * 3 * 5 * 3 * 8
    lines = {line.leaf: line for line in made.lines}
    kept = flatten(masked(0.4))
    assert {name: line.kept for name, line in lines.items() if line.kind == "dense"} == {
        name: int(m.sum()) for name, m in kept.items() if m is not None
    }
    assert "dense_1/kernel" in str(made)
    assert made.seconds > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"f": lambda p, x: jnp.argmax(NET.apply(p, {}, x), 1)[:, None]}, "have no derivative"),
        ({"f": lambda p, x: NET.apply(p, {}, x)[0]}, "expected \\(n, outputs\\)"),
        (
            {"f": lambda p, x: jax.lax.stop_gradient(NET.apply(p, {}, x))},
            "no derivative by any counted leaf",
        ),
        (
            {"f": lambda p, x: NET.apply(p, {}, x) - jnp.mean(NET.apply(p, {}, x), 0)},
            "depend on the others in its batch",
        ),
        (
            {"mask": {"dense_1": {"kernel": np.ones((12, 9), bool)}}},
            "the mask lacks 'dense_1/bias'",
        ),
        ({"mask": jax.tree.map(lambda m: m.T, masked(0.5))}, "expected \\(12, 9\\) as the leaf is"),
        ({"mask": jax.tree.map(lambda m: m * 0.5, masked(0.5))}, "other values than 0 and 1"),
        ({"counted": lambda name: False}, "no leaf is counted"),
        ({"outputs": "sum"}, "form of the kernel"),
        ({"counted": "dense_1"}, "counted is a function"),
        ({"memory": "4GB"}, "memory is a number of bytes"),
        ({"memory": float("nan")}, "memory is a number of bytes"),
        ({"block_size": 2.5}, "block_size a whole number"),
        ({"params": {}, "f": lambda p, x: x[:, 0, :, 0]}, "params hold no array"),
        ({"x": np.zeros((0, 3, 4, 1))}, "one number above 0"),
        ({"x": np.where(np.arange(60).reshape(5, 3, 4, 1) == 59, np.nan, 1.0)}, "holds NaN"),
        (
            {
                "x": np.where(np.arange(4)[:, None, None, None] == 3, 1e200, 1 + example(4)),
                "f": lambda p, x: NET.apply(p, {}, x) ** 2,
            },
            "not finite at some examples",
        ),
        ({"x": np.zeros((4, 5)), "f": lambda p, x: x @ np.ones((3, 2))}, "cannot take these"),
        (
            {"x": np.ones((1, 3, 4, 1)), "f": lambda p, x: NET.apply(p, {}, x - jnp.mean(x, 0))},
            "depend on the others in its batch",
        ),
        ({"x": np.zeros((4, 3, 3, 1))}, "expected \\(n, 3, 4, 1\\)"),
        ({"block_size": 0}, "above 0"),
    ],
)
def test_what_has_no_kernel_is_refused_in_one_sentence(change, said):
    given: dict[str, Any] = {"f": NET, "params": weights()[0], "x": example(4)} | change
    if given["f"] is NET:
        given["stats"] = {}
    with pytest.raises(SecateurError, match=said):
        ntk(given.pop("f"), given.pop("params"), given.pop("x"), **given)


def test_a_kernel_larger_than_memory_is_refused_before_any_work(monkeypatch):
    from secateur.kernels import job

    monkeypatch.setattr(job, "_free_memory", lambda: 10_000.0)
    with pytest.raises(
        SecateurError,
        match=r'takes 1.04e-05 GB and 1e-05 GB are free: outputs="trace" \(1.15e-06 GB\)',
    ):
        ntk(NET, weights()[0], example(12), stats={}, outputs="full")


@pytest.mark.long
def test_asking_again_compiles_nothing_anew():
    """Also of a pruned network that has moved on: other units are awake."""
    params, x, mask = weights()[0], example(5), masked(0.4)
    moved = jax.tree.map(lambda p: p - 0.3, params)
    ask = lambda params, mask: ntk(NET, params, x, stats={}, outputs="trace", mask=mask)
    ask(params, None), ask(params, mask)
    seen: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: seen.append(name))
    ask(params, None), ask(moved, mask)
    asked = list(seen)
    jax.jit(lambda x: x + len(asked))(1.0)
    assert [name for name in seen if "backend_compile" in name], "the listener hears compiles"
    assert not [name for name in asked if "backend_compile" in name]


def _mlp(p: Any, x: Any) -> jax.Array:
    h = jnp.maximum(x.reshape(len(x), -1) @ p["w1"] + p["b1"], 0)
    return jnp.tanh(h @ p["w2"]) @ p["w3"] + p["b3"]


def _cnn(p: Any, x: Any) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    h = jax.lax.conv_general_dilated(x, p["k"], (2, 1), "SAME", dimension_numbers=numbers)
    return jnp.maximum(h + p["c"], 0).reshape(len(x), -1) @ p["w"]


@pytest.mark.parametrize(("name", "f"), [("mlp", _mlp), ("cnn", _cnn)])
def test_neural_tangents_says_the_same(name, f):
    """Numbers that neural-tangents 0.6.5 gave once: `scripts/opponent_kernels.py`."""
    held = np.load(Path(__file__).parent / "neural_tangents.npz")
    of = lambda kind: {k.split(".")[2]: held[k] for k in held if k.startswith(f"{name}.{kind}.")}
    for outputs in ("full", "mean"):
        found = ntk(f, of("p"), held["x"], held["y"], mask=of("m"), outputs=outputs).values
        theirs = held[f"{name}.{outputs}"]
        close(found, np.swapaxes(theirs, 1, 2) if outputs == "full" else theirs, 1e-10)
