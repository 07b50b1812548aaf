"""Whether a network computes what the ONNX model does that it was read from."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.onnx_reader.preparing import model_inputs

TOLERANCE = 1e-3
"""Largest difference to ONNX Runtime, relative to the largest value of an output."""

FAILURES = (RuntimeError, ValueError, TypeError, IndexError)
"""What torch raises for shapes that do not fit."""

KINDS = {"tensor(float16)": np.float16, "tensor(double)": np.float64}


def compare(network: fx.GraphModule, model: onnx.ModelProto, name: str) -> None:
    """Compares a network with its ONNX model on random images, and images with a batch of them.

    Args:
        network: What was read.
        model: What it was read from, with the sizes of its input.
        name: What errors call the model.

    Raises:
        UnsupportedModelError: If an output has another shape or other values, or depends on the
            other images of a batch.
    """
    batch, *sizes = (d.dim_value for d in model_inputs(model)[0].type.tensor_type.shape.dim)
    images = torch.randn(max(batch, 2), *sizes, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if find_spec("onnxruntime") is not None:
            _compare_with_runtime(network, model, images[:batch], name)
        _compare_images(network, images, name, batch)


def _compare_with_runtime(
    network: fx.GraphModule, model: onnx.ModelProto, images: Tensor, name: str
) -> None:
    """Raises ``UnsupportedModelError`` unless ONNX Runtime computes the same.

    ONNX Runtime computes sigmoids to 1e-7 at best, which is much of a small one: what is before
    the sigmoid that an output ends with is compared too.
    """
    ends = dict(zip(network.meta["outputs"], _outputs(network.graph), strict=True))
    sigmoids = _sigmoids(ends, model)
    ends |= dict(sigmoids.values())
    outputs, limit = _run(model, list(ends), images, name)
    try:
        found = _values(network, list(ends.values()), images)
    except FAILURES as error:
        raise UnsupportedModelError(
            f"{name} was read, but what was read cannot run where ONNX Runtime can: "
            f"{_short(error)}; name the network of torch that it was exported from"
        ) from error
    for output, own, other in zip(ends, found, outputs, strict=True):
        expected = torch.tensor(other).float()
        if own.shape != expected.shape:
            raise UnsupportedModelError(
                f"{name} was read, but what was read computes something else: {output} has the "
                f"shape {tuple(own.shape)}, and ONNX Runtime's {tuple(expected.shape)}; name the "
                "network of torch that it was exported from"
            )
        largest = 1.0 if output in sigmoids else max(float(expected.abs().max()), 1e-12)
        off = float((own - expected).abs().max()) / largest
        if not off <= limit:
            raise UnsupportedModelError(
                f"{name} was read, but what was read computes something else: {output} differs "
                f"from ONNX Runtime's by {off:.1e} of {largest:.1e}, its largest, and {limit:.0e} "
                "is allowed; name the network of torch that it was exported from"
            )


def _outputs(graph: fx.Graph) -> tuple[fx.Node, ...]:
    found: Any = graph.output_node().args[0]
    return tuple(found) if isinstance(found, (tuple, list)) else (found,)


def _sigmoids(ends: dict[str, fx.Node], model: onnx.ModelProto) -> dict[str, tuple[str, fx.Node]]:
    """Returns name and node of what each output is the sigmoid of, for those that are one."""
    makers = {output: node for node in model.graph.node for output in node.output}
    found = {}
    for output, node in ends.items():
        maker = makers.get(output)
        while maker is not None and maker.op_type == "Identity":
            maker = makers.get(maker.input[0])
        if maker is not None and maker.op_type == "Sigmoid" and node.target is torch.sigmoid:
            before: Any = node.args[0]
            found[output] = (maker.input[0], before)
    return found


def _values(network: fx.GraphModule, nodes: list[fx.Node], images: Tensor) -> tuple[Tensor, ...]:
    """Returns the values of some nodes of a network."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.graph_copy(network.graph, copies)
    graph.output(tuple(copies[node] for node in nodes))
    values: tuple[Tensor, ...] = fx.GraphModule(network, graph)(images)
    return values


def _run(
    model: onnx.ModelProto, names: list[str], images: Tensor, name: str
) -> tuple[list[NDArray[Any]], float]:
    """Returns tensors of a model by name as ONNX Runtime computes them, and its tolerance.

    Raises:
        UnsupportedModelError: If ONNX Runtime cannot run it.
    """
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    outputs = {value.name for value in model.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(
            watched.SerializeToString(), options, ["CPUExecutionProvider"]
        )
        wanted = session.get_inputs()[0]
        kind = KINDS.get(wanted.type, np.float32)
        values = session.run(names, {wanted.name: images.numpy().astype(kind)})
    except Exception as error:  # ONNX Runtime has its own tree, and none of it is public
        raise UnsupportedModelError(
            f"{name} was read, but ONNX Runtime cannot run it, so that there is nothing to compare "
            f"with: {_short(error)}; export it again, in fp32"
        ) from error
    return values, 30 * TOLERANCE if kind is np.float16 else TOLERANCE


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _compare_images(network: fx.GraphModule, images: Tensor, name: str, batch: int) -> None:
    """Raises ``UnsupportedModelError`` unless an image and those after it can come together."""
    ends, parts = list(_outputs(network.graph)), (images[:1], images[1:], images)
    try:
        found = [_values(network, ends, part) for part in parts]
        if all(_is_stacked(*values) for values in zip(*found, strict=True)):
            return
        reason = ""
    except FAILURES as error:
        reason = f" ({_short(error)})"
    raise UnsupportedModelError(
        f"{name} works for a batch of {batch} alone, and no other can be trained or measured: "
        f"{_first_mixed(network, parts)}{reason}; export it with a free batch (dynamic_axes or "
        "dynamic_shapes of torch.onnx.export) that every layer has in front (batch_first)"
    )


def _is_stacked(first: Tensor, second: Tensor, both: Tensor) -> bool:
    """Whether a value is two others, one behind the other along some axis."""
    if first.ndim != both.ndim:
        return False
    axes = [i for i, (a, b) in enumerate(zip(first.shape, both.shape, strict=True)) if a != b]
    if len(axes) != 1:
        return False
    joined = torch.cat([first, second], axes[0])
    if joined.shape != both.shape:
        return False
    return bool((joined - both).abs().max() <= TOLERANCE * joined.abs().max())


def _first_mixed(network: fx.GraphModule, parts: Sequence[Tensor]) -> str:
    """Returns the first ONNX node whose value for some images is not that of each, in words."""
    runs = [fx.Interpreter(network, garbage_collect_values=False) for _ in parts]
    for run, images in zip(runs, parts, strict=True):
        with contextlib.suppress(*FAILURES):
            run.run(images)
    for node in network.graph.nodes:
        if "onnx" not in node.meta:
            continue
        values: list[Any] = [run.env.get(node) for run in runs]
        for value, images in zip(values, parts, strict=True):
            if value is None:
                return f"the {node.meta['onnx']} fails for a batch of {len(images)}"
        if isinstance(values[0], Tensor) and not _is_stacked(*values):
            shapes = " and ".join(str(tuple(value.shape)) for value in values[::2])
            return (
                f"the {node.meta['onnx']} makes values of shape {shapes} for batches of 1 and "
                f"{len(parts[-1])}, which are not those of each image"
            )
    return "its outputs depend on the other images of a batch"
