"""Each adapter against the library called directly, in evaluation and in training."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.core.trees import apply_mask, density, flatten, ones_mask, sizes
from secateur.networks.adapters import (
    adapt,
    from_equinox,
    from_flax_linen,
    from_flax_nnx,
    from_functions,
)

SHAPE = (6, 6, 1)
X = np.random.default_rng(0).normal(size=(5, *SHAPE)).astype(np.float32)
KEY = jax.random.key(3)


def close(a, b, tolerance=1e-6):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=tolerance, rtol=tolerance)


# ---------------------------------------------------------------- the same network in every library


@functools.cache
def linen_network():
    linen = pytest.importorskip("flax.linen")

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, train: bool):
            x = linen.Conv(4, (3, 3), name="conv")(x)
            x = linen.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
            x = linen.relu(x).reshape(len(x), -1)
            x = linen.Dropout(0.5, deterministic=not train)(x)
            return linen.Dense(3, name="out")(x)

    module = Net()
    return module, from_flax_linen(module, SHAPE)


def nnx_class():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.convolutions = nnx.List([nnx.Conv(1, 4, (3, 3), rngs=rngs)])
            self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.again = nnx.Dropout(0.5, rngs=rngs)
            self.out = nnx.Linear(144, 3, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.convolutions[0](x))).reshape(len(x), -1)
            return self.out(self.again(self.dropout(x)))

    return Net


@functools.cache
def nnx_network():
    model = nnx_class()
    return model, from_flax_nnx(model, SHAPE)


@functools.cache
def equinox_network(mode="batch"):
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        layers: list
        norm: eqx.nn.BatchNorm
        dropout: eqx.nn.Dropout
        out: eqx.nn.Linear

        def __init__(self, key):
            a, b = jax.random.split(key)
            self.layers = [eqx.nn.Conv2d(1, 4, 3, padding=1, key=a), jax.nn.relu]
            self.norm = eqx.nn.BatchNorm(4, axis_name="examples", momentum=0.9, mode=mode)
            self.dropout = eqx.nn.Dropout(0.5)
            self.out = eqx.nn.Linear(144, 3, key=b)

        def __call__(self, x, state, key=None):
            x, state = self.norm(self.layers[0](x), state)
            x = self.dropout(jnp.ravel(self.layers[1](x)), key=key)
            return self.out(x), state

    return Net, from_equinox(Net, SHAPE, prepare=lambda x: jnp.moveaxis(x, -1, 0))


def plain_network():
    def init(key):
        a, b = jax.random.split(key)
        return [
            (jax.random.normal(a, (36, 8)) / 6, jnp.zeros(8)),
            (jax.random.normal(b, (8, 3)), jnp.zeros(3)),
        ]

    def apply(params, x):
        (w, b), (v, c) = params
        return jnp.tanh(x @ w + b) @ v + c

    def train(params, x, key):
        return apply(params, jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2 * x, 0))

    return (init, apply, train), from_functions(
        init, apply, SHAPE, train=train, prepare=jnp.ravel, name="plain"
    )


ALL = {
    "linen": lambda: linen_network()[1],
    "nnx": lambda: nnx_network()[1],
    "equinox": lambda: equinox_network()[1],
    "functions": lambda: plain_network()[1],
}
every = pytest.mark.parametrize("library", ALL)


# ---------------------------------------------------------------------------------- laws for all


@every
def test_contract(library):
    network = ALL[library]()
    params, stats = network.init(KEY)
    assert isinstance(network, Network)
    assert network.outputs == 3
    assert network.input_shape == SHAPE
    assert network.apply(params, stats, X).shape == (5, 3)
    logits, changed = network.train(params, stats, X, KEY)
    assert logits.shape == (5, 3)
    assert jax.tree.structure(changed) == jax.tree.structure(stats)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((params, stats)))


@every
def test_every_seed_draws_its_own_weights_and_one_seed_the_same(library):
    network = ALL[library]()
    first, again, other = (network.init(jax.random.key(s))[0] for s in (1, 1, 2))
    chosen = [name for name, m in flatten(network.prunable(first)).items() if m is not None]
    for name in chosen:
        assert np.array_equal(flatten(first)[name], flatten(again)[name])
        assert not np.array_equal(flatten(first)[name], flatten(other)[name])


@every
def test_evaluation_is_deterministic_and_sees_each_example_alone(library):
    network = ALL[library]()
    params, stats = network.init(KEY)
    stats = network.train(params, stats, X, KEY)[1]
    whole = network.apply(params, stats, X)
    assert np.array_equal(whole, network.apply(params, stats, X))
    close(whole[:2], network.apply(params, stats, X[:2]), 1e-5)


@every
def test_dropout_follows_the_key_and_is_off_in_evaluation(library):
    network = ALL[library]()
    params, stats = network.init(KEY)
    one, again, other = (network.train(params, stats, X, jax.random.key(s))[0] for s in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.allclose(one, other)


@every
def test_jit_vmap_and_gradients(library):
    network = ALL[library]()
    params, stats = network.init(KEY)
    close(jax.jit(network.apply)(params, stats, X), network.apply(params, stats, X), 1e-5)

    keys = jax.random.split(KEY, 2)
    many, many_stats = jax.vmap(network.init)(keys)
    lanes, lane_stats = jax.vmap(network.train, in_axes=(0, 0, None, 0))(many, many_stats, X, keys)
    for i in range(2):
        alone_params, alone_stats = network.init(keys[i])
        alone, stats_alone = network.train(alone_params, alone_stats, X, keys[i])
        close(lanes[i], alone, 1e-5)
        for a, b in zip(jax.tree.leaves(lane_stats), jax.tree.leaves(stats_alone), strict=True):
            close(a[i], b, 1e-5)

    def loss(params):
        return jnp.sum(network.train(params, stats, X, KEY)[0] ** 2)

    gradient = jax.jit(jax.grad(loss))(params)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))
    assert all(np.any(g != 0) for n, g in flatten(gradient).items() if np.ndim(g) >= 2)


@every
def test_masks_count_weights_and_nothing_else(library):
    network = ALL[library]()
    params, _ = network.init(KEY)
    mask = ones_mask(network.prunable(params))
    names = {
        "linen": {"conv/kernel": 36, "out/kernel": 432},
        "nnx": {"convolutions/0/kernel": 36, "out/kernel": 432},
        "equinox": {"layers/0/weight": 36, "out/weight": 432},
        "functions": {"0/0": 288, "1/0": 24},
    }[library]
    assert sizes(mask) == names
    assert density(mask) == 1
    name = next(iter(names))
    flat = flatten(mask)
    flat[name] = flat[name].copy()
    flat[name].flat[:5] = False
    pruned = apply_mask(mask, params)
    assert np.count_nonzero(flatten(pruned)[name]) - 5 == np.count_nonzero(
        flatten(pruned)[name] * flat[name]
    )


# ----------------------------------------------------------------- against the libraries themselves


def test_linen_equals_flax():
    module, network = linen_network()
    variables = module.init(KEY, jnp.zeros((1, *SHAPE)), train=False)
    params, stats = network.init(KEY)
    jax.tree.map(np.testing.assert_array_equal, {"params": params, **stats}, dict(variables))
    close(network.apply(params, stats, X), module.apply(variables, X, train=False))
    rngs = {"dropout": jax.random.fold_in(KEY, 0)}
    logits, changed = module.apply(variables, X, train=True, rngs=rngs, mutable=["batch_stats"])
    ours, stats = network.train(params, stats, X, KEY)
    close(ours, logits)
    jax.tree.map(close, stats, dict(changed))
    assert not np.allclose(stats["batch_stats"]["norm"]["mean"], 0)


def test_nnx_equals_flax():
    from flax import nnx

    model_class, network = nnx_network()
    model = model_class(rngs=nnx.Rngs(KEY))
    params, stats = network.init(KEY)
    close(params["out"]["kernel"], model.out.kernel[...], 0)
    model.eval()
    close(network.apply(params, stats, X), model(X))
    model.train()
    # The streams of the two dropouts, in the model's order, with the key and count of the adapter.
    for i, layer in enumerate((model.again, model.dropout)):
        layer.rngs.key[...] = jax.random.fold_in(KEY, 2 * i + 1)
        layer.rngs.count[...] = jnp.zeros_like(layer.rngs.count[...])
    ours, changed = network.train(params, stats, X, KEY)
    close(ours, model(X))
    close(changed["norm"]["mean"], model.norm.mean[...])
    close(changed["norm"]["var"], model.norm.var[...])
    assert not np.allclose(changed["norm"]["mean"], 0)


def test_nnx_dropouts_of_one_shape_drop_different_units():
    """One key for all streams of a name (what nnx.reseed gives) would drop the same units twice."""
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
            self.out = nnx.Linear(100, 2, rngs=rngs)

        def __call__(self, x):
            kept = (self.a(jnp.ones((1, 100))) > 0) != (self.b(jnp.ones((1, 100))) > 0)
            return self.out(x) * 0 + jnp.sum(kept)

    network = from_flax_nnx(Net, (100,))
    params, stats = network.init(KEY)
    different = network.train(params, stats, np.ones((1, 100), np.float32), KEY)[0][0, 0]
    assert 25 < different < 75


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_equinox_equals_equinox(mode):
    import equinox as eqx

    model_class, network = equinox_network(mode)
    model, state = eqx.nn.make_with_state(model_class)(KEY)
    params, stats = network.init(KEY)
    x = np.moveaxis(X, -1, 1)

    def direct(model, state, keys):
        return jax.vmap(model, axis_name="examples", in_axes=(0, None, 0), out_axes=(0, None))(
            x, state, keys
        )

    logits, state = direct(model, state, jax.random.split(KEY, len(x)))
    ours, stats = network.train(params, stats, X, KEY)
    close(ours, logits)
    if mode == "batch":
        mean, var = state.get(model.norm.batch_state_index)
        held = stats["state"]["norm/batch_state_index"]
        assert int(stats["state"]["norm/batch_counter"]) == 1
    else:
        mean, var = state.get(model.norm.ema_state_index)
        held = stats["state"]["norm/ema_state_index"]
    close(held["0"], mean)
    close(held["1"], var)
    quiet = eqx.nn.inference_mode(model)
    expected = jax.vmap(lambda x: quiet(x, state)[0], axis_name="examples")(x)
    close(network.apply(params, stats, X), expected)


def test_equinox_mlp_as_a_partial():
    eqx = pytest.importorskip("equinox")
    constructor = functools.partial(eqx.nn.MLP, 36, 3, 7, 2)
    network = from_equinox(constructor, SHAPE, prepare=jnp.ravel)
    params, stats = network.init(KEY)
    assert stats == {}
    assert sizes(network.prunable(params)) == {
        "layers/0/weight": 252,
        "layers/1/weight": 49,
        "layers/2/weight": 21,
    }
    close(network.apply(params, stats, X), jax.vmap(constructor(key=KEY))(X.reshape(5, -1)))


def test_equinox_norms_and_embeddings_are_not_pruned():
    eqx = pytest.importorskip("equinox")

    class Own(eqx.Module):
        weight: jax.Array

    class Net(eqx.Module):
        norm: eqx.nn.LayerNorm
        table: eqx.nn.Embedding
        own: Own
        out: eqx.nn.Linear
        order: jax.Array

        def __init__(self, key):
            self.norm = eqx.nn.LayerNorm((6, 6))
            self.table = eqx.nn.Embedding(4, 36, key=key)
            self.own = Own(jnp.eye(36))
            self.out = eqx.nn.Linear(36, 3, key=key)
            self.order = jax.random.permutation(key, 36)

        def __call__(self, x):
            x = self.norm(x[..., 0]).ravel()[self.order] + self.table(jnp.array(1))
            return self.out(self.own.weight @ x)

    network = from_equinox(Net, SHAPE)
    params, stats = network.init(KEY)
    assert sizes(network.prunable(params)) == {"own/weight": 1296, "out/weight": 108}
    # An integer array is drawn from the key too; it is carried, not trained and not forgotten.
    other = network.init(jax.random.key(9))[1]
    assert not np.array_equal(stats["constants"]["order"], other["constants"]["order"])
    close(network.apply(params, stats, X), jax.vmap(Net(KEY))(X))


def test_plain_functions_with_statistics():
    def init(key):
        return {"kernel": jnp.ones((36, 2)), "scale": jnp.ones((2, 2))}, {"seen": jnp.zeros(())}

    network = from_functions(
        init,
        lambda params, stats, x: x @ params["kernel"] @ params["scale"] + stats["seen"],
        SHAPE,
        train=lambda params, stats, x, key: (
            x @ params["kernel"],
            {"seen": stats["seen"] + len(x)},
        ),
        has_stats=True,
        prepare=jnp.ravel,
    )
    params, stats = network.init(KEY)
    assert network.train(params, stats, X, KEY)[1]["seen"] == 5
    assert sizes(network.prunable(params)) == {"kernel": 72}


# ----------------------------------------------------------------------------------- adapt, errors


def test_adapt_knows_each_library():
    network = plain_network()[1]
    assert adapt(network, SHAPE) is network
    init, apply, _ = plain_network()[0]
    assert adapt((init, apply), SHAPE, prepare=jnp.ravel).outputs == 3
    module, _ = linen_network()
    model, _ = nnx_network()
    eqx_class, _ = equinox_network()
    first = {"prepare": lambda x: jnp.moveaxis(x, -1, 0)}
    for thing, options in (
        (module, {}),
        (model, {}),
        (lambda rngs: model(rngs), {}),
        (eqx_class, first),
        (functools.partial(eqx_class), first),
        (lambda key: eqx_class(key), first),
    ):
        assert adapt(thing, SHAPE, **options).outputs == 3


def test_a_finished_model_must_be_asked_for():
    """Otherwise every seed, and every re-initialised control, would silently start the same."""
    from flax import nnx

    model_class, _ = nnx_network()
    model = model_class(nnx.Rngs(0))
    with pytest.raises(SecateurError, match="give a constructor, rngs -> model"):
        from_flax_nnx(model, SHAPE)
    network = from_flax_nnx(model, SHAPE, same_start=True)
    params, stats = network.init(KEY)
    close(params["out"]["kernel"], network.init(jax.random.key(8))[0]["out"]["kernel"], 0)
    model.eval()
    close(network.apply(params, stats, X), model(X))

    import equinox as eqx

    mlp = eqx.nn.MLP(36, 3, 7, 1, key=KEY)
    with pytest.raises(SecateurError, match="give a constructor, key -> model"):
        from_equinox(mlp, SHAPE)
    assert adapt(mlp, SHAPE, same_start=True, prepare=jnp.ravel).name == "mlp"


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith((".", "..."))


def test_errors_are_one_sentence():
    init, apply, _ = plain_network()[0]
    with pytest.raises(SecateurError, match=r"batches \(n, 6, 6, 1\)") as error:
        from_functions(init, apply, SHAPE)
    one_sentence(error)
    with pytest.raises(SecateurError, match=r"gives shape \(\) in evaluation") as error:
        from_functions(init, lambda p, x: jnp.sum(x), SHAPE)
    one_sentence(error)
    with pytest.raises(SecateurError, match=r"gives shape \(3, 2\)|gives shape \(1, 3\)") as error:
        from_functions(init, lambda p, x: apply(p, x.reshape(-1, 36)[:1]), SHAPE)
    one_sentence(error)
    with pytest.raises(SecateurError, match="no weights to prune") as error:
        from_functions(init, apply, SHAPE, prepare=jnp.ravel, prunable=lambda name, leaf: False)
    one_sentence(error)
    with pytest.raises(SecateurError, match="cannot make a network of 'int'") as error:
        adapt(3, SHAPE)
    one_sentence(error)
    eqx = pytest.importorskip("equinox")
    with pytest.raises(SecateurError, match="calling the constructor with a key failed") as error:
        from_equinox(eqx.nn.MLP, SHAPE)
    one_sentence(error)
    linen = pytest.importorskip("flax.linen")
    with pytest.raises(SecateurError, match="expected a module: call it") as error:
        from_flax_linen(linen.Dense, SHAPE)
    one_sentence(error)


def test_statistics_that_change_in_evaluation_are_an_error():
    linen = pytest.importorskip("flax.linen")

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.BatchNorm(use_running_average=False)(x)
            return linen.Dense(3)(x.reshape(len(x), -1))

    with pytest.raises(SecateurError, match="failed in evaluation"):
        from_flax_linen(Net(), SHAPE)
