"""The files and commands that tell of a machine, so that tests can answer in its place."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Generic, Sequence, TypeVar

PATIENCE_SECONDS = 5.0
"""How long a command may take to answer."""

_MOST_BYTES = 1 << 20

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Answer:
    """What a command said. ``code`` is None where there is no such command, or it hung."""

    code: int | None
    output: str = ""
    errors: str = ""

    @property
    def worked(self) -> bool:
        """Whether the command ended well."""
        return self.code == 0

    @property
    def words(self) -> str:
        """The first line of what it complained about, for a reason."""
        lines = (self.errors or self.output).strip().splitlines()
        return lines[0][:200] if lines else f"it ended with code {self.code}"


Ask = Callable[[Sequence[str]], Answer]


@dataclass(frozen=True)
class Reading(Generic[T]):
    """Something that was read, or None and the reason."""

    value: T | None
    reason: str = ""

    def then(self, change: Callable[[T], U]) -> Reading[U]:
        """Returns what a function makes of the value, or the same reason for None."""
        return Reading(None if self.value is None else change(self.value), self.reason)


@dataclass(frozen=True)
class Sources:
    """A machine as its files below ``root`` and its commands tell of it.

    ``ask`` runs a command; it never raises and never takes long.
    """

    root: Path
    ask: Ask

    def read(self, path: str) -> str | None:
        """Returns the text of a small file, stripped of blanks and NULs, or None."""
        try:
            with (self.root / path).open("rb") as file:
                return file.read(_MOST_BYTES).decode(errors="replace").strip("\0 \n")
        except OSError:
            return None

    def number(self, path: str) -> float | None:
        """Returns the number in a file, or None where there is none."""
        try:
            return float(self.read(path) or "")
        except ValueError:
            return None

    def find(self, pattern: str) -> list[str]:
        """Returns the paths below the root that a glob finds, in order."""
        try:
            return sorted(str(path.relative_to(self.root)) for path in self.root.glob(pattern))
        except OSError:
            return []


def ask(command: Sequence[str], patience_s: float = PATIENCE_SECONDS) -> Answer:
    """Returns what a command on this machine says within so many seconds."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=patience_s,
            check=False,
        )
    except OSError as error:
        return Answer(None, errors=f"{command[0]}: {error.strerror}")
    except subprocess.TimeoutExpired:
        return Answer(None, errors=f"{command[0]} did not answer in {patience_s:g} s")
    return Answer(done.returncode, done.stdout.strip(), done.stderr.strip())


LOCAL = Sources(Path("/"), ask)
"""This machine."""
