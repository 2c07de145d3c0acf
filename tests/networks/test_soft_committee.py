"""Order parameters of the soft committee machine: integrals, equations, simulation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from secateur.core.errors import SecateurError
from secateur.networks import soft_committee as sc
from secateur.train.soft_committee import integrate, simulate

C = np.array([[1, 0.5, 0.3, 0.2], [0.5, 1, 0.1, 0.4], [0.3, 0.1, 1, 0.25], [0.2, 0.4, 0.25, 1]])
# Smaller and unequal variances, at which quadrature converges.
MIXED = C * np.outer([0.8, 0.6, 0.7, 0.5], [0.8, 0.6, 0.7, 0.5])
g = lambda h: erf(h / np.sqrt(2))
dg = lambda h: np.sqrt(2 / np.pi) * np.exp(-(h**2) / 2)


@pytest.fixture(scope="module")
def quadrature():
    """Fields of N(0, MIXED) on a Gauss-Hermite grid, their g and g', (4, points), and weights.

    The grid's own error is about 1e-7: of 18 nodes it is ten times as large.
    """
    at, weight = np.polynomial.hermite_e.hermegauss(24)
    points = np.stack(np.meshgrid(*[at] * 4, indexing="ij")).reshape(4, -1)
    weights = np.prod(np.stack(np.meshgrid(*[weight / weight.sum()] * 4)).reshape(4, -1), axis=0)
    h = np.linalg.cholesky(MIXED) @ points
    return h, g(h), dg(h), weights


def test_the_integrals(x64, quadrature):
    h, of, slope, w = quadrature
    two, three, four = jax.jit(
        lambda c: (sc.pair_mean(c), sc.triple_means(c), sc.quadruple_means(c, 4))
    )(MIXED)
    np.testing.assert_allclose(two, (of * w) @ of.T, atol=2e-7)
    for a in range(4):
        weighted = slope[a] * w
        np.testing.assert_allclose(three[a], (h * weighted) @ of.T, atol=2e-7)
        for b in (a, 3 - a):
            expected = (of * weighted * slope[b]) @ of.T
            np.testing.assert_allclose(four[a, b], expected, atol=2e-7)


@pytest.mark.parametrize("units", [1, 2])
def test_error_and_drift_are_the_means_that_they_stand_for(x64, quadrature, units):
    """K + M = 4 fields, student's first; on-line learning's mean and mean square of a step."""
    h, of, slope, w = quadrature
    rate, noise = 0.7, 0.09
    start = sc.Order(MIXED[:units, :units], MIXED[:units, units:], MIXED[units:, units:])
    gap = of[units:].sum(axis=0) - of[:units].sum(axis=0)
    error, moved, flow = jax.jit(
        lambda o: (
            sc.generalisation_error(o),
            sc.drift(o, rate, noise),
            sc.drift(o, rate, second=0.0),
        )
    )(start)
    assert float(error) == pytest.approx(w @ gap**2 / 2, abs=2e-7)
    delta = slope[:units] * gap
    pull = (delta * w) @ h.T
    np.testing.assert_allclose(moved.R, rate * pull[:, units:], atol=2e-7)
    own = pull[:, :units] + pull[:, :units].T
    noisy = (slope[:units] * w) @ slope[:units].T * noise
    square = (delta * w) @ delta.T + noisy
    np.testing.assert_allclose(moved.Q, rate * own + rate**2 * square, atol=2e-7)
    np.testing.assert_allclose(flow.Q, rate * own, atol=2e-7)
    np.testing.assert_array_equal(moved.T, 0)


def test_values_of_another_program(x64):
    """Of an independent NumPy program (midpoint rule, steps of 0.01)."""
    eye = jnp.eye(2)

    @jax.jit
    def values(c):
        half, none = sc.Order(eye, eye / 2, eye), sc.Order(eye, 0 * eye, eye)
        errors = sc.generalisation_error(half), sc.generalisation_error(none)
        return sc.triple_means(c)[0, 1, 2], sc.quadruple_means(c, 4)[0, 1, 2, 3], *errors

    expected = [0.008048811434, 0.023343922003, 0.344944173646, 2 / 3]
    np.testing.assert_allclose(values(C), expected, atol=1e-12)


@pytest.mark.long
def test_one_unit_learns_as_in_another_program(x64):
    one = lambda v: np.array([[v]])
    course = integrate(sc.Order(one(0.25), one(0.1), one(1.0)), rate=0.5, until=50.0, rows=50)
    errors = {0: 0.190471, 1: 0.125354, 5: 0.026393, 10: 0.006295, 20: 9.21e-4, 50: 1.5e-5}
    for a, value in errors.items():
        assert float(course.error[a]) == pytest.approx(value, abs=1e-6)
    assert float(course.order.Q[10, 0, 0]) == pytest.approx(0.592374, abs=2e-6)
    assert float(course.order.R[10, 0, 0]) == pytest.approx(0.764153, abs=2e-6)


START = sc.Order(np.diag([0.5, 0.25]), np.array([[1e-3, 0], [0, 1e-4]]), np.eye(2))
# Of an independent NumPy program, midpoint rule in steps of 0.05.
PLATEAU = {0: 0.505193, 1: 0.210339, 10: 0.022367, 50: 0.020852, 100: 0.020301, 150: 0.004253}


def solve(until, inner):
    with jax.enable_x64(True):
        return integrate(START, rate=1.0, until=until, rows=300, inner=inner)


@pytest.fixture(scope="module")
def theory():
    return solve(300.0, 20)


def test_two_units_wait_on_the_plateau_and_then_specialise(theory):
    assert theory.error.dtype == np.float64
    for a, value in PLATEAU.items():
        assert float(theory.error[a]) == pytest.approx(value, rel=1e-3)
    np.testing.assert_allclose(theory.order.R[50], 0.44, atol=0.02)  # both units alike
    assert float(theory.error[300]) < 1e-6
    np.testing.assert_allclose(theory.order.R[300], np.eye(2), atol=2e-3)


def test_the_rule_is_of_fourth_order():
    # Steps of 0.4 and less, looked at after five rows, a = 2.
    ends = [float(solve(120.0, inner).error[5]) for inner in (1, 2, 4, 32)]
    coarse, fine, finer = (abs(end - ends[3]) for end in ends[:3])
    assert 3.5 < np.log2(coarse / fine) < 5
    assert 3.5 < np.log2(fine / finer) < 5


def kernels_of(start, size):
    """Kernels that have these order parameters exactly: columns of an orthogonal frame."""
    root = np.linalg.cholesky(np.block([[start.Q, start.R], [start.R.T, start.T]]))
    frame = np.linalg.qr(np.random.default_rng(0).standard_normal((size, 4)))[0]
    both = (np.sqrt(size) * frame @ root.T).astype(np.float32)
    return both[:, :2], both[:, 2:]


SIZE = 1000
ALL = np.ones((SIZE, 2), np.float32)


def test_simulation_runs_beside_the_equations(theory):
    student, teacher = kernels_of(START, SIZE)
    first = jax.jit(sc.order)(student, teacher)
    for a, b in zip(first, START):
        np.testing.assert_allclose(a, b, atol=1e-5)
    _, course = simulate(
        student, teacher, jax.random.key(0), ALL, rate=1.0, rows=10, inner=SIZE, noise=0.0
    )
    np.testing.assert_allclose(course.time, np.arange(11), rtol=1e-6)
    for a in (1, 10):
        assert float(course.error[a]) == pytest.approx(float(theory.error[a]), rel=0.1)
    np.testing.assert_allclose(course.order.Q[10], theory.order.Q[10], atol=0.06)
    np.testing.assert_allclose(course.order.R[10], theory.order.R[10], atol=0.06)


def test_noise_and_masks_reach_the_simulation():
    """A masked weight does not move; noise alone moves a student that equals its teacher."""
    student, teacher = kernels_of(START, SIZE)

    def run(first, mask, noise):
        told = {"rate": 1.0, "rows": 10, "inner": 2, "noise": noise}
        return np.asarray(simulate(first, teacher, jax.random.key(0), mask, **told)[0])

    mask = np.random.default_rng(0).random(student.shape) < 0.5
    last = run(student, mask.astype(np.float32), 0.0)
    assert np.all(last[~mask] == 0)
    assert np.all(last[mask] != student[mask])
    np.testing.assert_array_equal(run(teacher, ALL, 0.0), teacher)
    assert np.any(run(teacher, ALL, 0.5) != teacher)


@pytest.mark.long
def test_simulations_stay_beside_the_equations_on_the_plateau(theory):
    """Eight streams of one program, to a = 50; the exit's time is not tested: it hangs on 1 / N."""
    student, teacher = kernels_of(START, SIZE)

    def run(key):
        return simulate(student, teacher, key, rate=1.0, rows=50, inner=SIZE)[1].error

    runs = jax.vmap(run)(jax.random.split(jax.random.key(1), 8))
    for a in (1, 10, 50):
        assert float(jnp.mean(runs[:, a])) == pytest.approx(float(theory.error[a]), rel=0.1)


def test_the_network_is_the_formula():
    net = sc.soft_committee(9, 3, deviation=0.5)
    params, stats = jax.jit(net.init)(jax.random.key(0))
    w = np.asarray(params["committee"]["kernel"], np.float64)
    x = np.random.default_rng(0).standard_normal((5, 9))
    expected = g(x @ w / 3).sum(axis=1)
    found = jax.jit(net.apply)(params, stats, x.astype(np.float32))
    assert found.shape == (5, 1)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(SecateurError, match="at least one"):
        sc.soft_committee(3, 0)
