"""What differs between TensorRT 8.6, 10, 11 and TensorRT-RTX: the one file that imports them.

Flags and enumerations are taken where they exist and never by number: ``STRONGLY_TYPED`` is bit 1
in TensorRT 10 and bit 0 in 11 and RTX. Run here: RTX 1.7. TensorRT 8.6, 10 and 11 are covered by
fakes that know the names of their Python bindings, and no others.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Iterator, Literal, get_args

from trt_layermerge.backends.tensorrt_log import BuildLog
from trt_layermerge.core.device import Precision
from trt_layermerge.errors import (
    DeviceError,
    MissingDependencyError,
    UnsupportedModelError,
    UsageError,
)

if TYPE_CHECKING:
    import tensorrt as trt

Flavor = Literal["tensorrt", "tensorrt_rtx"]
FLAVORS: tuple[Flavor, ...] = get_args(Flavor)

# A weakly typed builder may use a precision, and takes it where it is faster. OBEY_ and
# PREFER_PRECISION_CONSTRAINTS would change nothing: they concern layers whose precision was set
# by hand, and the parser sets none.
_WEAK_FLAGS: dict[Precision, tuple[str, ...]] = {
    "fp32": (),
    "fp16": ("FP16",),
    "int8": ("INT8", "FP16"),
}
_TYPES = {"FLOAT", "HALF", "INT8", "UINT8", "INT32", "INT64", "BOOL"}
_NEEDS = {"BF16": "8.0", "FP8": "8.9", "FP4": "10.0"}
# What may lie beside plain rows in memory, by type, as TensorRT documents it for four dimensions.
_FORMATS = {
    "FLOAT": ("LINEAR", "CHW32", "HWC"),
    "HALF": ("LINEAR", "CHW2", "CHW4", "CHW32", "HWC8", "HWC16"),
}


@dataclass(frozen=True)
class TensorRTApi:
    """One imported library, ``flavor``, with its differences from the others evened out."""

    module: Any
    flavor: Flavor

    @property
    def version(self) -> str:
        """The version of the library."""
        return str(self.module.__version__)

    @property
    def strongly_typed(self) -> bool:
        """Whether the types in the graph decide the precision; else builder flags allow it."""
        return hasattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    def network_flags(self) -> int:
        """Returns the bits for ``create_network``: explicit batch and strong typing."""
        flags = self.module.NetworkDefinitionCreationFlag
        names = (n for n in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(flags, n))
        bits = 0
        for name in names:
            bits |= 1 << int(getattr(flags, name))
        return bits

    def allow_precision(self, config: trt.IBuilderConfig, precision: Precision) -> str:
        """Sets what a weakly typed builder needs to use a precision; returns it in words."""
        if self.strongly_typed:
            return "strong"
        for name in _WEAK_FLAGS[precision]:
            config.set_flag(getattr(self.module.BuilderFlag, name))
        return " ".join(["weak", *_WEAK_FLAGS[precision]])

    def choose_capability(self, config: Any, no_gpu: str | None) -> str:
        """Targets the GPU at hand where the library wants to be told; returns the target in words.

        Args:
            config: The builder's configuration.
            no_gpu: Why there is no GPU to target, or None where there is one.

        Raises:
            DeviceError: If the library refuses the GPU.
        """
        if not hasattr(self.module, "ComputeCapability"):
            return "the GPU at hand"
        if no_gpu is not None:
            return f"default of the library ({no_gpu.partition(';')[0]})"
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(self.module.ComputeCapability.CURRENT, 0):
            raise DeviceError(
                f"{self.flavor} {self.version} does not support this GPU; "
                "use a GPU that it supports, or install tensorrt"
            )
        return "the GPU at hand"

    def set_tf32(self, config: trt.IBuilderConfig, allowed: bool) -> None:
        """Lets float32 convolutions round to TF32, or not; every version would by itself."""
        change = config.set_flag if allowed else config.clear_flag
        change(self.module.BuilderFlag.TF32)

    def set_level(self, config: trt.IBuilderConfig, level: int | None) -> int | None:
        """Sets how hard the builder tries; returns what holds, None where it cannot be told.

        Raises:
            UsageError: If a level is asked for, and the version knows none.
        """
        if not hasattr(config, "builder_optimization_level"):
            if level is not None:
                raise self._too_old("optimization_level", "choosing an optimisation level")
            return None
        if level is not None:
            config.builder_optimization_level = level
        return int(config.builder_optimization_level)

    def make_hardware_compatible(self, config: trt.IBuilderConfig, jetson: bool) -> None:
        """Lets the engine run on every GPU from Ampere on.

        Raises:
            UsageError: If the library cannot do that here.
        """
        if self.flavor == "tensorrt_rtx":
            raise UsageError(
                "TensorRT-RTX compiles its kernels on the GPU that runs them, so its engines are "
                "not bound to one GPU; leave build.options.hardware_compatible out"
            )
        if jetson:
            raise UsageError(
                "TensorRT builds no hardware-compatible engines on a Jetson; leave "
                "build.options.hardware_compatible out, and build on each kind of device"
            )
        if not hasattr(config, "hardware_compatibility_level"):
            raise self._too_old("hardware_compatible", "hardware compatibility")
        config.hardware_compatibility_level = self.module.HardwareCompatibilityLevel.AMPERE_PLUS

    def make_version_compatible(self, config: trt.IBuilderConfig) -> None:
        """Lets newer versions of the library load the engine.

        Raises:
            UsageError: If the library cannot do that.
        """
        if self.flavor == "tensorrt_rtx":
            raise UsageError(
                "TensorRT-RTX comes without the lean runtime that a version-compatible engine "
                "carries inside; leave build.options.version_compatible out"
            )
        if not hasattr(self.module.BuilderFlag, "VERSION_COMPATIBLE"):
            raise self._too_old("version_compatible", "version compatibility")
        config.set_flag(self.module.BuilderFlag.VERSION_COMPATIBLE)

    def free_formats(self, tensor: trt.ITensor) -> tuple[str, ...]:
        """Lets an input or output lie in memory as is fastest; returns the formats it may have."""
        names = _FORMATS.get(str(tensor.dtype.name), ())
        if len(tuple(tensor.shape)) != 4 or not names:
            return ("LINEAR",)
        bits = 0
        for name in names:
            bits |= 1 << int(getattr(self.module.TensorFormat, name))
        tensor.allowed_formats = bits
        return names

    def parser_errors(self, parser: trt.OnnxParser) -> list[tuple[str, str]]:
        """Returns code and text of every parser error, the text naming node and operator."""
        return [_error_words(parser.get_error(i)) for i in range(parser.num_errors)]

    def known_parts(self, parser: trt.OnnxParser, model: bytes) -> str:
        """Returns how much of a refused network a fresh parser knows; empty where it is too old.

        Once a node is refused, the parser calls no part supported; the parts that it lists are
        the stretches of nodes between those that it does not know.
        """
        if not hasattr(parser, "supports_model_v2"):
            return ""
        parser.supports_model_v2(model)
        parts = [parser.get_subgraph_nodes(i) for i in range(parser.num_subgraphs)]
        nodes = sum(len(part) for part in parts)
        return f"it knows {nodes} other nodes, in {len(parts)} pieces" if nodes else ""

    def network_types(self, network: trt.INetworkDefinition) -> tuple[str, ...]:
        """Returns the names of the types that occur in a parsed network, sorted.

        Raises:
            UnsupportedModelError: If one is beyond what this version builds; names its layer.
        """
        found = set()
        for place, dtype in _types(network):
            if dtype not in _TYPES:
                needs = _NEEDS.get(dtype)
                raise UnsupportedModelError(
                    f"{place} is typed {dtype}, "
                    + (
                        f"which needs a GPU of compute capability {needs} or newer, "
                        if needs
                        else ""
                    )
                    + "and this version writes and builds fp32, fp16 and int8 only; give the "
                    "network in one of these (--precision fp16)"
                )
            found.add(dtype)
        return tuple(sorted(found))

    def network_precision(self, network: trt.INetworkDefinition) -> Precision:
        """Returns what the types of a parsed network say it is.

        Raises:
            UnsupportedModelError: If a type is beyond what this version builds.
        """
        types = self.network_types(network)
        layers = (network.get_layer(i) for i in range(network.num_layers))
        if any(layer.type == self.module.LayerType.DEQUANTIZE for layer in layers):
            return "int8"
        return "fp16" if "HALF" in types else "fp32"

    def logger(self) -> BuildLog:
        """Returns what collects everything above verbose that the library says from now on."""
        return BuildLog(self.module)

    def _too_old(self, option: str, what: str) -> UsageError:
        return UsageError(
            f"{what} came with TensorRT 8.6, this is {self.flavor} {self.version}; leave "
            f"build.options.{option} out"
        )


def _types(network: trt.INetworkDefinition) -> Iterator[tuple[str, str]]:
    """Yields place and type of every input and of every layer's outputs."""
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        yield f"input {tensor.name!r}", str(tensor.dtype.name)
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        for k in range(layer.num_outputs):
            yield f"layer {layer.name!r}", str(layer.get_output(k).dtype.name)


def load_api(flavor: str | None = None) -> TensorRTApi:
    """Returns a library by name, or TensorRT where it works and TensorRT-RTX where it does not.

    Raises:
        UsageError: If there is no such library; nothing else is ever imported.
        MissingDependencyError: If none is installed.
        DeviceError: If one is installed, but cannot be imported.
    """
    names = [name for name in FLAVORS if flavor in (None, name)]
    if not names:
        raise UsageError(f"{flavor!r:.99} builds no engines; choose one of {', '.join(FLAVORS)}")
    broken: list[str] = []
    for name in names:
        if find_spec(name) is None:
            continue
        try:
            return TensorRTApi(import_module(name), name)
        except (ImportError, OSError, RuntimeError) as error:
            broken.append(f"{name}: {error}")
    if broken:
        raise DeviceError(
            f"TensorRT is installed, but cannot be imported ({'; '.join(broken)}); its libraries "
            "must match it: reinstall it, on a Jetson from JetPack and never from pip"
        )
    package = flavor or "tensorrt"
    raise MissingDependencyError(package, "building engines", package.replace("_", "-"))


def _error_words(parser_error: trt.ParserError) -> tuple[str, str]:
    """Returns code and text of one error; names of nodes are known from TensorRT 10 on."""
    code = str(parser_error.code().name)
    name = parser_error.node_name() if hasattr(parser_error, "node_name") else ""
    operator = parser_error.node_operator() if hasattr(parser_error, "node_operator") else ""
    index = parser_error.node()
    place = f"node {name or index!r}" + (f" ({operator})" if operator else "")
    text = " ".join(str(parser_error.desc()).split())[:300]
    return code, f"{place}: {text}" if name or index >= 0 else text
