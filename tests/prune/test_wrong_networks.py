"""What is no network, and what belongs to another one, is refused in one sentence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import secateur
from secateur.core.errors import SecateurError
from secateur.core.trees import ones_mask
from secateur.networks.mlp import mlp

SMALL = mlp(6, input_shape=(4,), outputs=3)
OTHER = mlp(5, input_shape=(4,), outputs=3)


@pytest.mark.parametrize("name", ["examine", "compact"])
def test_a_ticket_of_another_network_is_refused(name):
    ticket = secateur.find(SMALL, None, "magnitude", 0.5, progress=False)
    with pytest.raises(
        SecateurError, match=r"params do not fit mlp-5: dense_1/bias is \(6,\), expected \(5,\)"
    ):
        getattr(secateur, name)(OTHER, ticket)


def test_a_function_that_was_not_adapted_is_refused():
    params, _ = SMALL.init(jax.random.key(0))
    mask = ones_mask(SMALL.prunable(params))
    for call in (
        lambda: secateur.find(SMALL.apply, None, "magnitude", 0.5, progress=False),
        lambda: secateur.examine(SMALL.apply, mask, params=params),
        lambda: secateur.compact(SMALL.apply, mask, params=params),
    ):
        with pytest.raises(SecateurError, match=r"a Network is expected, not a .*secateur\.adapt"):
            call()


@pytest.mark.parametrize("method", ["lamp", "magnitude", "phew"])
def test_weights_that_are_not_finite_have_no_rank_and_the_layer_is_named(method):
    params, _ = SMALL.init(jax.random.key(0))
    params["dense_2"]["kernel"] = params["dense_2"]["kernel"].at[0, 0].set(jnp.nan)
    with pytest.raises(SecateurError, match="dense_2/kernel"):
        secateur.find(SMALL, None, method, 0.5, params=params, progress=False)
