"""Makes tests/kernels/neural_tangents.npz: small kernels by neural-tangents, as an oracle.

    python scripts/opponent_kernels.py tests/kernels/neural_tangents.npz

Run once with neural-tangents 0.6.5 on jax 0.4.25 (`benchmarks/ntk.py --build` makes that
environment). Kernels are in its own conventions: [n, m, C, C], and the mean over traced outputs.
"""

import sys

import jax
import jax.numpy as jnp
import neural_tangents as nt
import numpy as np

jax.config.update("jax_enable_x64", True)


def mlp(p, x):
    h = jnp.maximum(x.reshape(len(x), -1) @ p["w1"] + p["b1"], 0)
    return jnp.tanh(h @ p["w2"]) @ p["w3"] + p["b3"]


def cnn(p, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    h = jax.lax.conv_general_dilated(x, p["k"], (2, 1), "SAME", dimension_numbers=numbers)
    h = jnp.maximum(h + p["c"], 0)
    return h.reshape(len(x), -1) @ p["w"]


rng = np.random.default_rng(0)
normal = rng.standard_normal
held = {"x": normal((4, 4, 3, 2)), "y": normal((3, 4, 3, 2))}
nets = {
    "mlp": (mlp, {"w1": (24, 6), "b1": (6,), "w2": (6, 5), "w3": (5, 3), "b3": (3,)}),
    "cnn": (cnn, {"k": (3, 2, 2, 4), "c": (4,), "w": (24, 2)}),
}
for name, (f, shapes) in nets.items():
    p = {k: normal(s) for k, s in shapes.items()}
    m = {
        k: (rng.random(s) < 0.5 if len(s) > 1 else np.ones(s)).astype(float)
        for k, s in shapes.items()
    }
    masked = lambda p, x, f=f, m=m: f({k: w * m[k] for k, w in p.items()}, x)
    held |= {f"{name}.p.{k}": v for k, v in p.items()} | {f"{name}.m.{k}": v for k, v in m.items()}
    for kind, axes in (("full", ()), ("mean", (-1,))):
        kernel = nt.empirical_ntk_fn(masked, trace_axes=axes, vmap_axes=0, implementation=1)
        held[f"{name}.{kind}"] = np.asarray(kernel(held["x"], held["y"], p))
np.savez(sys.argv[1], **held)
