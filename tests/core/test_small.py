"""Activations, devices and preprocessing: small types with exact round trips."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_layermerge.core.activation import PARAMETERS, activation_name, parse_activation
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.preprocess import Preprocess


@given(st.sampled_from(sorted(PARAMETERS)), st.data())
def test_activation_names_come_back_exactly(kind: str, data: st.DataObject) -> None:
    number = st.floats(allow_nan=False, allow_infinity=False)
    values = data.draw(st.lists(number, min_size=PARAMETERS[kind], max_size=PARAMETERS[kind]))
    assert parse_activation(activation_name(kind, *values)) == (kind, tuple(values))


@pytest.mark.parametrize("name", ["swish", "relu:1", "elu", "elu:x", "hardtanh:1", ""])
def test_unknown_activations_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown activation|could not convert"):
        parse_activation(name)


def test_a_device_comes_back() -> None:
    device = DeviceInfo("onnxruntime", "1.2", "A CPU", "1 thread")
    assert DeviceInfo.from_json(device.to_json()) == device
    assert str(device) == "A CPU (onnxruntime 1.2, 1 thread)"


def test_a_power_mode_makes_another_device() -> None:
    device = DeviceInfo("tensorrt", "10.3", "Orin", "compute capability 8.7")
    slow = device.in_mode("15W")
    assert slow.settings == "compute capability 8.7, power mode 15W"
    assert slow != device.in_mode("MAXN") and slow != device == device.in_mode(None)
    assert DeviceInfo("a", "1", "b").in_mode("15W").settings == "power mode 15W"


def test_preprocessing_by_hand() -> None:
    images = np.arange(2 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 2, 3, 3)
    prepare = Preprocess(scale=0.5, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0))
    result = prepare(images)
    assert result.shape == (2, 3, 2, 3)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    n, row, column, channel = 1, 0, 2, 2
    expected = (images[n, row, column, channel] * 0.5 - 3.0) / 4.0
    assert result[n, channel, row, column] == expected  # powers of two: exact in float32
