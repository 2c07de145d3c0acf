"""Which leaf feeds which layer, in every framework: Jacobians from sites against `jax.jacrev`."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.kernels.factors import factors, flat_kernel, form, in_order
from secateur.structure.sites import names_of, read_sites, views

linen = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")

pytestmark = pytest.mark.usefixtures("x64")


def normal(getkey: Any, *shape: int) -> jax.Array:
    return jax.random.normal(getkey(), shape, jnp.float64)


def jacobians(f: Any, params: Any, x: Any) -> dict[str, jax.Array]:
    """Leaf -> (n, C, *leaf) from its sites; leaves without one by differentiation."""
    sites = read_sites(f, params, x)
    reached = [n for n in sites.names if sites.why.get(n) != "it does not reach the output"]
    how = form(sites, params, x, f, reached)
    count = jax.eval_shape(f, params, x).shape[1]
    made = factors(how, f, params, x, jnp.eye(count), {})
    leaves = dict(zip(sites.names, jax.tree.leaves(params)))
    found = {
        name: jax.vmap(lambda rows, name=name: in_order(sites, name, leaves[name], rows))(j)
        for name, j in made.columns.items()
    }
    seen = views(f, params, jax.tree.map(lambda a: a[:1], x), sites)
    for site, product in zip(how.products, made.products):
        view, leaf = seen[site.leaf, site.step], leaves[site.leaf]
        used = lambda leaf, site=site, view=view: flat_kernel(site, view(leaf))
        back = jax.linear_transpose(used, leaf)
        each = jnp.einsum("nj,nci->ncji", product.entered, product.felt)[:, :, None]
        j = jax.vmap(jax.vmap(lambda g, back=back: back(g)[0]))(each)
        found[site.leaf] = found.get(site.leaf, 0) + j
    for name, owner in how.biases.items():
        (site,) = sites.found[name]
        found[name] = site.sign * made.products[owner].felt
    return found


def agree(f: Any, params: Any, x: Any) -> Any:
    """Checks every leaf against `jax.jacrev`; returns what was read."""
    sites = read_sites(f, params, x)
    right, found = jax.jit(lambda p, x: (jax.jacrev(f)(p, x), jacobians(f, p, x)))(params, x)
    for name, j in zip(names_of(params), jax.tree.leaves(right)):
        if name in found:
            scale = max(1.0, float(jnp.max(jnp.abs(j))))
            np.testing.assert_allclose(found[name], j, rtol=0, atol=1e-11 * scale, err_msg=name)
        else:
            assert not np.any(j), name
    return sites


def kinds(sites: Any) -> dict[str, int]:
    counted: dict[str, int] = {}
    for found in sites.found.values():
        for site in found:
            counted[site.kind] = counted.get(site.kind, 0) + 1
    return counted


def layers(getkey: Any) -> dict[str, Any]:
    return {
        "a": {"w": normal(getkey, 6, 5), "b": normal(getkey, 5)},
        "c": {"w": normal(getkey, 5, 3), "b": normal(getkey, 3)},
    }


def mlp(p: Any, x: Any) -> jax.Array:
    return jax.nn.relu(x @ p["a"]["w"] + p["a"]["b"]) @ p["c"]["w"] + p["c"]["b"]


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: jax.jit(jax.checkpoint(jax.jit(f)))])
def test_plain_functions_in_calls(getkey, wrap):
    sites = agree(wrap(mlp), layers(getkey), normal(getkey, 4, 6))
    assert kinds(sites) == {"dense": 2, "bias": 2}
    assert not sites.why
    # A bias feels what its layer's product feels: one array of derivatives for both.
    assert len(sites.taps) == 2


def test_one_vmapped_example_at_a_time(getkey):
    one = lambda p, x: p["c"]["w"].T @ jnp.tanh(p["a"]["w"].T @ x - p["a"]["b"]) + p["c"]["b"]
    f = lambda p, x: jax.vmap(one, (None, 0))(p, x)
    sites = agree(f, layers(getkey), normal(getkey, 4, 6))
    assert kinds(sites) == {"dense": 2, "bias": 2}
    assert sites.found["a/b"][0].sign == -1


@pytest.mark.long
def test_flax_linen_with_every_kind_of_layer(getkey):
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.relu(linen.Conv(4, (3, 3), strides=2)(x))
            x = linen.avg_pool(x, (2, 2), (2, 2))
            x = linen.Conv(6, (3, 3), padding="VALID", feature_group_count=2)(x)
            x = linen.Conv(6, (2, 2), kernel_dilation=(2, 1), feature_group_count=6)(x)
            x = linen.LayerNorm()(linen.max_pool(x, (2, 2), (2, 2)))
            return linen.Dense(3)(x.reshape(len(x), -1))

    net = Net()
    x = normal(getkey, 2, 18, 18, 2)
    params = jax.tree.map(
        lambda a: a + 0.1 * normal(getkey, *a.shape), net.init(jax.random.key(0), x)
    )
    sites = agree(net.apply, params, x)
    assert kinds(sites) == {"conv": 3, "dense": 1, "bias": 5, "scale": 1}
    assert not sites.why


def test_flax_nnx_split_and_merged(getkey):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(6, 5, param_dtype=jnp.float64, rngs=rngs)
            self.second = nnx.Linear(5, 3, param_dtype=jnp.float64, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.relu(self.first(x)))

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    sites = agree(lambda p, x: nnx.merge(graph, p)(x), state, normal(getkey, 4, 6))
    assert kinds(sites) == {"dense": 2, "bias": 2}


@pytest.mark.long
def test_equinox_under_vmap(getkey):
    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        last: eqx.nn.Linear

        def __call__(self, x):
            return self.last(jax.nn.relu(self.conv(x)).reshape(-1))

    keys = jax.random.split(jax.random.key(0))
    net = Net(
        eqx.nn.Conv2d(2, 4, 3, padding=1, dtype=jnp.float64, key=keys[0]),
        eqx.nn.Linear(4 * 5 * 5, 3, dtype=jnp.float64, key=keys[1]),
    )
    params, static = eqx.partition(net, eqx.is_inexact_array)
    f = lambda p, x: jax.vmap(eqx.combine(p, static))(x)
    sites = agree(f, params, normal(getkey, 3, 2, 5, 5))
    assert kinds(sites) == {"conv": 1, "dense": 1, "bias": 2}


def test_a_mask_inside_the_function_is_part_of_the_leafs_view(getkey):
    mask = jnp.asarray(np.random.default_rng(0).random((6, 5)) < 0.5, jnp.float64)

    def f(p, x):
        h = jax.nn.relu(x @ (mask * p["a"]["w"]) + p["a"]["b"] / 3)
        return h @ p["c"]["w"].T.T + p["c"]["b"]

    sites = agree(f, layers(getkey), normal(getkey, 4, 6))
    assert not sites.why
    assert not sites.found["a/w"][0].plain


def test_a_short_loop_over_stacked_layers(getkey):
    params = {
        "first": normal(getkey, 6, 4),
        "w": normal(getkey, 3, 4, 4),
        "b": normal(getkey, 3, 4),
    }

    def f(p, x):
        step = lambda h, layer: (jnp.tanh(h @ layer["w"] + layer["b"]), None)
        return jax.lax.scan(step, x @ p["first"], {"w": p["w"], "b": p["b"]}, reverse=True)[0]

    sites = agree(f, params, normal(getkey, 4, 6))
    assert [s.part for s in sites.found["w"]] == [(2,), (1,), (0,)]
    assert not sites.why


@pytest.mark.parametrize(
    ("f", "leaf", "why"),
    [
        (lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T, "w", "it is used 2 times"),
        (lambda p, x: x @ jnp.exp(p["w"]), "w", "it goes through exp before it meets the input"),
        (lambda p, x: x @ (p["w"] @ p["v"]), "v", "it goes through another leaf before it"),
        (lambda p, x: jnp.maximum(x, p["b"]) @ p["w"], "b", "it meets the input in max"),
        (
            lambda p, x: (
                jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, s[1] * p["b"]), (0, x))[
                    1
                ]
                @ p["w"]
            ),
            "b",
            "it meets the input in while",
        ),
        (lambda p, x: x @ p["w"], "b", "it does not reach the output"),
        (lambda p, x: x @ jnp.broadcast_to(p["v"][:1], (6, 3)), "v", "its entries are repeated"),
        (
            lambda p, x: x @ p["w"] if len(x) < 10 else jnp.tanh(x @ p["w"]),
            "w",
            "the program depends on the number of examples",
        ),
    ],
)
def test_what_cannot_be_read_is_named_with_the_reason(getkey, f, leaf, why):
    params = {"w": normal(getkey, 6, 4), "v": normal(getkey, 4, 3), "b": normal(getkey, 6)}
    x = normal(getkey, 3, 6)
    sites = read_sites(f, params, x)
    assert leaf not in sites.found
    assert sites.why[leaf].startswith(why), sites.why[leaf]
    if "while" not in why:  # which has no reverse derivative
        agree(f, params, x)
