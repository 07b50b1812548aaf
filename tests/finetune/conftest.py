"""Tiny data and networks for the fine-tuning tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.finetune.helpers import PREPROCESS, save_images
from trt_layermerge.finetune.data import LabelledData, open_data


@pytest.fixture
def make_data(tmp_path: Path) -> Callable[..., LabelledData]:
    """Returns a function: number of images and seed to data."""

    def make(count: int = 40, seed: int = 0) -> LabelledData:
        path = tmp_path / f"data{count}-{seed}.npz"
        save_images(path, count, seed)
        return open_data(f"npz:{path}", PREPROCESS)

    return make


@pytest.fixture
def make_net() -> Callable[..., nn.Module]:
    """Returns a function: seed to a small network with BN and dropout."""

    def make(seed: int = 0) -> nn.Module:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1, bias=False),
                nn.BatchNorm2d(6),
                nn.ReLU(),
                nn.Dropout(0.2),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(6, 3),
            )

    return make
