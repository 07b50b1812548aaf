"""``results.jsonl``: a header with the device, and one durable line for every measurement."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, Mapping

from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.jsonio import Json, append_line, damage, read_lines, write_lines
from trt_layermerge.errors import CorruptInputError, UsageError
from trt_layermerge.measure.agent.attempts import Attempts
from trt_layermerge.measure.agent.jobs import Manifest
from trt_layermerge.measure.agent.schedule import Row
from trt_layermerge.measure.timing import Timing

RESULTS = "results.jsonl"


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
        self.path = folder / RESULTS
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
    timings = [Timing(_latencies(m["round_ms"]), _latencies(m["runs_ms"])) for m in models]
    return Row(key, sentinel, timings[0])


def _latencies(values: Any) -> tuple[float, ...]:
    found = tuple(float(value) for value in values)
    if not found or not all(0 < value < math.inf for value in found):
        raise ValueError("a latency is not a positive number")
    return found
