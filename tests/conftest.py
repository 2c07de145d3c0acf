"""What all tests share: one thread, warnings as errors, keys, precision, the packaged images."""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any

# Before JAX starts. One thread, as in the workers of a run: sums have one order, so what a test
# computes and what a worker computes are the same bits, and pytest -n does not fight for cores.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NPROC", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import hypothesis
import jax
import pytest

# The same examples in every run, so that a newcomer's first run fails only where the code is wrong;
# HYPOTHESIS_PROFILE=search looks further.
hypothesis.settings.register_profile(
    "same", deadline=None, max_examples=25, derandomize=True, database=None
)
hypothesis.settings.register_profile("search", deadline=None, max_examples=500)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """One process runs hundreds of tests that compile: more programs than it may map."""
    if item.get_closest_marker("long") or nextitem is None or nextitem.path != item.path:
        from secateur.lab.machine import make_room_for_programs

        make_room_for_programs()


@pytest.fixture
def getkey(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """A function that gives a new key at each call: the same ones in every run of the test."""
    start = jax.random.key(zlib.crc32(request.node.nodeid.encode()))
    count = itertools.count()
    return lambda: jax.random.fold_in(start, next(count))


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision inside the test: for identities."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def strict() -> Iterator[None]:
    """No implicit promotion of dtypes inside the test."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def mnist5k_sets() -> Any:
    """The images inside the package: 3,500 to train on, 500 for validation, 1,000 for test."""
    from secateur import data

    return data.split(data.load("mnist5k"), validation=500, seed=0)
