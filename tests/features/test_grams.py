"""Gram matrices and their distances, against loops in NumPy."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.features.grams import Gram, gram_distance, gram_distances, grams, over_training
from secateur.networks.mlp import mlp

RNG = np.random.default_rng(0)
NET = mlp(5, 4, input_shape=(6,), outputs=3)


@pytest.mark.usefixtures("x64")
def test_grams_of_a_network_by_their_definition() -> None:
    widths = (6, 5, 4, 3)
    params = {
        f"dense_{l}": {
            "kernel": RNG.standard_normal((widths[l - 1], widths[l])),
            "bias": np.zeros(widths[l]),
        }
        for l in (1, 2, 3)
    }
    x = RNG.standard_normal((7, 6))
    h = x @ params["dense_1"]["kernel"]  # Kumar's X W^T
    form = Gram(side="post", centred=True, per_feature=True, per_example=True)

    @jax.jit
    def both(params: Any) -> Any:
        one = grams(NET, params, {}, x, form, layers=["dense_1/kernel"])
        return grams(NET, params, {}, x), one

    found, one = jax.tree.map(np.asarray, both(params))
    assert set(found) == {"dense_1/kernel", "dense_2/kernel", "dense_3/kernel"}
    for i in range(7):
        for j in range(7):
            entry = sum(h[i, k] * h[j, k] for k in range(5))
            assert found["dense_1/kernel"][i, j] == pytest.approx(entry, rel=1e-12, abs=1e-13)
    a = np.maximum(h, 0)
    middle = np.eye(7) - 1 / 7
    right = middle @ a @ a.T @ middle / 5 / 7
    np.testing.assert_allclose(one["dense_1/kernel"], right, atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_a_grams_eigenvalues_do_not_see_order_of_units_or_rotations() -> None:
    h = RNG.standard_normal((6, 9))
    turn = np.linalg.qr(RNG.standard_normal((9, 9)))[0]
    for other in (h[:, RNG.permutation(9)], h @ turn):
        for form in (Gram(), Gram(centred=True)):
            np.testing.assert_allclose(form.of(other), form.of(h), atol=1e-12)


def test_distances_of_scaled_and_turned_grams() -> None:
    h, g = RNG.standard_normal((8, 3)), RNG.standard_normal((8, 4))
    full = h @ h.T
    found = gram_distance(0.3 * full, full)  # a ticket that is 0.3 of its parent
    assert found.raw == pytest.approx(0.7 * np.linalg.norm(full), rel=1e-13)
    assert found.relative == pytest.approx(0.7, rel=1e-13)
    assert found.alignment == pytest.approx(1, abs=1e-13)
    assert found.centred_alignment == pytest.approx(1, abs=1e-13)
    other = gram_distance(g @ g.T, full)
    square = sum((g @ g.T - full)[i, j] ** 2 for i in range(8) for j in range(8))
    assert other.raw == pytest.approx(square**0.5, rel=1e-13)
    cka = np.linalg.norm(g.T @ h) ** 2 / np.linalg.norm(g.T @ g) / np.linalg.norm(h.T @ h)
    assert other.alignment == pytest.approx(cka, rel=1e-12)
    # A dead layer says the same of all examples: its centred Gram is zero.
    dead = gram_distance(np.ones((8, 8)), full)
    assert dead.centred_alignment is None
    assert dead.alignment == pytest.approx(full.sum() / 8 / np.linalg.norm(full), rel=1e-12)
    assert gram_distance(full, 0 * full).relative is None


def test_distances_over_training_and_by_layer() -> None:
    a, b = RNG.standard_normal((3, 5, 5)), RNG.standard_normal((3, 5, 5))
    found = over_training(a, b)
    assert found["raw"].shape == (3,)
    assert found["relative"][1] == gram_distance(a[1], b[1]).relative
    layers = gram_distances({"one": a[0], "two": a[1]}, {"two": b[1], "three": b[2]})
    assert layers == {"two": gram_distance(a[1], b[1])}
    with pytest.raises(SecateurError, match="same steps"):
        over_training(a, b[:2])
    with pytest.raises(SecateurError, match="no layer in common"):
        gram_distances({"one": a[0]}, {"two": b[0]})
    with pytest.raises(SecateurError, match="cannot be compared"):
        gram_distance(a[0], b[0][:4, :4])
