"""The exact trace of the tangent kernel with its gradient for all weights, in loss gradients.

    python benchmarks/trace.py [--examples 64] [--density 0.1]

LeNet-300-100 on images of the package: one forward pass, a backward pass an output, and their
derivative, against one gradient of the cross-entropy of the same batch; and against the trace as
the sum of squares of a vmapped Jacobian with its gradient. CPU seconds of compiled programs.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import measure

BOUND = 5.0


def one(side: str, examples: int, density: float) -> None:
    """A child: many calls of one compiled program."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from secateur import data
    from secateur.core.trees import map_mask
    from secateur.kernels.trace import saliency
    from secateur.networks.registry import network

    net = network("lenet-300-100")
    params, stats = net.init(jax.random.key(0))
    train = data.load("mnist5k").train
    x = jnp.asarray(train.images[:examples].reshape(-1, *net.input_shape) / 255.0, jnp.float32)
    labels = jnp.asarray(train.labels[:examples])
    rng = np.random.default_rng(0)
    draw = lambda m: None if m is None else jnp.asarray(rng.random(m.shape) < density)
    mask = map_mask(lambda m, _: draw(m), net.prunable(params), params)
    masked = lambda p: map_mask(lambda m, w: w if m is None else m * w, mask, p)

    def loss(p: Any) -> Any:
        logits = net.apply(masked(p), stats, x)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def squares(p: Any) -> Any:
        single = lambda w, one: net.apply(w, stats, one[None])[0]
        rows = jax.vmap(jax.jacrev(single), (None, 0))(masked(p), x)
        counted = {k: rows[k]["kernel"] * mask[k]["kernel"] for k in rows}
        return sum(jnp.sum(r * r) for r in jax.tree.leaves(counted))

    programs = {
        "loss": jax.jit(jax.value_and_grad(loss)),
        "layers": jax.jit(lambda p: saliency(net, p, stats, mask, x, form="layers")),
        "jacobian": jax.jit(jax.value_and_grad(squares)),
    }
    run = lambda: jax.block_until_ready(programs[side](params))
    value = float(run()[0])
    calls = 3 if side == "jacobian" else 50
    cpu = min(measure.cpu_of(lambda: [run() for _ in range(calls)]) for _ in range(3)) / calls
    measure.answer(cpu=cpu, value=value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return one(asked.child, asked.examples, asked.density)
    given = ["--examples", str(asked.examples), "--density", str(asked.density)]
    this = [sys.executable, __file__, *given, "--child"]
    runs = measure.alternate({s: [*this, s] for s in ("layers", "loss", "jacobian")}, asked.repeats)
    sides = {side: measure.summary(found) for side, found in runs.items()}
    arm = measure.arm(sides["layers"], sides["loss"], BOUND)
    arm["jacobian"] = round(sides["jacobian"]["best"] / sides["loss"]["best"], 1)
    values = [runs[s][0]["value"] for s in ("layers", "jacobian")]
    arm["holds"] = bool(arm["holds"] and abs(values[0] / values[1] - 1) < 1e-4)
    arm["values"] = values
    measure.conclude(
        "trace with its gradient",
        {"in loss gradients": arm},
        unit="CPU seconds a call, one thread, compiled",
        examples=asked.examples,
        density=asked.density,
    )


if __name__ == "__main__":
    main()
