"""What this machine has, and what a worker's environment should be on it."""

from __future__ import annotations

import functools
import gc
import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SINGLE = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_XLA_SINGLE = "--xla_cpu_multi_thread_eigen=false"


def cores() -> int:
    """How many cores this process may use: its affinity, and the quota of its container."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        count = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no container, or no quota ("max")
    return max(1, count)


def has_gpu() -> bool:
    """Whether jax would compute on an accelerator; asked without importing jax."""
    if os.environ.get("JAX_PLATFORMS", "").lower() in ("cpu",):
        return False
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    devices = Path("/dev")
    if not any((devices / name).exists() for name in ("nvidia0", "nvidiactl", "kfd")):
        return False
    from importlib.util import find_spec

    # The driver alone is not enough: jax needs its plugin, which the extra `cuda` installs.
    return any(
        find_spec(name) is not None
        for name in ("jax_cuda13_plugin", "jax_cuda12_plugin", "jax_rocm7_plugin")
    )


def cache_folder() -> Path:
    """Where compiled programs are kept: SECATEUR_CACHE, else the user's cache folder.

    One folder a kind of processor and jaxlib: a home folder may be shared by unlike machines.
    """
    from importlib.metadata import PackageNotFoundError, version

    from platformdirs import user_cache_path

    root = os.environ.get("SECATEUR_CACHE")
    base = Path(root) if root else user_cache_path("secateur", appauthor=False)
    try:
        jaxlib = version("jaxlib")
    except PackageNotFoundError:
        jaxlib = "none"
    return base / "compiled" / f"{jaxlib}-{_processor()}"


def worker_environment(given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a worker with one thread. It must stand before jax is imported there."""
    environment = dict(os.environ if given is None else given)
    environment.update(dict.fromkeys(_SINGLE, "1"))
    flags = environment.get("XLA_FLAGS", "")
    if _XLA_SINGLE not in flags:
        environment["XLA_FLAGS"] = f"{flags} {_XLA_SINGLE}".strip()
    # Many processes cannot share one accelerator: each would reserve most of its memory.
    environment.setdefault("JAX_PLATFORMS", "cpu")
    environment.pop("SECATEUR_FAULT", None)  # meant for the process that it was given to
    environment.update(cache_environment(environment))
    return environment


def cache_environment(given: Mapping[str, str]) -> dict[str, str]:
    """Variables that make jax keep compiled programs, where the user has not said otherwise."""
    wanted = {
        "JAX_COMPILATION_CACHE_DIR": str(cache_folder()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    return {name: value for name, value in wanted.items() if name not in given}


def keep_compiled_programs() -> None:
    """The same for this process, whether or not jax has been imported."""
    wanted = cache_environment(os.environ)
    if "jax" not in sys.modules:
        os.environ.update(wanted)
        return
    import jax

    config: Any = jax.config  # its fields are made at run time
    if "JAX_COMPILATION_CACHE_DIR" in wanted and config.jax_compilation_cache_dir is None:
        config.update("jax_compilation_cache_dir", wanted["JAX_COMPILATION_CACHE_DIR"])
        config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def make_room_for_programs(limit: int | None = None) -> bool:
    """Forgets this process's compiled programs where they hold half of its memory maps.

    Linux gives a process 65,530 maps (vm.max_map_count); a program holds 15 to 2,000 of them as
    long as jax remembers it, and XLA ends the process where none is left. What is forgotten is
    compiled again when it is needed, or read from the cache on disk.

    Args:
        limit: of maps; the system's by default.

    Returns:
        Whether programs were forgotten.
    """
    if "jax" not in sys.modules:
        return False
    try:
        limit = limit or int(Path("/proc/sys/vm/max_map_count").read_text())
        used = Path("/proc/self/maps").read_bytes().count(b"\n")
    except (OSError, ValueError):
        return False  # no such limit on this system
    if used <= limit // 2:
        return False
    import jax

    jax.clear_caches()
    gc.collect()
    return True


@functools.cache
def code() -> str:
    """12 hex digits over the package's sources: two versions of one number are told apart."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def environment() -> dict[str, object]:
    """Versions, device, threads: what a trust card says of where a number was made."""
    from importlib.metadata import PackageNotFoundError, version

    import secateur

    versions = {
        "secateur": secateur.__version__,
        "code": code(),
        "python": platform.python_version(),
    }
    for name in ("jax", "jaxlib", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    made: dict[str, object] = {
        "versions": versions,
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": int(os.environ["NPROC"]) if "NPROC" in os.environ else cores(),
    }
    if "jax" in sys.modules:
        import jax

        config: Any = jax.config
        made["device"] = jax.devices()[0].device_kind
        made["x64"] = bool(config.jax_enable_x64)
    return made


def _processor() -> str:
    """Eight hex digits for the processor's instruction set."""
    told = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features", "model name")):
                told += line
            if not line and len(told) > 40:
                break
    except OSError:
        told += platform.processor()
    return hashlib.sha256(told.encode()).hexdigest()[:8]
