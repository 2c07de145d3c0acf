"""Secateur studies neural networks by cutting them down.

What most programs need stands here and is loaded when it is first used, so that importing the
package loads no array library. The rest is in the rooms: `secateur.core`, `data`, `networks`,
`structure`, `train`, `prune`, `lab`, `studies`, `report`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # the same names as in _WHERE, for type checkers and editors; a test compares
    from secateur.core.errors import SecateurError as SecateurError
    from secateur.core.keys import key as key
    from secateur.core.network import Network as Network
    from secateur.data.decode import read_folder as read_folder
    from secateur.data.examples import Sets as Sets
    from secateur.data.registry import load as load
    from secateur.data.splits import from_arrays as from_arrays
    from secateur.data.splits import split as split
    from secateur.networks.adapters import adapt as adapt
    from secateur.networks.mlp import lenet_300_100 as lenet_300_100
    from secateur.networks.mlp import mlp as mlp
    from secateur.networks.registry import network as network
    from secateur.prune.branches import BRANCHES as BRANCHES
    from secateur.prune.compact import compact as compact
    from secateur.prune.controls import control as control
    from secateur.prune.criterion import Criterion as Criterion
    from secateur.prune.examine import examine as examine
    from secateur.prune.exchange import from_state_dict as from_state_dict
    from secateur.prune.exchange import to_state_dict as to_state_dict
    from secateur.prune.exchange import to_torch as to_torch
    from secateur.prune.find import find as find
    from secateur.prune.find import find_lanes as find_lanes
    from secateur.prune.lottery import begin as begin
    from secateur.prune.lottery import lottery as lottery
    from secateur.prune.structured import prune_units as prune_units
    from secateur.prune.ticket import Ticket as Ticket
    from secateur.train.fit import fit as fit
    from secateur.train.fit import fit_lanes as fit_lanes
    from secateur.train.masked import masked as masked
    from secateur.train.masked import put as put
    from secateur.train.recipes import RECIPES as RECIPES
    from secateur.train.recipes import Recipe as Recipe
    from secateur.train.records import Record as Record
    from secateur.train.training import Fitted as Fitted
    from secateur.train.training import Training as Training

_WHERE = {  # in reading order: data, networks, training, pruning
    "load": "data.registry",
    "split": "data.splits",
    "from_arrays": "data.splits",
    "read_folder": "data.decode",
    "Sets": "data.examples",
    "Network": "core.network",
    "mlp": "networks.mlp",
    "lenet_300_100": "networks.mlp",
    "network": "networks.registry",
    "adapt": "networks.adapters",
    "Recipe": "train.recipes",
    "RECIPES": "train.recipes",
    "Record": "train.records",
    "Training": "train.training",
    "Fitted": "train.training",
    "fit": "train.fit",
    "fit_lanes": "train.fit",
    "masked": "train.masked",
    "put": "train.masked",
    "find": "prune.find",
    "find_lanes": "prune.find",
    "Ticket": "prune.ticket",
    "Criterion": "prune.criterion",
    "examine": "prune.examine",
    "prune_units": "prune.structured",
    "compact": "prune.compact",
    "control": "prune.controls",
    "to_state_dict": "prune.exchange",
    "to_torch": "prune.exchange",
    "from_state_dict": "prune.exchange",
    "BRANCHES": "prune.branches",
    "begin": "prune.lottery",
    "lottery": "prune.lottery",
    "key": "core.keys",
    "SecateurError": "core.errors",
}
__all__ = [  # noqa: RUF022 - reading order
    "load",
    "split",
    "from_arrays",
    "read_folder",
    "Sets",
    "Network",
    "mlp",
    "lenet_300_100",
    "network",
    "adapt",
    "Recipe",
    "RECIPES",
    "Record",
    "Training",
    "Fitted",
    "fit",
    "fit_lanes",
    "masked",
    "put",
    "find",
    "find_lanes",
    "Ticket",
    "Criterion",
    "examine",
    "prune_units",
    "compact",
    "control",
    "to_state_dict",
    "to_torch",
    "from_state_dict",
    "BRANCHES",
    "begin",
    "lottery",
    "key",
    "SecateurError",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"secateur.{_WHERE[name]}"), name)
    globals()[name] = found  # looked up once
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
