"""Torch module -> raw ONNX, by whichever of torch's two exporters manages it.

The TorchScript exporter comes first: it is quicker, and writes opset 17, which TensorRT 8.6 reads.
What it does not know goes to the ``torch.export`` one, which writes opset 18: its own conversion
down to 17 fails on something as common as ``ReduceMean``.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import nn
from torch.jit._trace import TracerWarning

from trt_layermerge.errors import UnsupportedModelError

TORCHSCRIPT_OPSET = 17
TORCH_EXPORT_OPSET = 18


@dataclass(frozen=True)
class RawExport:
    """What an exporter wrote, before any cleaning.

    Attributes:
        model: The ONNX model.
        exporter: ``torchscript`` or ``torch.export``.
        notes: What the exporter warned of, such as values frozen while tracing.
    """

    model: onnx.ModelProto
    exporter: str
    notes: tuple[str, ...] = ()


def export_raw(
    module: nn.Module, example: torch.Tensor, names: tuple[str, str], dynamic_batch: bool
) -> RawExport:
    """Returns the model as the first exporter that succeeds writes it.

    Args:
        module: The network in eval mode.
        example: An input ``(N, C, H, W)``.
        names: Names of input and output.
        dynamic_batch: Whether N may be anything when the model runs.

    Raises:
        UnsupportedModelError: If both fail; the message carries both reasons.
    """
    if dynamic_batch and len(example) == 1:
        example = torch.cat([example, example])  # a size of 1 would be traced as a constant
    failures: list[str] = []
    for exporter in (_torchscript, _torch_export):
        try:
            return exporter(module, example, names, dynamic_batch)
        except Exception as error:  # exporters run arbitrary model code and raise anything
            failures.append(f"{exporter.__name__.strip('_')}: {_first_line(error)}")
    raise UnsupportedModelError(
        "the network cannot be exported to ONNX; " + "; ".join(failures) + ". Replace the named "
        "operation by a supported one and type the same command again"
    )


def _torchscript(
    module: nn.Module, example: torch.Tensor, names: tuple[str, str], dynamic_batch: bool
) -> RawExport:
    buffer: Any = io.BytesIO()  # torch accepts it, its annotations do not say so
    axes = {name: {0: "batch"} for name in names} if dynamic_batch else None
    with warnings.catch_warnings(record=True) as caught, _stdout_to_stderr():
        warnings.simplefilter("always", TracerWarning)
        # The exporter announces its own end with every call.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch.onnx")
        warnings.filterwarnings("ignore", "You are using the legacy TorchScript-based ONNX export")
        # It cannot fold the padding of a ZeroPad2d; cleaning does.
        warnings.filterwarnings("ignore", "Constant folding")
        torch.onnx.export(
            module,
            (example,),
            buffer,
            opset_version=TORCHSCRIPT_OPSET,
            input_names=[names[0]],
            output_names=[names[1]],
            dynamic_axes=axes,
            dynamo=False,
        )
    notes = tuple(dict.fromkeys(str(w.message).split("\n")[0] for w in caught))
    return RawExport(onnx.load_from_string(buffer.getvalue()), "torchscript", notes)


def _torch_export(
    module: nn.Module, example: torch.Tensor, names: tuple[str, str], dynamic_batch: bool
) -> RawExport:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic_batch else None
    with warnings.catch_warnings():
        # torch's own use of what it deprecates; nothing in it concerns the network.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        program = torch.onnx.export(
            module,
            (example,),
            opset_version=TORCH_EXPORT_OPSET,
            input_names=[names[0]],
            output_names=[names[1]],
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    return RawExport(program.model_proto, "torch.export")


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Sends what C++ code prints on file descriptor 1 to stderr, so that ``--json`` stays pure."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _first_line(error: Exception) -> str:
    """Returns type and gist of an exporter's error, whose text may run over pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    gist = next((line for line in lines if line.startswith("<class")), lines[0] if lines else "")
    return f"{type(error).__name__}: {gist[:300]}"
