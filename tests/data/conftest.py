"""Tiny data for the tests of the rooms ``data`` and ``finetune``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.helpers import PREPROCESS, save_images
from trt_layermerge.data import LabelledData, open_data


@pytest.fixture
def make_data(tmp_path: Path) -> Callable[..., LabelledData]:
    """Returns a function: number of images and seed to data."""

    def make(count: int = 40, seed: int = 0) -> LabelledData:
        path = tmp_path / f"data{count}-{seed}.npz"
        save_images(path, count, seed)
        return open_data(f"npz:{path}", PREPROCESS)

    return make
