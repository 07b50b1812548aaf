"""Pieces of work whose speed is watched: seconds at most, nothing but the clone, seeded."""

from __future__ import annotations

import io
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import nn

from tests.search.graphs import mobilenet_v2
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.data import images
from trt_layermerge.data.folders import framed
from trt_layermerge.data.sources import ArrayData
from trt_layermerge.export.onnx import export_bytes
from trt_layermerge.finetune.loop import finetune
from trt_layermerge.finetune.recipe import FinetuneRecipe
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.measure.spec_model import spec_model
from trt_layermerge.merge import collapse, relax, repair
from trt_layermerge.search import Option, chain_frontier
from trt_layermerge.tracing import trace

Work: TypeAlias = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """A piece of work.

    Attributes:
        name: What it is called in tables.
        prepare: Returns the work, and how many items it does; what it needs is made before.
    """

    name: str
    prepare: Callable[[], tuple[Work, int]]


def reference() -> tuple[Work, int]:
    """Returns work that nothing here can change: half of it arithmetic, half of it Python."""
    matrix = torch.rand(512, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def work() -> None:
        for _ in range(4):
            matrix @ matrix
        known: dict[int, int] = {}
        for i in range(200_000):
            known[i % 1000] = known.get(i % 1000, 0) + i

    return work, 1


def tables(seed: int) -> list[Option]:
    """Returns one option for each candidate of MobileNetV2 under the paper's rules.

    Latencies follow the multiply-accumulates of each candidate, with 20 % noise; losses are
    exponential in the length of the block. Neither has anything special in it that the search
    could profit from.
    """
    rng = np.random.default_rng(seed)
    options = []
    for c in enumerate_candidates(mobilenet_v2(), "paper"):
        macs = sum(s.macs for s in c.costs if isinstance(s, ConvSpec))
        latency = (0.02 + macs * 1e-8) * rng.uniform(0.8, 1.2)
        loss = 0.0 if c.original else float(rng.exponential(0.02)) * len(c.block)
        options.append(Option(c.block.start - 1, c.block.end - 1, latency, float(np.exp(-loss))))
    return options


def all_budgets() -> tuple[Work, int]:
    """Returns the exact programme on ten tables of MobileNetV2's size, every budget at once."""
    given = [tables(seed) for seed in range(10)]
    length = max(option.end for option in given[0])
    return lambda: [chain_frontier(length, options) for options in given], len(given)


def specs_to_onnx() -> tuple[Work, int]:
    """Returns the building of the ONNX models that a latency table of MobileNetV2 times."""
    specs = list(dict.fromkeys(s for c in enumerate_candidates(mobilenet_v2()) for s in c.costs))
    return lambda: [spec_model(spec, "fp32", 1) for spec in specs], len(specs)


def photos(width: int, height: int, count: int, gap: float) -> tuple[Work, int]:
    """Returns the decoding of JPEGs to 224x224: smooth colours with some noise, quality 90.

    Args:
        width: Of a photo.
        height: Of a photo.
        count: Number of photos.
        gap: ``images.GAP`` for them; if it is huge, every photo is decoded whole.
    """
    rng = np.random.default_rng(0)
    contents = []
    for i in range(count):
        coarse = rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
        size = (width, height)
        smooth = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth, np.int16) + rng.integers(-12, 12, (height, width, 1))
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        contents.append((Path(f"{i}.jpg"), file.getvalue()))

    def work() -> None:
        usual, images.GAP = images.GAP, gap
        try:
            for path, content in contents:
                framed(images.read_image(path, content, 224), images.Framing((224, 224)))
        finally:
            images.GAP = usual

    return work, count


@cache
def network(name: str) -> nn.Module:
    """Returns a torchvision network with random weights."""
    import torchvision

    torch.manual_seed(0)
    model: nn.Module = getattr(torchvision.models, name)(weights=None)
    return model.eval()


def inspect() -> tuple[Work, int]:
    """Returns tracing MobileNetV2 and enumerating its candidates."""
    model, example = network("mobilenet_v2"), torch.zeros(1, 3, 224, 224)
    return lambda: enumerate_candidates(trace(model, example), "full"), 1


def merged_pairs() -> tuple[LayerGraph, MergePlan]:
    """Returns ResNet-18, and a plan that composes disjoint pairs of its convolutions."""
    graph = trace(network("resnet18"), torch.zeros(1, 3, 224, 224))
    chosen: list[Candidate] = []
    for candidate in enumerate_candidates(graph, "full"):
        free = not chosen or candidate.block.start >= chosen[-1].block.end
        if free and candidate.kind == "compose" and len(candidate.block) == 2:
            chosen.append(candidate)
    return graph, MergePlan.of(graph, chosen)


def repairing() -> tuple[Work, int]:
    """Returns the repair of ResNet-18's first pair on 16 images of 64x64."""
    model, (graph, plan) = network("resnet18"), merged_pairs()
    seen = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    relaxed = relax(model, graph, MergePlan.of(graph, plan.changed[:1]))
    return lambda: repair(relaxed, model, [seen]), 1


def merging() -> tuple[Work, int]:
    """Returns relaxing and collapsing ResNet-18."""
    model, (graph, plan) = network("resnet18"), merged_pairs()
    return lambda: collapse(relax(model, graph, plan)), 1


def exporting() -> tuple[Work, int]:
    """Returns the export of a merged ResNet-18 to ONNX."""
    graph, plan = merged_pairs()
    merged = collapse(relax(network("resnet18"), graph, plan)).eval()
    return lambda: export_bytes(merged, torch.zeros(1, 3, 224, 224)), 1


def training() -> tuple[Work, int]:
    """Returns an epoch of four steps of 16 images at 64x64, MobileNetV2 taught by itself."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (64, 3, 64, 64), dtype=torch.uint8, generator=generator)
    data = ArrayData(pixels, None, (), Preprocess())
    recipe = FinetuneRecipe(epochs=1, batch=16, distill_weight=1.0)
    teacher = network("mobilenet_v2")
    return lambda: finetune(deepcopy(teacher), data, None, recipe, teacher=teacher), 4


REFERENCE = Workload("reference: matrix product and Python", reference)
WORKLOADS = (
    REFERENCE,
    Workload("all budgets of MobileNetV2, 391 entries", all_budgets),
    Workload("ONNX of a spec, mean of MobileNetV2's", specs_to_onnx),
    Workload("trace and candidates of MobileNetV2", inspect),
    Workload("repair of a block of ResNet-18", repairing),
    Workload("training step of MobileNetV2, 16 images of 64x64", training),
    Workload("relax and collapse ResNet-18", merging),
    Workload("ONNX of a merged ResNet-18", exporting),
    Workload("JPEG of 500x375 to 224x224", lambda: photos(500, 375, 50, images.GAP)),
    Workload("JPEG of 3000x2000 to 224x224", lambda: photos(3000, 2000, 4, images.GAP)),
    Workload("the same, decoded whole", lambda: photos(3000, 2000, 4, 1e9)),
)
