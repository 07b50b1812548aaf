"""The whole pipeline over one network of a library: every stage, on a few images made from a seed.

What it comes to says nothing about quality: weights and images are random. It says whether every
stage takes the network, or refuses it clearly.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.networks import Network
from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import LayerMergeError
from trt_layermerge.pipeline.api import run_recipe
from trt_layermerge.pipeline.options import RunOptions, StageState

SIZE, CLASSES = 64, 1000
IMAGES = {"train": 32, "val": 8, "test": 8}

RECIPE = """\
model: {{name: "{name}", input: [1, 3, {size}, {size}]}}
data: {{train: "npz:train.npz", val: "npz:val.npz", test: "npz:test.npz"}}
measure: {{backend: {backend}, rounds: 3, networks: 3}}
search:
  speedup: 1.05
  limits: {{max_units: 2, max_kernel: 5, kernels: [1]}}
  finalists: 2
  loops: 2
  samples: 0
  race_steps: 0
importance: {{fit_images: 16, score_images: 8}}
finetune: {{preset: short, options: {{epochs: 1, batch: 8}}}}
build: {{engine: none}}
package: {{targets: [plain]}}
"""


@dataclass
class Stages:
    """Remembers how long each stage took, and what was said.

    Attributes:
        seconds: By stage, those that ended.
        notes: Every note.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def stage(
        self, name: str, state: StageState, seconds: float | None = None, detail: str = ""
    ) -> None:
        """Notes a stage that ended."""
        if seconds is not None:
            self.seconds[name] = round(seconds, 1)

    def progress(self, label: str, done: int, total: int) -> None:
        """Ignores progress."""

    def note(self, text: str) -> None:
        """Keeps a note."""
        self.notes.append(text)


def walk(network: Network, folder: Path, backend: str = "onnxruntime") -> Json:
    """Returns the stages that a network went through with their seconds, and what refused it.

    Args:
        network: What goes through.
        folder: Where recipe, images and the run are put; must be empty.
        backend: What times it.
    """
    started = time.perf_counter()
    size = network.size or SIZE
    for seed, (split, count) in enumerate(IMAGES.items()):
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        labels = {"labels": rng.integers(0, CLASSES, count)} if network.classifies else {}
        np.savez(folder / f"{split}.npz", images=images, **labels)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(name=network.name, size=size, backend=backend))
    stages = Stages()
    row: Json = {"name": network.name, "family": network.family}
    try:
        summary = run_recipe(recipe, RunOptions("walk", folder / "runs"), stages)
        row |= {"speedup": summary["speedup"], "error": summary["certificate_max_rel_error"]}
    except LayerMergeError as error:
        row["refused"] = str(error)
    except Exception as error:  # what must not happen is told, not hidden
        row["crash"] = f"{type(error).__name__}: {error}"[:300]
    seconds = round(time.perf_counter() - started, 1)
    return {**row, "stages": stages.seconds, "seconds": seconds}
