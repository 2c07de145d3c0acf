"""Tickets to and from PyTorch: torch itself computes the same logits from them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.core.trees import fingerprint, flatten
from secateur.networks.mlp import mlp
from secateur.prune.exchange import flattenings, from_state_dict, to_state_dict, to_torch
from secateur.prune.ticket import Provenance, Ticket, ticket

HWC = (6, 5, 3)


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def small() -> Network:
    """conv - batch norm - relu - flatten - dense - relu - dense."""

    def init(key: Any) -> Any:
        k = jax.random.split(key, 6)
        params = {
            "conv_1": {"kernel": jax.random.normal(k[0], (3, 3, 3, 4))},
            "bn_1": {"scale": jax.random.uniform(k[1], (4,)), "bias": jnp.full(4, 0.2)},
            "dense_1": {"kernel": jax.random.normal(k[2], (120, 7)), "bias": jnp.full(7, 0.1)},
            "dense_2": {"kernel": jax.random.normal(k[3], (7, 2)), "bias": jnp.zeros(2)},
        }
        stats = {"bn_1": {"mean": 0.3 * jnp.ones(4), "var": jax.random.uniform(k[4], (4,)) + 0.5}}
        return params, stats

    def apply(p: Any, s: Any, x: Any) -> Any:
        x = conv(x, p["conv_1"]["kernel"])
        bn = s["bn_1"]
        x = (x - bn["mean"]) / jnp.sqrt(bn["var"] + 1e-5) * p["bn_1"]["scale"] + p["bn_1"]["bias"]
        x = jax.nn.relu(x)
        x = x.reshape(len(x), -1)
        x = jax.nn.relu(x @ p["dense_1"]["kernel"] + p["dense_1"]["bias"])
        return x @ p["dense_2"]["kernel"] + p["dense_2"]["bias"]

    return Network("small", HWC, 2, init, apply, lambda p, s, x, k: (apply(p, s, x), s))


NET = small()


@pytest.fixture
def made() -> Ticket:
    params, stats = NET.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    mask = jax.tree.map(
        lambda m: None if m is None else rng.random(m.shape) < 0.4,
        NET.prunable(params),
        is_leaf=lambda m: m is None,
    )
    return ticket(mask, params, stats, Provenance("by hand", network="small"))


NAMES = {"conv_1": "features.0", "bn_1": "features.1", "dense_1": "head.0", "dense_2": "head.2"}


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("names", [None, NAMES])
@pytest.mark.long
def test_there_and_back_bit_for_bit(made: Ticket, masks: bool, names: Any) -> None:
    state = to_state_dict(made, NET, names, masks=masks)
    back = from_state_dict(state, NET, names)
    for tree in ("mask", "params", "stats"):
        assert fingerprint(getattr(back, tree)) == fingerprint(getattr(made, tree))
    assert back.provenance.kept == made.provenance.kept


def test_modules_of_other_names_are_matched_in_order(made: Ticket) -> None:
    back = from_state_dict(to_state_dict(made, NET, NAMES), NET)
    assert fingerprint(back.params) == fingerprint(made.params)
    assert back.provenance.record["modules"]["dense_2/kernel"] == "head.2.weight"


def test_layouts_by_hand(made: Ticket) -> None:
    state = to_state_dict(made, NET)
    kernel = flatten(made.params)["conv_1/kernel"]
    assert state["conv_1.weight"].shape == (4, 3, 3, 3)
    assert state["conv_1.weight"][1, 2, 0, 1] == kernel[0, 1, 2, 1]
    dense = flatten(made.params)["dense_1/kernel"]  # (6 * 5 * 4, 7)
    row, column, channel, out = 3, 2, 1, 5
    here, there = (row * 5 + column) * 4 + channel, (channel * 6 + row) * 5 + column
    assert state["dense_1.weight"][out, there] == dense[here, out]
    assert flattenings(NET) == {"dense_1/kernel": (6, 5, 4)}
    assert flattenings(mlp(3, input_shape=(5, 4, 1))) == {}  # one channel: the same order
    assert flattenings(mlp(3, input_shape=(5, 4, 3))) == {"dense_1/kernel": (5, 4, 3)}


def test_torch_computes_the_same_logits(made: Ticket) -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune

    def module() -> Any:
        nn = torch.nn
        return nn.ModuleDict(
            {
                "features": nn.Sequential(
                    nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
                ),
                "head": nn.Sequential(nn.Linear(120, 7), nn.ReLU(), nn.Linear(7, 2)),
            }
        ).eval()

    x = np.random.default_rng(1).normal(size=(8, *HWC)).astype(np.float32)
    wanted = np.asarray(NET.apply(made.params, made.stats, x))

    def logits(net: Any) -> np.ndarray:
        with torch.no_grad():
            z = net["features"](torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
            return net["head"](z.flatten(1)).numpy()

    plain = module()
    plain.load_state_dict(to_torch(made, NET, names=NAMES))
    np.testing.assert_allclose(logits(plain), wanted, rtol=1e-5, atol=1e-5)
    pruned = module()
    for at, i in (("features", 0), ("head", 0), ("head", 2)):
        prune.identity(pruned[at][i], "weight")
    pruned.load_state_dict(to_torch(made, NET, names=NAMES, masks=True))
    np.testing.assert_allclose(logits(pruned), wanted, rtol=1e-5, atol=1e-5)
    back = from_state_dict(pruned.state_dict(), NET)
    assert fingerprint(back.mask) == fingerprint(made.mask)
    assert fingerprint(back.params) == fingerprint(made.params)


def test_what_cannot_be_mapped_is_refused(made: Ticket) -> None:
    state = to_state_dict(made, NET)
    with pytest.raises(SecateurError, match="no layer of small"):
        to_state_dict(made, NET, {"conv_9": "x"})
    with pytest.raises(SecateurError, match="has 3 modules with weights, small has 4"):
        from_state_dict({k: v for k, v in state.items() if "dense_2" not in k}, NET)
    with pytest.raises(SecateurError, match=r"no dense_1\.bias"):
        from_state_dict(
            {k: v for k, v in state.items() if k != "dense_1.bias"}, NET, {"dense_1": "dense_1"}
        )
    with pytest.raises(SecateurError, match="does not fit dense_2/kernel"):
        from_state_dict({**state, "dense_2.weight": np.ones((7, 2))}, NET)
    odd = Network("odd", (2,), 2, lambda k: ({"a": jnp.ones((2, 2))}, {}), NET.apply, NET.train)
    with pytest.raises(SecateurError, match="no counterpart in PyTorch"):
        to_state_dict(made, odd, flattened={})


def test_a_flattening_that_cannot_be_followed_is_refused() -> None:
    def apply(p: Any, s: Any, x: Any) -> Any:
        rows = jnp.sin(x.reshape(len(x), -1))
        return jnp.concatenate([rows, rows], 1)[:, :90] @ p["dense_1"]["kernel"]

    net = Network(
        "odd", HWC, 2, lambda k: ({"dense_1": {"kernel": jnp.ones((90, 2))}}, {}), apply,
        lambda p, s, x, k: (apply(p, s, x), s),
    )  # fmt: skip
    with pytest.raises(SecateurError, match="no dense kernel was found"):
        flattenings(net)
