"""Segmentation by one command, judged by a figure of the user's own beside the pixels' accuracy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from trt_layermerge.cli.main import main
from trt_layermerge.core.jsonio import read_json, read_lines

EXAMPLE = Path(__file__).parents[2] / "examples" / "segmentation"
MEAN, STD = 0.5, 0.25

NETS = """
import sys
sys.path.insert(0, {example!r})
from segmenter import UNet
from tests.nets import randomise

def unet():
    return randomise(UNet(3, (4, 8)))
"""

RECIPE = """\
model: {name: "small.py:unet", input: [1, 3, 16, 16]}
data:
  train: npz:train.npz
  val: npz:val.npz
  test: npz:test.npz
  metric: "metric.py:mean_iou"
  preprocess: {scale: 0.00392156862745098, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}
task: segmentation
measure: {backend: fake, rounds: 3, networks: 2}
search:
  speedup: 1.1
  limits: {max_units: 2, max_kernel: 3, kernels: [1, 3]}
  finalists: 2
  loops: 1
  samples: 2
importance: {fit_images: 8, score_images: 8}
finetune: {options: {epochs: 1, batch: 12, distill_weight: 0.5, augment: ["flip", "affine:5"]}}
calibrate: {options: {images: 8, max_accuracy_drop: 1.0}}
build: {precisions: [fp32, int8]}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "small.py").write_text(NETS.format(example=str(EXAMPLE)))
    (tmp_path / "metric.py").write_text((EXAMPLE / "metric.py").read_text())
    for seed, (split, count) in enumerate({"train": 24, "val": 12, "test": 12}.items()):
        rng = np.random.default_rng(seed)
        maps = rng.integers(0, 3, (count, 4, 4)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
        maps[:, :2, :2] = 255
        images = (maps[..., None] % 3 * 80 + rng.integers(0, 60, (count, 16, 16, 3))).astype("u1")
        np.savez(tmp_path / f"{split}.npz", images=images, labels=maps)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def command(project: Path, *more: str) -> int:
    runs = f"--runs-dir={project / 'runs'}"
    return main(["run", str(project / "recipe.yaml"), "--run", "small", runs, *more])


def iou_of(model: Path, arrays: Any) -> float:
    """Returns the mean IoU of an ONNX model, counted class by class."""
    session = onnxruntime.InferenceSession(model.read_bytes())
    found: list[NDArray[Any]] = []
    for image in arrays["images"]:
        x = ((image / 255 - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)[None]
        found.append(session.run(None, {session.get_inputs()[0].name: x})[0].argmax(1)[0])
    answers, truth = np.stack(found), arrays["labels"]
    answers = np.where(truth == 255, 255, answers)
    shares = []
    for k in range(3):
        union = ((answers == k) | (truth == k)).sum()
        if union:
            shares.append(((answers == k) & (truth == k)).sum() / union)
    return float(np.mean(shares))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_segmenter_goes_the_whole_way_and_is_judged_by_a_figure_of_its_own(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(project) == 0
    folder = project / "runs" / "small"
    verify = read_json(folder / "verify.json", "verify")
    assert verify["outputs"] == {"logits": "classes"}
    metric = verify["metric"]
    assert metric["name"] == "mean_iou"
    with np.load(project / "test.npz") as arrays:
        expected = {
            side: iou_of(folder / f"{file}.onnx", arrays)
            for side, file in (("original", "original"), ("merged", "model"))
        }
    # A pixel whose two largest logits nearly tie may fall to either side in another runtime.
    for side, value in expected.items():
        assert 0 < value < 1 and metric[side] == pytest.approx(value, abs=2e-3)
    # An engine cannot be run on every machine; ONNX Runtime is on all of them.
    built = {c["name"]: c["metric"] for c in verify["comparisons"] if c["metric"] is not None}
    assert built.keys() >= {"original.onnx", "model.onnx", "original.int8.onnx", "model.int8.onnx"}
    assert built["original.onnx"] == pytest.approx(expected["original"], abs=2e-3)
    assert built["model.onnx"] == pytest.approx(expected["merged"], abs=2e-3)
    merged = {c["name"] for c in verify["comparisons"] if c["network"] == "merged"}
    worst = min(value for name, value in built.items() if name in merged)
    worst = min(worst, metric["merged"])
    assert metric["drop"] == pytest.approx(metric["original"] - worst)
    # It is another figure than the share of right pixels.
    assert abs(metric["original"] - verify["accuracy"]["original"]) > 1e-3
    header, _ = read_lines(folder / "finetune.jsonl", "finetune")
    assert set(header["val_metric"]) == {"original", "start", "trained"}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["metric"]["merged"] == metric["merged"]
    assert "mean_iou on test" in capsys.readouterr().out
    assert "mean_iou" in (folder / "report.md").read_text()
    # A gate on it ends the command with the code of accuracy.
    assert command(project, "--set", "verify.max_metric_drop=0") == (5 if metric["drop"] > 0 else 0)
    # Another metric is another run's verdict.
    (project / "metric.py").write_text("def mean_iou(): return None")
    assert command(project) == 2
    assert "mean_iou returned NoneType" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.metric=absent.py:mean_iou", "there is no file"),
        ("data.metric=metric.py:mean_ioU", "has no function 'mean_ioU'"),
        ("data.metric=null", "there is none"),
    ],
)
def test_a_metric_that_is_not_there_is_missed_before_anything_is_measured(
    project: Path, setting: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = setting.replace("=metric.py", f"={project}/metric.py")
    assert command(project, "--set", setting, "--set", "verify.max_metric_drop=0.5") == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (project / "runs" / "small" / "latency.jsonl").exists()
