"""What ONNX Runtime must not do to the process around it."""

from __future__ import annotations

import os

import numpy as np
import pytest

from trt_layermerge.backends import get_backend
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.measure.spec_model import spec_model

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
