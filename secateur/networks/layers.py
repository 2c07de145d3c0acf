"""The handful of layers and initialisers that the built-in networks are made of.

Every layer is a plain function of its parameters and works for any width: a network written with
them runs unchanged on parameters from which whole units were cut (`structure.compact`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp

from secateur.core.errors import lookup
from secateur.core.keys import Key, fold

Initialiser = Callable[[Key, tuple[int, ...]], jax.Array]
BiasInitialiser = Callable[[Key, int, int], jax.Array]
Padding = str | int

# Of batch norm in PyTorch and in every repository of networks.md. PyTorch calls .1 what is 1 - .9.
MOMENTUM, EPSILON = 0.9, 1e-5


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Fan-in and fan-out of a kernel (..., in, out); the leading axes are the receptive field."""
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field


def glorot_normal(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """w ~ N(0, 2 / (fan_in + fan_out)). Glorot & Bengio 2010; Frankle & Carbin 2019, appendix.

    Not truncated: Keras and Flax truncate at two standard deviations and rescale.
    """
    fan_in, fan_out = _fans(shape)
    return jax.random.normal(key, shape) * math.sqrt(2 / (fan_in + fan_out))


def glorot_uniform(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """w ~ U(-a, a), a = sqrt(6 / (fan_in + fan_out)). Glorot & Bengio 2010, eq. 16."""
    fan_in, fan_out = _fans(shape)
    a = math.sqrt(6 / (fan_in + fan_out))
    return jax.random.uniform(key, shape, minval=-a, maxval=a)


def kaiming_normal(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """w ~ N(0, 2 / fan_in), as in open_lth (fan-in, gain sqrt 2). He et al. 2015, eq. 10."""
    return jax.random.normal(key, shape) * math.sqrt(2 / _fans(shape)[0])


def kaiming_uniform(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """w ~ U(-a, a), a = sqrt(6 / fan_in): the variance of `kaiming_normal`. He et al. 2015."""
    a = math.sqrt(6 / _fans(shape)[0])
    return jax.random.uniform(key, shape, minval=-a, maxval=a)


def kaiming_normal_fan_out(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """w ~ N(0, 2 / fan_out), fan_out = out k^2. GraSP, PHEW, SynFlow's ResNet-18; torchvision."""
    return jax.random.normal(key, shape) * math.sqrt(2 / _fans(shape)[1])


def torch_uniform(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """w ~ U(-a, a), a = 1 / sqrt(fan_in): what PyTorch's layers draw if nobody asks otherwise."""
    a = 1 / math.sqrt(_fans(shape)[0])
    return jax.random.uniform(key, shape, minval=-a, maxval=a)


def variance_scaling(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """w of variance 1 / fan_in, normal cut at two deviations: TensorFlow's default. SNIP's code."""
    draw = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
    return draw(key, shape, jnp.result_type(float))


def small_normal(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """w ~ N(0, 0.01^2), whatever the fan: dense layers of torchvision's and GraSP's VGG."""
    return 0.01 * jax.random.normal(key, shape)


INITIALISERS: dict[str, Initialiser] = {
    "glorot_normal": glorot_normal,
    "glorot_uniform": glorot_uniform,
    "kaiming_normal": kaiming_normal,
    "kaiming_normal_fan_out": kaiming_normal_fan_out,
    "kaiming_uniform": kaiming_uniform,
    "torch_uniform": torch_uniform,
    "variance_scaling": variance_scaling,
    "small_normal": small_normal,
}


def _zeros(key: Key, size: int, fan_in: int) -> jax.Array:
    return jnp.zeros(size)


def _torch_bias(key: Key, size: int, fan_in: int) -> jax.Array:
    a = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, (size,), minval=-a, maxval=a)


def _small_bias(key: Key, size: int, fan_in: int) -> jax.Array:
    return 0.01 * jax.random.normal(key, (size,))


BIASES: dict[str, BiasInitialiser] = {
    "zeros": _zeros,
    "torch_uniform": _torch_bias,  # U(-a, a), a = 1 / sqrt(fan_in) of the kernel beside it
    "small_normal": _small_bias,  # N(0, 0.01^2)
}

Drawn = Callable[[Key, tuple[int, ...]], dict[str, jax.Array]]


def drawn(initialiser: str, bias: str | None) -> Drawn:
    """``(key, shape of the kernel) -> {"kernel", "bias"?}``; bias None leaves it out.

    Raises:
        SecateurError: for a name that is not in `INITIALISERS` or `BIASES`.
    """
    kernel = lookup("initialiser", initialiser, INITIALISERS)
    shift = None if bias is None else lookup("initialiser of biases", bias, BIASES)

    def draw(key: Key, shape: tuple[int, ...]) -> dict[str, jax.Array]:
        params = {"kernel": kernel(fold(key, "kernel"), shape)}
        if shift is not None:
            params["bias"] = shift(fold(key, "bias"), shape[-1], _fans(shape)[0])
        return params

    return draw


def _uniform_scale(key: Key, width: int) -> jax.Array:
    return jax.random.uniform(key, (width,))


SCALES: dict[str, Callable[[Key, int], jax.Array]] = {
    "ones": lambda key, width: jnp.ones(width),
    "uniform": _uniform_scale,  # U(0, 1), the default of open_lth (models/bn_initializers.py)
}


def drawn_norm(scale: str) -> Callable[[Key, int], dict[str, jax.Array]]:
    """``(key, channels) -> {"scale", "bias"}`` of a batch norm; the shift starts at 0.

    Raises:
        SecateurError: for a name that is not in `SCALES`.
    """
    draw = lookup("initialiser of batch norm scales", scale, SCALES)
    return lambda key, width: {"scale": draw(key, width), "bias": jnp.zeros(width)}


def statistics(width: int) -> dict[str, jax.Array]:
    """The statistics of a new batch norm: mean 0 and variance 1."""
    return {"mean": jnp.zeros(width), "var": jnp.ones(width)}


def dense(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """z = x W + b; x is (n, in), ``kernel`` (in, out), ``bias`` (out,)."""
    z = x @ params["kernel"]
    return z + params["bias"][None, :] if "bias" in params else z


def flat(x: jax.Array) -> jax.Array:
    """(n, ...) -> (n, features)."""
    return jnp.reshape(x, (x.shape[0], -1))


def conv(
    params: dict[str, jax.Array],
    x: jax.Array,
    stride: int = 1,
    padding: Padding = "SAME",
    groups: int = 1,
) -> jax.Array:
    """Cross-correlation plus bias; x (n, h, w, in), ``kernel`` (kh, kw, in / groups, out).

    Args:
        padding: ``"SAME"``, ``"VALID"``, or the zeros on each side. With stride 2 an even map and
            a 3x3 kernel these differ: PyTorch's padding 1 pads both sides, ``"SAME"`` one.

    Returns:
        (n, h', w', out).
    """
    pads = padding if isinstance(padding, str) else [(padding, padding)] * 2
    z = jax.lax.conv_general_dilated(
        x,
        params["kernel"],
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return z + params["bias"][None, None, None, :] if "bias" in params else z


def _windows(x: jax.Array, window: int, stride: int) -> list[jax.Array]:
    """For each place in the window, row by row: the entries of x there, one for each window."""
    n, h, w, c = x.shape
    rows, columns = (h - window) // stride + 1, (w - window) // stride + 1
    return [
        jax.lax.slice(
            x,
            (0, i, j, 0),
            (n, i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1, c),
            (1, stride, stride, 1),
        )
        for i in range(window)
        for j in range(window)
    ]


@partial(jax.jit, static_argnames=("window", "stride", "padding"))
def max_pool(x: jax.Array, window: int, stride: int | None = None, padding: int = 0) -> jax.Array:
    """The largest of each ``window x window`` patch; x (n, h, w, c).

    By strided slices: the gradient of the primitive is a scalar loop on the CPU, ten times slower.
    As there, the first of equal maxima gets the gradient. A NaN that is not the last of its window
    is passed over. In a traced program this is one call by the name ``max_pool``.

    Args:
        stride: between windows; default: the window, so that they do not overlap.
        padding: rows and columns of -inf on each side.
    """
    if padding:
        edge = (padding, padding, 0)
        lowest = jnp.asarray(-jnp.inf, x.dtype)
        x = jax.lax.pad(x, lowest, ((0, 0, 0), edge, edge, (0, 0, 0)))
    first_of_equals = lambda a, b: jnp.where(a >= b, a, b)
    return reduce(first_of_equals, _windows(x, window, stride or window))


@partial(jax.jit, static_argnames=("window", "stride"))
def average_pool(x: jax.Array, window: int, stride: int | None = None) -> jax.Array:
    """The mean of each ``window x window`` patch, without padding; x (n, h, w, c).

    In a traced program this is one call by the name ``average_pool``.
    """
    places = _windows(x, window, stride or window)
    return reduce(jnp.add, places) / len(places)


def global_average_pool(x: jax.Array) -> jax.Array:
    """(n, h, w, c) -> (n, c), the mean of each map."""
    return jnp.mean(x, axis=(1, 2))


def batch_norm(
    params: dict[str, jax.Array],
    stats: dict[str, jax.Array],
    x: jax.Array,
    train: bool,
    unbiased: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """y = (x - mean) / sqrt(var + 1e-5) * scale + bias for each channel. Ioffe & Szegedy 2015.

    Args:
        params: ``scale`` and ``bias``, (c,).
        stats: ``mean`` and ``var``, (c,): used in evaluation, carried on in training with
            momentum .9.
        x: (..., c); channels last.
        train: normalise by mean and variance of the batch; the variance is the biased one, over
            count.
        unbiased: the running variance takes the batch's over count - 1, as PyTorch does;
            count is that of all pixels of all examples.

    Returns:
        y like x, and the statistics after this batch (the same ones in evaluation).
    """
    mean, var = stats["mean"], stats["var"]
    if train:
        axes = tuple(range(x.ndim - 1))
        mean = jnp.mean(x, axis=axes)
        var = jnp.mean(jnp.square(x - _last(mean, x)), axis=axes)
        count = x.size // x.shape[-1]
        kept = var * (count / (count - 1)) if unbiased and count > 1 else var
        stats = {
            "mean": MOMENTUM * stats["mean"] + (1 - MOMENTUM) * mean,
            "var": MOMENTUM * stats["var"] + (1 - MOMENTUM) * kept,
        }
    gain = params["scale"] * jax.lax.rsqrt(var + EPSILON)
    return (x - _last(mean, x)) * _last(gain, x) + _last(params["bias"], x), stats


def _last(v: jax.Array, x: jax.Array) -> jax.Array:
    """(c,) with as many axes as x, so that no rank is promoted unseen."""
    return jnp.reshape(v, (1,) * (x.ndim - 1) + v.shape)


def dropout(x: jax.Array, rate: float, key: Key | None) -> jax.Array:
    """Each entry 0 with probability ``rate``, else x / (1 - rate); x itself where key is None."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


def residual_shape(x: jax.Array, like: Sequence[int], stride: int) -> jax.Array:
    """He et al.'s shortcut A: every ``stride``-th row and column, zeros for the new channels.

    Args:
        x: (n, h, w, c); like: the shape (n, h', w', c') of what it is added to; half of the new
            channels stand before the old ones and half behind.
    """
    n, h, w, c = x.shape
    x = jax.lax.slice(x, (0, 0, 0, 0), (n, h, w, c), (1, stride, stride, 1))
    before = (like[-1] - c) // 2
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, like[-1] - c - before)))
