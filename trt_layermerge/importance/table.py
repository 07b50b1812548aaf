"""Scores candidates into a durable table, one line each, and continues where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.jsonio import append_line, sealed, sha256_json, write_lines
from trt_layermerge.core.tables import ImportanceEntry, ImportanceTable, importance_row
from trt_layermerge.errors import UsageError

Scores: TypeAlias = Iterator[tuple[Candidate, ImportanceEntry]]
Progress: TypeAlias = Callable[[int, int], None]


def candidate_seed(candidate: Candidate, seed: int) -> int:
    """Returns a seed of a candidate alone, so that scores do not depend on their order: 31 bits."""
    return int(sha256_json([candidate.to_json(), seed])[:8], 16) >> 1


class Scorer(Protocol):
    """One way to score candidates of one network."""

    def entry(self, candidate: Candidate, first: bool = False) -> ImportanceEntry:
        """Returns a candidate's score, or a first look; the same whatever was scored before."""
        ...


def fill_table(
    candidates: Iterable[Candidate],
    score: Callable[[Sequence[Candidate]], Scores],
    path: Path,
    notes: Mapping[str, Any],
    on_progress: Progress | None = None,
    first: bool = False,
) -> ImportanceTable:
    """Returns the table of a file, every candidate in it; what is missing is scored and appended.

    Each entry is on the disk before the next one is asked for, so a killed process loses at most
    those under way. Entries that came in another order are put into that of the candidates at the
    end, behind those that nobody asked for.

    Args:
        candidates: What to score; repeated keys are scored once.
        score: Yields each of the candidates it is given with its score, in any order.
        path: The table's file.
        notes: What the scores depend on, JSON-ready: hashes of model and data, method, settings.
        on_progress: Called with the number of entries present and wanted, at first and after each.
        first: Whether first looks are enough (``ImportanceEntry.images``); else they are replaced.

    Raises:
        UsageError: If the file was made with other notes.
        CorruptInputError: If the file is damaged.
        DeviceError: If it cannot be written.
    """
    wanted = {c.key: c for c in candidates}
    entries = dict(_open(path, notes).entries)
    looked_at = {key for key, entry in entries.items() if entry.images is not None and not first}
    missing = [c for key, c in wanted.items() if key not in entries or key in looked_at]
    kept = list(entries)
    done = len(wanted) - len(missing)
    if on_progress:
        on_progress(done, len(wanted))
    for candidate, entry in score(missing):
        append_line(path, sealed(importance_row(candidate.key, entry)))
        entries[candidate.key] = entry
        done += 1
        if on_progress:
            on_progress(done, len(wanted))
    order = [*(key for key in kept if key not in wanted), *wanted]
    if list(entries) == kept:  # nothing is new, though some may be better known
        order = kept
    table = ImportanceTable({key: entries[key] for key in order}, dict(notes))
    if list(entries) != order or any(c.key in looked_at for c in missing):
        table.save(path)
    return table


def _open(path: Path, notes: Mapping[str, Any]) -> ImportanceTable:
    """Returns the table of a file; begins the file if there is none."""
    expected = json.loads(json.dumps(dict(notes)))
    if not path.exists():
        write_lines(path, "importance", {"notes": expected}, ())
        return ImportanceTable({}, expected)
    table = ImportanceTable.load(path)
    found = dict(table.notes)
    different = [k for k in {**expected, **found} if expected.get(k) != found.get(k)]
    if different:
        raise UsageError(
            f"{path} was estimated with another {', '.join(different[:5])}, and such scores do not "
            "mix; delete the file to start anew, or choose another run (--run NAME)"
        )
    return table
