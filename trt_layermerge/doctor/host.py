"""What ``doctor`` asks a machine, so that tests can answer in its place, and what it finds out."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from trt_layermerge.measure.agent.sources import Ask, Sources, ask

_PATIENCE_SECONDS = 60
"""Importing a library for the first time takes long on a Jetson."""


@dataclass(frozen=True)
class Host:
    """A machine.

    Attributes:
        root: Root of its file system.
        ask: Runs a command.
        python: Its Python, and the version of that.
        free_bytes: Free space in the folder of the runs, or None.
        machine: Architecture, such as ``x86_64`` or ``aarch64``.
    """

    root: Path
    ask: Ask
    python: tuple[str, str]
    free_bytes: int | None
    machine: str

    @staticmethod
    def local(runs_dir: Path) -> Host:
        """Returns this machine, with the disk of the folder ``runs_dir`` (which may not exist)."""
        executable = sys.executable or "python3"
        return Host(
            Path("/"),
            partial(ask, patience_s=_PATIENCE_SECONDS),
            (executable, platform.python_version()),
            _free_bytes(runs_dir),
            platform.machine(),
        )

    @property
    def sources(self) -> Sources:
        """The machine as telemetry asks it."""
        return Sources(self.root, self.ask)

    def read(self, path: str) -> str | None:
        """Returns the text of a file, stripped of blanks and NULs, or None."""
        return self.sources.read(path)

    def read_all(self, pattern: str) -> list[str]:
        """Returns the texts of all files that a glob below the root finds, in order."""
        paths = sorted(self.root.glob(pattern))
        texts = (self.read(str(path.relative_to(self.root))) for path in paths)
        return [text for text in texts if text is not None]


def _free_bytes(folder: Path) -> int | None:
    existing = next((p for p in (folder, *folder.absolute().parents) if p.exists()), None)
    try:
        return shutil.disk_usage(existing).free if existing else None
    except OSError:
        return None


State: TypeAlias = Literal["ok", "warning", "missing", "none"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, and what to type about it.

    Attributes:
        topic: What was looked at.
        state: ``ok``, ``warning`` (works, with a drawback), ``missing`` (not usable) or ``none``
            (does not apply to this machine).
        found: What there is, in words.
        remedy: What to type, or empty.
    """

    topic: str
    state: State
    found: str
    remedy: str = ""
