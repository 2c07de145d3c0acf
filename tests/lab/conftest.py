"""Compiled programs of these tests go to a folder of their own, not to the user's cache."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("SECATEUR_CACHE")
    os.environ["SECATEUR_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["SECATEUR_CACHE"]
    if before is not None:
        os.environ["SECATEUR_CACHE"] = before


@pytest.fixture(scope="session")
def lottery_timed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The store of an uninterrupted `secateur run lottery`, and the seconds that it took."""
    from lottery_command import SERIAL

    store, begin = tmp_path_factory.mktemp("lottery") / "store", time.monotonic()
    SERIAL.finish(store)
    return store, time.monotonic() - begin


@pytest.fixture(scope="session")
def lottery_store(lottery_timed: tuple[Path, float]) -> Path:
    """That store."""
    return lottery_timed[0]
