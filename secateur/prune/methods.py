"""Every method of pruning at initialisation, by name: one line each.

A row names the class, `prune.criteria` file and all, which is imported when it is first used, and
what the method's name fixes: options, a scope, a schedule.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from secateur.core.errors import SecateurError, lookup, nearest

if typing.TYPE_CHECKING:
    from secateur.prune.criterion import Construction, Criterion


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        where: ``"module:Class"`` below `secateur.prune`.
        options: values that the name stands for.
        scope, schedule: other than the class's own; None for these.
    """

    where: str
    options: Mapping[str, Any] = field(default_factory=dict)
    scope: str | None = None
    schedule: str | None = None


METHODS: dict[str, Row] = {
    "random": Row("criteria.random:Random"),
    "random-layerwise": Row("criteria.random:Random", scope="per-layer"),
    "ntt-random-variable": Row("criteria.random:NttRandom"),
    "ntt-random-fixed": Row("criteria.random:NttRandom", {"rescale": True}),
    "magnitude": Row("criteria.magnitude:Magnitude"),
    "magnitude-std": Row("criteria.magnitude:Magnitude", {"over": "std"}),
    "magnitude-norm": Row("criteria.magnitude:Magnitude", {"over": "norm"}),
    "lamp": Row("criteria.magnitude:Lamp"),
    "snip": Row("criteria.snip:Snip"),
    "layerwise-snip": Row("criteria.snip:Snip", scope="per-layer"),
    "logit-snip": Row("criteria.snip:LogitSnip"),
    "layerwise-logit-snip": Row("criteria.snip:LogitSnip", scope="per-layer"),
    "iterative-snip": Row("criteria.force:IterativeSnip"),
    "force": Row("criteria.force:Force"),
    "grasp": Row("criteria.grasp:Grasp"),
    "grasp-abs": Row("criteria.grasp:Grasp", {"rank": "absolute"}),
    "synflow": Row("criteria.synflow:SynFlow"),
    "synflow-l2": Row("criteria.synflow:SynFlowL2"),
    "synflow-dist": Row("criteria.synflow:SynFlowDist"),
    "synflow-l2-dist": Row("criteria.synflow:SynFlowL2Dist"),
    "path-trace": Row("criteria.path_trace:PathTrace"),
    "phew": Row("criteria.phew:Phew"),
    "ntk-sap": Row("criteria.ntk_sap:NtkSap"),
    "ntk-sap-limit": Row("criteria.ntk_sap:NtkSap", {"estimator": "limit"}),
    "ntt": Row("transfer:NeuralTangentTransfer"),
    "ntt-full": Row("transfer:NeuralTangentTransfer", {"kernel": "full"}),
    "ntt-global": Row("transfer:NeuralTangentTransfer", {"ranking": "everywhere"}),
}


def load(name: str) -> type[Criterion] | type[Construction]:
    """The class of a method.

    Raises:
        SecateurError: for an unknown name, with the nearest known one.
    """
    module, _, kind = lookup("method", name, METHODS).where.partition(":")
    return getattr(importlib.import_module(f"secateur.prune.{module}"), kind)


def option_types(name: str) -> dict[str, Any]:
    """The options of a method and their types.

    Raises:
        SecateurError: for an unknown name, with the nearest known one.
    """
    kind = load(name)
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.init}


def method(name: str, **options: Any) -> Criterion | Construction:
    """A method by name, with its options checked against the types of its fields.

    Raises:
        SecateurError: for an unknown method or option (with the nearest name), or a value of
            another type.
    """
    return build(name, load(name), {**METHODS[name].options, **options})


def build(name: str, kind: type[Any], options: Mapping[str, Any]) -> Any:
    """``kind(**options)`` after a check of names and types."""
    known = {f.name: f for f in dataclasses.fields(kind) if f.init}
    hints = typing.get_type_hints(kind)
    for option, value in options.items():
        if option not in known:
            told = nearest(option, list(known)) if known else "It has none."
            raise SecateurError(f"{name} has no option {option!r}. {told}")
        if not fits(value, hints[option]):
            wanted = getattr(hints[option], "__name__", str(hints[option]))
            raise SecateurError(f"option {option} of {name} is {wanted}, not {value!r}.")
    return kind(**options)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type as annotated; what cannot be checked passes."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint)
    if hint is None or hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    kind = origin or hint
    return isinstance(value, kind) if isinstance(kind, type) else True


def described(method: Any) -> dict[str, Any]:
    """All options of a method, criterion or scope, by name."""
    return {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
