"""One convolution in the order of axes, and of the size, that XLA's CPU backend runs fast.

`convolution` is what `structure.canonical` puts in the place of `lax.conv_general_dilated`. Beside
the order of axes it knows two kinds that the backend does badly, both gradients: for a kernel
(`_kernel_gradient`) and for the input of a large kernel without padding (`_spread`). The numbers
are the same up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

try:
    from jax.experimental.xla_metadata import set_xla_metadata

    _alone: Callable[[], Any] = lambda: set_xla_metadata(inlineable="false")
except ImportError:  # the transpositions then fuse, which costs a fifth with batch norm
    _alone = nullcontext

# Transpositions of larger arrays are kept from fusing with what made the array, which would then be
# computed again in transposed order, with strided access: 30 times what the transposition takes.
LARGE = 100_000
MOST = 10  # examples of a kernel's gradient at a time
# Bytes of patches: up to here those of all examples go at once, and those of one part stay below.
FEW, CACHED = 2_000_000, 10_000_000
# A full convolution with this many times more places after it than before is made by `_spread`.
WIDER, DEEP = 1.5, 16  # and at least so many channels come in


def apart(arrays: Any) -> Any:
    """The same arrays (a tree of them), written down before anything reads them, on a CPU.

    The backend computes what is elementwise again in each loop that reads it, and one long loop may
    be far slower than two. Barriers of `jax.lax` are gone before it decides so.
    """
    if jax.default_backend() != "cpu":
        return arrays
    with _alone():
        return _same(arrays)


@jax.jit
def _same(arrays: Any) -> Any:
    return arrays


def form(axes: int) -> lax.ConvDimensionNumbers:
    """Where batch, channels and space stand in the one form: last axis channels; (*space, in, out).

    The three tuples are positions of (N, C, *space), (out, in, *space) and (N, C, *space).
    """
    last, space = axes - 1, tuple(range(1, axes - 1))
    image = (0, last, *space)
    return lax.ConvDimensionNumbers(image, (last, last - 1, *range(axes - 2)), image)


def convolution(lhs: Any, rhs: Any, params: Any) -> Any:
    """``lax.conv_general_dilated`` with these parameters of its primitive, any order of axes."""
    part = _part(lhs, rhs, params)
    return _kernel_gradient(lhs, rhs, params, part) if part else _whole(lhs, rhs, params)


def _whole(lhs: Any, rhs: Any, params: Any) -> Any:
    numbers = params["dimension_numbers"]
    n, c, *space = numbers.lhs_spec
    lhs = _turn(lhs, (n, *space, c))
    o, i, *space = numbers.rhs_spec
    rhs = _turn(rhs, (*space, i, o))
    make = _spread if _spreads(lhs, rhs, params) else _channels_last
    out = make(lhs, rhs, params)
    n, c, *space = numbers.out_spec
    return _turn(out, tuple(int(k) for k in np.argsort((n, *space, c))))


def _channels_last(lhs: Any, rhs: Any, params: Any) -> Any:
    kept = {k: v for k, v in params.items() if k != "out_sharding"}
    return lax.conv_general_dilated(lhs, rhs, **kept | {"dimension_numbers": form(lhs.ndim)})


@partial(jax.jit, static_argnums=1)
def _transposed(x: Any, order: tuple[int, ...]) -> Any:
    return lax.transpose(x, order)


def _turn(x: Any, order: tuple[int, ...]) -> Any:
    """Axes in another order; of a large array as an operation of its own."""
    if tuple(order) == tuple(range(len(order))):
        return x
    if math.prod(x.shape) <= LARGE:
        return lax.transpose(x, order)
    with _alone():
        return _transposed(x, tuple(order))


# ---- the gradient for a kernel -------------------------------------------------------------------


def _part(lhs: Any, rhs: Any, params: Any) -> int:
    """How many examples of a kernel's gradient go at a time; 0: all, or it is none.

    The gradient for a kernel is a convolution whose channels are the examples and whose kernel is
    as large as the images. The backend writes down all patches of it: 142 MB for 60 images of
    32 x 32 with 64 channels. As many images as leave them in the cache take a third to a half of
    the time, the sum over parts included; odd numbers do not fill its vectors.
    """
    numbers = params["dimension_numbers"]
    if params["feature_group_count"] > 1 or params["batch_group_count"] > 1:
        return 0
    if numbers.lhs_spec[1] != 0 or numbers.rhs_spec[1] != 0:
        return 0  # examples are not the first axis, so parts would not lie together
    space = math.prod(rhs.shape[k] for k in numbers.rhs_spec[2:])
    if space < 16:
        return 0
    made = _shape(lhs, rhs, params)
    places = math.prod(made.shape[k] for k in numbers.out_spec[2:])
    each = lhs.shape[numbers.lhs_spec[0]] * places * space * made.dtype.itemsize
    n = lhs.shape[0]
    if n * each <= FEW:
        return 0
    evens = [k for k in range(2, min(MOST, n // 2) + 1, 2) if n % k == 0]
    return max((k for k in evens if k * each <= CACHED), default=min(evens, default=0))


def _shape(lhs: Any, rhs: Any, params: Any) -> Any:
    kept = {k: v for k, v in params.items() if k != "out_sharding"}
    return jax.eval_shape(lambda a, b: lax.conv_general_dilated(a, b, **kept), lhs, rhs)


def _kernel_gradient(lhs: Any, rhs: Any, params: Any, part: int) -> Any:
    """The sum over parts of the examples."""

    def step(total: Any, examples: Any) -> tuple[Any, None]:
        lhs, rhs = examples
        return total + _whole(lhs, rhs, params), None

    cut = [x.reshape(-1, part, *x.shape[1:]) for x in (lhs, rhs)]
    out = _shape(cut[0][0], cut[1][0], params)
    return lax.scan(step, jnp.zeros(out.shape, out.dtype), cut)[0]


# ---- the gradient for the input of a large kernel without padding --------------------------------


def _spreads(lhs: Any, rhs: Any, params: Any) -> bool:
    """Whether a channels-last convolution is a full one that makes a small map much larger."""
    window, plain = rhs.shape[:-2], (1,) * (lhs.ndim - 2)
    if any(tuple(params[k]) != plain for k in ("window_strides", "lhs_dilation", "rhs_dilation")):
        return False
    if params["feature_group_count"] > 1 or params["batch_group_count"] > 1:
        return False
    if [tuple(p) for p in params["padding"]] != [(k - 1, k - 1) for k in window]:
        return False
    before, after = lhs.shape[1:-1], [s + k - 1 for s, k in zip(lhs.shape[1:-1], window)]
    made = lhs.size // lhs.shape[-1] * (rhs.size // rhs.shape[-2])  # entries of the product
    return lhs.shape[-1] >= DEEP and made > LARGE and math.prod(after) >= WIDER * math.prod(before)


def _spread(lhs: Any, rhs: Any, params: Any) -> Any:
    """One product of all pixels and all places of the kernel, then shifted sums, axis by axis.

    It takes the multiplications that the smaller map needs, where the convolution takes those of
    the larger one: 2.3 times as many for the second layer of LeNet-5 (2.2 ms instead of 8.3). The
    product is much larger than what comes out, so that it is made for a part of the examples at a
    time.
    """
    n, *space, channels = lhs.shape
    *window, _, out = rhs.shape
    into = jnp.moveaxis(rhs, -2, 0).reshape(channels, -1)
    each = math.prod(space) * into.shape[1] * lhs.dtype.itemsize
    part = max(k for k in range(1, n + 1) if n % k == 0 and (k == 1 or k * each <= FEW))

    def some(lhs: Any) -> Any:
        made = lax.dot(
            lhs.reshape(-1, channels),
            into,
            precision=params["precision"],
            preferred_element_type=params["preferred_element_type"],
        )
        made = apart(made).reshape(part, *space, *window, out)
        for axis in reversed(range(len(space))):
            size, shifted = window[axis], []
            for k in range(size):
                shifts = [(0, 0)] * (made.ndim - 1)
                shifts[1 + axis] = (size - 1 - k, k)
                place = lax.index_in_dim(made, k, 1 + len(space) + axis, False)
                shifted.append(jnp.pad(place, shifts))
            made = apart(reduce(jnp.add, shifted))
        return made

    if part == n:
        return some(lhs)
    made = lax.map(some, lhs.reshape(n // part, part, *space, channels))
    return made.reshape(n, *made.shape[2:])
