"""The two tables that feed the search, joined by key, never by row order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from trt_layermerge.core.candidate import Candidate, CandidateKey, widths_from_json
from trt_layermerge.core.codec import Finite, dump, load
from trt_layermerge.core.conv import Spec, spec_from_json
from trt_layermerge.core.device import DeviceInfo, Precision
from trt_layermerge.core.jsonio import Json, damage, read_lines, sealed, write_lines
from trt_layermerge.errors import UsageError

LatencyKey: TypeAlias = tuple[Spec, Precision, int]


@dataclass(frozen=True, slots=True)
class LatencyEntry:
    """One measurement of one spec.

    Attributes:
        ms: Latency in milliseconds; infinite where the measurement failed.
        p10_ms: 10th percentile of the medians of its rounds; None where nothing was measured.
        p90_ms: 90th percentile of the same.
        samples: Number of timed runs.
        error: Why it failed, or None.
    """

    ms: float
    p10_ms: float | None = None
    p90_ms: float | None = None
    samples: int = 0
    error: str | None = None


@dataclass(frozen=True)
class LatencyTable:
    """Latency of specs on one device.

    A whole network is predicted as ``overhead_ms`` plus the sum over its specs. Bare measurements
    have no overhead; a table fitted to measured whole networks has (``measure.fit``).

    Attributes:
        device: Where it was measured.
        entries: Measurement by spec, precision and batch.
        overhead_ms: What a whole network costs beside its specs (stem, head, start).
        notes: How the table came about, for the file's header.
    """

    device: DeviceInfo
    entries: Mapping[LatencyKey, LatencyEntry]
    overhead_ms: float = 0.0
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: LatencyKey) -> float:
        """Returns the latency in ms.

        Raises:
            UsageError: If the spec was never measured.
        """
        entry = self.entries.get(key)
        if entry is None:
            raise UsageError(
                f"no latency of {key[0]} at {key[1]}, batch {key[2]} on {self.device}; "
                "measure it first: trt-layermerge latency"
            )
        return entry.ms

    def missing(self, specs: Iterable[Spec], precision: Precision, batch: int) -> list[Spec]:
        """Returns the specs without an entry, each once, in order.

        Args:
            specs: What is to be measured.
            precision: At which precision.
            batch: Images per run.
        """
        return [s for s in dict.fromkeys(specs) if (s, precision, batch) not in self.entries]

    def cost_ms(self, candidate: Candidate, precision: Precision, batch: int) -> float:
        """Returns the latency of everything that a candidate runs, in ms.

        Of a branch that stays it is what remains beside its units, which may be less than nothing:
        parts of a network run faster together than one by one.

        Args:
            candidate: What is run.
            precision: At which precision.
            batch: Images per run.

        Returns:
            The sum in ms; infinite where a part could not be measured.

        Raises:
            UsageError: If a part was never measured.
        """
        costs = sum(self[spec, precision, batch] for spec in candidate.costs)
        return costs - sum(self[spec, precision, batch] for spec in candidate.inside)

    def with_costs(
        self, costs: Mapping[LatencyKey, float], overhead_ms: float, notes: Mapping[str, Any]
    ) -> LatencyTable:
        """Returns the table with other latencies, its spreads and errors kept.

        Args:
            costs: Latency in ms by key; what is not there stays.
            overhead_ms: What a whole network costs besides.
            notes: How the table came about.
        """
        entries = {k: replace(e, ms=costs.get(k, e.ms)) for k, e in self.entries.items()}
        return LatencyTable(self.device, entries, overhead_ms, notes)

    def save(self, path: Path) -> None:
        """Writes the table as JSON Lines (``interface.md``: latency)."""
        header = {
            "device": self.device.to_json(),
            "overhead_ms": self.overhead_ms,
            "notes": dict(self.notes),
        }
        write_lines(path, "latency", header, (_latency_row(k, e) for k, e in self.entries.items()))

    @staticmethod
    def load(path: Path) -> LatencyTable:
        """Returns the table of a file.

        Raises:
            UsageError: If there is no such file.
            CorruptInputError: If it is damaged.
        """
        header, rows = read_lines(path, "latency")
        with damage(path):
            return LatencyTable(
                device=DeviceInfo.from_json(header["device"]),
                entries=dict(_latency_entry(row) for row in rows),
                overhead_ms=_finite(header["overhead_ms"]),
                notes=dict(header["notes"]),
            )


@dataclass(frozen=True, slots=True)
class ImportanceEntry:
    """What replacing one block by one candidate does to the network.

    Attributes:
        delta: Change of quality in nats or fractions; 0 for the untouched network, negative for
            a loss (``calibrate``: minus the distance of the answers from the original's, KL in nats
            for logits; ``finetune``: the change of accuracy, as a fraction).
        method: ``calibrate`` or ``finetune``.
        repair: Name of the repair that scored best, or None.
        images: Images of a first look; None where the score is as good as it gets.
        channels: Which channels of a narrower stream remained; None of anything else.
    """

    delta: Finite
    method: str
    repair: str | None = None
    images: int | None = None
    channels: tuple[int, ...] | None = None

    @property
    def score(self) -> float:
        """The published importance ``exp(delta)``."""
        return math.exp(self.delta)


@dataclass(frozen=True)
class ImportanceTable:
    """Importance of candidates of one network by key; ``notes`` say what it depends on."""

    entries: Mapping[CandidateKey, ImportanceEntry]
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, candidate: Candidate) -> ImportanceEntry:
        """Returns the entry of a candidate; an untouched unit without one has delta 0.

        Raises:
            UsageError: If the candidate was never scored.
        """
        entry = self.entries.get(candidate.key)
        if entry is not None:
            return entry
        if candidate.original:
            return ImportanceEntry(0.0, "untouched")
        raise UsageError(f"no importance of {candidate}; score it first: trt-layermerge importance")

    def __contains__(self, candidate: Candidate) -> bool:
        return candidate.original or candidate.key in self.entries

    def save(self, path: Path) -> None:
        """Writes the table as JSON Lines (``interface.md``: importance)."""
        rows = (sealed(importance_row(k, entry)) for k, entry in self.entries.items())
        write_lines(path, "importance", {"notes": dict(self.notes)}, rows)

    @staticmethod
    def load(path: Path) -> ImportanceTable:
        """Returns the table of a file.

        Raises:
            UsageError: If there is no such file.
            CorruptInputError: If it is damaged.
        """
        header, rows = read_lines(path, "importance")
        with damage(path):
            return ImportanceTable(dict(_importance_entry(r) for r in rows), dict(header["notes"]))


def importance_row(key: CandidateKey, entry: ImportanceEntry) -> Json:
    """Returns one line of the importance file."""
    start, end, kind, kept, convs, widths = key
    return {
        "start": start,
        "end": end,
        "kind": kind,
        "kept": list(kept),
        "spec": convs[0].to_json() if convs else None,
        "convs": [s.to_json() for s in convs],
        **({"widths": dict(widths)} if widths else {}),
        "score": entry.score,
        **{
            name: value
            for name, value in dump(entry).items()
            if value is not None or name not in ("images", "channels")
        },
    }


def _importance_entry(row: Json) -> tuple[CandidateKey, ImportanceEntry]:
    key = (
        int(row["start"]),
        int(row["end"]),
        str(row["kind"]),
        tuple(int(i) for i in row["kept"]),
        tuple(spec_from_json(s) for s in row["convs"]),
        widths_from_json(row),
    )
    return key, load(ImportanceEntry, {"repair": None, "images": None, "channels": None, **row})


def _latency_row(key: LatencyKey, entry: LatencyEntry) -> Json:
    spec, precision, batch = key
    ms = entry.ms if math.isfinite(entry.ms) else None
    place = {"spec": spec.to_json(), "precision": precision, "batch": batch}
    return {**place, **dump(entry), "ms": ms}


def _latency_entry(row: Json) -> tuple[LatencyKey, LatencyEntry]:
    ms = math.inf if row["ms"] is None else _finite(row["ms"])
    entry = load(LatencyEntry, {**row, "ms": ms})
    return (spec_from_json(row["spec"]), row["precision"], int(row["batch"])), entry


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number
