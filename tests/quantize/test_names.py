"""A network whose parameters are called as what every step generates, through all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.export.bake import bake
from trt_layermerge.export.fp16 import rounded, to_precision
from trt_layermerge.export.onnx import export_bytes
from trt_layermerge.export.runtime import logits
from trt_layermerge.quantize.qdq import quantize_model
from trt_layermerge.quantize.ranges import fixed_ranges
from trt_layermerge.quantize.sensitivity import sensitivities

HALF = Preprocess(1 / 255, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
NAMES = (
    "input",
    "logits",
    "prob",
    "preprocess_scale",
    "preprocess_mean",
    "preprocess_std",
    "normalised",
    "normalised_scale",
    "normalised_mean",
    "logits_before_softmax",
    "input_scale",
    "input_zero_point",
    "input_quantized",
    "input_dequantized",
    "input_half",
    "input_single",
    "input_exact",
    "input_fp16",
    "input_fp32",
    "logits_half",
)


class Named(nn.Module):
    """Scales the channels of a convolution by parameters of any names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        for name in NAMES:
            self.register_parameter(name, nn.Parameter(torch.rand(4, 1, 1) + 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x))
        for name in NAMES:
            y = y * getattr(self, name)
        return y.mean((2, 3))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_is_generated_collides_with_nothing(precision: str) -> None:
    torch.manual_seed(0)
    net = Named().eval()
    pixels = np.random.default_rng(0).integers(0, 256, (1, 6, 6, 3), dtype=np.uint8)
    x = HALF(pixels)
    with torch.no_grad():
        scores = net(torch.from_numpy(x))
    model = export_bytes(net, torch.from_numpy(x))
    np.testing.assert_allclose(logits(model, x), scores, rtol=1e-5)
    typed = rounded(bake(to_precision(model, precision, keep_io=True), HALF, softmax=True))
    raw = pixels.transpose(0, 3, 1, 2).astype(np.float32)
    np.testing.assert_allclose(logits(typed, raw), scores.softmax(1), atol=2e-3)
    eight = quantize_model(model, fixed_ranges(model))
    whole = rounded(bake(to_precision(eight, precision, keep_io=True), HALF, softmax=False))
    np.testing.assert_allclose(logits(whole, raw), scores, atol=0.1 * float(scores.max()))
    (cost,) = sensitivities(model, fixed_ranges(model), x, 1)
    assert cost.name == "/conv/Conv" and np.isfinite(cost.kl)
