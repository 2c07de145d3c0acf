"""The training loop against an independent one, as lanes, shrunk, and resumed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from problems import OPTIMISERS, SHORT, digits, problem, small_net, start

from secateur.core.errors import SecateurError
from secateur.core.keys import key
from secateur.core.trees import flatten, ones_mask
from secateur.train.fit import fit, fit_lanes
from secateur.train.order import Order
from secateur.train.recipes import RECIPES, Recipe
from secateur.train.records import Record
from secateur.train.training import Fitted, Training


def far(a: Any, b: Any) -> float:
    """The largest relative difference of two trees."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.max(np.abs(x - y)) / (np.max(np.abs(y)) + 1e-30)) for x, y in pairs)


def same(a: Fitted, b: Fitted, tolerance: float) -> None:
    assert far(a.params, b.params) < tolerance
    assert far(a.best_params, b.best_params) < tolerance
    loss = a.curve["validation_loss"], b.curve["validation_loss"]
    np.testing.assert_allclose(*loss, rtol=tolerance)
    assert a.best["step"] == b.best["step"]


def test_adam_equals_a_numpy_loop_written_from_the_paper() -> None:
    """Kingma & Ba 2015, algorithm 1, by hand: forward, backward and update in numpy float64."""
    with jax.enable_x64(True):
        recipe = replace(SHORT, steps=30, evaluate_every=10)
        t = problem(recipe, shrink=False)
        found = fit(t)
    data = digits()
    p = {k: np.array(v, np.float64) for k, v in flatten(t.start).items()}
    m = {
        k: np.ones(v.shape, bool) if (x := flatten(t.mask)[k]) is None else x for k, v in p.items()
    }
    p = {k: v * m[k] for k, v in p.items()}
    first, second = ({k: np.zeros_like(v) for k, v in p.items()} for _ in range(2))
    index = Order(t.key, len(data.train.labels), recipe.batch).indices(0, 30)
    for step in range(30):
        x = (data.train.images[index[step]].reshape(20, -1) / 255 - data.mean[0]) / data.std[0]
        y = data.train.labels[index[step]]
        a1 = x @ p["dense_1/kernel"] + p["dense_1/bias"]
        h1 = np.maximum(a1, 0)
        a2 = h1 @ p["dense_2/kernel"] + p["dense_2/bias"]
        h2 = np.maximum(a2, 0)
        z = h2 @ p["dense_3/kernel"] + p["dense_3/bias"]
        e = np.exp(z - z.max(1, keepdims=True))
        d3 = (e / e.sum(1, keepdims=True) - np.eye(10)[y]) / 20
        d2 = (d3 @ p["dense_3/kernel"].T) * (a2 > 0)
        d1 = (d2 @ p["dense_2/kernel"].T) * (a1 > 0)
        grads = {}
        for l, (inputs, delta) in enumerate(((x, d1), (h1, d2), (h2, d3)), start=1):
            grads[f"dense_{l}/kernel"] = inputs.T @ delta
            grads[f"dense_{l}/bias"] = delta.sum(0)
        for k, g in grads.items():
            g = g * m[k]
            first[k] = 0.9 * first[k] + 0.1 * g
            second[k] = 0.999 * second[k] + 0.001 * g * g
            unbiased = first[k] / (1 - 0.9 ** (step + 1)), second[k] / (1 - 0.999 ** (step + 1))
            p[k] = p[k] - 1.2e-3 * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8) * m[k]
    for k, v in flatten(found.params).items():
        np.testing.assert_allclose(v, p[k], atol=1e-10)


@pytest.mark.parametrize("name", ["adam", "momentum, coupled decay"])
def test_lanes_get_what_they_get_alone_in_float64(name: str) -> None:
    """8 seeds, masks, starts and rates as one program: 200 steps to 1e-9."""
    with jax.enable_x64(True):
        recipe = OPTIMISERS[name]
        trainings = [
            problem(replace(recipe, rate=recipe.rate * (1 + k / 8)), 0.05, k, alpha=1 + k / 4)
            for k in range(8)
        ]
        # At full size, so that all lanes alone share one compiled program; shrunk lanes are below.
        trainings = [replace(t, shrink=False) for t in trainings]
        for lane, t in zip(fit_lanes(trainings), trainings, strict=True):
            same(lane, fit(t), 1e-9)
            assert all(lane.checks.values()), lane.checks


def test_lanes_get_what_they_get_alone_in_float32() -> None:
    recipe = replace(SHORT, steps=50, evaluate_every=25)
    trainings = [problem(recipe, 0.05, k, shrink=False) for k in range(8)]
    for lane, t in zip(fit_lanes(trainings), trainings, strict=True):
        assert far(lane.params, fit(t).params) < 1e-5


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_smaller_network_trains_to_the_same_weights_in_float64(name: str) -> None:
    """200 steps, every optimiser, biases that are not 0, units without inputs or outputs."""
    with jax.enable_x64(True):
        t = problem(OPTIMISERS[name])
        small, full = fit(t), fit(replace(t, shrink=False))
    assert small.widths
    assert not full.widths
    assert small.widths["input"]["trained"] < 784
    same(small, full, 1e-9)
    assert all(small.checks.values())


@pytest.mark.parametrize("name", ["adam", "adam, coupled decay", "nesterov, dropped rate"])
def test_survivors_held_alone_at_full_widths_train_the_same_in_float64(name: str) -> None:
    with jax.enable_x64(True):
        t = problem(OPTIMISERS[name], grain=784)
        packed, full = fit(t), fit(replace(t, shrink=False))
    assert packed.packed
    assert not packed.widths
    same(packed, full, 1e-9)


def test_forms_are_exact_and_go_back(getkey: Any) -> None:
    """A form and back: the masked parameters, bit for bit, whatever was cut, packed or turned."""
    from secateur.core.trees import apply_mask
    from secateur.train.form import choose

    for density in (0.02, 0.1, 0.5):
        t = problem(density=density)
        form = choose([t])[0]
        masked = jax.tree.map(np.asarray, apply_mask(t.mask, t.start))
        assert form.turned
        back = form.full(form.of(masked), masked)
        for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(masked), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_form_that_does_not_pay_is_not_taken() -> None:
    from secateur.train.form import choose

    form = choose([problem(siblings=1)])[0]
    assert form.selection is None
    assert not form.places


def test_our_adam_is_optax_adam(x64: None) -> None:
    import optax

    from secateur.train.adam import scale_by_adam

    rng = np.random.default_rng(0)
    params = {"w": np.zeros((5, 7)), "b": np.zeros(3)}
    ours, theirs = scale_by_adam(), optax.scale_by_adam()
    a, b = ours.init(params), theirs.init(params)
    for _ in range(50):
        grads = jax.tree.map(lambda p: rng.standard_normal(p.shape) * 1e-3, params)
        u, a = ours.update(grads, a)
        v, b = theirs.update(grads, b)
        assert far(u, v) < 1e-13


def test_the_smaller_network_in_float32() -> None:
    t = problem(replace(SHORT, steps=50, evaluate_every=25))
    small = fit(t)
    assert small.widths
    assert far(small.params, fit(replace(t, shrink=False)).params) < 1e-5


def test_shrunk_lanes_of_different_masks_share_one_shape() -> None:
    with jax.enable_x64(True):
        trainings = [problem(SHORT, 0.02 + 0.02 * k, k) for k in range(3)]
        lanes = fit_lanes(trainings)
        assert len({str({n: w["trained"] for n, w in f.widths.items()}) for f in lanes}) == 1
        for lane, t in zip(lanes, trainings, strict=True):
            same(lane, fit(replace(t, shrink=False)), 1e-9)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_pruned_weights_and_their_moments_stay_exactly_zero(name: str) -> None:
    found = fit(problem(OPTIMISERS[name], shrink=False))
    assert found.checks["pruned weights and moments exactly zero"]
    t = problem(OPTIMISERS[name])
    for m, p in zip(flatten(t.mask).values(), flatten(found.params).values(), strict=True):
        if m is not None:
            assert np.all(p[~m] == 0)
            assert np.any(p[m] != 0)


def test_the_zero_check_can_fail() -> None:
    """`leak` sees one pruned weight and one pruned moment that moved."""
    from secateur.train.masked import leak

    mask = {"kernel": np.array([True, False]), "bias": None}
    clean = {"kernel": np.array([1.0, 0.0]), "bias": np.array([5.0])}
    dirty = {"kernel": np.array([1.0, 1e-30]), "bias": np.array([5.0])}
    assert leak(mask, clean, (clean, ())) == 0
    assert leak(mask, dirty, (clean, ())) > 0
    assert leak(mask, clean, ({"mu": clean, "nu": dirty},)) > 0


class Recorder:
    """A watch that keeps the state of one step."""

    def __init__(self, at: int) -> None:
        self.at, self.kept = at, None

    def load(self) -> None:
        return None

    def tick(self, step: int, steps: int, state: Any) -> None:
        if step == self.at:
            self.kept = {k: np.array(v) for k, v in state().items()}


class Resumer(Recorder):
    def __init__(self, kept: dict[str, np.ndarray]) -> None:
        super().__init__(-1)
        self.held = kept
        self.steps: list[int] = []

    def load(self) -> Any:
        return self.held

    def tick(self, step: int, steps: int, state: Any) -> None:
        self.steps.append(step)


def sizes(network: Any, params: Any, stats: Any, mask: Any) -> Any:
    return jax.tree.map(lambda p: jax.numpy.sum(p * p), params)


@pytest.mark.parametrize("lanes", [False, True])
def test_a_resumed_training_is_bit_identical(lanes: bool) -> None:
    recipe = replace(SHORT, optimiser="adam", steps=1200, evaluate_every=100, batch=10)
    record = Record("sizes", sizes, (0, 400, 1200))
    trainings = [
        problem(recipe, 0.05, k, keep_at=(400,), records=(record,))
        for k in range(2 if lanes else 1)
    ]
    run = (
        (lambda ws: fit_lanes(trainings, ws)) if lanes else (lambda ws: [fit(trainings[0], ws[0])])
    )
    recorders = [Recorder(800) for _ in trainings]
    whole = run(recorders)
    resumers = [Resumer(r.kept) for r in recorders]  # type: ignore[arg-type]
    again = run(resumers)
    assert all(step > 800 for r in resumers for step in r.steps)
    for a, b in zip(whole, again, strict=True):
        for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
            np.testing.assert_array_equal(x, y)
        assert a.best == b.best
        assert a.last == b.last
        assert all(np.array_equal(a.curve[k], b.curve[k]) for k in a.curve)
        taken, kept = (a.records, b.records), (a.kept, b.kept)
        assert len(jax.tree.leaves(a.records)) == len(jax.tree.leaves(a.params))
        for x, y in zip(jax.tree.leaves((taken[0], kept[0])), jax.tree.leaves((taken[1], kept[1]))):
            np.testing.assert_array_equal(x, y)


def test_a_checkpoint_of_another_form_is_not_taken_for_ones_own() -> None:
    """Weights held turned, packed or cut otherwise have other shapes, or worse, the same."""
    recipe = replace(SHORT, steps=1200, evaluate_every=100, batch=10)
    square = replace(problem(recipe, 0.05), shrink=False)
    recorder = Recorder(800)
    fit(problem(recipe, 0.05), recorder)
    resumer = Resumer(recorder.kept)  # type: ignore[arg-type]
    again = fit(square, resumer)
    assert min(resumer.steps) < 800
    assert far(again.params, fit(square).params) == 0


def test_one_program_serves_every_mask_start_rate_and_key() -> None:
    """No second compilation: everything that varies is data."""
    from secateur.train.program import programs, static_of

    recipe = replace(SHORT, steps=100)
    fit(problem(recipe, 0.05, 0, shrink=False))
    chunk = programs(static_of(small_net(), recipe), False)["chunk"]
    before = chunk._cache_size()
    for k in range(1, 4):
        fit(problem(replace(recipe, rate=1e-3 * k), 0.1 * k, k, shrink=False, alpha=1.0 + k))
    assert chunk._cache_size() == before


def test_best_is_the_first_lowest_validation_loss_and_never_looks_at_test() -> None:
    t = problem(replace(SHORT, rate=0.02), 0.3)
    found = fit(t)
    loss = found.curve["validation_loss"]
    assert found.best["step"] == found.curve["step"][np.argmin(loss)]
    assert found.best["validation_loss"] == loss.min()
    assert found.curve["step"].tolist() == [0, 50, 100, 150, 200]
    data = t.data
    wrong = replace(data.test, labels=(data.test.labels + 1) % 10)
    other = fit(replace(t, data=replace(data, test=wrong, sha256="other")))
    assert other.best["step"] == found.best["step"]
    assert far(other.best_params, found.best_params) == 0


def test_accuracy_is_right_over_count_with_a_short_last_block() -> None:
    """1,100 examples in blocks of 1,000: none is dropped, none is counted twice (shrinkbench's
    98.9 %, LTH-rv's 99.6 %)."""
    t = problem(replace(SHORT, steps=50), 0.3, shrink=False)
    data = t.data
    images = np.concatenate([data.train.images] * 2)[:1100]
    labels = np.concatenate([data.train.labels] * 2)[:1100]
    test = replace(data.test, images=images, labels=labels)
    found = fit(replace(t, data=replace(data, test=test, sha256="long")))
    x = ((images / np.float32(255) - data.mean[0]) / data.std[0]).astype(np.float32)
    logits = t.network.apply(found.params, {}, x)
    right = int(np.sum(np.argmax(logits, -1) == labels))
    assert found.last["test_accuracy"] == right / 1100


def test_order_sees_every_example_once_an_epoch_across_batches() -> None:
    order = Order(key(3), 103, 10)
    seen = order.indices(0, 103).ravel()
    for epoch in range(10):
        assert sorted(seen[epoch * 103 : (epoch + 1) * 103]) == list(range(103))
    assert len({tuple(seen[e * 103 : (e + 1) * 103]) for e in range(10)}) == 10
    np.testing.assert_array_equal(
        Order(key(3), 103, 10).indices(40, 7), seen.reshape(-1, 10)[40:47]
    )
    assert not np.array_equal(Order(key(4), 103, 10).indices(0, 5), seen.reshape(-1, 10)[:5])


def test_rates_follow_drops_and_warmup() -> None:
    recipe = Recipe("sgd", 1.0, steps=10, evaluate_every=5, drops=((4, 0.1), (8, 0.1)), warmup=2)
    expected = [0.5, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]
    np.testing.assert_allclose(recipe.rates(np.arange(10)), expected)


def test_alpha_scales_the_outputs_that_the_loss_sees() -> None:
    t = problem(replace(SHORT, steps=50), 0.3, shrink=False)
    scaled = fit(replace(t, alpha=3.0)).curve["validation_loss"][0]
    data = digits()
    x = ((data.validation.images / np.float32(255) - data.mean[0]) / data.std[0]).astype(np.float32)
    from secateur.core.trees import apply_mask

    logits = 3 * np.asarray(t.network.apply(apply_mask(t.mask, t.start), {}, x), np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.mean(logits[np.arange(len(x)), data.validation.labels])
    assert scaled == pytest.approx(expected, rel=1e-5)


def test_recipes_are_the_papers() -> None:
    paper = RECIPES["frankle-carbin"]
    assert (paper.optimiser, paper.rate, paper.batch, paper.steps) == ("adam", 1.2e-3, 60, 50_000)
    assert RECIPES["open-lth"].steps == 40 * 469
    assert RECIPES["ntt"].steps == 50 * 844


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 105}, "multiple of evaluate_every"),
        ({"rate": 0.0}, "learning rate is positive"),
        ({"optimiser": "adm"}, "Did you mean 'adam'"),
        ({"batch": 0}, "at least 1"),
        ({"weight_decay": -1.0}, "not negative"),
    ],
)
def test_a_bad_recipe_is_one_sentence(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SecateurError, match=said):
        replace(SHORT, **change)


def test_bad_data_is_one_sentence() -> None:
    t = problem()
    flat = replace(t.data.train, images=t.data.train.images.reshape(-1, 784))
    with pytest.raises(SecateurError, match="takes inputs of shape"):
        fit(replace(t, data=replace(t.data, train=flat)))
    high = replace(t.data.train, labels=t.data.train.labels + 5)
    with pytest.raises(SecateurError, match="at least 15"):
        fit(replace(t, data=replace(t.data, train=high)))
    with pytest.raises(SecateurError, match="rewind to a step that is"):
        fit(replace(t, first_step=30))


def test_lanes_that_differ_in_the_program_are_refused() -> None:
    with pytest.raises(SecateurError, match="lanes share"):
        fit_lanes([problem(), problem(replace(SHORT, batch=10))])


def test_start_is_masked_whatever_is_given() -> None:
    t = problem(replace(SHORT, steps=50), shrink=False)
    dirty = jax.tree.map(lambda p: p + 1, t.start)
    found = fit(replace(t, start=dirty))
    assert all(found.checks.values())
    assert isinstance(t, Training)
    assert ones_mask(t.network.prunable(start(t.network))) is not None
