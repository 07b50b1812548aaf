"""Runs of networks with several inputs and outputs, from the recipe to the report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline import tiny
from trt_layermerge.core.jsonio import read_json
from trt_layermerge.deploy.bundle.folder import read_bundle
from trt_layermerge.errors import CorruptInputError, UsageError
from trt_layermerge.pipeline.api import run_stage
from trt_layermerge.pipeline.options import RunOptions

NETS = """
import torch
from torch import nn
from torch.nn import functional as F
from tests.nets import Basic, conv_bn, randomise


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = conv_bn(3, 8, 3)
        self.blocks = nn.Sequential(Basic(8, 8), Basic(8, 8))
        self.more, self.map, self.size = nn.Linear(4, 8), nn.Conv2d(8, 3, 1), nn.Linear(8, 2)

    def forward(self, image, numbers):
        y = self.blocks(torch.relu(self.norm(self.stem(image))))
        y = y + self.more(numbers)[..., None, None]
        return {"out": self.map(y), "size": [self.size(y.mean((2, 3)))]}


def two():
    return randomise(Two())


class Scenes(torch.utils.data.Dataset):
    def __init__(self, seed, count, several=True, masks=True):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(count, 3, 16, 16, generator=generator)
        self.numbers = torch.randn(count, 4, generator=generator)
        self.masks = torch.randint(3, (count, 16, 16), generator=generator)
        self.several, self.labels = several, masks

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        inputs = {"numbers": self.numbers[i], "image": self.images[i]}
        return inputs if self.several else self.images[i], self.masks[i] if self.labels else None


def train(): return Scenes(0, 24)
def val(): return Scenes(1, 12)
def test(): return Scenes(2, 12)
def images(): return Scenes(3, 24, several=False, masks=False)
"""

RECIPE = """\
model:
  name: "nets.py:two"
  input: [1, 3, 16, 16]
  more_inputs: [{shape: [1, 4]}]
data: {train: "nets.py:train", val: "nets.py:val", test: "nets.py:test"}
task: {out: segmentation, size_0: regression}
measure: {backend: fake, rounds: 3, networks: 2}
search:
  speedup: 1.1
  limits: {max_units: 2, max_kernel: 3, kernels: [1, 3]}
  finalists: 2
  loops: 1
  samples: 2
  race_steps: 1
importance: {fit_images: 8, score_images: 8}
finetune: {options: {epochs: 1, batch: 12}}
build: {engine: none}
package: {targets: [plain, triton, isaac-ros], bake_preprocess: true}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def options(project: Path, **overrides: Any) -> RunOptions:
    return RunOptions("tiny", project / "runs", project / "recipe.yaml", overrides)


def test_a_recipe_of_two_inputs_and_a_dict_goes_to_its_report(project: Path) -> None:
    summary, heard = tiny.run(project / "runs", project / "recipe.yaml")
    folder = project / "runs" / "tiny"
    verify = read_json(folder / "verify.json", "verify")
    assert verify["outputs"] == {"out": "classes", "size_0": "values"}
    assert verify["images"] == 12 and verify["failed_gate"] is None
    assert 0 < verify["agreement"] <= 1
    assert set(verify["comparisons"][0]["outputs"]) == {"out", "size_0"}
    # Accuracy is that of the pixels.
    assert summary["original"]["accuracy"] == verify["accuracy"]["original"] > 0
    assert summary["input"]["name"] == "image"
    model = read_json(folder / "export.json", "export")["models"]["model.onnx"]
    assert model["inputs"] == {"image": [1, 3, 16, 16], "numbers": [1, 4]}
    assert model["max_rel_error"] < 1e-4
    assert (folder / "report.html").is_file()
    assert heard.stages("done")[-1] == "package"
    for target in ("plain", "triton", "isaac-ros"):
        command = [sys.executable, str(folder / "deploy" / target / "verify.py")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    face = read_bundle(folder / "deploy" / "triton")[1].interface
    assert [(port.name, port.shape, port.kind) for port in (*face.inputs, *face.outputs)] == [
        ("image", (3, 16, 16), "image"),
        ("numbers", (4,), "numbers"),
        ("out", (3, 16, 16), "classes"),
        ("size_0", (2,), "values"),
    ]
    assert any("out (1, 3, 16, 16) as classes, size_0 (1, 2) as values" in n for n in heard.notes)
    # Nothing is done again, unless the outputs are for something else.
    _, again = tiny.run(project / "runs")
    assert not again.stages("run")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data.train": "npz:train.npz"}, r"takes 2 inputs .image, numbers., and npz:.* feeds one"),
        ({"package.targets": ["plain", "deepstream"]}, "a frame and nothing else"),
        ({"task": {"ouf": "segmentation"}}, "task names ouf"),
        ({"importance.method": "finetune", "task": "regression"}, "none that tell the classes"),
    ],
)
def test_what_a_stage_cannot_do_is_refused_before_anything_is_measured(
    project: Path, overrides: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        tiny.run(project / "runs", project / "recipe.yaml", overrides=overrides)
    assert not (project / "runs" / "tiny" / "latency.jsonl").exists()


def test_data_that_lacks_an_input_is_refused(project: Path) -> None:
    run_stage("inspect", options(project))
    overrides = {"data.train": f"{project}/nets.py:images"}
    with pytest.raises(CorruptInputError, match="gives 1 of the 2 inputs that the network"):
        tiny.run(project / "runs", project / "recipe.yaml", overrides=overrides)
