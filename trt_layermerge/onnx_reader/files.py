"""An ONNX file as a network of torch that can be traced, trained and merged like any other."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from torch import fx

from trt_layermerge.core.jsonio import sha256_file
from trt_layermerge.errors import UnsupportedModelError, UsageError
from trt_layermerge.onnx_reader.reader import model_inputs, parse_onnx, read_onnx

TOLERANCE = 1e-3
"""Largest difference to ONNX Runtime, relative to the largest output."""

KINDS = {"tensor(float16)": np.float16, "tensor(double)": np.float64}


def load_onnx(path: Path, shape: tuple[int, int, int, int]) -> fx.GraphModule:
    """Returns the network of an ONNX file in single precision, as ``read_onnx`` reads it.

    Where ONNX Runtime is installed, both are compared on one random input.

    Args:
        path: The file; weights kept beside it (external data) are read too.
        shape: Shape of the input that the network is used at, ``(N, C, H, W)``.

    Raises:
        UsageError: If there is no such file, or its input has another shape.
        CorruptInputError: If it is damaged.
        UnsupportedModelError: If it has operators that are not known here, all of them named, more
            than one input, or does not compute what ONNX Runtime computes.
    """
    _refuse_missing(path)
    model = parse_onnx(path, str(path))
    network = read_onnx(model, shape, name=str(path))
    if find_spec("onnxruntime") is not None:
        _compare(network, model, path, shape)
    return network


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


def _compare(
    network: fx.GraphModule, model: onnx.ModelProto, path: Path, shape: tuple[int, ...]
) -> None:
    """Raises ``UnsupportedModelError`` unless ONNX Runtime computes the same."""
    import onnxruntime

    batch = model_inputs(model)[0].type.tensor_type.shape.dim[0].dim_value or 1
    images = torch.randn(batch, *shape[1:], generator=torch.Generator().manual_seed(0))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, ["CPUExecutionProvider"]
        )
        wanted = session.get_inputs()[0]
        kind = KINDS.get(wanted.type, np.float32)
        outputs = session.run(None, {wanted.name: images.numpy().astype(kind)})
    except Exception as error:  # ONNX Runtime has its own tree, and none of it is public
        words = " ".join(str(error).split())[:300]
        raise UnsupportedModelError(
            f"{path} was read, but ONNX Runtime cannot run it, so that there is nothing to compare "
            f"with: {words}; export it again, in fp32"
        ) from error
    limit = 30 * TOLERANCE if kind is np.float16 else TOLERANCE
    with torch.no_grad():
        found = network(images)
    for own, other in zip(found if len(outputs) > 1 else (found,), outputs, strict=True):
        expected = torch.tensor(other).float()
        largest = expected.abs().max().clamp(min=1e-12)
        same = own.shape == expected.shape
        off = float((own - expected).abs().max() / largest) if same else float("inf")
        if not off <= limit:
            raise UnsupportedModelError(
                f"{path} was read, but what was read computes something else: its outputs differ "
                f"from ONNX Runtime's by {off:.1e} of the largest; name the network of torch that "
                "it was exported from"
            )
