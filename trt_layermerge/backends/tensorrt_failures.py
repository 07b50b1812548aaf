"""Why a network was not taken, or an engine not built: one paragraph each, with what to type."""

from __future__ import annotations

from trt_layermerge.backends.tensorrt_api import TensorRTApi
from trt_layermerge.backends.tensorrt_log import BuildLog
from trt_layermerge.backends.tensorrt_options import BuildOptions
from trt_layermerge.backends.tensorrt_site import BuildSite
from trt_layermerge.errors import (
    CorruptInputError,
    DeviceError,
    LayerMergeError,
    UnsupportedModelError,
)

LOW_MEMORY_BYTES = 1 << 30
"""With less than this free, a layer without any kernel is taken for a lack of memory."""

_OUT_OF_MEMORY = (
    "outofmemory",
    "out of memory",
    "bad_alloc",
    "cudaerrormemoryallocation",
    "insufficient memory",
    "requested amount of gpu memory",
    "workspace limit",
)
# What a builder says that found no kernel, which also happens where none fits into memory.
_NO_KERNEL = ("could not find any implementation for node", "no tactics to implement")


def cannot_parse(
    api: TensorRTApi, errors: list[tuple[str, str]], known: str, log: BuildLog
) -> LayerMergeError:
    """Returns the refusal of a network that the parser did not take.

    Args:
        api: The library.
        errors: Code and text of every error of the parser.
        known: What it knows of the network, in words, or nothing.
        log: What the library said.
    """
    if any(code == "MODEL_DESERIALIZE_FAILED" for code, _ in errors):
        return CorruptInputError("these bytes are no ONNX model; export the network again")
    words = "; ".join(f"{code} at {text}" for code, text in errors) or log.errors()
    return UnsupportedModelError(
        f"{api.flavor} {api.version} cannot take this network: {words}"
        + (f" ({known})" if known else "")
        + ". Replace the named operation, or keep the network on --backend onnxruntime"
    )


def cannot_build(
    api: TensorRTApi,
    log: BuildLog,
    options: BuildOptions,
    workspace_bytes: int,
    site: BuildSite,
    error: Exception | None = None,
) -> DeviceError:
    """Returns why a build failed; a lack of memory is told as one, also where it is disguised.

    Args:
        api: The library.
        log: What it said.
        options: What was asked for.
        workspace_bytes: The workspace that the builder had.
        site: What the build found around it.
        error: What it raised, or None.
    """
    said = f"{log.errors()}" + (f" ({error})" if error is not None else "")
    if not _memory_was_short(said.lower(), workspace_bytes, site.free_bytes):
        return DeviceError(
            f"{api.flavor} {api.version} could not build the engine: {said}. Type the same "
            "command again with -v for the whole log; if a node is named, try another precision "
            "(--precision fp32) or keep the network on --backend onnxruntime"
        )
    free = "an unknown amount" if site.free_bytes is None else _mib(site.free_bytes)
    bound = options.workspace_bytes
    chosen = bound is not None and workspace_bytes == bound
    return DeviceError(
        f"{api.flavor} {api.version} ran out of memory while it built the engine: {free} of "
        f"{site.memory} memory was free, and a layer could have {_mib(workspace_bytes)} of it: "
        f"{said}. "
        + ("Give more (build.options.workspace_mib) or leave that out; " if chosen else "")
        + "close other programs"
        + (
            ", on a Jetson the desktop too (sudo systemctl isolate multi-user.target),"
            if site.jetson
            else ""
        )
        + " or choose a smaller batch (--batch), and type the same command again"
    )


def _memory_was_short(said: str, workspace_bytes: int, free_bytes: int | None) -> bool:
    if any(words in said for words in _OUT_OF_MEMORY):
        return True
    least = workspace_bytes if free_bytes is None else min(workspace_bytes, free_bytes)
    return least < LOW_MEMORY_BYTES and any(words in said for words in _NO_KERNEL)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.0f} MiB"
