"""The GPU through every binding, and a TensorRT that builds for it; else skipped and told why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from trt_layermerge.backends.cuda import BINDINGS, Cuda, find_cuda
from trt_layermerge.backends.tensorrt import build_engine
from trt_layermerge.backends.tensorrt_api import FLAVORS, TensorRTApi, load_api
from trt_layermerge.backends.tensorrt_options import BuildOptions
from trt_layermerge.backends.tensorrt_runner import EngineRunner
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.errors import DeviceError
from trt_layermerge.measure.spec_model import spec_model

SMALL = ConvSpec(8, 8, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 14, 14)
LARGE = ConvSpec(256, 256, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 56, 56)


@pytest.fixture(params=BINDINGS)
def cuda(request: pytest.FixtureRequest) -> Cuda:
    """Returns the GPU through one binding."""
    try:
        return find_cuda(request.param)
    except DeviceError as error:
        pytest.skip(f"{request.param}: {error}")


@dataclass(frozen=True)
class Loader:
    """A TensorRT that runs here, with the engines that it was asked for."""

    api: TensorRTApi

    def build(self, model: bytes, **options: object) -> bytes:
        """Returns an engine."""
        return build_engine(model, api=self.api, options=BuildOptions(**options)).plan

    def open(self, plan: bytes, cuda: Cuda, *, batch: int | None = None) -> EngineRunner:
        """Returns a runner of an engine."""
        return EngineRunner(self.api, cuda, plan, 0, batch=batch)


@pytest.fixture(scope="session", params=FLAVORS)
def loader(request: pytest.FixtureRequest) -> Loader:
    """Returns TensorRT or TensorRT-RTX, if it builds and runs an engine on this GPU."""
    try:
        cuda, found = find_cuda(), Loader(load_api(request.param))
        with found.open(found.build(spec_model(SMALL, "fp32", 1)), cuda) as runner:
            runner.infer({n: np.zeros(s, np.float32) for n, s in runner.input_shapes.items()})
    except DeviceError as error:
        pytest.skip(f"{request.param}: {error}")
    return found
