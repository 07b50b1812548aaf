"""The discrete GPU: driver, clock and how to lock it; and how Python reaches it."""

from __future__ import annotations

import json

from trt_layermerge.doctor.host import Finding, Host

_QUERIES = (
    ("name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "compute_cap"),
    ("name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm"),
)

BINDINGS_CODE = (
    "import json\n"
    "from trt_layermerge.backends.cuda import cuda_bindings\n"
    "print(json.dumps(dict(cuda_bindings())))"
)
"""Asks every CUDA binding in the order in which they are tried (``backends.cuda``)."""


def gpu(host: Host, jetson: bool) -> tuple[Finding, ...]:
    """Returns which GPUs there are, as nvidia-smi tells; old drivers do not know compute_cap."""
    if jetson:
        return (Finding("gpu", "ok", "integrated; see jetson, power mode and clocks"),)
    for query in _QUERIES:
        answer = host.ask(
            ("nvidia-smi", f"--query-gpu={','.join(query)}", "--format=csv,noheader,nounits")
        )
        if answer.worked and answer.output:
            lines = answer.output.splitlines()
            rows = [[part.strip() for part in line.split(",")] for line in lines]
            return Finding("gpu", "ok", "; ".join(map(_gpu, rows))), _clock(rows)
    if host.read("proc/driver/nvidia/version") is None:
        found = "no NVIDIA driver; --backend onnxruntime works without"
        return (Finding("gpu", "none", found),)
    found = "there is an NVIDIA driver, but nvidia-smi does not answer"
    return (Finding("gpu", "missing", found, "nvidia-smi"),)


def _gpu(row: list[str]) -> str:
    name, driver, memory, clock, fastest, *capability = row
    capable = f", compute capability {capability[0]}" if capability else ""
    return f"{name}, driver {driver}, {memory} MiB, {clock} of {fastest} MHz{capable}"


def _clock(rows: list[list[str]]) -> Finding:
    """Returns how to lock the clock: no driver tells whether it is locked."""
    fastest = rows[0][4]
    found = (
        "whether the GPU's clock is locked is not told by the driver; a free one makes latencies "
        f"wander, and so does {fastest} MHz if it cannot be kept (sudo nvidia-smi -rgc frees it)"
    )
    remedy = f"sudo nvidia-smi -lgc {fastest},{fastest}" if fastest.isdecimal() else ""
    return Finding("clocks", "warning", found, remedy)


def bindings(host: Host, able: bool) -> Finding:
    """Returns which CUDA binding runs engines here, and what keeps the others from it.

    Args:
        host: The machine.
        able: Whether there is a GPU: without one, none of them can work.
    """
    answer = host.ask((host.python[0], "-c", BINDINGS_CODE))
    try:
        problems = {str(k): v for k, v in json.loads(answer.output.splitlines()[-1]).items()}
    except (ValueError, IndexError, AttributeError):
        reason = (answer.errors.splitlines() or ["they ended without a word"])[-1]
        return Finding("cuda", "missing", f"the bindings cannot be asked: {reason}", REMEDY)
    used = next((name for name, problem in problems.items() if problem is None), None)
    words = "; ".join(
        f"{name}: {'used' if name == used else 'works' if problem is None else brief(problem)}"
        for name, problem in problems.items()
    )
    if used is not None:
        return Finding("cuda", "ok", words)
    return Finding("cuda", "missing", words, REMEDY) if able else Finding("cuda", "none", words)


REMEDY = "pip install 'trt-layermerge[cuda]'"


def brief(problem: str) -> str:
    """Returns what is wrong, without what to type about it."""
    return problem.partition("; ")[0]
