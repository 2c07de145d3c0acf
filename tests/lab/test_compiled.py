"""Real trainings in the lab: compiled programs from the cache, killed runs, lanes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from secateur.lab.machine import make_room_for_programs

HERE = Path(__file__).parent
CODE = """
import json, sys, hashlib
from secateur.lab.machine import keep_compiled_programs
keep_compiled_programs()
import jax, jax.numpy as jnp
events = []
jax.monitoring.register_event_listener(lambda name, **more: events.append(name))

@jax.jit
def train(w, x):
    def step(w, x):
        loss = lambda w: jnp.mean(jnp.square(jnp.tanh(x @ w) @ w.T - x))
        return w - 0.1 * jax.grad(loss)(w), loss(w)
    return jax.lax.scan(step, w, x)

key = jax.random.key(0)
w = jax.random.normal(key, (64, 48)) / 8
x = jax.random.normal(key, (200, 32, 64))
w, losses = train(w, x)
digest = hashlib.sha256(w.tobytes() + losses.tobytes()).hexdigest()
print(json.dumps([digest, sum("cache_hit" in name for name in events)]))
"""


def test_programs_from_the_cache_give_the_same_bits(tmp_path):
    """Fresh, then read by another process: the same numbers to the last bit."""
    environment = {
        **os.environ,
        "SECATEUR_CACHE": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    told = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        told.append((json.loads(done.stdout.splitlines()[-1]), done.stderr))
    (fresh, _), (cached, noise) = told
    assert fresh[0] == cached[0]
    assert cached[1] >= 1, "the second process compiled everything anew"
    assert noise == "", "jax complains about the cached program"
    assert any((tmp_path / "compiled").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_a_process_short_of_memory_maps_forgets_its_programs():
    """Without it XLA ends the process: LLVM compilation error: Cannot allocate memory."""
    traced = []

    @jax.jit
    def program(x):
        traced.append(x)
        return jnp.sin(x) @ x

    maps = lambda: Path("/proc/self/maps").read_bytes().count(b"\n")
    program(jnp.ones(3))
    assert not make_room_for_programs()
    program(jnp.ones(3))
    assert len(traced) == 1, "there was room: nothing is compiled twice"
    before = maps()
    assert make_room_for_programs(limit=2 * before - 2)
    assert maps() < before
    program(jnp.ones(3))
    assert len(traced) == 2


@pytest.mark.parametrize("given", [{}, {"XLA_FLAGS": "--xla_dump_to=/x"}])
def test_the_environment_of_a_worker(given, monkeypatch, tmp_path):
    from secateur.lab.machine import worker_environment

    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    made = worker_environment({**given, "SECATEUR_FAULT": "x:1"})
    for name in ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        assert made[name] == "1"
    assert made["XLA_FLAGS"].split()[-1] == "--xla_cpu_multi_thread_eigen=false"
    assert made["XLA_FLAGS"].startswith(given.get("XLA_FLAGS", ""))
    assert made["JAX_COMPILATION_CACHE_DIR"].startswith(str(tmp_path))
    assert "SECATEUR_FAULT" not in made
    assert made["JAX_PLATFORMS"] == "cpu"
    assert worker_environment({"JAX_PLATFORMS": "cuda"})["JAX_PLATFORMS"] == "cuda"
    assert worker_environment(made) == made
    mine = worker_environment({"JAX_COMPILATION_CACHE_DIR": "/mine"})
    assert mine["JAX_COMPILATION_CACHE_DIR"] == "/mine"
