"""Frame potentials: definition, bounds and what they are by chance."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.features import frames
from secateur.features.frames import bounds, permuted_potentials

# Compiled, as in records.
words = ("normalise", "units", "lengths")
frame_potential = jax.jit(frames.frame_potential, static_argnames=words)
expected = jax.jit(frames.expected, static_argnames="baseline")
mean_inner_product = jax.jit(frames.mean_inner_product)
RNG = np.random.default_rng(0)
pytestmark = pytest.mark.usefixtures("x64")


def by_loops(kernel: np.ndarray) -> float:
    units = [kernel[..., k].ravel() for k in range(kernel.shape[-1])]
    units = [u / np.sqrt(u @ u) for u in units if np.any(u)]
    return sum((u @ v) ** 2 for u, v in itertools.product(units, units))


@pytest.mark.parametrize("shape", [(4, 9), (3, 3, 2, 5)])
def test_potential_by_its_definition(shape: tuple[int, ...]) -> None:
    kernel = RNG.standard_normal(shape)
    found = float(frame_potential(kernel))
    assert found == pytest.approx(by_loops(kernel), rel=1e-13)
    m, n = shape[-1], int(np.prod(shape[:-1]))
    low, high, chance = bounds(m, n)
    assert low <= found <= high
    excess = (found - chance) / (m**2 - chance)
    assert float(frame_potential(kernel, normalise="excess")) == pytest.approx(excess, rel=1e-12)
    x = [kernel[..., k].ravel() for k in range(m)]
    pairs = [
        abs(x[i] @ x[j]) / np.linalg.norm(x[i]) / np.linalg.norm(x[j])
        for i in range(m)
        for j in range(m)
        if i != j
    ]
    assert float(mean_inner_product(kernel)) == pytest.approx(np.mean(pairs), rel=1e-12)
    assert float(frame_potential(kernel, lengths=True)) == pytest.approx(
        sum((u @ v) ** 2 for u in x for v in x), rel=1e-12
    )


def test_it_does_not_see_rotations_lengths_signs_or_order() -> None:
    kernel = RNG.standard_normal((4, 9))
    turn = np.linalg.qr(RNG.standard_normal((4, 4)))[0]
    other = (turn @ kernel)[:, RNG.permutation(9)] * RNG.choice([-2.0, 0.5], 9)
    assert float(frame_potential(other)) == pytest.approx(float(frame_potential(kernel)), rel=1e-12)


def test_bounds_are_reached() -> None:
    orthonormal = np.linalg.qr(RNG.standard_normal((7, 4)))[0]
    assert float(frame_potential(orthonormal)) == pytest.approx(bounds(4, 7).lowest, rel=1e-12)
    angles = 2 * np.pi * np.arange(3) / 3  # the Mercedes-Benz frame, tight
    tight = np.stack([np.cos(angles), np.sin(angles)])
    assert float(frame_potential(tight)) == pytest.approx(bounds(3, 2).lowest, rel=1e-12)
    line = np.outer(RNG.standard_normal(5), RNG.choice([-1.0, 2.0], 6))
    assert float(frame_potential(line)) == pytest.approx(bounds(6, 5).highest, rel=1e-12)
    assert float(frame_potential(line, normalise="excess")) == pytest.approx(1, rel=1e-12)


def test_units_without_weights_are_counted_out() -> None:
    kernel = RNG.standard_normal((4, 9))
    mask = np.ones((4, 9), bool)
    mask[:, 5:] = False
    alone = by_loops(kernel[:, :5])
    chance = bounds(5, 4).random
    for normalise, right in (
        ("none", alone),
        ("m2", alone / 25),
        ("excess", (alone - chance) / (25 - chance)),
    ):
        found = frame_potential(kernel, mask, normalise=normalise)
        assert float(found) == pytest.approx(right, rel=1e-12)
    published = frame_potential(kernel, mask, normalise="m2", units="all")
    assert float(published) == pytest.approx(alone / 81, rel=1e-12)
    assert float(frame_potential(0 * kernel, mask, normalise="m2")) == 0
    mask[:, 1:] = False
    assert float(frame_potential(kernel, mask, normalise="excess")) == 0
    assert float(mean_inner_product(kernel * mask)) == 0


def test_expected_potential_of_random_directions_on_their_supports() -> None:
    """The mean over 1,000 draws, to four of its standard errors."""
    mask = RNG.random((10, 7)) < 0.5
    mask[:, 3] = False
    found = [by_loops(mask * RNG.standard_normal(mask.shape)) for _ in range(1000)]
    right = float(expected(mask * 1.0, mask))
    assert abs(np.mean(found) - right) < 4 * np.std(found) / 1000**0.5
    assert abs(right - bounds(6, 10).random) > 0.1  # the mask matters
    full = float(expected(np.ones((10, 7))))
    assert full == pytest.approx(bounds(7, 10).random, rel=1e-13)


def test_expected_potential_of_permuted_weights() -> None:
    """All orders of a small kernel one by one; then the closed form against permutations."""
    kernel = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0], [0.0, 1.0]])
    mask = kernel != 0
    orders = [
        by_loops(np.stack([[*p, 0.0], q], axis=1))
        for p in itertools.permutations([1.0, 3.0, 0.5])
        for q in itertools.permutations([2.0, -1.0, 4.0, 1.0])
    ]
    found = float(expected(kernel, mask, baseline="permuted"))
    assert found == pytest.approx(np.mean(orders), rel=1e-12)
    weights = RNG.random((12, 5)) * (RNG.random((12, 5)) < 0.6)  # of one sign
    found = permuted_potentials(weights, jax.random.key(0), 1000)
    right = float(expected(weights, baseline="permuted"))
    assert abs(found.mean() - right) < 4 * found.std() / 1000**0.5
    assert right > float(expected(weights)) + 1


def test_what_is_no_potential_is_refused() -> None:
    kernel = RNG.standard_normal((4, 3))
    with pytest.raises(SecateurError, match="normalisation of the frame potential 'm'"):
        frame_potential(kernel, normalise="m")
    with pytest.raises(SecateurError, match="only directions have an excess"):
        frame_potential(kernel, normalise="excess", lengths=True)
    with pytest.raises(SecateurError, match="no baseline"):
        expected(kernel, baseline="shuffled")
