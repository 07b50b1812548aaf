"""ONNX Runtime on one core of the host, set for repeatable times rather than for throughput."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from trt_layermerge.backends.base import Array, Runner, check_inputs, random_inputs
from trt_layermerge.core.device import DeviceInfo, Precision
from trt_layermerge.errors import DeviceError, MissingDependencyError

try:
    import onnxruntime as ort
except ImportError as error:
    raise MissingDependencyError("onnxruntime", "the backend onnxruntime", "onnxruntime") from error

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
}
_FATAL_ONLY = 4


class OnnxRuntimeBackend:
    """ONNX Runtime's CPU provider: one thread, pinned to one core while it is timed."""

    name = "onnxruntime"

    def device(self) -> DeviceInfo:
        """Returns processor, version, threads and pinning."""
        pinning = "pinned to one core" if hasattr(os, "sched_setaffinity") else "not pinned"
        return DeviceInfo(self.name, ort.__version__, cpu_name(), f"1 thread, {pinning}")

    def precisions(self) -> tuple[Precision, ...]:
        """Returns fp32 and int8: half precision runs through casts to single on a CPU."""
        return ("fp32", "int8")

    def open(self, model: bytes, *, seed: int = 0) -> Runner:
        """Returns a runner. Raises ``DeviceError`` with the library's own words."""
        try:
            session = ort.InferenceSession(model, _options(), providers=["CPUExecutionProvider"])
            return OnnxRuntimeRunner(session, seed)
        except Exception as error:  # the library has no common class for its errors
            raise DeviceError(f"ONNX Runtime cannot load the model: {error}") from error


class OnnxRuntimeRunner(Runner):
    """One session with inputs and outputs bound."""

    def __init__(self, session: Any, seed: int) -> None:
        inputs = session.get_inputs()
        self.input_shapes = {i.name: tuple(i.shape) for i in inputs}
        self.output_names = tuple(o.name for o in session.get_outputs())
        dtypes = {i.name: _DTYPES[i.type] for i in inputs}
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
        try:
            outputs = self._session.run(list(self.output_names), dict(inputs))
        except Exception as error:
            raise DeviceError(f"ONNX Runtime failed: {error}") from error
        return dict(zip(self.output_names, outputs, strict=True))

    def time_burst(self, count: int) -> list[float]:
        """Returns ms of each run, by the host's clock. Raises ``DeviceError``."""
        run, binding = self._session.run_with_iobinding, self._binding
        try:
            with _pinned():
                times = [perf_counter_ns()]
                for _ in range(count):
                    run(binding)
                    times.append(perf_counter_ns())
        except Exception as error:
            raise DeviceError(f"ONNX Runtime failed: {error}") from error
        return [(after - before) / 1e6 for before, after in pairwise(times)]

    def close(self) -> None:
        """Frees the session."""
        self._binding = None
        self._session = None


def cpu_name() -> str:
    """Returns the processor's model, such as ``AMD EPYC (x86_64)``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or 'CPU'} ({platform.machine()})"


def _options() -> Any:
    """Returns session options: one thread, in order, no spinning, denormals as zero."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
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
