"""A spec as the smallest ONNX model that runs it: one convolution and what is fused behind it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, helper

from trt_layermerge.core.activation import parse_activation
from trt_layermerge.core.conv import AddSpec, ConvSpec, Spec
from trt_layermerge.core.device import Precision
from trt_layermerge.errors import UsageError

OPSET = 17
IR_VERSION = 8

ELEMENT_TYPES: dict[Precision, int] = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}

Step: TypeAlias = tuple[str, tuple[str, ...], str, dict[str, Any]]
"""Operator, inputs, output and attributes."""


def spec_model(spec: Spec, precision: Precision, batch: int) -> bytes:
    """Returns the ONNX model of a spec, typed throughout: opset 17, IR version 8.

    Inputs are ``x``, and ``residual`` where the spec adds one; the output is ``y``, cut behind
    addition and activation. Weights are seeded, of constant scale, and never denormal. The graph
    bears the spec's short form as its name.

    Raises:
        UsageError: If the precision is int8, or the batch is less than 1.
    """
    if precision not in ELEMENT_TYPES:
        raise UsageError(f"single convolutions are not timed at {precision}; choose fp32 or fp16")
    if batch < 1:
        raise UsageError(f"the batch must be at least 1, not {batch}")
    kind = ELEMENT_TYPES[precision]
    shape_in, shape_out = map_shapes(spec, batch)
    inputs = [helper.make_tensor_value_info("x", kind, shape_in)]
    if isinstance(spec, AddSpec) or spec.residual:
        inputs.append(helper.make_tensor_value_info("residual", kind, shape_out))
    output = helper.make_tensor_value_info("y", kind, shape_out)
    model = empty_model(str(spec), inputs, [output])
    add_spec(model.graph, spec, kind, "x", "residual", "y")
    return bytes(model.SerializeToString())


def empty_model(name: str, inputs: list[Any], outputs: list[Any]) -> ModelProto:
    """Returns a model without nodes, to be filled in place: large weights are copied only once."""
    graph = helper.make_graph([], name, inputs, outputs)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def map_shapes(spec: Spec, batch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the shapes of input and output, ``(N, C, H, W)``."""
    if isinstance(spec, AddSpec):
        shape = (batch, spec.channels, spec.height, spec.width)
        return shape, shape
    return (
        (batch, spec.in_channels, spec.height, spec.width),
        (batch, spec.out_channels, *spec.out_size),
    )


def add_spec(graph: GraphProto, spec: Spec, kind: int, value: str, residual: str, out: str) -> None:
    """Appends nodes that compute ``out`` from ``value`` (and ``residual``) as the spec says.

    ``kind`` is the ONNX element type. All names that are made begin with ``out``.
    """
    steps: list[Step] = []
    if isinstance(spec, ConvSpec):
        _add_conv_weights(graph, spec, kind, out)
        weights = (f"{out}.weight", f"{out}.bias")
        steps.append(("Conv", (value, *weights), f"{out}.conv", _conv_attributes(spec)))
        value = f"{out}.conv"
    if isinstance(spec, AddSpec) or spec.residual:
        steps.append(("Add", (value, residual), f"{out}.sum", {}))
        value = f"{out}.sum"
    if spec.activation is not None:
        more, constants = _activation(spec.activation, value, out)
        steps += more
        for name, number in constants.items():
            _add_tensor(graph, name, np.asarray(number, helper.tensor_dtype_to_np_dtype(kind)))
    operator, inputs, _, attributes = steps[-1]
    steps[-1] = (operator, inputs, out, attributes)
    graph.node.extend(helper.make_node(op, i, [o], **named) for op, i, o, named in steps)


def _conv_attributes(spec: ConvSpec) -> dict[str, Any]:
    return {
        "kernel_shape": spec.kernel,
        "strides": spec.stride,
        "pads": spec.padding,
        "dilations": spec.dilation,
        "group": spec.groups,
    }


# Activations that are one operator: its name, fixed attributes, and those that take parameters.
_SINGLE: dict[str, tuple[str, dict[str, float], tuple[str, ...]]] = {
    "relu": ("Relu", {}, ()),
    "sigmoid": ("Sigmoid", {}, ()),
    "tanh": ("Tanh", {}, ()),
    "hardswish": ("HardSwish", {}, ()),
    "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, ()),
    "elu": ("Elu", {}, ("alpha",)),
    "leaky_relu": ("LeakyRelu", {}, ("alpha",)),
}


def _activation(name: str, value: str, out: str) -> tuple[list[Step], dict[str, float]]:
    """Returns the steps from ``value`` to an activation of it, and constants by name."""
    kind, parameters = parse_activation(name)
    inner, outer = f"{out}.inner", f"{out}.outer"
    if kind in _SINGLE:
        operator, fixed, names = _SINGLE[kind]
        attributes = {**fixed, **dict(zip(names, parameters, strict=True))}
        return [(operator, (value,), out, attributes)], {}
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


def _add_conv_weights(graph: GraphProto, spec: ConvSpec, kind: int, name: str) -> None:
    """Appends weight and bias, scaled so that activations keep their variance."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    fan_in = spec.in_channels // spec.groups * spec.kernel[0] * spec.kernel[1]
    shape = (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel)
    scale = (2 / fan_in) ** 0.5
    _add_tensor(graph, f"{name}.weight", np.resize((scale * _pool()).astype(dtype), shape))
    _add_tensor(graph, f"{name}.bias", np.resize((0.1 * _pool()).astype(dtype), shape[:1]))


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
