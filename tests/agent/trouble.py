"""The agent's fake backend with trouble, as a JSON file says that the environment names.

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
from typing import Any

from trt_layermerge.backends.base import Runner
from trt_layermerge.core.jsonio import sha256_bytes
from trt_layermerge.errors import DeviceError, StickyDeviceError
from trt_layermerge.measure.agent.fake import FakeBackend, FakeRunner

SCRIPT = "TRT_LAYERMERGE_TEST_SCRIPT"
ROOT = Path(__file__).parents[2]


def environment(script: Path) -> dict[str, str]:
    """Returns what workers must find in their environment to follow a script."""
    path = os.pathsep.join(map(str, (Path(__file__).with_name("troubled"), ROOT)))
    return {SCRIPT: str(script), "PYTHONPATH": path}


class TroubledBackend(FakeBackend):
    """Opens any bytes, or does what the script says."""

    def __init__(self) -> None:
        self._path = Path(os.environ[SCRIPT])
        self._script: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))

    def open(self, model: bytes, *, seed: int = 0) -> Runner:
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
        number = 0
        while True:
            try:
                self._path.with_name(f"{what}.{number}").touch(exist_ok=False)
            except FileExistsError:
                number += 1
            else:
                return number


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
