"""The CUDA runtime through cuda-python, also called cuda-bindings."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from trt_layermerge.backends.cuda import Cuda
from trt_layermerge.errors import DeviceError, MissingDependencyError


def open_cuda() -> Cuda:
    """Returns the GPU.

    Raises:
        MissingDependencyError: If cuda-python is not installed.
        DeviceError: If it does not import, or there is no driver or no GPU.
    """
    return Cuda(_runtime(), "cuda-python")


def _runtime() -> Any:
    try:
        try:
            return import_module("cuda.bindings.runtime")
        except ModuleNotFoundError:  # where it was before version 12.6
            return import_module("cuda.cudart")
    except ModuleNotFoundError as error:
        raise MissingDependencyError("cuda-python", "running engines on a GPU", "cuda") from error
    except (ImportError, RuntimeError) as error:
        raise DeviceError(
            f"cuda-python is installed, but does not import ({error}); its version must fit the "
            "driver's CUDA: pip install --upgrade 'cuda-python==12.*', for example"
        ) from error
