"""Linearised training, against descent in weight space and independent solvers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from linear_model import Model, model, probabilities

from secateur.core.errors import SecateurError
from secateur.kernels.dynamics import linearise
from secateur.kernels.operator import Operator

MODEL = model()
N, C = MODEL.f0.shape
Y = np.random.default_rng(1).standard_normal((N, C))
CLASSES = probabilities(N, C)
LARGEST = float(scipy.linalg.eigvalsh(MODEL.kernel)[-1])
MEAN = float(np.trace(MODEL.kernel)) / (N * C)


def squared(m: Model = MODEL, y: np.ndarray = Y, **given: Any) -> Any:
    return linearise(m.kernel, m.f0, y, cross=m.cross, f0_test=m.g0, **given)


def softmax(f: np.ndarray) -> np.ndarray:
    return np.exp(f - f.max(1, keepdims=True)) / np.exp(f - f.max(1, keepdims=True)).sum(
        1, keepdims=True
    )


@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("share", [0.3, 1.0, 1.9])  # of N / lambda_1: above 1 it overshoots
def test_steps_are_masked_descent_in_weight_space(ridge: float, share: float) -> None:
    counts, rate = [0, 1, 2, 7, 300], share * N / (LARGEST + ridge * MEAN)
    moved = MODEL.descend(lambda f: f - Y, counts, rate, ridge * MEAN)
    found = squared(ridge=ridge)
    train, test = zip(*[MODEL.outputs(w) for w in moved])
    np.testing.assert_allclose(found.steps(counts, rate), train, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.test_steps(counts, rate), test, rtol=0, atol=1e-12)
    assert all(np.all(w[~MODEL.mask] == 0) for w in moved)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_times_are_the_flow_in_weight_space(ridge: float) -> None:
    jacobian = MODEL.jacobian[:, MODEL.mask]
    second = jacobian.T @ jacobian + ridge * MEAN * np.eye(jacobian.shape[1])
    start = -jacobian.T @ (MODEL.f0 - Y).reshape(-1)
    # d[v, 1]/dt = [[-H, b], [0, 0]] / N [v, 1]
    field = np.block([[-second, start[:, None]], [np.zeros((1, len(start) + 1))]]) / N
    times = [0.0, 1e-3, 0.7, 20.0]
    found = squared(ridge=ridge)
    for time, train, test in zip(times, found.at(times), found.test(times)):
        moved = np.zeros(len(MODEL.mask))
        moved[MODEL.mask] = scipy.linalg.expm(field * time)[:-1, -1]
        right = MODEL.outputs(moved)
        np.testing.assert_allclose(train, right[0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(test, right[1], rtol=0, atol=1e-12)


def test_small_times_follow_the_slope_and_small_steps_the_flow() -> None:
    found = squared()
    slope = -(MODEL.kernel @ (MODEL.f0 - Y).reshape(-1)).reshape(N, C) / N
    t = 1e-7
    np.testing.assert_allclose((found.at(t) - MODEL.f0) / t, slope, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.steps(10**7, 1e-7), found.at(1.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("keep", [0.6, 0.25])  # fewer survivors than rows: a singular kernel
def test_the_end_is_the_pseudo_inverse(keep: float) -> None:
    m = model(keep=keep)
    if keep < 0.5:
        assert m.mask.sum() < N * C
    found = squared(m)
    moved = np.zeros(len(m.mask))
    moved[m.mask] = np.linalg.pinv(m.jacobian[:, m.mask], 1e-10) @ (Y - m.f0).reshape(-1)
    train, test = m.outputs(moved)
    np.testing.assert_allclose(found.at(np.inf), train, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.test([np.inf])[0], test, rtol=0, atol=1e-9)
    late = 40 * N / found.modes.values[found.modes.values > 1e-9].min()
    np.testing.assert_allclose(found.test(late), test, rtol=0, atol=1e-9)


def test_loss_is_that_of_the_outputs() -> None:
    found = squared()
    times = np.array([[0.0, 1.0], [5.0, np.inf]])
    right = ((found.at(times) - Y) ** 2).sum(axis=(-1, -2)) / (2 * N)
    np.testing.assert_allclose(found.loss(times), right, rtol=1e-10, atol=1e-25)


def test_a_mode_has_gone_its_way_at_its_time() -> None:
    found = squared()
    for k, time in enumerate(found.convergence_times(0.01)):
        along = found.modes.vectors[:, k] @ (found.at(time) - Y).reshape(-1)
        assert along == pytest.approx(0.01 * found.modes.coefficients[k, 0], rel=1e-8)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_descent_converges_below_the_largest_rate_and_not_above(momentum: float) -> None:
    bound = squared().max_learning_rate(momentum)
    assert bound == pytest.approx(2 * (1 + momentum) * N / LARGEST, rel=1e-12)
    top = squared().modes.vectors[:, 0]
    sizes = {}
    for share in (0.98, 1.02):
        moved = MODEL.descend(lambda f: f - Y, [600], share * bound, momentum=momentum)
        sizes[share] = abs(top @ (MODEL.outputs(moved[0])[0] - Y).reshape(-1))
    start = abs(top @ (MODEL.f0 - Y).reshape(-1))
    assert sizes[0.98] < 0.01 * start < 100 * start < sizes[1.02]


def test_one_kernel_for_every_output_is_its_kronecker_product() -> None:
    m = model(outputs=1)
    f0, g0 = np.tile(m.f0, (1, C)), np.tile(m.g0, (1, C))
    given = {"f0_test": g0, "ridge": 0.01}
    alike = linearise(m.kernel, f0, Y, cross=m.cross, **given)
    eye = np.eye(C)
    whole = linearise(np.kron(m.kernel, eye), f0, Y, cross=np.kron(m.cross, eye), **given)
    times = [0.0, 3.0, np.inf]
    np.testing.assert_allclose(alike.at(times), whole.at(times), rtol=0, atol=1e-12)
    np.testing.assert_allclose(alike.test(times), whole.test(times), rtol=0, atol=1e-11)
    np.testing.assert_allclose(alike.steps(5, 0.1), whole.steps(5, 0.1), rtol=0, atol=1e-12)
    four = m.kernel.reshape(N, 1, N, 1)
    np.testing.assert_allclose(
        linearise(four, m.f0, Y[:, :1]).at(2.0), linearise(m.kernel, m.f0, Y[:, :1]).at(2.0), atol=0
    )


def test_a_kernel_summed_over_outputs_is_made_the_mean() -> None:
    four = MODEL.kernel.reshape(N, C, N, C)
    traced = np.einsum("ncmc->nm", four)
    given = SimpleNamespace(values=traced, outputs="trace")  # as ntk gives it
    right = linearise(traced / C, MODEL.f0, Y)
    np.testing.assert_array_equal(linearise(given, MODEL.f0, Y).at(2.0), right.at(2.0))
    given = SimpleNamespace(values=four, outputs="full")
    np.testing.assert_array_equal(linearise(given, MODEL.f0, Y).at(2.0), squared().at(2.0))


def test_a_single_layer_is_its_own_linearisation() -> None:
    rng = np.random.default_rng(3)
    x, w, mask = rng.standard_normal((5, 4)), rng.standard_normal((4, 2)), rng.random((4, 2)) < 0.7
    y, rate, w = rng.standard_normal((5, 2)), 0.2, w * mask
    # Theta[n, c, m, d] = [c = d] sum_j m_jc x_nj x_mj
    kernel = np.einsum("nj,mj,jc,cd->ncmd", x, x, mask, np.eye(2))
    found = linearise(kernel, x @ w, y)
    for step in range(50):
        np.testing.assert_allclose(found.steps(step, rate), x @ w, rtol=0, atol=1e-12)
        w = w - rate * mask * (x.T @ (x @ w - y)) / 5


# ---------------------------------------------------------------------------------------- Lanczos


@pytest.fixture(scope="module")
def large() -> tuple[np.ndarray, np.ndarray, np.ndarray, Operator]:
    """90 examples of one output, eigenvalues over four orders of size; r_0, the operator."""
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.standard_normal((90, 90)))[0]
    kernel = (vectors * np.geomspace(1e-2, 300, 90)) @ vectors.T
    kernel = (kernel + kernel.T) / 2
    with jax.enable_x64(True):
        operator = Operator.of(kernel)
    return kernel, rng.standard_normal((90, 1)), rng.standard_normal((3, 90)), operator


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ridge", [0.0, 0.02])
def test_one_run_of_lanczos_is_the_eigenvectors_for_all_times(large: Any, ridge: float) -> None:
    kernel, r0, cross, operator = large
    given = {"f0_test": np.zeros((3, 1)), "ridge": ridge}
    dense = linearise(kernel, r0, 0 * r0, cross=cross, **given)
    product = jax.tree_util.Partial(jnp.matmul, jnp.asarray(cross))
    krylov = linearise(operator, r0, 0 * r0, cross=product, products=45, **given)
    times = np.array([0.0, 1.0, 20.0, 50.0])
    apart = np.linalg.norm(krylov.at(times) - dense.at(times), axis=(1, 2))
    assert np.all(apart <= krylov.error(times) + 1e-11)
    assert np.all(apart <= 1e-4 * np.linalg.norm(r0))
    assert np.all(dense.error(times) == 0)
    np.testing.assert_allclose(krylov.test(times), dense.test(times), rtol=0, atol=2e-3)
    rate = 0.9 * dense.max_learning_rate()
    counts = [1, 5, 40]  # polynomials of lower degree than products: exact
    np.testing.assert_allclose(
        krylov.steps(counts, rate), dense.steps(counts, rate), rtol=0, atol=1e-10
    )
    assert krylov.max_learning_rate() == pytest.approx(dense.max_learning_rate(), rel=1e-10)


@pytest.mark.usefixtures("x64")
def test_the_bound_of_lanczos_is_one_and_refuses_what_it_does_not_reach(large: Any) -> None:
    kernel, r0, _, operator = large
    dense = linearise(kernel, r0, 0 * r0)
    few = linearise(operator, r0, 0 * r0, products=45)
    times = np.geomspace(3, 3e3, 12)
    exact = dense.at(times)[..., 0]
    inner = few.modes.apply(np.exp(-few.modes.values * times[:, None] / 90))[..., 0]
    apart = np.linalg.norm(inner - exact, axis=1)
    assert np.all(apart <= few.error(times) + 1e-11)
    assert apart[-1] > 1e-3 * np.linalg.norm(r0)  # and is not idle
    with pytest.raises(SecateurError, match="45 products of Lanczos reach"):
        few.at(times[-1])
    with pytest.raises(SecateurError, match="give more products"):
        few.loss(np.inf)


@pytest.mark.usefixtures("x64")
def test_lanczos_that_ends_early_and_an_operator_of_each_output_alike() -> None:
    m = model(outputs=1)
    f0, y = np.tile(m.f0, (1, C)), np.random.default_rng(4).standard_normal((N, C))
    operator = Operator.of(m.kernel)
    times = [0.0, 2.0, 1e4]
    found, right = linearise(operator, f0, y), linearise(m.kernel, f0, y)
    np.testing.assert_allclose(found.at(times), right.at(times), rtol=0, atol=1e-9)
    # The residual lies along one eigenvector: one product is all there is to find.
    vector = right.modes.vectors[:, :1]
    one = linearise(operator, vector, 0 * vector)
    np.testing.assert_allclose(
        one.at(3.0), np.exp(-3 * right.modes.values[0] / N) * vector, rtol=0, atol=1e-12
    )
    still = linearise(operator, y[:, :1], y[:, :1])
    np.testing.assert_allclose(still.at(5.0), y[:, :1], atol=0)
    assert still.max_learning_rate() == pytest.approx(right.max_learning_rate(), rel=1e-6)


# ---------------------------------------------------------------------------------- cross-entropy


def crossed(**given: Any) -> Any:
    return squared(y=CLASSES, loss="cross_entropy", **given)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_steps_of_cross_entropy_are_masked_descent_in_weight_space(ridge: float) -> None:
    counts, rate = [7, 0, 60], 0.5
    moved = MODEL.descend(lambda f: softmax(f) - CLASSES, counts, rate, ridge * MEAN)
    found = crossed(ridge=ridge)
    train, test = zip(*[MODEL.outputs(w) for w in moved])
    ordered = sorted(counts)
    np.testing.assert_allclose(found.steps(ordered, rate), train, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.test_steps(ordered, rate), test, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.steps(counts, rate)[0], train[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("ridge", [pytest.param(0.0, marks=pytest.mark.long), 0.1])
def test_the_flow_of_cross_entropy_against_scipy_in_function_space(ridge: float) -> None:
    times = np.array([0.0, 0.5, 30.0])
    both = np.vstack([MODEL.kernel, MODEL.cross])

    def slope(_: float, state: np.ndarray) -> np.ndarray:
        # All outputs at once, with dw = -J^T(..)/N - rho (w - w0)/N
        f = state[: N * C].reshape(N, C)
        return -(both @ (softmax(f) - CLASSES).reshape(-1) + ridge * MEAN * (state - first)) / N

    first = np.concatenate([MODEL.f0.reshape(-1), MODEL.g0.reshape(-1)])
    right = scipy.integrate.solve_ivp(
        slope, (0, 30), first, "DOP853", times, rtol=1e-11, atol=1e-12
    ).y.T
    found = crossed(ridge=ridge)
    np.testing.assert_allclose(found.at(times).reshape(3, -1), right[:, : N * C], rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        found.test(times).reshape(3, -1), right[:, N * C :], rtol=0, atol=1e-6
    )
    # Unordered times, and one alone
    np.testing.assert_allclose(found.at(times[::-1])[0], found.at(30.0), rtol=0, atol=1e-6)


def test_small_steps_of_cross_entropy_follow_its_flow() -> None:
    found = crossed()
    coarse, fine = (
        np.abs(found.steps(round(2 / rate), rate) - found.at(2.0)).max() for rate in (2e-3, 1e-3)
    )
    assert 1.9 < coarse / fine < 2.1  # the first order of Euler's method
    t = 1e-6
    slope = -(MODEL.kernel @ (softmax(MODEL.f0) - CLASSES).reshape(-1)).reshape(N, C) / N
    np.testing.assert_allclose((found.at(t) - MODEL.f0) / t, slope, rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_cross_entropy_by_products_alone() -> None:
    times = [1.0, 10.0]
    operator = Operator.of(MODEL.kernel.astype(np.float32))  # without x64, as a user has it
    found = linearise(operator, MODEL.f0, CLASSES, loss="cross_entropy")
    np.testing.assert_allclose(found.at(times), crossed().at(times), rtol=0, atol=1e-4)


@pytest.mark.long
def test_cross_entropy_by_the_other_solver() -> None:
    times = [1.0, 10.0]
    other = crossed().with_solver("tsit5")
    np.testing.assert_allclose(other.at(times), crossed().at(times), rtol=0, atol=1e-6)


def test_the_safe_rate_of_cross_entropy() -> None:
    found = crossed()
    bound = found.max_learning_rate()
    assert bound == pytest.approx(4 * N / LARGEST, rel=1e-12)
    outputs = found.steps(np.arange(200), 0.99 * bound)
    loss = -np.mean(
        np.sum(CLASSES * np.log(softmax(outputs.reshape(-1, C)).reshape(outputs.shape)), -1), -1
    )
    assert np.all(np.diff(loss) < 0)


# -------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"y": Y[:, :1]}, "f0 is"),
        ({"y": Y[:, 0]}, "expected .examples, outputs."),
        ({"kernel": np.eye(5)}, "kernel has shape .5, 5."),
        ({"kernel": MODEL.kernel + np.triu(np.ones((N * C, N * C)))}, "not symmetric"),
        ({"kernel": -MODEL.kernel}, "has the eigenvalue"),
        ({"kernel": np.full((N * C, N * C), np.nan)}, "not finite"),
        ({"ridge": -1.0}, "ridge is -1"),
        ({"cross": None}, "one of cross and f0_test"),
        ({"cross": np.eye(2)}, "cross has shape"),
        ({"loss": "hinge"}, "no loss 'hinge'"),
        ({"loss": "cross_entropy"}, "rows of probabilities"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], said: str) -> None:
    given = {"kernel": MODEL.kernel, "y": Y, "cross": MODEL.cross, "f0_test": MODEL.g0} | change
    kernel, y = given.pop("kernel"), given.pop("y")
    with pytest.raises(SecateurError, match=said):
        linearise(kernel, MODEL.f0, y, **given).at(1.0)


def test_questions_without_an_answer_are_refused() -> None:
    found = linearise(MODEL.kernel, MODEL.f0, Y)
    with pytest.raises(SecateurError, match="no test points"):
        found.test(1.0)
    with pytest.raises(SecateurError, match="times are -1"):
        found.at(-1.0)
    with pytest.raises(SecateurError, match="whole numbers of steps"):
        found.steps(1.5, 0.1)
    with pytest.raises(SecateurError, match="learning rate above 0"):
        found.steps(1, 0.0)
    with pytest.raises(SecateurError, match=r"below max_learning_rate\(\) = "):
        found.steps(10**5, 3 * N / LARGEST)
    with pytest.raises(SecateurError, match="no solver 'kvaerno'"):
        crossed().with_solver("kvaerno")
    with pytest.raises(SecateurError, match="no limit to give"):
        crossed().at(np.inf)
    with pytest.raises(SecateurError, match="does not know"):
        linearise(Operator(N * C, np.float32, lambda v: v), MODEL.f0, Y, ridge=0.1)
