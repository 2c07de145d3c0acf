"""SynFlow's family, the path-kernel criterion and PHEW against their definitions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.core.trees import alive, flatten, ones_mask
from secateur.networks import layers
from secateur.networks.mlp import mlp
from secateur.networks.resnet import deep_resnet
from secateur.networks.vgg import vgg
from secateur.prune.criteria.path_trace import PathTrace
from secateur.prune.criteria.phew import WEIGHTS, Phew, Walks
from secateur.prune.criteria.synflow import SynFlow, SynFlowDist, SynFlowL2, SynFlowL2Dist
from secateur.prune.criterion import Criterion
from secateur.prune.problem import Problem
from secateur.structure.flow import reachable
from secateur.structure.walks import walkways

KEY = jax.random.key(0)
WIDTHS = (20, 30, 30, 30, 10)


def drawn(widths: tuple[int, ...], seed: int = 0) -> tuple[Problem, list[np.ndarray], Any]:
    """A bias-free MLP, its float64 weights of variance 1 / fan-in, and their tree."""
    rng = np.random.default_rng(seed)
    net = mlp(*widths[1:-1], input_shape=widths[:1], outputs=widths[-1], bias=False)
    weights = [rng.standard_normal(shape) / np.sqrt(shape[0]) for shape in pairwise(widths)]
    return Problem(net, {}), weights, tree(weights)


def tree(leaves: list[Any]) -> Any:
    return {f"dense_{l}": {"kernel": jnp.asarray(a)} for l, a in enumerate(leaves, start=1)}


def rounds(score: Any, sizes: list[tuple[int, ...]], keep: int, n: int) -> list[np.ndarray]:
    """The algorithm box of SynFlow in numpy: keep d^(k/n) N highest, ties by index.

    Where a unit has one way in and one out, both have the same score but for rounding: scores are
    compared to 36 bits, so that such ties are ties in every implementation.
    """
    masks = [np.ones(shape, bool) for shape in sizes]
    total = sum(m.size for m in masks)
    for k in range(1, n + 1):
        flat = np.concatenate(
            [np.where(m, s, -np.inf).ravel() for s, m in zip(score(masks), masks)]
        )
        part, exponent = np.frexp(np.where(np.isfinite(flat), flat, -1))
        flat = np.ldexp(np.round(part * 2**36), exponent)
        count = int(np.floor((keep / total) ** (k / n) * total + 0.5))
        kept = np.zeros(total, bool)
        kept[np.argsort(-flat, kind="stable")[:count]] = True
        pieces = np.split(kept, np.cumsum([m.size for m in masks])[:-1])
        masks = [piece.reshape(m.shape) for piece, m in zip(pieces, masks)]
    return masks


def numpy_synflow(weights: list[np.ndarray], power: int, v: np.ndarray | None = None) -> Any:
    """|w|^q times dR/d|w|^q, by a forward and a backward pass written out."""

    def score(masks: list[np.ndarray]) -> list[np.ndarray]:
        u = [np.abs(w * m) ** power for w, m in zip(weights, masks)]
        rows = [np.ones(len(weights[0])) if v is None else v]
        for a in u:
            rows.append(rows[-1] @ a)
        back = [np.ones(u[-1].shape[1])]
        for a in reversed(u):
            back.append(a @ back[-1])
        return [a * np.outer(h, g) for a, h, g in zip(u, rows, reversed(back[:-1]), strict=False)]

    return score


def scorer(criterion: Criterion, problem: Problem, params: Any) -> Any:
    """From a list of masks to a list of scores, compiled once."""
    score = jax.jit(lambda mask: criterion.score(problem, params, mask, KEY))
    return lambda masks: [np.asarray(s) for s in jax.tree.leaves(score(tree(masks)))]


IMAGES = np.abs(np.random.default_rng(9).standard_normal((50, 20)))
FAMILY: dict[str, tuple[Criterion, int, Any]] = {
    "synflow": (SynFlow(), 1, None),
    "synflow-l2-dist": (SynFlowL2Dist(), 2, (IMAGES**2).mean(0)),
    "mean": (SynFlowDist(v="mean"), 1, np.abs(IMAGES.mean(0))),
}


@pytest.mark.parametrize(
    "name", ["synflow", "synflow-l2-dist", pytest.param("mean", marks=pytest.mark.long)]
)
def test_masks_are_those_of_a_plain_numpy_version(x64: None, name: str) -> None:
    criterion, power, v = FAMILY[name]
    problem, weights, params = drawn(WIDTHS)
    problem = Problem(problem.network, {}, jnp.asarray(IMAGES))
    sizes = [w.shape for w in weights]
    plain, ours = numpy_synflow(weights, power, v), scorer(criterion, problem, params)
    full = [np.ones(s, bool) for s in sizes]
    for a, b in zip(ours(full), plain(full), strict=True):
        np.testing.assert_allclose(a / a.sum(), b / b.sum(), rtol=1e-12)
        np.testing.assert_allclose(a.sum(), 1, rtol=1e-12)  # conservation: layer sums are R / R
    for a, b in zip(rounds(ours, sizes, 270, 20), rounds(plain, sizes, 270, 20), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.long
def test_float32_chooses_as_float64_does() -> None:
    with jax.enable_x64(True):
        problem, weights, double = drawn((40, 60, 60, 60, 60, 10))
        single = jax.tree.map(lambda w: w.astype(jnp.float32), double)
        sizes = [w.shape for w in weights]
        masks = [rounds(scorer(SynFlow(), problem, p), sizes, 1000, 20) for p in (double, single)]
    same = sum((a == b).sum() for a, b in zip(*masks, strict=True))
    assert same >= 0.999 * sum(w.size for w in weights)


@pytest.mark.long
def test_the_papers_score_is_r_times_the_share(x64: None) -> None:
    problem, weights, params = drawn((4, 3, 2))
    full = [np.ones(w.shape, bool) for w in weights]
    shares = scorer(SynFlow(), problem, params)(full)
    for raw, share in zip(scorer(SynFlow(scale_free=False), problem, params)(full), shares):
        r = (np.abs(weights[0]) @ np.abs(weights[1])).sum()
        np.testing.assert_allclose(raw, r * share, rtol=1e-12)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_synflow_reaches_one_weight_a_layer_on_a_live_path(x64: None, seed: int) -> None:
    """Theorem 3 of Tanaka et al.: the largest compression there is, N / L, without a cut."""
    problem, weights, params = drawn(WIDTHS, seed)
    sizes = [w.shape for w in weights]
    score = scorer(SynFlow(), problem, params)
    masks = rounds(score, sizes, 4, 100)
    assert [int(m.sum()) for m in masks] == [1, 1, 1, 1]
    path = np.ones(20, int)
    for m in masks:
        path = path @ m.astype(int)
    assert path.sum() == 1
    if seed == 0:  # in one round the smallest layer takes all
        assert [int(m.sum()) for m in rounds(score, sizes, 4, 1)] == [0, 0, 0, 4]
        magnitude = rounds(lambda _: [np.abs(w) for w in weights], sizes, 4, 1)
        assert any(m.sum() == 0 for m in magnitude)


CRITERIA: dict[str, tuple[Criterion, bool]] = {
    "synflow": (SynFlow(), True),
    "square": (SynFlowL2(), True),
    "magnitude": (SynFlowL2(score_as="magnitude"), False),
    "trace": (PathTrace(), False),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_rescaling_a_unit(x64: None, name: str) -> None:
    """In by 3, out by 1/3: the function is the same; A and SynFlow do not move, B and C do."""
    criterion, invariant = CRITERIA[name]
    problem, weights, params = drawn((4, 5, 5, 2))
    other = [w.copy() for w in weights]
    other[0][:, 2] *= 3
    other[1][2, :] /= 3
    mask = [np.random.default_rng(0).random(w.shape) < 0.8 for w in weights]
    score = jax.jit(lambda p: criterion.score(problem, p, tree(mask), KEY))
    before, after = score(params), score(tree(other))
    same = all(
        np.allclose(a, b, rtol=1e-12, atol=0)
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    )
    assert same == invariant


@pytest.mark.long
def test_the_magnitude_reading_divides_by_the_weight(x64: None) -> None:
    problem, weights, params = drawn((4, 5, 2))
    full = [np.ones(w.shape, bool) for w in weights]
    a = scorer(SynFlowL2(), problem, params)(full)
    b = scorer(SynFlowL2(score_as="magnitude"), problem, params)(full)
    for square, magnitude, w in zip(a, b, weights, strict=True):
        np.testing.assert_allclose(magnitude * np.abs(w), square, rtol=1e-12)


def test_data_are_asked_for_in_one_sentence() -> None:
    problem, _, _ = drawn((4, 5, 2))
    params, _ = problem.network.init(KEY)
    mask = ones_mask(problem.network.prunable(params))
    for criterion in (SynFlowDist(), SynFlowL2Dist(), PathTrace(v="second_moment")):
        with pytest.raises(SecateurError, match="no examples were given"):
            criterion.score(problem, params, mask, KEY)
    with pytest.raises(SecateurError, match="mean_abs"):
        SynFlow(v="mean_ab").score(problem, params, mask, KEY)


# -- PHEW -------------------------------------------------------------------------------------


def of(net: Network) -> tuple[Problem, Any, Any]:
    params, stats = net.init(KEY)
    return Problem(net, stats), params, ones_mask(net.prunable(params))


def small_resnet() -> Network:
    """conv, max-pool, block with identity, block with a 1x1 shortcut, flat, dense."""

    def init(key: Any) -> Any:
        keys = iter(jax.random.split(key, 8))
        draw = lambda *shape: {"kernel": jax.random.normal(next(keys), shape)}
        shapes = {
            **{"stem": (3, 3, 3, 4), "a": (3, 3, 4, 4), "b": (3, 3, 1, 4), "c": (3, 3, 4, 6)},
            **{"d": (3, 3, 6, 6), "short": (1, 1, 4, 6), "head": (24, 5)},
        }
        return {k: draw(*shape) for k, shape in shapes.items()}, {}

    def apply(p: Any, stats: Any, x: Any) -> Any:
        x = layers.max_pool(jax.nn.relu(layers.conv(p["stem"], x)), 2)
        x = jax.nn.relu(x + layers.conv(p["b"], jax.nn.relu(layers.conv(p["a"], x)), groups=4))
        y = layers.conv(p["d"], jax.nn.relu(layers.conv(p["c"], x, stride=2)))
        x = jax.nn.relu(y + layers.conv(p["short"], x, stride=2))
        return layers.dense(p["head"], layers.flat(x))

    return Network("small", (8, 8, 3), 5, init, apply, lambda p, s, x, key: (apply(p, s, x), s))


@pytest.mark.long
def test_every_weight_of_phew_is_on_a_path() -> None:
    problem, params, mask = of(mlp(*WIDTHS[1:-1], input_shape=WIDTHS[:1], outputs=10))
    for keep in (4, 50, 203):
        found, weights, made = Phew().construct(problem, params, mask, keep, KEY)
        assert weights is params
        kept = sum(alive(found).values())
        assert keep <= kept == made["kept"] <= keep + 3
        assert made["overshoot"] == kept - keep
        assert min(alive(found).values()) >= 1
        effective = reachable(problem.network, params, {}, found).effective
        assert alive(effective) == alive(found)


def test_phew_repeats_by_key_and_only_by_key() -> None:
    problem, params, mask = of(mlp(30, input_shape=(20,), outputs=10))
    draw = lambda seed: jax.tree.leaves(
        Phew().construct(problem, params, mask, 100, jax.random.key(seed))[0]
    )
    assert all((a == b).all() for a, b in zip(draw(1), draw(1), strict=True))
    assert any((a != b).any() for a, b in zip(draw(1), draw(2), strict=True))


def frequencies(net: Network, params: Any, law: Any, walks: np.ndarray) -> Any:
    """How often the walks of these numbers meet each weight."""
    ways = walkways(net, params, {}, ones_mask(net.prunable(params)))
    values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    met = Walks(ways, law(values.astype(float)), False).block(walks, np.random.default_rng(0))
    count = np.bincount(met[met >= 0], minlength=values.size) / len(walks)
    return np.split(count, np.cumsum([leaf.size for leaf in jax.tree.leaves(params)])[:-1])


def test_steps_have_the_probabilities_of_the_paper() -> None:
    """Forward walks leave a unit in proportion to |W| along its row, backward along its column."""
    net = mlp(3, input_shape=(2,), outputs=2, bias=False)
    first = np.array([[1.0, -2.0, 4.0], [0.5, 0.5, 1.0]])
    second = np.array([[1.0, 1.0], [-3.0, 1.0], [2.0, 6.0]])
    params = jax.tree.map(lambda a: a.astype(jnp.float32), tree([first, second]))
    n = 4000
    for name, law in WEIGHTS.items():
        a, b = law(first), law(second)
        rows, columns = a / a.sum(1, keepdims=True), b / b.sum(0, keepdims=True)
        into = rows.mean(0)  # inputs take turns
        forward = rows / 2, into[:, None] * b / b.sum(1, keepdims=True)
        back = columns.mean(1) * a / a.sum(0, keepdims=True), columns / 2
        for start, law_of in ((0, forward), (1, back)):
            found = frequencies(net, params, WEIGHTS[name], np.arange(start, 2 * n, 2))
            for count, p in zip(found, law_of, strict=True):
                sigma = np.sqrt(p.ravel() * (1 - p.ravel()) / n)
                assert (np.abs(count - p.ravel()) <= 4.5 * sigma).all(), name


@pytest.mark.long
def test_phew_walks_through_convolutions_sums_and_flattening() -> None:
    net = small_resnet()
    params, stats = net.init(KEY)
    mask = ones_mask(net.prunable(params))
    ways = walkways(net, params, stats, mask)
    strength = np.abs(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)]))
    names = list(flatten(params))
    for whole in (False, True):
        met = Walks(ways, strength, whole).block(np.arange(400), np.random.default_rng(0))
        kept = np.zeros(strength.size, bool)
        kept[met[met >= 0]] = True
        sizes = [np.size(leaf) for leaf in jax.tree.leaves(params)]
        leaves = zip(names, np.split(kept, np.cumsum(sizes)[:-1]), jax.tree.leaves(params))
        m = {name.split("/")[0]: piece.reshape(leaf.shape) for name, piece, leaf in leaves}
        if whole:
            assert all((k.all((0, 1)) == k.any((0, 1))).all() for k in m.values() if k.ndim == 4)
        channels = {k: leaf if leaf.ndim == 2 else leaf.any((0, 1)) for k, leaf in m.items()}
        # Each channel that is entered is left, and the other way round.
        out_of_head = channels["head"].reshape(4, 6, 5).any((0, 2))
        np.testing.assert_array_equal(channels["d"].any(0) | channels["short"].any(0), out_of_head)
        np.testing.assert_array_equal(channels["c"].any(0), channels["d"].any(1))
        np.testing.assert_array_equal(channels["a"].any(0), channels["b"].any(0))
        # A fair coin at the second block: the same number of walks over either branch.
        walks = np.isin(
            met,
            np.arange(strength.size)[
                np.concatenate(
                    [np.full(size, name.startswith("short")) for name, size in zip(names, sizes)]
                )
            ],
        ).any(axis=1)
        assert abs(walks.mean() - 0.5) < 4.5 * 0.5 / np.sqrt(len(met))


def test_phew_refuses_what_no_walk_can_meet() -> None:
    problem, params, mask = of(mlp(3, input_shape=(2,), outputs=1, bias=False))
    params["dense_1"]["kernel"] = params["dense_1"]["kernel"].at[0, 0].set(0.0)
    with pytest.raises(SecateurError, match="only 8 can be met"):
        Phew().construct(problem, params, mask, 9, KEY)
    problem, params, mask = of(mlp(30, input_shape=(20,), outputs=10, bias=False))
    with pytest.raises(SecateurError, match="most_walks"):
        Phew(most_walks=512).construct(problem, params, mask, 895, KEY)


@pytest.mark.long
@pytest.mark.parametrize("name", ["vgg-19", "resnet-50"])
def test_float32_chooses_as_float64_does_in_large_networks(name: str) -> None:
    """Every score is finite, and the masks agree in at least 99.9 % of the weights."""
    net = {"vgg-19": lambda: vgg(19), "resnet-50": lambda: deep_resnet(50)}[name]()
    with jax.enable_x64(True):
        params, stats = net.init(KEY)
        # `find` scores it in the loop's own form; here one program, called for each round.
        score = jax.jit(lambda p, s, m: SynFlow().score(Problem(net, s), p, m, KEY))

        def masks(dtype: Any) -> list[np.ndarray]:
            as_given = lambda tree: jax.tree.map(lambda a: a.astype(dtype), tree)
            mask = ones_mask(net.prunable(params))
            leaves = [m for m in flatten(mask).values() if m is not None]
            total = sum(m.size for m in leaves)
            for k in (1, 2, 3):
                scores = jax.tree.leaves(score(as_given(params), as_given(stats), mask))
                flat = np.concatenate([np.ravel(s) for s in scores])
                assert flat.dtype == dtype
                assert np.isfinite(flat).all()
                flat[~np.concatenate([np.ravel(m) for m in leaves])] = -1
                count = round(total * 0.05 ** (k / 3))
                kept = np.zeros(total, bool)
                kept[np.argpartition(flat, total - count)[total - count :]] = True
                pieces = np.split(kept, np.cumsum([m.size for m in leaves])[:-1])
                leaves = [piece.reshape(m.shape) for piece, m in zip(pieces, leaves)]
                mask = jax.tree.unflatten(jax.tree.structure(mask), leaves)
            return leaves

        same = [(a == b) for a, b in zip(masks(np.float64), masks(np.float32), strict=True)]
    assert sum(s.sum() for s in same) >= 0.999 * sum(s.size for s in same)
