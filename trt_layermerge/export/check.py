"""Outputs of a torch network and of its ONNX twin, compared on the same images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trt_layermerge.errors import MissingDependencyError


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


def compare(model: bytes, module: nn.Module, images: torch.Tensor, batch: int | None) -> Difference:
    """Returns the difference between ONNX Runtime and torch over all images.

    Args:
        model: The ONNX model.
        module: The network it came from, in eval mode.
        images: Inputs ``(N, C, H, W)``, N of at least 1.
        batch: The batch a static model insists on, or None where it takes any.

    Raises:
        MissingDependencyError: If ONNX Runtime is not installed.
    """
    run = _runtime(model)
    size = batch or min(len(images), 64)
    max_abs = scale = 0.0
    for chunk in torch.split(images, size):
        with torch.no_grad():
            expected = module(chunk).float().cpu().numpy()
        actual = run(_filled(chunk.cpu().numpy(), size))[: len(chunk)]
        # nan is kept: np.maximum hands it on, max() would lose it.
        max_abs = float(np.maximum(max_abs, np.abs(actual - expected).max()))
        scale = float(np.maximum(scale, np.abs(expected).max()))
    return Difference(max_abs, max_abs / scale if scale else max_abs, len(images))


def _filled(chunk: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Returns the chunk grown to ``size`` images by repeating its last one."""
    missing = size - len(chunk)
    return np.concatenate([chunk, chunk[-1:].repeat(missing, axis=0)]) if missing else chunk


def _runtime(model: bytes) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "onnxruntime", "comparing ONNX with torch", "onnxruntime"
        ) from error

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        outputs: NDArray[np.float32] = session.run(None, {name: images})[0]
        return outputs

    return run
