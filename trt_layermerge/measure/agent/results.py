"""What a folder holds of its measurements, on the disk before anybody relies on it.

``results.jsonl`` has a header with the device, and one line for every measurement. A job may take
the whole device down, and then nobody is left to record its error: so ``attempts.jsonl`` has every
try at a measurement before it begins. The next agent finds a try without an answer there, and after
a few of them it leaves the job alone.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, Mapping

from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.jsonio import Json, append_line, damage, read_lines, write_lines
from trt_layermerge.errors import CorruptInputError, UsageError
from trt_layermerge.measure.agent.jobs import Manifest
from trt_layermerge.measure.agent.schedule import Row
from trt_layermerge.measure.timing import Timing

RESULTS, ATTEMPTS = "results.jsonl", "attempts.jsonl"


def own_file(path: Path) -> Path:
    """Returns the path of a file that is written to, unless it is a link or a device.

    Raises:
        UsageError: If it is a link, which may lead out of its folder, or a pipe or device.
    """
    odd = path.exists() and not (path.is_file() or path.is_dir())  # a folder fails by itself
    if path.is_symlink() or odd:
        raise UsageError(f"{path} is a link or no file, and is not written to; remove it")
    return path


class Attempts:
    """The tries of a folder that nobody answered, because agent or device went down."""

    def __init__(self, folder: Path) -> None:
        """Takes the folder of the jobs; nothing is read or written yet.

        Raises:
            UsageError: If the file is a link, or no file.
        """
        self._path = own_file(folder / ATTEMPTS)
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


class Results:
    """The results of a folder: those found, and those appended.

    Attributes:
        path: The file.
        header: Its header, or None before the first measurement.
        rows: Every row so far.
        attempts: Tries at jobs that have no row yet.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Reads the results of a folder, if there are any.

        Raises:
            UsageError: If they belong to another manifest.
            CorruptInputError: If they are damaged; a half-written last line is not.
        """
        self.path = own_file(folder / RESULTS)
        self.header: Json | None = None
        self.rows: list[Row] = []
        self.attempts = Attempts(folder)
        self._answered: Counter[str] = Counter()
        self._manifest = manifest
        if not self.path.exists():
            return
        try:
            self.header, lines = read_lines(self.path, "measurements")
            with damage(self.path):
                self.rows = [_row(line, manifest) for line in lines]
                for line in lines:
                    self._answered[line["key"]] += int(line["attempts"])
        except CorruptInputError as error:
            raise CorruptInputError(
                f"{error}. To keep the other measurements, delete the damaged line only"
            ) from error
        if self.header.get("manifest") != manifest.id:
            raise self._refusal("the jobs", str(self.header.get("manifest")), manifest.id)

    def check_backend(self) -> None:
        """Raises ``UsageError`` if what was measured was measured with another backend."""
        if self.header is None:
            return
        with damage(self.path):
            before = str(self.header["device"]["backend"])
        if before != self._manifest.backend:
            raise self._refusal("the backend", before, self._manifest.backend)

    def begin(self, device: DeviceInfo, facts: Mapping[str, Any]) -> None:
        """Writes the header, or checks that the device is the one of the header.

        Raises:
            UsageError: If device, library version or power mode are others than before.
            DeviceError: If the file cannot be written.
        """
        if self.header is None:
            self.attempts.restart()
            header = {"manifest": self._manifest.id, "device": device.to_json(), "facts": facts}
            write_lines(self.path, "measurements", header, [])
            self.header = header
            return
        with damage(self.path):
            before = DeviceInfo.from_json(self.header["device"])
            self._check_power_mode(facts)
        if before != device:
            raise self._refusal("the device", str(before), str(device))
        self.attempts.resume(self._answered)

    def append(self, row: Json) -> Row:
        """Appends a row; it is on the disk when this returns.

        Raises:
            UsageError: If the power mode was changed since the header was written.
            DeviceError: If the file cannot be written.
        """
        parsed = _row(row, self._manifest)
        for state in (row["before"], row["after"]):
            self._check_power_mode(state or {})
        append_line(self.path, row)
        self.rows.append(parsed)
        self._answered[parsed.key] += int(row["attempts"])
        self.attempts.answer(parsed.key)
        return parsed

    def _check_power_mode(self, now: Mapping[str, Any]) -> None:
        """Compares the power mode with the header's, where both are known."""
        assert self.header is not None
        before, mode = self.header["facts"].get("power_mode"), now.get("power_mode")
        if before is not None and mode is not None and before != mode:
            raise self._refusal("the power mode", before, mode)

    def _refusal(self, what: str, before: str, now: str) -> UsageError:
        moved = self.path.with_name("results-before.jsonl")
        return UsageError(
            f"{self.path} was begun with another state of {what}: it was {before} and is now "
            f"{now}, and such latencies do not compare. Restore it (power mode: sudo nvpmodel -m "
            f"NUMBER, backend: --backend NAME), or measure anew: mv {self.path} {moved}"
        )


def _row(line: Json, manifest: Manifest) -> Row:
    """Returns what the schedule needs of a line. Raises ``ValueError`` and ``KeyError``."""
    key, sentinel, models = line["key"], line["sentinel"], line["models"]
    if key not in manifest.jobs or not isinstance(sentinel, bool):
        raise ValueError(f"{key!r} is no job of the manifest")
    if (line["error"] is None) != (models is not None):
        raise ValueError(f"{key!r} has neither latencies nor an error, or both")
    if models is None:
        return Row(key, sentinel, None)
    if len(models) != len(manifest.jobs[key].models):
        raise ValueError(f"{key!r} has latencies of {len(models)} models")
    first, *_ = [timing_of(model) for model in models]
    return Row(key, sentinel, first)


def timing_of(model: Json, factor: float = 1.0) -> Timing:
    """Returns one model's timing, its latencies multiplied by a factor.

    Raises:
        KeyError: If something is missing.
        ValueError: If a latency is none.
    """
    medians, runs = (tuple(float(ms) * factor for ms in model[k]) for k in ("round_ms", "runs_ms"))
    if not medians or not runs or not all(0 < ms < math.inf for ms in (*medians, *runs)):
        raise ValueError("a latency is not a positive number")
    launch = model.get("enqueue_ms")
    enqueue_ms = None if launch is None else float(launch)
    return Timing(medians, runs, str(model["method"]), enqueue_ms)
