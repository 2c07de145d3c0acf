"""Alignments, distances and velocities, against features written out and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.kernels.alignment import (
    centred,
    disagreement,
    kernel_alignment,
    kernel_distance,
    target_alignment,
    velocity,
)

RNG = np.random.default_rng(0)
N, C = 7, 3
FEATURES, OTHERS = RNG.standard_normal((N, 4)) + 1, RNG.standard_normal((N, 5)) - 0.5
ROWS = RNG.standard_normal((N * C, 11))  # a Jacobian
Y = RNG.standard_normal((N, C)) + 0.3


def test_centred_alignment_is_linear_cka_of_the_features() -> None:
    a, b = FEATURES - FEATURES.mean(0), OTHERS - OTHERS.mean(0)
    norm = np.linalg.norm
    cka = norm(b.T @ a) ** 2 / (norm(a.T @ a) * norm(b.T @ b))  # Kornblith et al. 2019, section 3
    found = kernel_alignment(FEATURES @ FEATURES.T, OTHERS @ OTHERS.T)
    assert found == pytest.approx(cka, rel=1e-13)
    plain = norm(OTHERS.T @ FEATURES) ** 2 / (norm(FEATURES.T @ FEATURES) * norm(OTHERS.T @ OTHERS))
    found = kernel_alignment(FEATURES @ FEATURES.T, OTHERS @ OTHERS.T, form="plain")
    assert found == pytest.approx(plain, rel=1e-13)


def test_unbiased_alignment_is_the_mean_over_distinct_examples() -> None:
    """HSIC as its U-statistic: sums over distinct i, j, q, r (Song et al. 2012, equation 4)."""
    n = 5
    k, l = (f[:n] @ f[:n].T for f in (FEATURES, OTHERS))

    def hsic(k: np.ndarray, l: np.ndarray) -> float:
        total = 0.0
        for i in range(n):
            for j in range(n):
                for q in range(n):
                    for r in range(n):
                        if len({i, j, q, r}) == 4:
                            total += k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
        return total

    right = hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))
    assert kernel_alignment(k, l, form="unbiased") == pytest.approx(right, rel=1e-11)


def test_alignment_keeps_to_its_laws() -> None:
    k, l = FEATURES @ FEATURES.T, OTHERS @ OTHERS.T
    for form in ("plain", "centred", "column", "unbiased"):
        assert kernel_alignment(k, k, form=form) == pytest.approx(1, abs=1e-14)
        one = kernel_alignment(k, l, form=form)
        assert kernel_alignment(3 * l, 0.1 * k, form=form) == pytest.approx(one, rel=1e-12)
        order = RNG.permutation(N)
        turned = kernel_alignment(k[order][:, order], l[order][:, order], form=form)
        assert turned == pytest.approx(one, rel=1e-12)
    moved = (FEATURES + 5) @ (FEATURES + 5).T  # a constant in every feature
    assert kernel_alignment(moved, k) == pytest.approx(1, abs=1e-13)
    assert kernel_alignment(moved, k, form="plain") < 0.999


def test_centring_of_several_outputs_is_that_of_their_features() -> None:
    each = ROWS.reshape(N, C, -1)
    mean_free = (each - each.mean(0)).reshape(N * C, -1)
    found = centred((ROWS @ ROWS.T).reshape(N, C, N, C))
    np.testing.assert_allclose(found.reshape(N * C, -1), mean_free @ mean_free.T, atol=1e-13)


def test_column_centring_is_one_sided() -> None:
    """Kumar et al.'s published code, written out: K - K.mean(0), y less its mean."""
    k, y = FEATURES @ FEATURES.T, Y[:, 0] - Y[:, 0].mean()
    less = k - k.mean(0)
    right = y @ less @ y / (np.linalg.norm(less) * np.linalg.norm(y) ** 2)
    assert target_alignment(k, Y[:, :1], form="column") == pytest.approx(right, rel=1e-13)
    assert right < target_alignment(k, Y[:, :1], form="centred")
    # Output by output of a kernel between outputs: the first features are centred.
    rows = ROWS.reshape(N, C, -1)
    full = np.einsum("ncp,mdp->ncmd", rows - rows.mean(0), rows).reshape(N * C, -1)
    y = (Y - Y.mean(0)).reshape(-1)
    right = y @ full @ y / (np.linalg.norm(full) * (y @ y))
    assert target_alignment(ROWS @ ROWS.T, Y, form="column") == pytest.approx(right, rel=1e-12)


def test_unbiased_target_alignment_has_mean_zero_for_labels_by_chance() -> None:
    kernel = FEATURES @ FEATURES.T
    every = [Y[:, 0][np.roll(RNG.permutation(N), k)] for k in range(3000)]
    found = [target_alignment(kernel, y[:, None], form="unbiased") for y in every]
    biased = [target_alignment(kernel, y[:, None], form="centred") for y in every]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))
    assert np.mean(biased) > 0.2
    assert target_alignment(kernel, Y, form="unbiased", targets="gram") == pytest.approx(
        kernel_alignment(kernel, Y @ Y.T, form="unbiased"), rel=1e-13
    )


def test_target_alignment_of_the_targets_themselves_is_one() -> None:
    vector = Y.reshape(-1, 1)
    assert target_alignment(vector @ vector.T, Y) == pytest.approx(1, abs=1e-14)
    assert target_alignment(Y @ Y.T, Y, targets="gram") == pytest.approx(1, abs=1e-14)
    centre = Y - Y.mean(0)
    assert target_alignment(centre @ centre.T, Y, form="centred", targets="gram") == pytest.approx(
        1, abs=1e-14
    )
    # No direction stands out: 1 of R equal eigenvalues, in the norm sqrt(R)
    assert target_alignment(np.eye(N * C), Y) == pytest.approx((N * C) ** -0.5, rel=1e-13)


def test_target_alignment_by_its_definition_in_every_shape() -> None:
    full = ROWS @ ROWS.T
    y = Y.reshape(-1)
    right = y @ full @ y / (np.linalg.norm(full) * (y @ y))
    for kernel in (full, full.reshape(N, C, N, C)):
        assert target_alignment(kernel, Y) == pytest.approx(right, rel=1e-13)
    one = FEATURES @ FEATURES.T
    whole = np.kron(one, np.eye(C))
    assert target_alignment(one, Y) == pytest.approx(target_alignment(whole, Y), rel=1e-13)
    assert target_alignment(one, Y, form="centred") == pytest.approx(
        target_alignment(whole, Y, form="centred"), rel=1e-12
    )
    stacked = target_alignment(one, Y[:, :1])
    assert target_alignment(one, Y[:, :1], targets="gram") == pytest.approx(stacked, rel=1e-13)


def test_distances_and_velocity() -> None:
    k = ROWS @ ROWS.T
    assert kernel_distance(k, k) == 0
    assert kernel_distance(3 * k, k) == pytest.approx(2, rel=1e-13)
    assert kernel_distance(3 * k, k, form="cosine") == pytest.approx(0, abs=1e-14)
    first, second = np.diag([1.0, 0.0]), np.diag([0.0, 2.0])
    assert kernel_distance(second, first) == pytest.approx(np.sqrt(5), rel=1e-14)
    assert kernel_distance(second, first, form="cosine") == 1
    # A kernel that turns by the angle 0.1 t: 1 - cos of what it turns in between
    times = np.array([0.0, 1.0, 3.0])
    kernels = [np.cos(0.1 * t) * first + np.sin(0.1 * t) * second / 2 for t in times]
    right = [1 - np.cos(0.1), (1 - np.cos(0.2)) / 2]
    np.testing.assert_allclose(velocity(kernels, times), right, rtol=1e-12)
    right = [2 * np.sin(0.05), 2 * np.sin(0.1) / 2]
    np.testing.assert_allclose(velocity(kernels, times, form="frobenius"), right, rtol=1e-12)


def test_disagreement_with_the_linearised_network() -> None:
    f = np.array([[3.0, 0.0], [0.0, 4.0]])
    linear = np.array([[3.0, 0.0], [4.0, 4.0 - 1e-9]])
    found = disagreement(f, linear)
    assert found.relative == pytest.approx(0.8, rel=1e-9)
    assert found.agreement == 0.5
    found = disagreement(f, linear, start=np.array([[0.0, 0.0], [0.0, 3.0]]))
    assert found.relative == pytest.approx(4 / np.sqrt(10), rel=1e-9)
    assert disagreement(f, f).relative == 0


def test_what_does_not_fit_is_refused() -> None:
    k = FEATURES @ FEATURES.T
    with pytest.raises(SecateurError, match="same examples and form"):
        kernel_alignment(k, k[:3, :3])
    with pytest.raises(SecateurError, match=r"expected \[N, C, N, C\] or a square matrix"):
        kernel_distance(FEATURES, FEATURES)
    with pytest.raises(SecateurError, match="no form of alignment 'cka'"):
        kernel_alignment(k, k, form="cka")
    with pytest.raises(SecateurError, match="is zero"):
        kernel_alignment(np.ones((N, N)), k)
    with pytest.raises(SecateurError, match="kernel at the start is zero"):
        kernel_distance(k, 0 * k)
    with pytest.raises(SecateurError, match="for 3 examples with 3 outputs expected"):
        target_alignment(k, Y[:3])
    with pytest.raises(SecateurError, match="no form of alignment 'cka'"):
        target_alignment(k, Y, form="cka")
    with pytest.raises(SecateurError, match="take targets='gram'"):
        target_alignment(k, Y, form="unbiased")
    with pytest.raises(SecateurError, match="times rising"):
        velocity([k, k], [1.0, 1.0])
    with pytest.raises(SecateurError, match="at least 4 examples"):
        kernel_alignment(k[:3, :3], k[:3, :3], form="unbiased")
    with pytest.raises(SecateurError, match="all where they started"):
        disagreement(FEATURES, OTHERS[:, :4], start=FEATURES)
    with pytest.raises(SecateurError, match="outputs have shapes"):
        disagreement(FEATURES, OTHERS)
