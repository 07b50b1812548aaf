"""What ONNX Runtime must not do to the process around it, and to int8."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.quantize.graphs import glyph_images, glyphs, run, shipped_ranges
from trt_layermerge.backends import get_backend
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.device import Precision
from trt_layermerge.export.fp16 import to_precision
from trt_layermerge.measure.spec_model import spec_model
from trt_layermerge.quantize.qdq import quantize_model

TABLE = Path(__file__).parents[2] / "calib" / "tables" / "glyphs-resnet20.json"
SPEC = ConvSpec(2, 2, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, 4, 4)


def test_denormals_of_the_process_survive_a_session() -> None:
    tiny = np.full(4, 1e-310)
    with get_backend("onnxruntime").open(spec_model(SPEC, "fp32", 1)) as runner:
        runner.time_burst(2)
        assert (tiny * 0.5).all()
    assert (tiny * 0.5).all()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be pinned here")
def test_the_calling_thread_keeps_its_cores_while_a_network_is_timed() -> None:
    before = os.sched_getaffinity(0)
    with get_backend("onnxruntime").open(spec_model(SPEC, "fp32", 1)) as runner:
        runner.time_burst(2)
        assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("fallback", ["fp32", "fp16"])
def test_int8_is_computed_as_it_is_written(fallback: Precision) -> None:
    """Whole outputs, against a session that optimises nothing.

    A value between two steps may fall on the other one where sums are in another order: 5e-2 of
    the length of the output. With ONNX Runtime's own ways, half precision is 18e-2 away.
    """
    model, images = glyphs("resnet20", batch=1), glyph_images("val")[0][:8]
    int8 = to_precision(quantize_model(model, shipped_ranges("resnet20")), fallback, keep_io=True)
    expected = np.concatenate([run(int8, image[None])[0] for image in images])
    with get_backend("onnxruntime").open(int8) as runner:
        found = np.concatenate([runner.infer({"input": i[None]})["logits"] for i in images])
    assert np.linalg.norm(found - expected) <= 5e-2 * np.linalg.norm(expected)
