"""The largest kernels that should fit: seconds and memory, beside what the plan said beforehand.

    python benchmarks/ntk_large.py [--data DIR] [--cases ...]

LeNet-300-100 on 10,000 MNIST images, traced over outputs, and on 2,000 with all 10 outputs, each in
less than 4 GB beside the result; ResNet-20 on 500 CIFAR-10 images, traced, in less than 8 GB. The
ratio is that of the CPU seconds, compiled, to the seconds planned: within a factor of 2.
Images of noise stand in where a data set is not at hand.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import measure

# network, data, images, outputs, GB beside the result
CASES: dict[str, tuple[str, str, int, str, float]] = {
    "mlp 10,000 traced": ("lenet-300-100", "mnist", 10_000, "trace", 4),
    "mlp 2,000 full": ("lenet-300-100", "mnist", 2_000, "full", 4),
    "resnet-20 500 traced": ("resnet-20", "cifar10", 500, "trace", 8),
}


def one(name: str, data: str | None) -> None:
    """The child."""
    import jax
    import numpy as np

    from secateur import data as sets
    from secateur.core.errors import SecateurError
    from secateur.kernels.ntk import ntk, plan
    from secateur.networks.registry import network

    net_name, dataset, n, outputs, _ = CASES[name]
    net = network(net_name)
    params, stats = net.init(jax.random.key(0))
    try:
        images = sets.load(dataset, data, download=False).train.images[:n]
        x = (images.reshape(n, *net.input_shape) / 255.0).astype(np.float32)
    except SecateurError:
        x = np.random.default_rng(0).random((n, *net.input_shape), np.float32)
    given: dict[str, Any] = {"stats": stats, "outputs": outputs, "memory": 2e9}
    made = plan(net, params, x, **given)
    found: list[Any] = []
    run = lambda: found.append(ntk(net, params, x, **given))
    first = measure.cpu_of(run)
    found.clear()
    cpu = measure.cpu_of(run)
    beside = measure.peak_mb() / 1e3 - made.result / 1e9
    measure.answer(
        cpu=cpu,
        compile=first - cpu,
        planned=made.seconds,
        result_gb=made.result / 1e9,
        beside_gb=beside,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="where the data sets are; SECATEUR_DATA if not given")
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return one(asked.child, asked.data)
    given = ["--data", asked.data] if asked.data else []
    arms = {}
    for name in asked.cases:
        run = measure.child([sys.executable, __file__, *given, "--child", name])
        print(f"  {name}: {run}", file=sys.stderr, flush=True)
        times = run["cpu"] / run["planned"]
        arms[name] = {
            "ratio": round(max(times, 1 / times), 2),
            "bound": 2.0,
            "holds": bool(0.5 <= times <= 2 and run["beside_gb"] <= CASES[name][4]),
            "bound_gb": CASES[name][4],
            **{k: round(v, 3) for k, v in run.items()},
        }
    measure.conclude("large kernels", arms, unit="CPU seconds, one thread, compiled beforehand")


if __name__ == "__main__":
    main()
