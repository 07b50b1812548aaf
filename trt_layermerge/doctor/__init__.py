"""``doctor``: what a machine has, what it lacks, and what to type. Nothing is changed."""

from __future__ import annotations

from trt_layermerge.doctor.board import board, is_jetson
from trt_layermerge.doctor.gpu import bindings, gpu
from trt_layermerge.doctor.host import Finding, Host
from trt_layermerge.doctor.libraries import libraries
from trt_layermerge.doctor.system import system

__all__ = ["Finding", "Host", "examine"]


def examine(host: Host) -> tuple[Finding, ...]:
    """Returns everything found out about a machine, the verdict last."""
    jetson = is_jetson(host)
    known = libraries(host, jetson)
    devices = gpu(host, jetson)
    tensorrt = next((f.found.partition(",")[0] for f in known if _there(f, "tensorrt")), None)
    able = any(_there(f, "gpu") for f in devices)
    found = (
        *known,
        *devices,
        bindings(host, able),
        *board(host, jetson, tensorrt, able),
        *system(host, jetson),
    )
    return (*found, *engines(found), verdict(found))


def _there(finding: Finding, topic: str) -> bool:
    return finding.topic == topic and finding.state == "ok"


def engines(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Returns where engines that are built here will load, if any can be built."""
    builders = [
        f"{f.topic} {f.found.partition(',')[0]}"
        for f in findings
        if f.topic in ("tensorrt", "tensorrt_rtx") and f.state == "ok"
    ]
    if not builders:
        return ()
    found = (
        f"what {' or '.join(builders)} builds here loads with that version on this kind of GPU "
        "only; take the bundle elsewhere and build again there (trt-layermerge rebuild)"
    )
    return (Finding("engines", "ok", found),)


def verdict(findings: tuple[Finding, ...]) -> Finding:
    """Returns what the pipeline can do with what was found."""
    usable = {f.topic for f in findings if f.state in ("ok", "warning")}
    able = [
        what
        for what, needs in (
            ("train and merge", {"torch"}),
            ("measure on the CPU", {"onnxruntime"}),
            ("build and measure TensorRT engines", {"tensorrt", "gpu", "cuda"}),
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
