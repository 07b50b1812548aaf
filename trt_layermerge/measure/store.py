"""The durable store of latencies: one SQLite row a measurement, shared by processes and runs."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trt_layermerge.core.conv import Spec
from trt_layermerge.core.device import DeviceInfo, Precision
from trt_layermerge.core.jsonio import damage, sha256_json
from trt_layermerge.core.tables import LatencyEntry
from trt_layermerge.errors import CorruptInputError, DeviceError, foreign

PROTOCOL = 2
"""How a latency is measured in process; rows of another way are not found."""

_WAIT_S = 60.0
# SQLite reports both of these as an OperationalError, and their codes only since Python 3.11.
_REFUSALS = ("unable to open", "locked", "readonly", "disk is full", "disk i/o", "busy")


class LatencyStore:
    """Measurements by spec, precision, batch, device and way of measuring.

    A row is on the disk once ``put`` returns, and is never changed afterwards: the first
    measurement stays. Several processes may use one file; killing one of them harms no row.

    Args:
        path: The SQLite file; it and its folder are made where they are missing.
        device: Whose measurements to read and write.
        protocol: How they were measured; others are not found.

    Raises:
        CorruptInputError: If the file is damaged, here or in any method.
        DeviceError: If the file cannot be opened or written, here or in any method.
    """

    def __init__(self, path: Path, device: DeviceInfo, protocol: int | str = PROTOCOL) -> None:
        self.path = path
        self.device = device
        self.protocol = protocol
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DeviceError(f"cannot make the folder {path.parent}: {error.strerror}") from error
        with self._guarded():
            self._connection = sqlite3.connect(path, timeout=_WAIT_S)
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS latency"
                " (key TEXT PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL) WITHOUT ROWID"
            )

    def get(self, spec: Spec, precision: Precision, batch: int) -> LatencyEntry | None:
        """Returns the measurement of a spec, or None.

        Args:
            spec: What was measured.
            precision: At which precision.
            batch: Images per run.

        Raises:
            CorruptInputError: If the file is damaged.
            DeviceError: If it cannot be read.
        """
        key = sha256_json(self._key(spec, precision, batch))
        with self._guarded():
            query = "SELECT body, hash FROM latency WHERE key = ?"
            row = self._connection.execute(query, (key,)).fetchone()
        if row is None:
            return None
        with damage(self.path):
            body = json.loads(row[0])
            if sha256_json(body) != row[1] or sha256_json(body["key"]) != key:
                raise ValueError("a row does not match its checksum")
            return _entry(body)

    def put(
        self, rows: Iterable[tuple[Spec, LatencyEntry]], precision: Precision, batch: int
    ) -> None:
        """Writes measurements, all or none of them; a spec that has a row keeps it.

        Args:
            rows: Specs with their measurements, all of them successes.
            precision: At which precision.
            batch: Images per run.

        Raises:
            CorruptInputError: If the file is damaged.
            DeviceError: If it cannot be written.
        """
        records = []
        for spec, entry in rows:
            key = self._key(spec, precision, batch)
            body = {"key": key, **_body(entry)}
            records.append((sha256_json(key), json.dumps(body), sha256_json(body)))
        with self._guarded(), self._connection:
            self._connection.executemany("INSERT OR IGNORE INTO latency VALUES (?, ?, ?)", records)

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def __enter__(self) -> LatencyStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _key(self, spec: Spec, precision: Precision, batch: int) -> dict[str, Any]:
        return {
            "spec": spec.to_json(),
            "precision": precision,
            "batch": batch,
            "device": self.device.to_json(),
            "protocol": self.protocol,
        }

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turns SQLite's errors into ours: the disk refuses, or else the file is damaged."""
        with foreign(self._damaged):  # damaged text is no error of SQLite's
            try:
                yield
            except sqlite3.Error as error:
                if any(words in str(error).lower() for words in _REFUSALS):
                    raise DeviceError(
                        f"cannot use the latency store {self.path}: {error}; free space, wait for "
                        "the other process, or choose another file"
                    ) from error
                raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> CorruptInputError:
        return CorruptInputError(
            f"the latency store {self.path} is damaged ({why}); delete the file and run the same "
            "command again to measure anew"
        )


def _body(entry: LatencyEntry) -> dict[str, Any]:
    return {
        "ms": entry.ms,
        "p10_ms": entry.p10_ms,
        "p90_ms": entry.p90_ms,
        "samples": entry.samples,
    }


def _entry(body: dict[str, Any]) -> LatencyEntry:
    return LatencyEntry(
        ms=float(body["ms"]),
        p10_ms=float(body["p10_ms"]),
        p90_ms=float(body["p90_ms"]),
        samples=int(body["samples"]),
    )
