"""A spec as the smallest ONNX model that runs it: one convolution and what is fused behind it.

At int8 the model has the ``QuantizeLinear``/``DequantizeLinear`` pairs that the quantised network
has (``quantize.qdq``): before a convolution, before an addition's inputs that do not come straight
from one, and behind the output, where the next layer's would stand. Their scales are constants that
need no data, since a latency does not depend on them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, helper

from trt_layermerge.core.activation import ONNX_OPERATORS, parse_activation
from trt_layermerge.core.conv import AddSpec, ConvSpec, LayerSpec
from trt_layermerge.core.device import Precision
from trt_layermerge.errors import UsageError

OPSET, INT8_OPSET = 17, 19
IR_VERSION, INT8_IR_VERSION = 8, 9

ACTIVATION_SCALE, INTERNAL_SCALE = 0.02, 0.05
"""Steps of int8 in what a convolution reads, and in what an addition and the next layer read."""

ELEMENT_TYPES: dict[Precision, int] = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}

Step: TypeAlias = tuple[str, tuple[str, ...], str, dict[str, Any]]
"""Operator, inputs, output and attributes."""


def spec_model(
    spec: LayerSpec, precision: Precision, batch: int, fallback: Precision = "fp32"
) -> bytes:
    """Returns the ONNX model of a spec, typed throughout: opset 17, at int8 19; IR version 8 or 9.

    Inputs are ``x``, and ``residual`` where the spec adds one; the output is ``y``, cut behind
    addition and activation. Weights are seeded, of constant scale, and never denormal. The graph
    bears the spec's short form as its name.

    Args:
        spec: What to run.
        precision: Type of weights and maps.
        batch: Images per run.
        fallback: At int8, the float type of inputs, output and of what is not quantised.

    Raises:
        UsageError: If the batch is less than 1, or the fallback is itself int8.
    """
    float_type = fallback if precision == "int8" else precision
    if float_type not in ELEMENT_TYPES:
        raise UsageError("what int8 leaves in float must be fp32 or fp16, not int8")
    if batch < 1:
        raise UsageError(f"the batch must be at least 1, not {batch}")
    int8, kind = precision == "int8", ELEMENT_TYPES[float_type]
    shape_in, shape_out = map_shapes(spec, batch)
    inputs = [helper.make_tensor_value_info("x", kind, shape_in)]
    if isinstance(spec, AddSpec) or spec.residual:
        inputs.append(helper.make_tensor_value_info("residual", kind, shape_out))
    output = helper.make_tensor_value_info("y", kind, shape_out)
    model = empty_model(str(spec), inputs, [output], int8=int8)
    add_spec(model.graph, spec, kind, "x", "residual", "y", int8=int8)
    return bytes(model.SerializeToString())


def empty_model(
    name: str, inputs: list[Any], outputs: list[Any], *, int8: bool = False
) -> ModelProto:
    """Returns a model without nodes, to be filled in place: large weights are copied only once.

    Args:
        name: Of its graph.
        inputs: ``ValueInfoProto`` of each.
        outputs: ``ValueInfoProto`` of each.
        int8: Whether it will be quantised, which takes a later opset.
    """
    graph = helper.make_graph([], name, inputs, outputs)
    opsets = [helper.make_opsetid("", INT8_OPSET if int8 else OPSET)]
    version = INT8_IR_VERSION if int8 else IR_VERSION
    return helper.make_model(graph, opset_imports=opsets, ir_version=version)


def map_shapes(spec: LayerSpec, batch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the shapes of input and output, ``(N, C, H, W)``."""
    if isinstance(spec, AddSpec):
        shape = (batch, spec.channels, spec.height, spec.width)
        return shape, shape
    return (
        (batch, spec.in_channels, spec.height, spec.width),
        (batch, spec.out_channels, *spec.out_size),
    )


def add_spec(
    graph: GraphProto,
    spec: LayerSpec,
    kind: int,
    value: str,
    residual: str,
    out: str,
    *,
    int8: bool = False,
) -> None:
    """Appends nodes that compute ``out`` from ``value`` (and ``residual``) as the spec says.

    All names that are made begin with ``out``.

    Args:
        graph: Where to; changed in place.
        spec: What to compute.
        kind: ONNX element type of what is float.
        value: Name of the input map.
        residual: Name of the map that is added; not read where the spec adds none.
        out: Name of the output map.
        int8: Whether ``QuantizeLinear``/``DequantizeLinear`` pairs are put in.
    """
    steps: list[Step] = []

    def read(name: str, place: str, scale: float) -> str:
        """Returns the name under which a layer reads a value."""
        if not int8:
            return name
        steps.extend(_rounding(graph, kind, name, f"{out}.{place}", scale))
        return f"{out}.{place}"

    if isinstance(spec, ConvSpec):
        value = read(value, "in", ACTIVATION_SCALE)
        steps += _conv_weights(graph, spec, kind, out, int8)
        weights = (f"{out}.weight", f"{out}.bias")
        steps.append(("Conv", (value, *weights), f"{out}.conv", _conv_attributes(spec)))
        value = f"{out}.conv"
    if isinstance(spec, AddSpec) or spec.residual:
        if isinstance(spec, AddSpec):
            value = read(value, "left", INTERNAL_SCALE)
        terms = value, read(residual, "right", INTERNAL_SCALE)
        steps.append(("Add", terms, f"{out}.sum", {}))
        value = f"{out}.sum"
    if spec.activation is not None:
        more, constants = _activation(spec.activation, value, f"{out}.act")
        steps += more
        value = f"{out}.act"
        for name, number in constants.items():
            _add_tensor(graph, name, np.asarray(number, helper.tensor_dtype_to_np_dtype(kind)))
    read(value, "end", INTERNAL_SCALE)
    operator, inputs, _, attributes = steps[-1]
    steps[-1] = (operator, inputs, out, attributes)
    graph.node.extend(helper.make_node(op, i, [o], **named) for op, i, o, named in steps)


def _rounding(graph: GraphProto, kind: int, value: str, out: str, scale: float) -> list[Step]:
    """Returns the steps that round a value to int8 and back, one scale for the whole of it."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    constants = (f"{out}.scale", f"{out}.zero")
    _add_tensor(graph, constants[0], np.asarray(scale, dtype))
    _add_tensor(graph, constants[1], np.zeros((), np.int8))
    return [
        ("QuantizeLinear", (value, *constants), f"{out}.int8", {}),
        ("DequantizeLinear", (f"{out}.int8", *constants), out, {}),
    ]


def _conv_attributes(spec: ConvSpec) -> dict[str, Any]:
    return {
        "kernel_shape": spec.kernel,
        "strides": spec.stride,
        "pads": spec.padding,
        "dilations": spec.dilation,
        "group": spec.groups,
    }


def _activation(name: str, value: str, out: str) -> tuple[list[Step], dict[str, float]]:
    """Returns the steps from ``value`` to an activation of it, and constants by name."""
    kind, parameters = parse_activation(name)
    inner, outer = f"{out}.inner", f"{out}.outer"
    if kind in ONNX_OPERATORS:
        operator = ONNX_OPERATORS[kind]
        own = zip(operator.parameters, parameters, strict=True)
        return [(operator.name, (value,), out, {**dict(operator.fixed), **dict(own)})], {}
    if kind in ("relu6", "hardtanh"):
        low, high = parameters or (0.0, 6.0)
        bounds = {f"{out}.low": low, f"{out}.high": high}
        return [("Clip", (value, *bounds), out, {})], bounds
    if kind == "silu":
        return [("Sigmoid", (value,), inner, {}), ("Mul", (value, inner), out, {})], {}
    if kind == "mish":
        softplus: Step = ("Softplus", (value,), inner, {})
        return [softplus, ("Tanh", (inner,), outer, {}), ("Mul", (value, outer), out, {})], {}
    if kind == "gelu":
        return _gelu(value, out)
    raise ValueError(f"no ONNX form of the activation {name!r}")


def _gelu(value: str, out: str) -> tuple[list[Step], dict[str, float]]:
    """Returns ``x · (1 + erf(x / √2)) · ½`` in the order that runtimes recognise and fuse."""
    root, one, half = f"{out}.root", f"{out}.one", f"{out}.half"
    steps: list[Step] = [
        ("Div", (value, root), f"{out}.scaled", {}),
        ("Erf", (f"{out}.scaled",), f"{out}.erf", {}),
        ("Add", (f"{out}.erf", one), f"{out}.gate", {}),
        ("Mul", (value, f"{out}.gate"), f"{out}.gated", {}),
        ("Mul", (f"{out}.gated", half), out, {}),
    ]
    return steps, {root: 2**0.5, one: 1.0, half: 0.5}


def _conv_weights(graph: GraphProto, spec: ConvSpec, kind: int, out: str, int8: bool) -> list[Step]:
    """Appends weight and bias, scaled so that activations keep their variance.

    Returns what has to be done for ``{out}.weight`` to be there: nothing, or at int8 to multiply
    the int8 weights by a scale per channel. As all magnitudes are alike, so are those scales.
    """
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    fan_in = spec.in_channels // spec.groups * spec.kernel[0] * spec.kernel[1]
    shape = (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel)
    scale = (2 / fan_in) ** 0.5
    bias = np.resize((0.1 * _pool()).astype(dtype), shape[:1])
    if not int8:
        _add_tensor(graph, f"{out}.weight", np.resize((scale * _pool()).astype(dtype), shape))
        _add_tensor(graph, f"{out}.bias", bias)
        return []
    step = float(np.abs(_pool()).max()) / 127
    constants = [f"{out}.weight.{part}" for part in ("int8", "scale", "zero")]
    _add_tensor(graph, constants[0], np.resize(np.rint(_pool() / step).astype(np.int8), shape))
    _add_tensor(graph, constants[1], np.full(shape[:1], scale * step, dtype))
    _add_tensor(graph, constants[2], np.zeros(shape[:1], np.int8))
    _add_tensor(graph, f"{out}.bias", bias)
    return [("DequantizeLinear", tuple(constants), f"{out}.weight", {"axis": 0})]


@lru_cache(maxsize=1)
def _pool() -> NDArray[np.float64]:
    """Returns seeded values of both signs with magnitudes in [½, 1½].

    Weights repeat this pool: drawing 25 million values would take longer than timing them. Its
    length is a prime, so that no row of a weight equals its neighbour.
    """
    rng = np.random.default_rng(0)
    return np.asarray(rng.uniform(0.5, 1.5, 4093) * rng.choice((-1.0, 1.0), 4093))


def _add_tensor(graph: GraphProto, name: str, array: NDArray[Any]) -> None:
    tensor = graph.initializer.add()
    tensor.name = name
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.dims.extend(array.shape)
    tensor.raw_data = array.tobytes()
