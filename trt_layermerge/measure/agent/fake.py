"""A backend without ONNX and without a clock, to try the agent anywhere.

A model is any bytes, and its latency follows from them.
"""

from __future__ import annotations

import zlib
from typing import Mapping

from trt_layermerge.backends.base import Array, Runner
from trt_layermerge.core.device import PRECISIONS, DeviceInfo, Precision


class FakeBackend:
    """Opens any bytes; a run takes from 0.1 to 1.1 ms by their checksum."""

    name = "fake"
    int8_fallback: Precision = "fp32"

    def device(self) -> DeviceInfo:
        """Returns an invented device."""
        return DeviceInfo(self.name, "1", "fake device", "no clock")

    def precisions(self) -> tuple[Precision, ...]:
        """Returns all of them."""
        return PRECISIONS

    def open(self, model: bytes, *, seed: int = 0) -> Runner:
        """Returns a runner."""
        return FakeRunner(0.1 + zlib.crc32(model) % 1000 / 1000)


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
