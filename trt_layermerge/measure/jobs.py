"""Measuring jobs as a folder that another process or device works through, and what it answers.

The folder holds ``manifest.json`` and ``models/*.onnx``; the answers are ``results.jsonl``. Models
with the same content are written once, jobs with the same models once. The manifest is written last
and names itself by a hash of its content, so that answers can be told to belong to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.jsonio import (
    Json,
    damage,
    read_lines,
    schema_name,
    sha256_bytes,
    sha256_json,
    write_bytes,
    write_json,
)
from trt_layermerge.core.tables import LatencyEntry
from trt_layermerge.measure.agent.jobs import MANIFEST, SHA256, Protocol, manifest_id
from trt_layermerge.measure.agent.results import timing_of
from trt_layermerge.measure.agent.sources import Reading
from trt_layermerge.measure.agent.telemetry import DeviceState, GpuClock
from trt_layermerge.measure.conditions import Conditions
from trt_layermerge.measure.table import entry_of
from trt_layermerge.measure.timing import DRIFT_LIMIT, Timing


@dataclass(frozen=True)
class Job:
    """Networks to build and time: a spec alone, or original and plan in turns.

    Attributes:
        label: What it is, for people.
        models: ONNX models.
        build: Number of the build, where the same networks are built several times.
    """

    label: str
    models: tuple[bytes, ...]
    build: int = 0

    @cached_property
    def key(self) -> str:
        """What the job is called in answers: the same content has the same key."""
        return sha256_json([[sha256_bytes(model) for model in self.models], self.build])[:20]


def write_jobs(
    folder: Path, jobs: Iterable[Job], protocol: Protocol, sentinel: bytes | None = None
) -> str:
    """Writes a folder of jobs; returns the manifest's id.

    Args:
        folder: Where; made if it is missing. Models already there are not written again.
        jobs: What to measure, taken one by one, so that their models need not fit into memory.
        protocol: How.
        sentinel: A network that is measured again and again, to tell how the device drifts.

    Raises:
        DeviceError: If the folder cannot be written.
    """
    listed: dict[str, Json] = {}
    watch = None if sentinel is None else Job("sentinel", (sentinel,))
    for job in ([] if watch is None else [watch], jobs):
        for one in job:
            if one.key not in listed:
                listed[one.key] = _listed(folder, one)
    body: Json = {
        **asdict(protocol),
        "sentinel": None if watch is None else watch.key,
        "jobs": list(listed.values()),
    }
    identity = manifest_id({"schema": schema_name("jobs"), **body})
    write_json(folder / MANIFEST, "jobs", {"id": identity, **body})
    return identity


def _listed(folder: Path, job: Job) -> Json:
    """Writes the models of a job; returns its line in the manifest."""
    models = []
    for model in job.models:
        digest = sha256_bytes(model)
        name = f"models/{digest[:20]}.onnx"
        if not (folder / name).is_file() or (folder / name).stat().st_size != len(model):
            write_bytes(folder / name, model)
        models.append({"file": name, "sha256": digest})
    return {"key": job.key, "label": job.label, "models": models}


@dataclass(frozen=True)
class Answer:
    """What came of one job.

    Attributes:
        timings: One timing of each of its models, from the same rounds; empty where it failed.
        error: Why it failed, or None.
        seconds: How long it took in all.
        before: State of the device.
        after: The same, right after it.
    """

    timings: tuple[Timing, ...]
    error: str | None
    seconds: float = 0.0
    before: DeviceState = field(default_factory=DeviceState)
    after: DeviceState = field(default_factory=DeviceState)

    def entry(self) -> LatencyEntry:
        """Returns the entry of a job with one model, for the latency table."""
        if self.error is not None:
            return LatencyEntry(math.inf, error=self.error)
        return entry_of(self.timings[0])


@dataclass(frozen=True)
class Measurements:
    """The answers to a folder of jobs.

    Attributes:
        manifest: Id of the manifest they answer.
        device: Where they come from, with its power mode.
        facts: What else is known of the device.
        answers: By key of the job.
        drift: How far the sentinel's latencies lie apart, relative to their median; None where it
            was not measured twice.
    """

    manifest: str
    device: DeviceInfo
    facts: Mapping[str, Any]
    answers: Mapping[str, Answer]
    drift: float | None

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Returns those of the keys that have no answer, good or bad."""
        return [key for key in keys if key not in self.answers]

    def conditions(self, answers: Sequence[Answer]) -> Conditions:
        """Returns what the device was like before the first and after the last of some jobs."""
        before, after = answers[0].before, answers[-1].after
        return Conditions(before, after, self._clock(before.gpu_clock_mhz), cores=None)

    def _clock(self, now_mhz: float | None) -> Reading[GpuClock]:
        """Returns what is known of the GPU's clock. Raises ``ValueError`` for what is no range."""
        if now_mhz is None:
            return Reading(None, str(self.facts.get("missing", {}).get("gpu_clock", "not told")))
        span = self.facts.get("gpu_clock_range_mhz")
        low_high = None if span is None else (float(span[0]), float(span[1]))
        return Reading(GpuClock(now_mhz, low_high, self.facts.get("gpu_clock_locked")))


def read_measurements(path: Path) -> Measurements:
    """Returns the answers of a file, brought to one clock by the sentinel where there is one.

    Between two measurements of the sentinel the device is taken to have drifted evenly: latencies
    are divided by the sentinel's, relative to the median of all of them. Where a job was answered
    twice, a success counts, and else the last answer.

    Raises:
        UsageError: If there is no such file.
        CorruptInputError: If it is damaged.
    """
    header, rows = read_lines(path, "measurements")
    with damage(path):
        watched = {i: _answer(row, 1.0) for i, row in enumerate(rows) if row["sentinel"]}
        clock = {i: a.timings[0].ms for i, a in watched.items() if a.error is None}
        answers: dict[str, Answer] = {}
        for row, factor in zip(rows, _factors(clock, len(rows)), strict=True):
            answer = _answer(row, factor)
            if answer.error is None or row["key"] not in answers:
                answers[str(row["key"])] = answer
        facts = dict(header["facts"])
        device = DeviceInfo.from_json(header["device"]).in_mode(facts.get("power_mode"))
        manifest = str(header["manifest"])
        if not SHA256.fullmatch(manifest):  # a file is named after it
            raise ValueError(f"{manifest!r:.99} is no id of a manifest")
        return Measurements(manifest, device, facts, answers, _drift(clock))


def drift_words(drift: float) -> str:
    """Returns what a user should know of how far a sentinel's latencies lie apart."""
    words = f"the sentinel network drifted by {drift:.1%}, which was divided out"
    if drift <= DRIFT_LIMIT:
        return words
    return (
        f"{words} as far as possible; lock the clocks (sudo jetson_clocks on a Jetson, else sudo "
        "nvidia-smi -lgc MHZ,MHZ), keep the device cool and measure anew"
    )


def _factors(clock: Mapping[int, float], count: int) -> list[float]:
    """Returns what each row's latencies are multiplied by, the sentinel's between its rows."""
    if len(clock) < 2:
        return [1.0] * count
    places, values = list(clock), list(clock.values())
    local = np.interp(np.arange(count), places, values)
    return [float(np.median(values) / here) for here in local]


def _drift(clock: Mapping[int, float]) -> float | None:
    values = list(clock.values())
    return (max(values) - min(values)) / float(np.median(values)) if len(values) > 1 else None


def _answer(row: Json, factor: float) -> Answer:
    """Returns the answer of a row, its latencies multiplied by ``factor``."""
    seconds = float(row["seconds"])
    states = [DeviceState.from_json(row[when]) for when in ("before", "after")]
    if row["error"] is not None:
        return Answer((), str(row["error"]), seconds, *states)
    timings = tuple(timing_of(model, factor) for model in row["models"])
    if not timings or len({timing.rounds for timing in timings}) > 1:
        raise ValueError("networks of one job were not timed in the same rounds")
    return Answer(timings, None, seconds, *states)
