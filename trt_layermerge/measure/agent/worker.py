"""The process that builds and times, one job after another; what it breaks, only it pays for.

It reads a request a line from its standard input and writes an answer a line to what was its
standard output; whatever libraries print goes to standard error. It dies with its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import IO, Any, Iterable, Iterator

from trt_layermerge.backends import Backend, Runner
from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import (
    CorruptInputError,
    DeviceError,
    LayerMergeError,
    MissingDependencyError,
    StickyDeviceError,
)
from trt_layermerge.measure.agent.facts import read_facts
from trt_layermerge.measure.agent.jetson import is_jetson
from trt_layermerge.measure.agent.jobs import ModelFile, read_model
from trt_layermerge.measure.agent.sources import LOCAL, Sources
from trt_layermerge.measure.agent.telemetry import read_state
from trt_layermerge.measure.timing import Timing, Turns, time_runners

TIMING_CACHE = "timing"
"""Folder, below that of the jobs, of the kernels that were timed."""

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def serve(folder: Path, backend_name: str, parent: int) -> int:
    """Answers requests until there are no more; returns the exit code.

    Args:
        folder: The folder of the jobs.
        backend_name: Name of the backend.
        parent: Process that this one belongs to.
    """
    die_with(parent)
    answers = own_output()
    try:
        usual = open_backend(backend_name, folder / TIMING_CACHE)
        anew = open_backend(backend_name, None)
        device = usual.device()
        facts = read_facts(device)
    except LayerMergeError as error:
        _answer(answers, {"fatal": words_of(error), "code": error.exit_code})
        return error.exit_code
    _answer(answers, {"device": device.to_json(), "facts": facts})
    answer: Json = {}
    for answer in answer_all(map(json.loads, sys.stdin), folder, usual, anew):
        _answer(answers, answer)
    return StickyDeviceError.exit_code if answer.get("sticky") else 0


def words_of(error: LayerMergeError, sources: Sources = LOCAL) -> str:
    """Returns what an error says here, where the package has no extras or pip has no TensorRT."""
    if not isinstance(error, MissingDependencyError):
        return str(error)
    if is_jetson(sources):
        return f"{error.what}; type: sudo apt install nvidia-jetpack (pip has none for a Jetson)"
    return f"{error.what}; type: pip install {error.package}"


def open_backend(name: str, timing_cache: Path | None) -> Backend:
    """Returns a backend.

    Args:
        name: Its name.
        timing_cache: Folder where engines share what was measured of kernels; None where each build
            is to choose its kernels anew, as builds that are compared must.

    Raises:
        UsageError: If there is no such backend.
        DeviceError: If it cannot be used here.
    """
    if name == "fake":
        from trt_layermerge.measure.agent.fake import FakeBackend

        return FakeBackend()
    from trt_layermerge.backends.registry import get_backend

    try:
        if name.startswith("tensorrt"):
            options = import_module("trt_layermerge.backends.tensorrt_options")
            return get_backend(name, options=options.BuildOptions(timing_cache=timing_cache))
        return get_backend(name)
    except ModuleNotFoundError as error:
        raise DeviceError(
            f"the backend {name!r} cannot be used here: there is no {error.name}. The agent's one "
            "file has tensorrt, tensorrt_rtx and fake; choose one of them with --backend NAME"
        ) from error


def answer_all(
    requests: Iterable[Json], folder: Path, usual: Backend, anew: Backend, sources: Sources = LOCAL
) -> Iterator[Json]:
    """Yields the answer to each request, the last one that to a fault that ends the process.

    Args:
        requests: What to measure.
        folder: The folder of the jobs.
        usual: Builds what is built once, with the kernels that earlier builds have found.
        anew: Builds what several jobs build, to compare the builds.
        sources: What tells of the machine.
    """
    for request in requests:
        answer = answer_to(request, folder, anew if request["anew"] else usual, sources)
        yield answer
        if answer.get("sticky"):
            return


def answer_to(request: Json, folder: Path, backend: Backend, sources: Sources = LOCAL) -> Json:
    """Returns what came of one request: latencies or an error, and the device before and after.

    ``fatal`` says that the folder must not be used; ``sticky`` that this process cannot go on.

    Args:
        request: Its ``models`` (file and SHA-256), ``rounds`` and ``burst_ms``.
        folder: The folder of the jobs.
        backend: Builds and runs them.
        sources: What tells of the machine.
    """
    started, before = perf_counter(), read_state(sources).to_json()
    files = [ModelFile(model["file"], model["sha256"]) for model in request["models"]]
    answer: Json = {"models": None, "error": None}
    try:
        models = [read_model(folder, file) for file in files]
    except CorruptInputError as error:
        return {"fatal": str(error), "code": error.exit_code}
    try:
        answer["models"] = measure(models, backend, request["rounds"], request["burst_ms"])
    except LayerMergeError as error:
        answer.update(error=str(error), sticky=isinstance(error, StickyDeviceError))
    except MemoryError:
        answer["error"] = "out of memory; close other programs, or use a smaller batch"
    except Exception as error:  # a library's own; the other jobs are not its fault
        answer["error"] = f"{type(error).__name__}: {error}"
    answer.update(before=before, after=read_state(sources).to_json())
    answer["seconds"] = perf_counter() - started
    return answer


def measure(models: list[bytes], backend: Backend, rounds: int, burst_ms: float) -> list[Json]:
    """Returns the latencies of models, each built once and all timed in turns.

    Args:
        models: ONNX models.
        backend: Builds and runs them.
        rounds: Bursts of each.
        burst_ms: How long a burst lasts.

    Raises:
        LayerMergeError: If one cannot be built or run.
    """
    runners: list[Runner] = []
    seconds: list[float] = []
    with ExitStack() as stack:
        for model in models:
            started = perf_counter()
            runners.append(stack.enter_context(backend.open(model)))
            seconds.append(round(perf_counter() - started, 3))
        timings = time_runners(runners, Turns(rounds, burst_ms))
    return [_row(timing, build_s) for timing, build_s in zip(timings, seconds)]


def _row(timing: Timing, build_s: float) -> Json:
    rounded = {k: [round(ms, 7) for ms in getattr(timing, k)] for k in ("round_ms", "runs_ms")}
    return {**asdict(timing), **rounded, "build_s": build_s}


def die_with(parent: int) -> None:
    """Has the kernel end this process when its parent ends, however that ends."""
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is not None:  # Linux alone has it
        prctl(_PARENT_DEATH_SIGNAL, int(signal.SIGKILL))
    if os.getppid() != parent:  # it had ended before
        os._exit(1)


def own_output() -> IO[str]:
    """Returns the standard output, and turns whatever else is printed to standard error."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def _answer(output: IO[str], answer: Any) -> None:
    output.write(json.dumps(answer) + "\n")
    output.flush()
