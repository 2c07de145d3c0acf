"""Compaction where blocks carry their input on: the form of a shortcut is settled by the maker.

A network that compared shapes as it runs would add what it never added where two widths that
differ become equal by compaction.
"""

from __future__ import annotations

from typing import Any

import convolutional as nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.network import Network
from secateur.core.trees import flatten, unflatten
from secateur.networks.registry import network
from secateur.prune.compact import Compacted, compact
from secateur.structure.channels import read_channels

ALLOWED = {"float32": 1e-5, "float64": 1e-12}  # of the largest logit


def silenced(net: Network, makers: list[str], left: int, dtype: str) -> Any:
    """A case in which all but ``left`` channels of each of these kernels are pruned."""
    case = nets.case(net, 1, density=1.1, dead=0.0, drawn=nets.usual(net, 1))
    masks = flatten(case.mask)
    for name in makers:
        masks[f"{name}/kernel"][..., left:] = False
    cast = lambda tree: jax.tree.map(lambda a: np.asarray(a, dtype), tree)
    return nets.Case(net, cast(case.params), cast(case.stats), unflatten(masks, case.mask))


def same_function(case: Any) -> Compacted:
    small = compact(case.network, case.mask, params=case.params, stats=case.stats)
    x = nets.inputs(case.network).astype(jnp.result_type(*jax.tree.leaves(case.params)))
    expected = np.asarray(jax.jit(case.network.apply)(case.whole, case.stats, x))
    found = np.asarray(jax.jit(small.network.apply)(small.params, small.stats, x))
    assert found.dtype == expected.dtype == x.dtype
    scale = abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=ALLOWED[str(x.dtype)] * scale)
    return small


VECTORS = ("scale", "bias", "mean", "var")  # of a batch norm
# Streams of the network at a quarter of its width, and what makes each: 16 channels before block
# 11, 24 behind it. Left with 16, they are as many as those before, which are others.
JOINED = ["block_11/project", "block_12/project", "block_13/project"]


@pytest.mark.parametrize("port", [False, True])
def test_the_program_of_mobilenet_is_the_same_at_widths_that_are_equal_by_chance(
    port: bool,
) -> None:
    net = network("mobilenet-v2", width=0.25, input_shape=(8, 8, 3), outputs=3, port=port)
    whole = jax.eval_shape(net.init, jax.random.key(0))
    axes = {f"block_{k}/project/kernel": 3 for k in (11, 12, 13)}
    axes |= {f"block_{k}/expand/kernel": 2 for k in (12, 13, 14)}
    axes |= {f"block_{k}/bn_3/{leaf}": 0 for k in (11, 12, 13) for leaf in VECTORS}
    if port:
        axes |= {"block_11/shortcut/kernel": 3}
        axes |= {f"block_11/bn_shortcut/{leaf}": 0 for leaf in VECTORS}

    def cut(name: str, leaf: Any) -> Any:
        shape = list(leaf.shape)
        if name in axes:
            assert shape[axes[name]] == 24
            shape[axes[name]] = 16
        return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)

    def program(params: Any, stats: Any) -> list[str]:
        x = jax.ShapeDtypeStruct((2, *net.input_shape), np.float32)
        return [e.primitive.name for e in jax.make_jaxpr(net.apply)(params, stats, x).eqns]

    small = [unflatten({k: cut(k, a) for k, a in flatten(t).items()}, t) for t in whole]
    assert program(*small) == program(*whole)


@pytest.mark.long
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("port", "dtype"), [(False, "float64"), (False, "float32"), (True, "float64")]
)
def test_mobilenet_adds_no_input_because_two_widths_became_equal(port: bool, dtype: str) -> None:
    net = network("mobilenet-v2", width=0.25, input_shape=(8, 8, 3), outputs=3, port=port)
    makers = [*JOINED, "block_11/shortcut"] if port else JOINED
    small = same_function(silenced(net, makers, 16, dtype))
    kernel = small.params["block_11"]["project"]["kernel"]
    assert kernel.shape[-1] == small.params["block_11"]["expand"]["kernel"].shape[-2] == 16


@pytest.mark.long
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_resnet_with_shortcut_a_loses_inner_channels_and_keeps_its_streams(dtype: str) -> None:
    """Zeros are put beside a stream by its width, so all its channels stay, dead or not."""
    net = network("resnet-20", width=4, input_shape=(4, 4, 3), outputs=3, shortcut="A")
    inner = [f"stage_{s}/block_{k}/conv_1" for s in (1, 2, 3) for k in (1, 2, 3)]
    streams = [name.replace("conv_1", "conv_2") for name in inner[3:6]]
    case = silenced(net, [*inner, *streams], 2, dtype)
    small = same_function(case)
    assert set(small.widths) == set(inner)
    assert {w["left"] for w in small.widths.values()} == {2}
    assert small.params["stage_2"]["block_1"]["conv_2"]["kernel"].shape[-1] == 8
    found = read_channels(net, case.params, case.stats)
    of_stream = next(
        group for group in found.groups if ("stage_2/block_1/conv_2/kernel", 3) in group.members
    )
    assert "pad" in str(of_stream.fixed)
