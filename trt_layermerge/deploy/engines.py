"""Engines that were built before: opened if they belong to their sidecars and to this machine."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from trt_layermerge.backends import Backend, Runner
from trt_layermerge.backends.tensorrt import load_engine
from trt_layermerge.backends.tensorrt_api import TensorRTApi, load_api
from trt_layermerge.core.device import DeviceInfo, Precision
from trt_layermerge.deploy.machine import this_machine
from trt_layermerge.deploy.sidecar import Identity, mismatch, read_engine
from trt_layermerge.errors import DeviceError


def fitting_engine(
    plan: Path, *, trust: bool = False, wanted: Identity | None = None
) -> tuple[bytes, TensorRTApi]:
    """Returns a serialised engine, the bytes that were checked, and the library to load it with.

    Args:
        plan: The engine's file.
        trust: Whether to load it without a matching sidecar.
        wanted: What the engine has to be; None where nothing tells.

    Raises:
        UsageError: If there is no such engine.
        UntrustedInputError: If its sidecar is missing or another engine's, or it is not the one
            that is wanted, unless ``trust`` is set.
        DeviceError: If it was built for another GPU or version, or its library is not here.
    """
    data, sidecar = read_engine(plan, trust=trust, wanted=wanted)
    api = load_api(sidecar.library if sidecar else None)
    if sidecar is not None:
        why = mismatch(sidecar, api.flavor, api.version, this_machine(), plan)
        if why is not None:
            raise DeviceError(why)
    return data, api


def open_engine(plan: Path, *, trust: bool = False, batch: int | None = None) -> Runner:
    """Returns a runner of an engine on the GPU at hand, for a batch or its usual one.

    Raises what ``fitting_engine`` raises, and ``UsageError`` where it does not take the batch.

    Args:
        plan: The engine's file.
        trust: Whether to load it without a matching sidecar.
        batch: Images per run, or None for its usual number.
    """
    return load_engine(*fitting_engine(plan, trust=trust), batch=batch)


class EngineFiles(Backend):
    """A backend that opens engines which were built and checked before, and builds the rest."""

    def __init__(self, backend: Backend, plans: Collection[bytes]) -> None:
        """Takes the TensorRT backend that builds, and what is a serialised engine already."""
        self.name = backend.name
        self.int8_fallback = backend.int8_fallback
        self._backend, self._plans = backend, plans

    def device(self) -> DeviceInfo:
        """Returns the GPU. Raises ``DeviceError``."""
        return self._backend.device()

    def precisions(self) -> tuple[Precision, ...]:
        """Returns what the backend says."""
        return self._backend.precisions()

    def open(self, model: bytes, *, seed: int = 0) -> Runner:
        """Returns a runner of an engine, or of an ONNX model. Raises ``DeviceError``."""
        if model in self._plans:
            return load_engine(model, load_api(self.name), seed=seed)
        return self._backend.open(model, seed=seed)
