"""Small stand-ins for TensorRT 8.6, 10 and 11 and for a CUDA runtime, faithful in names and flags.

Names, values and what is absent follow the public documentation. The "model" that the parser reads
is a line of text: ``half``, ``int8``, ``dynamic``, ``odd`` and ``unbuildable`` change what happens.
"""

import ctypes
from enum import IntEnum
from types import SimpleNamespace

import numpy as np

FLAGS = {
    "8.6.2": {"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1},
    "10.3.0": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
    "11.1.0": {"STRONGLY_TYPED": 1},
}
BUILDER_FLAGS = {
    "8.6.2": ("FP16", "INT8", "TF32", "PREFER_PRECISION_CONSTRAINTS"),
    "10.3.0": ("FP16", "INT8", "TF32", "BF16"),
    "11.1.0": ("TF32", "EDITABLE_TIMING_CACHE"),
}


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    pass


class Code(IntEnum):
    INVALID_NODE = 6


class ParserError:
    def code(self):
        return Code.INVALID_NODE

    def desc(self):
        return "no importer"

    def node(self):
        return 4


class NamedParserError(ParserError):
    """From TensorRT 10 on."""

    def node_name(self):
        return "layer4"

    def node_operator(self):
        return "Odd"


class Config:
    def __init__(self):
        self.flags, self.pools, self.profiles = set(), {}, []

    def set_flag(self, flag):
        self.flags.add(flag.name)

    def get_flag(self, flag):
        return flag.name == "TF32"

    def set_memory_pool_limit(self, pool, size):
        self.pools[pool] = size

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.shapes)
        return -1 if any(low > high for low, _, high in profile.shapes.values()) else 0


class OptimizationProfile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, low, usual, high):
        self.shapes[name] = (low, usual, high)


class Context:
    """Doubles its input; knows device memory only by address."""

    def __init__(self, count):
        self.count, self.addresses = count, {}

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        size = ctypes.sizeof(ctypes.c_float) * self.count
        read = ctypes.string_at(self.addresses["input"], size)
        doubled = (2 * np.frombuffer(read, np.float32)).tobytes()
        ctypes.memmove(self.addresses["logits"], doubled, size)
        return stream == 11


class Engine:
    num_io_tensors = 2

    def __init__(self, module):
        self.module = module

    def get_tensor_name(self, index):
        return ("input", "logits")[index]

    def get_tensor_mode(self, name):
        modes = self.module.TensorIOMode
        return modes.INPUT if name == "input" else modes.OUTPUT

    def get_tensor_shape(self, name):
        return (1, 2, 3, 3)

    def get_tensor_dtype(self, name):
        return self.module.DataType.FLOAT

    def create_execution_context(self):
        return Context(18)


def fake_tensorrt(version):
    """Returns a module-like object; ``built`` collects what its builder was given."""
    built = []
    creation = IntEnum("NetworkDefinitionCreationFlag", FLAGS[version])
    kinds = IntEnum("DataType", {"FLOAT": 0, "HALF": 1, "INT8": 2})
    layers = IntEnum("LayerType", {"CONVOLUTION": 0, "DEQUANTIZE": 1})

    class Network:
        num_inputs = 1

        def __init__(self, flags):
            self.flags, self.words, self.num_layers, self.num_outputs = flags, (), 0, 0

        def get_layer(self, index):
            kind = layers.DEQUANTIZE if "int8" in self.words else layers.CONVOLUTION
            dtype = kinds.HALF if "half" in self.words else kinds.FLOAT
            return SimpleNamespace(
                type=kind, num_outputs=1, get_output=lambda _: SimpleNamespace(dtype=dtype)
            )

        def get_input(self, index):
            batch = -1 if "dynamic" in self.words else 1
            return SimpleNamespace(name="input", shape=(batch, 2, 3, 3))

        def get_output(self, index):
            return SimpleNamespace(name="logits", shape=(1, 2, 3, 3))

    class OnnxParser:
        def __init__(self, network, logger):
            self.network, self.num_errors = network, 0

        def parse(self, data):
            self.network.words = data.decode().split()
            if "odd" in self.network.words:
                self.num_errors = 1
                return False
            self.network.num_layers = self.network.num_outputs = 1
            return True

        def get_error(self, index):
            return ParserError() if version.startswith("8") else NamedParserError()

    class Builder:
        def __init__(self, logger):
            self.logger = logger
            if module.no_gpu:
                logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags):
            return Network(flags)

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return OptimizationProfile()

        def build_serialized_network(self, network, config):
            built.append((network.flags, config))
            self.logger.log(Severity.VERBOSE, "a detail")
            if "unbuildable" in network.words:
                self.logger.log(Severity.ERROR, "Could not find any implementation for node conv1")
                return None
            self.logger.log(Severity.WARNING, "a warning")
            return memoryview(b"an engine")

    class Runtime:
        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, plan):
            if plan != b"an engine":
                self.logger.log(Severity.ERROR, "Serialization assertion failed: versions differ")
                return None
            return Engine(module)

    module = SimpleNamespace(
        __version__=version,
        built=built,
        no_gpu=False,
        ILogger=ILogger,
        NetworkDefinitionCreationFlag=creation,
        BuilderFlag=IntEnum("BuilderFlag", BUILDER_FLAGS[version]),
        MemoryPoolType=IntEnum("MemoryPoolType", {"WORKSPACE": 0}),
        DataType=kinds,
        LayerType=layers,
        TensorIOMode=IntEnum("TensorIOMode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2}),
        Builder=Builder,
        OnnxParser=OnnxParser,
        Runtime=Runtime,
        nptype=lambda kind: {kinds.FLOAT: np.float32, kinds.HALF: np.float16}[kind],
    )
    return module


class FakeCudaRuntime:
    """A CUDA runtime whose device memory is host memory and whose every launch takes 0.25 ms."""

    cudaStreamNonBlocking, cudaEventDefault = 1, 0
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self, fails=()):
        self.fails, self.memory, self.events, self.clock = set(fails), {}, {}, 0.0
        self.streams = 0

    def __getattribute__(self, name):
        if name.startswith("cuda") and name in object.__getattribute__(self, "fails"):
            return lambda *_: (2, None)
        return object.__getattribute__(self, name)

    def cudaGetErrorString(self, status):
        return 0, b"out of memory"

    def cudaGetDeviceCount(self):
        return 0, 1

    def cudaGetDevice(self):
        return 0, 0

    def cudaGetDeviceProperties(self, device):
        return 0, SimpleNamespace(name=b"Fake Orin", major=8, minor=7)

    def cudaRuntimeGetVersion(self):
        return 0, 12060

    def cudaMalloc(self, size):
        buffer = ctypes.create_string_buffer(size)
        address = ctypes.addressof(buffer)
        self.memory[address] = buffer
        return 0, address

    def cudaFree(self, address):
        del self.memory[address]
        return (0,)

    def cudaMemcpy(self, target, source, size, kind):
        ctypes.memmove(target, source, size)
        return (0,)

    def cudaStreamCreateWithFlags(self, flags):
        self.streams += 1
        return 0, 11

    def cudaStreamDestroy(self, stream):
        self.streams -= 1
        return (0,)

    def cudaStreamSynchronize(self, stream):
        return (0,)

    def cudaEventCreateWithFlags(self, flags):
        handle = len(self.events) + 1
        self.events[handle] = None
        return 0, handle

    def cudaEventRecord(self, event, stream):
        self.events[event] = self.clock
        self.clock += 0.25
        return (0,)

    def cudaEventElapsedTime(self, start, end):
        return 0, self.events[end] - self.events[start]

    def cudaEventDestroy(self, event):
        self.events[event] = "destroyed"
        return (0,)
