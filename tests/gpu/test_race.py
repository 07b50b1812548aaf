"""Plans race on a GPU as they do on the CPU, and leave the original where it was. Never run yet."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from trt_layermerge.core.plan import MergePlan
from trt_layermerge.pipeline.api import open_run
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.pipeline.race import LAPS, race

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("labelled", [True, False])
def test_plans_race_on_the_gpu(runs: Path, labelled: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch sees no GPU")
    overrides = {"device": "cuda", **({} if labelled else {"data.val": None})}
    context = open_run(None, RunOptions("tiny", runs, overrides=overrides), NullReporter())
    found = race(context, [context.plan, MergePlan.of(context.graph, [])])
    assert [len(raced.scores) for raced in found] == [LAPS, LAPS]
    assert all(math.isfinite(score) for raced in found for score in raced.scores)
    assert {parameter.device.type for parameter in context.model.parameters()} == {"cpu"}
    assert not any(module.training for module in context.model.modules())
