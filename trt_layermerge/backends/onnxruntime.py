"""ONNX Runtime on one core of the host, set for repeatable times rather than for throughput.

One thread computes everything, so the time that it spent on its core is the latency on an idle
machine, whatever else runs on a busy one. That clock is the default; the wall clock, which counts
waiting for the core too, is an option.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from trt_layermerge.backends.base import Array, Runner, check_inputs, random_inputs
from trt_layermerge.backends.host import cpu_name
from trt_layermerge.core.device import DeviceInfo, Precision
from trt_layermerge.errors import DeviceError, MissingDependencyError, words_of

try:
    import onnxruntime as ort
except ImportError as error:
    raise MissingDependencyError("onnxruntime", "the backend onnxruntime", "onnxruntime") from error

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(bool)": np.dtype(np.bool_),
}
_FATAL_ONLY = 4
# ONNX Runtime sets denormals to zero for the whole thread that opens a session. A thread of its own
# keeps that, and the pinning, away from everything else that the process computes.
_THREAD = ThreadPoolExecutor(1, "onnxruntime")
_FINE_S = 1e-6


class OnnxRuntimeBackend:
    """ONNX Runtime's CPU provider: one thread, pinned to one core while it is timed.

    Args:
        wall: Whether to time by the wall clock rather than by the thread's time on its core.
    """

    name = "onnxruntime"
    int8_fallback: Precision = "fp32"

    def __init__(self, *, wall: bool = False) -> None:
        self._wall = wall or time.get_clock_info("thread_time").resolution > _FINE_S

    def device(self) -> DeviceInfo:
        """Returns processor, version, threads and pinning."""
        pinning = "pinned to one core" if hasattr(os, "sched_setaffinity") else "not pinned"
        clock = "wall clock" if self._wall else "time on core"
        return DeviceInfo(self.name, ort.__version__, cpu_name(), f"1 thread, {pinning}, {clock}")

    def precisions(self) -> tuple[Precision, ...]:
        """Returns fp32 and int8: half precision runs through casts to single on a CPU."""
        return ("fp32", "int8")

    def open(self, model: bytes, *, seed: int = 0) -> Runner:
        """Returns a runner. Raises ``DeviceError`` with the library's own words."""
        return _THREAD.submit(self._open, model, seed).result()

    def _open(self, model: bytes, seed: int) -> Runner:
        try:
            session = ort.InferenceSession(model, _options(), providers=["CPUExecutionProvider"])
            clock = time.perf_counter_ns if self._wall else time.thread_time_ns
            return OnnxRuntimeRunner(session, seed, clock)
        except Exception as error:  # the library has no common class for its errors
            raise DeviceError(f"ONNX Runtime cannot load the model: {words_of(error)}") from error


class OnnxRuntimeRunner(Runner):
    """One session with inputs and outputs bound."""

    def __init__(self, session: Any, seed: int, clock: Callable[[], int]) -> None:
        inputs = session.get_inputs()
        self.input_shapes = {i.name: tuple(i.shape) for i in inputs}
        self.output_names = tuple(o.name for o in session.get_outputs())
        dtypes = {i.name: _DTYPES[i.type] for i in inputs}
        self._clock = clock
        self._session = session
        self._binding = session.io_binding()
        for name, array in random_inputs(self.input_shapes, dtypes, seed).items():
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name in self.output_names:
            self._binding.bind_output(name, "cpu")
        # The first run allocates the outputs; bound again, every later run writes to them.
        session.run_with_iobinding(self._binding)
        for name, value in zip(self.output_names, self._binding.get_outputs(), strict=True):
            self._binding.bind_ortvalue_output(name, value)

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the outputs by name. Raises ``UsageError`` and ``DeviceError``."""
        check_inputs(self.input_shapes, inputs)
        names = list(self.output_names)
        try:
            outputs = _THREAD.submit(self._session.run, names, dict(inputs)).result()
        except Exception as error:
            raise DeviceError(f"ONNX Runtime failed: {words_of(error)}") from error
        return dict(zip(self.output_names, outputs, strict=True))

    def time_burst(self, count: int) -> list[float]:
        """Returns ms of each run. Raises ``DeviceError``."""
        return _THREAD.submit(self._time_burst, count).result()

    def _time_burst(self, count: int) -> list[float]:
        run, binding, clock = self._session.run_with_iobinding, self._binding, self._clock
        try:
            with _pinned():
                times = [clock()]
                for _ in range(count):
                    run(binding)
                    times.append(clock())
        except Exception as error:
            raise DeviceError(f"ONNX Runtime failed: {words_of(error)}") from error
        return [(after - before) / 1e6 for before, after in pairwise(times)]

    def close(self) -> None:
        """Frees the session."""
        self._binding = None
        self._session = None


def _options() -> Any:
    """Returns session options: one thread, in order, no spinning, denormals as zero.

    Q/DQ pairs are computed as they are written: ONNX Runtime's own ways with them fit none of our
    graphs, take longer, and move a float16 fallback's outputs (``docs/results/int8-latency.md``).
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


@contextmanager
def _pinned() -> Iterator[None]:
    """Keeps the calling thread on the last core that it may use, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
