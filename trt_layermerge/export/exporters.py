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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import nn
from torch.jit._trace import TracerWarning

from trt_layermerge.core.inputs import mapped, parts_of
from trt_layermerge.core.outputs import named
from trt_layermerge.errors import UnsupportedModelError

TORCHSCRIPT_OPSET = 17
TORCH_EXPORT_OPSET = 18


@dataclass(frozen=True)
class Names:
    """What the inputs and outputs of a model are called, in order."""

    inputs: Sequence[str]
    outputs: Sequence[str]


@dataclass(frozen=True)
class RawExport:
    """What ``torchscript`` or ``torch.export`` wrote, before any cleaning.

    ``notes`` are what it warned of, such as values frozen while tracing.
    """

    model: onnx.ModelProto
    exporter: str
    notes: tuple[str, ...] = ()


class Flat(nn.Module):
    """A network that puts out its tensors one after the other, however it nests them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        """Maps what the network maps, to the tensors in what it maps it to."""
        return tuple(named(self.network(*inputs)).values())


def export_raw(module: nn.Module, example: Any, names: Names, dynamic_batch: bool) -> RawExport:
    """Returns the model as the first exporter that succeeds writes it.

    Args:
        module: The network in eval mode.
        example: An input ``(N, C, H, W)``, or several (``core.inputs``).
        names: Names of inputs and outputs.
        dynamic_batch: Whether N may be anything when the model runs.

    Raises:
        UnsupportedModelError: If both fail; the message carries both reasons.
    """
    if dynamic_batch and len(example) == 1:
        # a size of 1 would be traced as a constant
        example = mapped(lambda part: torch.cat([part, part]), example)
    failures: list[str] = []
    for exporter in (_torchscript, _torch_export):
        try:
            return exporter(module, parts_of(example), names, dynamic_batch)
        except Exception as error:  # exporters run arbitrary model code and raise anything
            failures.append(f"{exporter.__name__.strip('_')}: {_first_line(error)}")
    raise UnsupportedModelError(
        "the network cannot be exported to ONNX; " + "; ".join(failures) + ". Replace the named "
        "operation by a supported one and type the same command again"
    )


def _torchscript(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], names: Names, dynamic_batch: bool
) -> RawExport:
    buffer: Any = io.BytesIO()  # torch accepts it, its annotations do not say so
    free = (*names.inputs, *names.outputs) if dynamic_batch else ()
    with warnings.catch_warnings(record=True) as caught, _quiet():
        warnings.simplefilter("always", TracerWarning)
        # The exporter announces its own end with every call.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch.onnx")
        warnings.filterwarnings("ignore", "You are using the legacy TorchScript-based ONNX export")
        # It cannot fold the padding of a ZeroPad2d; cleaning does.
        warnings.filterwarnings("ignore", "Constant folding")
        torch.onnx.export(
            module,
            inputs,
            buffer,
            opset_version=TORCHSCRIPT_OPSET,
            input_names=list(names.inputs),
            output_names=list(names.outputs),
            dynamic_axes={name: {0: "batch"} for name in free},
            dynamo=False,
        )
    notes = tuple(dict.fromkeys(str(w.message).split("\n")[0] for w in caught))
    return RawExport(onnx.load_from_string(buffer.getvalue()), "torchscript", notes)


def _torch_export(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], names: Names, dynamic_batch: bool
) -> RawExport:
    free: Any = ({0: torch.export.Dim("batch")},) * len(inputs)
    # ``*inputs`` is one argument to the exporter.
    shapes = ((free,) if isinstance(module, Flat) else free) if dynamic_batch else None
    with warnings.catch_warnings():
        # torch's own use of what it deprecates; nothing in it concerns the network.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        # Several inputs have the one batch, which is what is wanted.
        warnings.filterwarnings("ignore", "# The axis name: batch will not be used")
        program = torch.onnx.export(
            module,
            inputs,
            opset_version=TORCH_EXPORT_OPSET,
            input_names=list(names.inputs),
            output_names=list(names.outputs),
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    return RawExport(program.model_proto, "torch.export")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops what C++ code prints on file descriptor 1: pages of a graph that it cannot export."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _first_line(error: Exception) -> str:
    """Returns type and gist of an exporter's error, whose text may run over pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    gist = next((line for line in lines if line.startswith("<class")), lines[0] if lines else "")
    return f"{type(error).__name__}: {gist[:300]}"
