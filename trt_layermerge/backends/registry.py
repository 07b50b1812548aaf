"""Backends by name, each imported when it is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

from trt_layermerge.backends.base import Backend
from trt_layermerge.core.device import Precision
from trt_layermerge.errors import UsageError

# Module and class of every backend, and the options that its name alone implies.
_HOMES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "onnxruntime": ("onnxruntime", "OnnxRuntimeBackend", {}),
    "torch": ("torch", "TorchBackend", {}),
    "tensorrt": ("tensorrt", "TensorRTBackend", {"flavor": "tensorrt"}),
    "tensorrt_rtx": ("tensorrt", "TensorRTBackend", {"flavor": "tensorrt_rtx"}),
    "fake": ("fake", "FakeBackend", {}),
}

BACKENDS: tuple[str, ...] = tuple(_HOMES)


def get_backend(name: str, **options: Any) -> Backend:
    """Returns a backend by name; ``options`` are those of its class, such as ``device="cuda"``.

    Raises:
        UsageError: If there is no such backend, or it has no such option.
        MissingDependencyError: If its package is not installed.
        DeviceError: If the package is there, but not what it needs to run.
    """
    factory, implied = _class(name)
    try:
        return cast(Backend, factory(**implied, **options))
    except TypeError as error:
        raise UsageError(f"the backend {name!r} cannot be made with {options}: {error}") from error


def int8_fallback(name: str) -> Precision:
    """Returns the float type of what int8 leaves in float, also where the backend cannot run.

    Raises:
        UsageError: If there is no such backend.
    """
    return cast(Precision, _class(name)[0].int8_fallback)


def _class(name: str) -> tuple[Any, dict[str, Any]]:
    if name not in _HOMES:
        raise UsageError(f"there is no backend {name!r}; choose one of {', '.join(BACKENDS)}")
    module, attribute, implied = _HOMES[name]
    return getattr(import_module(f"trt_layermerge.backends.{module}"), attribute), implied
