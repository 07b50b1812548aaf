"""Engines without a GPU: loaded by a fake TensorRT, run on a fake CUDA runtime."""

import ctypes

import numpy as np

from tests.backends.fake_tensorrt import ENGINE, Names, Strict, fake_tensorrt
from trt_layermerge.backends.tensorrt_api import TensorRTApi

NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32}
NUMPY |= {"BOOL": np.bool_}


class FakeEngine:
    """Takes ``input`` and gives ``logits`` of the same shape and type, doubled.

    Attributes:
        shape: As built; -1 is dynamic, from 1 over 2 to 4.
        kind: Name of its type.
        layout: Name of its format.
        run_ms: What a run takes.
        refuses: ``capture``, ``run`` or ``memory``: what it cannot do.
        fault: Status that the runtime has from the run of that number on, and the number.
    """

    num_io_tensors = 2

    def __init__(self, runtime, *, shape=(1, 2, 3, 3), kind="FLOAT", run_ms=0.25):
        self.runtime, self.shape, self.kind, self.run_ms = runtime, shape, kind, run_ms
        self.layout, self.refuses, self.fault, self.runs = "LINEAR", "", (0, 0), 0
        self.module = self.names = None

    def get_tensor_name(self, index):
        return ("input", "logits")[index]

    def get_tensor_mode(self, name):
        modes = self.module.TensorIOMode
        return modes.INPUT if name == "input" else modes.OUTPUT

    def get_tensor_shape(self, name):
        return self.shape

    def get_tensor_profile_shape(self, name, index):
        return [tuple(n if d == -1 else d for d in self.shape) for n in (1, 2, 4)]

    def get_tensor_dtype(self, name):
        return self.module.DataType[self.kind]

    def get_tensor_format(self, name):
        return self.module.TensorFormat[self.layout]

    def get_tensor_vectorized_dim(self, name):
        return -1 if self.layout == "LINEAR" else 1

    def get_tensor_components_per_element(self, name):
        return 8

    def create_execution_context(self):
        if self.refuses == "memory":
            return None
        return Strict(self.names, "IExecutionContext", FakeContext(self))


class FakeContext:
    def __init__(self, engine):
        self.engine, self.addresses, self.shape = engine, {}, engine.shape

    def set_input_shape(self, name, shape):
        self.shape = shape
        return shape[1:] == self.engine.shape[1:]

    def get_tensor_shape(self, name):
        return self.shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        engine, runtime = self.engine, self.engine.runtime
        assert stream == 11
        runtime.calls.append("enqueue")
        if engine.refuses == "run" or set(self.addresses) != {"input", "logits"}:
            return False
        if engine.refuses == "capture" and runtime.recorded is not None:
            runtime.lost = True  # by whatever it tried to do
            return False
        runtime.work(self.run, engine.run_ms)
        return True

    def run(self):
        engine = self.engine
        engine.runs += 1
        if engine.fault[1] == engine.runs:
            engine.runtime.dead = engine.fault[0]
        dtype = np.dtype(NUMPY[engine.kind])
        size = int(np.prod(self.shape)) * dtype.itemsize
        values = np.frombuffer(ctypes.string_at(self.addresses["input"], size), dtype)
        doubled = (values + values).tobytes()
        ctypes.memmove(self.addresses["logits"], doubled, size)


class FakeRuntime:
    """Loads one engine."""

    def __init__(self, engine, logger):
        self.engine, self.logger = engine, logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan):
        if plan != ENGINE:
            severity = self.engine.module.ILogger.Severity
            self.logger.log(severity.ERROR, "Serialization assertion failed: versions differ")
            return None
        return Strict(self.engine.names, "ICudaEngine", self.engine)


def fake_library(engine, version="10.3.0"):
    """Returns TensorRT of a version that loads one engine."""
    engine.module, engine.names = fake_tensorrt(version), Names(version)
    engine.module.Runtime = lambda logger: Strict(
        engine.names, "Runtime", FakeRuntime(engine, logger)
    )
    return TensorRTApi(engine.module, "tensorrt")
