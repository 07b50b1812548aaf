"""Plans race on a GPU as they do on the CPU, and leave the original where it was. Never run yet."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from trt_layermerge.core.plan import MergePlan
from trt_layermerge.pipeline.api import open_run
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.search.race import RUNGS, race
from trt_layermerge.session.images import calibration_of
from trt_layermerge.session.starts import Starts
from trt_layermerge.session.training import Racers

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("labelled", [True, False])
def test_plans_race_on_the_gpu(runs: Path, labelled: bool, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch sees no GPU")
    overrides = {"device": "cuda", **({} if labelled else {"data.val": None})}
    run = open_run(None, RunOptions("tiny", runs, overrides=overrides), NullReporter())
    session, recipe, val = run.session, run.recipe, run.data("val")
    fit, score = calibration_of(
        run.train, recipe.importance.fit_images, recipe.importance.score_images, run.seed
    )
    starts = Starts(
        session.model, session.graph, session.importance, fit, run.train, recipe, session.tell
    )
    teaching = session.teaching(run.train, val)
    racers = Racers(starts, teaching, val if labelled else score, tmp_path, session.macs)
    found = race([session.plan, MergePlan.of(session.graph, [])], racers, session.tell)
    assert [len(raced.scores) for raced in found] == [RUNGS, RUNGS]
    assert all(math.isfinite(score) for raced in found for score in raced.scores)
    assert {parameter.device.type for parameter in session.model.parameters()} == {"cpu"}
    assert not any(module.training for module in session.model.modules())
