"""Spectra against dense decompositions, closed forms and matrices built from chosen eigenvalues."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from secateur.core.errors import SecateurError
from secateur.kernels import krylov
from secateur.kernels.measure import QUANTITIES
from secateur.kernels.operator import Operator
from secateur.kernels.spectrum import METHODS, from_rows, spectrum

pytestmark = pytest.mark.usefixtures("x64", "strict")

Key = Callable[[], Any]
SIZE = 120  # one size for all operators: one compiled program


def of_values(values: Any, seed: int = 0) -> np.ndarray:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    values = np.asarray(values, np.float64)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values),) * 2))
    return (turn * values) @ turn.T


DECAYING = 100 * 0.8 ** np.arange(20)
CHOSEN = np.append(DECAYING, np.linspace(1, 0.05, SIZE - 20))


@pytest.fixture(scope="module")
def chosen() -> np.ndarray:
    return of_values(CHOSEN)


# ---------------------------------------------------------------------------- the named quantities


def test_quantities_of_four_eigenvalues() -> None:
    found = spectrum(np.diag([4.0, 1.0, 0.0, 1.0]))
    assert found.method == "eigh"
    assert found.values == pytest.approx([4, 1, 1, 0])
    assert (found.trace, found.largest, found.smallest) == pytest.approx((6, 4, 0))
    assert found.rank == 3
    assert found.condition == pytest.approx(4)
    assert found.participation == pytest.approx(36 / 18)
    assert found.stable_rank == pytest.approx(6 / 4)
    assert found.nuclear_norm == pytest.approx(2 + 1 + 1)
    p = np.array([4, 1, 1]) / 6
    assert found.effective_rank == pytest.approx(math.exp(-float(p @ np.log(p))))
    assert found.log_determinant(0.5) == pytest.approx(math.log(4.5 * 1.5 * 1.5 * 0.5))
    assert all(
        found.error_of(name) == 0
        for name in ("trace", "rank", "condition", "participation", "effective_rank")
    )


def test_the_identity_has_full_rank_in_every_sense() -> None:
    found = spectrum(np.eye(37))
    for name in ("rank", "effective_rank", "participation", "stable_rank", "trace"):
        assert getattr(found, name) == pytest.approx(37, rel=1e-12), name
    assert found.condition == pytest.approx(1)
    assert found.log_determinant() == pytest.approx(0, abs=1e-12)


def test_the_zero_kernel_has_rank_zero_and_no_condition() -> None:
    found = spectrum(np.zeros((5, 5)))
    for name in ("trace", "rank", "effective_rank", "participation", "stable_rank", "nuclear_norm"):
        assert getattr(found, name) == 0, name
    with pytest.raises(SecateurError, match="no condition"):
        _ = found.condition


def test_the_nuclear_norm_is_that_of_the_jacobian() -> None:
    j = np.random.default_rng(1).standard_normal((6, 9))
    assert spectrum(j @ j.T).nuclear_norm == pytest.approx(np.linalg.norm(j, "nuc"), rel=1e-12)


@settings(max_examples=15)
@given(
    values=st.lists(st.floats(0.01, 100), min_size=1, max_size=12),
    scale=st.floats(0.01, 100),
)
def test_laws_of_the_quantities(values: list[float], scale: float) -> None:
    """1 <= stable rank <= participation <= effective rank <= rank, at every scale."""
    matrix = of_values(values)
    one, other = spectrum(matrix), spectrum(scale * matrix)
    assert one.values == pytest.approx(np.sort(values)[::-1], rel=1e-9, abs=1e-11)
    # Participation is exp of Renyi's entropy of order 2, the stable rank that of infinite order.
    slack = 1 + 1e-9
    assert one.stable_rank * slack >= 1
    assert one.stable_rank <= one.participation * slack
    assert one.participation <= one.effective_rank * slack
    assert one.effective_rank <= one.rank * slack
    for name in ("stable_rank", "participation", "effective_rank", "rank", "condition"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-8), name
    assert other.trace == pytest.approx(scale * one.trace)
    assert other.nuclear_norm == pytest.approx(math.sqrt(scale) * one.nuclear_norm)


def test_a_path_has_the_known_spectrum() -> None:
    """Laplacian of a path with fixed ends: 2 - 2 cos(pi k / (n + 1)); its determinant is n + 1."""
    n = 50
    laplacian = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    found = spectrum(laplacian)
    k = np.arange(n, 0, -1)
    assert found.values == pytest.approx(2 - 2 * np.cos(np.pi * k / (n + 1)), abs=1e-13)
    assert found.log_determinant() == pytest.approx(math.log(n + 1))


def test_the_density_of_a_wishart_matrix_is_marchenko_and_pasturs() -> None:
    """Eigenvalues of X X' / m, X (n, m) of variance 1, fill [(1-a)^2, (1+a)^2], a^2 = n / m."""
    n, m = 1000, 4000
    x = np.random.default_rng(2).standard_normal((n, m))
    found = spectrum(x @ x.T / m)
    low, high, width = 0.25, 2.25, 0.1
    fine = np.linspace(low, high, 4001)
    law = np.sqrt((high - fine) * (fine - low)) / (2 * np.pi * fine * n / m)
    at = np.linspace(0.2, 2.2, 11)
    bumps = np.exp(-(((at[:, None] - fine) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi))
    # Eigenvalues repel: of the 120 under a bump, about one is not where the law has it.
    smoothed = np.trapezoid(bumps * law, fine, axis=1)
    assert found.density(at, width) == pytest.approx(smoothed, rel=0.02, abs=0.01)


def test_the_density_integrates_to_one_and_over_logarithms_to_what_is_not_zero() -> None:
    found = spectrum(of_values([10, 3, 1, 0.1, 0, 0, 0, 0]))
    grid = np.linspace(-5, 15, 2001)
    assert np.trapezoid(found.density(grid, 0.2), grid) == pytest.approx(1, rel=1e-9)
    decades = np.linspace(-4, 4, 2001)
    over = np.trapezoid(found.density(10**decades, 0.1, log=True), decades)
    assert over == pytest.approx(4 / 8, rel=1e-9)


# ------------------------------------------------------------------------------ rank and precision


def test_the_rank_counts_what_the_kernels_own_precision_can_tell_from_zero() -> None:
    j = np.random.default_rng(3).standard_normal((40, 7))
    assert spectrum(j @ j.T).rank == 7
    small = j.astype(np.float32)
    assert spectrum(small @ small.T).rank == 7
    graded = of_values([1, 1e-3, 1e-6, 1e-9])
    assert spectrum(graded).rank == 4
    rounded = spectrum(graded.astype(np.float32))
    assert rounded.rank == 3  # 1e-6 > 4 * 1.2e-7 > 1e-9
    assert rounded.condition == pytest.approx(1e6, rel=0.3)  # entries rounded by 6e-8


@pytest.mark.parametrize("shape", [(30, 8), (8, 30), (12, 12)])
def test_the_dual_has_the_primal_spectrum(shape: tuple[int, int]) -> None:
    j = np.random.default_rng(4).standard_normal(shape)
    blocks = (j[i : i + 5] for i in range(0, len(j), 5))
    dual, primal = from_rows(blocks), spectrum(j @ j.T)
    assert dual.size == primal.size == len(j)
    assert dual.values == pytest.approx(primal.values, rel=1e-9, abs=1e-9 * primal.largest)
    assert dual.rank == primal.rank == min(shape)
    assert dual.values[: min(shape)] == pytest.approx(primal.values[: min(shape)], rel=1e-9)


def test_rows_may_come_at_once_or_in_blocks() -> None:
    j = np.random.default_rng(5).standard_normal((9, 4)).astype(np.float32)
    whole, parts = spectrum(j, method="dual"), spectrum([j[:4], j[4:]])
    assert (whole.method, parts.method) == ("dual", "dual")
    assert whole.values == pytest.approx(parts.values, rel=1e-12)
    assert whole.precision == np.finfo(np.float32).eps


# ----------------------------------------------------------------------------------- the operators


def test_operators_multiply_as_their_matrix(chosen: np.ndarray) -> None:
    x = np.random.default_rng(6).standard_normal((SIZE, 3))
    operator = Operator.of(chosen)
    assert operator.trace == pytest.approx(np.trace(chosen))
    np.testing.assert_allclose(operator @ x, chosen @ x, atol=1e-12)
    np.testing.assert_allclose(operator @ x[:, 0], chosen @ x[:, 0], atol=1e-12)
    scipys = scipy.sparse.linalg.aslinearoperator(operator)
    np.testing.assert_allclose(scipys @ x, chosen @ x, atol=1e-12)
    largest = scipy.sparse.linalg.eigsh(scipys, k=2, return_eigenvectors=False)
    assert np.sort(largest) == pytest.approx(CHOSEN[1::-1], rel=1e-10)
    with pytest.raises(SecateurError, match="multiplies"):
        operator @ x[:5]


def test_lanczos_finds_the_largest_within_their_residuals(chosen: np.ndarray, getkey: Key) -> None:
    operator = Operator.of(chosen)
    pairs = krylov.eigenpairs(operator, 5, getkey())
    k = len(pairs.values)
    assert k >= 5
    assert pairs.values[0] == pytest.approx(CHOSEN[0], rel=1e-8)
    assert pairs.values[:5] == pytest.approx(CHOSEN[:5], rel=1e-8)
    u = np.asarray(pairs.vectors)
    np.testing.assert_allclose(u.T @ u, np.eye(k), atol=1e-12)
    gap = np.linalg.norm(chosen @ u - u * pairs.values, axis=0)
    assert (gap <= pairs.residuals + 1e-11 * CHOSEN[0]).all()
    assert (np.abs(pairs.values - CHOSEN[:k]) <= pairs.residuals + 1e-12 * CHOSEN[0]).all()
    assert (pairs.residuals <= 1e-6 * pairs.values).all()


def test_the_tridiagonal_matrix_is_the_operator_on_its_basis(
    chosen: np.ndarray, getkey: Key
) -> None:
    starts = jax.random.normal(getkey(), (2, SIZE))
    for start, run in zip(starts, krylov.tridiagonal(Operator.of(chosen), starts, 12, keep=True)):
        q = np.asarray(run.basis)
        t = np.diag(run.diagonal) + np.diag(run.off, 1) + np.diag(run.off, -1)
        np.testing.assert_allclose(q.T @ q, np.eye(12), atol=1e-13)
        np.testing.assert_allclose(q.T @ chosen @ q, t, atol=1e-11)
        np.testing.assert_allclose(q[:, 0] * run.length, start, atol=1e-12)
        left = np.linalg.norm(chosen @ q - q @ t, axis=0)
        np.testing.assert_allclose(left, np.append(np.zeros(11), run.last), atol=1e-11)


@pytest.mark.parametrize(
    "values",
    [
        np.append(np.full(3, 5.0), np.append(np.full(4, 3.0), np.linspace(0.1, 1, SIZE - 7))),
        np.append(np.arange(1.0, 4.0), np.zeros(SIZE - 3)),
        np.ones(SIZE),
        np.zeros(SIZE),
    ],
    ids=["multiple", "rank 3", "identity", "zero"],
)
def test_lanczos_finds_copies_and_survives_spaces_that_end(values: np.ndarray, getkey: Key) -> None:
    expected = np.sort(values)[::-1]
    one_value = np.ptp(values) == 0
    matrix = np.diag(values) if one_value else of_values(values)
    pairs = krylov.eigenpairs(Operator.of(matrix), 5, getkey())
    assert pairs.values[:5] == pytest.approx(expected[:5], rel=1e-9, abs=1e-9)
    u = np.asarray(pairs.vectors)
    np.testing.assert_allclose(u.T @ u, np.eye(u.shape[1]), atol=1e-12)
    np.testing.assert_allclose(matrix @ u, u * pairs.values, atol=1e-4)


def test_quadrature_is_within_its_errors_for_every_function(
    chosen: np.ndarray, getkey: Key
) -> None:
    operator, key = Operator.of(chosen), getkey()
    nodes = krylov.quadrature(operator, 12, 30, key)
    assert nodes.weights.sum(axis=1) == pytest.approx(np.full(12, SIZE))
    parts = krylov.quadrature(operator, 12, 30, key, batch=5)
    np.testing.assert_allclose(parts.trace_of(np.exp), nodes.trace_of(np.exp), rtol=1e-9)
    functions: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "trace": lambda v: v,
        "squares": lambda v: v**2,
        "roots": lambda v: np.sqrt(np.maximum(v, 0)),
        "log": lambda v: np.log(v + 1),
        "decay": lambda v: np.exp(-v),
    }
    for name, f in functions.items():
        value, error = nodes.trace_of(f)
        assert 0 < error < 0.5 * f(CHOSEN).sum(), name
        assert abs(value - f(CHOSEN).sum()) < 4 * error, name


def test_quadrature_of_one_probe_is_its_quadratic_form(chosen: np.ndarray, getkey: Key) -> None:
    """v' A^p v for p up to 2 m - 1, by products."""
    start = jax.random.normal(getkey(), (2, SIZE))
    v = np.asarray(start[0])
    run = krylov.tridiagonal(Operator.of(chosen / 100), start, 12, keep=True)[0]
    theta, s, _ = run.ritz()
    for power in range(24):
        exact = v @ np.linalg.matrix_power(chosen / 100, power) @ v
        assert run.length**2 * (s[0] ** 2 @ theta**power) == pytest.approx(exact, rel=1e-11)


# ------------------------------------------------------------------------ estimates of the spectrum


@pytest.mark.parametrize("method", ["slq", "deflated"])
@pytest.mark.parametrize("trace_known", [False, True])
def test_estimates_are_within_four_standard_errors(
    chosen: np.ndarray, getkey: Key, method: str, trace_known: bool
) -> None:
    operator = Operator.of(chosen)
    if not trace_known:
        operator = Operator(SIZE, operator.dtype, operator.product)
    exact = spectrum(chosen)
    found = spectrum(operator, method, top=5, probes=12, steps=30, key=getkey())
    assert found.method == method
    assert found.weights.sum() == pytest.approx(SIZE)
    grid = np.array([0.2, 0.5, 0.8])
    asked: list[tuple[Any, ...]] = [
        ("trace",),
        ("participation",),
        ("effective_rank",),
        ("stable_rank",),
        ("nuclear_norm",),
        ("log_determinant", 10.0),
        ("density", grid, 0.1),
    ]
    for name, *rest in asked:
        truth = getattr(exact, name)
        truth = truth(*rest) if callable(truth) else truth
        value = getattr(found, name)
        value = value(*rest) if callable(value) else value
        error = found.error_of(name, *rest)
        assert np.all(np.abs(value - truth) <= 4 * error + 1e-9 * np.abs(truth)), name
        assert np.all(error < 0.3 * np.abs(truth)), name
    assert (found.error_of("trace") < 1e-9) == trace_known
    assert found.largest == pytest.approx(CHOSEN[0], abs=found.error_of("largest") + 1e-10)
    if method == "deflated":
        assert found.top(5) == pytest.approx(CHOSEN[:5], rel=1e-3)


def test_deflation_and_a_known_trace_make_errors_small(chosen: np.ndarray, getkey: Key) -> None:
    known = Operator.of(chosen)
    plain = Operator(SIZE, known.dtype, known.product)
    given: dict[str, Any] = {"top": 8, "probes": 12, "steps": 30, "key": getkey()}
    errors = [
        spectrum(operator, method, **given).error_of("participation")
        for operator, method in ((plain, "slq"), (plain, "deflated"), (known, "deflated"))
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > 0


def test_standard_errors_are_as_large_as_they_should_be(chosen: np.ndarray, getkey: Key) -> None:
    """Over 30 estimates, the deviations from the truth in units of their errors have variance 1."""
    operator = Operator(SIZE, jnp.float64, Operator.of(chosen).product)
    truth = spectrum(chosen).participation
    scores = []
    for _ in range(30):
        found = spectrum(operator, "slq", probes=12, steps=30, key=getkey())
        scores.append((found.participation - truth) / found.error_of("participation"))
    # 30 squared scores of 12 probes each: a mean outside [0.4, 2.4] is a chance below 1e-3.
    assert 0.4 < np.mean(np.square(scores)) < 2.4


def test_copies_that_lanczos_missed_are_found_by_the_probes(getkey: Key) -> None:
    values = np.append(np.full(3, 50.0), np.linspace(0.1, 1, SIZE - 3))
    found = spectrum(of_values(values), "deflated", top=5, probes=12, steps=30, key=getkey())
    assert found.top(5) == pytest.approx([50, 50, 50, values[-1], values[-2]], rel=1e-2)


def test_deflating_everything_leaves_nothing_to_estimate(getkey: Key) -> None:
    matrix = of_values(np.arange(1.0, 13.0))
    found = spectrum(matrix, "deflated", top=12, key=getkey())
    assert found.values == pytest.approx(np.arange(12.0, 0.0, -1.0))
    assert found.smallest == pytest.approx(1)
    assert found.condition == pytest.approx(12)


@pytest.mark.long
def test_single_precision_on_an_operator_keeps_one_percent(chosen: np.ndarray) -> None:
    given: dict[str, Any] = {"top": 5, "probes": 12, "steps": 30}
    with jax.enable_x64(False):  # as it is without asking
        found = spectrum(Operator.of(chosen), "deflated", **given)
    exact = spectrum(chosen)
    assert found.precision == np.finfo(np.float32).eps
    assert found.top(5) == pytest.approx(CHOSEN[:5], rel=1e-3)
    assert found.participation == pytest.approx(exact.participation, rel=1e-2)
    assert found.effective_rank == pytest.approx(exact.effective_rank, rel=1e-2)


def test_products_with_arrays_inside_and_as_arguments_agree(
    chosen: np.ndarray, getkey: Key
) -> None:
    array, key = jnp.asarray(chosen), getkey()
    inside = Operator(SIZE, jnp.float64, lambda v: array @ v)
    argument = Operator(SIZE, jnp.float64, Partial(jnp.matmul, array))
    one, other = (spectrum(o, "slq", probes=12, steps=30, key=key) for o in (inside, argument))
    assert one.trace == pytest.approx(other.trace, rel=1e-10)


# -------------------------------------------------------------------------------------- its choices


def test_auto_takes_what_fits(chosen: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.kernels import spectrum as module

    assert spectrum(chosen).method == "eigh"
    assert spectrum(chosen, top=3).method == "eigh"
    assert spectrum(Operator.of(chosen)).method == "eigh"
    assert spectrum(Operator.of(chosen)).values == pytest.approx(CHOSEN, abs=1e-12)
    assert spectrum([chosen]).method == "dual"
    monkeypatch.setattr(module, "FORMED", 10)
    assert spectrum(Operator.of(chosen), top=5).method == "lanczos"
    assert spectrum(Operator.of(chosen), probes=12, steps=30).method == "deflated"
    assert set(METHODS) == {"auto", "eigh", "dual", "lanczos", "slq", "deflated"}


def test_the_same_key_gives_the_same_numbers(chosen: np.ndarray) -> None:
    operator = Operator.of(chosen)
    one, other = (spectrum(operator, "slq", probes=12, steps=30) for _ in range(2))
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.weights, other.weights)


def test_part_of_a_spectrum_gives_what_it_can(chosen: np.ndarray) -> None:
    operator = Operator.of(chosen)
    found = spectrum(operator, "lanczos", top=5)
    assert len(found.values) == 5
    assert found.trace == pytest.approx(CHOSEN.sum())  # the operator knew it
    assert found.stable_rank == pytest.approx(CHOSEN.sum() / CHOSEN[0])
    for name in set(QUANTITIES) - {"trace", "stable_rank", "largest", "density"}:
        with pytest.raises(SecateurError, match="whole spectrum"):
            found.error_of(name)
    with pytest.raises(SecateurError, match="ask for them with top=6"):
        found.top(6)
    estimate = spectrum(operator, "slq", probes=12, steps=30)
    for name in ("smallest", "condition"):
        with pytest.raises(SecateurError, match="one by one"):
            getattr(estimate, name)
    with pytest.raises(SecateurError, match=r"0 eigenvalues were computed"):
        estimate.top(1)


# -------------------------------------------------------------------------------------- wrong input

WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "not square": (lambda: spectrum(np.ones((3, 4))), r"square.*\(3, 4\)"),
    "not symmetric": (
        lambda: spectrum(np.triu(np.ones((3, 3)))),
        "differs from its transpose by 1",
    ),
    "not finite": (lambda: spectrum(np.diag([1.0, np.nan])), "1 of 4 entries"),
    "negative": (lambda: spectrum(np.diag([3.1, -0.24])), r"smallest here is -0\.24"),
    "complex": (lambda: spectrum(np.eye(2) * 1j), "real"),
    "unknown method": (lambda: spectrum(np.eye(2), method="eig"), "Did you mean 'eigh'"),
    "dual of an operator": (lambda: spectrum(Operator.of(np.eye(2)), "dual"), "rows of J"),
    "blocks to eigh": (lambda: spectrum([np.eye(2)], "eigh"), "only 'dual'"),
    "no rows": (lambda: from_rows([]), "no rows"),
    "uneven rows": (lambda: from_rows([np.ones((2, 3)), np.ones((2, 4))]), r"\(rows, 3\)"),
    "rows not finite": (lambda: from_rows([np.array([[np.inf]])]), "NaN or infinite"),
    "no top": (lambda: krylov.eigenpairs(Operator.of(np.eye(2)), 0, jax.random.key(0)), "not 0"),
    "no probes": (
        lambda: krylov.quadrature(Operator.of(np.eye(2)), 0, 3, jax.random.key(0)),
        "not 0 and 3",
    ),
    "an empty operator": (lambda: Operator(0, jnp.float32, lambda v: v), "at least one row"),
    "whole numbers": (lambda: Operator(2, jnp.int32, lambda v: v), "int32"),
    "another shape": (
        lambda: spectrum(Operator(2, jnp.float64, lambda v: v[:1]), "slq"),
        r"\(1,\) float64",
    ),
    "singular": (lambda: spectrum(np.diag([1.0, 0.0])).log_determinant(), "take one above"),
    "no width": (lambda: spectrum(np.eye(2)).density([1.0], 0.0), "positive width"),
    "unknown quantity": (lambda: spectrum(np.eye(2)).error_of("tracee"), "Did you mean 'trace'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused_in_one_sentence(name: str) -> None:
    call, says = WRONG[name]
    with pytest.raises(SecateurError, match=says) as caught:
        call()
    assert str(caught.value).endswith((".", "?"))


def test_products_that_are_not_finite_or_contradict_the_trace_are_refused(
    chosen: np.ndarray,
) -> None:
    given: dict[str, Any] = {"probes": 12, "steps": 30}
    with pytest.raises(SecateurError, match="not finite"):
        spectrum(Operator(SIZE, jnp.float64, Partial(jnp.matmul, chosen * np.nan)), "slq", **given)
    wrong = Operator(SIZE, jnp.float64, Partial(jnp.matmul, jnp.asarray(chosen)), trace=1e6)
    with pytest.raises(SecateurError, match="states a trace of 1e"):
        spectrum(wrong, "slq", **given)
    with pytest.raises(SecateurError, match="no negative eigenvalue"):
        spectrum(Operator.of(-chosen), "slq", **given)
    hessian = spectrum(Operator.of(-chosen), "slq", semidefinite=False, **given)
    assert hessian.trace == pytest.approx(-CHOSEN.sum())
    with pytest.raises(SecateurError, match="not negative"):
        _ = hessian.participation
