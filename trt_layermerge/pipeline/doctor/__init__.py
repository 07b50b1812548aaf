"""``doctor``: what a machine has, what it lacks, and what to type. Nothing is changed."""

from __future__ import annotations

from trt_layermerge.pipeline.doctor.board import board, is_jetson
from trt_layermerge.pipeline.doctor.finding import Finding
from trt_layermerge.pipeline.doctor.host import Host
from trt_layermerge.pipeline.doctor.libraries import gpu, libraries

__all__ = ["Finding", "Host", "examine"]


def examine(host: Host) -> tuple[Finding, ...]:
    """Returns everything found out about a machine, the verdict last."""
    jetson = is_jetson(host)
    devices = (gpu(host, jetson), *board(host, jetson))
    found = (*libraries(host, jetson), *devices)
    return (*found, verdict(found))


def verdict(findings: tuple[Finding, ...]) -> Finding:
    """Returns what the pipeline can do with what was found."""
    usable = {f.topic for f in findings if f.state in ("ok", "warning")}
    able = [
        what
        for what, needs in (
            ("train and merge", {"torch"}),
            ("measure on the CPU", {"onnxruntime"}),
            ("build and measure TensorRT engines", {"tensorrt", "gpu"}),
            ("build TensorRT-RTX engines", {"tensorrt_rtx"}),
        )
        if needs <= usable
    ]
    if "torch" in usable and usable & {"onnxruntime", "tensorrt"}:
        return Finding("can", "ok", ", ".join(able))
    return Finding(
        "can",
        "missing",
        ", ".join(able) or "nothing yet",
        "pip install 'trt-layermerge[onnxruntime]'",
    )
