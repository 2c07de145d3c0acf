"""The exact trace of the tangent kernel with its gradient for all weights, in loss gradients.

    python benchmarks/trace.py [--density 0.1] [--repeats 3]

One forward pass, a backward pass an output, and their derivative, against one gradient of the
cross-entropy of the same batch; and against the trace by Jacobians of single examples with its
gradient: of LeNet-300-100 a vmapped one, of convolutional networks example by example. Images of
the package, for Conv-4 random ones; random masks. CPU seconds of compiled programs.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import measure

CASES = {"lenet-300-100": 64, "lenet-5-caffe": 16, "conv-4": 4}  # network -> images
BOUNDS = {"lenet-300-100": 5.0, "lenet-5-caffe": 80.0, "conv-4": 40.0}  # loss gradients


def one(name: str, side: str, density: float) -> None:
    """A child: many calls of one compiled program."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from secateur import data
    from secateur.core.trees import map_mask
    from secateur.kernels.trace import saliency
    from secateur.networks.registry import network
    from secateur.structure.canonical import canonical

    net, examples = network(name), CASES[name]
    params, stats = net.init(jax.random.key(0))
    if net.input_shape == (28, 28, 1):
        train = data.load("mnist5k").train
        images = train.images[:examples].reshape(-1, *net.input_shape) / 255.0
        labels = jnp.asarray(train.labels[:examples])
    else:
        images = np.random.default_rng(1).random((examples, *net.input_shape))
        labels = jnp.arange(examples) % net.outputs
    x = jnp.asarray(images, jnp.float32)
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
        "loss": jax.value_and_grad(loss),
        "layers": lambda p: saliency(net, p, stats, mask, x, form="layers"),
        "examples": lambda p: saliency(net, p, stats, mask, x, form="examples"),
        "jacobian": jax.value_and_grad(squares),
    }
    program = jax.jit(canonical(programs[side]))
    run = lambda: jax.block_until_ready(program(params))
    value = float(run()[0])
    calls = {"jacobian": 3, "examples": 1}.get(side, 50 if name == "lenet-300-100" else 3)
    times = 1 if side == "examples" else 3
    cpu = min(measure.cpu_of(lambda: [run() for _ in range(calls)]) for _ in range(times)) / calls
    measure.answer(cpu=cpu, value=value)


def case(name: str, density: float, repeats: int) -> dict[str, Any]:
    """One network: its arm, with how much slower the other way is."""
    this = [sys.executable, __file__, "--density", str(density), "--case", name, "--child"]
    runs = measure.alternate({s: [*this, s] for s in ("layers", "loss")}, repeats)
    other = "jacobian" if name == "lenet-300-100" else "examples"
    runs |= measure.alternate({other: [*this, other]}, 1)
    sides = {side: measure.summary(found) for side, found in runs.items()}
    arm = measure.arm(sides["layers"], sides["loss"], BOUNDS[name])
    values = [runs[s][0]["value"] for s in ("layers", other)]
    arm["holds"] = bool(arm["holds"] and abs(values[0] / values[1] - 1) < 1e-4)
    arm["examples"] = CASES[name]
    arm[f"by {other}"] = {
        "in loss gradients": round(sides[other]["best"] / sides["loss"]["best"], 1),
        "in layer form": round(sides[other]["best"] / sides["layers"]["best"], 1),
        "seconds": round(sides[other]["best"], 4),
        "peak_mb": sides[other]["peak_mb"],
    }
    arm["values"] = values
    return arm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", choices=[*CASES], default="lenet-300-100", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return one(asked.case, asked.child, asked.density)
    measure.conclude(
        "trace with its gradient",
        {name: case(name, asked.density, asked.repeats) for name in CASES},
        unit="CPU seconds a call, one thread, compiled",
        density=asked.density,
    )


if __name__ == "__main__":
    main()
