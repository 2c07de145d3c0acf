"""Orders of removal and the spread of importance, against brute force and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.prune.concentration import concentration
from secateur.prune.orders import by_frame_potential, by_score, squared_cosines


def potential(weights: np.ndarray) -> float:
    """FP of the rows, from its definition."""
    norms = [np.linalg.norm(w) for w in weights]
    rows = [w / n if n > 0 else w for w, n in zip(weights, norms)]
    return float(sum(np.dot(a, b) ** 2 for a in rows for b in rows))


def naive(weights: np.ndarray, remove: str) -> tuple[list[int], list[float]]:
    """The potential of all but one, for every candidate, in every round.

    Without the smallest contribution the potential stays highest.
    """
    left, order = list(range(len(weights))), []
    potentials = [potential(weights)]
    while left:
        rest = [potential(weights[[j for j in left if j != i]]) for i in left]
        end = max(rest) if remove == "smallest" else min(rest)
        best = int(np.argmax(np.abs(np.asarray(rest) - end) < 1e-9))  # the last two always tie
        order.append(left.pop(best))
        potentials.append(rest[best])
    return order, potentials


@pytest.mark.parametrize("remove", ["smallest", "largest"])
@pytest.mark.parametrize(("m", "n"), [(17, 5), (9, 20), (1, 3)])
def test_the_incremental_order_is_the_naive_one(m, n, remove):
    weights = np.random.default_rng(m).standard_normal((m, n))
    weights[m // 2] *= 100  # directions count, not norms
    units, scores, potentials = by_frame_potential(weights, remove)
    order, expected = naive(weights, remove)
    assert units.tolist() == order
    np.testing.assert_allclose(potentials, expected, rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(-np.diff(potentials), 2 * scores - 1, rtol=1e-12)


def test_the_first_layer_of_a_network_at_its_size():
    """300 units of 784 weights; three rounds of the naive way at both ends, by its own Gram."""
    weights = np.random.default_rng(0).standard_normal((300, 784))
    weights[::7] += 3 * weights[0]
    for remove, choose in (("smallest", np.argmin), ("largest", np.argmax)):
        units, scores, potentials = by_frame_potential(weights, remove)
        assert sorted(units) == list(range(300))
        for k in (0, 1, 298):
            left = np.setdiff1d(np.arange(300), units[:k])
            x = np.corrcoef(weights[left]) if len(left) == 1 else _cosines(weights[left]) ** 2
            c = np.sum(np.atleast_2d(x), axis=1)
            assert left[choose(c)] == units[k]
            assert c[choose(c)] == pytest.approx(scores[k], rel=1e-10)
            assert np.sum(x) == pytest.approx(potentials[k], rel=1e-10)


def _cosines(weights: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(weights, axis=1)
    return weights @ weights.T / np.outer(norms, norms)


def test_the_potential_lies_between_its_bounds_and_meets_them():
    """max(m, m^2 / n) <= FP <= m^2; a tight frame, an orthonormal set and one line are the ends."""
    first = lambda weights: by_frame_potential(weights)[2][0]
    for m, n in ((12, 5), (5, 12)):
        value = first(np.random.default_rng(1).standard_normal((m, n)))
        assert max(m, m * m / n) < value < m * m
    turns = 2 * np.pi * np.arange(7) / 7
    assert first(np.stack([np.cos(turns), np.sin(turns)], 1)) == pytest.approx(49 / 2)  # tight
    assert first(np.eye(4, 9)) == 4
    assert first(np.outer([1.0, -2.0, 3.0], [1.0, 2.0])) == pytest.approx(9)  # sign is not seen


def test_ties_go_by_place_and_rounding_makes_no_order():
    assert by_frame_potential(np.eye(5, 8))[0].tolist() == [0, 1, 2, 3, 4]
    assert by_score(np.asarray([2.0, 1.0, 2.0, 1.0])).tolist() == [1, 3, 0, 2]
    assert by_score(np.asarray([2.0, 1.0, 2.0, 1.0]), "largest").tolist() == [0, 2, 1, 3]
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((8, 8)))[0]
    turned = np.eye(5, 8) @ turn  # the same geometry, with rounding in it
    for remove in ("smallest", "largest"):
        assert by_frame_potential(turned, remove)[0].tolist() == [0, 1, 2, 3, 4]


def test_units_without_weights_contribute_nothing():
    weights = np.random.default_rng(5).standard_normal((6, 4))
    weights[[1, 4]] = 0
    assert np.all(squared_cosines(weights)[[1, 4]] == 0)
    units, scores, potentials = by_frame_potential(weights)
    assert units[:2].tolist() == [1, 4]
    assert scores[:2].tolist() == [0, 0]
    assert potentials[0] == pytest.approx(potential(weights))
    assert potentials[2] == pytest.approx(potentials[0])
    assert by_frame_potential(weights, "largest")[0][-2:].tolist() == [1, 4]


def test_what_has_no_rank_is_refused():
    with pytest.raises(SecateurError, match=r"'smalest'.*Did you mean 'smallest'"):
        by_frame_potential(np.eye(2), "smalest")
    with pytest.raises(SecateurError, match="NaN or infinite"):
        by_frame_potential(np.full((2, 2), np.nan))
    with pytest.raises(SecateurError, match="unit 1 scores NaN"):
        by_score(np.asarray([0.0, np.nan]))


# -- how importance is spread ----------------------------------------------------------------------


def test_the_gini_coefficient_is_half_the_relative_mean_difference():
    values = np.random.default_rng(2).exponential(size=23)
    differences = np.abs(values[:, None] - values[None]).mean()
    found = concentration(values)
    assert found.gini == pytest.approx(differences / (2 * values.mean()))
    assert found.top_tenth == pytest.approx(np.sort(values)[-3:].sum() / values.sum())
    assert found.harmful == 0
    assert found.quantiles[3] == np.median(values)


def test_the_ends_of_concentration():
    equal = concentration(np.full(20, 0.1))
    assert equal.gini == pytest.approx(0, abs=1e-15)
    assert equal.top_tenth == pytest.approx(0.1)
    one = concentration(np.asarray([0.0, 0.0, 0.3, 0.0]))
    assert one.gini == pytest.approx(1 - 1 / 4)
    assert one.top_tenth == 1
    harm = concentration(np.asarray([-0.1, -0.2, 0.0]))
    assert (harm.gini, harm.top_tenth) == (None, None)
    assert harm.harmful == pytest.approx(2 / 3)
    for wrong in (np.asarray([]), np.asarray([np.nan]), np.eye(2)):
        with pytest.raises(SecateurError, match=r"give Importance\.drop"):
            concentration(wrong)
