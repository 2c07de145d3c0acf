"""The lazy limit: a scaled, centred network becomes kernel regression; uncentred it does not."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.features.laziness import laziness
from secateur.networks.committee import committee, draw, ntk
from secateur.networks.lazy import comparable_rate, scaled_output, with_scale

INPUTS, UNITS, EPSILON, EXAMPLES, STEPS, RATE = 10, 60, 0.5, 40, 800, 0.5
ALPHAS = np.array([8.0, 16.0, 32.0, 64.0])
LEAF = "committee"


def examples() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs to train and to test on, and labels of a quadratic teacher, of variance 1."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((EXAMPLES + 20, INPUTS)) / INPUTS**0.5
    teacher = rng.standard_normal((INPUTS, 4))
    h = x @ teacher
    y = np.mean(h + EPSILON / 2 * h**2, axis=1)
    return x[:EXAMPLES], x[EXAMPLES:], (y / np.std(y))[:EXAMPLES]


def trained(centred: bool) -> tuple[Any, Any, Any, np.ndarray]:
    """Gradient descent at all scales at once: (network, start, weights, outputs at test inputs)."""
    net = scaled_output(committee(INPUTS, UNITS, EPSILON), centred)
    x, test, y = examples()
    start = {LEAF: {"kernel": draw(jax.random.key(0), INPUTS, UNITS)}}
    inner = committee(INPUTS, UNITS, EPSILON).init(jax.random.key(0))[1]
    origin = (start, inner) if centred else None
    base = net.init(jax.random.key(0))[1]

    def loss(params: Any, stats: Any) -> jax.Array:
        return jnp.mean((net.apply(params, stats, x)[:, 0] - y) ** 2) / 2

    def one(alpha: jax.Array) -> Any:
        stats = with_scale(base, alpha, origin)
        rate = comparable_rate(RATE * UNITS, alpha=1.0) / alpha**2
        step = lambda _, p: jax.tree.map(lambda a, g: a - rate * g, p, jax.grad(loss)(p, stats))
        last = jax.lax.fori_loop(0, STEPS, step, start)
        return last, net.apply(last, stats, test)[:, 0]

    lasts, outputs = jax.jit(jax.vmap(one))(jnp.asarray(ALPHAS))
    each = [
        (with_scale(base, a, origin), jax.tree.map(lambda p, k=k: p[k], lasts))
        for k, a in enumerate(ALPHAS)
    ]
    return net, start, each, np.asarray(outputs)


def by_kernel(start: Any) -> np.ndarray:
    """The same descent of the linearised network, through its kernel in closed form: NumPy."""
    x, test, y = examples()
    kernel = start[LEAF]["kernel"]
    among = np.asarray(ntk(kernel, x, epsilon=EPSILON))
    across = np.asarray(ntk(kernel, test, x, epsilon=EPSILON))
    f, g = np.zeros(EXAMPLES), np.zeros(len(test))
    for _ in range(STEPS):
        pull = RATE * (y - f) / EXAMPLES
        f, g = f + among @ pull, g + across @ pull
    return g


def slopes(values: list[float]) -> np.ndarray:
    return np.diff(np.log2(values))  # a step in ALPHAS is a factor of 2


@pytest.mark.long
@pytest.mark.usefixtures("x64")
def test_the_lazy_limit_is_kernel_regression_and_movement_falls_as_one_over_alpha() -> None:
    net, start, each, outputs = trained(centred=True)
    right = by_kernel(start)
    gaps = np.linalg.norm(outputs - right, axis=1) / np.linalg.norm(right)
    assert gaps[-1] < 1e-2
    np.testing.assert_allclose(slopes(list(gaps)), -1, atol=0.1)
    found = [
        laziness(net, start, last, examples()[0], stats=stats, span=True) for stats, last in each
    ]
    np.testing.assert_allclose(slopes([m.kernel for m in found]), -1, atol=0.1)
    np.testing.assert_allclose(slopes([m.weights for m in found]), -1, atol=0.1)
    np.testing.assert_allclose(slopes([m.centred_rotation for m in found]), -2, atol=0.2)
    np.testing.assert_allclose(slopes([m.rotation for m in found]), -2, atol=0.2)
    shares = [m.outside for m in found if m.outside is not None]
    assert len(shares) == 4
    assert np.all(slopes(shares) < -0.8)  # movement leaves the span less and less


@pytest.mark.long
@pytest.mark.usefixtures("x64")
def test_without_centring_a_large_scale_is_not_lazy() -> None:
    net, start, each, _ = trained(centred=False)
    found = [laziness(net, start, last, examples()[0], stats=stats) for stats, last in each]
    assert found[-1].kernel > 0.8 * found[0].kernel
    assert found[-1].weights > 0.8 * found[0].weights
    assert found[-1].kernel > 0.05
