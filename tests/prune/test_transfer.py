"""Neural tangent transfer: its kernels, its objective, its proposition, its masks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.core.trees import alive, apply_mask, fingerprint, flatten, map_mask
from secateur.kernels.batch import between, factors, plan
from secateur.networks.mlp import mlp
from secateur.prune import transfer
from secateur.prune.problem import Problem
from secateur.prune.transfer import NeuralTangentTransfer, Weights, distances, objective


def at(network: Network, seed: int, density: float = 0.5) -> tuple[Any, Any]:
    """Parameters with non-zero biases, and a random mask."""
    rng = np.random.default_rng(seed)
    like = jax.eval_shape(network.init, jax.random.key(0))[0]
    params = jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(a.dtype) / 2, like)
    draw = lambda m: None if m is None else rng.random(m.shape) < density
    return params, map_mask(draw, network.prunable(params))


def by_definition(network: Network, w: Any, mask: Any, x: Any, half: int) -> np.ndarray:
    """J diag(m) J'^T of the first ``half`` of x with the others, (n, m, C, C), from the whole
    Jacobian; all of it where ``mask`` is None."""
    jacobian = jax.jit(jax.jacrev(lambda p: network.apply(p, {}, x)))(w)
    total: Any = 0.0
    for k, v in flatten(jacobian).items():
        rows = np.asarray(v).reshape(*v.shape[:2], -1)
        m = None if mask is None else flatten(mask)[k]
        kept = rows if m is None else rows * np.asarray(m).ravel()
        total = total + np.einsum("nce,mde->nmcd", kept[:half], rows[half:])
    return total


def tree_close(a: Any, b: Any, rtol: float) -> None:
    for name, leaf in flatten(a).items():
        other = np.asarray(flatten(b)[name])
        np.testing.assert_allclose(leaf, other, rtol=rtol, atol=rtol * np.abs(other).max())


def conv_net() -> Network:
    """A convolution, a scale of every unit, and two dense layers."""
    relu = jax.nn.relu

    def init(key: Any) -> tuple[Any, Any]:
        one, two, three = jax.random.split(key, 3)
        return {
            "conv_1": {"kernel": jax.random.normal(one, (2, 2, 1, 3)), "bias": jnp.zeros(3)},
            "dense_1": {"kernel": jax.random.normal(two, (27, 4)) / 3, "bias": jnp.zeros(4)},
            "norm_1": {"scale": jnp.ones(4)},
            "dense_2": {"kernel": jax.random.normal(three, (4, 2))},
        }, {}

    def apply(p: Any, stats: Any, x: Any) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        z = jax.lax.conv_general_dilated(
            x, p["conv_1"]["kernel"], (1, 1), "VALID", dimension_numbers=numbers
        )
        h = relu(z + p["conv_1"]["bias"][None, None, None]).reshape(len(x), -1)
        h = relu(h @ p["dense_1"]["kernel"] + p["dense_1"]["bias"][None])
        return (h * p["norm_1"]["scale"][None]) @ p["dense_2"]["kernel"]

    return Network("conv", (4, 4, 1), 2, init, apply, lambda p, s, x, k: (apply(p, s, x), s))


NETWORKS = {
    "relu": mlp(6, 5, input_shape=(3, 2, 1), outputs=3),
    "tanh, no bias": mlp(6, input_shape=(5,), outputs=2, activation="tanh", bias=False),
    "one output": mlp(4, input_shape=(3,), outputs=1),
    "convolution": conv_net(),
}


# -- the kernel ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.long
def test_the_kernel_is_its_definition(name: str, x64: None) -> None:
    network = NETWORKS[name]
    params, mask = at(network, 0)
    w = apply_mask(mask, params)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((7, *network.input_shape)))
    how = plan(network, params, {})

    @jax.jit
    def both(w: Any, x: Any) -> Any:
        logits, found = factors(how, network, w, {}, x)
        first, second = found.of(slice(None, 3)), found.of(slice(3, None))
        return logits, between(how, first, second, mask), between(how, first, second)

    logits, masked, full = map(np.asarray, both(w, x))
    np.testing.assert_allclose(logits, jax.jit(network.apply)(w, {}, x), rtol=1e-13)
    for kernel, counted in ((masked, mask), (full, None)):
        expected = by_definition(network, w, counted, x, 3)
        assert np.abs(kernel - expected).max() <= 1e-12 * np.abs(expected).max()
    assert not np.allclose(masked, full)


def test_layers_are_read_and_the_others_are_named(x64: None) -> None:
    network = NETWORKS["convolution"]
    how = plan(network, at(network, 0)[0], {})
    assert dict(how.dense) == {"dense_1/kernel": 4, "dense_2/kernel": 2}
    # The scale has the shape of a bias and stands in the row of units, but it is none.
    assert dict(how.biases) == {"dense_1/bias": "dense_1/kernel"}
    assert set(how.rest) == {"conv_1/kernel", "conv_1/bias", "norm_1/scale"}
    assert "conv" in dict(how.why)["conv_1/kernel"]
    assert "conv_1/kernel (" in how.sentence()
    for name in ("relu", "tanh, no bias"):
        assert not plan(NETWORKS[name], at(NETWORKS[name], 0)[0], {}).rest


def test_a_rule_of_differentiation_of_ones_own_is_not_read_as_a_product(x64: None) -> None:
    @jax.custom_jvp
    def doubled(x: Any, w: Any) -> Any:
        return x @ w

    @doubled.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        (x, w), (dx, dw) = primals, tangents
        return doubled(x, w), dx @ w + 2 * x @ dw

    def apply(p: Any, stats: Any, x: Any) -> Any:
        return doubled(x, p["dense_1"]["kernel"])

    init = lambda key: ({"dense_1": {"kernel": jax.random.normal(key, (3, 2))}}, {})
    network = Network("own", (3,), 2, init, apply, lambda p, s, x, k: (apply(p, s, x), s))
    assert plan(network, init(jax.random.key(0))[0], {}).rest == ("dense_1/kernel",)


# -- the objective ---------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["masked", "full"])
@pytest.mark.long
def test_the_gradient_is_that_of_finite_differences(kernel: str, x64: None) -> None:
    network = mlp(5, 4, input_shape=(4,), outputs=3, activation="tanh")
    teacher, mask = at(network, 2)
    theta, _ = at(network, 3)
    x = jnp.asarray(np.random.default_rng(4).standard_normal((7, 4)))
    weights = Weights(0.3, 0.04, None)  # the kernel and the norm weigh enough to be seen
    how = plan(network, teacher, {})

    problem = Problem(network, {}, x)

    @jax.jit
    @jax.value_and_grad
    def f(t: Any) -> Any:
        parts = distances(how, (kernel,), problem, teacher, t, mask, x)
        return objective(parts[kernel], weights)

    gradient = f(theta)[1]
    for seed in range(3):
        v, _ = at(network, 10 + seed)
        step = lambda h, v=v: float(f(jax.tree.map(lambda t, d: t + h * d, theta, v))[0])
        h = 1e-3  # fourth order
        slope = (8 * (step(h) - step(-h)) - (step(2 * h) - step(-2 * h))) / (12 * h)
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(v))
        along = sum(np.vdot(np.asarray(a), b) for a, b in pairs)
        np.testing.assert_allclose(along, slope, rtol=1e-7)
    for name, m in flatten(mask).items():
        if m is not None:
            assert np.all(np.asarray(flatten(gradient)[name])[~m] == 0)


@pytest.mark.long
def test_the_parts_are_what_they_say(x64: None) -> None:
    network = mlp(5, input_shape=(4,), outputs=2)
    teacher, mask = at(network, 5)
    theta, _ = at(network, 6)
    x = jnp.asarray(np.random.default_rng(7).standard_normal((6, 4)))
    how = plan(network, teacher, {}, structured=False)
    assert len(how.rest) == 4
    found = jax.jit(partial(distances, how, ("masked",)))
    parts = found(Problem(network, {}, x), teacher, theta, mask, x)["masked"]
    w = apply_mask(mask, theta)
    goal = by_definition(network, teacher, None, x, 3)
    student = by_definition(network, w, mask, x, 3)
    np.testing.assert_allclose(parts.kernel, np.mean((student - goal) ** 2), rtol=1e-12)
    difference = network.apply(w, {}, x) - network.apply(teacher, {}, x)
    np.testing.assert_allclose(parts.output, np.mean(difference**2), rtol=1e-12)
    kernels = [np.asarray(v) for k, v in flatten(w).items() if k.endswith("kernel")]
    np.testing.assert_allclose(parts.norm, sum((v**2).sum() for v in kernels), rtol=1e-12)
    np.testing.assert_allclose(
        objective(parts, NeuralTangentTransfer().weights(0.5, jnp.float64)),
        parts.output + 1e-3 * parts.kernel + 2e-4 * parts.norm,
    )


# -- proposition 1 ---------------------------------------------------------------------------


def descent(x: Any, y: Any, a: Any, mask: Any, steps: int = 300) -> np.ndarray:
    """Outputs on x over gradient descent of |f - y|^2 / 2, by the weights where ``mask``."""
    rate = 0.5 / np.linalg.eigvalsh(x @ x.T).max()
    outputs = []
    a = a * mask
    for _ in range(steps):
        f = x @ a
        outputs.append(f)
        a = a - rate * mask * (x.T @ (f - y))
    return np.array(outputs)


def linear(x: Any, a: Any, b: Any, mask: Any) -> dict[str, float]:
    """The parts of the objective for teacher a and student mask * b on x, by either kernel."""
    network = mlp(input_shape=(x.shape[1],), outputs=1, bias=False)
    tree = lambda v: {"dense_1": {"kernel": jnp.asarray(v)[:, None]}}
    m = {"dense_1": {"kernel": mask[:, None]}}
    how = plan(network, tree(a), {})
    # Both halves are the whole of the inputs, so that the kernel is H = X X^T.
    both = jnp.asarray(np.concatenate([x, x]))
    parts = jax.jit(partial(distances, how, ("masked", "full")))(
        Problem(network, {}, both), tree(a), tree(b), m, both
    )
    found = {"output": float(parts["full"].output)}
    for kernel, part in parts.items():
        found[kernel] = float(np.sqrt(part.kernel * len(x) ** 2) / np.linalg.norm(x @ x.T))
    return found


def test_proposition_1_holds_where_pruned_inputs_are_zero(x64: None) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 12))
    dead = np.arange(12) % 3 == 0
    x[:, dead] = 0
    a, y = rng.standard_normal(12), rng.standard_normal(8)
    b = np.where(dead, rng.standard_normal(12), a)
    parts = linear(x, a, b, ~dead)
    assert parts["output"] <= 1e-28
    assert parts["masked"] <= 1e-14
    teacher, student = descent(x, y, a, np.ones(12)), descent(x, y, b, ~dead)
    assert np.abs(teacher - student).max() <= 1e-10


def test_proposition_1_is_false_of_the_full_kernel(x64: None) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((6, 12))
    kept = np.arange(12) >= 4
    a, y = rng.standard_normal(12), rng.standard_normal(6)
    b = np.zeros(12)
    b[kept] = np.linalg.lstsq(x[:, kept], x @ a, rcond=None)[0]
    parts = linear(x, a, b, kept)
    gone = x[:, ~kept]
    expected = np.linalg.norm(gone @ gone.T) / np.linalg.norm(x @ x.T)
    assert parts["output"] <= 1e-26
    assert parts["full"] <= 1e-14
    np.testing.assert_allclose(parts["masked"], expected, rtol=1e-12)
    assert expected > 0.1
    apart = np.abs(descent(x, y, a, np.ones(12)) - descent(x, y, b, kept)).max()
    assert apart > 1e-2


# -- the loop --------------------------------------------------------------------------------

SMALL = mlp(8, input_shape=(5,), outputs=3)
OPTIONS: dict[str, Any] = {"batch": 8, "steps": 10, "mask_every": 3, "rate": 0.05, "held_out": 0.2}


def small_problem(seed: int = 0) -> tuple[Problem, Any, Any]:
    images = np.random.default_rng(seed).standard_normal((40, 5)).astype(np.float32)
    params, stats = SMALL.init(jax.random.key(seed))
    params = jax.tree.map(np.asarray, params)
    return Problem(SMALL, stats, images), params, SMALL.prunable(params)


def run(key: int = 0, keep: int = 20, **options: Any) -> tuple[Any, Any, dict[str, Any]]:
    problem, params, mask = small_problem()
    ntt = NeuralTangentTransfer(**{**OPTIONS, **options})
    return ntt.construct(problem, params, mask, keep, jax.random.key(key))


@pytest.mark.long
def test_masks_are_exact_and_weights_are_masked() -> None:
    before = fingerprint(small_problem()[1])
    mask, params, found = run()
    # 40 and 24 weights share 20 in proportion, by the largest remainder: 12.5 and 7.5.
    assert alive(mask) == {"dense_1/kernel": 13, "dense_2/kernel": 7}
    assert found["alive"] == alive(mask)
    for name, m in flatten(mask).items():
        leaf = flatten(params)[name]
        assert leaf.dtype == np.float32
        if m is None:
            assert np.any(leaf != 0)  # biases start at 0 and are learned
        else:
            assert np.all(leaf[~m] == 0)
            assert np.all(leaf[m] != 0)
    assert fingerprint(small_problem()[1]) == before
    assert sum(alive(run(ranking="everywhere", initial_mask="magnitude")[0]).values()) == 20


def test_the_codes_counts() -> None:
    # N - int((1 - d) N) - 1 with d = 20/64 a layer: 40 - 27 - 1, 24 - 16 - 1.
    assert list(alive(run(code_counts=True)[0]).values()) == [12, 7]
    everywhere = run(code_counts=True, ranking="everywhere", initial_mask="magnitude")[0]
    assert sum(alive(everywhere).values()) == 64 - 44 - 1


def test_masks_are_made_anew_when_they_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    plain = transfer.keep_largest
    spy = lambda theta, mask, keep: made.append(theta) or plain(theta, mask, keep)
    monkeypatch.setattr(transfer, "keep_largest", spy)
    progress: list[tuple[int, int]] = []
    problem, params, mask = small_problem()
    ntt = NeuralTangentTransfer(**OPTIONS)
    found = ntt.construct(
        problem, params, mask, 20, jax.random.key(0), lambda *at: progress.append(at)
    )[2]
    # At the start, after 3 and 6 of 10 steps; not at 9, where fewer than 3 would follow.
    assert len(made) == 3
    assert found["curve"]["step"] == [0, 3, 6, 9, 10]
    assert progress == [(3, 10), (6, 10), (9, 10), (10, 10)]
    last = len([at for at in range(3, 12, 3) if at < 12 - 3])
    made.clear()
    run(steps=12)
    assert len(made) == 1 + last == 3  # at 9 it is not below 12 - 3


def test_pruned_weights_live_on_and_can_return() -> None:
    problem, params, mask = small_problem()
    ntt = NeuralTangentTransfer(**OPTIONS)
    how = plan(SMALL, params, {})
    problem = replace(problem, images=jnp.asarray(problem.images))
    first = ntt.first_mask(problem, params, mask, 20, jax.random.key(0))
    teacher = jax.tree.map(jnp.asarray, params)
    one = transfer._Run("masked", how, problem, teacher, ntt.weights(0.3), np.arange(8), 3)
    theta, _ = one.steps(one.begin(), first, np.arange(24).reshape(3, 8))
    for name, m in flatten(first).items():
        if m is not None:
            moved, old = np.asarray(flatten(theta)[name]), flatten(params)[name]
            assert np.array_equal(moved[~m], old[~m])  # no gradient, no momentum: as they were
            assert np.all(moved[m] != old[m])
    returned = run()[2]["curve"]["returned"]
    assert len(returned) == 5
    assert sum(returned[1:3]) > 0
    assert returned[0] == sum(returned[3:]) == 0


@pytest.mark.long
def test_a_loop_and_single_steps_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = run()
    begin = transfer._Run.__init__

    def single(self: Any, *args: Any) -> None:
        begin(self, *args)
        self.one_by_one = True

    monkeypatch.setattr(transfer._Run, "__init__", single)
    tree_close(run()[1], loop[1], rtol=1e-4)


def test_the_same_key_gives_the_same_and_another_another() -> None:
    assert fingerprint(run()[:2]) == fingerprint(run()[:2])
    assert fingerprint(run(key=1)[1]) != fingerprint(run()[1])


@pytest.mark.long
def test_the_distances_fall() -> None:
    for kernel, which in (("masked", "kernel_masked"), ("full", "kernel_full")):
        curve = run(keep=40, steps=600, rate=1e-2, kernel=kernel)[2]["curve"]
        assert all(np.isfinite(v).all() for v in curve.values())
        assert curve["objective"][-1] < curve["objective"][0] / 2
        assert min(curve["output"][-1], curve[which][-1]) < min(curve["output"][0], curve[which][0])


@pytest.mark.long
def test_everywhere_begins_with_logit_snip() -> None:
    from secateur.core.keys import fold
    from secateur.prune.criteria.snip import LogitSnip
    from secateur.prune.magnitude import keep_largest

    problem, params, mask = small_problem()
    key = jax.random.key(3)
    ntt = NeuralTangentTransfer(ranking="everywhere")
    first = ntt.first_mask(problem, params, mask, 20, key)
    scores = LogitSnip(examples=128).score(problem, params, mask, fold(key, "logit-snip"))
    assert fingerprint(first) == fingerprint(keep_largest(scores, mask, 20))
    assert sum(alive(first).values()) == 20


def test_wrong_options_are_refused() -> None:
    problem, params, mask = small_problem()
    key = jax.random.key(0)
    for wrong in (
        {"kernel": "half"},
        {"ranking": "layer"},
        {"initial_mask": "snip"},
        {"batch": 1},
        {"steps": 0},
        {"rate": 0.0},
        {"held_out": 1.0},
    ):
        with pytest.raises(SecateurError):
            NeuralTangentTransfer(**wrong)
    with pytest.raises(SecateurError, match="give data"):
        NeuralTangentTransfer().construct(replace(problem, images=None), params, mask, 20, key)
    with pytest.raises(SecateurError, match="smaller batch"):
        NeuralTangentTransfer(batch=64).construct(problem, params, mask, 20, key)
    with pytest.raises(SecateurError, match="cannot be kept"):
        NeuralTangentTransfer(batch=8).construct(problem, params, mask, 0, key)
