"""Marchenko and Pastur's law by sampling, and layers cut to a rank."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.integrate import quad

from secateur.core.errors import SecateurError
from secateur.features.spectra import (
    MarchenkoPastur,
    above_noise,
    truncated,
    truncation,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("ratio", [0.25, 0.9, 2.5])
def test_the_law_is_a_probability_with_the_moments_of_the_matrix(ratio: float) -> None:
    """Mass 1, mean s^2 and second moment s^4 (1 + q): exact for the law."""
    law = MarchenkoPastur(ratio, 1.7)
    low, high = law.edges
    # l = a + b sin t: the density's square roots at the edges are smooth in t.
    middle, half = (high + low) / 2, (high - low) / 2

    def moment(power: int) -> float:
        f = lambda t: (
            (middle + half * np.sin(t)) ** power
            * law.density(middle + half * np.sin(t))
            * half
            * np.cos(t)
        )
        return quad(f, -np.pi / 2, np.pi / 2, limit=200)[0]

    assert moment(0) + law.point_mass == pytest.approx(1, abs=1e-7)
    assert moment(1) == pytest.approx(1.7, rel=1e-7)
    assert moment(2) == pytest.approx(1.7**2 * (1 + ratio), rel=1e-7)
    assert law.density([low - 0.01, high + 0.01]).tolist() == [0, 0]
    with pytest.raises(SecateurError, match="above 0"):
        MarchenkoPastur(0.0)


def test_the_law_holds_for_sampled_matrices() -> None:
    """Shares of the eigenvalues in ten intervals, to 0.01: m^-1 fluctuations, five matrices."""
    m, n, v = 200, 500, 0.3
    law = MarchenkoPastur(m / n, n * v)
    found = np.concatenate(
        [above_noise(np.sqrt(v) * RNG.standard_normal((n, m))).values for _ in range(5)]
    )
    bins = np.linspace(*law.edges, 11)
    share = np.histogram(found, bins)[0] / len(found)
    right = [quad(law.density, a, b)[0] for a, b in itertools.pairwise(bins)]
    np.testing.assert_allclose(share, right, atol=0.01)
    wide = above_noise(RNG.standard_normal((30, 90)))  # more units than inputs
    assert np.mean(wide.values < 1e-10) == pytest.approx(wide.law.point_mass)


def test_noise_stays_below_the_threshold_as_often_as_it_says() -> None:
    """Of 2,000 matrices 5 % have an eigenvalue above the quantile 0.95, to 4 standard errors."""
    over = [
        above_noise(RNG.standard_normal((60, 20)), variance=1.0, quantile="0.95").count > 0
        for _ in range(2000)
    ]
    # Tracy and Widom's law at this size: Johnstone 2001, table 1, is within .01 of the limit.
    assert np.mean(over) == pytest.approx(0.05, abs=0.01 + 4 * np.sqrt(0.05 * 0.95 / 2000))


def test_signal_is_counted() -> None:
    n, m, v = 400, 100, 1 / 400
    noise = np.sqrt(v) * RNG.standard_normal((n, m))
    u, w = (np.linalg.qr(RNG.standard_normal((k, 3)))[0] for k in (n, m))
    found = above_noise(noise + (u * [4.0, 5.0, 6.0]) @ w.T, variance=v)
    assert found.count == 3
    assert found.threshold > found.law.edges[1]
    assert above_noise(noise, variance=v).count == 0
    mask = RNG.random((n, m)) < 0.2  # at random: v -> rho v
    masked = above_noise(noise, mask)
    assert masked.law.variance == pytest.approx(0.2 * n * v, rel=0.05)
    assert masked.count == 0
    with pytest.raises(SecateurError, match="kernel is zero"):
        above_noise(np.zeros((4, 3)))
    with pytest.raises(SecateurError, match=r"no quantile '0\.5'"):
        above_noise(noise, quantile="0.5")


def tree(kernel: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    return {"conv": {"kernel": kernel, "bias": np.zeros(kernel.shape[-1])}}


def test_truncation_is_the_best_of_its_rank() -> None:
    kernel = RNG.standard_normal((3, 3, 2, 7))
    flat = kernel.reshape(-1, 7)
    for rank in (0, 2, 7):
        cut = truncated(tree(kernel), "conv/kernel", rank)["conv"]["kernel"].reshape(-1, 7)
        assert np.linalg.matrix_rank(cut) == rank
        # Eckart & Young: what is left is the norm of the other singular values.
        tail = np.linalg.svd(flat, compute_uv=False)[rank:]
        assert np.linalg.norm(flat - cut) == pytest.approx(np.linalg.norm(tail), abs=1e-12)


def test_the_curve_and_what_the_network_loses() -> None:
    u, w = (np.linalg.qr(RNG.standard_normal((n, 4)))[0] for n in (9, 6))
    kernel = (u * [8.0, 7.0, 0.2, 0.1]) @ w.T
    asked = []

    def evaluate(params: dict[str, dict[str, np.ndarray]]) -> float:
        asked.append(np.linalg.matrix_rank(params["conv"]["kernel"], tol=1e-9))
        return asked[-1] / 10

    found = truncation(tree(kernel), "conv/kernel", evaluate=evaluate)
    assert found.ranks.tolist() == list(range(7))
    assert asked == [0, 1, 2, 3, 4, 4, 4, 4]
    np.testing.assert_allclose(found.drop, [0.4, 0.3, 0.2, 0.1, 0, 0, 0], atol=1e-15)
    size = np.sqrt(64 + 49 + 0.04 + 0.01)
    right = [size, np.sqrt(49.05), np.sqrt(0.05), 0.1, 0, 0, 0]
    np.testing.assert_allclose(found.residual, np.array(right) / size, atol=1e-7)
    np.testing.assert_allclose(found.kept**2 + found.residual**2, 1, atol=1e-12)
    assert found.elbow == 2
    few = truncation(tree(kernel), "conv/kernel", [1, 3])
    np.testing.assert_allclose(few.kept, found.kept[[1, 3]])
    assert few.accuracy.size == 0


def test_what_has_no_such_rank_is_refused() -> None:
    params = tree(RNG.standard_normal((4, 3)))
    with pytest.raises(SecateurError, match="the rank is 4; 'conv/kernel' has 0 to 3"):
        truncated(params, "conv/kernel", 4)
    with pytest.raises(SecateurError, match="only kernels"):
        truncated(params, "conv/bias", 1)
    with pytest.raises(SecateurError, match="no layer 'conv/kernal'"):
        truncation(params, "conv/kernal")
    with pytest.raises(SecateurError, match="rising"):
        truncation(params, "conv/kernel", [2, 1])
    with pytest.raises(SecateurError, match="is zero"):
        truncation(tree(np.zeros((4, 3))), "conv/kernel")
