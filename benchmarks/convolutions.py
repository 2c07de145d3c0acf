"""CPU seconds of gradients of convolutions and poolings, with and without `structure.canonical`.

    python benchmarks/convolutions.py [--repeats 3]

- alone: the gradient as one compiled call, as JAX makes it.
- loop: the same inside a compiled loop, as every training and every round of scoring has it.
- rewritten: the loop after the pass, gradients of kernels in one piece.
- parts: the loop after the pass as it is, gradients of kernels by parts of the examples.

Then 2x2 max-pooling with its gradient at batch 60, in the sizes of LeNet-5 and Conv-4: by JAX's
primitive, the same after the pass, and by slices as the networks here have it.

One thread, batch statistics, random images; programs compiled, best of the repeats.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import measure

FORMS = ("alone", "loop", "rewritten", "parts")
CASES = (("lenet-5-relu", 64), ("resnet-20", 32), ("resnet-20", 128))
STEPS = 2  # of a loop
POOLED = ((24, 20), (8, 50), (32, 64), (16, 128))  # side, channels


def one(name: str, batch: int, form: str, repeats: int) -> None:
    """The child."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from secateur.networks.registry import network
    from secateur.structure import convolutions
    from secateur.structure.canonical import canonical

    if form == "rewritten":
        convolutions.MOST = 0
    net = network(name)
    params, stats = net.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((batch, *net.input_shape), np.float32))
    y = jnp.arange(batch) % 10

    def loss(params: Any) -> jax.Array:
        logits = net.train(params, stats, x, jax.random.key(1))[0]
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(batch), y])

    def loop(params: Any) -> Any:
        def step(_: Any, params: Any) -> Any:
            return jax.tree.map(lambda p, g: p - 1e-3 * g, params, jax.grad(loss)(params))

        return jax.lax.fori_loop(0, STEPS, step, params)

    make: dict[str, Callable[..., Any]] = {"alone": jax.grad(loss), "loop": loop}
    call = jax.jit(make.get(form) or canonical(loop))
    run = lambda: jax.block_until_ready(call(params))
    compiled = measure.cpu_of(run)
    seconds = min(measure.cpu_of(run) for _ in range(repeats)) / (1 if form == "alone" else STEPS)
    measure.answer(cpu=seconds, compile=compiled)


def pools(repeats: int) -> None:
    """The child of the poolings."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax import lax

    from secateur.networks.layers import max_pool
    from secateur.structure.canonical import canonical

    def primitive(x: Any) -> Any:
        window = (1, 2, 2, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")

    def both(pool: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: Any, g: Any) -> Any:
            out, pull = jax.vjp(pool, x)
            return out, pull(g)[0]

        return run

    forms = {
        "primitive": both(primitive),
        "rewritten": canonical(both(primitive)),
        "slices": both(lambda x: max_pool(x, 2)),
    }
    rng, found = np.random.default_rng(0), {}
    for side, channels in POOLED:
        x = jnp.asarray(rng.standard_normal((60, side, side, channels), np.float32))
        g = jnp.asarray(rng.standard_normal((60, side // 2, side // 2, channels), np.float32))
        for form, make in forms.items():
            call = jax.jit(make)
            run = lambda call=call, x=x, g=g: jax.block_until_ready(call(x, g))
            run()
            name = f"{side} x {side} x {channels}, {form}"
            found[name] = 1000 * min(measure.cpu_of(run) for _ in range(3 * repeats))
    measure.answer(milliseconds=found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        if asked.child == ["pools"]:
            return pools(asked.repeats)
        name, batch, form = asked.child
        return one(name, int(batch), form, asked.repeats)
    for name, batch in CASES:
        found = {}
        for form in FORMS:
            if form == "loop" and batch > 64:
                continue  # 20 seconds a step
            command = [sys.executable, __file__, "--repeats", str(asked.repeats)]
            found[form] = measure.child([*command, "--child", name, str(batch), form])
        told = ", ".join(f"{form} {1000 * f['cpu']:.1f} ms" for form, f in found.items())
        print(f"{name}, batch {batch}: {told}", flush=True)
    command = [sys.executable, __file__, "--repeats", str(asked.repeats), "--child", "pools"]
    for form, milliseconds in measure.child(command)["milliseconds"].items():
        print(f"pooling {form}: {milliseconds:.2f} ms", flush=True)


if __name__ == "__main__":
    main()
