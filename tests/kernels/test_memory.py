"""What a kernel takes beside its result stays within the memory that it was given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BUDGET = 30e6
# Programs that are compiled, and what the allocator and the backend hold between two blocks.
MARGIN = 100e6

CHILD = """
import json, sys
import jax, numpy as np
from secateur.kernels.ntk import ntk
from secateur.networks.mlp import mlp

def told(what):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[what].split()[0]) * 1024

budget, density = float(sys.argv[1]), float(sys.argv[2])
net = mlp(1000, 1000, input_shape=(16,), outputs=10)
params, rng = net.init(jax.random.key(0))[0], np.random.default_rng(0)
x = rng.standard_normal((800, 16), np.float32)
# Of the last layer nothing is masked: all units are felt, and all blocks share their programs.
drawn = rng.random((1000, 1000)) < density
mask = {name: {"kernel": None, "bias": None} for name in params}
mask["dense_2"]["kernel"] = drawn if density < 1 else None
how = {"stats": {}, "mask": mask, "outputs": "trace"}
ntk(net, params, x[:8], **how)
idle = told("VmRSS")
found = ntk(net, params, x, memory=budget, **how)
print(json.dumps({
    "beside": told("VmHWM") - idle - found.values.nbytes,
    "planned": found.plan.working,
    "trace": float(found.trace()),
}))
"""


def measured(budget: float, density: float) -> dict[str, float]:
    """Bytes that a process of its own held at most, beyond those before and the result."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(budget), str(density)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak")
@pytest.mark.parametrize("density", [1.0, 0.1])
def test_what_is_held_beside_the_kernel_stays_within_the_memory_given(density: float) -> None:
    """All factors of these examples take 80 MB, of which ten times the budget has room."""
    little, much = measured(BUDGET, density), measured(10 * BUDGET, density)
    assert little["planned"] <= BUDGET
    assert little["beside"] <= BUDGET + MARGIN
    assert much["beside"] > BUDGET + MARGIN, "blocks that are ignored would be seen"
    assert much["beside"] <= 10 * BUDGET + MARGIN
    assert little["trace"] == pytest.approx(much["trace"], rel=1e-5)
