"""PHEW where maps shrink to 1 x 1 or 2 x 2: most places of a 3 x 3 kernel see padding alone.

Weights that see nothing but zeros are on no path. They are never met, they are not counted among
those that can be, and asking for the others ends.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.trees import flatten, ones_mask, unflatten
from secateur.networks.registry import network
from secateur.prune.criteria.phew import Phew
from secateur.prune.problem import Problem
from secateur.structure.flow import reachable

KEY = jax.random.key(1)


def begun(net: Any) -> tuple[Any, Any, Any]:
    """Kaiming normal kernels, norms as they start, and the mask that keeps all."""
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> Any:
        if name.endswith("kernel"):
            return rng.normal(0, math.sqrt(2 / math.prod(shape[:-1])), shape).astype(np.float32)
        return np.full(shape, float(name.endswith(("scale", "var"))), np.float32)

    params, stats = (
        unflatten({k: draw(k, a.shape) for k, a in flatten(tree).items()}, tree)
        for tree in jax.eval_shape(net.init, KEY)
    )
    return params, stats, ones_mask(net.prunable(params))


def ravelled(mask: Any) -> Any:
    return np.concatenate([np.ravel(m) for m in flatten(mask).values() if m is not None])


CASES = [  # network, options, kernels of which only the centre sees a pixel
    ("resnet-8", {"width": 3, "input_shape": (4, 4, 3)}, ["stage_3/block_1/conv_2"]),
    ("vgg-11", {"width": 2, "input_shape": (16, 16, 3)}, ["conv_7", "conv_8"]),
    ("vgg-11", {"width": 2}, []),  # ends in maps of 2 x 2, where every place sees a pixel
    ("vgg-snip-d", {"width": 2}, []),  # a fifth pooling, to 1 x 1, and dense layers behind it
    ("mobilenet-v1", {"width": 0.0625, "input_shape": (16, 16, 3)}, ["block_13/depthwise"]),
]


@pytest.mark.parametrize(
    ("name", "options", "centres"),
    [CASES[0], *(pytest.param(*case, marks=pytest.mark.long) for case in CASES[1:])],
)
def test_phew_ends_with_whole_walks_and_at_most_a_path_too_many(
    name: str, options: dict[str, Any], centres: list[str]
) -> None:
    net = network(name, **options)
    params, stats, mask = begun(net)
    problem = Problem(net, stats)
    everything = reachable(net, params, stats, mask).effective
    on_paths = ravelled(everything)
    reach, layers = int(on_paths.sum()), len([m for m in flatten(mask).values() if m is not None])
    for kernel in centres:
        places = np.asarray(flatten(everything)[f"{kernel}/kernel"]).any((2, 3))
        np.testing.assert_array_equal(places, np.outer([0, 1, 0], [0, 1, 0]))
    assert (reach < on_paths.size) == bool(centres)

    shares = []
    for keep in (1, layers, on_paths.size // 10, reach // 2):
        found, _, made = Phew(most_walks=20_000).construct(problem, params, mask, keep, KEY)
        kept = ravelled(found)
        assert keep <= made["kept"] == kept.sum() <= keep + layers - 1
        assert made["overshoot"] == made["kept"] - keep
        assert not np.any(kept & ~on_paths)
        shares.append(ravelled(reachable(net, params, stats, found).effective).sum() / kept.sum())
    # A walk does not look where on the map it is, so few walks may lead off it; many do not.
    assert min(shares[2:]) > 0.95

    # All that lies on any path is met in the end, and nothing else ever.
    even = Phew(weights="uniform", most_walks=100_000)
    found, _, made = even.construct(problem, params, mask, reach, KEY)
    assert made["overshoot"] == 0
    np.testing.assert_array_equal(ravelled(found), on_paths)
    if reach < on_paths.size:
        with pytest.raises(SecateurError, match=f"only {reach:,} can be met"):
            even.construct(problem, params, mask, reach + 1, KEY)
