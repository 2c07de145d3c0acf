"""The committee machine's closed forms against autodiff, exact quadrature and sampling."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from secateur import find
from secateur.core.errors import SecateurError
from secateur.core.quadratic import Quadratic
from secateur.core.trees import flatten
from secateur.kernels import ntk as kernels_ntk
from secateur.networks import committee as cm

ALPHA, EPSILON = 1.7, 0.6
NTK = jax.jit(cm.ntk)


def grid(d):
    """Points and weights, exact for polynomials of degree 5 in each x_i ~ N(0, 1 / d)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    points = np.array(list(itertools.product(nodes / d**0.5, repeat=d)))
    return points, np.prod(list(itertools.product(weights / weights.sum(), repeat=d)), axis=1)


def kernel_of(d, n, seed=0):
    return np.random.default_rng(seed).standard_normal((d, n))


def unit_by_unit(kernel, x, alpha=ALPHA, epsilon=EPSILON):
    total = np.zeros(len(x))
    for w in kernel.T:
        h = x @ w
        total += alpha / kernel.shape[1] * (h + epsilon / 2 * h**2)
    return total


def teacher_of(d, seed=3):
    rng = np.random.default_rng(seed)
    b = rng.standard_normal((d, d))
    return Quadratic(rng.standard_normal(d), (b + b.T) / 2)


def test_the_function_is_its_closed_form():
    kernel, x = kernel_of(7, 30), kernel_of(50, 7, 1)
    expected = unit_by_unit(kernel, x)
    scale = np.abs(expected).max()
    for double in (False, True):
        with jax.enable_x64(double):
            found = jax.jit(
                lambda w, at: (
                    cm.function(w, at, ALPHA, EPSILON),
                    cm.closed_form(w, ALPHA, EPSILON)(at),
                )
            )(kernel, x)
        for each in found:
            assert each.dtype == (np.float64 if double else np.float32)
            np.testing.assert_allclose(each, expected, atol=scale * (1e-13 if double else 2e-6))


@pytest.mark.parametrize("double", [False, True])
def test_the_tangent_kernel_is_the_bracket_times_its_factor(double):
    """The sum over weights of products of derivatives; the paper prints the bracket alone."""
    d, n = 6, 40
    with jax.enable_x64(double):
        jacobian, whole, printed, part = jax.jit(
            lambda w, x: (
                jax.jacobian(cm.function)(w, x, ALPHA, EPSILON).reshape(9, -1),
                cm.ntk(w, x, epsilon=EPSILON, alpha=ALPHA, normalised=False),
                cm.ntk(w, x, epsilon=EPSILON, alpha=ALPHA),
                cm.ntk(w, x[:2], x[3:], epsilon=EPSILON),
            )
        )(kernel_of(d, n), kernel_of(9, d, 1))
    exact = np.asarray(jacobian) @ np.asarray(jacobian).T
    tolerance = (1e-12 if double else 1e-5) * np.abs(exact).max()
    np.testing.assert_allclose(whole, exact, atol=tolerance)
    factor = np.sum(exact * np.asarray(printed)) / np.sum(np.asarray(printed) ** 2)
    assert factor == pytest.approx(ALPHA**2 / n, rel=1e-5)
    np.testing.assert_allclose(part, np.asarray(printed)[:2, 3:], atol=tolerance * n)


@pytest.mark.parametrize("epsilon", [0.5, 1.3])
def test_the_spectrum_at_the_start(x64, epsilon):
    """Eigenvalues of the kernel's operator on an exact grid; 2 epsilon / D^2, as printed, is none.

    Weights +- sqrt(D) e_i have mean 0 and second moment I exactly.
    """
    d = 4
    kernel = np.sqrt(d) * np.concatenate([np.eye(d), -np.eye(d)], axis=1)
    points, weights = grid(d)
    k = np.asarray(NTK(kernel, points, epsilon=epsilon))
    root = np.sqrt(weights)
    measured = np.linalg.eigvalsh(root[:, None] * k * root)[::-1]
    levels = cm.spectrum_at_start(d, epsilon)
    said = np.sort(np.concatenate([[lv.eigenvalue] * lv.multiplicity for lv in levels]))[::-1]
    assert len(said) == d + d * (d + 1) // 2
    np.testing.assert_allclose(measured[: len(said)], said, rtol=1e-10)
    np.testing.assert_allclose(measured[len(said) :], 0, atol=1e-12)
    assert np.sum(np.isclose(measured, 2 * epsilon**2 / d**2)) == d * (d + 1) // 2 - 1
    assert not np.any(np.isclose(measured, 2 * epsilon / d**2, rtol=0.05))
    assert said.sum() == pytest.approx(1 + epsilon**2 * (1 + 2 / d))
    of = cm.summary(kernel)
    np.testing.assert_allclose(cm.spectrum(of, epsilon), said, rtol=1e-10)
    np.testing.assert_allclose(cm.spectrum_without_mean(np.eye(d), epsilon), said, rtol=1e-10)


def test_the_spectrum_at_finite_width(x64):
    d, epsilon = 4, 0.8
    points, weights = grid(d)
    root = np.sqrt(weights)
    drawn = kernel_of(d, 11)
    for kernel in (drawn, np.concatenate([drawn, -drawn], axis=1)):
        k = np.asarray(NTK(kernel, points, epsilon=epsilon))
        measured = np.linalg.eigvalsh(root[:, None] * k * root)[::-1]
        of = cm.summary(kernel)
        found = cm.spectrum(of, epsilon)
        np.testing.assert_allclose(found, measured[: len(found)], rtol=1e-9, atol=1e-12)
        trace = 1 + epsilon**2 * np.trace(of.second) * (d + 2) / d**2
        assert found.sum() == pytest.approx(trace)
    # The last kernel and its negative: the mean is 0, and the cheap form says the same.
    np.testing.assert_allclose(cm.spectrum_without_mean(of.second, epsilon), found, rtol=1e-9)


def test_the_population_loss_and_its_three_terms(x64):
    d = 4
    kernel, teacher = kernel_of(d, 9), teacher_of(d)
    origin = cm.closed_form(kernel_of(d, 9, 8), 0.7, 0.2)
    points, weights = grid(d)
    for centre in (None, origin):
        terms = cm.population_loss(kernel, teacher, alpha=ALPHA, epsilon=EPSILON, origin=centre)
        gap = unit_by_unit(kernel, points) - np.asarray(teacher(points))
        gap -= 0 if centre is None else np.asarray(centre(points))
        assert float(terms.total) == pytest.approx(weights @ gap**2, rel=1e-12)
        # The linear part is what is odd in x, the trace's part the projection on |x|^2.
        odd = (gap - gap[::-1]) / 2  # the grid runs from -x to x
        square = np.sum(points**2, axis=1)
        even = gap - odd
        along = (weights @ (even * square)) / (weights @ square**2) * square
        parts = [weights @ part**2 for part in (odd, even - along, along)]
        np.testing.assert_allclose(list(terms), parts, rtol=1e-11)


def test_the_population_loss_is_what_samples_say():
    d, n = 20, 40_000
    kernel, teacher = kernel_of(d, 100), teacher_of(d)
    x = np.random.default_rng(5).standard_normal((n, d)) / d**0.5
    squares = (unit_by_unit(kernel, x) - np.asarray(teacher(x))) ** 2
    loss = jax.jit(lambda w: cm.population_loss(w, teacher, alpha=ALPHA, epsilon=EPSILON))
    said = loss(kernel.astype(np.float32))
    error = squares.std() / n**0.5
    assert error < 0.02 * squares.mean()
    assert abs(float(said.total) - squares.mean()) < 4 * error


def test_gradients_are_those_of_autodiff(x64):
    d, n = 5, 12
    w, teacher = kernel_of(d, n), teacher_of(d)
    scales = {"alpha": ALPHA, "epsilon": EPSILON}

    @jax.jit
    def both(w):
        half = lambda w: cm.population_loss(w, teacher, **scales).total / 2
        return cm.population_gradient(w, teacher, **scales), jax.grad(half)(w)

    found, expected = map(np.asarray, both(w))
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)

    # By the printed formula, unit by unit, for another epsilon of the teacher.
    delta = ALPHA * w.mean(axis=1) - teacher.linear
    gap = ALPHA * EPSILON / 2 * (w @ w.T) / n - teacher.quadratic
    for i in range(n):
        pull = (2 * gap + np.trace(gap) * np.eye(d)) @ w[:, i]
        by_hand = ALPHA / n * (delta / d + EPSILON * pull / d**2)
        np.testing.assert_allclose(found[:, i], by_hand, rtol=1e-11)


@pytest.mark.long
def test_the_network_is_one_of_the_house():
    """Kernels, criteria and masks work on it; alpha is data of the program."""
    net = cm.committee(6, 10, epsilon=EPSILON, alpha=ALPHA)
    params, stats = net.init(jax.random.key(0))
    assert set(flatten(params)) == {"committee/kernel"}
    x = np.asarray(kernel_of(5, 6, 1), np.float32)
    w = params["committee"]["kernel"]
    expected = unit_by_unit(np.asarray(w, np.float64), x)
    np.testing.assert_allclose(net.apply(params, stats, x)[:, 0], expected, rtol=1e-5, atol=1e-5)

    kernel = kernels_ntk.ntk(net, params, x, stats=stats, outputs="trace").values
    said = cm.ntk(w, x, epsilon=EPSILON, alpha=ALPHA, normalised=False)
    np.testing.assert_allclose(kernel, said, rtol=1e-4, atol=1e-6)

    ticket = find(net, method="magnitude", density=0.25, data=None, seed=0)
    assert int(np.sum(flatten(ticket.mask)["committee/kernel"])) == 15

    scales = cm.with_scales([1.0, 2.0], [EPSILON, EPSILON])
    many = jax.vmap(net.apply, (None, 0, None))(params, scales, x)
    np.testing.assert_allclose(many[1], 2 * many[0], rtol=1e-6)
    with pytest.raises(SecateurError, match="at least one"):
        cm.committee(0, 3)
