"""Networks by name: ``network("resnet-20", outputs=100)``.

Makers are named, not imported, so that listing the names loads no array library.
"""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from secateur.core.errors import SecateurError, lookup, nearest

if TYPE_CHECKING:
    from secateur.core.network import Network


@dataclass(frozen=True)
class Entry:
    """A row of the table: where the maker is, and what the name says to it.

    Attributes:
        maker: ``"module:function"`` in `secateur.networks`.
        given: arguments that the name stands for; positional ones first, in order.
        title: for lists.
    """

    maker: str
    given: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""

    def function(self) -> Callable[..., Network]:
        """The maker itself."""
        module, name = self.maker.split(":")
        found = getattr(importlib.import_module(f"secateur.networks.{module}"), name)
        return found


def lenet_300_100(
    input_shape: tuple[int, ...] = (28, 28, 1),
    outputs: int = 10,
    initialiser: str = "glorot_normal",
    activation: str = "relu",
    bias: bool = True,
) -> Network:
    """`networks.mlp.mlp(300, 100)` for any input and number of outputs."""
    from secateur.networks.mlp import mlp

    usual = {"input_shape": (28, 28, 1), "outputs": 10, "activation": "relu", "bias": True}
    told = {"input_shape": tuple(input_shape), "outputs": outputs, "activation": activation}
    changed = {k: v for k, v in {**told, "bias": bias}.items() if v != usual[k]}
    return mlp(300, 100, initialiser=initialiser, **changed)


NETWORKS: dict[str, Entry] = {
    "lenet-300-100": Entry("registry:lenet_300_100", {}, "LeNet-300-100, fully connected"),
    "lenet-5-caffe": Entry("lenet:lenet_5", {"variant": "caffe"}, "LeNet-5-Caffe, as SNIP has it"),
    "lenet-5-relu": Entry("lenet:lenet_5", {"variant": "relu"}, "LeNet-5-Caffe with more ReLU"),
    "conv-2": Entry("conv:conv_net", {"depth": 2}, "Conv-2 of the lottery ticket paper"),
    "conv-4": Entry("conv:conv_net", {"depth": 4}, "Conv-4 of the lottery ticket paper"),
    "conv-6": Entry("conv:conv_net", {"depth": 6}, "Conv-6 of the lottery ticket paper"),
    "ntt-conv-4": Entry("conv:ntt_conv_4", {}, "Conv-4 of Neural Tangent Transfer"),
    "synflow-fc": Entry("conv:synflow_fc", {}, "SynFlow's default fully connected network"),
    "synflow-conv": Entry("conv:synflow_conv", {}, "SynFlow's default convolutional network"),
    **{f"vgg-{d}": Entry("vgg:vgg", {"depth": d}, f"VGG-{d}") for d in (11, 13, 16, 19)},
    "vgg-snip-d": Entry("vgg:vgg", {"depth": 16, "code": "snip-d"}, "VGG-D of SNIP"),
    "vgg-snip-like": Entry("vgg:vgg", {"depth": 16, "code": "snip-like"}, "VGG-like of SNIP"),
    **{
        f"resnet-{d}": Entry("resnet:resnet", {"depth": d}, f"ResNet-{d} for CIFAR")
        for d in (20, 32, 56)
    },
    **{
        f"resnet-{d}": Entry("resnet:deep_resnet", {"depth": d}, f"ResNet-{d}")
        for d in (18, 34, 50)
    },
    **{
        f"wrn-{d}-{k}": Entry(
            "resnet:wide_resnet", {"depth": d, "factor": k}, f"Wide ResNet {d}-{k}"
        )
        for d, k in ((16, 8), (22, 8), (28, 10))
    },
    "mobilenet-v1": Entry("mobilenet:mobilenet_v1", {}, "MobileNetV1"),
    "mobilenet-v2": Entry("mobilenet:mobilenet_v2", {}, "MobileNetV2"),
}

# Families whose other depths go by the same rule.
_CIFAR_RESNET = re.compile(r"resnet-(\d+)")
_WIDE = re.compile(r"wrn-(\d+)-(\d+)")


def entry(name: str) -> Entry:
    """The row of ``name``; ``resnet-44`` and ``wrn-40-4`` follow the rule of their families.

    Raises:
        SecateurError: for an unknown name, with the nearest known one.
    """
    if name not in NETWORKS:
        if found := _WIDE.fullmatch(name):
            depth, factor = map(int, found.groups())
            return Entry("resnet:wide_resnet", {"depth": depth, "factor": factor}, name)
        if (found := _CIFAR_RESNET.fullmatch(name)) and int(found[1]) % 6 == 2:
            return Entry("resnet:resnet", {"depth": int(found[1])}, name)
    return lookup("network", name, NETWORKS)


def option_types(name: str) -> dict[str, Any]:
    """The options of a network's maker and their types.

    Raises:
        SecateurError: for an unknown name, with the nearest known one.
    """
    row = entry(name)
    maker = inspect.unwrap(row.function())
    hints = typing.get_type_hints(maker, localns={"Network": object})  # not imported here
    return {k: hints[k] for k in inspect.signature(maker).parameters if k not in row.given}


def network(name: str, **options: Any) -> Network:
    """The built-in network of that name; equal options give the same object.

    Args:
        name: one of `NETWORKS`, or another depth of a family.
        options: of its maker, e.g. ``outputs=100``, ``width=32``, ``stem="7x7"``.

    Raises:
        SecateurError: for an unknown name or option, or what the maker refuses.
    """
    row = entry(name)
    maker = row.function()
    free = [p for p in inspect.signature(maker).parameters if p not in row.given]
    wrong = [option for option in options if option not in free]
    if wrong:
        raise SecateurError(f"{name} has no option {wrong[0]!r}. {nearest(wrong[0], free)}")
    return maker(**row.given, **options)
