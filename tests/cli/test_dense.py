"""Answers that stay the same where they are maps or numbers: told, limited and shown, no labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from trt_layermerge.cli.main import main

NETS = """
import torch
from torch import nn
from tests.nets import Basic, conv_bn, randomise


class Net(nn.Module):
    def __init__(self, head, size):
        super().__init__()
        self.stem, self.norm = conv_bn(3, 8, 3)
        self.blocks = nn.Sequential(Basic(8, 8), Basic(8, 8))
        self.head, self.size = head, size

    def forward(self, x):
        y = self.blocks(torch.relu(self.norm(self.stem(x))))
        return self.head(y if self.size is None else y.mean((2, 3)))


def segments(): return randomise(Net(nn.Conv2d(8, 5, 1), None))
def depth(): return randomise(Net(nn.Conv2d(8, 1, 1), None))
def pose(): return randomise(Net(nn.Linear(8, 4), 4))
"""

RECIPE = """
model: {{name: "nets.py:{name}", input: [1, 3, 16, 16]}}
data: {{train: "npz:train.npz", test: "npz:test.npz", preprocess: {{mean: [0.5, 0.5, 0.5]}}}}
{task}
measure: {{backend: fake, rounds: 3, networks: 2}}
search:
  speedup: 1.2
  limits: {{max_units: 2, max_kernel: 3, kernels: [1, 3]}}
  finalists: 2
  loops: 1
  samples: 0
  race_steps: 0
importance: {{fit_images: 16, score_images: 16}}
finetune: {{preset: none}}
build: {{engine: none}}
"""


def typed(folder: Path, words: str) -> int:
    return main([*words.split(), "--run", "tiny", "--runs-dir", str(folder / "runs")])


@pytest.fixture(scope="module", params=["segments", "depth", "pose"])
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a finished run of a network for maps of classes, maps of numbers, or numbers."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "nets.py").write_text(NETS)
    task = "task: regression" if request.param == "pose" else ""
    (folder / "tiny.yaml").write_text(RECIPE.format(name=request.param, task=task))
    for seed, (split, count) in enumerate({"train": 80, "test": 24}.items()):
        images = np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        np.savez(folder / f"{split}.npz", images=images)
    assert typed(folder, f"run {folder}/tiny.yaml -q") == 0
    return folder


def by_hand(folder: Path) -> tuple[float, float]:
    """Returns the share of answers that stay, and the mean distance, from both ONNX models."""
    run, images = folder / "runs" / "tiny", np.load(folder / "test.npz")["images"]
    inputs = ((images / 255 - 0.5) / [0.229, 0.224, 0.225]).transpose(0, 3, 1, 2)
    before, after = (
        np.concatenate(
            [session.run(None, {"input": x[None].astype(np.float32)})[0] for x in inputs]
        )
        for name in ("original.onnx", "model.onnx")
        for session in [onnxruntime.InferenceSession(run / name)]
    )
    axes = tuple(range(1, before.ndim))
    if folder.name.startswith("segments"):
        near = ((after - before) ** 2).sum(1) <= 0.25 * (before**2).sum(1).mean()
        same = (before.argmax(1) == after.argmax(1)) & near
        p, q = (np.exp(y) / np.exp(y).sum(1, keepdims=True) for y in (before, after))
        return same.mean(), (p * np.log(p / q)).sum(1).mean()
    scale = np.sqrt((before**2).mean(0 if before.ndim == 2 else None))
    sign = (np.sign(before) == np.sign(after)) | (abs(after - before) <= 1e-3 * scale)
    far = np.sqrt(((after - before) ** 2).sum(axes) / (before**2).sum(axes))
    return ((abs(after - before) <= 0.1 * scale) & sign).mean(), far.mean()


def test_what_stays_the_same_is_told_as_it_is_by_hand(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share, far = by_hand(project)
    assert 0 < share < 1  # or the figures below would say nothing
    assert typed(project, "verify") == 0
    said = " ".join(capsys.readouterr().out.split())
    (found,) = json.loads((project / "runs/tiny/verify.json").read_text())["fidelity"].values()
    name = "kl" if project.name.startswith("segments") else "relative_error"
    assert found["agreement"] == pytest.approx(share, abs=2e-3)
    assert found[name] == pytest.approx(far, rel=1e-3)
    words = {"kl": f"KL {found[name]:.3g} nats", "relative_error": f"error {found[name]:.3g}"}[name]
    assert f"answer alike on {100 * found['agreement']:.2f} %" in said and words in said


def test_a_limit_on_what_stays_the_same(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify = json.loads((project / "runs/tiny/verify.json").read_text())
    share = verify["least_agreement"]
    assert typed(project, f"verify --min-agreement {share + 0.001}") == 5
    assert "verify.min_agreement" in capsys.readouterr().err
    assert typed(project, f"verify --min-agreement {share - 0.01}") == 0
    assert typed(project, "report") == 0
    page = (project / "runs/tiny/report.html").read_text()
    assert "What did it keep?" in page and f"{100 * share:.1f} %" in page
    assert "What did it cost?" not in page and "right before" not in page
