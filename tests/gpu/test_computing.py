"""Repair, scores, joint scores, reconstruction and verification come to the same on a GPU.

Never run yet. Forward passes are in float32 without TF32 and solutions in float64 on both sides, so
what differs is the order of sums. Tolerances are relative: 1e-3 of a score (and 1e-5 nats), 1e-3 of
the largest output of a repaired network.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trt_layermerge.core.jsonio import read_json
from trt_layermerge.finetune.evaluate import outputs_of
from trt_layermerge.pipeline.api import open_run, run_stage
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.pipeline.run import Run
from trt_layermerge.session.images import calibration_of, images_of
from trt_layermerge.session.scoring import scorer_of, to_score
from trt_layermerge.session.starts import Starts

pytestmark = pytest.mark.gpu

DEVICES = ("cpu", "cuda")
RELATIVE, ABSOLUTE = 1e-3, 1e-5


@pytest.fixture(autouse=True)
def gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch sees no GPU")


def opened(runs: Path, device: str, **overrides: object) -> Run:
    asked = {"device": device, **overrides}
    return open_run(None, RunOptions("tiny", runs, overrides=asked), NullReporter())


def starts(run: Run) -> Starts:
    session, section = run.session, run.recipe.importance
    fit, _ = calibration_of(run.train, section.fit_images, section.score_images, run.seed)
    return Starts(
        session.model, session.graph, session.importance, fit, run.train, run.recipe, session.tell
    )


@pytest.mark.parametrize("first", [True, False])
def test_candidates_score_the_same(runs: Path, first: bool) -> None:
    found = []
    for device in DEVICES:
        run = opened(runs, device)
        session = run.session
        wanted = to_score(run.graph, session.candidates, run.latency, run.recipe)
        scorer = scorer_of(session.model, session.graph, run.train, run.recipe)()
        found.append([scorer.entry(candidate, first).delta for candidate in wanted])
    assert found[1] == pytest.approx(found[0], rel=RELATIVE, abs=ABSOLUTE)


def test_a_repaired_network_answers_the_same_and_comes_back(runs: Path) -> None:
    answers = []
    for device in DEVICES:
        run = opened(runs, device)
        network = starts(run).repaired(run.plan)
        assert {p.device.type for p in network.parameters()} == {"cpu"}
        assert {p.device.type for p in run.session.model.parameters()} == {"cpu"}
        answers.append(outputs_of(network, images_of(run.train, 32))["output"])
    error = (answers[0] - answers[1]).abs().max() / answers[0].abs().max()
    assert float(error) < RELATIVE


def test_joint_scores_are_the_same(runs: Path) -> None:
    found = []
    for device in DEVICES:
        run = opened(runs, device)
        whole = run.session.whole_networks(run.train, run.data("val"), None, Path())
        found.append(whole.joint_delta(run.plan))
    assert found[1] == pytest.approx(found[0], rel=RELATIVE, abs=ABSOLUTE)


def test_a_reconstruction_helps_as_much(runs: Path) -> None:
    found = []
    for device in DEVICES:
        run = opened(runs, device, **{"finetune.reconstruct.steps": 20})
        network, told = starts(run).start(run.plan)
        assert told is not None and told["kept"]
        assert {p.device.type for p in network.parameters()} == {"cpu"}
        found.append(told["error_after"])
    assert found[1] == pytest.approx(found[0], rel=0.1)  # twenty steps of Adam drift apart


def test_networks_are_verified_alike(runs: Path) -> None:
    before = read_json(runs / "tiny" / "verify.json", "verify")
    asked = RunOptions("tiny", runs, overrides={"device": "cuda"}, only_stage="verify")
    run_stage("verify", asked)
    after = read_json(runs / "tiny" / "verify.json", "verify")
    assert after["accuracy"] == before["accuracy"]
    assert all(c["max_rel"] < RELATIVE for c in after["comparisons"] if c["max_rel"] is not None)
