"""CPU seconds of one forward pass of a pruned VGG-16, masked and compacted, in one process.

    python benchmarks/compact.py [--batch 8] [--repeats 5] [--synflow DENSITY] [--quick]

The mask keeps the half of each convolution's filters that have the larger norm, and what reads
them: channels, as structured pruning leaves them. A quarter of the products is then left, on
images of 64 x 64 (Tiny-ImageNet's). On 32 x 32 the last maps are 2 x 2, and there XLA's CPU backend
falls to a slow routine for many channels: 1 GFLOP/s for 512 where 4 x 4 maps get 81. The masked
network spends nine tenths of its time there, the compacted one escapes most of it: that arm's ratio
says more of XLA than of pruning. With
``--synflow`` a third arm prunes single weights by SynFlow to a density; how many channels die, and
so what compaction brings, is up to the density, and its bound is only that it costs nothing.

Both sides are compiled programs of the same network function in evaluation mode and see the same
images; calls alternate. Logits are compared first, so a fast wrong answer ends the benchmark.
"""

from __future__ import annotations

import argparse
import os
import statistics
from typing import Any

import numpy as np
from measure import ONE_THREAD, arm, conclude, cpu_of, peak_mb

BOUNDS = {"64x64": 0.5, "32x32": 0.5, "synflow": 1.0}  # arm: compacted over masked, at most


def half_of_the_channels(network: Any, params: Any) -> Any:
    """The mask that keeps the filters of larger norm in each convolution, and their readers."""
    from secateur.core.trees import flatten, unflatten

    flat = {k: np.asarray(v) for k, v in flatten(params).items()}
    order = sorted(
        (k for k in flat if k.endswith("/kernel") and flat[k].ndim == 4),
        key=lambda k: int(k.split("/")[0].rsplit("_", 1)[1]),
    )
    masks: dict[str, Any] = {
        k: np.ones(v.shape, bool) if k.endswith("/kernel") else None for k, v in flat.items()
    }
    for before, after in zip([None, *order], [*order, None], strict=True):
        if before is None:
            continue
        norms = np.sqrt((flat[before] ** 2).sum((0, 1, 2)))
        gone = norms < np.median(norms)
        masks[before][..., gone] = False
        if after is not None:
            masks[after][:, :, gone] = False
    return unflatten(masks, params)


def synflow(network: Any, params: Any, stats: Any, density: float) -> Any:
    """SynFlow's mask at a density, in its 100 rounds."""
    from secateur.prune.find import find

    return find(network, method="synflow", density=density, params=params, stats=stats).mask


def compare(network: Any, params: Any, stats: Any, mask: Any, options: Any) -> dict[str, Any]:
    """CPU seconds of one call before and after, and what was left."""
    import jax

    from secateur.core.trees import apply_mask, density
    from secateur.prune.compact import compact

    small = compact(network, mask, params=params, stats=stats, inexact="keep")
    images = np.random.default_rng(0).standard_normal((options.batch, *network.input_shape))
    x = jax.numpy.asarray(images, jax.numpy.float32)
    whole = apply_mask(mask, params)
    sides = {
        "compacted": (jax.jit(small.network.apply), (small.params, small.stats, x)),
        "masked": (jax.jit(network.apply), (whole, stats, x)),
    }
    logits = {k: np.asarray(f(*given)) for k, (f, given) in sides.items()}  # compiles, too
    scale = abs(logits["masked"]).max()
    apart = float(abs(logits["compacted"] - logits["masked"]).max() / scale)
    if not apart <= 1e-4:
        raise SystemExit(f"the compacted network is another function: logits differ by {apart:.1e}")
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(options.repeats):
        for side, (f, given) in sides.items():
            seconds[side].append(cpu_of(lambda f=f, given=given: f(*given).block_until_ready()))
    found = {
        side: {"best": min(s), "median": statistics.median(s), "peak_mb": peak_mb()}
        for side, s in seconds.items()
    }
    return {
        "sides": found,
        "density": round(density(mask), 5),
        "parameters": [sum(int(np.size(p)) for p in jax.tree.leaves(params)), small.size],
        "logits_apart": apart,
    }


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--batch", type=int, default=8, help="images a call")
    parser.add_argument("--repeats", type=int, default=5, help="calls of each side")
    parser.add_argument("--synflow", type=float, help="also a mask of SynFlow at this density")
    parser.add_argument("--quick", action="store_true", help="a quarter of the width, 2 calls")
    options = parser.parse_args()

    for name, value in ONE_THREAD.items():  # before JAX is imported
        os.environ.setdefault(name, value)
    import jax

    from secateur.networks.registry import network as by_name

    width = 16 if options.quick else 64
    options.repeats = min(options.repeats, 2) if options.quick else options.repeats
    measured = {}
    for side in (64, 32):
        network = by_name("vgg-16", width=width, input_shape=(side, side, 3))
        params, stats = jax.jit(network.init)(jax.random.key(0))
        mask = half_of_the_channels(network, params)
        measured[f"{side}x{side}"] = compare(network, params, stats, mask, options)
    if options.synflow is not None:
        mask = synflow(network, params, stats, options.synflow)
        measured["synflow"] = compare(network, params, stats, mask, options)
    arms = {
        k: arm(found["sides"]["compacted"], found["sides"]["masked"], BOUNDS[k])
        for k, found in measured.items()
    }
    for found in measured.values():
        del found["sides"]
    conclude("compact", arms, network="vgg-16", width=width, batch=options.batch, measured=measured)


if __name__ == "__main__":
    main()
