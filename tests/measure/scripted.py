"""The fake backend with a script of noise and trouble."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from trt_layermerge.backends.base import Runner
from trt_layermerge.backends.fake import FakeBackend
from trt_layermerge.errors import DeviceError

NOTHING: Mapping[str, Any] = {}


class ScriptedBackend(FakeBackend):
    """A fake that tells what was opened and how often something ran.

    Args:
        noise: Standard deviation of the relative slowdown of each run; runs are never faster.
        seed: Seed of the noise.
        drift: Factor on the latency of the n-th run of this backend, whichever network it is of.
        broken: Message by graph name; such a network does not build.
        failing: Message by graph name; such a network builds and then fails when it is timed.
        stalls: Seconds by graph name that each burst really takes.
        **costs: What the fake takes.
    """

    def __init__(
        self,
        *,
        noise: float = 0.0,
        seed: int = 0,
        drift: Callable[[int], float] = lambda run: 1.0,
        broken: Mapping[str, str] = NOTHING,
        failing: Mapping[str, str] = NOTHING,
        stalls: Mapping[str, float] = NOTHING,
        **costs: Any,
    ) -> None:
        super().__init__(**costs)
        self.noise, self.seed, self.drift = noise, seed, drift
        self.broken, self.failing, self.stalls = broken, failing, stalls
        self.runs = 0
        self.opened: list[str] = []

    def open(self, model: bytes, *, seed: int = 0) -> Runner:
        runner = super().open(model, seed=seed)
        name = onnx.load_model_from_string(model).graph.name
        rng = np.random.default_rng((self.seed, zlib.crc32(model) + seed))

        def time_burst(count: int) -> list[float]:
            time.sleep(self.stalls.get(name, 0.0))
            if name in self.failing:
                raise DeviceError(self.failing[name])
            slowdown = 1 + self.noise * np.abs(rng.standard_normal(count))
            first, self.runs = self.runs, self.runs + count
            steady = type(runner).time_burst(runner, count)
            return [
                ms * float(slow) * self.drift(first + n)
                for n, (ms, slow) in enumerate(zip(steady, slowdown, strict=True))
            ]

        self.opened.append(name)
        if name in self.broken:
            raise DeviceError(self.broken[name])
        runner.time_burst = time_burst  # type: ignore[method-assign]
        if self.noise:
            runner.warmup_ms = 0.0  # the wall would decide how many draws warming takes
        return runner
