"""Predicted against measured latency of whole merged networks.

Run as ``python -m tests.bench.bm_predict`` on a quiet machine; a few minutes. For each network:
trace, measure every candidate's specs, build random plans whole (relaxed, collapsed, exported),
time them beside the original, fit the table to two thirds and predict the rest. Writes
``docs/results/latency-prediction.md``. Goals: median error of 5 % or less, worst 10 % or less,
Spearman 0.95 or more, table within 180 s.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn

from trt_layermerge.backends import Backend, get_backend
from trt_layermerge.core.candidate import Candidate, original_candidate
from trt_layermerge.core.device import Precision
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.core.unit import Rules
from trt_layermerge.export.fp16 import to_precision
from trt_layermerge.export.onnx import export_bytes
from trt_layermerge.measure import Observation, fit_latency, measure_specs, speedup, time_models
from trt_layermerge.measure.fit import rank_correlation
from trt_layermerge.merge import collapse, relax
from trt_layermerge.pipeline.networks import sample_plans, specs_of, useful
from trt_layermerge.search import enumerate_candidates
from trt_layermerge.trace import trace

CASES: tuple[tuple[str, Rules], ...] = (
    ("resnet18", "paper"),
    ("resnet18", "full"),
    ("mobilenet_v2", "paper"),
    ("mobilenet_v2", "full"),
)
FIT, TEST, GROUP, ROUNDS, SEED = 32, 16, 8, 20, 0
RESULT = Path(__file__).parents[2] / "docs" / "results" / "latency-prediction.md"


@dataclass(frozen=True)
class Outcome:
    """What one network showed: ms of the original, and of the plans that were kept for testing."""

    name: str
    model: nn.Module
    graph: LayerGraph
    faster: list[Candidate]
    table: LatencyTable
    specs: int
    table_s: float
    original_ms: float
    measured: list[float]
    predicted: list[float]
    alone: list[float]
    promised: dict[str, float]

    def errors(self, predicted: list[float]) -> np.ndarray:
        """Returns relative errors."""
        return np.abs(np.array(predicted) / self.measured - 1)


def run(name: str, rules: Rules, backend: Backend, precision: Precision = "fp32") -> Outcome:
    """Returns the outcome for a torchvision network with random weights."""
    torch.manual_seed(SEED)
    model = getattr(torchvision.models, name)(weights=None).eval()
    example = torch.randn(1, 3, 224, 224)
    graph = trace(model, example)
    candidates = enumerate_candidates(graph, rules)
    originals = [original_candidate(graph, unit.index) for unit in graph.units]
    specs = [spec for c in [*candidates, *originals] for spec in c.costs]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        bare = measure_specs(specs, backend, precision, 1, Path(folder) / "latency.sqlite")
        table_s = time.perf_counter() - start
    # Every third tests, the others fit: sampled plans run from hardly to utterly changed.
    faster = useful(graph, candidates, bare, precision, 1)
    plans = sample_plans(graph, faster, FIT + TEST, SEED)
    models = [onnx_of(merged(model, graph, p), precision) for p in plans]
    original_ms, latencies = measure(onnx_of(model, precision), models, backend)
    seen = [Observation(specs_of(p), ms) for p, ms in zip(plans, latencies, strict=True)]
    untouched = Observation(specs_of(MergePlan.of(graph, [])), original_ms)
    tests = seen[2::3]
    fits = [observation for i, observation in enumerate(seen) if i % 3 != 2]
    fitted = fit_latency(bare, [untouched, *fits], precision, 1)
    return Outcome(
        f"{name}, {rules} rules",
        model,
        graph,
        faster,
        fitted,
        len(bare.entries),
        table_s,
        original_ms,
        [o.ms for o in tests],
        [predict(fitted, o, precision) for o in tests],
        [predict(bare, o, precision) for o in tests],
        dict(fitted.notes["fit"]),
    )


def onnx_of(model: nn.Module, precision: Precision) -> bytes:
    """Returns the ONNX model of a network at a precision, inputs and outputs float32."""
    exported = export_bytes(model, torch.randn(1, 3, 224, 224))
    return to_precision(exported, precision, keep_io=True)


def merged(model: nn.Module, graph: LayerGraph, plan: MergePlan) -> nn.Module:
    """Returns the network merged after a plan."""
    return collapse(relax(model, graph, plan)).eval()


def predict(table: LatencyTable, network: Observation, precision: Precision = "fp32") -> float:
    """Returns the predicted latency of a network in ms."""
    return table.overhead_ms + sum(table[spec, precision, 1] for spec in network.specs)


def measure(original: bytes, models: list[bytes], backend: Backend) -> tuple[float, list[float]]:
    """Returns ms of the original and of each model, groups paired by the original."""
    original_ms, latencies = 0.0, []
    for start in range(0, len(models), GROUP):
        group = [original, *models[start : start + GROUP]]
        reference, *timings = time_models(group, backend, rounds=ROUNDS)
        original_ms = original_ms or reference.ms
        latencies += [original_ms / speedup(reference, timing).value for timing in timings]
    return original_ms, latencies


def describe(outcome: Outcome) -> list[str]:
    """Returns the Markdown lines of one network."""
    errors, alone = outcome.errors(outcome.predicted), outcome.errors(outcome.alone)
    lines = [
        f"## {outcome.name}",
        "",
        f"{outcome.specs} specs measured in {outcome.table_s:.1f} s; original "
        f"{outcome.original_ms:.2f} ms; fitted to {FIT} plans and the original, tested on "
        f"{TEST} other plans.",
        "",
        "| | median error | worst error | Spearman |",
        "|---|---|---|---|",
        row("fitted", errors, rank_correlation(outcome.predicted, outcome.measured)),
        row("sum of blocks alone", alone, rank_correlation(outcome.alone, outcome.measured)),
        "",
        "Errors that the fit itself promised by leaving one network out: median "
        f"{outcome.promised['median_error']:.1%}, worst {outcome.promised['worst_error']:.1%}.",
        "",
        "| measured ms | predicted ms | error |",
        "|---|---|---|",
    ]
    pairs = sorted(zip(outcome.measured, outcome.predicted, strict=True))
    lines += [f"| {ms:.3f} | {guess:.3f} | {guess / ms - 1:+.1%} |" for ms, guess in pairs]
    return [*lines, ""]


def row(label: str, errors: np.ndarray, spearman: float) -> str:
    """Returns one line of the summary table."""
    return f"| {label} | {np.median(errors):.1%} | {errors.max():.1%} | {spearman:.3f} |"


def main() -> None:
    """Measures both networks and writes the page."""
    backend = get_backend("onnxruntime")
    load = os.getloadavg()[0]
    lines = [
        "# Predicted against measured latency",
        "",
        f"Written by `python -m tests.bench.bm_predict` on {backend.device()}, {os.cpu_count()} "
        f"cores, Python {platform.python_version()}, torch {torch.__version__}; seed {SEED}, "
        f"{ROUNDS} rounds, input 1x3x224x224, float32. Load average at the start {load:.2f}.",
        "",
    ]
    for name, rules in CASES:
        outcome = run(name, rules, backend)
        lines += describe(outcome)
        print("\n".join(describe(outcome)), flush=True)
    load = os.getloadavg()[0]
    lines += [f"Load average at the end {load:.2f}."]
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
