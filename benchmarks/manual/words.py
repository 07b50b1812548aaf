"""Types, defaults and docstrings in words that a page can show."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

LIMITS = {
    "ge": " ≥ {}",
    "gt": " > {}",
    "le": ", ≤ {}",
    "lt": ", < {}",
    "min_length": ", {} or more",
}
PLAIN = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}
INTERNAL = re.compile(r" \(`[a-z_]+(?:\.[A-Za-z_]+)+`\)")
"""Where in the code something stands, which is of no use on a page."""


def type_words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Returns what a value may be, such as ``whole number ≥ 1, or null``.

    Args:
        annotation: Its type.
        metadata: Its limits, as ``annotated_types`` or pydantic have them.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_words(arguments[0], (*arguments[1:], *metadata))
    if origin in (Union, UnionType):
        words = [type_words(part, metadata) for part in arguments if part is not NoneType]
        return " or ".join(words) + (", or `null`" if NoneType in arguments else "")
    if origin is Literal:
        return " \\| ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        items = [part for part in arguments if part is not Ellipsis]
        each = " and ".join(dict.fromkeys(type_words(part) for part in items))
        length = "" if Ellipsis in arguments else f" of {len(items)}"
        return _limited(f"list{length}: {each}", metadata)
    if origin is dict:
        return "mapping" if arguments[1] is Any else "a mapping to these"
    named = PLAIN.get(annotation) or "mapping: " + ", ".join(
        f"`{name}`" for name in annotation.model_fields
    )
    return _limited(named, metadata)


def _limited(words: str, metadata: Iterable[Any]) -> str:
    flat: list[Any] = []
    for part in metadata:
        flat += part.metadata if isinstance(part, FieldInfo) else [part]
    limits = [
        text.format(f"{value:g}" if isinstance(value, float) else value)
        for part in flat
        for name, text in LIMITS.items()
        if (value := getattr(part, name, None)) is not None
    ]
    return words + "".join(limits)


def value_words(value: Any) -> str:
    """Returns a plain value as it is typed in YAML."""
    if isinstance(value, float):
        return f"`{value:.6g}`"
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000)
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"


def summary(documented: Any) -> str:
    """Returns what a docstring says before its first section, as one paragraph."""
    text = inspect.getdoc(documented) or ""
    return _plain(re.split(r"\n\s*\n(?=[A-Z]\w+:\n)", text)[0])


def attributes(documented: Any) -> Mapping[str, str]:
    """Returns what a Google docstring says of each attribute.

    Args:
        documented: A class.
    """
    text = inspect.getdoc(documented) or ""
    _, found, rest = text.partition("\nAttributes:\n")
    if not found:
        return {}
    entries = re.split(r"^    (\w+): ", rest.split("\n\n")[0], flags=re.MULTILINE)[1:]
    return {name: _plain(said) for name, said in zip(entries[::2], entries[1::2], strict=True)}


def _plain(text: str) -> str:
    """Returns a part of a docstring in one line of Markdown."""
    line = " ".join(text.split()).replace("``", "`")
    line = re.sub(r"\bNone\b", "`null`", INTERNAL.sub("", line))
    return line.replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
