"""Fully connected networks: counts, functions, initialisers."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.trees import flatten, sizes
from secateur.networks.layers import INITIALISERS
from secateur.networks.mlp import ACTIVATIONS, lenet_300_100, mlp


def parameters(net, seed=0):
    return jax.tree.map(np.asarray, net.init(jax.random.key(seed))[0])


def test_lenet_300_100_has_the_papers_weights():
    """266,200 weights may be pruned (Frankle & Carbin 2019, figure 2); 410 biases come on top."""
    net = lenet_300_100()
    shapes = jax.eval_shape(net.init, jax.random.key(0))[0]
    zeros = jax.tree.map(lambda a: np.zeros(a.shape), shapes)
    counts = sizes(net.prunable(zeros))
    assert counts == {"dense_1/kernel": 235_200, "dense_2/kernel": 30_000, "dense_3/kernel": 1_000}
    assert sum(counts.values()) == 266_200
    assert sum(leaf.size for leaf in jax.tree.leaves(zeros)) == 266_610
    assert (net.input_shape, net.outputs, net.name) == ((28, 28, 1), 10, "mlp-300-100")


@pytest.mark.parametrize("hidden", [(), (4,), (5, 3)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_an_mlp_is_the_formula(hidden, activation, bias):
    net = mlp(*hidden, input_shape=(2, 3), outputs=2, activation=activation, bias=bias)
    phi = {"relu": lambda z: np.maximum(z, 0), "tanh": np.tanh, "linear": lambda z: z}[activation]
    rng = np.random.default_rng(0)
    p = {k: rng.standard_normal(v.shape) for k, v in flatten(parameters(net)).items()}
    x = rng.standard_normal((4, 2, 3))
    h = x.reshape(4, 6)
    for l in range(1, len(hidden) + 2):
        h = h @ p[f"dense_{l}/kernel"] + (p[f"dense_{l}/bias"] if bias else 0)
        h = phi(h) if l <= len(hidden) else h
    tree: dict[str, dict[str, jax.Array]] = {}
    for k, v in p.items():
        layer, leaf = k.split("/")
        tree.setdefault(layer, {})[leaf] = jnp.asarray(v, jnp.float32)
    assert bias == any("bias" in k for k in p)
    found = net.apply(tree, {}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, h, rtol=2e-5, atol=2e-5)
    logits, stats = net.train(tree, {}, jnp.asarray(x, jnp.float32), jax.random.key(0))
    np.testing.assert_array_equal(logits, found)
    assert stats == {}


MOMENTS = {  # variance, and the fourth moment over the squared variance
    "glorot_normal": (lambda i, o: 2 / (i + o), 3.0),
    "glorot_uniform": (lambda i, o: 2 / (i + o), 1.8),
    "kaiming_normal": (lambda i, o: 2 / i, 3.0),
    "kaiming_uniform": (lambda i, o: 2 / i, 1.8),
    "kaiming_normal_fan_out": (lambda i, o: 2 / o, 3.0),
    "torch_uniform": (lambda i, o: 1 / (3 * i), 1.8),
    "variance_scaling": (lambda i, o: 1 / i, 2.3655),  # cut at two deviations
    "small_normal": (lambda i, o: 1e-4, 3.0),
}


@pytest.mark.parametrize("name", INITIALISERS)
def test_initialisers_have_the_moments_of_their_formulas(name):
    """z-tests of mean, variance and shape on 80,000 weights; 4.5 sigma: a false alarm in 10,000.

    A truncated normal (Keras, Flax) has a kurtosis of 2.37 where this one has 3.
    """
    assert set(MOMENTS) == set(INITIALISERS)
    fan_in, fan_out = 400, 200
    w = np.asarray(INITIALISERS[name](jax.random.key(1), (fan_in, fan_out)), np.float64)
    variance, kurtosis = MOMENTS[name][0](fan_in, fan_out), MOMENTS[name][1]
    n = w.size
    assert abs(w.mean()) < 4.5 * math.sqrt(variance / n)
    spread = variance * math.sqrt((kurtosis - 1) / n)
    assert abs((w**2).mean() - variance) < 4.5 * spread
    eighth = {3.0: 105.0, 1.8: 9.0, 2.3655: 27.19}[kurtosis]  # E x^8 of unit variance
    measured = (w**4).mean() / variance**2
    assert abs(measured - kurtosis) < 4.5 * math.sqrt((eighth - kurtosis**2) / n)
    if name.endswith("uniform"):
        assert np.abs(w).max() <= math.sqrt(3 * variance)
    # Rows and columns alike: no unit is favoured.
    rows = (w**2).mean(axis=1) / variance
    assert np.abs(rows - 1).max() < 6 * math.sqrt((kurtosis - 1) / fan_out)


@pytest.mark.parametrize("name", INITIALISERS)
def test_fans_of_a_convolution_count_its_receptive_field(name):
    w = np.asarray(INITIALISERS[name](jax.random.key(2), (3, 3, 40, 60)), np.float64)
    variance, kurtosis = MOMENTS[name][0](9 * 40, 9 * 60), MOMENTS[name][1]
    spread = variance * math.sqrt((kurtosis - 1) / w.size)
    assert abs((w**2).mean() - variance) < 4.5 * spread


def test_biases_start_at_zero_and_layers_have_streams_of_their_own():
    """LTH-rv's biases start at N(0, 1)."""
    net = mlp(6, 6, input_shape=(6,), outputs=6)
    p = flatten(parameters(net))
    assert all(np.all(v == 0) for k, v in p.items() if k.endswith("bias"))
    kernels = [v for k, v in p.items() if k.endswith("kernel")]
    assert len({v.tobytes() for v in kernels}) == 3
    other = flatten(parameters(net, 1))
    assert not any(np.any(other[k] == p[k]) for k in p if k.endswith("kernel"))
    again = flatten(parameters(net))
    assert all(np.array_equal(again[k], p[k]) for k in p)


def test_equal_arguments_give_one_network_and_others_another():
    """Compiled programs and the reader's findings are kept by network."""
    assert mlp(5, 4) is mlp(5, 4)
    assert len({mlp(5, 4), mlp(4, 5), mlp(5, 4, activation="tanh"), mlp(5, 4, bias=False)}) == 4
    assert mlp(5, 4, activation="tanh").name == "mlp-5-4-tanh"
    assert mlp(5, bias=False).name == "mlp-5-relu-nobias"
    assert mlp().name == "linear"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: mlp(0), r"a whole number of at least 1, not \(0, 10\) with"),
        (lambda: mlp(300, -100), r"at least 1, not \(300, -100, 10\)"),
        (lambda: mlp(5, outputs=0), r"at least 1, not \(5, 0\)"),
        (lambda: mlp(5, activation="rleu"), "no activation 'rleu'. Did you mean 'relu'"),
        (lambda: mlp(5, initialiser="glorot"), "no initialiser 'glorot'. Did you mean 'glorot_"),
        (lambda: mlp(5, input_shape=(28, 0, 1)), r"with input_shape \(28, 0, 1\)"),
        (lambda: mlp(2.5), r"whole number .* not \(2.5, 10\)"),
    ],
)
def test_bad_arguments_are_one_sentence(make, said):
    with pytest.raises(SecateurError, match=said) as error:
        make()
    assert "\n" not in str(error.value)
