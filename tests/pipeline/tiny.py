"""A whole project in a folder: a residual network of seven units, its weights, images, a recipe.

A run of its recipe takes a few seconds on one core: latencies come from the backend ``fake``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from trt_layermerge.core.jsonio import sha256_file, write_json
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.data import open_data
from trt_layermerge.data.loader import Batches
from trt_layermerge.models.networks import load_network
from trt_layermerge.pipeline.api import run_recipe
from trt_layermerge.pipeline.options import RunOptions, StageState

NETS = '''"""A residual network for 3x16x16 images of four classes, with others that fail."""

import torch
from torch import nn


def conv_bn(c_in, c_out, kernel, stride=1):
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class Basic(nn.Module):
    def __init__(self, c_in, c_out, stride=1):
        super().__init__()
        self.first, self.second = conv_bn(c_in, c_out, 3, stride), conv_bn(c_out, c_out, 3)
        plain = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if plain else conv_bn(c_in, c_out, 1, stride)

    def forward(self, x):
        y = self.second(torch.relu(self.first(x)))
        return torch.relu(y + self.shortcut(x))


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 8, 3)
        self.blocks = nn.Sequential(Basic(8, 8), Basic(8, 12, 2), Basic(12, 12))
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


class Undecided(Tiny):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def greedy():
    return nn.Sequential(nn.Conv2d(3, 4, 9), nn.Conv2d(4, 4, 9), nn.Flatten())


tiny, undecided = Tiny, Undecided
'''

RECIPE = """\
model: {name: "nets.py:tiny", weights: tiny.safetensors, input: [1, 3, 16, 16]}
data:
  train: npz:train.npz
  val: npz:val.npz
  test: npz:test.npz
  preprocess: {scale: 0.00392156862745098, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}
measure: {backend: fake, rounds: 3, networks: 4}
search:
  speedup: 1.3
  limits: {max_units: 3, max_kernel: 5, kernels: [1, 3]}
  finalists: 2
  loops: 2
importance: {fit_images: 64, score_images: 64}
finetune: {preset: short, options: {epochs: 2, batch: 32}}
build: {engine: none}
seed: 0
"""

PREPROCESS = Preprocess(1 / 255, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
IMAGES = {"train": 160, "val": 64, "test": 96}


def write_project(folder: Path) -> Path:
    """Writes network, images, trained weights and ``tiny.yaml``; returns the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nets.py").write_text(NETS)
    for seed, (split, count) in enumerate(IMAGES.items()):
        images, labels = stripes(count, seed)
        np.savez(folder / f"{split}.npz", images=images, labels=labels)
    save_file(trained(folder).state_dict(), folder / "tiny.safetensors")
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder / "tiny.yaml"


def stripes(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns noisy stripes ``(N, 16, 16, 3)`` of any phase and colour, and their class.

    The classes are lying and standing stripes, 4 and 8 pixels apart.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    place = np.arange(16) + rng.integers(0, 8, (count, 1))
    wave = np.sign(np.sin(2 * np.pi * (place + 0.5) / np.where(labels < 2, 4, 8)[:, None]))
    lying = np.broadcast_to(wave[:, :, None], (count, 16, 16))
    plain = np.where((labels % 2)[:, None, None], lying, lying.transpose(0, 2, 1))
    images = 128 + 60 * plain[..., None] * rng.uniform(0.4, 1, (count, 1, 1, 3))
    images = images + rng.normal(0, 150, images.shape)
    return images.clip(0, 255).astype(np.uint8), labels.astype(np.int64)


def trained(folder: Path) -> nn.Module:
    """Returns the network of a project after twelve epochs on its training images, seed 0."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = load_network(f"{folder / 'nets.py'}:tiny").train()
    data = open_data(f"npz:{folder / 'train.npz'}", PREPROCESS)
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    for epoch in range(12):
        for images, labels in Batches(data, 32).drawn(epoch):
            optimiser.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()
    return model.eval()


@dataclass
class Recorder:
    """Remembers what it is told; raises ``KeyboardInterrupt`` where it is asked to.

    Attributes:
        interrupt_at: Stage that is interrupted when it starts.
        interrupt_while: Work that is interrupted after its first step.
        events: Stages with their states, in order.
        steps: Work with the number of its finished steps, in order.
        notes: Every note.
    """

    interrupt_at: str | None = None
    interrupt_while: str | None = None
    events: list[tuple[str, StageState]] = field(default_factory=list)
    steps: list[tuple[str, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def stage(
        self, name: str, state: StageState, seconds: float | None = None, detail: str = ""
    ) -> None:
        self.events.append((name, state))
        if (name, state) == (self.interrupt_at, "run"):
            raise KeyboardInterrupt

    def progress(self, label: str, done: int, total: int) -> None:
        self.steps.append((label, done))
        if label == self.interrupt_while and 0 < done < total:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stages(self, state: StageState) -> tuple[str, ...]:
        """Returns the stages that were told to be in a state, in order."""
        return tuple(name for name, told in self.events if told == state)


def run(
    runs: Path, recipe: Path | None = None, reporter: Recorder | None = None, **asked: Any
) -> tuple[dict[str, Any], Recorder]:
    """Runs the recipe, or continues, as the run ``tiny``; returns its result and who listened.

    ``asked`` are further ``RunOptions``.
    """
    reporter = reporter or Recorder()
    options = RunOptions("tiny", runs, **asked)
    return run_recipe(recipe, options, reporter), reporter


def files(folder: Path) -> Mapping[str, tuple[int, bytes]]:
    """Returns time of change and content of every file below a folder, by name."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def replace_output(path: Path, kind: str, body: Mapping[str, Any]) -> None:
    """Writes a file of a run as if the stage that makes it had."""
    write_json(path, kind, body)
    state = path.with_name("state.json")
    noted = json.loads(state.read_text())
    for record in noted["stages"].values():
        if path.name in record["outputs"]:
            record["outputs"][path.name] = sha256_file(path)
    state.write_text(json.dumps(noted))
