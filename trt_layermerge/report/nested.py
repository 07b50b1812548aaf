"""Any JSON object as tables: scalars by their path, lists of equal objects as rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trt_layermerge.report import text
from trt_layermerge.report.document import Paragraph, Part, Table

MAX_ROWS = 100


def nested_parts(value: Mapping[str, Any]) -> tuple[Part, ...]:
    """Returns one table of the scalars, then one table for every list of objects inside.

    Lists longer than ``MAX_ROWS`` are cut, with a sentence that says so.
    """
    scalars = tuple(_scalars(value, ""))
    parts: list[Part] = [Table(("field", "value"), scalars)] if scalars else []
    for path, rows in _lists(value, ""):
        columns = tuple(dict.fromkeys(str(key) for row in rows for key in row))
        cells = tuple(tuple(_cell(row.get(c, "")) for c in columns) for row in rows[:MAX_ROWS])
        numeric = tuple(i for i, c in enumerate(columns) if _is_number(rows[0].get(c)))
        parts += [Paragraph(f"{path} ({len(rows)}):"), Table(columns, cells, numeric)]
        if len(rows) > MAX_ROWS:
            parts.append(Paragraph(f"{len(rows) - MAX_ROWS} more rows stand in the file."))
    return tuple(parts)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _scalars(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        path = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            yield from _scalars(inner, f"{path}.")
        elif not _is_rows(inner):
            yield path, _cell(inner)


def _lists(
    value: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Sequence[Mapping[str, Any]]]]:
    for key, inner in value.items():
        path = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            yield from _lists(inner, f"{path}.")
        elif _is_rows(inner):
            yield path, [v if isinstance(v, Mapping) else {"value": v} for v in inner]


def _cell(value: Any) -> str:
    """Returns a JSON value in one cell."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_cell(inner) for inner in value)
    return text.plain(value)
