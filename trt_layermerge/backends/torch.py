"""Eager PyTorch on a CPU or a CUDA device: the published method's way of timing.

Models come as ONNX, and run as the network of torch that ``onnx_reader`` reads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import Tensor, fx

from trt_layermerge.backends.base import Array, Runner, check_inputs, random_inputs
from trt_layermerge.backends.host import cpu_name, with_board
from trt_layermerge.core.device import DeviceInfo, Precision
from trt_layermerge.errors import DeviceError, UsageError, words_of
from trt_layermerge.onnx_reader import model_inputs, parse_onnx, read_onnx


class TorchBackend:
    """Eager PyTorch, one thread on a CPU, events on a GPU.

    Args:
        device: What ``torch.device`` takes, such as ``cpu`` or ``cuda:0``.
    """

    name = "torch"
    int8_fallback: Precision = "fp32"

    def __init__(self, *, device: str = "cpu") -> None:
        try:
            self._device = torch.device(device)
        except RuntimeError as error:
            raise UsageError(f"there is no torch device {device!r}; try cpu or cuda") from error
        if self._device.type not in ("cpu", "cuda"):
            raise UsageError(f"timing on {device!r} is not supported; choose cpu or cuda")
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise DeviceError("torch finds no CUDA device; choose device cpu, or check nvidia-smi")

    def device(self) -> DeviceInfo:
        """Returns the processor or GPU, and torch's version."""
        if self._device.type == "cpu":
            return DeviceInfo(self.name, torch.__version__, cpu_name(), "eager, 1 thread")
        name = with_board(torch.cuda.get_device_name(self._device))
        return DeviceInfo(self.name, torch.__version__, name, "eager, cuDNN autotuned, no TF32")

    def precisions(self) -> tuple[Precision, ...]:
        """Returns fp32, and fp16 on a GPU."""
        return ("fp32",) if self._device.type == "cpu" else ("fp32", "fp16")

    def open(self, model: bytes, *, seed: int = 0) -> Runner:
        """Returns a runner.

        Raises:
            CorruptInputError: If the model is damaged.
            UnsupportedModelError: If it has operators that are not known, all of them named.
            DeviceError: If torch cannot run it.
        """
        runner = TorchRunner(parse_onnx(model), self._device, seed)
        runner.time_burst(1)
        return runner


class TorchRunner(Runner):
    """A network, typed as its file is, with its inputs on the device."""

    def __init__(self, model: onnx.ModelProto, device: torch.device, seed: int) -> None:
        network = read_onnx(model, dtype=None)
        types = {value.name: value.type.tensor_type for value in model_inputs(model)}
        self.input_shapes = {n: tuple(d.dim_value for d in t.shape.dim) for n, t in types.items()}
        self.output_names = network.meta["outputs"]
        dtypes = {n: onnx.helper.tensor_dtype_to_np_dtype(t.elem_type) for n, t in types.items()}
        self._network: fx.GraphModule | None = network.to(device)
        self._device = device
        if device.type == "cuda":
            self.warmup_ms, self.method = 200.0, "enqueue"
        arrays = random_inputs(self.input_shapes, dtypes, seed)
        self._inputs = [torch.from_numpy(a).to(device) for a in arrays.values()]

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the outputs by name. Raises ``UsageError`` and ``DeviceError``."""
        check_inputs(self.input_shapes, inputs)
        tensors = [torch.tensor(inputs[name]).to(self._device) for name in self.input_shapes]
        with _failures(), _settings():
            found = self._run(tensors)
            outputs = found if len(self.output_names) > 1 else (found,)
            return {n: v.cpu().numpy() for n, v in zip(self.output_names, outputs, strict=True)}

    def time_burst(self, count: int) -> list[float]:
        """Returns ms of each run, between events on a GPU. Raises ``DeviceError``."""
        with _failures(), _settings():
            if self._device.type == "cuda":
                return self._time_events(count)
            times = [time.perf_counter_ns()]
            for _ in range(count):
                self._run(self._inputs)
                times.append(time.perf_counter_ns())
        return [(times[i + 1] - times[i]) / 1e6 for i in range(count)]

    def _time_events(self, count: int) -> list[float]:
        events = [_event() for _ in range(count + 1)]
        with torch.cuda.device(self._device):
            events[0].record()
            for event in events[1:]:
                self._run(self._inputs)
                event.record()
            events[-1].synchronize()
        return [float(events[i].elapsed_time(events[i + 1])) for i in range(count)]

    def _run(self, inputs: list[Tensor]) -> Any:
        if self._network is None:
            raise UsageError("this runner is closed")
        return self._network(*inputs)

    def close(self) -> None:
        """Frees weights and inputs."""
        self._network, self._inputs = None, []


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@contextmanager
def _failures() -> Iterator[None]:
    """Turns what torch raises, for an unknown attribute too, into one clear refusal."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"torch cannot run the model: {words_of(error)}") from error


@contextmanager
def _settings() -> Iterator[None]:
    """Sets one thread on the CPU, and on the GPU autotuned convolutions in full fp32; restores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), torch.backends.cudnn.flags(benchmark=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(threads)
