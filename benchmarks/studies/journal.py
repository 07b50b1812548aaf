"""A study's results: JSON lines under a header, on the disk before the next step begins."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.studies.settings import ROOT
from trt_layermerge.backends.host import cpu_name
from trt_layermerge.core.jsonio import Json, append_line, read_lines, write_lines
from trt_layermerge.errors import UsageError
from trt_layermerge.pipeline.versions import versions


@dataclass
class Journal:
    """Rows of one study, each of a ``kind``.

    Attributes:
        path: The file.
        kind: Name of its schema.
        header: Settings, machine and versions at the start.
        rows: What is in it, in order.
    """

    path: Path
    kind: str
    header: Json
    rows: list[Json]

    @staticmethod
    def open(path: Path, kind: str, settings: Json) -> Journal:
        """Returns the journal of a file, begun or new, with a row about this session added.

        Raises:
            UsageError: If the file was begun with other settings.
            CorruptInputError: If it is damaged.
        """
        if not path.exists():
            write_lines(path, kind, {"settings": settings, **machine()}, ())
        header, rows = read_lines(path, kind)
        known = header["settings"]
        other = [k for k in {**known, **settings} if known.get(k) != settings.get(k)]
        if other:
            raise UsageError(
                f"{path} was begun with another {', '.join(other)}, and such results do not mix; "
                "choose another folder (--work DIR)"
            )
        journal = Journal(path, kind, header, rows)
        journal.add(kind="session", **session())
        return journal

    def add(self, **row: object) -> None:
        """Appends a row; it is on the disk when this returns."""
        append_line(self.path, dict(row))
        self.rows.append(dict(row))

    def of(self, kind: str) -> list[Json]:
        """Returns the rows of a kind."""
        return [row for row in self.rows if row["kind"] == kind]

    def commits(self, **of: object) -> str:
        """Returns the commits at which rows were added, or those with these values, in order."""
        found: dict[str, None] = {}
        now = "unknown"
        for row in self.rows:
            if row["kind"] == "session":
                now = row["commit"]
            elif all(row.get(name) == value for name, value in of.items()):
                found[now] = None
        return ", ".join(found)

    def copy_to(self, path: Path) -> None:
        """Writes header and rows to another file, whole or not at all."""
        head = {k: v for k, v in self.header.items() if k != "schema"}
        write_lines(path, self.kind, head, self.rows)


def machine() -> Json:
    """Returns what the figures depend on besides the settings."""
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "versions": versions()}


def session() -> Json:
    """Returns when, by which source and beside how much other work a study goes on."""
    return {
        "time": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "commit": commit(),
        "load": round(os.getloadavg()[0], 2),
    }


def commit() -> str:
    """Returns the commit of the source, marked where files differ from it; or ``unknown``."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
