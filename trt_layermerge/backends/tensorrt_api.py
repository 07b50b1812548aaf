"""What differs between TensorRT 8.6, 10, 11 and TensorRT-RTX: the one file that imports them.

Flags and enumerations are taken where they exist and never by number: ``STRONGLY_TYPED`` is bit 1
in TensorRT 10 and bit 0 in RTX. Run here: RTX 1.7. TensorRT 8.6, 10 and 11 are covered by fakes
built from their documentation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from trt_layermerge.core.device import Precision
from trt_layermerge.errors import DeviceError, MissingDependencyError

FLAVORS = ("tensorrt", "tensorrt_rtx")

_WEAK_FLAGS: dict[Precision, tuple[str, ...]] = {
    "fp32": (),
    "fp16": ("FP16",),
    "int8": ("INT8", "FP16"),
}


@dataclass(frozen=True)
class TensorRTApi:
    """One imported library, ``tensorrt`` or ``tensorrt_rtx``, with its differences evened out.

    Attributes:
        module: The imported module.
        flavor: Its name.
    """

    module: Any
    flavor: str

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

    def allow_precision(self, config: Any, precision: Precision) -> str:
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

    def uses_tf32(self, config: Any) -> bool:
        """Returns whether float32 may run as TF32; the library's own default is kept."""
        flag = getattr(self.module.BuilderFlag, "TF32", None)
        return flag is not None and bool(config.get_flag(flag))

    def parser_errors(self, parser: Any) -> list[tuple[str, str]]:
        """Returns code and text of every parser error, the text naming node and operator."""
        return [_error_words(parser.get_error(i)) for i in range(parser.num_errors)]

    def network_precision(self, network: Any) -> Precision:
        """Returns what the types of a parsed network say it is."""
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        if any(layer.type == self.module.LayerType.DEQUANTIZE for layer in layers):
            return "int8"
        halves = (
            layer.get_output(k).dtype == self.module.DataType.HALF
            for layer in layers
            for k in range(layer.num_outputs)
        )
        return "fp16" if any(halves) else "fp32"

    def logger(self, on_log: Callable[[str], None] | None = None) -> Any:
        """Returns a logger whose ``lines`` collect everything above verbose.

        Most errors of TensorRT show up nowhere else.
        """
        return _logger_class(self.module)(on_log)


def load_api(flavor: str | None = None) -> TensorRTApi:
    """Returns a library by name, or TensorRT where it works and TensorRT-RTX where it does not.

    Raises:
        MissingDependencyError: If none is installed.
        DeviceError: If one is installed, but cannot be imported.
    """
    broken: list[str] = []
    for name in (flavor,) if flavor else FLAVORS:
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


def _error_words(error: Any) -> tuple[str, str]:
    """Returns code and text of one error; names of nodes are known from TensorRT 10 on."""
    code = str(error.code().name)
    name = error.node_name() if hasattr(error, "node_name") else ""
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    index = error.node()
    place = f"node {name or index!r}" + (f" ({operator})" if operator else "")
    text = " ".join(str(error.desc()).split())[:300]
    return code, f"{place}: {text}" if name or index >= 0 else text


def _logger_class(module: Any) -> Any:
    class BuildLog(module.ILogger):  # type: ignore[misc]
        def __init__(self, on_log: Callable[[str], None] | None) -> None:
            module.ILogger.__init__(self)
            self.lines: list[str] = []
            self._on_log = on_log

        def log(self, severity: Any, message: str) -> None:
            if severity.name == "VERBOSE":
                return
            line = f"{severity.name}: {message}"
            self.lines.append(line)
            if self._on_log is not None:
                self._on_log(line)

        def errors(self) -> str:
            """Returns the last errors in one line."""
            found = [m for m in self.lines if m.startswith(("ERROR", "INTERNAL_ERROR"))]
            return " | ".join(found[-3:]) or "it gave no reason"

    return BuildLog
