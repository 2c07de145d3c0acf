"""Convolutional networks: published counts, layers and whole networks against numpy, training."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from secateur.core.errors import SecateurError
from secateur.core.trees import apply_mask, flatten, ones_mask, sizes, unflatten
from secateur.data.splits import from_arrays
from secateur.networks import layers
from secateur.networks.adapters import from_flax_linen
from secateur.networks.registry import NETWORKS, network
from secateur.prune.problem import batch_statistics
from secateur.train.fit import fit
from secateur.train.losses import cross_entropy
from secateur.train.order import Order
from secateur.train.recipes import Recipe
from secateur.train.training import Training

SVHN = (32, 32, 3)
TINY = (64, 64, 3)

# ---- published counts: networks.md, section 1 ----------------------------------------------------

# name, options, kernels, prunable, output layer, trainable (None: not published)
COUNTS = [
    ("lenet-300-100", {}, 3, 266_200, 1_000, 266_610),
    ("lenet-5-caffe", {}, 4, 430_500, 5_000, 431_080),
    ("lenet-5-relu", {}, 4, 430_500, 5_000, 431_080),
    ("conv-2", {}, 5, 4_300_992, 2_560, 4_301_642),
    ("conv-4", {}, 7, 2_425_024, 2_560, 2_425_930),
    ("conv-6", {}, 9, 2_261_184, 2_560, 2_262_602),
    ("ntt-conv-4", {"padding": "SAME"}, 6, 4_459_200, 5_120, 4_460_106),
    ("ntt-conv-4", {}, 6, 1_903_296, 5_120, 1_904_202),
    ("synflow-fc", {}, 6, 119_400, 1_000, 119_910),
    ("synflow-fc", {"input_shape": SVHN}, 6, 348_200, 1_000, 348_710),
    ("synflow-conv", {}, 3, 260_384, 250_880, 260_458),
    ("synflow-conv", {"input_shape": SVHN}, 3, 337_760, 327_680, 337_834),
    ("vgg-11", {}, 9, 9_222_848, 5_120, 9_231_114),
    ("vgg-11", {"outputs": 100}, 9, 9_268_928, 51_200, None),
    ("vgg-11", {"outputs": 200, "input_shape": TINY}, 9, 9_320_128, 102_400, None),
    ("vgg-13", {}, 11, 9_407_168, 5_120, None),
    ("vgg-13", {"outputs": 100}, 11, 9_453_248, 51_200, None),
    ("vgg-13", {"outputs": 200}, 11, 9_504_448, 102_400, None),
    ("vgg-16", {}, 14, 14_715_584, 5_120, 14_728_266),
    ("vgg-16", {"batch_norm": False}, 14, 14_715_584, 5_120, 14_719_818),
    ("vgg-16", {"outputs": 100}, 14, 14_761_664, 51_200, 14_774_436),
    ("vgg-16", {"outputs": 200, "code": "grasp"}, 14, 14_812_864, 102_400, None),
    ("vgg-19", {}, 17, 20_024_000, 5_120, None),
    ("vgg-19", {"outputs": 100}, 17, 20_070_080, 51_200, 20_086_692),
    ("vgg-19", {"outputs": 200}, 17, 20_121_280, 102_400, None),
    ("vgg-11", {"code": "synflow-tiny"}, 11, 12_568_256, 204_800, None),
    ("vgg-13", {"code": "synflow-tiny"}, 13, 12_752_576, 204_800, None),
    ("vgg-16", {"code": "synflow-tiny"}, 16, 18_060_992, 204_800, 18_075_912),
    ("vgg-19", {"code": "synflow-tiny"}, 19, 23_369_408, 204_800, None),
    ("vgg-11", {"code": "synflow-imagenet"}, 11, 132_851_392, 4_096_000, None),
    ("vgg-13", {"code": "synflow-imagenet"}, 13, 133_035_712, 4_096_000, None),
    ("vgg-16", {"code": "synflow-imagenet"}, 16, 138_344_128, 4_096_000, None),
    ("vgg-19", {"code": "synflow-imagenet"}, 19, 143_652_544, 4_096_000, None),
    ("vgg-snip-d", {}, 16, 15_239_872, 5_120, None),
    ("vgg-snip-like", {}, 15, 14_977_728, 5_120, None),
    ("resnet-20", {}, 22, 270_896, 640, 272_474),
    ("resnet-20", {"outputs": 100}, 22, 276_656, 6_400, None),
    ("resnet-20", {"shortcut": "A"}, 20, 268_336, 640, 269_722),
    ("resnet-32", {}, 34, 464_432, 640, 466_906),
    ("resnet-32", {"outputs": 100}, 34, 470_192, 6_400, None),
    ("resnet-32", {"shortcut": "A"}, 32, 461_872, 640, None),
    ("resnet-56", {}, 58, 851_504, 640, 855_770),
    ("resnet-56", {"outputs": 100}, 58, 857_264, 6_400, None),
    ("resnet-56", {"shortcut": "A"}, 56, 848_944, 640, None),
    ("resnet-20", {"width": 32}, 22, 1_081_440, 1_280, 1_084_586),
    ("resnet-20", {"width": 32, "outputs": 100}, 22, 1_092_960, 12_800, None),
    ("resnet-32", {"width": 32}, 34, 1_855_584, 1_280, 1_860_522),
    ("resnet-32", {"width": 32, "outputs": 100}, 34, 1_867_104, 12_800, None),
    ("resnet-32", {"width": 32, "outputs": 200}, 34, 1_879_904, 25_600, None),
    ("resnet-56", {"width": 32}, 58, 3_403_872, 1_280, None),
    ("resnet-56", {"width": 32, "outputs": 100}, 58, 3_415_392, 12_800, None),
    ("resnet-18", {}, 21, 11_164_352, 5_120, 11_173_962),
    ("resnet-18", {"outputs": 100}, 21, 11_210_432, 51_200, None),
    ("resnet-18", {"outputs": 200, "input_shape": TINY}, 21, 11_261_632, 102_400, 11_271_432),
    ("resnet-18", {"stem": "7x7"}, 21, 11_678_912, 512_000, 11_689_512),
    ("resnet-18", {"stem": "7x7", "outputs": 200}, 21, 11_269_312, 102_400, None),
    ("resnet-34", {"stem": "7x7"}, 37, 21_779_648, 512_000, None),
    ("resnet-50", {"stem": "7x7"}, 54, 25_502_912, 2_048_000, 25_557_032),
    ("resnet-50", {}, 54, 23_467_712, 20_480, None),
    ("resnet-50", {"outputs": 100}, 54, 23_652_032, 204_800, None),
    ("resnet-50", {"outputs": 200}, 54, 23_856_832, 409_600, 23_910_152),
    ("resnet-50", {"stem": "7x7", "wide": 2}, 54, 68_814_016, 2_048_000, None),
    ("wrn-28-10", {}, 29, 36_461_232, 6_400, None),
    ("wrn-28-10", {"outputs": 100}, 29, 36_518_832, 64_000, None),
    ("wrn-16-8", {}, 17, 10_954_160, 5_120, None),
    ("wrn-22-8", {}, 23, 17_147_312, 5_120, None),
    ("mobilenet-v1", {}, 28, 3_195_328, 10_240, None),
    ("mobilenet-v1", {"stem": "imagenet"}, 28, 4_209_088, 1_024_000, None),
    ("mobilenet-v2", {}, 53, 2_202_560, 12_800, None),
    ("mobilenet-v2", {"stem": "imagenet"}, 53, 3_469_760, 1_280_000, None),
    ("mobilenet-v2", {"port": True}, 58, 2_261_824, 12_800, None),
]


@pytest.mark.parametrize(
    "row", COUNTS, ids=lambda r: r[0] + "".join(f",{k}={v}" for k, v in r[1].items())
)
def test_counts_are_the_published_ones(row):
    name, options, kernels, prunable, output, trainable = row
    shapes = jax.eval_shape(network(name, **options).init, jax.random.key(0))[0]
    found = {k: a.size for k, a in flatten(shapes).items() if k.endswith("/kernel")}
    assert (len(found), sum(found.values())) == (kernels, prunable)
    last = max((k for k in found if k.startswith("dense_")), key=lambda k: int(k.split("/")[0][6:]))
    assert found[last] == output
    if trainable is not None:
        assert sum(a.size for a in jax.tree.leaves(shapes)) == trainable


def test_every_network_is_counted_and_prunes_its_kernels_alone():
    assert {row[0] for row in COUNTS} == set(NETWORKS)
    net = network("resnet-20", width=2)
    params, _ = jax.eval_shape(net.init, jax.random.key(0))
    counted = sizes(net.prunable(params))
    assert set(counted) == {k for k in flatten(params) if k.endswith("/kernel")}
    assert "stage_2/block_1/shortcut/kernel" in counted


# ---- every family at tiny width: shapes, statistics, keys ----------------------------------------

SMALL = [
    ("lenet-5-caffe", {"input_shape": (16, 16, 1)}),
    ("lenet-5-relu", {"outputs": 2}),
    ("conv-2", {"width": 2, "hidden": 4, "input_shape": (5, 4, 1)}),
    ("conv-6", {"width": 2, "hidden": 4, "input_shape": (8, 8, 3)}),
    ("ntt-conv-4", {"width": 2, "hidden": 4, "input_shape": (16, 18, 3)}),
    ("ntt-conv-4", {"width": 2, "hidden": 4, "padding": "SAME", "input_shape": (4, 4, 3)}),
    ("synflow-fc", {"width": 3}),
    ("synflow-conv", {"width": 2, "input_shape": (3, 3, 1)}),
    ("vgg-11", {"width": 2, "input_shape": (16, 16, 3)}),
    ("vgg-13", {"width": 2, "batch_norm": False, "code": "grasp", "input_shape": (16, 16, 1)}),
    ("vgg-16", {"width": 2, "code": "synflow-tiny", "input_shape": (32, 32, 3)}),
    ("vgg-19", {"width": 2, "code": "synflow-imagenet", "input_shape": (64, 32, 3)}),
    ("vgg-snip-d", {"width": 2}),
    ("resnet-20", {"width": 2, "input_shape": (4, 4, 1)}),
    ("resnet-8", {"width": 4, "shortcut": "A", "input_shape": (5, 7, 3), "unbiased": True}),
    ("resnet-18", {"width": 2, "input_shape": (8, 8, 3)}),
    ("resnet-50", {"width": 2, "stem": "7x7", "input_shape": (32, 32, 3), "outputs": 5}),
    ("wrn-10-2", {"width": 2, "drop": 0.3, "input_shape": (8, 8, 3)}),
    ("mobilenet-v1", {"width": 0.1, "input_shape": (16, 16, 3)}),
    ("mobilenet-v2", {"width": 0.1, "input_shape": (8, 8, 3)}),
    ("mobilenet-v2", {"port": True, "stem": "imagenet", "input_shape": (32, 32, 3), "width": 0.25}),
]


@pytest.mark.parametrize(("name", "options"), SMALL, ids=lambda v: str(v))
def test_logits_and_statistics_have_their_shapes_in_both_modes(name, options, strict):
    net = network(name, **options)
    key = jax.random.key(0)
    params, stats = jax.eval_shape(net.init, key)
    x = jax.ShapeDtypeStruct((3, *net.input_shape), np.float32)
    with jax.numpy_rank_promotion("raise"):
        logits = jax.eval_shape(net.apply, params, stats, x)
        trained, after = jax.eval_shape(net.train, params, stats, x, key)
    assert logits.shape == trained.shape == (3, net.outputs)
    describe = lambda tree: {k: (a.shape, a.dtype) for k, a in flatten(tree).items()}
    assert describe(after) == describe(stats)
    norms = {k.rsplit("/", 1)[0] for k in flatten(params) if k.endswith("/scale")}
    assert {k.rsplit("/", 1)[0] for k in flatten(stats)} == norms


def test_equal_options_give_one_object_and_others_another_name():
    """Programs are compiled once a network, and results are kept by its name."""
    assert network("resnet-20") is network("resnet-20", width=16, shortcut="B")
    assert network("vgg-11", input_shape=[32, 32, 3]) is network("vgg-11", input_shape=(32, 32, 3))
    names = [
        network("resnet-20").name,
        network("resnet-20", width=32).name,
        network("resnet-20", shortcut="A").name,
        network("lenet-5-caffe").name,
        network("lenet-5-relu").name,
        network("ntt-conv-4", padding="SAME").name,
        network("vgg-16", batch_norm=False).name,
    ]
    assert len(set(names)) == len(names)
    assert names[1] == "resnet-20,width=32"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("resnet-21", {}, "Did you mean"),
        ("wrn-27-10", {}, "6 n \\+ 4"),
        ("resnet-2", {}, "6 n \\+ 2"),
        ("resnet-20", {"widht": 3}, "Did you mean 'width'"),
        ("resnet-20", {"depth": 32}, "no option 'depth'"),
        ("resnet-20", {"shortcut": "C"}, "no shortcut 'C'"),
        ("resnet-18", {"wide": 2}, "no bottlenecks"),
        ("resnet-18", {"stem": "5x5"}, "no stem"),
        ("vgg-16", {"code": "grass"}, "Did you mean 'grasp'"),
        ("vgg-16", {"input_shape": (8, 8, 3)}, "at least 16 x 16"),
        ("conv-4", {"initialiser": "glorot"}, "no initialiser"),
        ("ntt-conv-4", {"padding": "same"}, "no padding"),
        ("lenet-5-caffe", {"input_shape": (784,)}, "height, width, channels"),
        ("mobilenet-v1", {"outputs": 0}, "1 or more outputs"),
    ],
)
def test_bad_options_are_one_sentence(name, options, said):
    with pytest.raises(SecateurError, match=said):
        network(name, **options)


# ---- layers against numpy ------------------------------------------------------------------------


def np_conv(x, w, stride=1, padding=0, groups=1):
    """The sum of the definition, one place of the kernel at a time."""
    kh, kw, inner, out = w.shape
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = (x.shape[1] - kh) // stride + 1, (x.shape[2] - kw) // stride + 1
    y = np.zeros((len(x), rows, columns, out))
    for g in range(groups):
        outs = slice(g * out // groups, (g + 1) * out // groups)
        ins = slice(g * inner, (g + 1) * inner)
        for i in range(kh):
            for j in range(kw):
                part = x[:, i:, j:, ins][:, ::stride, ::stride][:, :rows, :columns]
                y[..., outs] += part @ w[i, j][:, outs]
    return y


def np_norm(p, s, x):
    return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize(
    ("stride", "padding", "groups"), [(1, 0, 1), (1, 1, 2), (2, 1, 1), (2, 0, 4), (3, 2, 1)]
)
def test_conv_is_the_sum_of_its_definition(stride, padding, groups, x64):
    x, w, b = drawn(2, 7, 6, 4), drawn(3, 3, 4 // groups, 8, seed=1), drawn(8, seed=2)
    found = layers.conv({"kernel": w, "bias": b}, jnp.asarray(x), stride, padding, groups)
    np.testing.assert_allclose(found, np_conv(x, w, stride, padding, groups) + b, atol=1e-12)


def test_conv_is_scipys_correlation(x64):
    x, w = drawn(1, 6, 7, 2), drawn(3, 3, 2, 1, seed=1)
    found = layers.conv({"kernel": w}, jnp.asarray(x), padding="VALID")[0, :, :, 0]
    np.testing.assert_allclose(found, correlate(x[0], w[..., 0], "valid")[..., 0], atol=1e-12)


def test_padding_of_stride_two_is_pytorchs_and_not_same(x64):
    """On an even map, SAME pads below alone; every published network pads both sides."""
    x, w = jnp.asarray(drawn(1, 4, 4, 1)), {"kernel": jnp.asarray(drawn(3, 3, 1, 1, seed=1))}
    both, same = layers.conv(w, x, 2, 1), layers.conv(w, x, 2, "SAME")
    assert both.shape == same.shape == (1, 2, 2, 1)
    assert not np.allclose(both, same)


def np_pool(x, window, stride, of):
    rows, columns = ((n - window) // stride + 1 for n in x.shape[1:3])
    y = np.zeros((len(x), rows, columns, x.shape[3]))
    for i in range(rows):
        for j in range(columns):
            at = slice(i * stride, i * stride + window), slice(j * stride, j * stride + window)
            y[:, i, j] = of(x[:, at[0], at[1]], axis=(1, 2))
    return y


@pytest.mark.parametrize(("window", "stride"), [(2, None), (2, 1), (3, 2)])
def test_pooling_takes_maxima_and_means_of_windows(window, stride, x64):
    x = drawn(2, 7, 6, 3)
    step = stride or window
    largest = layers.max_pool(jnp.asarray(x), window, stride)
    np.testing.assert_array_equal(largest, np_pool(x, window, step, np.max))
    mean = layers.average_pool(jnp.asarray(x), window, stride)
    np.testing.assert_allclose(mean, np_pool(x, window, step, np.mean), atol=1e-14)
    np.testing.assert_allclose(
        layers.global_average_pool(jnp.asarray(x)), x.mean((1, 2)), atol=1e-14
    )


def test_max_pool_pads_with_minus_infinity(x64):
    x = -np.abs(drawn(1, 4, 4, 1)) - 1
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    found = layers.max_pool(jnp.asarray(x), 3, 2, 1)
    np.testing.assert_array_equal(found, np_pool(padded, 3, 2, np.max))


def test_max_pool_has_the_primitives_gradient_with_ties(x64):
    """The first of equal maxima gets it all: rectified maps are full of equal zeros."""
    x = jnp.asarray(np.random.default_rng(0).choice([0.0, 1.0], size=(2, 6, 6, 3)))
    t = jnp.asarray(drawn(2, 3, 3, 3))
    window = (1, 2, 2, 1)
    primitive = lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
    ours, theirs = (jax.vjp(f, x)[1](t)[0] for f in (lambda x: layers.max_pool(x, 2), primitive))
    np.testing.assert_array_equal(ours, theirs)


def test_pools_are_calls_by_their_names():
    """`structure` recognises them so in a traced program."""
    program = jax.make_jaxpr(lambda x: layers.average_pool(layers.max_pool(x, 2), 2))
    called = [e.params["name"] for e in program(jnp.ones((1, 4, 4, 1))).jaxpr.eqns]
    assert called == ["max_pool", "average_pool"]


@pytest.mark.parametrize("unbiased", [False, True])
def test_batch_norm_is_its_formula(unbiased, x64):
    x = 3 + 2 * drawn(5, 2, 3, 4)
    p = {"scale": drawn(4, seed=1), "bias": drawn(4, seed=2)}
    s = {"mean": drawn(4, seed=3), "var": np.abs(drawn(4, seed=4))}
    y, same = layers.batch_norm(p, s, jnp.asarray(x), train=False)
    np.testing.assert_allclose(y, np_norm(p, s, x), atol=1e-12)
    assert same is s
    y, after = layers.batch_norm(p, s, jnp.asarray(x), train=True, unbiased=unbiased)
    batch = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}
    np.testing.assert_allclose(y, np_norm(p, batch, x), atol=1e-12)
    kept = x.var((0, 1, 2), ddof=int(unbiased))
    np.testing.assert_allclose(after["mean"], 0.9 * s["mean"] + 0.1 * batch["mean"], atol=1e-13)
    np.testing.assert_allclose(after["var"], 0.9 * s["var"] + 0.1 * kept, atol=1e-13)


def test_dropout_keeps_the_mean_and_follows_its_key(getkey):
    x = jnp.ones(40_000)
    k = getkey()
    y = np.asarray(layers.dropout(x, 0.25, k))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / y.size)
    np.testing.assert_array_equal(y, layers.dropout(x, 0.25, k))
    assert np.any(y != np.asarray(layers.dropout(x, 0.25, getkey())))
    assert layers.dropout(x, 0.25, None) is x


def test_layers_are_pytorchs(x64):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    x, w, b = drawn(2, 7, 8, 3), drawn(3, 3, 3, 5, seed=1), drawn(5, seed=2)
    image = torch.tensor(x.transpose(0, 3, 1, 2))
    last = lambda t: t.numpy().transpose(0, 2, 3, 1)
    kernel = torch.tensor(w.transpose(3, 2, 0, 1))
    theirs = F.conv2d(image, kernel, torch.tensor(b), stride=2, padding=1)
    ours = layers.conv({"kernel": w, "bias": b}, jnp.asarray(x), 2, 1)
    np.testing.assert_allclose(ours, last(theirs), atol=1e-12)
    pooled = last(F.max_pool2d(image, 3, 2, 1))
    np.testing.assert_allclose(layers.max_pool(jnp.asarray(x), 3, 2, 1), pooled, atol=1e-12)
    mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    normed = last(F.batch_norm(image, mean, var, training=True, momentum=0.1, eps=1e-5))
    p, s = {"scale": jnp.ones(3), "bias": jnp.zeros(3)}, layers.statistics(3)
    y, after = layers.batch_norm(p, s, jnp.asarray(x), train=True, unbiased=True)
    np.testing.assert_allclose(y, normed, atol=1e-12)
    np.testing.assert_allclose(after["var"], var.numpy(), atol=1e-12)


# ---- whole networks against numpy ----------------------------------------------------------------


def relu(x):
    return np.maximum(x, 0)


def perturbed(net, seed=0, dtype=np.float64):
    """Parameters and statistics of no special value: biases not 0, variances not 1.

    Drawn by numpy, so that a test compiles its network and nothing else.
    """
    params, stats = jax.eval_shape(net.init, jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(name, shape):
        if name.endswith("kernel"):
            return rng.normal(size=shape) / math.sqrt(math.prod(shape[:-1]))
        return (1.0 if name.endswith(("scale", "var")) else 0.0) + 0.2 * rng.uniform(size=shape)

    values = lambda tree: unflatten(
        {k: draw(k, a.shape).astype(dtype) for k, a in flatten(tree).items()}, tree
    )
    return values(params), values(stats)


def np_lenet(p, s, x, rectified):
    for layer in ("conv_1", "conv_2"):
        x = np_conv(x, p[layer]["kernel"]) + p[layer]["bias"]
        x = np_pool(relu(x) if rectified else x, 2, 2, np.max)
    x = relu(x.reshape(len(x), -1) @ p["dense_1"]["kernel"] + p["dense_1"]["bias"])
    return x @ p["dense_2"]["kernel"] + p["dense_2"]["bias"]


def np_resnet(p, s, x, shortcut):
    x = relu(np_norm(p["bn_1"], s["bn_1"], np_conv(x, p["conv_1"]["kernel"], padding=1)))
    for stage in (1, 2, 3):
        q, t = p[f"stage_{stage}"]["block_1"], s[f"stage_{stage}"]["block_1"]
        stride = 1 if stage == 1 else 2
        h = np_conv(x, q["conv_1"]["kernel"], stride, 1)
        h = relu(np_norm(q["bn_1"], t["bn_1"], h))
        h = np_norm(q["bn_2"], t["bn_2"], np_conv(h, q["conv_2"]["kernel"], padding=1))
        if stage > 1 and shortcut == "B":
            x = np_conv(x, q["shortcut"]["kernel"], 2)
            x = np_norm(q["bn_shortcut"], t["bn_shortcut"], x)
        elif stage > 1:
            new = x.shape[-1] // 2  # planes / 4 on each side
            x = np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (new, new)))
        x = relu(h + x)
    return x.mean((1, 2)) @ p["dense_1"]["kernel"] + p["dense_1"]["bias"]


def np_mobile(p, s, x):
    norm = lambda p, s, name, x: relu(np_norm(p[name], s[name], x))
    x = norm(p, s, "bn_1", np_conv(x, p["conv_1"]["kernel"], 1, 1))
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    for k, stride in enumerate(strides, start=1):
        q, t = p[f"block_{k}"], s[f"block_{k}"]
        x = norm(q, t, "bn_1", np_conv(x, q["depthwise"]["kernel"], stride, 1, x.shape[-1]))
        x = norm(q, t, "bn_2", np_conv(x, q["pointwise"]["kernel"]))
    return x.mean((1, 2)) @ p["dense_1"]["kernel"] + p["dense_1"]["bias"]


WHOLE = [
    ("lenet-5-caffe", {}, functools.partial(np_lenet, rectified=False)),
    ("lenet-5-relu", {}, functools.partial(np_lenet, rectified=True)),
    (
        "resnet-8",
        {"width": 4, "input_shape": (6, 8, 3)},
        functools.partial(np_resnet, shortcut="B"),
    ),
    pytest.param(
        "resnet-8",
        {"width": 4, "input_shape": (6, 8, 3), "shortcut": "A"},
        functools.partial(np_resnet, shortcut="A"),
        marks=pytest.mark.long,
    ),
    pytest.param(
        "mobilenet-v1",
        {"width": 0.1, "input_shape": (16, 16, 3)},
        np_mobile,
        marks=pytest.mark.long,
    ),
]


@pytest.mark.parametrize(("name", "options", "oracle"), WHOLE)
def test_networks_are_what_numpy_computes(name, options, oracle, x64):
    net = network(name, **options)
    params, stats = perturbed(net)
    x = drawn(2, *net.input_shape, seed=5)
    found = jax.jit(net.apply)(params, stats, x)
    np.testing.assert_allclose(found, oracle(params, stats, x), atol=1e-10, rtol=1e-10)


def test_training_mode_carries_every_statistic_and_evaluation_none(x64):
    """By two updates the batch's own statistics are found: mean of the stem by hand."""
    net = network("resnet-8", width=2, input_shape=(6, 6, 1))
    params, stats = perturbed(net)
    x = drawn(4, 6, 6, 1)
    found = jax.jit(lambda p, x: batch_statistics(net, p, x, jax.random.key(0)))(params, x)
    stem = np_conv(x, params["conv_1"]["kernel"], padding=1)
    np.testing.assert_allclose(found["bn_1"]["mean"], stem.mean((0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(found["bn_1"]["var"], stem.var((0, 1, 2)), atol=1e-12)
    before = {k: np.asarray(v) for k, v in flatten(stats).items()}
    assert all(np.any(v != before[k]) for k, v in flatten(found).items())


def test_dropout_is_drawn_anew_with_each_key_and_off_in_evaluation(getkey):
    net = network("ntt-conv-4", width=2, hidden=8, input_shape=(16, 16, 1))
    still = network("ntt-conv-4", width=2, hidden=8, input_shape=(16, 16, 1), rates=(0.0, 0.0))
    params, stats = perturbed(net, dtype=np.float32)
    x = drawn(2, 16, 16, 1).astype(np.float32)
    run = jax.jit(lambda key: net.train(params, stats, x, key)[0])
    a, b = getkey(), getkey()
    np.testing.assert_array_equal(run(a), run(a))
    assert np.any(np.asarray(run(a)) != np.asarray(run(b)))
    plain = jax.jit(still.train)(params, stats, x, a)[0]
    np.testing.assert_allclose(jax.jit(net.apply)(params, stats, x), plain, atol=1e-6)


# ---- parameters from which units were cut --------------------------------------------------------


def cut(tree, axes, kept):
    """The tree with the units ``kept`` alone, along the given axis of each named leaf."""
    flat = dict(flatten(tree))
    for name, axis in axes.items():
        flat[name] = np.take(flat[name], kept, axis)
    return unflatten(flat, tree)


CUTS = [  # network, options, leaves that have the units (and the axis), number of units
    (
        "lenet-5-relu",
        {"input_shape": (16, 16, 1)},
        {"conv_1/kernel": 3, "conv_1/bias": 0, "conv_2/kernel": 2},
        20,
    ),
    (
        "resnet-8",
        {"width": 4, "input_shape": (4, 4, 1)},
        {
            "stage_2/block_1/conv_1/kernel": 3,
            "stage_2/block_1/bn_1/scale": 0,
            "stage_2/block_1/bn_1/bias": 0,
            "stage_2/block_1/conv_2/kernel": 2,
        },
        8,
    ),
]


@pytest.mark.parametrize(("name", "options", "axes", "units"), CUTS)
def test_networks_run_on_parameters_whose_units_were_cut(name, options, axes, units, x64):
    """Units that nothing reads may go; widths are read from the kernels."""
    net = network(name, **options)
    params, stats = perturbed(net)
    kept = np.arange(0, units, 2)
    reader = list(axes)[-1]  # its rows of the units that go are zero
    flat = dict(flatten(params))
    weights = np.moveaxis(flat[reader].copy(), axes[reader], 0)
    weights[1::2] = 0
    flat[reader] = np.moveaxis(weights, 0, axes[reader])
    params = unflatten(flat, params)
    of_stats = {k: 0 for k in flatten(stats) if k.rsplit("/", 1)[0] + "/scale" in axes}
    small = cut(params, axes, kept), cut(stats, of_stats, kept)
    x = drawn(2, *net.input_shape)
    # Training mode where batch statistics make it another function; each program costs seconds.
    mode = (lambda *a: net.train(*a, jax.random.key(0))[0]) if of_stats else net.apply
    whole = jax.jit(mode)(params, stats, x)
    np.testing.assert_allclose(jax.jit(mode)(*small, x), whole, atol=1e-11)


# ---- training ------------------------------------------------------------------------------------


def tiny_sets(shape=(6, 6, 1), classes=3):
    rng = np.random.default_rng(0)
    labels = np.arange(30) % classes
    patterns = rng.integers(0, 200, size=(classes, *shape))
    images = patterns[labels] + rng.integers(0, 50, size=(30, *shape))
    part = lambda k: (images[k::3].astype(np.uint8), labels[k::3])
    return from_arrays("tiny", part(0), part(1), part(2))


def by_hand(t, steps):
    """The steps of plain SGD, one call each, with no loop in the program and no pass over it."""
    data, mask = t.data, t.mask
    params, stats = apply_mask(mask, jax.tree.map(jnp.asarray, t.start)), t.stats
    order = Order(t.key, len(data.train.labels), t.recipe.batch).indices(0, steps)

    @jax.jit
    def step(params, stats, x, y, key):
        def loss(p):
            z, after = t.network.train(p, stats, x, key)
            return jnp.mean(cross_entropy(z, y)), after

        grads, after = jax.grad(loss, has_aux=True)(params)
        new = jax.tree.map(lambda p, g: p - t.recipe.rate * g, params, apply_mask(mask, grads))
        return new, after

    for k in range(steps):
        images, labels = data.train.images[order[k]], data.train.labels[order[k]]
        x = (images / 255 - np.asarray(data.mean)) / np.asarray(data.std)
        params, stats = step(params, stats, x, labels, jax.random.fold_in(t.key, k))
    return params, stats


def random_half(net, params):
    rng = np.random.default_rng(1)
    half = lambda m: None if m is None else rng.random(m.shape) < 0.5
    return jax.tree.map(half, ones_mask(net.prunable(params)), is_leaf=lambda m: m is None)


def trained_as_by_hand(net):
    with jax.enable_x64(True):
        params, stats = perturbed(net)
        recipe = Recipe("sgd", 0.1, batch=5, steps=4, evaluate_every=2)
        mask = random_half(net, params)
        t = Training(net, params, stats, tiny_sets(), recipe, mask, jax.random.key(2))
        found, (params, stats) = fit(t), by_hand(t, 4)
    assert all(found.checks.values()), found.checks
    for a, b in ((found.params, params), (found.stats, stats)):
        for name, leaf in flatten(a).items():
            np.testing.assert_allclose(leaf, flatten(b)[name], atol=1e-10, err_msg=name)


@pytest.mark.long
def test_a_residual_network_trains_as_by_hand():
    """The rewritten convolutions inside the compiled loop, batch statistics and a mask."""
    trained_as_by_hand(network("resnet-8", width=2, input_shape=(6, 6, 1), outputs=3))


@pytest.mark.long
def test_a_flax_network_with_window_pooling_and_dropout_trains_as_by_hand():
    """Its poolings are the primitive's and its norm Flax's: the pass rewrites them all the same."""
    linen = pytest.importorskip("flax.linen")

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, train: bool):
            x = linen.Conv(4, (3, 3))(x)
            x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = linen.max_pool(linen.relu(x), (2, 2), (2, 2))
            x = linen.Conv(4, (3, 3), strides=2)(x).reshape(len(x), -1)
            x = linen.Dropout(0.2, deterministic=not train)(x)
            return linen.Dense(3)(x)

    trained_as_by_hand(from_flax_linen(Net(), (6, 6, 1)))


@pytest.mark.long
def test_equinox_convolutions_train_as_by_hand():
    """Channels first in the network's own code."""
    eqx = pytest.importorskip("equinox")
    from secateur.networks.adapters import from_equinox

    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        pool: eqx.nn.MaxPool2d
        out: eqx.nn.Linear

        def __init__(self, key):
            one, two = jax.random.split(key)
            self.conv = eqx.nn.Conv2d(1, 4, 3, key=one)
            self.pool = eqx.nn.MaxPool2d(2, 2)
            self.out = eqx.nn.Linear(16, 3, key=two)

        def __call__(self, x):
            x = self.pool(jax.nn.relu(self.conv(x)))
            return self.out(x.ravel())

    channels_first = lambda x: jnp.transpose(x, (2, 0, 1))
    trained_as_by_hand(from_equinox(Net, (6, 6, 1), prepare=channels_first))
