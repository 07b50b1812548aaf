"""Stand-ins for TensorRT 8.6 to 11.4 that have the names of the real Python bindings and no others.

``tensorrt_names.json`` lists the names of every version, read from the bindings themselves
(``benchmarks/tensorrt_names.py``). Using a name that a version lacks is an ``AttributeError``, as
it is there; using one that it has and that the fake does not play is a ``NotImplementedError``.
TensorRT 8.5, whose bindings could not be read, is 8.6 without what 8.6 brought, after its release
notes.

The "model" that the parser reads is a line of words: ``half``, ``int8``, ``fp8``, ``bf16``,
``dynamic``, ``odd``, ``junk``, ``unbuildable``, ``hungry`` and ``raising`` change what happens.
"""

from __future__ import annotations

import json
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

TABLE = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text())
VERSIONS = tuple(TABLE["versions"])
TENSORRT = VERSIONS[:-1]
"""The versions of TensorRT proper; the last one is TensorRT-RTX."""

NEW_IN_8_6 = {
    "IBuilderConfig": {"builder_optimization_level", "hardware_compatibility_level"},
    "BuilderFlag": {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"},
    "Runtime": {"engine_host_code_allowed"},
    "module": {"HardwareCompatibilityLevel"},
}
ENGINE = b"an engine"


class Names:
    """What one version has."""

    def __init__(self, version: str) -> None:
        self.old = version.startswith("8.5")
        self.index = 0 if self.old else VERSIONS.index(version)

    def of(self, kind: str) -> set[str]:
        """Returns the attributes of a class, or of the module."""
        rows = TABLE["module"] if kind == "module" else TABLE["classes"][kind]
        return {n for n, bits in rows.items() if bits[self.index] == "1"} - self._gone(kind)

    def enumeration(self, kind: str) -> Any:
        """Returns an enumeration with the values of this version."""
        rows = {n: values[self.index] for n, values in TABLE["enumerations"][kind].items()}
        gone = self._gone(kind)
        return IntEnum(kind, {n: v for n, v in rows.items() if v is not None and n not in gone})

    def _gone(self, kind: str) -> set[str]:
        return NEW_IN_8_6.get(kind, set()) if self.old else set()


class Strict:
    """Lets through what the real class has, and refuses everything else."""

    def __init__(self, names: Names, kind: str, actor: Any) -> None:
        self.__dict__.update(_allowed=names.of(kind), _kind=kind, actor=actor)

    def __getattr__(self, name: str) -> Any:
        self._check(name)
        if not hasattr(self.actor, name):
            raise NotImplementedError(f"the fake does not play {self._kind}.{name}")
        return getattr(self.actor, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._check(name)
        setattr(self.actor, name, value)

    def _check(self, name: str) -> None:
        if name not in self._allowed:
            raise AttributeError(f"{self._kind} of this version has no attribute {name!r}")


class ILogger:
    """A base class that does nothing."""


class TimingCache:
    """A cache whose content is a set of words."""

    def __init__(self, data):
        self.words = set(bytes(data).decode().split())

    def combine(self, other, ignore_mismatch):
        assert ignore_mismatch is False
        self.words |= other.actor.words
        return True

    def serialize(self):
        return memoryview(" ".join(sorted(self.words)).encode())


class Config:
    """A configuration that remembers what it was told; TF32 is on until it is cleared."""

    def __init__(self, module, names, measured):
        self.module, self.names, self.measured = module, names, measured
        self.on, self.pools, self.profiles, self.cache = {"TF32"}, {}, [], None
        self.builder_optimization_level = 3
        self.hardware_compatibility_level = None

    def set_flag(self, flag):
        assert isinstance(flag, self.module.BuilderFlag)
        self.on.add(flag.name)

    def clear_flag(self, flag):
        self.on.discard(flag.name)

    def get_flag(self, flag):
        return flag.name in self.on

    def get_memory_pool_limit(self, pool):
        return self.pools.get(pool.name, self.module.total_memory)

    def set_memory_pool_limit(self, pool, size):
        self.pools[pool.name] = size

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.actor.shapes)
        return -1 if any(low > high for low, _, high in profile.actor.shapes.values()) else 0

    def create_timing_cache(self, data):
        if b"damaged" in bytes(data):
            return None
        return Strict(self.names, "ITimingCache", TimingCache(data))

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        self.cache = cache
        return "foreign" not in cache.actor.words

    def get_timing_cache(self):
        self.cache.actor.words.add(self.measured)
        return self.cache


class OptimizationProfile:
    """A profile that remembers its shapes."""

    def __init__(self):
        self.shapes = {}

    def set_shape(self, input, min, opt, max):
        self.shapes[input] = (min, opt, max)


class Network:
    """A network of one layer, typed by the words of its model."""

    num_inputs = 1
    TYPES = (("fp8", "FP8"), ("bf16", "BF16"), ("half", "HALF"))

    def __init__(self, module, names, creation_flags):
        self.module, self.names, self.creation_flags = module, names, creation_flags
        self.words, self.num_layers, self.num_outputs, self.tensors = (), 0, 0, {}

    def get_layer(self, index):
        kinds, types = self.module.LayerType, self.module.DataType
        name = next((t for word, t in self.TYPES if word in self.words), "FLOAT")
        output = Strict(self.names, "ITensor", SimpleNamespace(dtype=getattr(types, name)))
        layer = SimpleNamespace(
            name="conv1",
            type=kinds.DEQUANTIZE if "int8" in self.words else kinds.CONVOLUTION,
            num_outputs=1,
            get_output=lambda _: output,
        )
        return Strict(self.names, "ILayer", layer)

    def get_input(self, index):
        return self._tensor("input", (-1 if "dynamic" in self.words else 1, 2, 3, 3))

    def get_output(self, index):
        return self._tensor("logits", (1, 2, 3, 3))

    def _tensor(self, name, shape):
        plain = SimpleNamespace(
            name=name, shape=shape, dtype=self.module.DataType.FLOAT, allowed_formats=None
        )
        return self.tensors.setdefault(name, Strict(self.names, "ITensor", plain))


class Parser:
    """Reads words; ``odd`` is a node that it does not know."""

    def __init__(self, module, names, network):
        self.module, self.names, self.network = module, names, network.actor
        self.errors = []

    @property
    def num_errors(self):
        return len(self.errors)

    def parse(self, model):
        self.network.words = model.decode().split()
        for word, code in (("odd", "INVALID_NODE"), ("junk", "MODEL_DESERIALIZE_FAILED")):
            if word in self.network.words:
                self.errors.append(getattr(self.module.ErrorCode, code))
        if self.errors:
            return False
        self.network.num_layers = self.network.num_outputs = 1 if self.network.words else 0
        return True

    def get_error(self, index):
        words = {"desc": "no importer", "node": 4, "node_name": "layer4", "node_operator": "Odd"}
        told = {name: (lambda text=text: text) for name, text in words.items()}
        code = self.errors[index]
        return Strict(self.names, "ParserError", SimpleNamespace(code=lambda: code, **told))

    def supports_model_v2(self, model):
        return False

    num_subgraphs = 2

    def get_subgraph_nodes(self, index):
        return ([0, 1, 2, 3], [5, 6])[index]


class Builder:
    """Builds nothing, and writes down what it was given."""

    def __init__(self, module, names, logger):
        self.module, self.names, self.logger = module, names, logger

    def create_network(self, flags=0):
        creation = self.module.NetworkDefinitionCreationFlag
        assert not flags & ~sum(1 << int(f) for f in creation), "a bit that means nothing"
        if hasattr(creation, "EXPLICIT_BATCH") and not hasattr(creation, "STRONGLY_TYPED"):
            assert flags & 1 << int(creation.EXPLICIT_BATCH), "implicit batch: no ONNX there"
        network = Network(self.module, self.names, flags)
        return Strict(self.names, "INetworkDefinition", network)

    def create_builder_config(self):
        config = Config(self.module, self.names, f"kernel{len(self.module.built)}")
        return Strict(self.names, "IBuilderConfig", config)

    def create_optimization_profile(self):
        return Strict(self.names, "IOptimizationProfile", OptimizationProfile())

    def build_serialized_network(self, network, config):
        words, severity = network.actor.words, self.module.ILogger.Severity
        self.module.built.append((network.actor, config.actor))
        self.module.before_build()
        self.logger.log(severity.VERBOSE, "a detail")
        if "unbuildable" in words:
            self.logger.log(severity.ERROR, "Could not find any implementation for node conv1")
            return None
        if "hungry" in words:
            self.logger.log(severity.ERROR, "[defaultAllocator.cpp] Cuda failure: out of memory")
            return None
        if "raising" in words:
            raise MemoryError("std::bad_alloc")
        self.logger.log(severity.WARNING, "a warning")
        return memoryview(ENGINE)


def fake_tensorrt(version):
    """Returns a module-like object of a version.

    ``built`` collects networks and configurations, ``no_gpu`` makes the builder fail to start,
    ``total_memory`` is its default workspace, and ``before_build`` is called as it starts.
    """
    names = Names(version)
    module = ModuleType("tensorrt")
    module.__version__, module.built, module.before_build = version, [], lambda: None
    module.no_gpu, module.total_memory = False, 8 << 30

    def start_builder(logger):
        if module.no_gpu:
            logger.log(severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return Strict(names, "Builder", Builder(module, names, logger))

    severity = IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)
    logger_class = type("ILogger", (ILogger,), {"Severity": severity})
    halves = {"FLOAT": np.float32, "HALF": np.float16}
    content = {
        "ILogger": logger_class,
        "Builder": start_builder,
        "OnnxParser": lambda n, _: Strict(names, "OnnxParser", Parser(module, names, n)),
        "nptype": lambda kind: halves[kind.name],
        **{kind: names.enumeration(kind) for kind in TABLE["enumerations"]},
    }
    for name in names.of("module") & content.keys():
        setattr(module, name, content[name])
    return module
