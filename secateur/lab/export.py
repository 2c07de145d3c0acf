"""A tidy table of a study's results, for pandas or R: a cell's rows, or one a curve's point."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from secateur.core.errors import SecateurError
from secateur.lab.cells import rows_of
from secateur.lab.store import Entry, Store

FORMATS = (".csv", ".json", ".parquet")
_MADE = ("seconds_cpu", "seconds_wall", "executor", "device", "threads", "finished", "versions")


def rows(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """A cell's rows: study, place, seed, fields, values and checks, nested names joined by dots.

    Lists (curves) are left out; see `curve_rows`. Seconds are of the whole cell, in its first row.
    """
    made = []
    for entry in entries:
        for number, values in enumerate(rows_of(entry.values)):
            known = _MADE if not number else [name for name in _MADE if "seconds" not in name]
            made.append(
                {**_head(entry, values), **_numbers("", values)}
                | _numbers("checks.", entry.checks)
                | _numbers("", {name: entry.made.get(name) for name in known})
                | {"address": entry.address}
            )
    return made


def curve_rows(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """One row a point: lists of one length that stand side by side in the values are columns."""
    made = []
    for entry in entries:
        head = _head(entry)
        for name, lists in _curves("", entry.values):
            for point in range(max(map(len, lists.values()))):
                made.append(
                    {**head, "curve": name, "point": point}
                    | {k: v[point] for k, v in lists.items() if point < len(v)}
                )
    return made


def export(
    store: Store,
    study: str,
    path: str | os.PathLike[str],
    curves: bool = False,
    addresses: Collection[str] | None = None,
) -> int:
    """Writes a study's table; the format follows the file's ending. The number of rows.

    Args:
        curves: one row a point of a curve instead of one a cell.
        addresses: of the cells that are wanted; all of the study without it.

    Raises:
        SecateurError: unknown ending, no results, no pyarrow, unwritable file.
    """
    target = Path(path)
    if target.suffix not in FORMATS:
        raise SecateurError(
            f"a table ends in {', '.join(FORMATS)}, not {target.suffix or 'nothing'!r}: {target}"
        )
    entries = store.entries(study)
    if not entries:
        known = store.studies()
        there = f"it has {', '.join(known)}" if known else "it is empty"
        raise SecateurError(f"the store {store.path} has no results of {study!r}; {there}")
    if addresses is not None:
        entries = [entry for entry in entries if entry.address in addresses]
        if not entries:
            raise SecateurError(
                f"the store {store.path} has results of {study!r}, but none with these fields; "
                "`secateur status` lists what it has"
            )
    table = curve_rows(entries) if curves else rows(entries)
    if not table:
        raise SecateurError(f"the results of {study!r} have no curves: export without them")
    columns = list(dict.fromkeys(name for row in table for name in row))
    data = _WRITERS[target.suffix](table, columns)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SecateurError(f"cannot write {target}: {error.strerror or error}") from error
    return len(table)


def _head(entry: Entry, beside: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """What identifies a row, less the parts of its place that stand in the values beside it."""
    head = {"study": entry.study, "seed": entry.seed, "data": entry.what["data"]}
    place = {name: value for name, value in entry.place.items() if beside.get(name) != value}
    head.update(_numbers("place.", place))
    head.update(_numbers("field.", entry.fields, lists=True))
    return head


def _numbers(prefix: str, values: Mapping[str, Any], lists: bool = False) -> dict[str, Any]:
    """Nested values as flat columns; lists as JSON text, or left out."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_numbers(f"{prefix}{name}.", value, lists))
        elif isinstance(value, list | tuple):
            if lists:
                flat[prefix + name] = json.dumps(value)
        else:
            flat[prefix + name] = value
    return flat


def _curves(name: str, values: Mapping[str, Any]) -> Iterable[tuple[str, dict[str, list[Any]]]]:
    """(dotted name, column -> list) of every dict that has lists of plain values."""
    lists = {
        k: v
        for k, v in values.items()
        if isinstance(v, list) and v and not isinstance(v[0], list | dict)
    }
    if lists:
        yield name, lists
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _curves(f"{name}.{key}" if name else key, value)


def _csv(table: list[dict[str, Any]], columns: list[str]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in table:
        # true and false as R and pandas read them
        writer.writerow({k: str(v).lower() if isinstance(v, bool) else v for k, v in row.items()})
    return text.getvalue().encode()


def _json(table: list[dict[str, Any]], columns: list[str]) -> bytes:
    return (json.dumps(table, indent=1, ensure_ascii=False) + "\n").encode()


def _parquet(table: list[dict[str, Any]], columns: list[str]) -> bytes:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise SecateurError(
            "Parquet needs pyarrow, which is not installed: pip install 'secateur[parquet]', or "
            "export to .csv"
        ) from None
    arrays = {}
    for name in columns:
        values = [row.get(name) for row in table]
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # text in one row, a number in another
            arrays[name] = pa.array([None if v is None else str(v) for v in values])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


_WRITERS = {".csv": _csv, ".json": _json, ".parquet": _parquet}
