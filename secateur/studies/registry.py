"""The studies by name. A study is a module; its line here is all that the command needs."""

from __future__ import annotations

import importlib
from types import ModuleType

from secateur.core.errors import lookup

STUDIES: dict[str, str] = {
    "lottery": "secateur.studies.lottery",
    "at-init": "secateur.studies.at_init",
    "sap-limit": "secateur.studies.sap_limit",
    "ntt": "secateur.studies.ntt",
    "ntt-outputs": "secateur.studies.ntt_outputs",
    "kernel-watch": "secateur.studies.kernel_watch",
    "lazy-toy": "secateur.studies.lazy_toy",
    "feature-dynamics": "secateur.studies.feature_dynamics",
    "lazy-mnist": "secateur.studies.lazy_mnist",
    "xord": "secateur.studies.xord",
    "unit-pruning": "secateur.studies.unit_pruning",
    "random-labels": "secateur.studies.random_labels",
    "transfer": "secateur.studies.transfer",
    "sgd-rescue": "secateur.studies.sgd_rescue",
    "connectivity": "secateur.studies.connectivity",
}


def study(name: str) -> ModuleType:
    """The module of a study.

    Raises:
        SecateurError: for an unknown name, with the nearest known one.
    """
    return importlib.import_module(lookup("study", name, STUDIES))
