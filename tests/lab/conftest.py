"""Compiled programs of these tests go to a folder of their own, not to the user's cache."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("SECATEUR_CACHE")
    os.environ["SECATEUR_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["SECATEUR_CACHE"]
    if before is not None:
        os.environ["SECATEUR_CACHE"] = before
