"""CPU seconds of a kernel's spectrum from its products, against forming and decomposing it.

    python benchmarks/spectra.py [--repeats 2] [--quick]

The tangent kernel of LeNet-300-100 at initialisation on 500 of the MNIST images in the package, all
10 outputs: 5,000 x 5,000. One thread each.

- dense: the matrix is formed by Secateur's own fast rules in float32, its eigenvalues computed in
  float64 by LAPACK, without vectors.
- operator: deflated Lanczos and stochastic Lanczos quadrature on products alone, in float32, with
  the trace that the operator knows exactly, or that of the kernel summed over outputs (500 x 500).
  For three keys; the worst errors count. Errors without a known trace stand beside them.

What is timed is the second call, when programs are compiled. Asked of both: trace, participation
ratio, density of log10(lambda) smoothed by 0.3 decades, the 20 largest eigenvalues. Errors are
relative; of the density it is the share of eigenvalues in the wrong place, half the integral of
|difference|.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure

IMAGES, TOP, PROBES, STEPS, WIDTH, KEYS = 500, 20, 8, 40, 0.3, 3
TIME, ERROR = 0.1, 0.01  # bounds


def problem(quick: bool) -> tuple[Any, Any, dict[str, Any]]:
    """The network, its parameters and the rest of what a kernel is of."""
    import jax
    import jax.numpy as jnp

    from secateur import data
    from secateur.networks.registry import network

    examples = data.load("mnist5k").train
    images = examples.images[:: len(examples.images) // (50 if quick else IMAGES)]
    x = jnp.asarray(images[: 50 if quick else IMAGES], jnp.float32) / 255
    net = network("lenet-300-100")
    params, stats = net.init(jax.random.key(0))
    return net, params, {"x": (x - 0.1307) / 0.3081, "stats": stats}


def write(place: str, found: Any) -> None:
    """What was asked, for the parent to compare."""
    import numpy as np

    grid = np.linspace(-2, 7, 901)
    np.savez(
        place,
        trace=found.trace,
        participation=found.participation,
        top=found.top(TOP),
        density=found.density(10**grid, WIDTH, log=True),
        step=grid[1] - grid[0],
    )


def dense(place: str, quick: bool) -> None:
    """The child that forms the matrix and decomposes it."""
    from secateur.kernels.ntk import ntk
    from secateur.kernels.spectrum import spectrum

    net, params, about = problem(quick)
    form = lambda: ntk(net, params, **about).matrix()
    first = measure.cpu_of(form)
    forming = measure.cpu_of(form)
    matrix = form()
    found: list[Any] = []
    decomposing = measure.cpu_of(lambda: found.append(spectrum(matrix, "eigh")))
    write(f"{place}/dense.npz", found[0])
    measure.answer(
        cpu=forming + decomposing, forming=round(forming, 3), compile=round(first - forming, 3)
    )


def operator(place: str, quick: bool) -> None:
    """The child that only multiplies."""
    import dataclasses

    import jax

    from secateur.kernels.ntk import ntk, ntk_operator
    from secateur.kernels.spectrum import spectrum

    net, params, about = problem(quick)

    def prepare() -> Any:
        plain = ntk_operator(net, params, **about)
        if plain.trace is not None:
            return plain
        return dataclasses.replace(plain, trace=ntk(net, params, outputs="trace", **about).trace())

    first = measure.cpu_of(prepare)
    preparing = measure.cpu_of(prepare)
    kernel = prepare()
    found: list[Any] = []

    def run(seed: int, of: Any = kernel) -> None:
        key = jax.random.key(seed)
        options: dict[str, Any] = {"top": TOP, "probes": PROBES, "steps": STEPS}
        found.append(spectrum(of, "deflated", key=key, **options))

    first += measure.cpu_of(lambda: run(0))
    times = [measure.cpu_of(lambda seed=seed: run(seed)) for seed in range(KEYS)]
    for seed in range(KEYS):
        run(seed, dataclasses.replace(kernel, trace=None))
    for number, one in enumerate(found[1:]):
        write(f"{place}/{number}.npz", one)
    measure.answer(
        cpu=preparing + min(times),
        preparing=round(preparing, 3),
        times=[round(t, 3) for t in times],
        compile=round(first - preparing - min(times), 3),
    )


def errors(place: str, runs: range) -> dict[str, float]:
    """The worst over runs, relative to the dense answer."""
    import numpy as np

    truth = np.load(f"{place}/dense.npz")
    worst = dict.fromkeys(("trace", "participation", "top", "density", "density_peak"), 0.0)
    for number in runs:
        found = np.load(f"{place}/{number}.npz")
        wrong = np.abs(found["density"] - truth["density"])
        now = {
            name: float(np.max(np.abs(found[name] / truth[name] - 1)))
            for name in ("trace", "participation", "top")
        }
        now["density"] = float(wrong.sum() * truth["step"] / 2)
        now["density_peak"] = float(wrong.max() / truth["density"].max())
        worst = {name: max(worst[name], now[name]) for name in worst}
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a trial: 50 images, one repeat")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        side, place = options.child
        return {"dense": dense, "operator": operator}[side](place, options.quick)
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, str(Path(__file__).resolve())]
        command += ["--quick"] if options.quick else []
        runs = measure.alternate(
            {side: [*command, "--child", side, place] for side in ("operator", "dense")},
            1 if options.quick else options.repeats,
        )
        wrong, without = errors(place, range(KEYS)), errors(place, range(KEYS, 2 * KEYS))
    time = measure.arm(measure.summary(runs["operator"]), measure.summary(runs["dense"]), TIME)
    accuracy = {
        name: {"ratio": round(wrong[name], 6), "bound": ERROR, "holds": wrong[name] <= ERROR}
        for name in ("trace", "participation", "density", "top")
    }
    measure.conclude(
        "spectra",
        {"time": time, **accuracy},
        unit="CPU seconds, one thread, programs compiled; errors relative to the dense answer",
        rows=10 * (50 if options.quick else IMAGES),
        products=f"lanczos for {TOP} and {PROBES} x {STEPS}",
        density_peak=round(wrong["density_peak"], 5),
        without_known_trace={name: round(error, 5) for name, error in without.items()},
        forming=min(run["forming"] for run in runs["dense"]),
        compile={side: min(run["compile"] for run in runs[side]) for side in runs},
        repeats=options.repeats,
    )


if __name__ == "__main__":
    main()
