"""The compacted network is the masked one, made smaller: in value, in gradient, in counts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import convolutional as nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.trees import flatten, map_mask, ones_mask, unflatten
from secateur.networks.mlp import mlp
from secateur.prune.compact import compact
from secateur.structure.channels import read_channels
from secateur.structure.compact import liveness, removable

EXACT = {
    "conv4": nets.conv4,
    "flattened": nets.flattened,
    "vgg": nets.vgg,
    "vgg without biases": lambda: nets.vgg(bias=False),
    "residual": nets.residual,
    "mobile": nets.mobile,
    "joined": nets.joined,
}


def edited(case: nets.Case, **masks: Any) -> nets.Case:
    """The case with ``name=function of its kernel's mask`` applied to a copy."""
    flat = {k: None if m is None else m.copy() for k, m in flatten(case.mask).items()}
    for name, edit in masks.items():
        edit(flat[f"{name}/kernel"])
    return replace(case, mask=unflatten(flat, case.mask))


def full(net: Any, seed: int = 0) -> nets.Case:
    """Nothing is pruned."""
    return nets.case(net, seed, density=1.1, dead=0.0)


def out(channel: int) -> Any:
    """An edit that prunes all that makes a channel."""
    return lambda m: m[..., channel].fill(False)


def into(channel: int) -> Any:
    """An edit that prunes all that reads a channel."""
    return lambda m: m[..., channel, :].fill(False)


def scattered(small: Any, full_shapes: Any, places: Any) -> Any:
    """Entries of the small arrays at their places in arrays of zeros."""
    found = {}
    for k, leaf in flatten(small).items():
        array = np.zeros(np.size(flatten(full_shapes)[k]))
        array[flatten(places)[k].ravel()] = np.asarray(leaf).ravel()
        found[k] = array.reshape(np.shape(flatten(full_shapes)[k]))
    return found


def logits(net: Any, *given: Any) -> np.ndarray:
    return np.asarray(jax.jit(net.apply)(*given))


def same_gradients(case: nets.Case, small: Any, x: Any, rtol: float) -> None:
    """Of a loss: what stays has the same gradient, kept weights that left have none."""

    @partial(jax.jit, static_argnums=0)
    def gradient(apply: Any, p: Any, s: Any) -> Any:
        return jax.grad(lambda p: jnp.sum(jnp.sin(apply(p, s, x))))(p)

    g = jax.tree.map(np.asarray, gradient(case.network.apply, case.whole, case.stats))
    h = jax.tree.map(np.asarray, gradient(small.network.apply, small.params, small.stats))
    params, masks = small.params, flatten(case.mask)
    # Where each entry of the small arrays comes from: the same cut of an array of positions.
    at = jax.tree.map(lambda p: np.arange(p.size, dtype=float).reshape(p.shape), case.params)
    places = jax.tree.map(lambda a: np.asarray(a).astype(int), _cut(small, at))
    back = scattered(h, case.params, places)
    scale = max(abs(v).max() for v in flatten(g).values())
    taken = flatten(scattered(jax.tree.map(np.ones_like, params), case.params, places))
    for k, v in flatten(g).items():
        stays = taken[k] == 1
        np.testing.assert_allclose(back[k][stays], v[stays], rtol=0, atol=rtol * scale)
        if (
            masks[k] is not None
        ):  # a folded constant's bias has a gradient; its kernel has none left
            folded = ~stays & masks[k]
            assert np.all(abs(np.asarray(v)[folded]) <= rtol * scale) or small.folded


def check(case: nets.Case, rtol: float = 1e-12, gradients: bool = False, **options: Any) -> Any:
    """Logits are equal, gradients of what stays are, and what left has none; the counts are.

    A gradient takes seconds to compile, so only some tests ask for it.
    """
    small = compact(case.network, case.mask, params=case.params, stats=case.stats, **options)
    network, params, stats = small
    x = nets.inputs(case.network).astype(jnp.result_type(*jax.tree.leaves(params)))
    expected = logits(case.network, case.whole, case.stats, x)
    found = logits(network, params, stats, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * abs(expected).max())
    masks = flatten(case.mask)
    if gradients:
        same_gradients(case, small, x, rtol)
    sizes = {k: v.size for k, v in flatten(params).items()}
    assert small.size == sum(sizes.values())
    for k, m in flatten(small.mask).items():
        assert (m is None) == (masks[k] is None)
        if m is not None:
            assert m.shape == flatten(params)[k].shape
            assert not np.any(np.where(m, 0, flatten(params)[k]))
    return small


def _cut(small: Any, tree: Any) -> Any:
    """`tree` cut like the parameters: the network's own `init` on it."""
    made = small.network.init
    (cut_params,) = [c.cell_contents for c in made.__closure__ if hasattr(c.cell_contents, "take")]
    return cut_params.take(tree)


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["flattened", "vgg", "residual", "mobile"])
@pytest.mark.long
def test_the_smaller_network_is_the_masked_one(x64, name, seed):
    case = nets.case(EXACT[name](), seed)
    small = check(case, gradients=name in ("flattened", "residual") or seed > 0)
    assert small.size < sum(p.size for p in jax.tree.leaves(case.params))


@pytest.mark.long
@pytest.mark.parametrize("name", ["conv4", "vgg without biases", "joined"])
def test_others_are_too(x64, name):
    check(nets.case(EXACT[name](), 5), inexact="keep")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.long
def test_mlps(x64, seed):
    """Deep and sparse: constants feed constants."""
    net = mlp(9, 8, 7, 6, input_shape=(5,), outputs=3)
    case = nets.case(net, seed, density=0.3)
    flat = flatten(case.params)
    rng = np.random.default_rng(seed)
    biased = {k: rng.standard_normal(p.shape) if p.ndim == 1 else p for k, p in flat.items()}
    small = check(replace(case, params=unflatten(biased, case.params)), gradients=True)
    assert small.folded > 0 or seed == 2  # there nothing that an output hears is left
    assert small.training is None


def test_counts_are_those_of_live_units(x64):
    net = mlp(9, 8, 7, input_shape=(5,), outputs=3)
    case = nets.case(net, 1, density=0.4)
    small = check(case)
    m = [flatten(case.mask)[f"dense_{l}/kernel"] for l in (1, 2, 3, 4)]
    fed, heard = [np.ones(5, bool)], [np.ones(3, bool)]
    for one in m:
        fed.append((one & fed[-1][:, None]).any(0))
    for one in reversed(m):
        heard.insert(0, (one & heard[0][None]).any(1))
    widths = [
        5,
        *(max(1, int((f & h).sum())) for f, h in zip(fed[1:-1], heard[1:-1], strict=True)),
        3,
    ]
    assert small.size == sum((i + 1) * o for i, o in pairwise(widths))


@pytest.mark.parametrize("name", ["vgg", pytest.param("residual", marks=pytest.mark.long)])
def test_single_precision(name):
    case = nets.case(EXACT[name](), 3)
    assert flatten(case.params)["dense_1/kernel"].dtype == np.float32
    check(case, rtol=1e-5, gradients=name == "residual")


# -- what goes, and with what ------------------------------------------------------------


def test_a_stream_keeps_a_channel_that_any_writer_makes(x64):
    """The stem and both blocks write the stream: all three must be empty at the channel."""
    case = full(nets.residual())
    two = edited(case, stem=out(1), a2=out(1))
    assert "stem" not in check(two).widths
    three = edited(case, stem=out(1), a2=out(1), b2=out(1))
    small = check(three)
    assert small.widths["stem"] == {"full": 5, "left": 4}
    shapes = {k: v.shape for k, v in flatten(small.params).items()}
    for k in ("stem", "a2", "b2"):
        assert shapes[f"{k}/kernel"][-1] == 4
    for k in ("a1", "b1", "c1", "shortcut"):
        assert shapes[f"{k}/kernel"][-2] == 4
    for k in ("bn_0", "bn_a2", "bn_b2"):
        assert shapes[f"{k}/scale"] == (4,)
        assert flatten(small.stats)[f"{k}/mean"].shape == (4,)
    assert shapes["bn_a1/scale"] == (5,)


@pytest.mark.long
def test_a_block_may_be_empty_without_a_collapse(x64):
    small = check(edited(full(nets.residual()), a2=lambda m: m.fill(False)))
    assert small.widths == {"a1": {"full": 5, "left": 1}}  # nobody hears them; a row needs one unit


def test_a_flattened_channel_goes_with_all_its_positions(x64):
    case = edited(full(nets.flattened()), conv_1=out(2))
    small = check(case)
    assert flatten(small.params)["dense_1/kernel"].shape == (18, 5)
    rows = np.arange(24).reshape(3, 2, 4)[..., [0, 1, 3]].ravel()
    np.testing.assert_array_equal(
        flatten(small.params)["dense_1/kernel"], case.whole["dense_1"]["kernel"][rows]
    )


def test_a_flattened_channel_that_one_position_needs_stays(x64):
    def all_but_one(m: Any) -> None:
        m.reshape(3, 2, 4, 5)[:, :, 2].fill(False)
        m.reshape(3, 2, 4, 5)[1, 1, 2, 0] = True

    small = check(edited(full(nets.flattened()), dense_1=all_but_one))
    assert "conv_1" not in small.widths


def test_both_sides_of_a_depthwise_convolution_go_together(x64):
    case = full(nets.mobile())
    channels = read_channels(case.network, case.params, case.stats)
    for edits in ({"stem": out(1)}, {"a_depthwise": out(1)}, {"a_pointwise": into(1)}):
        one = edited(case, **edits)
        live = liveness(channels, one.params, one.mask)
        (sides,) = [pair for pair in channels.ties if channels.groups[pair[0]].size == 5]
        dead = [~(live.fed[n] & live.heard[n]) for n in sides]
        assert np.any(dead, axis=0).tolist() == [False, True, False, False, False]
        if "a_depthwise" not in edits:
            continue  # the others differ in what is dead, not in what goes
        small = check(one)
        assert small.widths["stem"] == small.widths["a_depthwise"] == {"full": 5, "left": 4}
        assert flatten(small.params)["a_depthwise/kernel"].shape == (3, 3, 1, 4)


def test_concatenated_and_grouped_channels_stay_with_the_reason(x64):
    case = edited(full(nets.joined()), conv_1=out(0), conv_3=out(1))
    channels = read_channels(case.network, case.params, case.stats)
    fixed = {g.fixed for g in channels.groups}
    assert {"it goes through concatenate", "a grouped convolution makes it"} <= fixed
    assert check(case).widths == {}
    assert removable(channels) == set()


def test_inputs_and_outputs_stay(x64):
    net = mlp(4, input_shape=(5,), outputs=3)
    case = edited(full(net), dense_1=lambda m: m[2].fill(False), dense_2=out(1))
    small = check(case)
    assert flatten(small.params)["dense_1/kernel"].shape == (5, 4)
    assert flatten(small.params)["dense_2/kernel"].shape == (4, 3)


def test_a_collapsed_network_is_its_constant(x64):
    case = edited(full(mlp(4, 6, input_shape=(5,), outputs=3)), dense_2=lambda m: m.fill(False))
    biased = {k: p + 0.5 if p.ndim == 1 else p for k, p in flatten(case.params).items()}
    small = check(replace(case, params=unflatten(biased, case.params)))
    assert {k: w["left"] for k, w in small.widths.items()} == {"dense_1": 1, "dense_2": 1}
    found = logits(small.network, small.params, {}, nets.inputs(case.network))
    assert np.ptp(found, axis=0).max() == 0


def test_a_weight_that_sees_only_padding_joins_nothing(x64):
    """3x3 windows, SAME, on a map of one pixel: only the middle meets it."""
    net = nets.residual(padding=1)
    small_image = replace(net, input_shape=(1, 1, 2))

    def corners(m: Any) -> None:
        m[..., 3].fill(False)
        m[0, 0, :, 3] = True

    case = edited(full(small_image), a1=corners)
    channels = read_channels(case.network, case.params, case.stats)
    live = liveness(channels, case.params, case.mask)
    layer = next(l for l in channels.layers if l.kernel == "a1/kernel")
    assert live.fed[layer.out_group].tolist() == [True, True, True, False, True]
    assert check(case).widths == {"a1": {"full": 5, "left": 4}}


# -- constants -------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_border_of_zeros_is_refused_or_the_channel_kept(x64):
    """Channel 1 of the first layer is phi(b) everywhere; the second layer's border misses some."""
    case = edited(full(nets.conv4("SAME")), conv_1=out(1))
    case.params["conv_1"]["bias"][1] = 0.7
    with pytest.raises(SecateurError, match=r"channel 1 of 'conv_1'.*border.*inexact=\"keep\""):
        compact(case.network, case.mask, params=case.params)
    small = check(case, inexact="keep")
    assert list(small.kept["conv_1"]) == [1]
    assert "conv_1" not in small.widths


@pytest.mark.long
def test_folding_over_a_border_would_be_wrong(x64):
    """The trap is real: what is exact in the middle is wrong at the border."""
    case = edited(full(nets.conv4("SAME")), conv_1=out(1))
    case.params["conv_1"]["bias"][1] = 0.7
    p = jax.tree.map(np.copy, case.whole)
    p["conv_2"]["bias"] = p["conv_2"]["bias"] + 0.7 * p["conv_2"]["kernel"][:, :, 1].sum((0, 1))
    p["conv_1"]["bias"][1] = 0.0
    x = nets.inputs(case.network)
    one, other = (logits(case.network, q, {}, x) for q in (case.whole, p))
    assert abs(one - other).max() > 1e-3


def test_a_constant_of_zero_goes_over_any_border(x64):
    """ReLU of a negative bias, as of a bias that is still 0."""
    case = edited(full(nets.conv4("SAME")), conv_1=out(1))
    case.params["conv_1"]["bias"][1] = -0.7
    assert check(case).widths["conv_1"] == {"full": 5, "left": 4}


@pytest.mark.long
def test_a_centre_alone_sees_no_border(x64):
    def centre(m: Any) -> None:
        m[:, :, 1] = False
        m[1, 1, 1] = True

    case = edited(full(nets.conv4("SAME")), conv_1=out(1), conv_2=centre)
    case.params["conv_1"]["bias"][1] = 0.7
    assert check(case).widths["conv_1"] == {"full": 5, "left": 4}


@pytest.mark.long
def test_a_map_that_is_uneven_is_even_again_after_its_mean(x64):
    """A constant feeds a constant over a border: the head's bias takes the mean of that map."""
    net = nets.residual(padding=1)
    case = edited(
        full(net),
        c1=out(2),  # phi(bn) of 0, and read over a border ...
        c2=lambda m: (m[..., 3].fill(False), m[:, :, 2, :].fill(False), m[:, :, 2, 3].fill(True)),
        shortcut=out(3),  # ... by a channel that is itself a constant, uneven at its border
    )
    case.params["bn_c1"]["bias"][2] = 2.0
    case.params["bn_c2"]["bias"][3] = 3.0
    case.params["bn_s"]["bias"][3] = 3.0
    small = check(case)
    assert small.widths == {"c1": {"full": 6, "left": 5}, "c2": {"full": 7, "left": 6}}


@pytest.mark.long
def test_a_norm_takes_the_constant_into_its_mean(x64):
    """Without biases, gamma (0 - mu) / sqrt(var + eps) + beta goes into the next running mean."""
    case = edited(full(nets.vgg(bias=False)), conv_2=out(1))
    case.params["bn_2"]["bias"][1] = 2.0
    small = check(case)
    s, p, w = case.stats["bn_2"], case.params["bn_2"], case.whole["conv_3"]["kernel"][0, 0, 1]
    gain = p["scale"] / np.sqrt(s["var"] + 1e-5)
    constant = max(0.0, float((-s["mean"] * gain + p["bias"])[1]))
    assert constant > 0
    np.testing.assert_allclose(
        small.stats["bn_3"]["mean"], case.stats["bn_3"]["mean"] - constant * w, rtol=1e-13
    )
    assert small.training is None  # a norm of the batch takes any constant away


@pytest.mark.long
def test_a_constant_that_training_makes_another_is_said(x64):
    """The head reads phi(gamma (0 - mu) / sigma + beta) in evaluation, phi(beta) in training."""
    case = edited(full(nets.vgg()), conv_3=out(1))
    case.params["bn_3"]["bias"][1] = 2.0
    assert check(case).training.startswith("batch norm")


def test_training_is_the_same_function_where_nothing_was_folded(x64):
    case = edited(full(nets.vgg()), conv_2=into(1), conv_3=into(2))
    case = edited(case, dense_1=into(0))
    small = check(case)
    assert small.training is None
    x, key = nets.inputs(case.network, 8), jax.random.key(0)
    expected, stats = jax.jit(case.network.train)(case.whole, case.stats, x, key)
    found, small_stats = jax.jit(small.network.train)(small.params, small.stats, x, key)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert flatten(small_stats)["bn_1/mean"].shape == (4,)
    assert flatten(stats)["bn_1/mean"].shape == (5,)


@pytest.mark.long
def test_a_constant_without_a_bias_behind_it_stays(x64):
    net = mlp(4, input_shape=(5,), outputs=3, bias=False)

    def shifted(params: Any, stats: Any, x: Any) -> Any:
        h = x @ params["dense_1"]["kernel"] + 1.0
        return jax.nn.relu(h) @ params["dense_2"]["kernel"]

    net = replace(net, apply=shifted, train=lambda p, s, x, key: (shifted(p, s, x), s))
    case = edited(full(net), dense_1=out(1))
    with pytest.raises(SecateurError, match="no bias or running mean"):
        compact(case.network, case.mask, params=case.params)
    assert check(case, inexact="keep").widths == {}


# -- refusals and forms -------------------------------------------------------------------


def test_a_width_in_the_code_is_refused(x64):
    net = mlp(6, input_shape=(5,), outputs=3)

    def scaled(p: Any, s: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ p["dense_1"]["kernel"])
        return h @ p["dense_2"]["kernel"] / np.sqrt(h.shape[-1])

    case = edited(full(replace(net, apply=scaled)), dense_2=into(1))
    with pytest.raises(SecateurError, match="depends on its widths"):
        compact(case.network, case.mask, params=case.params)

    def fixed(p: Any, s: Any, x: Any) -> Any:  # a constant has the width: all stay
        return (jax.nn.relu(x @ p["dense_1"]["kernel"]) * np.ones((1, 6))) @ p["dense_2"]["kernel"]

    case = replace(case, network=replace(net, apply=fixed))
    found = compact(
        case.network, case.mask, params=case.params
    )  # a constant has the width: it stays
    assert found.widths == {}

    def shaped(p: Any, s: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ p["dense_1"]["kernel"])
        return jnp.reshape(h, (len(x), 6)) @ p["dense_2"]["kernel"]

    with pytest.raises(SecateurError, match="does not run on smaller widths"):
        compact(replace(net, apply=shaped), case.mask, params=case.params)


def test_a_mask_needs_parameters():
    net = mlp(4, input_shape=(5,), outputs=3)
    mask = ones_mask(net.prunable(jax.eval_shape(net.init, jax.random.key(0))[0]))
    with pytest.raises(SecateurError, match="give params"):
        compact(net, mask)
    case = full(nets.vgg())
    with pytest.raises(SecateurError, match="give stats"):
        compact(case.network, case.mask, params=case.params)
    with pytest.raises(SecateurError, match="'refuse' or 'keep'"):
        compact(net, mask, params={}, inexact="fold")


@pytest.mark.long
def test_dropout_is_said(x64):
    net = mlp(4, input_shape=(5,), outputs=3)
    noisy = lambda p, s, x, key: (net.apply(p, s, x * jax.random.bernoulli(key, 0.5, x.shape)), s)
    case = edited(full(replace(net, train=noisy)), dense_2=into(0))
    assert check(case).training.startswith("it draws random numbers")


@pytest.mark.long
def test_a_new_start_has_the_smaller_shapes_and_a_smaller_network_stays_as_it_is(x64):
    case = nets.case(nets.vgg(), 0)
    small = check(case)
    params, stats = small.network.init(jax.random.key(1))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, small.params)
    assert jax.tree.map(np.shape, stats) == jax.tree.map(np.shape, small.stats)
    again = compact(small.network, small.mask, params=small.params, stats=small.stats)
    assert again.widths == {}


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lenet-5-relu", {}),
        ("conv-4", {"width": 8, "hidden": 16}),
        ("ntt-conv-4", {"width": 8, "hidden": 16}),
        ("vgg-11", {"width": 8}),
        ("resnet-20", {"width": 8, "input_shape": (8, 8, 3)}),
        ("resnet-20", {"width": 8, "input_shape": (8, 8, 3), "shortcut": "A"}),
        ("resnet-18", {"width": 8, "input_shape": (16, 16, 3)}),
        ("resnet-50", {"width": 8, "input_shape": (16, 16, 3)}),
        ("wrn-16-8", {"input_shape": (8, 8, 3)}),
        ("mobilenet-v1", {"width": 0.25, "input_shape": (16, 16, 3)}),
        ("mobilenet-v2", {"width": 0.25, "input_shape": (16, 16, 3)}),
    ],
)
def test_built_in_networks(x64, name, options):
    """At their initialisation, where constants are 0 or the norm's shift is."""
    from secateur.networks.registry import network

    net = network(name, **options)
    case = nets.case(net, 1, density=0.5, dead=0.3, drawn=nets.usual(net, 1))
    small = check(case, gradients=name in ("vgg-11", "resnet-20"))
    assert small.size < 0.8 * sum(p.size for p in jax.tree.leaves(case.params))


@pytest.mark.long
def test_nothing_given_is_changed(x64):
    case = nets.case(nets.mobile(), 0)
    before = jax.tree.map(np.copy, (case.params, case.stats))
    masks = map_mask(lambda m: None if m is None else m.copy(), case.mask)
    compact(case.network, case.mask, params=case.params, stats=case.stats)
    jax.tree.map(np.testing.assert_array_equal, before, (case.params, case.stats))
    jax.tree.map(np.testing.assert_array_equal, masks, case.mask)
