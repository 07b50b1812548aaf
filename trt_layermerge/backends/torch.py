"""Eager PyTorch on a CPU or a CUDA device: the published method's way of timing.

Models come as ONNX; the operators that convolutional networks are exported to are known here, and
a model with any other is refused by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trt_layermerge.backends.base import Array, Runner, check_inputs, random_inputs
from trt_layermerge.backends.host import cpu_name, with_board
from trt_layermerge.core.device import DeviceInfo, Precision
from trt_layermerge.errors import DeviceError, UsageError

Attributes = Mapping[str, Any]
Operator = Callable[..., Tensor]
Ints = tuple[int, ...]


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
        """Returns a runner. Raises ``DeviceError`` that names every unknown operator."""
        program = read_program(model, self._device)
        runner = TorchRunner(program, self._device, seed)
        runner.time_burst(1)
        return runner


@dataclass(frozen=True)
class Step:
    """One operator: its function, the values that it reads and writes, and its attributes."""

    function: Operator
    inputs: tuple[str, ...]
    output: str
    attributes: Attributes


@dataclass(frozen=True)
class Program:
    """An ONNX graph as torch functions."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype[Any]]
    weights: dict[str, Tensor]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the outputs by name."""
        values: dict[str, Any] = {"": None, **self.weights, **inputs}
        for step in self.steps:
            operands = [values[name] for name in step.inputs]
            values[step.output] = step.function(*operands, **step.attributes)
        return {name: values[name] for name in self.outputs}


class TorchRunner(Runner):
    """A program with its weights and inputs on the device."""

    def __init__(self, program: Program, device: torch.device, seed: int) -> None:
        self.input_shapes = program.shapes
        self.output_names = program.outputs
        self._program = program
        self._device = device
        if device.type == "cuda":
            self.warmup_ms, self.method = 200.0, "enqueue"
        arrays = random_inputs(program.shapes, program.dtypes, seed)
        self._inputs = {name: torch.from_numpy(a).to(device) for name, a in arrays.items()}

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the outputs by name. Raises ``UsageError`` and ``DeviceError``."""
        check_inputs(self.input_shapes, inputs)
        tensors = {name: torch.tensor(array).to(self._device) for name, array in inputs.items()}
        with _failures(), _settings():
            return {name: value.cpu().numpy() for name, value in self._program(tensors).items()}

    def time_burst(self, count: int) -> list[float]:
        """Returns ms of each run, between events on a GPU. Raises ``DeviceError``."""
        with _failures(), _settings():
            if self._device.type == "cuda":
                return self._time_events(count)
            times = [time.perf_counter_ns()]
            for _ in range(count):
                self._program(self._inputs)
                times.append(time.perf_counter_ns())
        return [(times[i + 1] - times[i]) / 1e6 for i in range(count)]

    def _time_events(self, count: int) -> list[float]:
        events = [_event() for _ in range(count + 1)]
        with torch.cuda.device(self._device):
            events[0].record()
            for event in events[1:]:
                self._program(self._inputs)
                event.record()
            events[-1].synchronize()
        return [float(events[i].elapsed_time(events[i + 1])) for i in range(count)]

    def close(self) -> None:
        """Frees weights and inputs."""
        self._program = Program({}, {}, {}, (), ())
        self._inputs = {}


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@contextmanager
def _failures() -> Iterator[None]:
    """Turns what torch raises, for an unknown attribute too, into one clear refusal."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"torch cannot run the model: {error}") from error


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


def read_program(model: bytes, device: torch.device) -> Program:
    """Returns the program of an ONNX model, weights on the device.

    Raises:
        DeviceError: If it is no valid model, or has operators or shapes that are not known here.
    """
    import onnx
    from onnx import helper, numpy_helper

    try:
        parsed = onnx.load_model_from_string(model)
        onnx.checker.check_model(parsed)
    except Exception as error:  # protobuf and the checker each have their own
        raise DeviceError(f"not a valid ONNX model: {error}") from error
    graph = parsed.graph
    unknown = sorted({node.op_type for node in graph.node} - set(_OPERATORS))
    if unknown:
        raise DeviceError(
            f"the torch backend does not know the operators {', '.join(unknown)}; "
            "choose the backend onnxruntime"
        )
    weights = {t.name: torch.tensor(numpy_helper.to_array(t)).to(device) for t in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    steps = [
        Step(
            _OPERATORS[node.op_type],
            tuple(node.input),
            node.output[0],
            {a.name: _attribute(helper.get_attribute_value(a)) for a in node.attribute},
        )
        for node in graph.node
    ]
    return Program(
        {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in inputs},
        {v.name: helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in inputs},
        weights,
        tuple(steps),
        tuple(value.name for value in graph.output),
    )


def _attribute(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _padded(x: Tensor, pads: Ints, value: float = 0.0) -> tuple[Tensor, Ints]:
    """Returns the map and the symmetric padding left to do; asymmetric padding is done here."""
    top, left, bottom, right = pads
    if (top, left) == (bottom, right):
        return x, (top, left)
    return functional.pad(x, (left, right, top, bottom), value=value), (0, 0)


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: Ints = (),
    strides: Ints = (1, 1),
    pads: Ints = (0, 0, 0, 0),
    dilations: Ints = (1, 1),
    group: int = 1,
) -> Tensor:
    x, padding = _padded(x, pads)
    return functional.conv2d(x, weight, bias, strides, padding, dilations, group)


def _max_pool(
    x: Tensor,
    *,
    kernel_shape: Ints,
    strides: Ints = (1, 1),
    pads: Ints = (0, 0, 0, 0),
    dilations: Ints = (1, 1),
    ceil_mode: int = 0,
) -> Tensor:
    x, padding = _padded(x, pads, -torch.inf)
    return functional.max_pool2d(x, kernel_shape, strides, padding, dilations, bool(ceil_mode))


def _gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transB: int = 0,
) -> Tensor:
    product = alpha * (a @ (b.T if transB else b))
    return product if c is None else product + beta * c


def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


_OPERATORS: dict[str, Operator] = {
    "Add": torch.add,
    "Clip": torch.clamp,
    "Conv": _conv,
    "Div": torch.div,
    "Elu": lambda x, *, alpha=1.0: functional.elu(x, alpha),
    "Erf": torch.erf,
    "Flatten": lambda x, *, axis=1: torch.flatten(x, axis),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": functional.hardswish,
    "Identity": lambda x: x,
    "LeakyRelu": lambda x, *, alpha=0.01: functional.leaky_relu(x, alpha),
    "MaxPool": _max_pool,
    "Mul": torch.mul,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": functional.softplus,
    "Tanh": torch.tanh,
}
