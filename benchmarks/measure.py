"""How benchmarks time: each side in a child process of its own, in turn, on the same machine.

Other work on the machine hits both sides alike when they alternate; the best of several runs is
what the code can do, the median says how far to trust it. CPU seconds (user and system, all
threads) are the measure: on a shared machine wall seconds also count waiting.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ONE_THREAD = {
    "NPROC": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "JAX_PLATFORMS": "cpu",
}


# ------------------------------------------------------------------------------------- in the child


def cpu_seconds() -> float:
    """CPU seconds of this process until now: user and system, all threads."""
    return time.process_time()


def cpu_of(work: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    begin = cpu_seconds()
    work()
    return cpu_seconds() - begin


def peak_mb() -> float:
    """The largest resident memory of this process so far, in MB (10^6 bytes).

    Linux's ru_maxrss begins with that of the process which started this one; VmHWM does not.
    """
    try:
        with open("/proc/self/status") as told:
            line = next(line for line in told if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def answer(**values: Any) -> None:
    """Prints what a child measured; the parent reads its last line."""
    print(json.dumps({**values, "peak_mb": round(peak_mb(), 1)}), flush=True)


# ------------------------------------------------------------------------------------ in the parent


def environment(folder: str, packages: Sequence[str]) -> str:
    """The Python of a virtual environment with an opponent's packages; made if it is not there."""
    python = Path(folder) / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return str(python)


def child(command: Sequence[str], env: Mapping[str, str] = ONE_THREAD) -> dict[str, Any]:
    """Runs one child to its end; its last line, read as JSON, with its wall seconds.

    Raises:
        SystemExit: with the end of its output if it fails.
    """
    begin = time.perf_counter()
    done = subprocess.run(
        list(command), env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**measured, "wall": round(time.perf_counter() - begin, 3)}


def alternate(
    sides: Mapping[str, Sequence[str]], repeats: int = 3, env: Mapping[str, str] = ONE_THREAD
) -> dict[str, list[dict[str, Any]]]:
    """Runs every side ``repeats`` times in turn, A B A B ..., each time in a fresh process."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, command in sides.items():
            runs[side].append(child(command, env))
            print(f"  {side}: {json.dumps(runs[side][-1])}", file=sys.stderr, flush=True)
    return runs


def summary(runs: Sequence[Mapping[str, Any]], measure: str = "cpu") -> dict[str, float]:
    """Best and median of one measure over the runs of a side, and its smallest peak memory."""
    values = [float(run[measure]) for run in runs]
    return {
        "best": min(values),
        "median": statistics.median(values),
        "peak_mb": min(float(run["peak_mb"]) for run in runs),
    }


def arm(
    ours: Mapping[str, float], theirs: Mapping[str, float], bound: float, aim: float | None = None
) -> dict[str, Any]:
    """One comparison: the ratio of the best runs against its bound; of the medians beside it."""
    ratio = ours["best"] / theirs["best"]
    return {
        "ratio": round(ratio, 3),
        "ratio_of_medians": round(ours["median"] / theirs["median"], 3),
        "bound": bound,
        **({"aim": aim} if aim is not None else {}),
        "holds": ratio <= bound,
        "ours": {k: round(v, 4) for k, v in ours.items()},
        "theirs": {k: round(v, 4) for k, v in theirs.items()},
    }


def conclude(name: str, arms: Mapping[str, Mapping[str, Any]], **measured: Any) -> None:
    """Prints the last line of a benchmark and ends it: status 1 where a bound does not hold.

    ``ratio`` and ``bound`` are those of the arm that comes nearest to its bound, or breaks it most.
    """
    worst = max(arms, key=lambda a: arms[a]["ratio"] / arms[a]["bound"])
    holds = all(a["holds"] for a in arms.values())
    machine = {"python": platform.python_version(), "machine": platform.machine()}
    print(
        json.dumps(
            {
                "name": name,
                "ratio": arms[worst]["ratio"],
                "bound": arms[worst]["bound"],
                "holds": holds,
                "worst": worst,
                "arms": arms,
                **measured,
                **machine,
            }
        ),
        flush=True,
    )
    sys.exit(0 if holds else 1)
