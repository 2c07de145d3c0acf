"""Linearised training for all times: one Lanczos run on products against the formed kernel.

    python benchmarks/linearised.py [--data DIR] [--repeats 2] [--quick]

LeNet-300-100 at its start, 500 MNIST images, 10 outputs: 5,000 rows; squared loss, labels as one
column a class. Both sides are timed from the network to the outputs at all times up to t = 100, by
compiled programs; what compiling took in the first call stands beside it:

- lanczos: products jvp o vjp in float32, one run of Lanczos from the first residual.
- dense: the kernel formed in blocks in float32, its eigenvectors in float64.

Lanczos has to be within 1e-4 of the dense answer, in the norm of the first residual, at a tenth of
its CPU seconds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure

BOUND, WITHIN = 0.1, 1e-4
TIMES = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
PRODUCTS = 100
EXAMPLES, QUICK = 500, 100


def one(side: str, data: str | None, examples: int, file: str) -> None:
    """The child: outputs at all times, into a file."""
    import jax
    import numpy as np

    from secateur import data as sets
    from secateur.kernels.dynamics import linearise
    from secateur.kernels.ntk import ntk, ntk_operator
    from secateur.networks.registry import network

    net = network("lenet-300-100")
    params, stats = net.init(jax.random.key(0))
    train = sets.load("mnist", data).train
    x = (train.images[:examples].reshape(examples, *net.input_shape) / 255.0).astype(np.float32)
    y = np.eye(net.outputs)[train.labels[:examples]]
    f = lambda p, x: net.apply(p, stats, x)
    f0 = np.asarray(jax.jit(f)(params, x))

    form = (
        (lambda: ntk_operator(f, params, x)) if side == "lanczos" else (lambda: ntk(f, params, x))
    )
    made: list[Any] = []
    first = measure.cpu_of(lambda: made.append(form()))
    formed = measure.cpu_of(form)
    kernel = made.pop()

    def predict() -> None:
        made.append(linearise(kernel, f0, y, products=PRODUCTS))
        made.append(made[-1].at(TIMES))

    solved = measure.cpu_of(predict)
    compiling = first - formed
    if side == "lanczos":  # LAPACK compiles nothing
        again = measure.cpu_of(predict)
        compiling, solved = compiling + solved - again, again
    training, outputs = made[-2:]
    np.save(file, outputs)
    extra = {"bound": training.error(TIMES).tolist()} if side == "lanczos" else {}
    measure.answer(
        cpu=formed + solved,
        formed=round(formed, 3),
        compile=round(compiling, 3),
        largest=round(float(training.modes.values[0]), 3),
        residual=float(np.linalg.norm(f0 - y)),
        **extra,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="where MNIST's files are; SECATEUR_DATA if not given")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a trial: 100 images, one repeat")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        side, examples, file = asked.child
        return one(side, asked.data, int(examples), file)
    examples = QUICK if asked.quick else EXAMPLES
    with tempfile.TemporaryDirectory() as folder:
        files = {side: str(Path(folder, f"{side}.npy")) for side in ("lanczos", "dense")}
        given = ["--data", asked.data] if asked.data else []
        this = [sys.executable, str(Path(__file__).resolve()), *given]
        runs = measure.alternate(
            {s: [*this, "--child", s, str(examples), files[s]] for s in files},
            1 if asked.quick else asked.repeats,
        )
        import numpy as np

        found, right = (np.load(files[side]) for side in ("lanczos", "dense"))
    last = runs["lanczos"][-1]
    apart = np.linalg.norm(found - right, axis=(1, 2)) / last["residual"]
    largest = np.abs(found - right).max(axis=(1, 2))
    arm = measure.arm(measure.summary(runs["lanczos"]), measure.summary(runs["dense"]), BOUND)
    for side in runs:
        for part in ("formed", "compile"):
            arm[f"{side}_{part}"] = min(run[part] for run in runs[side])
    arm["apart"] = [float(f"{a:.2g}") for a in apart]
    arm["largest_difference"] = float(f"{largest.max():.2g}")
    arm["lanczos_bound"] = [float(f"{b / last['residual']:.2g}") for b in last["bound"]]
    arm["holds"] = bool(arm["holds"] and apart.max() <= WITHIN)
    measure.conclude(
        "linearised",
        {"all times": arm},
        unit="CPU seconds, one thread, programs compiled",
        rows=examples * 10,
        products=PRODUCTS,
        times=TIMES,
        within=WITHIN,
        repeats=asked.repeats,
    )


if __name__ == "__main__":
    main()
