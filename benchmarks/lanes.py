"""What lanes bring: trainings as lanes of one compiled program against the same one by one.

    python benchmarks/lanes.py [--lanes 1,8,64] [--repeats 1] [--quick] [--no-study]

Two workloads, each at 1, 8 and 64 trainings, each side in a process of its own: ``lanes`` is one
call of the program mapped over all, ``separate`` one call after another of the program of one.

- ``toy``: the whole chain of `lazy-toy`'s defaults (20 inputs, 100 units, 200 examples, 21 levels,
  a teacher, weights and alpha of its own for each), 300 steps a level.
- ``lenet``: LeNet-300-100 on the MNIST images inside the package, 200 steps of Adam at batch 60
  through `train.fit`, each with a start and an order of its own; evaluations included.

``compile`` is the CPU seconds of the first call less those of the second; ``cpu`` and ``wall`` are
of the second, of all trainings together; ``peak_mb`` is the process's, ``device_peak_mb`` that of a
GPU's memory, where there is one.

And 8 cells of a quick study (`lottery`, dense networks alone), serially, in processes and as
lanes; each in a new store, first with no compiled program, then with all of them; start included.

On a CPU each process has one thread, and no bound is set: lanes are made for a GPU, where 64 shall
take at most 3 times as long as one. `lanes.json` says which device it was measured on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure

BOUND = 3.0  # wall seconds of 64 lanes over those of one, on a GPU
TOY_STEPS, LENET_STEPS = 300, 200
Calls = tuple[Callable[[], Any], Callable[[], Any]]  # all as lanes; all one by one


# ------------------------------------------------------------------------------------ in the child


def toy(count: int, quick: bool) -> Calls:
    """Chains of the committee machine."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from secateur.core.keys import key
    from secateur.data import toys
    from secateur.prune.toy_lottery import chain, counts_of
    from secateur.studies.lazy_toy import PROBE, Fields
    from secateur.train.committee import rate_for, sample

    fields = Fields()
    size, units = fields.inputs, fields.units
    steps = 20 if quick else TOY_STEPS
    (epsilon,), (examples,) = fields.epsilons, fields.samples
    counts = jnp.asarray(counts_of(size * units, fields.levels))
    probe = toys.gaussian(key(0, "probe"), PROBE, size)

    def one(start: Any, alpha: Any) -> Any:
        seeds = jax.random.split(start, 3)
        teacher = toys.committee_teacher(seeds[0], size, fields.teacher_units, epsilon=epsilon)
        teacher = teacher.scaled(1 / jnp.sqrt(teacher.variance()))
        x = toys.gaussian(seeds[1], examples, size)
        return chain(
            seeds[2],
            sample(x, teacher(x)),
            teacher,
            counts,
            probe,
            rewind=0,
            alpha=alpha,
            epsilon=epsilon,
            rate=rate_for(units, alpha, epsilon),
            centred=0.0,
            units=units,
            steps=steps,
        )

    keys = jnp.stack([key(seed, "chain") for seed in range(count)])
    alphas = jnp.asarray(np.resize(fields.alphas, count), float)
    mapped, single = jax.jit(jax.vmap(one)), jax.jit(one)
    done = lambda found: jax.tree.map(np.asarray, found)
    return (
        lambda: done(mapped(keys, alphas)).error.traceless,
        lambda: [done(single(k, a)).error.traceless for k, a in zip(keys, alphas)],
    )


def lenet(count: int, quick: bool) -> Calls:
    """Trainings of LeNet-300-100."""
    from secateur.core.keys import key
    from secateur.data.registry import load
    from secateur.data.splits import split
    from secateur.networks.mlp import lenet_300_100
    from secateur.prune.lottery import begin
    from secateur.train.fit import fit, fit_lanes
    from secateur.train.recipes import Recipe
    from secateur.train.training import Training

    steps = 20 if quick else LENET_STEPS
    data, network = split(load("mnist5k"), 500), lenet_300_100()
    recipe = Recipe(rate=1.2e-3, batch=60, steps=steps, evaluate_every=steps)

    def training(seed: int) -> Training:
        params, stats, mask = begin(network, seed)
        order = key(seed, "train")
        return Training(network, params, stats, data, recipe, mask, order, shrink=False)

    asked = [training(seed) for seed in range(count)]
    accuracy = lambda fitted: [one.last["test_accuracy"] for one in fitted]
    return (
        lambda: accuracy(fit_lanes(asked)),
        lambda: accuracy([fit(one) for one in asked]),
    )


def one_side(work: str, side: str, count: int, quick: bool) -> None:
    """The child: both calls of one side."""
    import jax
    import numpy as np

    call = {"toy": toy, "lenet": lenet}[work](count, quick)[side == "separate"]
    first = measure.cpu_of(call)
    begin, wall = measure.cpu_seconds(), time.perf_counter()
    found = call()
    cpu, wall = measure.cpu_seconds() - begin, time.perf_counter() - wall
    device = jax.devices()[0]
    told = device.memory_stats() if device.platform != "cpu" else None
    measure.answer(
        device=device.device_kind,
        platform=device.platform,
        compile=first - cpu,
        cpu=cpu,
        run_wall=wall,
        found=float(np.mean(np.asarray(found, float))),  # both sides computed the same
        **({"device_peak_mb": round(told["peak_bytes_in_use"] / 1e6, 1)} if told else {}),
    )


# ----------------------------------------------------------------------------------------- together


def environment() -> dict[str, str]:
    """Of the children: one thread on a CPU; a GPU's memory only as it is needed."""
    from secateur.lab.machine import has_gpu

    if not has_gpu():
        return dict(measure.ONE_THREAD)
    return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def compared(work: str, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides at one number of trainings: the best of the repeats."""
    this = [sys.executable, str(Path(__file__).resolve()), *(["--quick"] if options.quick else [])]
    sides = {s: [*this, "--child", work, s, str(count)] for s in ("lanes", "separate")}
    runs = measure.alternate(sides, options.repeats, environment())
    names = ("compile", "cpu", "run_wall", "peak_mb", "device_peak_mb")
    best = {
        side: {n: round(min(r[n] for r in own), 3) for n in names if n in own[0]}
        for side, own in runs.items()
    }
    for own in best.values():
        own["wall"] = own.pop("run_wall")
    a, b = (runs[side][0] for side in ("lanes", "separate"))
    return {
        "device": a["device"],
        "platform": a["platform"],
        **best,
        "apart": abs(a["found"] / b["found"] - 1),
        "lanes_over_separate": {
            n: round(best["lanes"][n] / best["separate"][n], 3) for n in ("cpu", "wall", "peak_mb")
        },
    }


def cells(executor: str, place: str, quick: bool) -> None:
    """The child: 8 dense trainings of the study `lottery`."""
    from secateur.lab.progress import Progress
    from secateur.lab.run import run
    from secateur.lab.store import Store
    from secateur.studies.plan import plan

    sets = ["levels=0", *(["steps=100"] if quick else [])]
    made = plan("lottery", "quick", 8, sets=sets)
    done = run(made.cells, made.study.work, Store(place), executor, progress=Progress(quiet=True))
    assert len(done.computed) == 8


def study(executor: str, place: str, quick: bool) -> dict[str, float]:
    """CPU seconds of a run and all its processes, and wall seconds, for 8 cells."""
    command = [sys.executable, str(Path(__file__).resolve()), *(["--quick"] if quick else [])]
    command += ["--child", "cells", executor, place]
    env = {**os.environ, "SECATEUR_CACHE": str(Path(place).parent / f"cache-{executor}")}
    begin = time.perf_counter()
    child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise SystemExit(f"{' '.join(command)} failed: run it to see why.")
    wall = time.perf_counter() - begin
    return {"cpu": round(used.ru_utime + used.ru_stime, 2), "wall": round(wall, 2)}


def studies(quick: bool) -> dict[str, Any]:
    """The three executors, from nothing and with compiled programs at hand."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for executor in ("serial", "processes", "lanes"):
            found[executor] = {
                when: study(executor, str(Path(folder, f"{executor}-{when}")), quick)
                for when in ("first", "again")
            }
            print(f"  8 cells, {executor}: {found[executor]}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--lanes", default="1,8,64", help="numbers of trainings, joined by commas")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a trial of 20 steps")
    parser.add_argument("--no-study", action="store_true", help="leave out the study's cells")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        work, side, count = options.child
        if work == "cells":
            return cells(side, count, options.quick)
        return one_side(work, side, int(count), options.quick)
    counts = [int(word) for word in options.lanes.split(",")]
    found: dict[str, Any] = {}
    begin = time.perf_counter()
    for work in ("toy", "lenet"):
        found[work] = {}
        for count in counts:
            print(f"{work}, {count}", file=sys.stderr, flush=True)
            found[work][str(count)] = compared(work, count, options)
    platforms = {one["platform"] for own in found.values() for one in own.values()}
    # On a CPU with other work wall seconds are mostly waiting; a GPU's work is not in CPU seconds.
    measured = "cpu" if platforms == {"cpu"} else "wall"
    last, first = str(counts[-1]), str(counts[0])
    over_one = {
        work: round(own[last]["lanes"][measured] / own[first]["lanes"][measured], 3)
        for work, own in found.items()
    }
    bound = BOUND if measured == "wall" else None
    holds = bound is None or max(over_one.values()) <= bound
    executors = {} if options.no_study else {"executors": studies(options.quick)}
    print(
        json.dumps(
            {
                "name": "lanes",
                "ratio": max(over_one.values()),
                "bound": bound,
                "holds": holds,
                "measure": f"{measured} seconds of {last} lanes over those of {first}",
                "over_one": over_one,
                "found": found,
                **executors,
                "steps": {"toy": TOY_STEPS, "lenet": LENET_STEPS},
                "repeats": options.repeats,
                "seconds": round(time.perf_counter() - begin),
                "cores": os.cpu_count(),
                "python": platform.python_version(),
                "machine": platform.machine(),
            }
        ),
        flush=True,
    )
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
