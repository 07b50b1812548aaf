"""Plans built whole as ONNX, without torch: what the merged network looks like, random weights."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from onnx import GraphProto, TensorProto, helper, numpy_helper

from tests.search.graphs import Chain
from trt_layermerge.backends import Backend
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.conv import AddSpec, Spec
from trt_layermerge.core.device import Precision
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.measure.meter import BackendMeter, silent
from trt_layermerge.measure.spec_model import add_spec, empty_model
from trt_layermerge.measure.table import ModelOf, Progress, SpecRequest

KIND = TensorProto.FLOAT


def resnet18() -> LayerGraph:
    """Basic blocks 2, 2, 2, 2 behind a stem and a max-pool."""
    chain = Chain(3, 224).conv(64, 7, 2).barrier()
    chain.size = 56
    for width in (64, 128, 256, 512):
        for i in range(2):
            start = len(chain.units)
            chain.conv(width, 3, 2 if i == 0 and width > 64 else 1).conv(width, 3).residual(start)
    return chain.graph()


def resnet20() -> LayerGraph:
    """Basic blocks 3, 3, 3 of 16 to 64 channels on small maps."""
    chain = Chain(3, 32).conv(16, 3, 2)
    for width in (16, 32, 64):
        for i in range(3):
            start = len(chain.units)
            chain.conv(width, 3, 2 if i == 0 and width > 16 else 1).conv(width, 3).residual(start)
    return chain.graph()


def random_plan(
    graph: LayerGraph, candidates: Sequence[Candidate], rng: random.Random, share: float
) -> MergePlan:
    """Returns a plan that tries each unit as the start of a random candidate with a probability."""
    chosen: list[Candidate] = []
    position = 0
    while position < len(graph.units):
        here = [c for c in candidates if c.block.start == position and not c.original]
        if here and rng.random() < share:
            chosen.append(rng.choice(here))
            position = chosen[-1].block.end
        else:
            position += 1
    return MergePlan.of(graph, chosen)


def plan_specs(plan: MergePlan) -> tuple[Spec, ...]:
    """Returns everything that a plan runs, repetitions included."""
    return tuple(spec for candidate in plan.candidates for spec in candidate.costs)


def plan_model(graph: LayerGraph, plan: MergePlan, batch: int = 1, classes: int = 1000) -> bytes:
    """Returns the network that a plan describes, with pooling between unequal maps and a head."""
    first = graph.units[0].spec
    shape = (batch, first.in_channels, first.height, first.width)
    inputs = [helper.make_tensor_value_info("x", KIND, shape)]
    outputs = [helper.make_tensor_value_info("logits", KIND, (batch, classes))]
    model = empty_model("network", inputs, outputs)
    value, boundary = "x", {0: "x"}
    for number, candidate in enumerate(plan.candidates):
        start = candidate.block.start
        unit = graph.units[start].spec
        if start and graph.units[start - 1].spec.out_size != (unit.height, unit.width):
            value = boundary[start] = _max_pool(model.graph, value)
        value = _add_candidate(model.graph, graph, candidate, value, boundary, f"c{number}")
        boundary[candidate.block.end] = value
    _add_head(model.graph, value, graph.units[-1].spec.out_channels, classes)
    return bytes(model.SerializeToString())


def _add_candidate(
    model: GraphProto,
    graph: LayerGraph,
    candidate: Candidate,
    value: str,
    boundary: dict[int, str],
    name: str,
) -> str:
    residual = graph.open_residual(candidate.block.start, candidate.block.end)
    skip = boundary[residual.start] if residual else value
    for i, extra in enumerate(candidate.extras):
        out = f"{name}.extra{i}"
        if isinstance(extra, AddSpec):
            add_spec(model, extra, KIND, value, skip, out)
            return out
        add_spec(model, extra, KIND, skip, "", out)
        skip = out
    for i, conv in enumerate(candidate.convs):
        out = f"{name}.conv{i}"
        add_spec(model, conv, KIND, value, skip, out)
        value = out
    return value


def _max_pool(model: GraphProto, value: str) -> str:
    out = f"{value}.pool"
    attributes = {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}
    model.node.append(helper.make_node("MaxPool", [value], [out], **attributes))
    return out


def _add_head(model: GraphProto, value: str, channels: int, classes: int) -> None:
    weight = np.random.default_rng(0).standard_normal((classes, channels)).astype(np.float32)
    model.initializer.append(numpy_helper.from_array(weight, "head.weight"))
    model.node.extend(
        [
            helper.make_node("GlobalAveragePool", [value], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("Gemm", ["flat", "head.weight"], ["logits"], transB=1),
        ]
    )


def measured(
    specs: Iterable[Spec],
    backend: Backend,
    precision: Precision,
    batch: int,
    store: Path,
    rounds: int = 12,
    on_progress: Progress = silent,
    model_of: ModelOf | None = None,
) -> LatencyTable:
    """Returns the latency of every spec, measured in this process."""
    asked = SpecRequest(specs, precision, batch, rounds, store, lambda: b"", model_of)
    return BackendMeter(backend).specs(asked, on_progress)
