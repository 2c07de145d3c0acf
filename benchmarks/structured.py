"""CPU seconds of LeNet-300-100 and Conv-2 without half, and without four fifths, of their units.

    python benchmarks/structured.py [--repeats 5] [--quick]

Units of every hidden layer go by their norm (`prune_units`), `compact` makes the smaller network,
and the whole network and the small one do the same work in one process, calls alternating: a
forward pass of 1,000 images (Conv-2: 100), and 50 training steps (2) of Adam at batch 60, on inputs
of MNIST's and CIFAR-10's shapes. Both sides are programs of the same functions, on weights as they
are drawn: time does not depend on them. The logits of the small network are compared with those of
the silenced one first, so a fast wrong answer ends the benchmark.

``products`` is the share of multiplications that is left in kernels. Time does not fall as far:
activations and pooling go with the number of units, not with its square, images are read whole, and
narrow products keep the processor less busy: a fifth of 64 filters are 13, and 16 take no longer.
"""

from __future__ import annotations

import argparse
import os
import statistics
from functools import partial
from typing import Any

import numpy as np
from measure import ONE_THREAD, arm, conclude, cpu_of, peak_mb

BOUNDS = {0.5: 0.7, 0.2: 0.4}  # part of the units left: time of the small over the whole, at most
NETWORKS = {  # images of a forward pass, steps of a training call
    "lenet-300-100": (1000, 50),
    "conv-2": (100, 2),
}
BATCH, RATE = 60, 1.2e-3


def steps_of(network: Any, count: int) -> Any:
    """``count`` steps of Adam as one program: (params, moments, images, labels) -> the same."""
    import jax
    import optax

    from secateur.structure.canonical import canonical
    from secateur.train.losses import cross_entropy

    optimiser = optax.adam(RATE)

    def loss(params: Any, x: Any, y: Any) -> Any:
        return cross_entropy(network.apply(params, {}, x), y).mean()

    def run(params: Any, moments: Any, x: Any, y: Any) -> Any:
        def step(state: Any, batch: Any) -> Any:
            params, moments = state
            updates, moments = optimiser.update(jax.grad(loss)(params, *batch), moments)
            return (optax.apply_updates(params, updates), moments), None

        return jax.lax.scan(step, (params, moments), (x, y))[0]

    return jax.jit(canonical(run)), optimiser.init


def products_of(network: Any, params: Any) -> int:
    """Multiplications of one example in dense layers and convolutions, padding included."""
    import jax

    x = jax.ShapeDtypeStruct((1, *network.input_shape), np.float32)
    jaxpr = jax.make_jaxpr(network.apply)(params, {}, x).jaxpr

    def count(jaxpr: Any) -> int:
        total = 0
        for eqn in jaxpr.eqns:
            inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
            if inner is not None:
                total += count(getattr(inner, "jaxpr", inner))
            elif eqn.primitive.name == "dot_general":
                total += eqn.invars[1].aval.size
            elif eqn.primitive.name == "conv_general_dilated":
                kernel, out = eqn.invars[1].aval, eqn.outvars[0].aval
                total += kernel.size * out.size // out.shape[-1]
        return total

    return count(jaxpr)


def _finished(call: Any) -> Any:
    import jax

    return jax.block_until_ready(call())


def compare(name: str, left: float, options: Any) -> dict[str, Any]:
    """CPU seconds of a forward pass and of training steps, of the small and of the whole."""
    import jax

    from secateur.networks.registry import network as by_name
    from secateur.prune.compact import compact
    from secateur.prune.structured import prune_units

    network = by_name(name)
    params = jax.tree.map(np.asarray, jax.jit(network.init)(jax.random.key(0))[0])
    ticket = prune_units(network, params, rate=round(1 - left, 6))
    small = compact(network, ticket)
    examples, count = NETWORKS[name]
    rng = np.random.default_rng(0)
    draw = lambda *shape: jax.numpy.asarray(rng.standard_normal(shape), jax.numpy.float32)
    x = draw(examples, *network.input_shape)
    xs = draw(count, BATCH, *network.input_shape)
    ys = jax.numpy.asarray(rng.integers(0, 10, (count, BATCH)))

    silenced = np.asarray(jax.jit(network.apply)(ticket.params, {}, x))
    sides = {"compacted": (small.network, small.params), "whole": (network, params)}
    calls: dict[str, dict[str, Any]] = {"forward": {}, "training": {}}
    for side, (net, weights) in sides.items():
        on_device = jax.tree.map(jax.numpy.asarray, weights)
        calls["forward"][side] = partial(jax.jit(net.apply), on_device, {}, x)
        run, begin = steps_of(net, count)
        calls["training"][side] = partial(run, on_device, begin(on_device), xs, ys)
    apart = float(abs(np.asarray(calls["forward"]["compacted"]()) - silenced).max())
    apart /= float(abs(silenced).max())
    if not apart <= 1e-4:
        raise SystemExit(f"the compacted network is another function: logits differ by {apart:.1e}")
    found: dict[str, Any] = {}
    for work, both in calls.items():
        seconds: dict[str, list[float]] = {side: [] for side in both}
        for call in both.values():
            _finished(call)  # compiles
        for _ in range(options.repeats):
            for side, call in both.items():
                spent = cpu_of(partial(_finished, call))
                seconds[side].append(spent)
        found[work] = {
            side: {"best": min(s), "median": statistics.median(s), "peak_mb": peak_mb()}
            for side, s in seconds.items()
        }
    products = products_of(small.network, small.params) / products_of(network, params)
    size = sum(int(np.size(p)) for p in jax.tree.leaves(params))
    return {
        "sides": found,
        "units": ticket.provenance.record["left"],
        "parameters": [size, small.size],
        "products": round(products, 4),
        "logits_apart": apart,
    }


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--repeats", type=int, default=5, help="calls of each side")
    parser.add_argument("--quick", action="store_true", help="LeNet-300-100 alone, 2 calls")
    options = parser.parse_args()

    for variable, value in ONE_THREAD.items():  # before JAX is imported
        os.environ.setdefault(variable, value)
    if options.quick:
        options.repeats = min(options.repeats, 2)
    measured, arms = {}, {}
    for name in list(NETWORKS)[: 1 if options.quick else None]:
        for left, bound in BOUNDS.items():
            found = compare(name, left, options)
            place = f"{name} at {left:.0%} of the units"
            for work, sides in found.pop("sides").items():
                arms[f"{place}, {work}"] = arm(sides["compacted"], sides["whole"], bound)
            measured[place] = found
    conclude("structured", arms, batch=BATCH, measured=measured)


if __name__ == "__main__":
    main()
