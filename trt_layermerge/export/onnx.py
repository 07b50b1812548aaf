"""``original.onnx`` and ``model.onnx``: a torch network as one clean ONNX model."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trt_layermerge.core.agreement import LEAST_PROBABILITY
from trt_layermerge.core.codec import dump
from trt_layermerge.core.inputs import chunks, mapped, parts_of
from trt_layermerge.core.jsonio import Json, sha256_bytes, write_bytes
from trt_layermerge.core.outputs import named
from trt_layermerge.errors import UnsupportedModelError, UsageError
from trt_layermerge.export.batch import with_batch
from trt_layermerge.export.clean import clean
from trt_layermerge.export.exporters import Flat, Names, RawExport, export_raw
from trt_layermerge.export.fp16 import beyond_half, kept_in_float
from trt_layermerge.export.graph import parse_model, shape_of
from trt_layermerge.export.runtime import LARGEST_BATCH, batch_of, outputs_of


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how near it is to the torch network.

    Attributes:
        file: Name of the ONNX file.
        sha256: Its hash.
        size_bytes: Its size.
        exporter: ``torchscript`` or ``torch.export``.
        opset: Version of the ONNX operators.
        nodes: Number of nodes by operator.
        input_shape: Of the first input, ``(N, C, H, W)``; N is ``batch`` where it is dynamic.
        output_shape: Of the first output, such as ``(N, classes)``.
        inputs: Shape of every input by name, in order.
        outputs: Shape of every output by name, in order.
        max_abs_error: Largest difference of ONNX Runtime from torch, None without images.
        max_rel_error: Largest difference over the largest magnitude of torch's values for an
            output, of all outputs the largest, or None.
        images_compared: Number of images that both ran.
        kept_in_float: Names of the nodes that stay float32 at fp16, because half precision cannot
            hold what they read or write on the images; none without images.
        notes: Warnings of the exporter; values frozen while tracing are named here.
    """

    file: str
    sha256: str
    size_bytes: int
    exporter: str
    opset: int
    nodes: Mapping[str, int]
    input_shape: tuple[int | str, ...]
    output_shape: tuple[int | str, ...]
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]
    max_abs_error: float | None
    max_rel_error: float | None
    images_compared: int
    notes: tuple[str, ...]
    kept_in_float: tuple[str, ...] = ()

    def to_json(self) -> Json:
        """Returns a JSON-ready mapping."""
        return dump(self)


def export_onnx(
    module: nn.Module,
    example: Any,
    path: Path,
    *,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    dynamic_batch: bool = False,
    check: Any = None,
    tolerance: float = 1e-4,
) -> ExportReport:
    """Writes a network as ONNX: batch norms folded, constants folded, checked by ONNX's checker.

    Args:
        module: The network in eval mode; left untouched.
        example: An input ``(N, C, H, W)``, or several (``core.inputs``); its N is the model's where
            the batch is static.
        path: Where to write.
        input_names: Names of the inputs; by default ``input``, or those of ``forward``.
        output_names: Names of the outputs; by default those of ``core.outputs``.
        dynamic_batch: Whether N may be anything when the model runs.
        check: Real inputs, such as images ``(M, C, H, W)``, on which ONNX Runtime is compared with
            torch, and the values are found that half precision cannot hold; or None.
        tolerance: Largest difference over largest output that passes; approximate because both
            compute in float32, in another order.

    Raises:
        UsageError: If the module is in training mode, or ``check`` is empty.
        UnsupportedModelError: If it cannot be exported, or ONNX Runtime computes something else.
        DeviceError: If the file cannot be written.
    """
    raw, data = _exported(module, example, (input_names, output_names), dynamic_batch)
    absolute = relative = None
    if check is not None:
        if len(check) == 0:
            raise UsageError("no images were given to check the ONNX model with; give at least one")
        absolute, relative = difference(data, module, check)
        if not relative <= tolerance:  # false for nan too
            raise UnsupportedModelError(
                f"the ONNX model differs from torch by {relative:.2e} relative on "
                f"{len(check)} images, more than {tolerance:.0e}; "
                + (" ".join(raw.notes) or "an operation has another meaning there")
                + ". Nothing was written"
            )
        data = beyond_half(data, [mapped(_array, check)])
    write_bytes(path, data)
    graph = raw.model.graph
    return ExportReport(
        file=path.name,
        sha256=sha256_bytes(data),
        size_bytes=len(data),
        exporter=raw.exporter,
        opset=raw.model.opset_import[0].version,
        nodes=dict(sorted(Counter(str(node.op_type) for node in graph.node).items())),
        input_shape=shape_of(graph.input[0]),
        output_shape=shape_of(graph.output[0]),
        inputs={value.name: shape_of(value) for value in graph.input},
        outputs={value.name: shape_of(value) for value in graph.output},
        max_abs_error=absolute,
        max_rel_error=relative,
        images_compared=0 if check is None else len(check),
        notes=raw.notes,
        kept_in_float=kept_in_float(parse_model(data)),
    )


def export_bytes(module: nn.Module, example: Any, *, dynamic_batch: bool = False) -> bytes:
    """Returns the clean ONNX model without comparing it: for timing finalists only.

    Args:
        module: The network in eval mode; left untouched.
        example: An input ``(N, C, H, W)``, or several (``core.inputs``); its N is the model's where
            the batch is static.
        dynamic_batch: Whether N may be anything when the model runs.

    Raises:
        UsageError: If the module is in training mode.
        UnsupportedModelError: If it cannot be exported.
    """
    return _exported(module, example, ((), ()), dynamic_batch)[1]


def input_names_of(module: nn.Module, count: int) -> tuple[str, ...]:
    """Returns what the inputs of a network are called.

    As in the file that they were read from; else a single one is ``input``, and several are called
    as ``forward``'s parameters are.

    Args:
        module: The network.
        count: How many inputs it takes.
    """
    read = getattr(module, "meta", {}).get("inputs", ())
    if len(read) == count:
        return tuple(read)
    if count == 1:
        return ("input",)
    parameters = inspect.signature(module.forward).parameters.values()
    found = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    if len(found) < count:
        return tuple(f"input_{place}" for place in range(count))
    return tuple(found[:count])


def output_names_of(
    module: nn.Module, output: Any, inputs: Collection[str] = ()
) -> tuple[str, ...]:
    """Returns what the tensors in an output are called: as in the file, or by ``core.outputs``.

    Args:
        module: The network.
        output: What it puts out.
        inputs: What its inputs are called; an output of the same name is called another way.
    """
    read = getattr(module, "meta", {}).get("outputs", ())
    found = named(output, read)
    return tuple(f"{name}_output" if name in inputs else name for name in found)


def _exported(
    module: nn.Module,
    example: Any,
    wanted: tuple[Sequence[str], Sequence[str]],
    dynamic_batch: bool,
) -> tuple[RawExport, bytes]:
    """Returns the clean model in place of the raw one, and its bytes."""
    # A bare nn.Module is a container that torch.fx made; it has no behaviour of its own.
    training = [
        name or "the module itself"
        for name, part in module.named_modules()
        if part.training and type(part) is not nn.Module
    ]
    if training:
        raise UsageError(
            f"{len(training)} modules are in training mode, {training[0]} first; "
            "call model.eval() before exporting"
        )
    inputs = parts_of(example)
    with torch.no_grad():
        output = module(*(x.clone() for x in inputs))
    given = wanted[0] or input_names_of(module, len(inputs))
    names = Names(given, wanted[1] or output_names_of(module, output, given))
    flat = module if isinstance(output, torch.Tensor) else Flat(module).eval()
    raw = export_raw(flat, example, names, dynamic_batch)
    model = clean(raw.model, names)
    data: bytes = model.SerializeToString(deterministic=True)
    if dynamic_batch:
        _refuse_frozen(data)
    return RawExport(model, raw.exporter, raw.notes), data


def _refuse_frozen(model: bytes) -> None:
    """Refuses a model of a dynamic batch that cannot take one image, before anything is built."""
    try:
        with_batch(model, 1)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            "the network cannot be exported for any batch, since its own code keeps the batch of "
            f"the example ({error}); leave build.max_batch out, so that it is exported for the "
            "measured batch alone"
        ) from error


def difference(model: bytes, module: nn.Module, images: Any) -> tuple[float, float]:
    """Returns how far ONNX Runtime is from torch at most: absolute, and over the largest output.

    Of several outputs the largest of both. Whole numbers differ by the share that is another one.
    What comes from a sigmoid is compared with ``LEAST_PROBABILITY`` where it is all below that.

    Args:
        model: The ONNX model.
        module: The network it came from, in eval mode.
        images: Inputs ``(N, C, H, W)``, or several, N of at least 1.

    Raises:
        MissingDependencyError: If ONNX Runtime is not installed.
        DeviceError: If it cannot load the model.
        CorruptInputError: If an image is not finite.
    """
    actual = outputs_of(model, mapped(_array, images))
    with torch.no_grad():
        found = [
            list(named(module(*parts_of(chunk))).values())
            for chunk in chunks(images, batch_of(model) or LARGEST_BATCH)
        ]
    expected = (torch.cat(parts) for parts in zip(*found, strict=True))
    nodes = parse_model(model).graph.node
    sigmoids = {node.output[0] for node in nodes if node.op_type == "Sigmoid"}
    pairs = [
        _differ(_array(e), a, LEAST_PROBABILITY if name in sigmoids else 0.0)
        for e, (name, a) in zip(expected, actual.items(), strict=True)
    ]
    absolute, relative = zip(*pairs, strict=True)
    return max(absolute), max(relative)


def _differ(expected: Any, actual: Any, least: float) -> tuple[float, float]:
    """Returns the largest difference, and over the largest value or ``least``."""
    if expected.dtype.kind != "f":
        share = float((expected != actual).mean())
        return share, share
    largest = float(np.abs(actual - expected).max())
    scale = max(float(np.abs(expected).max()), least)
    return largest, largest / scale if scale else largest


def _array(tensor: torch.Tensor) -> Any:
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
