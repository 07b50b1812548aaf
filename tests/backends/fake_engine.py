"""A TensorRT that only loads engines and runs them on a fake CUDA runtime."""

import ctypes
from enum import IntEnum
from types import SimpleNamespace

import numpy as np

from trt_layermerge.backends.tensorrt_api import TensorRTApi

DataType = IntEnum("DataType", ("FLOAT", "HALF", "INT8", "INT32", "BOOL", "BF16"))
TensorFormat = IntEnum("TensorFormat", ("LINEAR", "HWC8"))
TensorIOMode = IntEnum("TensorIOMode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2})
NUMPY = {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT8: np.int8}
NUMPY |= {DataType.INT32: np.int32, DataType.BOOL: np.bool_}


class FakeEngine:
    """Takes ``input`` and gives ``logits`` of the same shape and type, doubled.

    Attributes:
        shape: As built; -1 is dynamic, from 1 over 2 to 4.
        run_ms: What a run takes.
        refuses: ``capture``, ``run`` or ``memory``: what it cannot do.
        fault: Status that the runtime has from the run of that number on, and the number.
    """

    num_io_tensors = 2

    def __init__(self, runtime, *, shape=(1, 2, 3, 3), kind=DataType.FLOAT, run_ms=0.25):
        self.runtime, self.shape, self.kind, self.run_ms = runtime, shape, kind, run_ms
        self.layout, self.refuses, self.fault, self.runs = TensorFormat.LINEAR, "", (0, 0), 0

    def get_tensor_name(self, index):
        return ("input", "logits")[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name == "input" else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name):
        return self.shape

    def get_tensor_profile_shape(self, name, index):
        return [tuple(n if d == -1 else d for d in self.shape) for n in (1, 2, 4)]

    def get_tensor_dtype(self, name):
        return self.kind

    def get_tensor_format(self, name):
        return self.layout

    def get_tensor_vectorized_dim(self, name):
        return -1 if self.layout == TensorFormat.LINEAR else 1

    def get_tensor_components_per_element(self, name):
        return 8

    def create_execution_context(self):
        if self.refuses == "memory":
            return None
        return FakeContext(self)


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
        if engine.refuses == "run" or (
            engine.refuses == "capture" and runtime.recorded is not None
        ):
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


class Log:
    def errors(self):
        return "it says: versions differ"


def fake_library(engine):
    """Returns a library that loads one engine, from the plan ``b"an engine"``."""

    class Runtime:
        def __init__(self, log):
            pass

        def deserialize_cuda_engine(self, plan):
            return engine if plan == b"an engine" else None

    module = SimpleNamespace(__version__="10.3.0", Runtime=Runtime, TensorIOMode=TensorIOMode)

    class Library(TensorRTApi):
        def logger(self, on_log=None):
            return Log()

    return Library(module, "tensorrt")
