"""``original.onnx`` and ``model.onnx``: a torch network as one clean ONNX model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trt_layermerge.core.jsonio import sha256_bytes, write_bytes
from trt_layermerge.errors import UnsupportedModelError, UsageError
from trt_layermerge.export.clean import clean
from trt_layermerge.export.exporters import RawExport, export_raw
from trt_layermerge.export.graph import shape_of
from trt_layermerge.export.runtime import LARGEST_BATCH, batch_of, logits


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two sets of outputs are apart.

    Attributes:
        max_abs: Largest difference.
        max_rel: Largest difference over the largest magnitude of the reference.
        images: Number of images compared.
    """

    max_abs: float
    max_rel: float
    images: int


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how near it is to the torch network.

    Attributes:
        path: The ONNX file.
        sha256: Its hash.
        size_bytes: Its size.
        exporter: ``torchscript`` or ``torch.export``.
        opset: Version of the ONNX operators.
        nodes: Number of nodes by operator.
        input_shape: ``(N, C, H, W)``; N is ``batch`` where it is dynamic.
        output_shape: ``(N, classes)``.
        difference: ONNX Runtime against torch, or None where no images were given.
        notes: Warnings of the exporter; values frozen while tracing are named here.
    """

    path: Path
    sha256: str
    size_bytes: int
    exporter: str
    opset: int
    nodes: Mapping[str, int]
    input_shape: tuple[int | str, ...]
    output_shape: tuple[int | str, ...]
    difference: Difference | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready mapping."""
        difference = self.difference
        return {
            "file": self.path.name,
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "exporter": self.exporter,
            "opset": self.opset,
            "nodes": dict(self.nodes),
            "input_shape": list(self.input_shape),
            "output_shape": list(self.output_shape),
            "max_abs_error": difference and difference.max_abs,
            "max_rel_error": difference and difference.max_rel,
            "images_compared": difference.images if difference else 0,
            "notes": list(self.notes),
        }


def export_onnx(
    module: nn.Module,
    example: torch.Tensor,
    path: Path,
    *,
    input_name: str = "input",
    output_name: str = "logits",
    dynamic_batch: bool = False,
    check: torch.Tensor | None = None,
    tolerance: float = 1e-4,
) -> ExportReport:
    """Writes a network as ONNX: batch norms folded, constants folded, checked by ONNX's checker.

    Args:
        module: The network in eval mode, with one input and one output; left untouched.
        example: An input ``(N, C, H, W)``; its N is the model's where the batch is static.
        path: Where to write.
        input_name: Name of the input.
        output_name: Name of the output.
        dynamic_batch: Whether N may be anything when the model runs.
        check: Real images ``(M, C, H, W)`` on which ONNX Runtime is compared with torch, or None.
        tolerance: Largest difference over largest output that passes; approximate because both
            compute in float32, in another order.

    Raises:
        UsageError: If the module is in training mode, or ``check`` is empty.
        UnsupportedModelError: If it cannot be exported, or ONNX Runtime computes something else.
        DeviceError: If the file cannot be written.
    """
    raw, data = _exported(module, example, (input_name, output_name), dynamic_batch)
    difference = None
    if check is not None:
        if len(check) == 0:
            raise UsageError("no images were given to check the ONNX model with; give at least one")
        difference = compare(data, module, check)
        if not difference.max_rel <= tolerance:  # false for nan too
            raise UnsupportedModelError(
                f"the ONNX model differs from torch by {difference.max_rel:.2e} relative on "
                f"{difference.images} images, more than {tolerance:.0e}; "
                + (" ".join(raw.notes) or "an operation has another meaning there")
                + ". Nothing was written"
            )
    write_bytes(path, data)
    graph = raw.model.graph
    return ExportReport(
        path=path,
        sha256=sha256_bytes(data),
        size_bytes=len(data),
        exporter=raw.exporter,
        opset=raw.model.opset_import[0].version,
        nodes=dict(sorted(Counter(str(node.op_type) for node in graph.node).items())),
        input_shape=shape_of(graph.input[0]),
        output_shape=shape_of(graph.output[0]),
        difference=difference,
        notes=raw.notes,
    )


def export_bytes(
    module: nn.Module,
    example: torch.Tensor,
    *,
    input_name: str = "input",
    output_name: str = "logits",
    dynamic_batch: bool = False,
) -> bytes:
    """Returns the clean ONNX model without comparing it: for timing finalists only.

    Args:
        module: The network in eval mode, with one input and one output; left untouched.
        example: An input ``(N, C, H, W)``; its N is the model's where the batch is static.
        input_name: Name of the input.
        output_name: Name of the output.
        dynamic_batch: Whether N may be anything when the model runs.

    Raises:
        UsageError: If the module is in training mode.
        UnsupportedModelError: If it cannot be exported.
    """
    return _exported(module, example, (input_name, output_name), dynamic_batch)[1]


def _exported(
    module: nn.Module, example: torch.Tensor, names: tuple[str, str], dynamic_batch: bool
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
    raw = export_raw(module, example, names, dynamic_batch)
    model = clean(raw.model)
    return RawExport(model, raw.exporter, raw.notes), model.SerializeToString(deterministic=True)


def compare(model: bytes, module: nn.Module, images: torch.Tensor) -> Difference:
    """Returns the difference between ONNX Runtime and torch over all images.

    Args:
        model: The ONNX model.
        module: The network it came from, in eval mode.
        images: Inputs ``(N, C, H, W)``, N of at least 1.

    Raises:
        MissingDependencyError: If ONNX Runtime is not installed.
        DeviceError: If it cannot load the model.
        CorruptInputError: If an image is not finite.
    """
    actual, size = logits(model, images.cpu().numpy()), batch_of(model) or LARGEST_BATCH
    with torch.no_grad():
        expected = torch.cat([module(chunk) for chunk in torch.split(images, size)])
    reference = expected.float().cpu().numpy()
    max_abs, scale = float(np.abs(actual - reference).max()), float(np.abs(reference).max())
    return Difference(max_abs, max_abs / scale if scale else max_abs, len(images))
