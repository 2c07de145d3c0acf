"""Directions of weight vectors: angles that are known, clusters that were put there."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.features import directions
from secateur.features.directions import (
    clusters,
    cosines_between,
    norms,
    overlap,
    principal_angles,
    rows,
    subspace,
)

RNG = np.random.default_rng(0)
cosines, turned = jax.jit(directions.cosines), jax.jit(directions.turned)  # as in records


@pytest.mark.usefixtures("x64")
def test_cosines_pair_by_pair_inside_the_mask() -> None:
    kernel = RNG.standard_normal((3, 3, 2, 5))  # filters of a convolution
    mask = RNG.random(kernel.shape) < 0.6
    mask[..., 2] = False  # a unit without weights
    found = np.asarray(cosines(kernel, mask))
    filters = [(kernel * mask)[..., k].ravel() for k in range(5)]
    np.testing.assert_array_equal(rows(kernel, mask), filters)
    np.testing.assert_allclose(norms(kernel, mask), [np.linalg.norm(f) for f in filters])
    for i in range(5):
        for j in range(5):
            size = np.linalg.norm(filters[i]) * np.linalg.norm(filters[j])
            right = filters[i] @ filters[j] / size if size else 0
            assert found[i, j] == pytest.approx(right, abs=1e-14)
    order = RNG.permutation(5)
    np.testing.assert_allclose(
        cosines_between(kernel[..., order], kernel)[:, 0], np.asarray(cosines(kernel))[order, 0]
    )


@pytest.mark.usefixtures("x64")
def test_turns_are_the_angles_they_were_made_of() -> None:
    angles = np.radians([0.0, 1e-7, 0.3, 90.0, 179.999, 180.0])
    plane = np.linalg.qr(RNG.standard_normal((7, 2)))[0]
    start = np.outer(plane[:, 0], np.ones(6))
    now = plane[:, :1] * np.cos(angles) + plane[:, 1:] * np.sin(angles)
    found = np.asarray(turned(start, now * RNG.uniform(0.1, 9, 6)))
    np.testing.assert_allclose(found, np.degrees(angles), rtol=1e-8, atol=1e-13)
    now[:, 2] = 0
    assert np.isnan(np.asarray(turned(start, now))[2])


def bunches(spread: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Units about three orthogonal directions, and two that are nowhere near."""
    q = np.linalg.qr(RNG.standard_normal((20, 5)))[0].T
    which = np.array([0] * 6 + [1] * 4 + [2] * 3 + [3, 4])
    noise = np.where(which < 3, spread, 0)[:, None] * RNG.standard_normal((15, 20)) / 20**0.5
    return ((q[which] + noise) * RNG.uniform(0.5, 2, 15)[:, None]).T, which


@pytest.mark.parametrize("how", ["average", "components"])
def test_clusters_that_were_put_there_are_found(how: str) -> None:
    kernel, which = bunches()
    order = RNG.permutation(15)
    found = clusters(kernel[:, order], 0.8, how=how)
    for k in range(3):  # largest first
        assert set(found.labels[np.isin(which[order], k)]) == {k}
    assert found.sizes.tolist() == [6, 4, 3, 1, 1]
    for k in (0, 1):
        units = kernel[:, order].T[found.labels == k]
        units = units / np.linalg.norm(units, axis=1, keepdims=True)
        mean = units.mean(0) / np.linalg.norm(units.mean(0))
        np.testing.assert_allclose(found.centres[k], mean, atol=1e-12)
        right = np.degrees(np.arccos(np.clip(units @ mean, -1, 1)))
        np.testing.assert_allclose(found.angles[found.labels == k], right, atol=1e-6)
        assert found.largest[k] == pytest.approx(
            max(np.linalg.norm(kernel[:, order[i]]) for i in np.flatnonzero(found.labels == k))
        )
    assert found.angles[found.labels == 3] == pytest.approx(0, abs=1e-6)
    assert clusters(kernel, 1.0, how=how).sizes.max() == 1
    assert clusters(kernel, -1.0, how=how).sizes.tolist() == [15]


def test_a_chain_is_one_component_but_not_one_cluster() -> None:
    angles = np.radians(np.arange(0, 180, 10))
    chain = np.stack([np.cos(angles), np.sin(angles)])
    cutoff = np.cos(np.radians(15))
    assert clusters(chain, cutoff, how="components").sizes.tolist() == [18]
    assert clusters(chain, cutoff, how="average").sizes.max() <= 4


def test_opposite_units_are_alike_only_without_signs() -> None:
    kernel, _ = bunches(0.01)
    both = np.concatenate([kernel, -kernel, np.zeros((20, 1))], axis=1)
    for how in ("average", "components"):
        signed = clusters(both, 0.8, how=how)
        assert signed.sizes.tolist() == [6, 6, 4, 4, 3, 3, 1, 1, 1, 1]
        unsigned = clusters(both, 0.8, how=how, signed=False)
        assert unsigned.sizes.tolist() == [12, 8, 6, 2, 2]
        assert unsigned.labels[-1] == -1
        assert np.isnan(unsigned.angles[-1])
        assert np.nanmax(unsigned.angles) < 5
    none = clusters(np.zeros((3, 2)), 0.5)
    assert none.labels.tolist() == [-1, -1]
    with pytest.raises(SecateurError, match="it is a cosine"):
        clusters(both, 1.5)
    with pytest.raises(SecateurError, match="no way to cluster 'means'"):
        clusters(both, how="means")


def test_principal_angles_that_spaces_were_made_with() -> None:
    angles = np.array([1e-9, 1e-4, 20.0, 60.0])
    q = np.linalg.qr(RNG.standard_normal((12, 8)))[0]
    first, other = q[:, :4], q[:, 4:]
    second = first * np.cos(np.radians(angles)) + other * np.sin(np.radians(angles))
    mix = RNG.standard_normal((4, 4))
    found = principal_angles(3 * first @ mix, second @ mix.T)
    np.testing.assert_allclose(found, angles, rtol=1e-4, atol=1e-12)
    np.testing.assert_allclose(found[1:], angles[1:], rtol=1e-9)
    right = np.linalg.norm(first.T @ second) ** 2 / 4
    assert overlap(first, second) == pytest.approx(right, rel=1e-12)
    with pytest.raises(SecateurError, match="of the same n"):
        principal_angles(first, second[:5])


def test_overlap_of_random_spaces_is_k_over_n() -> None:
    found = [
        overlap(RNG.standard_normal((30, 3)), RNG.standard_normal((30, 6))) for _ in range(300)
    ]
    assert abs(np.mean(found) - 6 / 30) < 4 * np.std(found) / 300**0.5


def test_what_a_layer_reads_most_of() -> None:
    u, v = (np.linalg.qr(RNG.standard_normal((n, 3)))[0] for n in (9, 7))
    kernel = (u * [5.0, 2.0, 0.1]) @ v.T  # (inputs, units)
    found = subspace(kernel, 2)
    assert overlap(found, u[:, :2]) == pytest.approx(1, abs=1e-12)
    with pytest.raises(SecateurError, match="this kernel of rank 3"):
        subspace(kernel, 4)
