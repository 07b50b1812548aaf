"""Options -> the configuration of a builder, and the record of what was set.

Nothing is left to a default that differs between versions: TF32 is set either way, weights can
never be refitted, and the workspace is held to the memory that is free at this very moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict

from trt_layermerge.backends.tensorrt_api import TensorRTApi
from trt_layermerge.backends.tensorrt_options import BuildOptions, Profile, Shape
from trt_layermerge.backends.tensorrt_site import BuildSite
from trt_layermerge.core.device import Precision
from trt_layermerge.errors import UsageError

if TYPE_CHECKING:
    import tensorrt as trt

Settings = Dict[str, Any]

WORKSPACE_SHARE = 0.75
"""Most of the free memory that one layer may take; weights and activations need the rest."""


def configure(
    api: TensorRTApi,
    config: trt.IBuilderConfig,
    network: trt.INetworkDefinition,
    precision: Precision,
    options: BuildOptions,
    site: BuildSite,
) -> Settings:
    """Sets everything but profile and timing cache, and returns it as it stands in the sidecar.

    Args:
        api: The library.
        config: What is set, in place.
        network: The parsed network.
        precision: What its layers may compute in.
        options: What is asked for.
        site: What the build finds around it; its free memory bounds the workspace.

    Raises:
        UsageError: If this version, library or device lacks what is asked for.
        DeviceError: If the library refuses the GPU.
    """
    if options.hardware_compatible:
        api.make_hardware_compatible(config, site.jetson)
    if options.version_compatible:
        api.make_version_compatible(config)
    api.set_tf32(config, options.tf32)
    flags = api.module.BuilderFlag
    return {
        "typing": api.allow_precision(config, precision),
        "types": list(api.network_types(network)),
        "tf32": bool(config.get_flag(flags.TF32)),
        "refit": bool(config.get_flag(flags.REFIT)),
        "compute_capability": api.choose_capability(config, site.no_gpu),
        "optimization_level": api.set_level(config, options.optimization_level),
        "workspace_bytes": _clamp_workspace(api, config, options.workspace_bytes, site.free_bytes),
        "free_bytes": site.free_bytes,
        "memory": site.memory,
        "hardware_compatible": options.hardware_compatible,
        "version_compatible": options.version_compatible,
        "io_formats": _io_formats(api, network) if options.free_io_formats else "LINEAR",
    }


def add_profile(
    builder: trt.Builder,
    config: trt.IBuilderConfig,
    network: trt.INetworkDefinition,
    profile: Profile,
) -> None:
    """Adds the shapes that inputs with dynamic dimensions may have.

    Args:
        builder: Makes the profile.
        config: Where it is added, in place.
        network: The parsed network.
        profile: Smallest, usual and largest shape by input; empty for a network of fixed shapes.

    Raises:
        UsageError: If an input needs a profile and has none, or it does not fit the inputs.
    """
    inputs = input_shapes(network)
    unknown = sorted(set(profile) - set(inputs))
    if unknown:
        raise UsageError(f"the profile names {unknown}, but the inputs are {sorted(inputs)}")
    for name, shape in inputs.items():
        if -1 in shape and name not in profile:
            raise UsageError(
                f"input {name!r} has dynamic dimensions {shape}: give a profile with its smallest, "
                "usual and largest shape (build.max_batch), or export with a static batch"
            )
    if not profile:
        return
    shapes = builder.create_optimization_profile()
    for name, (smallest, usual, largest) in profile.items():
        shapes.set_shape(name, smallest, usual, largest)
    if config.add_optimization_profile(shapes) < 0:
        raise UsageError(f"the shapes {dict(profile)} do not fit the inputs {inputs}")


def input_shapes(network: trt.INetworkDefinition) -> dict[str, Shape]:
    """Returns the shape of every input by name; -1 where the profile decides."""
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    return {tensor.name: tuple(tensor.shape) for tensor in tensors}


def output_shapes(network: trt.INetworkDefinition) -> dict[str, Shape]:
    """Returns the shape of every output by name; -1 where the profile decides."""
    tensors = [network.get_output(i) for i in range(network.num_outputs)]
    return {tensor.name: tuple(tensor.shape) for tensor in tensors}


def _clamp_workspace(
    api: TensorRTApi, config: trt.IBuilderConfig, wanted: int | None, free: int | None
) -> int:
    """Sets and returns the workspace: what is asked for, or the default, if so much is free."""
    pool = api.module.MemoryPoolType.WORKSPACE
    limit = int(config.get_memory_pool_limit(pool)) if wanted is None else wanted
    if free is not None:
        limit = min(limit, _three_digits(int(free * WORKSPACE_SHARE)))
    config.set_memory_pool_limit(pool, limit)
    return limit


def _three_digits(size: int) -> int:
    """Returns a size rounded down to three binary digits.

    The limit stands in the engine. If it followed every change of the free memory, no engine would
    ever be the same bytes again.
    """
    step = 1 << max(size.bit_length() - 3, 0)
    return size // step * step


def _io_formats(api: TensorRTApi, network: trt.INetworkDefinition) -> dict[str, Any]:
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    return {tensor.name: list(api.free_formats(tensor)) for tensor in tensors}
