"""Descent through mean weight and second moment against descent on examples, unit by unit."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.quadratic import Quadratic
from secateur.networks.committee import closed_form, population_loss
from secateur.train.committee import Population, descend, rate_for, sample

D, N = 5, 12
SCALES = {"alpha": 1.6, "epsilon": 0.7}


def world(examples):
    rng = np.random.default_rng(examples)
    w = rng.standard_normal((D, 3))
    teacher = Quadratic(w.mean(axis=1), 0.2 * w @ w.T / 3)
    x = rng.standard_normal((examples, D)) / D**0.5
    noisy = x[:, 0] - x[:, 1] * x[:, 2] + 0.1 * rng.standard_normal(examples)
    start = rng.standard_normal((D, N))
    return teacher, x, noisy, start, rng.random((D, N)) < 0.6


def by_hand(x, y, start, mask, alpha, epsilon, rate, centred, optimiser, steps, every):
    """Descent on the examples, unit by unit, in NumPy."""
    f = lambda w: alpha * np.mean(x @ w + epsilon / 2 * (x @ w) ** 2, axis=1)
    w = start * mask
    shift = centred * f(w)
    mean, square, losses = np.zeros_like(w), np.zeros_like(w), []
    for t in range(1, steps + 2):
        gap = f(w) - shift - y
        if (t - 1) % every == 0:
            losses.append(np.mean(gap**2) / 2)
        slope = alpha / N * (x.T @ (gap[:, None] * (1 + epsilon * x @ w))) / len(x) * mask
        if optimiser == "adam":
            mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
            slope = mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
        if t <= steps:
            w = w - rate * slope
    return w, losses


@pytest.mark.parametrize(("examples", "optimiser"), [(13, "gd"), (60, "adam")])  # monomials: 20
def test_a_sweep_is_descent_on_the_examples(x64, examples, optimiser):
    """Lanes of one program: three scales, masks, centred and not; each against NumPy."""
    teacher, x, y, start, mask = world(examples)
    alphas, masks = np.array([0.5, 1.6, 4.0]), np.stack([mask, ~mask, mask])
    centred = np.array([True, False, False])
    rates = np.full(3, 0.05) if optimiser == "adam" else 0.5 * N / alphas**2

    @jax.jit
    def sweep(alphas, masks, centred, rates):
        problem = sample(x, y)
        assert len(problem.design) == min(examples, 20)

        def run(alpha, mask, centred, rate):
            found = descend(
                start, problem, teacher, mask, alpha=alpha, epsilon=0.7, rate=rate, steps=12,
                every=4, centred=centred, optimiser=optimiser, keep=True,
            )  # fmt: skip
            origin = closed_form(start * mask, alpha, 0.7).scaled(centred)
            last = population_loss(found.kernel, teacher, alpha=alpha, epsilon=0.7, origin=origin)
            return found, last

        return jax.vmap(run)(alphas, masks, centred, rates)

    found, last = sweep(alphas, masks, centred, rates)
    for l in range(3):
        w, losses = by_hand(
            x, y, start, masks[l], alphas[l], 0.7, rates[l], centred[l], optimiser, 12, 4
        )
        np.testing.assert_allclose(found.kernel[l], w, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found.loss[l], losses, rtol=1e-8)
        moved = np.linalg.norm(w - start * masks[l]) / np.linalg.norm(start * masks[l])
        assert float(found.moved[l, -1]) == pytest.approx(moved, rel=1e-8)
        assert np.all(np.asarray(found.kernel)[l][~masks[l]] == 0)
    np.testing.assert_array_equal(found.kernels[:, -1], found.kernel)
    for part, expected in zip(found.error, last):
        np.testing.assert_allclose(part[:, -1], expected, rtol=1e-9)


def test_on_the_population_the_three_terms_fall_and_every_unit_moves_alike(x64):
    teacher, _, _, start, _ = world(13)
    found = descend(
        start, Population(teacher), teacher, **SCALES, rate=rate_for(N, **SCALES), steps=400,
        every=100,
    )  # fmt: skip
    np.testing.assert_allclose(found.loss, found.error.total / 2, rtol=1e-12)
    assert np.all(np.diff(found.loss) < 0)
    # W(t) = W(0) A + 1 b: the rows of the fit of W(t) on (W(0), 1) leave nothing over.
    left = np.concatenate([start, np.ones((1, N))]).T
    after = np.linalg.lstsq(left, np.asarray(found.kernel).T, rcond=None)
    assert after[1].size == D
    np.testing.assert_allclose(after[1], 0, atol=1e-20)


def test_what_does_not_fit_is_refused():
    teacher, start = Quadratic(np.zeros(D), np.zeros((D, D))), np.zeros((D, N))
    given = {"alpha": 1.0, "epsilon": 0.5, "rate": 1.0}
    with pytest.raises(SecateurError, match="divisor"):
        descend(start, Population(teacher), teacher, **given, steps=10, every=3)
    with pytest.raises(SecateurError, match="optimiser"):
        descend(start, Population(teacher), teacher, **given, steps=2, every=2, optimiser="newton")
