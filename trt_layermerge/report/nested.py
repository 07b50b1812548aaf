"""Any JSON object as tables: scalars by their path, lists of objects as rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from trt_layermerge.report import text

MAX_ROWS = 100


class Table(NamedTuple):
    """Rows of plain text below a heading row; ``numeric`` columns are to be aligned right.

    ``left_out`` is how many more rows stand in the file.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[int, ...] = ()
    title: str = ""
    left_out: int = 0


def nested(value: Mapping[str, Any] | None) -> tuple[Table, ...]:
    """Returns a table of the scalars of an object, then one for every list of objects inside.

    Lists longer than ``MAX_ROWS`` are cut. The schema is left out.
    """
    scalars: list[tuple[str, str]] = []
    lists: list[Table] = []
    for path, inner in _flat({k: v for k, v in (value or {}).items() if k != "schema"}, ""):
        if isinstance(inner, list | tuple) and any(isinstance(v, Mapping) for v in inner):
            lists.append(_rows(path, inner))
        else:
            scalars.append((path, _cell(inner)))
    return *([Table(("field", "value"), tuple(scalars))] if scalars else []), *lists


def _flat(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def _rows(path: str, found: Sequence[Any]) -> Table:
    rows = [row if isinstance(row, Mapping) else {"value": row} for row in found]
    head = tuple(dict.fromkeys(str(key) for row in rows for key in row))
    cells = tuple(tuple(_cell(row.get(c, "")) for c in head) for row in rows[:MAX_ROWS])
    numeric = tuple(i for i, c in enumerate(head) if type(rows[0].get(c)) in (int, float))
    return Table(head, cells, numeric, f"{path} ({len(rows)}):", max(0, len(rows) - MAX_ROWS))


def _cell(value: Any) -> str:
    """Returns a JSON value in one cell."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    return text.plain(value)
