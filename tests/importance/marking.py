"""A scorer for the tests of workers, free of torch, so that a worker starts quickly."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.tables import ImportanceEntry
from trt_layermerge.errors import UnsupportedModelError

ONCE, ALWAYS, REFUSED = 1, 3, 4


@dataclass
class Marking:
    """Scores by the start of the block, and notes every attempt in a file.

    The repair it names is the number of threads. The candidate ``ONCE`` kills its first worker,
    ``ALWAYS`` each one, if they are to.
    """

    attempts: Path
    deadly: bool = False
    refuse: bool = False

    def entry(self, candidate: Candidate, first: bool = False) -> ImportanceEntry:
        start = candidate.block.start
        with self.attempts.open("a") as file:
            file.write(f"{start}\n")
        before = self.attempts.read_text().split().count(str(start)) - 1
        if self.deadly and (start == ALWAYS or (start == ONCE and not before)):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.refuse and start == REFUSED:
            raise UnsupportedModelError("candidate 4 cannot be built")
        return ImportanceEntry(-start / 10, "calibrate", os.environ.get("OMP_NUM_THREADS"))


def kill() -> Marking:
    """Ends a worker that builds its scorer."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError
