"""The limit of NTK-SAP against its definition, without any sampling.

Weights of independent fair signs are symmetric, so the closed form holds for them, and the mean
over all of them is a finite sum: both sides are exact, and are compared in double precision.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.core.trees import flatten
from secateur.networks.layers import average_pool, conv, dense, flat
from secateur.prune.criteria import ntk_sap
from secateur.prune.criteria.ntk_sap import NtkSap
from secateur.prune.problem import Problem
from secateur.structure.chain import Chain

Shapes = dict[str, tuple[int, ...]]
KEY = 0


def net_of(shapes: Shapes, apply: Callable[[Any, Any], Any], input_shape: Any) -> Network:
    """Kernels alone; the values of `init` are not read, as the limit knows their law."""
    init = lambda key: ({k: {"kernel": jnp.ones(s)} for k, s in shapes.items()}, {})
    outputs = list(shapes.values())[-1][-1]
    run = lambda p, stats, x: apply(p, x)
    train = lambda p, stats, x, key: (apply(p, x), stats)
    return Network("net", input_shape, outputs, init, run, train)


def plain(p: Any, x: Any) -> Any:
    h = jax.nn.relu(conv(p["conv_1"], x, padding="VALID"))
    h = jax.nn.relu(conv(p["conv_2"], h, padding="VALID"))
    return dense(p["dense_1"], flat(h))


def scaled(p: Any, x: Any) -> Any:
    """As `plain`, with coefficients for each channel that no draw changes, as of a frozen norm."""
    h = jax.nn.relu(conv(p["conv_1"], x, padding="VALID") * np.array([0.5, 3.0]))
    h = jax.nn.relu(conv(p["conv_2"], h, padding="VALID") / 4)
    return dense(p["dense_1"], flat(h))


def pooled(p: Any, x: Any) -> Any:
    h = average_pool(jax.nn.relu(conv(p["conv_1"], x, padding=0)), 2)
    return dense(p["dense_1"], flat(h))


# Ten weights: 1,024 sums of signs.
CONV: Shapes = {"conv_1": (2, 1, 1, 2), "conv_2": (2, 1, 2, 1), "dense_1": (2, 1)}
POOL: Shapes = {"conv_1": (1, 1, 2, 2), "dense_1": (4, 1)}


def gates_and_images(net: Network) -> tuple[Any, Any]:
    """Real gates of unequal size, one of them 0, and unequal inputs: no tie is left to chance."""
    rng = np.random.default_rng(1)
    gates = {
        k: {"kernel": jnp.asarray(rng.uniform(0.5, 1.5, p["kernel"].shape))}
        for k, p in net.init(None)[0].items()
    }
    first = gates["conv_1"]["kernel"]
    gates["conv_1"]["kernel"] = first.at[(0,) * first.ndim].set(0)
    return gates, jnp.asarray(rng.uniform(-1, 1, (2, *net.input_shape)))


def compiled(run: Callable[..., Any], *given: Any) -> Any:
    """One call, without optimisations that take longer than they save."""
    program = jax.jit(run).lower(*given)
    return program.compile(compiler_options={"xla_backend_optimization_level": 0})(*given)


def mean_over_signs(net: Network, gates: Any, x: Any) -> tuple[float, dict[str, np.ndarray]]:
    """E tr Theta and E m d tr Theta / dm over all signs of all weights, in full."""
    flat_gates, tree = jax.tree.flatten(gates)
    sizes = [g.size for g in flat_gates]

    def trace(gates: Any, signs: Any) -> Any:
        parts = jnp.split(signs, np.cumsum(sizes)[:-1])
        theta = tree.unflatten([s.reshape(g.shape) for s, g in zip(parts, flat_gates)])
        through = lambda theta: net.apply(jax.tree.map(jnp.multiply, gates, theta), {}, x)
        return sum(jnp.sum(j**2) for j in jax.tree.leaves(jax.jacrev(through)(theta)))

    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=sum(sizes))))
    one_by_one = lambda gates, signs: jax.lax.map(
        lambda s: jax.value_and_grad(trace)(gates, s), signs
    )
    both = compiled(one_by_one, gates, signs)
    value, slope = jax.tree.map(lambda a: np.asarray(a).mean(0), both)
    return float(value), flatten(jax.tree.map(lambda g, s: np.asarray(g) * s, gates, slope))


def limit(net: Network, gates: Any, x: Any) -> dict[str, np.ndarray]:
    """The scores over the trace."""
    sap = NtkSap(estimator="limit", inputs="data", examples=len(x), biases="zero")
    params, stats = net.init(None)
    params = jax.tree.map(lambda p: p.astype(x.dtype), params)
    problem = Problem(net, stats, images=x)
    run = lambda gates: sap.saliency(problem, params, gates, jax.random.key(KEY))[1]
    return flatten(compiled(run, gates))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("apply", [plain, scaled])
def test_the_limit_is_the_mean_over_all_signs_and_fixed_coefficients_enter_squared(
    apply: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = net_of(CONV, apply, (4, 1, 1))
    gates, x = gates_and_images(net)
    if apply is scaled:  # the reader lets no coefficient through, so it is asked behind its back
        with pytest.raises(SecateurError, match="goes through mul"):
            limit(net, gates, x)
        monkeypatch.setattr(ntk_sap, "chain", lambda *given: Chain((), 0, frozenset()))
    value, scores = mean_over_signs(net, gates, x)
    found = limit(net, gates, x)
    assert set(found) == set(scores)
    for name, s in scores.items():
        np.testing.assert_allclose(value * found[name], s, rtol=1e-12, atol=1e-13 * value)
        assert s.sum() == pytest.approx(2 * value, rel=1e-12)


@pytest.mark.usefixtures("x64")
def test_average_pooling_is_refused_as_no_power_of_its_coefficients_gives_the_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is pooled is positive together and shares the weight above it, so that products of
    different paths have a mean: each layer carries twice the trace, but shared out otherwise."""
    net = net_of(POOL, pooled, (2, 4, 2))
    gates, x = gates_and_images(net)
    with pytest.raises(SecateurError, match="goes through average_pool"):
        limit(net, gates, x)
    value, scores = mean_over_signs(net, gates, x)
    monkeypatch.setattr(ntk_sap, "chain", lambda *given: Chain((), 0, frozenset()))
    squared = limit(net, gates, x)
    flow = ntk_sap.log_flow
    monkeypatch.setattr(
        ntk_sap, "log_flow", lambda *given, **options: flow(*given, **{**options, "power": 1})
    )
    straight = limit(net, gates, x)
    for found in (squared, straight):
        assert sum(scores["dense_1/kernel"].ravel()) == pytest.approx(2 * value, rel=1e-12)
        off = np.abs(value * found["dense_1/kernel"] - scores["dense_1/kernel"]).max()
        assert off > 0.01 * value
