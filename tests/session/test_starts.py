"""How many images are repaired at a time: few where values are large."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.tables import ImportanceTable
from trt_layermerge.session.settings import Settings
from trt_layermerge.session.starts import Starts
from trt_layermerge.tracing import trace


@pytest.mark.parametrize(
    ("channels", "size", "batch"),
    [
        (16, 32, 128),  # 64 kB an image
        (32, 128, 32),  # 2 MB: 64 MB hold 32
        (96, 224, 16),  # 19 MB: three would do, but the fewest count
    ],
)
def test_fewer_images_at_a_time_where_values_are_large(
    channels: int, size: int, batch: int
) -> None:
    layers = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, 3, 1)]
    model = nn.Sequential(*layers).eval()
    graph = trace(model, torch.zeros(2, 3, size, size))  # two images are no larger than one each
    starts = Starts(model, graph, ImportanceTable({}), None, None, Settings(), Callbacks())
    assert starts.batch == batch
