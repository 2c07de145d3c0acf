"""What was asked last of each study in a store, so that a report need not be told again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from secateur.lab.files import publish, write_all
from secateur.lab.store import Store


def remember(store: Store, study: str, asked: Mapping[str, Any]) -> None:
    """Keeps the request, atomically; the last one of a study wins.

    Raises:
        StoreError: where the store cannot be written.
    """
    folder = store.path / "runs"
    partial = store.temporary()
    try:
        folder.mkdir(exist_ok=True)
        write_all(partial, json.dumps(dict(asked), indent=1).encode(), "run", store.fault)
        publish(partial, folder / f"{study}.json", "run", store.fault)
    except OSError as error:
        raise store.unwritable("the request", error) from error


def recall(store: Store, study: str) -> dict[str, Any] | None:
    """The last request of a study, or None where there is none that can be read."""
    try:
        told = json.loads((store.path / "runs" / f"{study}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None
