"""Devices that torch computes on, by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

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


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Convolutions in float32 on a GPU, which would round to ten bits (TF32) where they may."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@contextmanager
def lent(device: str, *networks: nn.Module) -> Iterator[torch.device]:
    """Moves networks from the CPU to a device for a while, and computes there in float32.

    Args:
        device: Its name.
        networks: What is moved, in place, and back again whatever happens.

    Raises:
        UsageError: If torch does not know such a name.
        DeviceError: If this machine has no such device.
    """
    there = device_named(device)
    try:
        for network in networks:
            network.to(there)
        with exact(there):
            yield there
    finally:
        for network in networks:
            network.cpu()
