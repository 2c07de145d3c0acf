"""The recursions of infinite width against quadrature, closed forms and kernels that need no mean.

Quadrature knows nothing of angles: the outer integral is over one of the two Gaussians, the inner
one is the rectified Gaussian's mean.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from secateur.core.errors import SecateurError
from secateur.kernels.ensemble import INITIAL_VARIANCES, PARAMETRISATIONS, DenseEnsemble
from secateur.kernels.infinite import analytic_kernels, masked_kernels, relu_moments
from secateur.kernels.ntk import ntk
from secateur.networks.layers import INITIALISERS

X = np.array([[1.0, -0.5, 0.3], [0.2, 0.8, -1.1], [1.1, -0.4, 0.2]])


def bell(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def below(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2


def by_quadrature(q1: float, q2: float, k: float) -> tuple[float, float]:
    """E phi(u) phi(v) and E phi'(u) phi'(v), (u, v) Gaussian of covariance [[q1, k], [k, q2]]."""
    same = q1 == q2 == k  # what is left of v given u would be rounding
    slope, rest = k / q1, 0.0 if same else math.sqrt(q2 - k * k / q1)

    def weighed(inner: Any) -> float:
        r = math.sqrt(q1)
        run = lambda z: inner(r * z) * bell(z)
        edge = [rest / (abs(slope) * r) * t for t in (1, 4)] if slope else []
        return quad(run, 0, 12, points=[e for e in edge if e < 12], epsabs=1e-13, epsrel=1e-12)[0]

    def rectified(u: float) -> float:  # E phi(v) given u
        m = slope * u
        if rest == 0:
            return m
        return m * below(m / rest) + rest * bell(m / rest)

    gate = lambda u: below(slope * u / rest) if rest else 1.0
    return weighed(lambda u: u * rectified(u)), weighed(gate)


def recursion_by_quadrature(of: DenseEnsemble, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As the papers write it, pair by pair."""
    n = len(x)
    inner, standard = x @ x.T / of.inputs, of.parametrisation == "standard"
    theta = gates = np.zeros((n, n))
    for fan_in, s_w, s_b in zip(of.widths, of.weight_variances, of.bias_variances):
        own = fan_in * inner + of.biases if standard else s_w * inner + s_b
        theta = own + s_w * gates * theta
        sigma = s_w * inner + s_b
        pairs = [
            [by_quadrature(sigma[i, i], sigma[j, j], sigma[i, j]) for j in range(n)]
            for i in range(n)
        ]
        inner, gates = np.moveaxis(np.array(pairs), 2, 0)
    return sigma, theta


@pytest.mark.parametrize(
    ("hidden", "parametrisation", "s_b"),
    [((7,), "standard", 0.0), ((7, 4), "ntk", (0.1, 0.3, 0.2)), ((7, 4, 5), "standard", 0.2)],
)
def test_the_recursion_is_that_of_the_papers_with_its_means_by_quadrature(
    hidden: tuple[int, ...], parametrisation: str, s_b: Any
) -> None:
    s_w = tuple(1.5 + 0.3 * l for l in range(len(hidden) + 1))
    of = DenseEnsemble(3, hidden, 2, s_w, s_b, parametrisation)
    found = analytic_kernels(of, X)
    nngp, theta = recursion_by_quadrature(of, X)
    np.testing.assert_allclose(found.nngp, nngp, rtol=1e-10)
    np.testing.assert_allclose(found.ntk, theta, rtol=1e-10)


@pytest.mark.parametrize("k", [-0.9, 0.0, 0.3, 1.2])
def test_moments_of_a_rectified_pair_against_quadrature(k: float) -> None:
    q1, q2 = 1.3, 1.7
    both, gates = by_quadrature(q1, q2, k)
    apart, together = relu_moments(q1, q2, q1 + q2 - 2 * k)
    assert apart == pytest.approx(q1 / 2 + q2 / 2 - 2 * both, rel=1e-11)
    assert together == pytest.approx(gates, rel=1e-11)


def test_moments_of_equal_opposite_and_absent_units() -> None:
    assert relu_moments(2.0, 2.0, 0.0) == (0, 0.5)
    apart, together = relu_moments(2.0, 2.0, 8.0)  # v = -u: never both on
    assert apart == pytest.approx(2, rel=1e-15)
    assert together == 0
    assert relu_moments(2.0, 0.0, 2.0) == (1, 0)  # v = 0, whose gate is shut
    assert relu_moments(0.0, 0.0, 0.0) == (0, 0)


@pytest.mark.parametrize("angle", [1e-3, 1e-6, 1e-9])
def test_gates_of_nearly_equal_examples_keep_their_digits(angle: float) -> None:
    """By a cosine, 1 - angle^2 / 2, the angle 1e-9 would be 0 and 1e-6 right to 4 digits."""
    d = (2 * math.sin(angle / 2)) ** 2
    apart, together = relu_moments(1.0, 1.0, d)
    assert 0.5 - together == pytest.approx(angle / (2 * math.pi), rel=1e-6)
    # 1 / 2 of the squared distance where both are on, and the little where one is.
    assert apart == pytest.approx(angle**2 / 2 - angle**3 / (3 * math.pi), rel=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_a_linear_model_has_one_tangent_kernel_whatever_its_weights(
    parametrisation: str, getkey: Any
) -> None:
    of = DenseEnsemble(3, (), 2, 1.7, 0.3, parametrisation)
    found = analytic_kernels(of, X, X[:2])
    network = of.network()
    params, stats = network.init(getkey())
    one = ntk(network, params, X, X[:2], stats=stats).values
    np.testing.assert_allclose(found.full(2), one, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.nngp, 1.7 / 3 * X @ X[:2].T + 0.3, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_he_variance_keeps_the_mean_square_and_each_layer_adds_as_much(depth: int) -> None:
    """Without biases: Sigma(x, x) = 2 |x|^2 / n_0 at every layer, Theta(x, x) (depth + 1) times
    that in the NTK parametrisation; in the standard one the layers count by fan-in / 2."""
    hidden = tuple(range(5, 5 + depth))
    of = DenseEnsemble(3, hidden, parametrisation="ntk", biases=False)
    kept = 2 * (X**2).sum(axis=1) / 3
    found = analytic_kernels(of, X)
    np.testing.assert_allclose(np.diag(found.nngp), kept, rtol=1e-14)
    np.testing.assert_allclose(np.diag(found.ntk), (depth + 1) * kept, rtol=1e-14)
    plain = analytic_kernels(replace(of, parametrisation="standard"), X)
    np.testing.assert_allclose(plain.nngp, found.nngp, rtol=1e-14)
    np.testing.assert_allclose(np.diag(plain.ntk), (3 + sum(hidden)) / 2 * kept, rtol=1e-14)


def test_kernels_are_homogeneous_symmetric_semidefinite_and_the_same_in_blocks() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 3))
    x[7] = x[2]
    of = DenseEnsemble(3, (20, 10), 2, 1.8, 0.1)
    whole = analytic_kernels(of, x)
    for kernel in (whole.nngp, whole.ntk):
        np.testing.assert_array_equal(kernel, kernel.T)
        np.testing.assert_array_equal(kernel[7], kernel[2])
        values = np.linalg.eigvalsh(kernel)
        assert values[0] > -1e-13 * values[-1]
        assert np.sum(values > 1e-6 * values[-1]) == 11  # positive but for the twin
    blocks, across = analytic_kernels(of, x, memory=1.0), analytic_kernels(of, x, x)
    np.testing.assert_allclose(blocks.ntk, whole.ntk, rtol=1e-13)
    np.testing.assert_allclose(across.ntk, whole.ntk, rtol=1e-13)
    free = DenseEnsemble(3, (20, 10), biases=False)
    once, tripled = analytic_kernels(free, x), analytic_kernels(free, 3 * x)
    np.testing.assert_allclose(tripled.ntk, 9 * once.ntk, rtol=1e-12)


def masks(of: DenseEnsemble, rng: np.random.Generator, density: float) -> Any:
    """Of kernels; the first unit of each hidden layer is left without input."""
    shapes = zip(of.widths, of.widths[1:])
    found = {f"dense_{l}": rng.random(s) < density for l, s in enumerate(shapes, start=1)}
    for l in range(1, len(found)):
        found[f"dense_{l}"][:, 0] = False
    bias = {"bias": None} if of.biases else {}
    return {name: {"kernel": m, **bias} for name, m in found.items()}


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_a_masked_network_of_one_hidden_layer_is_a_sum_over_its_units(parametrisation: str) -> None:
    """E f_c f_c and E Theta_c written out: a Gaussian pair for each unit, by quadrature."""
    of = DenseEnsemble(3, (4,), 2, (1.5, 1.9), (0.2, 0.4), parametrisation)
    mask = masks(of, np.random.default_rng(3), 0.6)
    m1, m2 = (mask[f"dense_{l}"]["kernel"].astype(float) for l in (1, 2))
    standard = parametrisation == "standard"
    a, b = (1, 1) if standard else (1.5 / 3, 1.9 / 4)  # squared factors of the weights
    (v1, b1), (v2, b2) = (1.5 / 3, 0.2), (1.9 / 4, 0.4)
    c1, c2 = (1, 1) if standard else (b1, b2)
    found = masked_kernels(of, mask, X)
    for i, x in enumerate(X):
        for j, y in enumerate(X):
            nngp, theta = np.full(2, b2), np.full(2, float(c2))
            for unit in range(4):
                inner = [float(np.sum(m1[:, unit] * p * q)) for p, q in ((x, x), (y, y), (x, y))]
                both, gates = by_quadrature(*(v1 * k + b1 for k in inner))
                nngp += v2 * m2[unit] * both
                theta += b * m2[unit] * both + v2 * m2[unit] * gates * (a * inner[2] + c1)
            np.testing.assert_allclose(found.nngp[i, j], nngp, rtol=1e-10)
            np.testing.assert_allclose(found.ntk[i, j], theta, rtol=1e-10)


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_units_one_by_one_are_the_recursion_where_nothing_is_masked(parametrisation: str) -> None:
    of = DenseEnsemble(3, (6, 5, 4), 2, 1.6, (0.1, 0.2, 0.3, 0.4), parametrisation)
    everything = masks(of, np.random.default_rng(0), 2.0)
    everything = jax.tree.map(np.ones_like, everything)
    dense, units = analytic_kernels(of, X, X[1:]), masked_kernels(of, everything, X, X[1:])
    np.testing.assert_allclose(units.full(2), dense.full(2), rtol=1e-13)
    np.testing.assert_allclose(units.nngp[:, :, 1], dense.nngp, rtol=1e-13)
    single = masked_kernels(of, everything, X, X[1:], memory=1.0)
    np.testing.assert_allclose(single.ntk, units.ntk, rtol=1e-13)


def test_units_without_input_might_as_well_not_be_there() -> None:
    of = DenseEnsemble(3, (4, 3), 2, 2.0, biases=False)
    mask = masks(of, np.random.default_rng(1), 2.0)  # all kept, but for the first unit of each
    small = DenseEnsemble(3, (3, 2), 2, (2.0, 2.0 * 3 / 4, 2.0 * 2 / 3), biases=False)
    np.testing.assert_allclose(
        masked_kernels(of, mask, X).full(2), analytic_kernels(small, X).full(2), rtol=1e-13
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", INITIALISERS)
def test_the_variances_of_initialisers_are_those_they_draw_with(name: str, getkey: Any) -> None:
    """Of 2^18 draws the variance's relative error is at most sqrt(2) / 2^9: five of them."""
    shape = (256, 1024)
    drawn = np.asarray(INITIALISERS[name](getkey(), shape))
    wanted = INITIAL_VARIANCES[name](*shape)
    assert np.mean(drawn**2) == pytest.approx(wanted, rel=5 * math.sqrt(2) / 2**9)


def test_an_ensemble_of_the_packages_own_networks_has_their_names_and_variances() -> None:
    of = DenseEnsemble.of_initialiser(784, (300, 100), 10, "glorot_normal")
    assert of.variances() == pytest.approx(
        {
            "dense_1/kernel": 2 / 1084,
            "dense_1/bias": 0,
            "dense_2/kernel": 2 / 400,
            "dense_2/bias": 0,
            "dense_3/kernel": 2 / 110,
            "dense_3/bias": 0,
        }
    )
    shapes = jax.eval_shape(of.network().init, jax.random.key(0))[0]
    assert shapes["dense_2"]["kernel"].shape == (300, 100)
    assert (
        of.network() is DenseEnsemble.of_initialiser(784, (300, 100), 10, "glorot_normal").network()
    )


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: DenseEnsemble(3, (0,)), "every width is at least 1"),
        (lambda: DenseEnsemble(3, (4,), weight_variance=(1.0,)), "each of the 2 layers"),
        (lambda: DenseEnsemble(3, (4,), weight_variance=-1.0), "at least 0"),
        (lambda: DenseEnsemble(3, (4,), weight_variance=0.0), "without weights"),
        (lambda: DenseEnsemble(3, (4,), parametrisation="mup"), "parametrisation"),
        (lambda: DenseEnsemble(3, (4,), bias_variance=0.1, biases=False), "biases=True"),
        (lambda: DenseEnsemble.of_initialiser(3, (4,), 2, "he"), "initialiser"),
        (lambda: analytic_kernels(DenseEnsemble(4, (4,)), X), r"expected \(n, 4\)"),
        (lambda: analytic_kernels(DenseEnsemble(3, (4,)), X[0]), r"expected \(n, 3\)"),
        (
            lambda: masked_kernels(
                DenseEnsemble(3, (4,)), {"dense_1": {"kernel": jnp.ones((4, 3))}}, X
            ),
            r"expected \(3, 4\)",
        ),
        (
            lambda: masked_kernels(DenseEnsemble(3, (4,)), {"head": {"kernel": np.ones(2)}}, X),
            "none of this name",
        ),
    ],
)
def test_what_is_refused(make: Any, why: str) -> None:
    with pytest.raises(SecateurError, match=why):
        make()
