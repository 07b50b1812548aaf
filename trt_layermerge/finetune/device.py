"""Devices that torch computes on, by name."""

from __future__ import annotations

import torch

from trt_layermerge.errors import DeviceError, UsageError


def layout_of(device: torch.device) -> torch.memory_format:
    """Returns the layout in which convolutions are trained fastest on a device.

    On a CPU that is channels last: depthwise convolutions gain most, and the repository's
    ``benchmarks`` tells how much.
    """
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def device_named(name: str) -> torch.device:
    """Returns a device that is there.

    Raises:
        UsageError: If torch does not know such a name.
        DeviceError: If this machine has no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"there is no device {name!r}; type cpu, cuda or cuda:1") from error
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(
            f"torch cannot compute on {name!r} here: {str(error).strip().splitlines()[0]}; choose "
            "another device, such as --device cpu"
        ) from error
    return device
