"""SNIP, Logit-SNIP, iterative SNIP, FORCE and GraSP: laws, identities, and other implementations.

The oracle is back-propagation by hand in NumPy. Fed complex weights it gives Hessian-vector
products to machine precision by the complex step, H v = Im g(w + i h v) / h: no JAX, no second
derivative, no difference of near-equal numbers.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.core.trees import apply_mask, flatten, map_mask, ones_mask, unflatten
from secateur.networks.mlp import mlp
from secateur.prune.criteria.force import Force, IterativeSnip
from secateur.prune.criteria.grasp import Grasp
from secateur.prune.criteria.snip import LogitSnip, Snip
from secateur.prune.gradients import linear_logit
from secateur.prune.problem import Problem
from secateur.train.losses import cross_entropy

ALL = [
    Snip(),
    LogitSnip(),
    IterativeSnip(),
    Force(),
    Grasp(per_class=None),
    Grasp(per_class=None, own_term=True),
]
name_of = lambda c: c.title + (" own term" if getattr(c, "own_term", False) else "")
every = pytest.mark.parametrize("criterion", ALL, ids=name_of)
# Where one of each kind will do; the others in the long run.
KINDS = [
    pytest.param(c, marks=() if i in (0, 5) else pytest.mark.long, id=name_of(c))
    for i, c in enumerate(ALL)
]
KEY = jax.random.key(3)

# Compiling is what these tests cost, so that it is asked for in haste.
hasty = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
score = hasty(lambda criterion, *given: criterion.score(*given), static_argnums=0)
raw = hasty(lambda criterion, *given: criterion.gradient(*given), static_argnums=0)


# -- small problems -------------------------------------------------------------------------------


def parts(network: Network, seed: int = 0, n: int = 23, dtype: Any = np.float64):
    """A problem with labels, parameters with biases that are not 0, and its full mask."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        size = 0.3 if len(leaf.shape) == 1 else np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return jnp.asarray(size * rng.standard_normal(leaf.shape), dtype)

    like, stats = jax.eval_shape(network.init, KEY)
    params = jax.tree.map(draw, like)
    stats = unflatten(
        {k: jnp.full(v.shape, float(k.endswith("var")), dtype) for k, v in flatten(stats).items()},
        stats,
    )
    images = rng.standard_normal((n, *network.input_shape)).astype(dtype)
    labels = np.arange(n, dtype=np.int32) % network.outputs
    problem = Problem(network, stats, jnp.asarray(images), jnp.asarray(labels))
    return problem, params, ones_mask(network.prunable(params))


def toy(bias: bool = False) -> Network:
    return mlp(4, 4, input_shape=(3,), outputs=2, bias=bias)


def wider(bias: bool = True) -> Network:
    return mlp(16, 16, input_shape=(8,), outputs=3, bias=bias)


def conv_bn(eps: float = 1e-5) -> Network:
    """conv, norm, relu, sum, dense, norm, relu, dense: batch norm after both kinds of layer."""

    def init(key):
        draw = lambda i, shape: 0.3 * jax.random.normal(jax.random.fold_in(key, i), shape)
        norm = lambda width: {"scale": jnp.ones(width), "bias": jnp.zeros(width)}
        params = {
            "conv_1": {"kernel": draw(1, (3, 3, 2, 4))},
            "bn_1": norm(4),
            "dense_2": {"kernel": draw(2, (4, 5))},
            "bn_2": norm(5),
            "dense_3": {"kernel": draw(3, (5, 3)), "bias": jnp.zeros(3)},
        }
        empty = lambda width: {"mean": jnp.zeros(width), "var": jnp.ones(width)}
        return params, {"bn_1": empty(4), "bn_2": empty(5)}

    def run(params, stats, x, batch):
        new = {}

        def norm(name, x):
            s = stats[name]
            if batch:
                axes = tuple(range(x.ndim - 1))
                s = {"mean": x.mean(axes), "var": x.var(axes)}
                new[name] = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, stats[name], s)
            line = lambda a: a.reshape((1,) * (x.ndim - 1) + a.shape)
            x = (x - line(s["mean"])) / jnp.sqrt(line(s["var"]) + eps)
            return jax.nn.relu(line(params[name]["scale"]) * x + line(params[name]["bias"]))

        names = ("NHWC", "HWIO", "NHWC")
        kernel = params["conv_1"]["kernel"]
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=names)
        x = norm("bn_1", x).sum((1, 2))
        x = norm("bn_2", x @ params["dense_2"]["kernel"])
        return x @ params["dense_3"]["kernel"] + params["dense_3"]["bias"][None], new

    return Network(
        f"conv-bn-{eps}",
        (5, 5, 2),
        3,
        init,
        lambda p, s, x: run(p, s, x, False)[0],
        lambda p, s, x, key: run(p, s, x, True),
    )


CONV = conv_bn()
CONV_0 = conv_bn(0.0)


def random_mask(ones: Any, density: float = 0.6, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return map_mask(lambda m: None if m is None else rng.random(m.shape) < density, ones)


def of_kernels(tree: Any) -> dict[str, np.ndarray]:
    """Scores, gradients or masks of prunable leaves by name, in order."""
    flat = {k: v for k, v in flatten(tree).items() if k.endswith("kernel")}
    return {k: np.asarray(v) for k, v in flat.items()}


def close(a: Any, b: Any, tolerance: float) -> None:
    """Equal to `tolerance` of the largest entry of each leaf."""
    a, b = of_kernels(a), of_kernels(b)
    assert a.keys() == b.keys()
    for k in a:
        np.testing.assert_allclose(a[k], b[k], rtol=0, atol=tolerance * np.abs(b[k]).max())


def largest(scores: dict[str, np.ndarray], keep: int) -> dict[str, np.ndarray]:
    """Exactly ``keep`` by rank over all leaves, ties by position."""
    line = np.concatenate([s.ravel() for s in scores.values()])
    assert np.all(np.isfinite(line) | (line == -np.inf))
    kept = np.zeros(line.size, bool)
    kept[np.argsort(-line, kind="stable")[:keep]] = True
    cuts = np.cumsum([s.size for s in scores.values()])[:-1]
    return {k: m.reshape(s.shape) for (k, s), m in zip(scores.items(), np.split(kept, cuts))}


def same_mask(scores: Any, oracle: dict[str, np.ndarray]) -> None:
    """No weight differs, at several densities; and the test could have seen one."""
    scores = of_kernels(scores)
    n = sum(s.size for s in scores.values())
    for density in (0.9, 0.5, 0.2, 0.05):
        keep = int(density * n + 0.5)
        ours, theirs = largest(scores, keep), largest(oracle, keep)
        assert sum(int(np.sum(m)) for m in ours.values()) == keep
        assert all(np.array_equal(ours[k], theirs[k]) for k in ours)
        assert any(m.any() and not m.all() for m in ours.values())


# -- the oracle: back-propagation by hand ---------------------------------------------------------


def layers_of(params: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (np.asarray(p["kernel"]), np.asarray(p.get("bias", np.zeros(p["kernel"].shape[1]))))
        for p in params.values()
    ]


def forward(layers, x):
    """The layers' inputs and, last, the logits; complex weights follow the real branch."""
    h = [x]
    for l, (W, b) in enumerate(layers, start=1):
        z = h[-1] @ W + b
        h.append(z if l == len(layers) else np.where(z.real > 0, z, 0))
    return h


def backprop(layers, x, y, loss: str = "cross_entropy", T: float = 1.0):
    """[(dL/dW, dL/db)] of a ReLU MLP."""
    n = len(x)
    h = forward(layers, x)
    hot = np.eye(layers[-1][0].shape[1])[y] if y is not None else None
    if loss == "cross_entropy":
        e = np.exp((h[-1] - h[-1].real.max(1, keepdims=True)) / T)
        d = (e / e.sum(1, keepdims=True) - hot) / T / n
    elif loss == "linear_logit":
        d = -hot / T / n + 0 * h[-1]
    else:  # Z
        d = 2 * h[-1]
    g = []
    for l in range(len(layers) - 1, -1, -1):
        g.append((h[l].T @ d, d.sum(0)))
        d = (d @ layers[l][0].T) * (h[l].real > 0)
    return g[::-1]


def hessian_vector(layers, vector, x, y, **options):
    """H v by the complex step."""
    h = 1e-30
    moved = [(W + 1j * h * V, b + 1j * h * u) for (W, b), (V, u) in zip(layers, vector)]
    return [(gW.imag / h, gb.imag / h) for gW, gb in backprop(moved, x, y, **options)]


def named(network_params: Any, kernels: list[np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip(of_kernels(network_params), kernels))


# -- masks against the oracle: no weight differs --------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", range(3))
def test_snip_family_equals_numpy(seed):
    problem, params, ones = parts(wider(), seed, n=40)
    x, y = np.asarray(problem.images), np.asarray(problem.labels)
    for criterion, loss in [
        (Snip(), "cross_entropy"),
        (Snip(loss="linear_logit"), "linear_logit"),
        (LogitSnip(), "square"),
    ]:
        g = backprop(layers_of(params), x, y, loss)
        oracle = named(params, [np.abs(W * d) for (W, _), (d, _) in zip(layers_of(params), g)])
        ours = score(criterion, problem, params, ones, KEY)
        close(ours, unflatten(flatten(ones) | oracle, ones), 1e-12)
        same_mask(ours, oracle)
    # Linear and cross-entropy are not the same criterion: the parity option matters.
    a, b = (
        largest(of_kernels(score(Snip(loss=l), problem, params, ones, KEY)), 43)
        for l in ("problem", "linear_logit")
    )
    assert any(np.any(a[k] != b[k]) for k in a)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("options", "T"),
    [
        ({}, 200.0),
        ({"temperature": 1.0}, 1.0),
        ({"rank": "absolute"}, 200.0),
        ({"own_term": True}, 200.0),
        ({"flow": "all"}, 200.0),
    ],
    ids=str,
)
def test_grasp_equals_numpy(seed, options, T):
    problem, params, ones = parts(wider(), seed, n=40)
    x, y = np.asarray(problem.images), np.asarray(problem.labels)
    g = backprop(layers_of(params), x, y, T=T)
    v = [(gW, gb if options.get("flow") == "all" else 0 * gb) for gW, gb in g]
    Hv = hessian_vector(layers_of(params), v, x, y, T=T)
    line = [W * h for (W, _), (h, _) in zip(layers_of(params), Hv)]
    if options.get("own_term"):
        line = [s + gW**2 for s, (gW, _) in zip(line, g)]
    if options.get("rank") == "absolute":
        line = [np.abs(s) for s in line]
    oracle = named(params, line)
    ours = score(Grasp(per_class=None, **options), problem, params, ones, KEY)
    for k, s in of_kernels(ours).items():
        np.testing.assert_allclose(s, oracle[k], rtol=0, atol=1e-12 * np.abs(oracle[k]).max())
    same_mask(ours, oracle)
    if not options.get("own_term") and options.get("rank") != "absolute":
        negative = np.mean(np.concatenate([s.ravel() for s in of_kernels(ours).values()]) < 0)
        assert 0.2 < negative < 0.7  # signed, as the class says


def exponential(n: int, density: float, rounds: int) -> list[int]:
    return [int(n * density ** (k / rounds) + 0.5) for k in range(1, rounds + 1)]


def in_rounds(criterion, problem, params, ones, rounds: int, density: float = 0.1) -> list[dict]:
    masks, mask = [], ones
    for keep in exponential(sum(m.size for m in of_kernels(ones).values()), density, rounds):
        s = of_kernels(score(criterion, problem, params, mask, KEY))
        if not criterion.revival:
            s = {k: np.where(of_kernels(mask)[k], v, -np.inf) for k, v in s.items()}
        flat = flatten(mask) | largest(s, keep)
        mask = unflatten(flat, ones)
        masks.append(of_kernels(mask))
    return masks


@pytest.mark.usefixtures("x64")
def test_iterative_snip_and_force_equal_numpy_in_every_round():
    problem, params, ones = parts(wider(), 1, n=40)
    x, y = np.asarray(problem.images), np.asarray(problem.labels)
    theta = layers_of(params)
    for criterion in (IterativeSnip(), Force(), Force(loss="linear_logit")):
        loss = "linear_logit" if criterion.loss == "linear_logit" else "cross_entropy"
        ours = in_rounds(criterion, problem, params, ones, 6)
        m = [np.ones(W.shape, bool) for W, _ in theta]
        for r, keep in enumerate(exponential(sum(a.size for a in m), 0.1, 6)):
            w = [(W * a, b) for (W, b), a in zip(theta, m)]
            g = backprop(w, x, y, loss)
            if criterion.revival:
                s = [np.abs(W * d) for (W, _), (d, _) in zip(theta, g)]
            else:
                s = [np.where(a, np.abs(W * d), -np.inf) for (W, _), (d, _), a in zip(w, g, m)]
            mask = largest(named(params, s), keep)
            assert all(np.array_equal(ours[r][k], mask[k]) for k in mask)
            m = list(mask.values())


@pytest.mark.usefixtures("x64")
def test_rounds():
    """8.14: one round is SNIP; iterative SNIP is nested; FORCE brings weights back."""
    revived = 0
    for seed in range(2):
        problem, params, ones = parts(wider(), seed, n=40)
        three = (Snip(), IterativeSnip(), Force())
        once = [in_rounds(c, problem, params, ones, 1)[0] for c in three]
        for k in once[0]:
            assert np.array_equal(once[0][k], once[1][k])
            assert np.array_equal(once[0][k], once[2][k])
        for criterion in (IterativeSnip(), Force()):
            masks = in_rounds(criterion, problem, params, ones, 10)
            back = sum(int(np.sum(b[k] & ~a[k])) for a, b in pairwise(masks) for k in a)
            revived += back if criterion.revival else 0
            assert criterion.revival or back == 0
    assert revived > 0


# -- identities: SNIP -----------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.long
def test_snip_is_the_derivative_by_the_mask():
    """8.1: exactly, and against central differences in each gate."""
    problem, params, ones = parts(toy(bias=True))
    gates = map_mask(lambda m: None if m is None else jnp.ones(m.shape), ones)

    def loss(gates):
        w = map_mask(lambda m, p: p if m is None else m * p, gates, params)
        f = problem.network.apply(w, {}, problem.images)
        return cross_entropy(f, problem.labels).mean()

    s = of_kernels(score(Snip(), problem, params, ones, KEY))
    by_gate = of_kernels(hasty(jax.grad(loss))(gates))
    for k, d in by_gate.items():
        np.testing.assert_allclose(s[k], np.abs(d), rtol=0, atol=1e-15)

    step = 1e-5
    sizes = {k: d.size for k, d in by_gate.items()}
    moves = np.eye(sum(sizes.values())) * step  # one gate a row
    pieces = dict(zip(sizes, np.split(moves, np.cumsum(list(sizes.values()))[:-1], axis=1)))

    def moved(rows, sign):
        flat = {
            k: None if m is None else 1 + sign * rows[k].reshape(m.shape)
            for k, m in flatten(gates).items()
        }
        return loss(unflatten(flat, gates))

    change = hasty(jax.vmap(lambda rows: (moved(rows, 1) - moved(rows, -1)) / (2 * step)))(pieces)
    exact = np.concatenate([d.ravel() for d in by_gate.values()])
    # Relative to the largest: rounding of the loss, 1e-16, over the step allows no more.
    np.testing.assert_allclose(change, exact, rtol=0, atol=1e-8 * np.abs(exact).max())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("density", [1.0, 0.7])
def test_signed_snip_is_conserved(density):
    """8.2: layer sums are <f, dL/df>; incoming (with the bias) equals outgoing at every unit."""
    problem, params, ones = parts(toy(bias=False))
    w = apply_mask(random_mask(ones, density), params)
    s = {
        k: np.asarray(w_ * g)
        for (k, w_), g in zip(flatten(w).items(), flatten(raw(Snip(), problem, w, KEY)).values())
    }
    f = forward(layers_of(w), np.asarray(problem.images))[-1]
    p = np.exp(f) / np.exp(f).sum(1, keepdims=True)
    total = np.sum(f * (p - np.eye(2)[np.asarray(problem.labels)])) / len(f)
    for k in s:
        np.testing.assert_allclose(s[k].sum(), total, rtol=1e-12)

    problem, params, ones = parts(toy(bias=True))
    w = apply_mask(random_mask(ones, density), params)
    g = raw(Snip(), problem, w, KEY)
    for l in (1, 2):
        here, above = f"dense_{l}", f"dense_{l + 1}"
        incoming = (w[here]["kernel"] * g[here]["kernel"]).sum(0)
        bias = w[here]["bias"] * g[here]["bias"]
        outgoing = (w[above]["kernel"] * g[above]["kernel"]).sum(1)
        scale = float(jnp.abs(outgoing).max())
        np.testing.assert_allclose(incoming + bias, outgoing, rtol=0, atol=1e-12 * scale)
        assert float(jnp.abs(bias).max()) > 1e-3 * scale  # without the bias it would fail


@pytest.mark.usefixtures("x64")
@pytest.mark.long
def test_snip_before_batch_norm_sums_to_zero():
    """8.3: a unit's incoming signed scores, in batch mode only."""

    def sums(bn, network):
        problem, params, _ = parts(network, n=12)
        s = jax.tree.map(np.multiply, params, raw(Snip(bn=bn), problem, params, KEY))
        total = sum(np.abs(v).sum() for v in of_kernels(s).values())
        units = {k: np.abs(v.sum(tuple(range(v.ndim - 1)))) for k, v in of_kernels(s).items()}
        return {k: u / total for k, u in units.items()}

    for network, tolerance in [(CONV_0, 1e-15), (CONV, 1e-4)]:
        units = sums("batch", network)
        assert max(units["conv_1/kernel"].max(), units["dense_2/kernel"].max()) < tolerance
        assert units["dense_3/kernel"].min() > 1e-3  # no norm behind it
    for bn in ("init", "frozen-batch"):  # constant statistics
        units = sums(bn, CONV)
        assert min(units["conv_1/kernel"].max(), units["dense_2/kernel"].max()) > 1e-3


@pytest.mark.usefixtures("x64")
def test_logit_snip_layer_sums_are_twice_z():
    """8.4, and that no label is read."""
    problem, params, ones = parts(toy())
    problem = dataclasses.replace(problem, labels=None)
    w = apply_mask(random_mask(ones, 0.8), params)
    Z = np.sum(forward(layers_of(w), np.asarray(problem.images))[-1] ** 2)
    g = raw(LogitSnip(), problem, w, KEY)
    for k, d in of_kernels(g).items():
        np.testing.assert_allclose((of_kernels(w)[k] * d).sum(), 2 * Z, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_absolute_value_is_taken_after_the_sum_over_examples():
    problem, params, ones = parts(toy(bias=True), n=11)
    s = of_kernels(score(Snip(chunk=1), problem, params, ones, KEY))
    x, y = np.asarray(problem.images), np.asarray(problem.labels)
    each = [backprop(layers_of(params), x[i : i + 1], y[i : i + 1]) for i in range(11)]
    for l, (k, (W, _)) in enumerate(zip(s, layers_of(params))):
        signed = np.array([W * g[l][0] / 11 for g in each])
        np.testing.assert_allclose(s[k], np.abs(signed.sum(0)), rtol=0, atol=1e-14)
        assert np.abs(signed).sum() > 1.1 * s[k].sum()


# -- identities: GraSP ----------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("network", "options"),
    [
        pytest.param(toy(True), {}, marks=pytest.mark.long),
        (toy(True), {"own_term": True}),
        pytest.param(toy(True), {"flow": "all"}, marks=pytest.mark.long),
        (CONV, {"own_term": True, "flow": "all"}),  # batch norm in batch mode
    ],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_grasp_is_the_derivative_of_the_gradient_flow_by_the_mask(network, options):
    """8.5, at the full mask and at a pruned one, against reverse over reverse."""
    problem, params, ones = parts(network, n=8)
    T = 2.0
    own, everything = options.get("own_term"), options.get("flow") == "all"

    def loss(w):
        f, _ = network.train(w, problem.stats, problem.images, KEY)
        return cross_entropy(f / T, problem.labels).mean()

    @hasty
    @jax.grad
    def by_mask(gates):
        w = map_mask(lambda m, p: p if m is None else m * p, gates, params)

        def counted(m, g):
            if m is None:
                return jnp.sum(g**2) if everything else 0.0
            return jnp.sum((m * g) ** 2 if own else g**2)

        return 0.5 * sum(jax.tree.leaves(map_mask(counted, gates, jax.grad(loss)(w))))

    criterion = Grasp(temperature=T, per_class=None, **options)
    for mask in (ones, random_mask(ones)):
        gates = map_mask(lambda m: None if m is None else jnp.asarray(m, float), mask)
        close(score(criterion, problem, params, mask, KEY), by_mask(gates), 1e-12)


@pytest.mark.usefixtures("x64")
def test_grasp_removes_the_right_end():
    """Shrinking a set S by t changes |g|^2 by -2 t sum_S s: the lowest raise it, the highest lower
    it. Synaptic-Flow's first version had the ends exchanged.
    """
    problem, params, ones = parts(wider(), 2, n=40)
    s = of_kernels(score(Grasp(per_class=None, temperature=1.0), problem, params, ones, KEY))
    n = sum(v.size for v in s.values())
    x, y = np.asarray(problem.images), np.asarray(problem.labels)

    def flow(gates: dict[str, np.ndarray]) -> float:
        w = [(W * gates[k], b) for k, (W, b) in zip(s, layers_of(params))]
        return sum(np.sum(g**2) for g, _ in backprop(w, x, y))

    whole = flow({k: np.ones(v.shape) for k, v in s.items()})
    keep = int(0.9 * n)
    cut = {
        "lowest": {k: ~m for k, m in largest(s, keep).items()},
        "highest": {k: ~m for k, m in largest({k: -v for k, v in s.items()}, keep).items()},
    }
    t = 1e-6
    for end, sign in [("lowest", 1), ("highest", -1)]:
        change = (flow({k: 1 - t * c for k, c in cut[end].items()}) - whole) / t
        predicted = -2 * sum(np.sum(s[k][c]) for k, c in cut[end].items())
        np.testing.assert_allclose(change, predicted, rtol=1e-3)
        assert sign * predicted > 0
    # And for good: what GraSP keeps flows more than what is left when the other end is cut.
    left = {end: flow({k: 1.0 * ~c for k, c in m.items()}) for end, m in cut.items()}
    assert left["lowest"] > whole > left["highest"]
    # All together: theta^T H g is the derivative of half the flow along theta (8.5).
    problem, params, ones = parts(toy())
    s = of_kernels(score(Grasp(per_class=None, temperature=1.0), problem, params, ones, KEY))
    x, y = np.asarray(problem.images), np.asarray(problem.labels)
    half = lambda a: (
        0.5
        * sum(np.sum(g**2) for g, _ in backprop([(a * W, b) for W, b in layers_of(params)], x, y))
    )
    slope = (half(1 + 1e-5) - half(1 - 1e-5)) / 2e-5
    np.testing.assert_allclose(sum(v.sum() for v in s.values()), slope, rtol=1e-8)


@pytest.mark.usefixtures("x64")
def test_grasp_at_high_temperature_is_that_of_the_linear_loss():
    """8.6: T^2 s_T -> s of <1/C - y, f>, at rate 1/T; there layer sums are |g|^2 - |g_l|^2."""
    problem, params, ones = parts(toy())
    gap = lambda f, y: f.mean(-1) + linear_logit(f, y)
    linear = dataclasses.replace(problem, loss=gap)
    limit = of_kernels(score(Grasp(per_class=None, temperature=1.0), linear, params, ones, KEY))
    size = max(np.abs(v).max() for v in limit.values())

    def error(T: float) -> float:
        s = of_kernels(score(Grasp(per_class=None, temperature=T), problem, params, ones, KEY))
        return max(np.abs(T**2 * s[k] - limit[k]).max() for k in s) / size

    at_1000, at_2000 = error(1000.0), error(2000.0)
    assert 1e-6 < at_1000 < 1e-2
    np.testing.assert_allclose(at_2000 / at_1000, 0.5, rtol=0.02)

    g = of_kernels(raw(Snip(), linear, params, KEY))
    total = sum(np.sum(v**2) for v in g.values())
    for k in g:
        np.testing.assert_allclose(limit[k].sum(), total - np.sum(g[k] ** 2), rtol=1e-12)


# -- symmetries -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@every
def test_rescaling_a_unit(criterion):
    """8.7: in times a, out by a leaves f and the scores that say so; the others move."""
    problem, params, ones = parts(toy())
    a, unit = 3.7, 1
    moved = {k: dict(v) for k, v in params.items()}
    moved["dense_1"]["kernel"] = params["dense_1"]["kernel"].at[:, unit].multiply(a)
    moved["dense_2"]["kernel"] = params["dense_2"]["kernel"].at[unit, :].divide(a)
    mask = random_mask(ones, 0.8)
    before, after = (of_kernels(score(criterion, problem, p, mask, KEY)) for p in (params, moved))
    worst = max(np.abs(after[k] - before[k]).max() / np.abs(before[k]).max() for k in before)
    assert (worst < 1e-12) == criterion.rescales
    assert criterion.rescales or worst > 1e-3


@pytest.mark.usefixtures("x64")
@every
def test_permuting_hidden_units_permutes_scores(criterion):
    """8.23."""
    problem, params, ones = parts(toy())
    p, q = np.array([2, 0, 3, 1]), np.array([1, 2, 3, 0])

    def turned(tree):
        out = {k: dict(v) for k, v in tree.items()}
        for l, order, axis in [(1, p, 1), (2, p, 0), (2, q, 1), (3, q, 0)]:
            kernel = np.asarray(out[f"dense_{l}"]["kernel"])
            out[f"dense_{l}"]["kernel"] = np.take(kernel, order, axis)
        return out

    mask = random_mask(ones, 0.7)
    s = score(criterion, problem, params, mask, KEY)
    again = score(criterion, problem, turned(params), turned(mask), KEY)
    close(again, turned(s), 1e-12)
    assert np.abs(again["dense_1"]["kernel"] - s["dense_1"]["kernel"]).max() > 0


# -- examples, chunks, batches --------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("criterion", KINDS)
@pytest.mark.long
def test_unequal_chunks_give_the_score_of_the_whole_batch(criterion):
    """8.24: 23 examples by 7 are 7, 7, 7 and 2, each example weighing the same."""
    problem, params, ones = parts(toy())
    mask = random_mask(ones, 0.8)
    whole = score(criterion, problem, params, mask, KEY)
    cut = score(dataclasses.replace(criterion, chunk=7), problem, params, mask, KEY)
    close(cut, whole, 1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.long
def test_chunks_and_batch_norm():
    """With constant statistics chunks change nothing; with the batch's each chunk has its own."""
    problem, params, _ = parts(CONV, n=12)
    for bn, same in [("init", True), ("batch", False)]:
        whole, cut = (
            of_kernels(raw(Snip(bn=bn, chunk=chunk), problem, params, KEY)) for chunk in (None, 5)
        )
        worst = max(np.abs(cut[k] - whole[k]).max() / np.abs(whole[k]).max() for k in whole)
        assert (worst < 1e-12) if same else (worst > 1e-3)


@pytest.mark.usefixtures("x64")
def test_chunks_may_weigh_alike():
    """average="chunks": the mean of the chunks' means, as where gradients of batches are added."""
    problem, params, ones = parts(toy(bias=True), n=10)
    s = of_kernels(score(Snip(chunk=8, average="chunks"), problem, params, ones, KEY))
    x, y = np.asarray(problem.images), np.asarray(problem.labels)
    a, b = (backprop(layers_of(params), x[r], y[r]) for r in (slice(0, 8), slice(8, 10)))
    for k, (W, _), (ga, _), (gb, _) in zip(s, layers_of(params), a, b):
        np.testing.assert_allclose(s[k], np.abs(W * (ga + gb) / 2), rtol=0, atol=1e-14)


@pytest.mark.long
@pytest.mark.usefixtures("x64")
def test_chunks_need_the_memory_of_a_chunk():
    problem, params, ones = parts(mlp(8, 8, input_shape=(64,), outputs=2), n=4096)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4096, 64)), jnp.uint8)
    problem = dataclasses.replace(problem, images=images, prepare=lambda a: a / 255.0)

    def floats(criterion) -> int:
        compiled = score.lower(criterion, problem, params, ones, KEY).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    for criterion in (Snip(examples=4096), Grasp(examples=4096, per_class=None)):
        assert floats(dataclasses.replace(criterion, chunk=64)) < floats(criterion) / 5


@pytest.mark.long
@pytest.mark.usefixtures("x64")
def test_examples_of_each_class_and_the_published_halves():
    """per_class draws equal counts sorted by class; half of them a chunk is GraSP's two halves."""
    network = CONV
    problem, params, ones = parts(network, n=12)
    drawn = hasty(lambda key: problem.batch(jax.random.split(key)[0], 128, 2))(KEY)
    assert np.array_equal(np.asarray(drawn.y), [0, 0, 1, 1, 2, 2])
    T = 200.0

    def half(w, part):
        f, _ = network.train(w, problem.stats, drawn.x[part], KEY)
        return cross_entropy(f / T, drawn.y[part]).mean()

    both = lambda w: half(w, slice(0, 3)) + half(w, slice(3, 6))
    dL = jax.grad(both)
    g = map_mask(lambda m, g: jnp.zeros_like(g) if m is None else g, ones, hasty(dL)(params))
    # As published: the gradient of <stop(g), dL>, here without forward mode.
    inner = lambda w: sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), g, dL(w))))
    Hg = hasty(jax.grad(inner))(params)
    # The sum of two means: twice our g and twice our H.
    published = jax.tree.map(lambda t, h: t * h / 4, params, Hg)
    ours = score(Grasp(per_class=2, chunk=3), problem, params, ones, KEY)
    close(ours, published, 1e-12)
    apart = of_kernels(score(Grasp(per_class=2), problem, params, ones, KEY))
    a, b = of_kernels(ours)["conv_1/kernel"], apart["conv_1/kernel"]
    assert np.abs(a - b).max() > 1e-3 * np.abs(a).max()


@pytest.mark.usefixtures("x64")
@pytest.mark.long
def test_batches_are_independent_and_averaged():
    problem, params, ones = parts(toy(bias=True), n=40)
    mask = random_mask(ones, 0.8)
    w = apply_mask(mask, params)
    three = score(Force(batches=3, examples=9), problem, params, mask, KEY)
    draws, g = [], []
    draw = hasty(lambda k: problem.batch(jax.random.split(k)[0], 9))
    for k in jax.random.split(KEY, 3):
        batch = draw(k)
        draws.append(np.asarray(batch.x).tobytes())
        g.append(backprop(layers_of(w), np.asarray(batch.x), np.asarray(batch.y)))
    assert len(set(draws)) == 3
    for l, (s, (W, _)) in enumerate(zip(of_kernels(three).values(), layers_of(params))):
        mean = sum(one[l][0] for one in g) / 3
        np.testing.assert_allclose(s, np.abs(W * mean), rtol=0, atol=1e-14)
    nested = score(IterativeSnip(batches=3, examples=9), problem, params, mask, KEY)
    for k, m in of_kernels(mask).items():
        np.testing.assert_allclose(
            of_kernels(nested)[k], np.where(m, of_kernels(three)[k], 0), rtol=0, atol=1e-14
        )


# -- what every score owes ------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", KINDS)
@pytest.mark.parametrize("network", [wider(), CONV], ids=["mlp", "conv-bn"])
@pytest.mark.long
def test_scores_have_the_structure_of_the_mask_and_are_finite(criterion, network, strict):
    """Float32 and strict promotion; full, pruned, one layer empty, all empty. No bias is scored."""
    problem, params, ones = parts(network, n=12, dtype=np.float32)
    before = jax.tree.map(np.array, params)
    names = [k for k in flatten(ones) if k.endswith("kernel")]
    empty = lambda *which: unflatten(
        {k: m if m is None else m & (k not in which) for k, m in flatten(ones).items()}, ones
    )
    for mask in (ones, random_mask(ones, 0.3), empty(names[1]), empty(*names)):
        s = score(criterion, problem, params, mask, KEY)
        for k, m in flatten(mask).items():
            leaf = flatten(s)[k]
            assert (leaf is None) == (m is None) == (not k.endswith("kernel"))
            if m is not None:
                assert leaf.shape == m.shape
                assert leaf.dtype == np.float32
                assert np.all(np.isfinite(leaf))
                assert criterion.signed or np.all(np.asarray(leaf) >= 0)
                if isinstance(criterion, Snip | LogitSnip) and not criterion.revival:
                    assert np.all(np.asarray(leaf)[~np.asarray(m)] == 0)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, params)))


@pytest.mark.parametrize("criterion", KINDS)
@pytest.mark.long
def test_precisions_and_lanes_agree(criterion, strict):
    """Float32 against float64; lanes (vmap over weights, masks, keys) against one at a time."""
    problem, params, ones = parts(wider(), n=12, dtype=np.float32)
    masks = [random_mask(ones, 0.7, seed) for seed in (0, 1)]
    lanes = [params, jax.tree.map(lambda p: 0.8 * p, params)]
    keys = jax.random.split(KEY)
    stack = lambda trees: jax.tree.map(lambda *a: jnp.stack(a), *trees)
    many = hasty(jax.vmap(partial(criterion.score, problem)))(stack(lanes), stack(masks), keys)
    for i in (0, 1):
        alone = score(criterion, problem, lanes[i], masks[i], keys[i])
        close(jax.tree.map(lambda a, i=i: a[i], many), alone, 1e-5)
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), tree)
        images = wide(problem.images)
        exact = score(
            criterion, dataclasses.replace(problem, images=images), wide(params), masks[0], keys[0]
        )
        assert {s.dtype for s in of_kernels(exact).values()} == {np.dtype(np.float64)}
    close(score(criterion, problem, params, masks[0], keys[0]), exact, 1e-4)


@pytest.mark.usefixtures("x64")
def test_the_traps_the_cards_name():
    problem, params, ones = parts(toy(), n=8)
    zero = {**params, "dense_3": {"kernel": 0 * params["dense_3"]["kernel"]}}
    for criterion in (Snip(), LogitSnip(), Force()):
        s = of_kernels(score(criterion, problem, zero, ones, KEY))
        assert all(np.all(v == 0) for v in s.values())
    hidden = unflatten({**flatten(ones), "dense_2/kernel": np.zeros((4, 4), bool)}, ones)
    s = of_kernels(score(Force(), problem, params, hidden, KEY))
    assert all(np.all(v == 0) for v in s.values())


@pytest.mark.parametrize("criterion", [c for c in ALL if "labels" in c.needs], ids=name_of)
def test_labels_missing_where_they_are_needed(criterion):
    problem, params, ones = parts(toy(), dtype=np.float32)
    bare = dataclasses.replace(problem, labels=None)
    with pytest.raises(SecateurError, match="needs labels"):
        criterion.score(bare, params, ones, KEY)
    with pytest.raises(SecateurError, match="examples"):
        criterion.score(dataclasses.replace(problem, images=None), params, ones, KEY)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Snip(examples=0), "examples"),
        (lambda: Snip(chunk=2.5), "chunk"),
        (lambda: LogitSnip(per_class=-1), "per_class"),
        (lambda: Force(batches=0), "batches"),
        (lambda: Snip(bn="bach"), "'batch'"),
        (lambda: Snip(loss="cross_entopy"), "'cross_entropy'"),
        (lambda: Snip(average="exampels"), "'examples'"),
        (lambda: Grasp(temperature=0.0), "temperature"),
        (lambda: Grasp(temperature=float("nan")), "temperature"),
        (lambda: Grasp(rank="sign"), "'signed'"),
        (lambda: Grasp(flow="prunabel"), "'prunable'"),
    ],
)
def test_options_that_cannot_be(make, word):
    with pytest.raises(SecateurError, match=word):
        make()


# -- PyTorch, where it is installed ---------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_masks_equal_those_of_pytorch_autograd():
    """SNIP, FORCE's second round, and GraSP as its authors wrote it: two halves, two passes."""
    torch = pytest.importorskip("torch")
    problem, params, ones = parts(wider(), 4, n=40)
    x, y = torch.tensor(np.asarray(problem.images)), torch.tensor(np.asarray(problem.labels)).long()
    theta = [
        (torch.tensor(W.copy(), requires_grad=True), torch.tensor(b.copy()))
        for W, b in layers_of(params)
    ]
    kernels = [W for W, _ in theta]

    def loss(rows, gates=None, T=1.0):
        h = x[rows]
        for l, (W, b) in enumerate(theta):
            h = h @ (W if gates is None else gates[l]) + b
            h = torch.relu(h) if l < len(theta) - 1 else h
        return torch.nn.functional.cross_entropy(h / T, y[rows])

    rows = slice(0, 40)
    g = torch.autograd.grad(loss(rows), kernels)
    snip = named(params, [(W * d).detach().abs().numpy() for W, d in zip(kernels, g)])
    same_mask(score(Snip(), problem, params, ones, KEY), snip)

    first = largest(snip, 200)
    cut = [(W.detach() * torch.tensor(m)).requires_grad_() for W, m in zip(kernels, first.values())]
    g = torch.autograd.grad(loss(rows, cut), cut)
    force = named(params, [(W * d).detach().abs().numpy() for W, d in zip(kernels, g)])
    mask = unflatten(flatten(ones) | first, ones)
    same_mask(score(Force(), problem, params, mask, KEY), force)

    halves = [slice(0, 20), slice(20, 40)]
    flow = [sum(d) for d in zip(*(torch.autograd.grad(loss(h, T=200.0), kernels) for h in halves))]
    for h in halves:
        again = torch.autograd.grad(loss(h, T=200.0), kernels, create_graph=True)
        sum((a * b).sum() for a, b in zip(flow, again)).backward()
    grasp = named(params, [(W.detach() * W.grad).numpy() for W in kernels])
    same_mask(score(Grasp(per_class=None, chunk=20), problem, params, ones, KEY), grasp)
