"""A backend without ONNX and without a clock, to try the agent anywhere.

A model is any bytes, and its latency follows from them. ``TRT_LAYERMERGE_FAKE`` may name a JSON
file with trouble for tests:

    {"models": {SHA256: ["kill", "hang", "error", "sticky", "exit", "memory", ""]},
     "drift": {"from": 3, "to": 8, "factor": 1.1}}

The n-th time that a model is opened, the n-th trouble happens; after the last one all is well. The
n-th to m-th opening of any model, counted from 0, is slower by the factor. Openings are counted in
files beside the script, so that the count outlives a killed process.
"""

from __future__ import annotations

import json
import os
import signal
import time
import zlib
from pathlib import Path
from typing import Any, Mapping

from trt_layermerge.backends.base import Array, Runner
from trt_layermerge.core.device import PRECISIONS, DeviceInfo, Precision
from trt_layermerge.core.jsonio import sha256_bytes
from trt_layermerge.errors import DeviceError, StickyDeviceError

SCRIPT = "TRT_LAYERMERGE_FAKE"


class FakeBackend:
    """Opens any bytes; a run takes from 0.1 to 1.1 ms by their checksum."""

    name = "fake"
    int8_fallback: Precision = "fp32"

    def __init__(self, script: Path | None = None) -> None:
        """Takes the file that scripts trouble, or the one that the environment names."""
        named = os.environ.get(SCRIPT)
        self._path = script or (Path(named) if named else None)
        self._script: Mapping[str, Any] = {}
        if self._path is not None:
            self._script = json.loads(self._path.read_text(encoding="utf-8"))

    def device(self) -> DeviceInfo:
        """Returns an invented device."""
        return DeviceInfo(self.name, "1", "fake device", "no clock")

    def precisions(self) -> tuple[Precision, ...]:
        """Returns all of them."""
        return PRECISIONS

    def open(self, model: bytes, *, seed: int = 0) -> Runner:
        """Returns a runner, or does what the script says. Raises ``DeviceError`` where told to."""
        digest = sha256_bytes(model)
        trouble = self._script.get("models", {}).get(digest, [])
        number = self._count(digest) if trouble else 0
        _happen(trouble[number] if number < len(trouble) else "")
        return FakeRunner((0.1 + zlib.crc32(model) % 1000 / 1000) * self._slowdown())

    def _slowdown(self) -> float:
        drift = self._script.get("drift")
        if drift is None:
            return 1.0
        return float(drift["factor"]) if drift["from"] <= self._count("all") < drift["to"] else 1.0

    def _count(self, what: str) -> int:
        """Returns how often this was called for ``what`` before, by any process."""
        assert self._path is not None
        number = 0
        while True:
            try:
                self._path.with_name(f"{what}.{number}").touch(exist_ok=False)
            except FileExistsError:
                number += 1
            else:
                return number


class FakeRunner(Runner):
    """Runs nothing, and says how long it took."""

    def __init__(self, ms: float) -> None:
        self.input_shapes = {"x": (1,)}
        self.output_names = ("y",)
        self.warmup_ms = 0.0
        self._ms = ms

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Returns its input."""
        return {"y": inputs["x"]}

    def time_burst(self, count: int) -> list[float]:
        """Returns the same ms for every run."""
        return [self._ms] * count

    def close(self) -> None:
        """Does nothing."""


def _happen(trouble: str) -> None:
    if trouble == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif trouble == "exit":
        os._exit(3)
    elif trouble == "hang":
        time.sleep(3600)
    elif trouble == "error":
        raise DeviceError("the scripted build failed")
    elif trouble == "sticky":
        raise StickyDeviceError("an illegal memory access was scripted")
    elif trouble == "memory":
        raise MemoryError
