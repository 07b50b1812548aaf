"""Which job is measured next, as a pure function of the rows measured so far.

A sentinel is measured first and after every so many jobs. Where it drifted by more than
``DRIFT_LIMIT`` from the level of the good ones, the jobs since the last good one are measured
again, at most twice; then its new level counts as good. An interrupted agent feeds the rows that
it finds to a new schedule and goes on where the old one stood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Mapping

from trt_layermerge.measure.agent.jobs import Manifest
from trt_layermerge.measure.timing import DRIFT_LIMIT, Timing, drift

MOST_REPEATS = 2


@dataclass(frozen=True)
class Row:
    """What a schedule needs to know of a row of the results.

    ``timing`` is that of the job's first model, or None where it failed.
    """

    key: str
    sentinel: bool
    timing: Timing | None


@dataclass(frozen=True)
class Task:
    """What to measure next."""

    key: str
    sentinel: bool


class Schedule:
    """The order of the measurements; ``notes`` are what a user should know of drift."""

    def __init__(self, manifest: Manifest, rows: Iterable[Row] = ()) -> None:
        """Takes what is asked for, and the rows that are measured already."""
        self._sentinel, self._every = manifest.sentinel, manifest.sentinel_every
        self._waiting = dict.fromkeys(k for k in manifest.jobs if k != manifest.sentinel)
        self._order = {key: place for place, key in enumerate(manifest.jobs)}
        self._unsure: list[str] = []  # measured since the last good sentinel
        self._since = self._repeats = 0
        self._level: Timing | None = None
        self._sentinel_done = manifest.sentinel is None
        self.notes: list[str] = []
        for row in rows:
            self.add(row)
        self._due = True  # in a new process nothing is known of the clocks

    @property
    def left(self) -> int:
        """Number of jobs that have no row, or must be measured again."""
        return len(self._waiting) + (not self._sentinel_done)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Keys that may still be measured, the sentinel's among them."""
        watched = self._sentinel is not None and self.next() is not None
        return (*self._waiting, *([self._sentinel] if watched and self._sentinel else []))

    def next(self) -> Task | None:
        """Returns what to measure next, or None when everything is."""
        watched = bool(self._waiting or self._unsure or not self._sentinel_done)
        if self._sentinel is not None and watched and (self._due or not self._waiting):
            return Task(self._sentinel, True)
        key = min(self._waiting, key=self._order.__getitem__, default=None)
        return None if key is None else Task(key, False)

    def add(self, row: Row) -> None:
        """Takes note of a row."""
        if row.sentinel:
            self._judge(row.timing)
            return
        self._waiting.pop(row.key, None)
        if row.timing is not None and self._sentinel is not None:
            self._unsure.append(row.key)
        self._since += 1
        self._due = self._since >= self._every

    def _judge(self, now: Timing | None) -> None:
        """Decides from the sentinel whether the jobs since the last good one may stand."""
        self._sentinel_done, self._due, self._since = True, False, 0
        doubtful, self._unsure = self._unsure, []
        if now is None:
            self.notes.append("the sentinel failed, so nothing is known of the device's drift")
            return
        self._level = self._level or now
        change = drift(self._level, now)
        if abs(change) <= DRIFT_LIMIT:
            self._repeats = 0
        elif doubtful and self._repeats < MOST_REPEATS:
            self._repeats += 1
            self._waiting.update(dict.fromkeys(doubtful))
        else:
            self._level, self._repeats = now, 0
            self.notes.append(
                f"the sentinel became {abs(change):.0%} {'slower' if change > 0 else 'faster'} and "
                "stayed so: lock the clocks (sudo jetson_clocks) and keep the device cool, then "
                "measure anew"
            )


def counts(rows: Iterable[Row]) -> Mapping[str, Row]:
    """Returns the row of every job that counts: a success before a failure, and else the last."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.timing is not None or row.key not in found:
            found[row.key] = row
    return found
