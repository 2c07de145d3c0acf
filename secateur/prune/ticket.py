"""A ticket: a mask, the weights to train from, and everything needed to say how it came about.

One file holds it: safetensors, which any reader of that format opens, with the provenance as JSON
in its header. What is read back is what was written, bit for bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import metadata as installed
from pathlib import Path
from typing import Any

import jax
import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.network import Stats
from secateur.core.trees import Mask, Params, alive, fingerprint, flatten, sizes, unflatten

FORMAT = 1  # of the file; raised when an older Secateur could not read it


@dataclass(frozen=True)
class Provenance:
    """How a ticket was made. Everything here is JSON.

    Attributes:
        method: its name in `prune.methods`; options: every option of it, also those left alone.
        title, source: of the definition that was followed.
        network: name of the network.
        asked: the density asked for. density, kept, of: what came out, of the prunable weights.
        all_parameters: of the network, prunable or not; density_of_all: kept or never prunable,
            over all of them.
        scope, schedule: name and options. rounds, kept_by_round: of them.
        ties, count, revival, revived: rules, and how many weights came back over all rounds.
        key: data of the key that scores were drawn with; seed: what it was made of, if a seed.
        start: where the weights came from, and their hash before they were masked.
        data: what was scored on: name, hash, how many examples; empty without data.
        loss, bn: that scores were taken with; None where none was.
        layers: per prunable layer its name, shape, kept, of, density, in the network's order.
        excluded: other leaves, which no method may prune.
        parity: the published code whose rules were followed, and which rules these are.
        control: what was done to another ticket, where this is a control.
        record: what the method itself reports.
        versions: of Secateur, JAX, NumPy; device and precision.
    """

    method: str
    title: str = ""
    source: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    network: str = ""
    asked: float | None = None
    density: float = 1.0
    kept: int = 0
    of: int = 0
    all_parameters: int = 0
    density_of_all: float = 1.0
    scope: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    rounds: int = 1
    kept_by_round: list[int] = field(default_factory=list)
    ties: str = "index"
    count: str = "nearest"
    revival: bool = False
    revived: int = 0
    key: list[int] = field(default_factory=list)
    seed: int | None = None
    start: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    loss: str | None = None
    bn: str | None = None
    layers: list[dict[str, Any]] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    parity: dict[str, Any] | None = None
    control: dict[str, Any] | None = None
    record: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def versions() -> dict[str, str]:
    """What the numbers of a ticket may depend on."""

    def of(package: str) -> str:
        with contextlib.suppress(installed.PackageNotFoundError):
            return installed.version(package)
        return "unknown"

    return {
        **{name: of(name) for name in ("secateur", "jax", "jaxlib", "numpy")},
        "device": jax.devices()[0].platform,
        "float": "float64" if jax.config.read("jax_enable_x64") else "float32",
    }


def table(mask: Mask, order: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """Per prunable layer its name, shape, kept, of and density."""
    kept, of = alive(mask), sizes(mask)
    shapes = {k: np.shape(m) for k, m in flatten(mask).items() if m is not None}
    return [
        {
            "name": name,
            "shape": list(shapes[name]),
            "kept": kept[name],
            "of": of[name],
            "density": kept[name] / of[name],
        }
        for name in order or kept
    ]


@dataclass(frozen=True)
class Ticket:
    """A pruned network at its start.

    Attributes:
        mask: the structure of ``params``; numpy booleans, None where nothing may be pruned.
        params: where training starts, as numpy arrays: 0 at every pruned place.
        stats: batch statistics at ``params``; an empty dict where the network has none.
        provenance: how it came about.
    """

    mask: Mask
    params: Params
    stats: Stats
    provenance: Provenance

    @property
    def density(self) -> float:
        """Kept over prunable weights."""
        return self.provenance.density

    @property
    def checksum(self) -> str:
        """SHA-256 over every array and the provenance: equal only for equal tickets."""
        trees = {"mask": self.mask, "params": self.params, "stats": self.stats}
        return _checksum(fingerprint(trees), _as_json(self.provenance))

    def __repr__(self) -> str:
        p = self.provenance
        return (
            f"Ticket({p.method}, {p.network}: {p.kept:,} of {p.of:,} weights, "
            f"density {p.density:.4g})"
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the ticket to one file, whole or not at all.

        Raises:
            SecateurError: where the file cannot be written, or the parameters are no nested dicts,
                lists and tuples.
        """
        from safetensors.numpy import save

        trees = {"mask": self.mask, "params": self.params, "stats": self.stats}
        header = {
            "format": FORMAT,
            "trees": {k: _form(tree, k) for k, tree in trees.items()},
            "provenance": json.loads(_as_json(self.provenance)),
            "sha256": self.checksum,
        }
        leaves = {k: np.ascontiguousarray(v) for k, v in flatten(trees).items() if v is not None}
        # 0-d arrays become 1-d above; safetensors keeps the shape that it is given.
        leaves = {k: v.reshape(np.shape(flatten(trees)[k])) for k, v in leaves.items()}
        target = Path(path)
        content = save(leaves, {"secateur": json.dumps(header, sort_keys=True)})
        temporary = ""
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise SecateurError(
                f"the ticket cannot be written to {target}: {error.strerror or error}; choose a "
                "place that can be written to."
            ) from error
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ticket:
        """The ticket in a file that `save` wrote.

        Raises:
            SecateurError: no such file, another kind of file, a damaged one, or one of a newer
                Secateur.
        """
        from safetensors import SafetensorError, safe_open

        source = Path(path)
        try:
            with safe_open(source, "numpy") as file:
                metadata = file.metadata() or {}
                leaves = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError as error:
            raise SecateurError(f"there is no ticket at {source}; check the path.") from error
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise SecateurError(
                f"{source} is no ticket, or a damaged one ({_short(error)}); make it again or take "
                "another copy."
            ) from error
        if "secateur" not in metadata:
            raise SecateurError(
                f"{source} holds arrays but is no ticket: its header does not say so; give a file "
                "that Ticket.save wrote."
            )
        try:
            header = json.loads(metadata["secateur"])
            version = header["format"]
            if version == FORMAT:
                trees = {k: _built(form, leaves) for k, form in header["trees"].items()}
                told = header["provenance"]
                known = {f.name for f in fields(Provenance)}
                of = Provenance(**{k: v for k, v in told.items() if k in known})
                ticket = cls(trees["mask"], trees["params"], trees["stats"], of)
                found = _checksum(fingerprint(trees), json.dumps(told, sort_keys=True))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise SecateurError(
                f"{source} is a damaged ticket ({_short(error)}); make it again or take another "
                "copy."
            ) from error
        if version != FORMAT:
            raise SecateurError(
                f"{source} has format {version}, this Secateur reads {FORMAT}; use the Secateur "
                "that wrote it, or a newer one."
            )
        if found != header.get("sha256"):
            raise SecateurError(
                f"{source} is damaged: its contents do not match its checksum; make it again or "
                "take another copy."
            )
        return ticket


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]


def _as_json(provenance: Provenance) -> str:
    told = {f.name: _plain(getattr(provenance, f.name)) for f in fields(provenance)}
    return json.dumps(told, sort_keys=True, allow_nan=False)


def _plain(value: Any) -> Any:
    """As JSON has it; of what it has not (NaN, functions, keys), the name."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic | np.ndarray) or (
        isinstance(value, jax.Array) and not jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended)
    ):
        return _plain(np.asarray(value).tolist())
    return getattr(value, "__name__", str(value))


def _checksum(arrays: str, provenance: str) -> str:
    return hashlib.sha256(f"{FORMAT};{arrays};{provenance}".encode()).hexdigest()


def _form(tree: Any, path: str) -> Any:
    """The structure of a tree as JSON, its leaves by name; None is null."""
    if tree is None:
        return None
    if type(tree) is dict:
        if not all(isinstance(k, str) and "/" not in k for k in tree):
            raise SecateurError(
                f"a ticket's file names leaves by strings without '/', which {path} has not; "
                "rename its keys."
            )
        return {"dict": {k: _form(v, f"{path}/{k}") for k, v in sorted(tree.items())}}
    if type(tree) in (list, tuple):
        kind = type(tree).__name__
        return {kind: [_form(v, f"{path}/{i}") for i, v in enumerate(tree)]}
    if not isinstance(tree, np.ndarray | np.generic | jax.Array | float | int):
        raise SecateurError(
            f"a ticket's file holds nested dicts, lists and tuples of arrays; {path} is a "
            f"{type(tree).__name__}."
        )
    return path


def _built(form: Any, leaves: Mapping[str, np.ndarray]) -> Any:
    if form is None:
        return None
    if isinstance(form, str):
        return leaves[form]
    ((kind, inside),) = form.items()
    if kind == "dict":
        return {k: _built(v, leaves) for k, v in inside.items()}
    parts = [_built(v, leaves) for v in inside]
    return tuple(parts) if kind == "tuple" else parts


def ticket(mask: Mask, params: Params, stats: Stats, provenance: Provenance) -> Ticket:
    """A ticket of a mask and weights: masked, as numpy, with the counts in its provenance."""
    like = jax.tree.map(np.asarray, params)
    flat, kept = flatten(mask), flatten(like)
    masked = {
        name: leaf if flat[name] is None else np.where(flat[name], leaf, np.zeros((), leaf.dtype))
        for name, leaf in kept.items()
    }
    order = tuple(row["name"] for row in provenance.layers) or None
    rows = table(mask, order)
    total, left = sum(row["of"] for row in rows), sum(row["kept"] for row in rows)
    everything = sum(int(np.size(leaf)) for leaf in kept.values())
    full = replace(
        provenance,
        layers=rows,
        kept=left,
        of=total,
        density=left / total,
        all_parameters=everything,
        density_of_all=(everything - total + left) / everything,
        excluded=[name for name, m in flat.items() if m is None],
    )
    full = Provenance(**json.loads(_as_json(full)))  # plain: equal to what a file gives back
    bits = {k: None if m is None else np.asarray(m, bool) for k, m in flat.items()}
    return Ticket(
        unflatten(bits, mask),
        unflatten(masked, like),
        jax.tree.map(np.asarray, stats),
        full,
    )
