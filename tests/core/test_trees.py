"""Masks and parameters by name: laws of the tree functions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.core import trees
from secateur.core.errors import SecateurError
from secateur.core.network import kernels_only

NAMES = st.text("abcxyz_0123", min_size=1, max_size=6)
LEAVES = st.one_of(
    st.none(),
    st.integers(0, 3).map(lambda n: np.arange(n, dtype=np.float32)),
    st.booleans().map(lambda b: np.full((2, 2), b)),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(NAMES, inner, min_size=1, max_size=3),
        st.lists(inner, min_size=1, max_size=3),
        st.tuples(inner, inner),
    ),
    max_leaves=8,
)


def equal(a, b) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


@given(TREES)
def test_flatten_and_unflatten_are_inverse_with_none_kept(tree):
    flat = trees.flatten(tree)
    again = trees.unflatten(flat, tree)
    is_none = lambda leaf: leaf is None
    structure = lambda t: jax.tree.structure(t, is_leaf=is_none)
    assert structure(again) == structure(tree)
    pairs = zip(
        jax.tree.leaves(again, is_leaf=is_none), jax.tree.leaves(tree, is_leaf=is_none), strict=True
    )
    assert all(equal(a, b) for a, b in pairs)
    # JAX's order: flat values without None are jax.tree.leaves.
    some = [leaf for leaf in flat.values() if leaf is not None]
    assert all(equal(a, b) for a, b in zip(some, jax.tree.leaves(tree), strict=True))


def test_names_are_paths():
    tree = {"dense_1": {"kernel": 1, "bias": None}, "list": [2, (3,)]}
    assert trees.flatten(tree) == {
        "dense_1/bias": None,
        "dense_1/kernel": 1,
        "list/0": 2,
        "list/1/0": 3,
    }


def test_two_leaves_of_one_name_are_refused():
    """One of them would be lost without a word."""
    with pytest.raises(SecateurError, match="two parameters are called 'a/b'"):
        trees.flatten({"a/b": 1, "a": {"b": 2}})


def test_a_missing_leaf_is_an_error():
    with pytest.raises(KeyError):
        trees.unflatten({"a": 1}, {"a": 0, "b": 0})


def test_fingerprints_differ_for_every_bit_shape_dtype_and_name():
    base = {"kernel": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3), "bias": np.zeros(3)}
    bits = base["kernel"].view(np.uint8).ravel()
    found = {trees.fingerprint(base)}
    for k in range(8 * len(bits)):
        flipped = bits.copy()
        flipped[k // 8] ^= 1 << (k % 8)
        found.add(trees.fingerprint({**base, "kernel": flipped.view(np.float32).reshape(2, 3)}))
    assert len(found) == 1 + 8 * len(bits)
    others = [
        {**base, "kernel": base["kernel"].reshape(3, 2)},
        {**base, "kernel": base["kernel"].T},
        {**base, "kernel": base["kernel"].astype(np.float64)},
        {**base, "kernel": base["kernel"].view(np.int32)},
        {"kernel": base["kernel"], "bias": -base["bias"]},  # -0.0 is not 0.0
        {"weight": base["kernel"], "bias": base["bias"]},
        {"kernel": base["kernel"]},
        {"layer": base},
    ]
    found |= {trees.fingerprint(tree) for tree in others}
    assert len(found) == 1 + 8 * len(bits) + len(others)


def test_fingerprints_are_of_the_values_alone():
    kernel = np.arange(6.0).reshape(2, 3)
    same = [{"k": kernel}, {"k": np.asfortranarray(kernel)}, {"k": kernel.copy(), "none": None}]
    assert len({trees.fingerprint(tree) for tree in same}) == 1
    device = {"k": jnp.asarray(kernel.astype(np.float32))}
    assert trees.fingerprint(device) == trees.fingerprint({"k": kernel.astype(np.float32)})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_mask_turns_what_is_not_finite_into_zero(bad):
    """jaxpruner multiplies by the mask, so that a NaN in a pruned place stays NaN."""
    mask = {"kernel": np.array([True, False]), "bias": None}
    params = {"kernel": np.array([1.5, bad], np.float32), "bias": np.array([bad], np.float32)}
    found = trees.apply_mask(mask, params)
    np.testing.assert_array_equal(found["kernel"], np.array([1.5, 0], np.float32))
    assert found["kernel"].dtype == np.float32
    np.testing.assert_array_equal(found["bias"], params["bias"])  # never pruned, never touched
    alive = {"kernel": np.array([True, True]), "bias": None}
    np.testing.assert_array_equal(trees.apply_mask(alive, params)["kernel"], params["kernel"])


def test_counts_and_density_are_of_prunable_leaves_alone():
    mask = {
        "a": {"kernel": np.array([[True, False], [False, False]]), "bias": None},
        "b": {"kernel": np.ones((2, 3), bool), "bias": None},
    }
    assert trees.alive(mask) == {"a/kernel": 1, "b/kernel": 6}
    assert trees.sizes(mask) == {"a/kernel": 4, "b/kernel": 6}
    assert trees.density(mask) == 7 / 10


def test_the_mask_of_ones_keeps_everything_and_is_new():
    prunable = {"kernel": np.zeros((2, 2), bool), "bias": None}
    ones = trees.ones_mask(prunable)
    assert ones["bias"] is None
    assert ones["kernel"].all()
    assert not prunable["kernel"].any()


def test_only_kernels_are_prunable_by_default():
    """LTH-rv's test is ``'weight' in name``, which takes BatchNorm's scales as well."""
    params = {
        "conv": {"kernel": np.zeros((3, 3, 1, 2)), "bias": np.zeros(2)},
        "norm": {"scale": np.zeros(2), "weight": np.zeros(2)},
        "kernel": np.zeros(3),
        "kernel_norm": {"scale": np.zeros((2, 2))},
    }
    flat = trees.flatten(kernels_only(params))
    assert [name for name, m in flat.items() if m is not None] == ["conv/kernel"]
    assert flat["conv/kernel"].all()
