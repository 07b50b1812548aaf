"""The form of a run's files: which keys they have, and of which types their values are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEYED_BY_DATA = ("nodes", "ranges", "refused", "reads", "outputs", "tensors")
"""Mappings whose keys are names of operators, tensors or files."""


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields the path of every leaf, such as ``precisions[].p50_ms``, and its type."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            name = "*" if path.rpartition(".")[2] in KEYED_BY_DATA else key
            yield from leaves(inner, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list) and value:
        for inner in value:
            yield from leaves(inner, f"{path}[]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, "number"
    else:
        yield path, type(value).__name__


def forms_of(folder: Path) -> dict[str, list[str]]:
    """Returns the leaves of every JSON and JSON Lines file of a run, each once, by name."""
    found: dict[str, set[str]] = {}
    for path in [*folder.glob("*.json"), *folder.glob("*.jsonl")]:
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        for number, line in enumerate(lines):
            row = "row." if number else ""
            texts = (f"{row}{place}: {kind}" for place, kind in leaves(json.loads(line)))
            found.setdefault(path.name, set()).update(texts)
    return {name: sorted(texts) for name, texts in sorted(found.items())}
