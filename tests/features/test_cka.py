"""CKA of features, against its definitions and what is known of features at random."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.features.cka import batched_cka, cka, gaussian, layer_cka, linear, target_cka

RNG = np.random.default_rng(0)
A, B = RNG.standard_normal((9, 4)) + 1, RNG.standard_normal((9, 5))


def test_linear_cka_from_cross_covariances() -> None:
    a, b = A - A.mean(0), B - B.mean(0)
    norm = np.linalg.norm
    right = norm(b.T @ a) ** 2 / norm(a.T @ a) / norm(b.T @ b)
    assert cka(A, B) == pytest.approx(right, rel=1e-13)
    turn = np.linalg.qr(RNG.standard_normal((4, 4)))[0]
    for form in ("plain", "column", "centred", "unbiased"):
        assert cka(3 * A @ turn, B, form=form) == pytest.approx(cka(A, B, form=form), rel=1e-11)
    pictures = A.reshape(9, 2, 2)
    assert cka(pictures, B) == pytest.approx(right, rel=1e-13)


def test_gaussian_kernel_entry_by_entry() -> None:
    distances = [np.linalg.norm(A[i] - A[j]) for i in range(9) for j in range(i)]
    s = 0.4 * np.median(distances)
    right = [[np.exp(-np.sum((p - q) ** 2) / 2 / s**2) for p in A] for q in A]
    np.testing.assert_allclose(gaussian(A, 0.4), right, rtol=1e-12)
    # Features moved and scaled alike: the width goes with them.
    assert cka(A, 5 * A + 2, kernel="gaussian") == pytest.approx(1, abs=1e-12)


def test_biased_cka_of_wide_random_features_is_near_one_and_the_unbiased_near_zero() -> None:
    found = {"centred": [], "unbiased": []}
    for _ in range(40):
        a, b = RNG.standard_normal((20, 400)), RNG.standard_normal((20, 400))
        for form, values in found.items():
            values.append(cka(a, b, form=form))
    assert np.mean(found["centred"]) > 0.9
    assert abs(np.mean(found["unbiased"])) < 4 * np.std(found["unbiased"]) / 40**0.5


def test_batches_come_to_the_whole() -> None:
    a = RNG.standard_normal((4000, 3))
    b = a @ RNG.standard_normal((3, 6)) + RNG.standard_normal((4000, 6))
    whole = cka(a[:600], b[:600], form="unbiased")
    batches = [(a[k : k + 40], b[k : k + 40]) for k in range(0, 4000, 40)]
    assert batched_cka(batches) == pytest.approx(whole, abs=0.03)
    assert batched_cka(batches[:1]) == pytest.approx(cka(*batches[0], form="unbiased"), rel=1e-12)
    with pytest.raises(SecateurError, match="one size"):
        batched_cka([(a[:5], b[:5]), (a[:6], b[:6])])


def test_layers_against_layers() -> None:
    first = {"one": A, "dead": np.ones((9, 3)), "two": B}
    found = layer_cka(first, {"two": B, "one": A})
    assert found.shape == (3, 2)
    assert found[0, 1] == pytest.approx(1, abs=1e-13)
    assert found[0, 0] == cka(A, B)
    assert np.isnan(found[1]).all()
    with pytest.raises(SecateurError, match="same examples"):
        layer_cka(first, {"short": B[:5]})
    with pytest.raises(SecateurError, match="at least 4"):
        layer_cka({"a": A[:3]}, {"b": B[:3]}, form="unbiased")


def test_with_targets_as_printed() -> None:
    y = RNG.standard_normal((9, 1))
    k = linear(A)
    right = (y.T @ k @ y).item() / np.linalg.norm(k) / np.sum(y**2)
    assert target_cka(A, y) == pytest.approx(right, rel=1e-13)
    with pytest.raises(SecateurError, match="median distance of 0"):
        gaussian(np.ones((5, 2)))
    with pytest.raises(SecateurError, match="a row an example"):
        linear(np.ones(5))
