"""Movement inside a mask, and the part of it that no gradient at the start spans."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import numpy as np
import pytest

from secateur.core.network import Network
from secateur.core.trees import apply_mask, flatten
from secateur.features.movement import movement, outside_span
from secateur.networks.mlp import mlp

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.usefixtures("x64")


def draw(*widths: int) -> Any:
    return {
        f"dense_{l}": {
            "kernel": RNG.standard_normal((a, b)),
            "bias": 0.3 * RNG.standard_normal(b),
        }
        for l, (a, b) in enumerate(pairwise(widths), start=1)
    }


def masked(params: Any, density: float = 0.6) -> Any:
    return {
        name: {"kernel": RNG.random(layer["kernel"].shape) < density, "bias": None}
        for name, layer in params.items()
    }


def test_movement_leaf_by_leaf_inside_the_mask() -> None:
    start, now = draw(5, 4, 3), draw(5, 4, 3)
    mask = masked(start)
    run = jax.jit(lambda a, b: movement(a, b, mask))
    found = run(start, now)
    squares, sizes = [], []
    for name, m in flatten(mask).items():
        a, b = flatten(start)[name], flatten(now)[name]
        a, b = (a, b) if m is None else (a[m], b[m])
        squares.append(np.sum((b - a) ** 2))
        sizes.append(np.sum(a**2))
        assert float(found.moved[name]) == pytest.approx(squares[-1] ** 0.5, rel=1e-13)
        assert float(found.relative(name)) == pytest.approx((squares[-1] / sizes[-1]) ** 0.5)
    assert float(found.total()) == pytest.approx(sum(squares) ** 0.5, rel=1e-13)
    assert float(found.relative()) == pytest.approx((sum(squares) / sum(sizes)) ** 0.5)
    alone = jax.eval_shape(lambda: movement(start, now, mask, masked=True))
    assert set(alone.moved) == {"dense_1/kernel", "dense_2/kernel"}
    start["dense_1"]["bias"] *= 0
    assert np.isnan(float(run(start, now).relative("dense_1/bias")))


def by_least_squares(net: Network, start: Any, now: Any, x: Any, mask: Any) -> tuple[float, int]:
    """|d - J^T a| at its smallest, the Jacobian written out over the surviving weights."""
    kept = [
        np.ones(np.size(p), bool) if m is None else np.ravel(m)
        for p, m in zip(flatten(start).values(), flatten(mask).values())
    ]
    columns = np.concatenate(kept)
    point = apply_mask(mask, start)
    jacobian = jax.jit(jax.jacrev(lambda p: net.apply(p, {}, x).ravel()))(point)
    count = np.size(x[:, 0]) * net.outputs
    j = np.concatenate([np.reshape(g, (count, -1)) for g in flatten(jacobian).values()], axis=1)
    j = j[:, columns]
    d = np.concatenate([np.ravel(p) for p in flatten(now).values()])[columns]
    d = d - np.concatenate([np.ravel(p) for p in flatten(point).values()])[columns]
    a = np.linalg.lstsq(j.T, d, rcond=1e-10)[0]
    return float(np.linalg.norm(d - j.T @ a)), int(np.linalg.matrix_rank(j, tol=1e-8))


@pytest.mark.long
def test_outside_the_span_is_what_least_squares_leaves() -> None:
    net = mlp(6, input_shape=(5,), outputs=2, activation="tanh")
    start, now = draw(5, 6, 2), draw(5, 6, 2)
    mask = masked(start)
    x = RNG.standard_normal((4, 5))
    x = np.concatenate([x, x[:1]])  # twice the same example: the kernel is singular
    found = outside_span(net, start, now, x, mask=mask)
    right, rank = by_least_squares(net, start, now, x, mask)
    assert found.outside == pytest.approx(right, rel=1e-10)
    assert found.rank == rank == 8
    assert 0.1 < found.share < 1
    assert outside_span(net, start, apply_mask(mask, start), x, mask=mask).share == 0


@pytest.mark.long
def test_descent_of_a_linear_network_stays_in_the_span_and_adam_does_not() -> None:
    """Gradients of the mean square, x^T (f - y), written out; signs are Adam's first steps."""
    net = mlp(input_shape=(9,), outputs=2)
    start = draw(9, 2)
    mask = masked(start, 0.8)
    kept = mask["dense_1"]["kernel"]
    x, y = RNG.standard_normal((4, 9)), RNG.standard_normal((4, 2))

    def descend(size: Any) -> Any:
        w, b = start["dense_1"]["kernel"] * kept, start["dense_1"]["bias"]
        for _ in range(20):
            gap = x @ w + b - y
            w, b = w - 0.02 * size(x.T @ gap * kept), b - 0.02 * size(gap.sum(axis=0))
        return {"dense_1": {"kernel": w, "bias": b}}

    now, signs = descend(lambda g: g), descend(np.sign)
    found = outside_span(net, start, now, x, mask=mask)
    assert found.moved > 0.1
    assert found.share < 1e-13
    assert outside_span(net, start, signs, x, mask=mask).share > 0.1
