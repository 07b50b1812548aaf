"""What measures latency: this process, a child of it, another device, or imported files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from trt_layermerge.backends import Backend
from trt_layermerge.backends.registry import int8_fallback
from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.jsonio import Json, sha256_file
from trt_layermerge.measure.agent.zipapp import write_zipapp
from trt_layermerge.measure.apart import Apart
from trt_layermerge.measure.isolated import AgentMeter, run_here
from trt_layermerge.measure.meter import BackendMeter, Meter
from trt_layermerge.measure.ssh import SshAgent, check_host
from trt_layermerge.session.recorded import Recorded, RecordedMeter
from trt_layermerge.session.settings import MeasureSection

LIBRARIES = ("onnxruntime", "torch")
"""Backends that run foreign code in this process, and are therefore timed in a child of it."""


def meter_of(
    measure: MeasureSection,
    backend: Backend | None,
    options: Mapping[str, Any],
    folder: Path,
    tell: Callbacks,
) -> Meter:
    """Returns what measures latency.

    Args:
        measure: Where and with what.
        backend: What runs networks in this process; None where another device measures.
        options: What the backend was made with.
        folder: Of the session; jobs of an agent, and imported answers, are in it.
        tell: What is called meanwhile.
    """
    if measure.recorded:
        return RecordedMeter(Recorded.of(folder, measure))
    if measure.host is None and not measure.engines:
        assert backend is not None
        isolated = measure.backend in LIBRARIES
        return BackendMeter(backend, partial(Apart, backend.name, options) if isolated else None)
    agent = run_here if measure.host is None else SshAgent(measure.host, write_zipapp, tell.note)
    fallback = int8_fallback(measure.backend)
    return AgentMeter(measure.backend, folder / "jobs", agent, fallback, tell.note)


def source_of(measure: MeasureSection, folder: Path, meter: Meter) -> Json:
    """Returns what tells where latencies come from, JSON-ready.

    A device behind ssh is told by its host alone, so that asking costs no connection.

    Args:
        measure: Where and with what.
        folder: Of the session; imported answers are in it.
        meter: Asked for its device where nothing else tells.

    Raises:
        DeviceError: If the device is not there.
    """
    if measure.recorded:
        files = sorted((folder / "jobs/imported").glob("*.jsonl"))
        return {"imported": {path.stem: sha256_file(path) for path in files}}
    if measure.host is not None:
        return {"host": check_host(measure.host)}
    return {"device": meter.device().to_json()}
