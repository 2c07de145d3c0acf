"""Empirical tangent kernels, dense and pruned, beside neural-tangents' best mode of each case.

    python benchmarks/ntk.py [--opponent-python PATH | --build FOLDER] [--repeats 2] [--cases ...]

neural-tangents 0.6.5 needs an environment of its own (jax 0.4.25; 2.6 GB, it brings TensorFlow):
``--build FOLDER`` makes one there. Without it our side runs alone, beside the opponent's figures
that ``benchmarks/ntk.json`` keeps, with their date and machine.

Each case is one kernel of n images in float32: CPU seconds of one call, compiled beforehand, and
the peak memory of its process. The two sides alternate, each time in a new process, on the same
arrays; the results are compared. For masked networks neural-tangents is given two uses:
``plain``, a function that multiplies weights by the mask, and ``survivors``, the strongest that
could be thought of: parameters are the vectors of surviving weights, scattered into zeros inside.
Images are the first training images of MNIST where it is at hand, else of the package's 5,000.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure

STORED = Path(__file__).with_suffix(".json")
OPPONENT = ["neural-tangents==0.6.5", "jax==0.4.25", "jaxlib==0.4.25", "numpy<2", "scipy==1.12.0"]


@dataclass(frozen=True)
class Case:
    """One kernel.

    Attributes:
        net: ``mlp`` (LeNet-300-100) or ``cnn``.
        n: images.
        density: of every kernel; 1 for no mask.
        outputs: ``full`` or ``trace``.
        use, mode: how neural-tangents is used; its implementation: 1 contracts Jacobians, 3 is
            structured.
        bound: the ratio of CPU seconds to stay below.
        memory: the ratio of peak memory to stay below, if it is asked.
    """

    net: str
    n: int
    density: float
    outputs: str
    use: str
    mode: int
    bound: float
    memory: float | None = None


CASES = {
    "mlp full": Case("mlp", 1000, 1.0, "full", "plain", 3, 1 / 4, 1 / 3),
    "mlp traced": Case("mlp", 1000, 1.0, "trace", "plain", 3, 1 / 1.5),
    "mlp full 0.1": Case("mlp", 1000, 0.1, "full", "survivors", 1, 1 / 10, 1 / 8),
    "mlp full 0.1, natural use": Case("mlp", 200, 0.1, "full", "plain", 1, 1 / 40),
    "mlp traced 0.1": Case("mlp", 1000, 0.1, "trace", "survivors", 1, 1 / 5),
    "mlp full 0.01": Case("mlp", 1000, 0.01, "full", "survivors", 1, 1 / 2.5),
    "cnn full": Case("cnn", 300, 1.0, "full", "plain", 3, 1 / 2),
    "cnn full 0.1, natural use": Case("cnn", 300, 0.1, "full", "plain", 1, 1 / 8),
    "cnn full 0.1": Case("cnn", 300, 0.1, "full", "survivors", 1, 1 / 3),
}


# ------------------------------------------------------------------------------------- in the child


def mlp(p: dict[str, Any], x: Any) -> Any:
    import jax.numpy as jnp

    h = x.reshape(len(x), -1)
    h = jnp.maximum(h @ p["w1"] + p["b1"], 0)
    h = jnp.maximum(h @ p["w2"] + p["b2"], 0)
    return h @ p["w3"] + p["b3"]


def cnn(p: dict[str, Any], x: Any) -> Any:
    import jax.numpy as jnp
    from jax import lax

    def layer(x: Any, w: Any, b: Any) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        h = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers) + b
        window = (1, 2, 2, 1)
        return lax.reduce_window(jnp.maximum(h, 0), -jnp.inf, lax.max, window, window, "VALID")

    h = layer(layer(x, p["w1"], p["b1"]), p["w2"], p["b2"])
    return h.reshape(len(x), -1) @ p["w3"] + p["b3"]


NETS = {"mlp": mlp, "cnn": cnn}
SHAPES = {
    "mlp": {"w1": (784, 300), "w2": (300, 100), "w3": (100, 10)},
    "cnn": {"w1": (3, 3, 1, 16), "w2": (3, 3, 16, 32), "w3": (7 * 7 * 32, 10)},
}


def arrays(file: str) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Parameters, masks of kernels (none where nothing is masked), images."""
    import numpy as np

    held = np.load(file)
    params = {k[2:]: held[k] for k in held if k.startswith("p.")}
    return params, {k[2:]: held[k] for k in held if k.startswith("m.")}, held["x"]


def ours(case: Case, file: str, result: str) -> None:
    """Our side's child."""
    import numpy as np

    from secateur.kernels import ntk

    params, masks, x = arrays(file)
    mask = {k: masks.get(k) for k in params} if masks else None
    f = NETS[case.net]
    run = lambda: ntk.ntk(f, params, x, mask=mask, outputs=case.outputs)
    made: list[Any] = []
    first = measure.cpu_of(lambda: made.append(run()))
    planned = made[0].plan.seconds
    np.save(result, made.pop().values)  # one result at a time, as theirs
    cpu = min(measure.cpu_of(run) for _ in range(2))
    measure.answer(cpu=cpu, compile=round(first - cpu, 2), planned=round(planned, 2))


def theirs(case: Case, file: str, result: str) -> None:
    """The opponent's child: its own environment, no Secateur."""
    import jax
    import jax.numpy as jnp
    import neural_tangents as nt
    import numpy as np

    params, masks, x = arrays(file)
    f = NETS[case.net]
    if case.use == "survivors":
        places = {k: np.flatnonzero(m) for k, m in masks.items()}

        def apply(v: Any, x: Any) -> Any:
            fill = lambda k, a: jnp.zeros(params[k].size, a.dtype).at[places[k]].set(a)
            whole = {k: fill(k, a).reshape(params[k].shape) for k, a in v.items() if k in places}
            return f({**v, **whole}, x)

        given = {k: p.ravel()[places[k]] if k in places else p for k, p in params.items()}
    elif masks:
        gates = {k: m.astype(np.float32) for k, m in masks.items()}
        apply = lambda p, x: f({k: w * gates[k] if k in gates else w for k, w in p.items()}, x)
        given = params
    else:
        apply, given = f, params
    trace = (-1,) if case.outputs == "trace" else ()
    made = nt.empirical_ntk_fn(apply, trace_axes=trace, vmap_axes=0, implementation=case.mode)
    kernel = jax.jit(lambda x, p: made(x, None, p))
    x, given = jnp.asarray(x), jax.tree_util.tree_map(jnp.asarray, given)
    found: list[Any] = []
    compiled: list[Any] = []
    compiling = measure.cpu_of(lambda: compiled.append(kernel.lower(x, given).compile()))
    run = lambda: found.append(jax.block_until_ready(compiled[0](x, given)))
    cpu = measure.cpu_of(run)
    if cpu < 20:
        found.clear()
        cpu = min(cpu, measure.cpu_of(run))
    values = np.asarray(found[-1])
    # Theirs is [n, m, C, C], and the mean over traced outputs.
    values = values * 10 if case.outputs == "trace" else np.swapaxes(values, 1, 2)
    np.save(result, values)
    measure.answer(cpu=cpu, compile=round(compiling, 2))


# ------------------------------------------------------------------------------------ in the parent


def write_arrays(case: Case, data: str | None, file: str) -> None:
    """The same weights, masks and images for both sides."""
    import numpy as np

    from secateur import data as sets
    from secateur.core.errors import SecateurError

    try:
        images = sets.load("mnist", data, download=False).train.images
    except SecateurError:
        images = sets.load("mnist5k").train.images
    rng = np.random.default_rng(0)
    x = (images[: case.n].reshape(-1, 28, 28, 1) / 255.0).astype(np.float32)
    held: dict[str, Any] = {"x": x}
    for name, shape in SHAPES[case.net].items():
        fan = int(np.prod(shape[:-1]))
        w = (rng.standard_normal(shape) * np.sqrt(2 / fan)).astype(np.float32)
        if case.density < 1:
            held[f"m.{name}"] = rng.random(shape) < case.density
            w = w * held[f"m.{name}"]
        held[f"p.{name}"] = w
        held[f"p.b{name[1:]}"] = (0.1 * rng.standard_normal(shape[-1])).astype(np.float32)
    np.savez(file, **held)


def compare(name: str, case: Case, python: str | None, repeats: int, data: str | None) -> Any:
    """One case's arm."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "arrays.npz"))
        write_arrays(case, data, file)
        this = str(Path(__file__).resolve())
        results = {side: str(Path(folder, f"{side}.npy")) for side in ("ours", "theirs")}
        sides = {"ours": [sys.executable, this, "--child", "ours", name, file, results["ours"]]}
        if python:
            sides["theirs"] = [python, this, "--child", "theirs", name, file, results["theirs"]]
        print(name, file=sys.stderr, flush=True)
        runs = measure.alternate(sides, repeats)
        if python:
            found, right = (np.load(results[side]) for side in ("ours", "theirs"))
            apart = float(np.max(np.abs(found - right)) / np.max(np.abs(right)))
            other = measure.summary(runs["theirs"])
            other |= {"date": datetime.date.today().isoformat(), "apart": apart}
        else:
            other = json.loads(STORED.read_text())["arms"][name]["theirs"]
    numbers = {k: v for k, v in other.items() if isinstance(v, float)}
    arm = measure.arm(measure.summary(runs["ours"]), numbers, round(case.bound, 4))
    arm["theirs"] = other
    arm["times"] = round(other["best"] / arm["ours"]["best"], 2)
    arm["memory_ratio"] = round(arm["ours"]["peak_mb"] / other["peak_mb"], 3)
    arm["planned"] = runs["ours"][-1]["planned"]
    arm["compile"] = [runs[s][-1]["compile"] for s in runs]
    holds = arm["holds"] and other["apart"] <= 1e-5
    if case.memory is not None:
        arm["memory_bound"] = round(case.memory, 3)
        holds = holds and arm["memory_ratio"] <= case.memory
    arm["holds"] = bool(holds)
    return arm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--opponent-python", help="of an environment with neural-tangents")
    parser.add_argument("--build", metavar="FOLDER", help="makes that environment there")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--cases", nargs="*", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--data", help="where MNIST's files are; SECATEUR_DATA if not given")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        side, name, file, result = asked.child
        return {"ours": ours, "theirs": theirs}[side](CASES[name], file, result)
    python = measure.environment(asked.build, OPPONENT) if asked.build else asked.opponent_python
    if not python and not STORED.exists():
        parser.error("no stored figures of neural-tangents: give --opponent-python or --build")
    arms = {c: compare(c, CASES[c], python, asked.repeats, asked.data) for c in asked.cases}
    measure.conclude(
        "ntk",
        arms,
        unit="CPU seconds, one thread, programs compiled",
        opponent="neural-tangents 0.6.5",
        processor=platform.machine(),
        repeats=asked.repeats,
    )


if __name__ == "__main__":
    main()
