"""Tiny data and networks for the fine-tuning tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.data.conftest import make_data as make_data


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
