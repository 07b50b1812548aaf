"""An ONNX file as a network of torch that can be traced, trained and merged like any other."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from torch import fx

from trt_layermerge.core.jsonio import sha256_file
from trt_layermerge.errors import UnsupportedModelError, UsageError
from trt_layermerge.onnx_reader.compare import compare
from trt_layermerge.onnx_reader.cutting import PartlyReadError, cut
from trt_layermerge.onnx_reader.preparing import (
    file_sizes,
    model_inputs,
    other_places,
    other_sizes,
    with_sizes,
)
from trt_layermerge.onnx_reader.reader import parse_onnx, read_onnx


def load_onnx(
    path: Path, shape: tuple[int, int, int, int], outputs: Sequence[str] = ()
) -> fx.GraphModule:
    """Returns the network of an ONNX file in single precision, as ``read_onnx`` reads it.

    It must compute what ONNX Runtime computes, where that is installed, and for a batch what it
    computes for each image.

    Args:
        path: The file; weights kept beside it (external data) are read too.
        shape: Shape of the input that the network is used at, ``(N, C, H, W)``.
        outputs: Names of tensors to cut the file at, which become the outputs; none for the file's.

    Raises:
        UsageError: If there is no such file, its input has another shape, or it computes no such
            tensor.
        CorruptInputError: If it is damaged, or its weights are not finite.
        UnsupportedModelError: If it has operators that are not known here, all of them named, more
            than one input, is quantised, or does not compute the same.
    """
    _refuse_missing(path)
    name = str(path)
    model = parse_onnx(path, name)
    if outputs:
        model = cut(model, outputs, name)
    sized = with_sizes(model, shape, name)
    inputs = model_inputs(model)
    try:
        network = read_onnx(sized, name=name)
        compare(network, sized, name)
    except UnsupportedModelError as error:
        own = file_sizes(inputs[0])
        if other_places(own, shape):
            raise UsageError(f"{other_sizes(own, shape, name)}; at this one, {error}") from error
        if isinstance(error, PartlyReadError) and error.outputs:
            raise UnsupportedModelError(f"{error}; {_advice(path, shape, error)}") from error
        raise
    return network


def _advice(path: Path, shape: Sequence[int], error: PartlyReadError) -> str:
    """Returns what to type to go on with the part that can be read."""
    sizes = "x".join(map(str, shape))
    typed = [
        "inspect",
        "--model",
        str(path),
        "--input",
        sizes,
        "--outputs",
        ",".join(error.outputs),
    ]
    command = shlex.join(["trt-layermerge", *typed])
    return f"or cut the file before that (model.outputs of a recipe): {command}"


def onnx_hashes(path: Path) -> dict[str, str]:
    """Returns the hash of an ONNX file and of each file beside it that holds weights, by name.

    Raises:
        UsageError: If there is no such file.
        CorruptInputError: If it is damaged.
    """
    _refuse_missing(path)
    model = parse_onnx(path, str(path), weights=False)
    named = {
        ExternalDataInfo(tensor).location
        for tensor in model.graph.initializer
        if uses_external_data(tensor)
    }
    return {name: sha256_file(path.parent / name) for name in (path.name, *sorted(named))}


def _refuse_missing(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"there is no ONNX file {path}; check --model")
