"""How the built-in networks are put together: one pass for both modes, made once.

A network is written once, as ``forward(params, stats, x, key) -> (logits, stats)``: a key means
training mode, None evaluation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cache, wraps
from numbers import Integral
from typing import Any, ParamSpec

import jax

from secateur.core.errors import SecateurError
from secateur.core.keys import Key, fold
from secateur.core.network import Network, Stats
from secateur.core.trees import Params
from secateur.networks.layers import drawn, drawn_norm, statistics

P = ParamSpec("P")
Forward = Callable[[Params, Stats, jax.Array, "Key | None"], tuple[jax.Array, Stats]]


def build(
    name: str,
    input_shape: tuple[int, ...],
    outputs: int,
    init: Callable[[Key], tuple[Params, Stats]],
    forward: Forward,
) -> Network:
    """The network of one forward pass, with `apply` and `train` made from it."""

    def apply(params: Params, stats: Stats, x: jax.Array) -> jax.Array:
        return forward(params, stats, x, None)[0]

    def train(params: Params, stats: Stats, x: jax.Array, key: Key) -> tuple[jax.Array, Stats]:
        return forward(params, stats, x, key)

    return Network(name, input_shape, outputs, init, apply, train)


def made_once(maker: Callable[P, Network]) -> Callable[P, Network]:
    """Equal options give the same object, however they were written, so programs are shared.

    Options that differ from the maker's defaults, other than input_shape and outputs, stand in the
    network's name: ``resnet-20,width=32``.
    """
    signature = inspect.signature(maker)

    @cache
    def made(items: tuple[tuple[str, Any], ...]) -> Network:
        network = maker(**dict(items))  # type: ignore[call-arg]
        told = [
            f",{option}={value}"
            for option, value in items
            if option not in ("input_shape", "outputs")
            and signature.parameters[option].default not in (inspect.Parameter.empty, value)
        ]
        return replace(network, name=network.name + "".join(told))

    @wraps(maker)
    def find(*args: P.args, **options: P.kwargs) -> Network:
        given = signature.bind(*args, **options)
        given.apply_defaults()
        once = {k: tuple(v) if isinstance(v, list) else v for k, v in given.arguments.items()}
        return made(tuple(once.items()))

    return find


def image_shape(name: str, input_shape: tuple[int, ...], outputs: int, least: int) -> None:
    """Checks that a convolutional network can read its input.

    Raises:
        SecateurError: unless ``input_shape`` is (height, width, channels) of at least ``least``
            rows and columns, and ``outputs`` a whole number of at least 1.
    """
    whole = all(isinstance(n, Integral) and int(n) >= 1 for n in (*input_shape, outputs))
    if len(input_shape) != 3 or not whole or min(input_shape[:2]) < least:
        raise SecateurError(
            f"{name} takes images (height, width, channels) of at least {least} x {least} pixels "
            f"and 1 or more outputs, not input_shape {tuple(input_shape)} with {outputs} outputs."
        )


class Leaves:
    """Shapes of kernels and widths of norms by path, collected by a maker, and how they are drawn.

    Each leaf has a random stream named by its path, so that what stands elsewhere in the network
    does not move it. Kernels of two axes are dense layers; convolutions beside a norm need no bias.
    """

    def __init__(self) -> None:
        self.kernels: dict[tuple[str, ...], tuple[int, ...]] = {}
        self.norms: dict[tuple[str, ...], int] = {}

    def conv(self, *path: str, field: int, channels: tuple[int, int]) -> None:
        """A ``field x field`` kernel from and to so many channels."""
        self.kernels[path] = (field, field, *channels)

    def dense(self, *path: str, widths: tuple[int, int]) -> None:
        """A kernel of a dense layer."""
        self.kernels[path] = widths

    def norm(self, *path: str, width: int) -> None:
        """A batch norm of so many channels."""
        self.norms[path] = width

    def init(
        self,
        initialiser: str,
        scale: str,
        dense_initialiser: str,
        dense_bias: str | None,
        bias: str | None = None,
    ) -> Callable[[Key], tuple[Params, Stats]]:
        """``key -> (params, stats)``. Arguments are names in `networks.layers`; None: no bias.

        Raises:
            SecateurError: for an unknown name.
        """
        of_conv, of_norm = drawn(initialiser, bias), drawn_norm(scale)
        of_dense = drawn(dense_initialiser, dense_bias)

        def init(key: Key) -> tuple[Params, Stats]:
            params: Params = {}
            stats: Stats = {}
            for path, shape in self.kernels.items():
                draw = of_dense if len(shape) == 2 else of_conv
                _put(params, path, draw(fold(key, *path), shape))
            for path, width in self.norms.items():
                _put(params, path, of_norm(fold(key, *path), width))
                _put(stats, path, statistics(width))
            return params, stats

        return init


def _put(tree: dict[str, Any], path: tuple[str, ...], leaves: dict[str, jax.Array]) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = leaves
