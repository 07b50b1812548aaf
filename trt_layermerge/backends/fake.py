"""A backend without a clock: stated latencies, right numbers.

Everything above the backends is tested with it. A run of a network takes

    overhead_ms + ms_per_gmac · (multiply-accumulates / 1e9) + ms_per_mib · (bytes / 2^20)

where bytes are those of all weights and of every value that a node writes. The sum over the specs
of a network is therefore exact, up to one ``overhead_ms`` each. Rounding to int8 and back costs
nothing, as if it were fused, and a rounded weight has one byte per element.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from trt_layermerge.backends.base import Array, Runner, check_inputs
from trt_layermerge.core.device import PRECISIONS, DeviceInfo, Precision
from trt_layermerge.errors import DeviceError


class FakeBackend:
    """Runs nothing when timed, and the ONNX reference evaluator when asked for numbers.

    Args:
        overhead_ms: Latency of an empty network.
        ms_per_gmac: Latency of 10⁹ multiply-accumulate operations.
        ms_per_mib: Latency of moving one MiB.
        name: What the device calls itself.
    """

    name = "fake"
    int8_fallback: Precision = "fp32"

    def __init__(
        self,
        *,
        overhead_ms: float = 0.01,
        ms_per_gmac: float = 10.0,
        ms_per_mib: float = 0.1,
        name: str = "fake device",
    ) -> None:
        self.overhead_ms, self.ms_per_gmac, self.ms_per_mib = overhead_ms, ms_per_gmac, ms_per_mib
        self._device = DeviceInfo(self.name, "1", name, "no clock")

    def device(self) -> DeviceInfo:
        """Returns an invented device."""
        return self._device

    def precisions(self) -> tuple[Precision, ...]:
        """Returns all of them."""
        return PRECISIONS

    def open(self, model: bytes, *, seed: int = 0) -> Runner:
        """Returns a runner. Raises ``DeviceError`` if it is no ONNX model."""
        try:
            parsed = onnx.load_model_from_string(model)
            onnx.checker.check_model(parsed, full_check=True)
            parsed = shape_inference.infer_shapes(parsed)
        except Exception as error:  # protobuf, checker and inference each have their own
            raise DeviceError(f"not a valid ONNX model: {error}") from error
        return FakeRunner(self, parsed)


class FakeRunner(Runner):
    """A network that takes exactly as long as its backend says."""

    def __init__(self, backend: FakeBackend, model: onnx.ModelProto) -> None:
        shapes = _value_shapes(model.graph)
        weights = {tensor.name for tensor in model.graph.initializer}
        self.input_shapes = {
            i.name: shapes[i.name][0] for i in model.graph.input if i.name not in weights
        }
        self.output_names = tuple(o.name for o in model.graph.output)
        self.ms = backend.overhead_ms
        self.ms += backend.ms_per_gmac * _macs(model.graph, shapes) / 1e9
        self.ms += backend.ms_per_mib * _bytes(model.graph, shapes) / 2**20
        self._model = model

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Returns what the ONNX reference evaluator computes. Raises ``UsageError``."""
        check_inputs(self.input_shapes, inputs)
        outputs = ReferenceEvaluator(self._model).run(None, dict(inputs))
        return dict(zip(self.output_names, outputs, strict=True))

    def time_burst(self, count: int) -> list[float]:
        """Returns the stated ms for each run."""
        return [self.ms] * count

    def close(self) -> None:
        """Does nothing."""


Shapes = dict[str, tuple[tuple[int, ...], int]]


def _value_shapes(graph: onnx.GraphProto) -> Shapes:
    """Returns shape and bytes per element of every value and weight."""
    shapes: Shapes = {}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        tensor = value.type.tensor_type
        shape = tuple(d.dim_value for d in tensor.shape.dim)
        shapes[value.name] = shape, helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
    for weight in graph.initializer:
        shapes[weight.name] = tuple(weight.dims), numpy_helper.to_array(weight).itemsize
    return shapes


def _macs(graph: onnx.GraphProto, shapes: Shapes) -> int:
    """Returns multiply-accumulates of all convolutions and matrix products."""
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":
            total += _size(shapes, node.output[0]) * int(np.prod(shapes[node.input[1]][0][1:]))
        elif node.op_type in ("Gemm", "MatMul"):
            total += _size(shapes, node.output[0]) * shapes[node.input[0]][0][-1]
    return total


def _bytes(graph: onnx.GraphProto, shapes: Shapes) -> int:
    """Returns bytes of all weights and of all values that nodes write."""
    rounding = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    free = {name for node in rounding for name in (*node.input[1:], *node.output)}
    rounded = {node.input[0] for node in rounding}
    weights = {weight.name for weight in graph.initializer} - free
    values = {name for node in graph.node for name in node.output} & shapes.keys() - free
    total = sum(_size(shapes, name) * shapes[name][1] for name in values | weights - rounded)
    return total + sum(_size(shapes, name) for name in weights & rounded)


def _size(shapes: Shapes, name: str) -> int:
    return int(np.prod(shapes[name][0]))
