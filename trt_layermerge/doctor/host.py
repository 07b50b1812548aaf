"""The few things that ``doctor`` asks a machine, so that tests can answer in its place."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trt_layermerge.measure.agent.sources import Answer, Ask, Sources

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
            _ask,
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


def _ask(command: Sequence[str]) -> Answer:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Answer(None, errors=str(error))
    return Answer(done.returncode, done.stdout.strip(), done.stderr.strip())


def _free_bytes(folder: Path) -> int | None:
    existing = next((p for p in (folder, *folder.absolute().parents) if p.exists()), None)
    try:
        return shutil.disk_usage(existing).free if existing else None
    except OSError:
        return None
