"""A table of scores that one scorer makes in turn, as tests want it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.tables import ImportanceTable
from trt_layermerge.importance.table import Progress, Scorer, fill_table


def estimate(
    candidates: Iterable[Candidate],
    scorer: Scorer,
    path: Path,
    notes: Mapping[str, Any],
    on_progress: Progress | None = None,
) -> ImportanceTable:
    """Returns the table of a file, every candidate in it; what is missing is scored in turn."""
    return fill_table(
        candidates,
        lambda missing: ((c, scorer.entry(c)) for c in missing),
        path,
        notes,
        on_progress,
    )
