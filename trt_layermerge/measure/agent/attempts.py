"""``attempts.jsonl``: every try at a measurement, on the disk before it begins.

A job may take the whole device down, and then nobody is left to record its error. The next agent
finds a try without an answer here, and after a few of them it leaves the job alone.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Mapping

from trt_layermerge.core.jsonio import append_line, damage, read_lines, write_lines

ATTEMPTS = "attempts.jsonl"


class Attempts:
    """The tries of a folder that nobody answered, because agent or device went down."""

    def __init__(self, folder: Path) -> None:
        """Takes the folder of the jobs; nothing is read or written yet."""
        self._path = folder / ATTEMPTS
        self._open: Counter[str] = Counter()

    def restart(self) -> None:
        """Forgets everything: the results are begun anew. Raises ``DeviceError``."""
        self._open.clear()
        write_lines(self._path, "attempts", {}, [])

    def resume(self, answered: Mapping[str, int]) -> None:
        """Reads the file and takes off the tries that the results tell of, by key.

        Raises:
            CorruptInputError: If the file is damaged; a half-written last line is not.
            DeviceError: If it is missing and cannot be written.
        """
        if not self._path.exists():  # results of an agent that kept no such file
            self.restart()
            return
        _, rows = read_lines(self._path, "attempts")
        self._open.clear()
        with damage(self._path):
            for row in rows:
                self._open[str(row["key"])] += int(row["begun"])
        self._open.subtract(answered)

    def unanswered(self, key: str) -> int:
        """Returns how often a job was begun and neither measured nor given up."""
        return max(0, self._open[key])

    def begin(self, key: str) -> None:
        """Notes a try; it is on the disk when this returns. Raises ``DeviceError``."""
        self._note(key, 1)

    def withdraw(self, key: str) -> None:
        """Takes a try back: it was interrupted, and the job is not to blame."""
        self._note(key, -1)

    def answer(self, key: str) -> None:
        """Takes note that the results tell of all tries at a job."""
        del self._open[key]

    def _note(self, key: str, begun: int) -> None:
        append_line(self._path, {"key": key, "begun": begun})
        self._open[key] += begun
