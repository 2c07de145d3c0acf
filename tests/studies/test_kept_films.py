"""A study's films: rows, projections and cosines against sums written out, refusals."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.studies import films, xord

STEPS = [0, 1, 5]


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(3)


def kernels(draw: np.random.Generator, *shape: int) -> np.ndarray:
    return draw.normal(size=(len(STEPS), *shape))


def one(**more: Any) -> dict[str, np.ndarray]:
    return films.film(0, STEPS, {"loss": [3.0, 2.0, 1.0]}, **more)


def test_vectors_of_the_plane_are_kept_as_they_are(draw: np.random.Generator) -> None:
    w = kernels(draw, 2, 5)
    made = films.film(4, STEPS, {"training loss": [1, 2, 3]}, vectors={"filters": w})
    assert sorted(made) == ["film:4:loss:training loss", "film:4:steps", "film:4:vectors:filters"]
    for t, unit in itertools.product(range(3), range(5)):
        np.testing.assert_array_equal(
            made["film:4:vectors:filters"][t, unit], w[t, :, unit].astype(np.float32)
        )


def test_vectors_on_a_line_lie_in_the_plane(draw: np.random.Generator) -> None:
    made = one(vectors={"a": (w := kernels(draw, 1, 4))})["film:0:vectors:a"]
    assert made.shape == (3, 4, 2)
    np.testing.assert_allclose(made[..., 0], w[:, 0], rtol=1e-6)
    assert not made[..., 1].any()


def test_norms_and_cosines_are_those_of_the_whole_filters(draw: np.random.Generator) -> None:
    w = kernels(draw, 3, 3, 2, 7)
    w[:, ..., 6] = 0  # a unit without weights has no direction
    made = one(vectors={"conv": w}, coordinates=2)
    for t, i, j in itertools.product(range(3), range(7), range(7)):
        a, b = w[t, ..., i].ravel(), w[t, ..., j].ravel()
        length = np.sqrt(sum(a * a)), np.sqrt(sum(b * b))
        cosine = sum(a * b) / (length[0] * length[1]) if all(length) else 0
        assert made["film:0:cosines:conv"][t, i, j] == pytest.approx(cosine, abs=5e-4)
        assert made["film:0:norms:conv"][t, i] == pytest.approx(length[0], rel=1e-6)


@pytest.mark.parametrize(("units", "weights"), [(4, 30), (40, 6), (2, 50)])
def test_the_projection_is_orthonormal_and_holds_the_most(
    draw: np.random.Generator, units: int, weights: int
) -> None:
    v = draw.normal(size=(3, units, weights)) * np.linspace(1, 4, weights)
    basis = films.principal(v, 5)
    np.testing.assert_allclose(basis.T @ basis, np.eye(5), atol=1e-12)
    held = np.sum((v @ basis) ** 2, axis=(0, 1))
    singular = np.linalg.svd(v.reshape(-1, weights), compute_uv=False)[:5]
    np.testing.assert_allclose(held, singular**2, rtol=1e-9)
    largest = [column[np.abs(column).argmax()] for column in basis.T]
    assert min(largest) > 0


@pytest.mark.parametrize("units", [1, 9])
def test_vectors_in_few_directions_still_get_a_basis(units: int) -> None:
    v = np.zeros((3, units, 20))
    v[..., 0] = 1
    basis = films.principal(v, 6)
    np.testing.assert_allclose(basis.T @ basis, np.eye(6), atol=1e-12)
    assert np.abs(basis[:, 0]).argmax() == 0


def test_coordinates_are_of_that_basis_and_lengths_do_not_grow(draw: np.random.Generator) -> None:
    w = kernels(draw, 12, 8)
    made = one(vectors={"a": w}, coordinates=3)
    v = w.swapaxes(1, 2)
    np.testing.assert_allclose(
        made["film:0:vectors:a"], v @ films.principal(v, 3), rtol=1e-5, atol=1e-6
    )
    short = np.linalg.norm(made["film:0:vectors:a"], axis=-1)
    assert np.all(short <= made["film:0:norms:a"] * (1 + 1e-6))


def test_wide_layers_keep_their_first_units_and_their_sides(draw: np.random.Generator) -> None:
    w, side = kernels(draw, 3, 9), np.where(np.arange(9) % 2, -1.0, 1.0)
    made = one(vectors={"a": w}, signs={"a": side}, units=4)
    assert made["film:0:cosines:a"].shape == (3, 4, 4)
    np.testing.assert_array_equal(made["film:0:sign:a"], [1, -1, 1, -1])
    np.testing.assert_allclose(made["film:0:norms:a"], np.linalg.norm(w, axis=1)[:, :4], rtol=1e-6)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_grams_keep_three_digits_whatever_their_size(
    draw: np.random.Generator, size: float
) -> None:
    h = draw.normal(size=(3, 6, 4))
    g = size * h @ h.swapaxes(1, 2)
    made = one(grams={"a": {"ticket": g, "dense": 2 * g}}, labels=[0, 0, 1, 1, 1, 3])
    np.testing.assert_allclose(made["film:0:gram:a:ticket"], g, rtol=5e-4, atol=1e-6 * size)
    assert made["film:0:labels"].tolist() == [0, 0, 1, 1, 1, 3]


def test_what_does_not_fit_is_one_sentence(draw: np.random.Generator) -> None:
    good = {"loss": [3.0, 2.0, 1.0]}
    h = draw.normal(size=(3, 4, 2))
    g = h @ h.swapaxes(1, 2)
    wrong: list[tuple[str, tuple, dict]] = [
        ("rise", ([0, 5, 5], good), {}),
        ("no loss", (STEPS, {}), {}),
        (r"expected \(3,\)", (STEPS, {"loss": [1.0]}), {}),
        ("not finite", (STEPS, {"loss": [1.0, np.nan, 2.0]}), {}),
        (r"expected \(3, \.\.\., units\)", (STEPS, good), {"vectors": {"a": np.ones((2, 3, 4))}}),
        ("expected .a unit", (STEPS, good), {"signs": {"a": [1, -1]}}),
        (r"expected \(p, 2\)", (STEPS, good), {"patterns": {"a": np.ones((4, 3))}}),
        (r"expected \(3, n, n\)", (STEPS, good), {"grams": {"a": {"ticket": np.ones((3, 4, 5))}}}),
        ("no Gram matrix", (STEPS, good), {"grams": {"a": {"ticket": -g}}}),
        ("no Gram matrix", (STEPS, good), {"grams": {"a": {"ticket": g * (1 - np.eye(4))}}}),
        ("rising order", (STEPS, good), {"grams": {"a": {"t": g}}, "labels": [1, 0, 0, 0]}),
        ("rising order", (STEPS, good), {"grams": {"a": {"t": g}}, "labels": [0, 1]}),
        ("rising order", (STEPS, good), {"labels": [0, 1]}),
    ]
    for words, positional, named in wrong:
        with pytest.raises(SecateurError, match=words):
            films.film(0, *positional, **named)


def test_to_make_films_loads_no_jax() -> None:
    import subprocess

    code = "import sys, secateur.studies.films; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- the films of xord -------------------------------------------------------------------------


@pytest.mark.parametrize("rest", [0, 1, 19, 20, 21, 61, 978, 25_830])
def test_frames_of_xord_rise_to_the_rest_and_miss_no_early_step(rest: int) -> None:
    steps = xord.moments(rest)
    assert (steps[0], steps[-1]) == (0, rest)
    assert np.all(np.diff(steps) > 0)
    assert set(range(min(rest, 20) + 1)) <= set(steps.tolist())
    assert len(steps) <= 61


@pytest.mark.long
def test_a_film_of_xord_ends_where_its_network_does(tmp_path: Path) -> None:
    import jax
    import msgspec

    from secateur.core.keys import key
    from secateur.data import toys
    from secateur.lab.progress import Progress
    from secateur.lab.run import run
    from secateur.lab.store import Store
    from secateur.networks.xord import draw
    from secateur.report.films import read
    from secateur.train.xord import separate

    fields = msgspec.structs.replace(xord.presets["quick"], widths=(3,), runs=4, steps=500)
    store, cells = Store(tmp_path), xord.cells(fields, (0, 1), "")
    run(cells, xord.work, store, "serial", progress=Progress(quiet=True))
    first, second = (store.read(cell) for cell in cells)
    assert "films" not in second.values
    assert not second.arrays  # one film a width
    [kept] = read(first.values, first.arrays, 0)
    a, b = jax.random.split(jax.random.split(key(0, "xord"), 4)[0])
    x, y = toys.xord(b, fields.examples, fields.pairs, fields.diverse)
    begun = draw(a, 3)
    rows = 500
    end = separate(begun, x, y, rate=fields.c_rate / 3, gamma=8.0, steps=500, rows=rows)
    path = np.concatenate([end.path[side]["kernel"] for side in ("for", "against")], axis=-1)
    steps = kept.arrays["steps"]
    np.testing.assert_allclose(
        kept.arrays["vectors:filters"], path[steps].swapaxes(1, 2), rtol=1e-4, atol=1e-6
    )
    assert steps[-1] == min(500, int(end.steps))
    assert kept.arrays["loss:training loss"][-1] == pytest.approx(
        float(end.loss), rel=1e-4, abs=1e-6
    )
    assert kept.arrays["sign:filters"].tolist() == [1, 1, 1, -1, -1, -1]
