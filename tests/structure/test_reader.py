"""What the reader finds in networks whose structure is known beforehand."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from zoo import WRAPPED, ZOO, group, network, relu, structure

from secateur.core.trees import flatten, unflatten
from secateur.networks.mlp import mlp
from secateur.structure import shrink
from secateur.structure.reader import Dense


def removable(net):
    """Leaves by axis of every row of units that may be cut."""
    found = structure(net)
    return {found.groups[n].members for n in shrink._removable(found)}


@pytest.mark.parametrize("hidden", [(), (7,), (7, 5), (9, 7, 5, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_an_mlp_is_read_layer_by_layer(hidden, bias):
    shape = (4, 3, 1)
    net = mlp(*hidden, input_shape=shape, outputs=3, bias=bias)
    found = structure(net)
    widths = [math.prod(shape), *hidden, 3]
    assert found.unread == {}
    assert [layer.kernel for layer in found.layers] == [
        f"dense_{l}/kernel" for l in range(1, len(widths))
    ]
    for l, layer in enumerate(found.layers):
        assert (layer.in_axis, layer.out_axis) == (0, 1)
        assert found.groups[layer.in_group].size == widths[l]
        assert found.groups[layer.out_group].size == widths[l + 1]
        if l:  # what one layer makes, the next reads: one row of units
            assert layer.in_group == found.layers[l - 1].out_group
            row = found.groups[layer.in_group]
            made = {(f"dense_{l}/kernel", 1), (f"dense_{l + 1}/kernel", 0)}
            assert set(row.members) == made | ({(f"dense_{l}/bias", 0)} if bias else set())
            assert row.fixed is None
            assert not row.is_input
    first, last = found.groups[found.layers[0].in_group], found.groups[found.layers[-1].out_group]
    assert first.is_input
    assert first.fixed is None
    assert first.members == (("dense_1/kernel", 0),)
    assert last.fixed == "it is the output"


def test_an_input_that_is_flat_already_is_read_alike():
    image, vector = (structure(mlp(7, 5, input_shape=s)) for s in ((4, 3, 1), (12,)))
    assert image == vector


def test_a_skip_makes_one_row_of_units():
    """x + f(x): what goes from one of the summands goes from all."""
    found = structure(ZOO["residual"])
    row = group(found, "in", 1)
    assert set(row.members) == {("in", 1), ("f", 0), ("f", 1), ("g", 0), ("out", 0)}
    assert row.fixed is None
    assert [layer.kernel for layer in found.layers] == ["in", "f", "out"]


def test_a_product_of_two_rows_makes_one_row():
    assert set(group(structure(ZOO["gated"]), "a", 1).members) == {("a", 1), ("g", 1), ("c", 0)}


@pytest.mark.parametrize("name", ["transposed", "kernel first"])
def test_a_transposed_kernel_has_its_axes_the_other_way_round(name):
    found = structure(ZOO[name])
    assert {(l.kernel, l.in_axis, l.out_axis) for l in found.layers} == {("a", 1, 0), ("c", 1, 0)}
    assert {("a", 0), ("c", 1)} <= set(group(found, "a", 0).members)
    assert group(found, "a", 0).fixed is None
    assert group(found, "a", 1).is_input
    assert group(found, "c", 0).fixed == "it is the output"


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_change_nothing(name):
    assert structure(WRAPPED[name]) == structure(ZOO["plain"])


def test_a_norm_fixes_the_units_it_mixes_and_no_others():
    found = structure(ZOO["layer norm"])
    row = group(found, "a", 1)
    assert row.fixed == "it goes through reduce_sum"
    assert set(row.members) == {("a", 1), ("b", 0), ("c", 0)}
    assert group(found, "a", 0).fixed is None  # the inputs may still go
    assert removable(ZOO["layer norm"]) == {(("a", 0),)}


def test_tied_weights_are_named_and_stay():
    found = structure(ZOO["tied"])
    assert found.unread == {"a": "it is used by 2 products"}
    assert removable(ZOO["tied"]) == set()
    assert shrink.reason_full(ZOO["tied"])


@pytest.mark.parametrize(
    ("name", "unread", "said"),
    [
        ("mask inside", "a", "it goes through mul"),
        ("weights exponentiated", "c", "it goes through exp"),
        ("product of parameters", "a", "it is multiplied by something without input"),
        ("product of parameters", "b", "it is multiplied by something without input"),
        ("vector readout", "v", "it is multiplied, but is no matrix"),
        ("scan", "a", "it goes through scan"),
    ],
)
def test_a_parameter_that_is_no_plain_kernel_is_named_and_its_units_stay(name, unread, said):
    found = structure(ZOO[name])
    assert found.unread[unread] == said
    assert not any(unread in dict(members) for members in removable(ZOO[name]))


@pytest.mark.parametrize(
    "name",
    [
        "weights exponentiated",
        "product of parameters",
        "constant of unit width",
        "vector readout",
        "doubled narrow kernel",
        "scan",
        "custom gradient",
    ],
)
def test_units_that_reach_the_output_by_a_way_that_is_not_understood_stay(name):
    """Each of these would be cut, or could be, if the way were overlooked."""
    assert not any(("a", 1) in members for members in removable(ZOO[name]))


def test_the_reasons_say_what_holds_the_units():
    held = {
        "constant of unit width": "a constant has it",
        "custom gradient": "it goes through custom_vjp_call",
        "doubled narrow kernel": "a product that is no dense layer sums over it",
        "scan": "it goes through scan",
    }
    for name, why in held.items():
        assert group(structure(ZOO[name]), "a", 1).fixed == why


def test_a_row_of_one_unit_never_goes():
    assert removable(ZOO["one unit"]) == {(("a", 0),)}


def test_a_softmax_does_not_hide_the_output_layer():
    found = structure(ZOO["softmax"])
    (last,) = [l for l in found.layers if l.kernel == "c"]
    assert found.groups[last.out_group].fixed == "it is the output"
    assert group(found, "a", 1).fixed is None


def test_layers_come_in_the_order_of_the_program_whatever_they_are_called():
    assert [l.kernel for l in structure(ZOO["no biases"]).layers] == ["z", "m", "a"]


def test_training_that_is_another_function_is_trained_at_full_size():
    assert shrink.reason_full(ZOO["plain"]) is None
    assert shrink.reason_full(ZOO["other training"]) == "its training mode is another function"
    assert shrink.reason_full(ZOO["noisy training"]) == "its training mode draws random numbers"
    assert shrink.reason_full(ZOO["idle key"]) is None


def test_batch_statistics_are_trained_at_full_size():
    import dataclasses

    net = ZOO["plain"]
    with_stats = dataclasses.replace(
        net, init=lambda key: (net.init(key)[0], {"mean": jax.numpy.zeros(4)})
    )
    assert shrink.reason_full(with_stats) == "it has batch statistics"


def test_a_leaf_that_is_none_shifts_no_name():
    """A user's tree with ``None`` for a missing bias: JAX drops it, the names must too."""
    net = network({"a": (6, 4), "c": (4, 2)}, lambda p, x: relu(x @ p["a"]) @ p["c"])
    params, stats = jax.eval_shape(net.init, jax.random.key(0))
    from secateur.structure.reader import read

    found = read(net, {"a": params["a"], "b": None, "c": params["c"]}, stats)
    assert [l.kernel for l in found.layers] == ["a", "c"]
    assert set(group(found, "a", 1).members) == {("a", 1), ("c", 0)}


# ------------------------------------------------------------------------ other people's libraries


def linen_mlp():
    linen = pytest.importorskip("flax.linen")
    from secateur.networks.adapters import from_flax_linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.relu(linen.Dense(5, name="first")(x.reshape(len(x), -1)))
            return linen.Dense(3, name="second")(x)

    return from_flax_linen(Net(), (4, 3, 1)), "first/kernel", "first/bias", "second/kernel", (0, 1)


def nnx_mlp():
    nnx = pytest.importorskip("flax.nnx")
    from secateur.networks.adapters import from_flax_nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(12, 5, rngs=rngs)
            self.second = nnx.Linear(5, 3, rngs=rngs)

        def __call__(self, x):
            return self.second(jax.nn.relu(self.first(x.reshape(len(x), -1))))

    return from_flax_nnx(Net, (4, 3, 1)), "first/kernel", "first/bias", "second/kernel", (0, 1)


def equinox_mlp():
    eqx = pytest.importorskip("equinox")
    from secateur.networks.adapters import from_equinox

    net = from_equinox(
        lambda key: eqx.nn.MLP(12, 3, 5, 1, key=key), (4, 3, 1), prepare=jax.numpy.ravel
    )
    return net, "layers/0/weight", "layers/0/bias", "layers/1/weight", (1, 0)


@pytest.mark.parametrize("make", [linen_mlp, nnx_mlp, equinox_mlp])
def test_an_mlp_of_another_library_is_read(make):
    net, first, bias, second, (in_axis, out_axis) = make()
    found = structure(net)
    assert [(l.kernel, l.in_axis, l.out_axis) for l in found.layers] == [
        (first, in_axis, out_axis),
        (second, in_axis, out_axis),
    ]
    row = group(found, first, out_axis)
    assert set(row.members) == {(first, out_axis), (bias, 0), (second, in_axis)}
    assert row.fixed is None
    assert group(found, first, in_axis).is_input
    assert shrink.reason_full(net) is None


def test_a_dense_layer_says_what_it_is():
    layer = structure(ZOO["plain"]).layers[0]
    assert layer == Dense("a", 0, 1, layer.in_group, layer.out_group)


@pytest.mark.parametrize("make", [linen_mlp, nnx_mlp, equinox_mlp])
def test_an_mlp_of_another_library_runs_at_smaller_widths_or_says_that_it_does_not(make):
    """Half of the inputs and two of five units cut: the same logits, by the library's own code.

    Flax linen compares each parameter with its declared shape, so it is trained at full size.
    """
    net, first, bias, second, (in_axis, _) = make()
    params, stats = net.init(jax.random.key(0))
    flat = {k: np.array(v) for k, v in flatten(params).items()}
    flat[bias] += 0.5
    mask = {k: np.ones(v.shape, bool) if v.ndim > 1 else None for k, v in flat.items()}
    np.moveaxis(mask[first], in_axis, 0)[6:] = False
    np.moveaxis(mask[second], in_axis, 0)[:2] = False
    params, mask = unflatten(flat, params), unflatten(mask, params)
    (found,) = shrink.select([shrink.kept(net, mask, params, False)], 1)
    assert {k: w["trained"] for k, w in found.widths().items()} == {
        "input": 6,
        first.rsplit("/", 1)[0]: 3,
    }
    linen = "it does not run on smaller widths (ScopeParamShapeError)"
    assert shrink.agrees(net, found, params, mask) == (linen if make is linen_mlp else None)
    small = flatten(found.take(params))
    assert small[first].size == 18
    assert small[second].shape[in_axis] == 3
    assert not stats
