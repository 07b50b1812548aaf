"""Plain values and records as text that Rich can print; numbers on the right, None as a dash."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Result: TypeAlias = Mapping[str, Any]
NOTHING = "–"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Returns a table of plain text; numbers are on the right, None is a dash.

    Args:
        title: Its title.
        columns: Titles of the columns.
        rows: The cells of each row, any plain values.
    """
    body = [[as_text(cell) for cell in row] for row in rows]
    result = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for index, column in enumerate(columns):
        numeric = bool(body) and all(_numeric(row[index]) for row in body)
        result.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in body:
        result.add_row(*(Text(cell) for cell in row))
    return result


def as_text(value: Any) -> str:
    """Returns a value for people: four significant digits, None as a dash."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {as_text(v)}" for k, v in value.items()) or NOTHING
    if _many(value):
        return ", ".join(as_text(v) for v in value) or NOTHING
    return str(value)


def _numeric(text: str) -> bool:
    return text == NOTHING or text.lstrip("-").replace(".", "", 1).replace("e-", "", 1).isdigit()


def fields_view(result: Result) -> RenderableType:
    """Returns plain values one a line, then a table for every list of records.

    What is nested deeper stays in its file.
    """
    grid = Table.grid(padding=(0, 2))
    parts: list[RenderableType] = [grid]
    for key, value in result.items():
        name = key.replace("_", " ")
        if _records(value):
            parts.append(_records_table(name, value))
        elif key != "schema" and not _nested(value):
            grid.add_row(Text(name, style="bold"), Text(as_text(value), overflow="fold"))
    return Group(*parts)


def _records_table(title: str, records: Sequence[Result]) -> Table:
    columns = [k for k in records[0] if not any(_nested([r.get(k)]) for r in records)]
    return table(title, columns, [[record.get(k) for k in columns] for record in records])


def _records(value: Any) -> bool:
    return _many(value) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _nested(value: Any) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if _many(value) else ()
    return any(isinstance(v, Mapping) or _many(v) for v in inner)


def _many(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def times(value: float | None) -> str | None:
    """Returns a factor such as ``2.04x``."""
    return None if value is None else f"{value:.2f}x"


def percent(value: float | None) -> str:
    """Returns a share such as ``98.25 %``; None is a dash."""
    return NOTHING if value is None else f"{100 * value:.2f} %"
