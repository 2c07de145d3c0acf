"""Products of the tangent kernel by layers against J J' from JAX's own Jacobian."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.kernels import products

pytestmark = pytest.mark.usefixtures("x64", "strict")


def net(w: list[Any], x: jax.Array) -> jax.Array:
    h = jax.nn.relu(x @ w[0] + w[1])
    return h @ w[2] + w[3]


jacobian = jax.jit(jax.jacrev(net))


# Fewer and more than twice the inputs; whole, half and empty.
@pytest.mark.parametrize(("n", "density"), [(4, 1.0), (13, 1.0), (13, 0.5), (13, 0.0)])
def test_products_and_trace_are_those_of_the_jacobian(n: int, density: float) -> None:
    rng = np.random.default_rng(n)
    w = [rng.standard_normal(shape) for shape in [(6, 5), (5,), (5, 3), (3,)]]
    x = rng.standard_normal((n, 6))
    mask = None if density == 1 else rng.random((6, 5)) < density
    if mask is not None:
        w[0] = w[0] * mask
    # Two of the first layer's biases do not count; the last one's kernel comes as columns.
    some = np.array([True, False, True, True, False])

    before = x @ w[0] + w[1]
    hidden = np.maximum(before, 0)
    last = np.broadcast_to(np.eye(3), (n, 3, 3))
    first = w[2].T[None] * (before > 0)[:, None]
    columns = np.einsum("nj,nci->ncji", hidden, last).reshape(n, 3, 15)
    found = products.operator_of(
        [
            products.layer(x, first, mask=mask, bias=some),
            products.layer(hidden, last, mask=np.zeros((5, 3))),
            products.ByColumns(jnp.asarray(columns)),
        ]
    )

    each = [np.asarray(j).reshape(n * 3, -1) for j in jacobian(w, x)]
    kept = [slice(None) if mask is None else mask.ravel(), some, slice(None), slice(None)]
    whole = np.concatenate([j[:, k] for j, k in zip(each, kept)], axis=1)
    theta = whole @ whole.T
    np.testing.assert_allclose(found @ np.eye(3 * n), theta, atol=1e-12 * np.abs(theta).max())
    assert found.trace == pytest.approx(np.trace(theta), rel=1e-12)


def test_forms_are_chosen_by_what_they_multiply() -> None:
    few, many, felt = np.ones((4, 3)), np.ones((9, 3)), np.ones((9, 2, 5))
    assert isinstance(products.layer(few, felt[:4]), products.ByGram)
    assert isinstance(products.layer(many, felt), products.ByWeights)
    assert isinstance(products.layer(few, felt[:4], mask=np.ones((3, 5))), products.ByWeights)


def test_single_precision_sums_the_trace_in_double() -> None:
    rng = np.random.default_rng(0)
    entered, felt = rng.standard_normal((9, 3)), rng.standard_normal((9, 2, 5))
    with jax.enable_x64(False):
        found = products.operator_of([products.layer(entered, felt)])
    assert found.dtype == jnp.float32
    through = (entered**2).sum(1) + 1
    assert found.trace == pytest.approx(through @ (felt**2).sum((1, 2)), rel=1e-6)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SecateurError, match=r"do not fit: \(4, 3\), \(5, 2, 6\)"):
        products.layer(np.ones((4, 3)), np.ones((5, 2, 6)))
    with pytest.raises(SecateurError, match="do not fit"):
        products.layer(np.ones((4, 3)), np.ones((4, 2, 6)), mask=np.ones((6, 3)))
    with pytest.raises(SecateurError, match="no leaves"):
        products.operator_of([])
