"""A device that answers folders of jobs in this process: networks take what they compute.

The agent's own fake takes any bytes and invents latencies; this one runs the backend ``fake``,
which reads ONNX, so that tables and plans mean something.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trt_layermerge.backends.fake import FakeBackend
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import DeviceError
from trt_layermerge.measure.agent.jobs import load_manifest, read_model
from trt_layermerge.measure.table import Progress
from trt_layermerge.measure.timing import Turns, time_models

DEVICE = DeviceInfo("fake", "1", "far away", "no clock")
STATE = {"gpu_clock_mhz": None, "missing": {"gpu_clock_mhz": "no clock"}}


@dataclass
class Answering:
    """Works through folders as an agent does; called like one.

    Attributes:
        backend: What runs the networks.
        device: What it says it is.
        facts: What else it says.
        broken: Error by label of a job.
        stop_after: Jobs after which it is interrupted, once.
        asked: Labels of all jobs that it measured.
    """

    backend: FakeBackend = field(default_factory=FakeBackend)
    device: DeviceInfo = DEVICE
    facts: Mapping[str, Any] = field(default_factory=lambda: {"power_mode": "15W"})
    broken: Mapping[str, str] = field(default_factory=dict)
    stop_after: float = math.inf
    asked: list[str] = field(default_factory=list)

    def __call__(self, folder: Path, on_progress: Progress) -> None:
        manifest, path = load_manifest(folder), folder / "results.jsonl"
        if not path.exists():
            head = {"manifest": manifest.id, "device": self.device.to_json(), "facts": self.facts}
            schema = {"schema": "trt-layermerge/measurements@1"}
            path.write_text(json.dumps({**schema, **head}) + "\n")
        done = {json.loads(line)["key"] for line in path.read_text().splitlines()[1:]}
        for job in manifest.jobs.values():
            if job.key in done:
                continue
            if len(self.asked) >= self.stop_after:
                self.stop_after = math.inf
                raise KeyboardInterrupt
            self.asked.append(job.label)
            models = [read_model(folder, model) for model in job.models]
            row = self._row(job.key, job.label, models, manifest.rounds)
            row["sentinel"] = job.key == manifest.sentinel
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            done.add(job.key)
            on_progress(len(done), len(manifest.jobs))

    def _row(self, key: str, label: str, models: list[bytes], rounds: int) -> Json:
        row: Json = {"key": key, "models": None, "error": None, "attempts": 1, "seconds": 0.0}
        row |= {"before": STATE, "after": STATE}
        try:
            if label in self.broken:
                raise DeviceError(self.broken[label])
            timings = time_models(models, self.backend, Turns(rounds=rounds, burst_ms=0))
        except DeviceError as error:
            return {**row, "error": str(error)}
        row["models"] = [
            {"round_ms": t.round_ms, "runs_ms": t.runs_ms, "build_s": 0.1, "method": t.method}
            for t in timings
        ]
        return row
