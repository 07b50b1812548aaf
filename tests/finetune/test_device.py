"""Devices by name: those that are there, and those that are not."""

from __future__ import annotations

import pytest
import torch

from trt_layermerge.errors import DeviceError, UsageError
from trt_layermerge.finetune.device import device_named


def test_the_processor_is_always_there() -> None:
    assert device_named("cpu") == torch.device("cpu")


def test_a_name_that_torch_does_not_know_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no device 'gpu7'; type cpu"):
        device_named("gpu7")


def test_a_device_that_is_not_there_is_told_from_a_wrong_name() -> None:
    with pytest.raises(DeviceError, match=r"cannot compute on 'cuda:99' here: .*--device cpu"):
        device_named("cuda:99")
