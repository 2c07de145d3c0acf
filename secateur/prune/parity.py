"""What published codes do otherwise than their papers, as data: counts, ties, modes, batches.

``find(..., parity="synaptic-flow")`` follows the rules of a row; the ticket records them. A row
changes only how a mask is counted, what batch norm does, how many examples are drawn, and which
reading of a score is taken, never what the method is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from secateur.core.network import Network
from secateur.prune.gradients import linear_logit
from secateur.prune.methods import METHODS, load
from secateur.train.losses import Loss


@dataclass(frozen=True)
class Parity:
    """The rules of one published code. None: as the paper.

    Attributes:
        source: repository and file.
        count, ties, revival, schedule: as in `find`.
        loss: name of the loss of its scores.
        per_class: examples times the number of classes, drawn at random and not balanced.
        options: of any method that has them.
        by_class: options by the class of the criterion.
    """

    source: str
    count: str | None = None
    ties: str | None = None
    revival: bool | None = None
    schedule: str | None = None
    loss: str | None = None
    per_class: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    by_class: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def losses(self) -> dict[str, Loss]:
        """Losses that only published codes use."""
        return {"linear_logit": linear_logit}

    def options_for(self, name: str, network: Network) -> dict[str, Any]:
        """The options of method ``name`` that this code sets, of those that the method has."""
        kind = load(name)
        known = {f.name for f in dataclasses.fields(kind)}
        found = dict(self.options)
        if self.per_class is not None:
            found |= {"examples": self.per_class * network.outputs, "per_class": None}
        found.update(self.by_class.get(kind.__name__, {}))
        fixed = METHODS[name].options
        return {k: v for k, v in found.items() if k in known and k not in fixed}

    def told(self) -> dict[str, Any]:
        """The rules that differ, for the record."""
        rules = ("count", "ties", "revival", "schedule", "loss", "per_class")
        return {k: getattr(self, k) for k in rules if getattr(self, k) is not None}


PARITIES: dict[str, Parity] = {
    "synaptic-flow": Parity(
        "ganguli-lab/Synaptic-Flow, Pruners/pruners.py and prune.py",
        count="synaptic-flow",
        ties="threshold-drop",
        revival=True,  # the line that would keep pruned weights away is commented out
        per_class=10,
        options={"bn": "init"},
        by_class={"SynFlow": {"pooling": "as_is", "keep_bias": True, "scale_free": False}},
    ),
    "ntk-sap": Parity(
        "YiteWang/NTK-SAP, Pruners/pruners.py and prune.py",
        count="synaptic-flow",
        ties="threshold-drop",
        per_class=10,
        options={"bn": "batch"},  # its README asks for training mode
        by_class={
            "SynFlow": {"pooling": "as_is", "keep_bias": True, "scale_free": False},
            "NtkSap": {"bn": "frozen-batch", "biases": "given"},
        },
    ),
    "snip-public": Parity(
        "namhoonlee/snip-public, snip/prune.py",
        count="half-even",
        ties="index",
        options={"bn": "running", "examples": 100},
    ),
    "mil-ad-snip": Parity(
        "mil-ad/snip, snip.py",
        count="floor",
        ties="threshold-keep",
        options={"bn": "batch", "examples": 128},
    ),
    "grasp": Parity(
        "alecwangcq/GraSP, pruner/GraSP.py",
        count="grasp",
        ties="threshold-keep",
        options={"bn": "batch"},
    ),
    "force": Parity(
        "naver/force, pruning/pruning_algos.py",
        count="floor",
        ties="threshold-keep",
        loss="linear_logit",  # nll_loss of raw logits
        options={"bn": "batch", "examples": 128},
    ),
    "phew": Parity(
        "ShreyasMalakarjunPatil/PHEW, Prune/*_utils.py",
        count="phew",
        ties="threshold-drop",
        options={"bn": "batch"},
        by_class={"SynFlowL2": {"score_as": "magnitude"}, "Grasp": {"flow": "all"}},
    ),
    "shrinkbench": Parity(
        "JJGO/shrinkbench, strategies/utils.py",
        count="shrinkbench",
        ties="threshold-keep",
        options={"bn": "batch"},
    ),
    "effective-sparsity": Parity(
        "avysogorets/effective-sparsity, pruning.py", count="effective-sparsity"
    ),
}
