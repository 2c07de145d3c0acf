"""Starting is quick: what only prints text loads no array library.

Seconds depend on the machine; what is loaded does not.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("jax", "jaxlib", "altair", "scipy", "optax", "flax", "equinox", "pyarrow", "ray")


def loaded_after(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after ``code``."""
    script = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def command(*arguments: str) -> str:
    return (
        f"import runpy\nsys.argv = ['secateur', *{arguments!r}]\n"
        "try:\n    runpy.run_module('secateur.cli', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code"
    )


def test_import_secateur_loads_no_array_library():
    assert not loaded_after("import secateur").intersection(HEAVY)


@pytest.mark.parametrize(
    "arguments", [("--help",), ("run", "--help"), ("report", "--help"), ("studies",)], ids=" ".join
)
def test_the_command_loads_no_array_library_to_print_text(arguments):
    assert not loaded_after(command(*arguments)).intersection(HEAVY)


def test_adapters_load_no_library_but_that_of_the_network():
    loaded = loaded_after(
        "from secateur.networks.adapters import adapt\n"
        "import jax.numpy as jnp\n"
        "network = adapt((lambda key: {'w': jnp.ones((4, 2))}, lambda p, x: x @ p['w']), (4,))"
    )
    assert not loaded.intersection({"flax", "equinox"})
