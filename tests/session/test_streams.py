"""Narrower streams, the whole way: chosen, repaired, merged, exported, and continued elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import trt_layermerge as tlm
from tests import nets
from tests.merge.test_slim import Stage
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.streams import alone_of

FEW = {
    "measure": {"rounds": 3, "networks": 3},
    "importance": {"fit_images": 20, "score_images": 20},
    "finetune": {"preset": "none"},
    "build": {"engine": "none"},
}
SEARCH = {"finalists": 2, "loops": 2, "samples": 2, "limits": {"max_units": 2, "kernels": [3]}}


@pytest.mark.parametrize("kinds", [("stream",), ("compose", "fit", "identity", "narrow", "stream")])
def test_streams_are_chosen_and_arrive(kinds: tuple[str, ...], tmp_path: Path) -> None:
    model = nets.randomise(Stage((32, 48)))
    images = nets.example(batch=40)
    settings = {**FEW, "search": {**SEARCH, "kinds": kinds}}
    session = tlm.Session(
        model, images[:1], backend="fake", settings=settings, folder=tmp_path / "run"
    )
    session.measure()
    scores = session.score([images[:20], images[20:]])
    scored = dict(alone_of(scores))
    assert {name for name, _ in scored} == {s.name for s in session.graph.streams}
    assert all(len(e.channels or ()) == width and e.delta < 0 for (_, width), e in scored.items())
    plan = session.search(speedup=1.5)
    assert set(plan.channels) == set(plan.widths)
    assert bool(plan.widths) or kinds != ("stream",)
    session.relax()
    session.repair()
    merged = session.merge()
    assert session.certificate.ok and session.certificate.max_rel_error <= 1e-4  # float32
    session.export()
    engine = onnxruntime.InferenceSession(tmp_path / "run" / "model.onnx")
    name = engine.get_inputs()[0].name
    (found,) = engine.run(None, {name: images[:1].numpy()})
    with torch.no_grad():
        expected = merged(images[:1]).numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    saved = MergePlan.load(tmp_path / "run" / "plan.json")
    assert (saved.candidates, saved.channels) == (plan.candidates, plan.channels)
    other = tlm.Session(
        model.eval(),
        images[:1],
        backend="fake",
        settings=settings,
        folder=tmp_path / "run",
        stored=True,
    )
    with torch.no_grad():
        assert torch.equal(other.merged(images[:1]), merged(images[:1]))
