"""A traced network and its images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

from tests.importance.branched import Branched


@pytest.fixture
def network() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(Branched().eval())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(10, 3, 6, 5, generator=torch.Generator().manual_seed(1))
