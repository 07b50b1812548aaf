"""Two made-up runs: a 20-unit ResNet and a 52-unit MobileNetV2, built from core's dataclasses."""

from __future__ import annotations

from dataclasses import replace

from trt_layermerge.core.candidate import Candidate, finish, merged_spec
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.core.unit import (
    Barrier,
    Block,
    ConvUnit,
    Residual,
    Segment,
    Shortcut,
    UnitNodes,
)
from trt_layermerge.report.data import (
    Accuracy,
    Bench,
    Epoch,
    Finalist,
    Pairing,
    PredictionError,
    RunReport,
    Stop,
    Timing,
)
from trt_layermerge.report.page import pages, view_of
from trt_layermerge.report.summary import checked_summary

PAIRINGS = (
    Pairing(
        "fp16",
        Timing(0.8421, 0.861, 0.902, 1187.5, 0.031, 12.25, 6.875),
        Timing(0.4135, 0.4203, 0.4461, 2418.4, 0.019, 11.5, 3.125),
        2.04,
        2.01,
        2.07,
    ),
    Pairing(
        "int8", Timing(0.61, 0.62, 0.63, 1639.0), Timing(0.31, 0.32, 0.33, 3226.0), 1.97, 1.9, 2.0
    ),
)


def layer(name: str, sqnr_db: float, kl: float) -> dict[str, object]:
    return {"name": name, "op": "Conv", "sqnr_db": sqnr_db, "kl": kl}


CALIBRATION = {
    "reason": None,
    "networks": {
        "merged": {
            "preset": {"method": "entropy", "images": 512, "max_accuracy_drop": 0.01},
            "accuracy_fp32": 0.8992,
            "accuracy_int8": 0.8951,
            "agreement": 0.9875,
            "images_judged": 1000,
            "keep_float": ["/stem/Conv"],
            "layers": [layer("/stem/Conv", 14.25, 0.03125), layer("/head/Conv", 41.5, 0.0001)],
        }
    },
}

DEVICE = DeviceInfo("onnxruntime", "1.31.0", "Example CPU", "1 thread, pinned")


def conv(
    c_in: int, c_out: int, kernel: int, size: int, stride: int = 1, groups: int = 1
) -> ConvSpec:
    pad = kernel // 2
    return ConvSpec(
        c_in, c_out, (kernel, kernel), (stride, stride), (pad,) * 4, (1, 1), groups, size, size
    )


class Builder:
    """Collects units and residuals in the order of execution."""

    def __init__(self) -> None:
        self.units: list[ConvUnit] = []
        self.residuals: list[Residual] = []

    def unit(
        self, name: str, spec: ConvSpec, activation: str | None, residual: bool = False
    ) -> None:
        index = len(self.units)
        nodes = UnitNodes(f"c{index}", f"b{index}", f"s{index}", f"o{index}")
        full = replace(spec, activation=activation, residual=residual)
        self.units.append(ConvUnit(index, name, name + ".bn", activation, full, nodes))

    def graph(
        self, segments: tuple[Segment, ...], barriers: tuple[Barrier, ...] = ()
    ) -> LayerGraph:
        side = self.units[0].spec.height
        return LayerGraph(
            tuple(self.units), segments, tuple(self.residuals), barriers, (1, 3, side, side)
        )


def resnet20() -> LayerGraph:
    """Nineteen 3x3 convolutions, two projections, on 16x16, 8x8 and 4x4 maps."""
    b = Builder()
    b.unit("stem.0", conv(3, 16, 3, 32, 2), "relu")
    channels, size = 16, 16
    for width, first in ((16, 1), (32, 2), (64, 2)):
        for stride in (first, 1, 1):
            start, name = len(b.units), f"blocks.{len(b.units) // 2}"
            b.unit(f"{name}.conv1", conv(channels, width, 3, size, stride), "relu")
            projection = conv(channels, width, 1, size, stride) if stride > 1 else None
            size //= stride
            b.unit(f"{name}.conv2", conv(width, width, 3, size), "relu", residual=True)
            path = f"{name}.shortcut.0" if projection else None
            b.residuals.append(Residual(start, start + 2, (Shortcut(path, path, projection, "x"),)))
            channels = width
    return b.graph((Segment(0, 19),))


def mobilenet() -> LayerGraph:
    """Fifty-two convolutions of MobileNetV2 at 224x224, with one invented barrier."""
    b = Builder()
    b.unit("conv_stem", conv(3, 32, 3, 224, 2), "relu6")
    b.unit("blocks.0.dw", conv(32, 32, 3, 112, groups=32), "relu6")
    b.unit("blocks.0.pw", conv(32, 16, 1, 112), None)
    channels, size = 16, 112
    table = ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
    for width, repeats, first in table:
        for i in range(repeats):
            stride, hidden, start = (first if i == 0 else 1), channels * 6, len(b.units)
            skip = stride == 1 and channels == width
            b.unit(f"b{start}.pw", conv(channels, hidden, 1, size), "relu6")
            b.unit(f"b{start}.dw", conv(hidden, hidden, 3, size, stride, hidden), "relu6")
            size //= stride
            b.unit(f"b{start}.pwl", conv(hidden, width, 1, size), None, residual=skip)
            if skip:
                b.residuals.append(Residual(start, start + 3, (Shortcut(None, None, None, "x"),)))
            channels = width
    b.unit("conv_head", conv(320, 1280, 1, 7), "relu6")
    reason = "the output of b29.pwl is read by squeeze-and-excitation <mean>, which mixes places"
    barriers = (Barrier("mean_1", reason, 32), Barrier("fc", "Linear is not a convolution"))
    return b.graph((Segment(0, 33), Segment(33, 52)), barriers)


def compose(graph: LayerGraph, start: int, end: int, *kept: int) -> Candidate:
    block = Block(start, end)
    return finish(graph, block, "compose", kept, (merged_spec(graph, block, kept),))


def fit(graph: LayerGraph, start: int, end: int, kernel: int) -> Candidate:
    first, last = graph.units[start].spec, graph.units[end - 1].spec
    stride = first.height // last.out_size[0]
    spec = conv(first.in_channels, last.out_channels, kernel, first.height, stride)
    return finish(graph, Block(start, end), "fit", (), (spec,))


def identity(graph: LayerGraph, start: int, end: int) -> Candidate:
    return finish(graph, Block(start, end), "identity", (), ())


def resnet_plan(graph: LayerGraph) -> MergePlan:
    """One change of every kind: composed, fitted, identity, dropped inside an open residual."""
    changes = [
        compose(graph, 1, 3, 1, 2),
        identity(graph, 3, 5),
        fit(graph, 7, 9, 3),
        compose(graph, 9, 11, 10),
        identity(graph, 11, 12),
        fit(graph, 13, 17, 3),
    ]
    return replace(MergePlan.of(graph, changes), latency_ms=0.412, score=17.31, budget_ms=0.42)


def mobilenet_plan(graph: LayerGraph) -> MergePlan:
    """Merges and removes whole inverted residuals, and one pair inside an open one."""
    changes = [
        compose(graph, 1, 3, 1, 2),
        compose(graph, 3, 6, 3, 4, 5),
        identity(graph, 6, 9),
        compose(graph, 12, 15, 12, 14),
        identity(graph, 15, 18),
        compose(graph, 21, 24, 21, 22, 23),
        identity(graph, 25, 26),
        fit(graph, 33, 39, 5),
        identity(graph, 45, 48),
        compose(graph, 48, 51, 48, 49, 50),
    ]
    return replace(MergePlan.of(graph, changes), latency_ms=7.9, score=40.2, budget_ms=8.0)


def network(accuracy: float, latency_ms: float, convs: int, activations: int) -> dict[str, object]:
    return {
        "accuracy": accuracy,
        "latency_ms": latency_ms,
        "convs": convs,
        "activations": activations,
        "latency_p10_ms": 0.98 * latency_ms,
        "latency_p90_ms": 1.02 * latency_ms,
    }


def html(run: RunReport) -> str:
    return pages(view_of(run))["report.html"]


def markdown(run: RunReport) -> str:
    return pages(view_of(run))["report.md"]


def resnet_run() -> RunReport:
    """A complete run on the ResNet: every part is there, and the budget is met."""
    graph = resnet20()
    plan = resnet_plan(graph)
    finalists = (
        Finalist("plan 1", 0.398, 0.409, 17.12),
        Finalist("plan 2", 0.412, 0.4135, 17.31, chosen=True),
        Finalist("plan 3", 0.419, 0.431, 17.40),
        Finalist("plan 4", 0.405, 0.397, 17.20),
        Finalist("plan 5", 0.377, 0.381, 16.90),
    )
    summary = checked_summary(
        {
            "original": network(0.9018, 0.8421, 21, 19),
            "merged": network(0.8992, 0.4135, plan.conv_count, plan.activation_count),
            "repaired": {"accuracy": 0.7312},
            "speedup": 2.04,
            "predicted_ms": 0.412,
            "budget_ms": 0.42,
            "certificate_max_rel_error": 3.1e-15,
            "precision": "fp32",
            "backend": "onnxruntime",
            "batch": 1,
            "seed": 7,
            "preprocess": Preprocess().to_json(),
            "input": {"name": "input", "shape": [1, 3, 32, 32]},
            "speedup_low": 2.01,
            "speedup_high": 2.07,
            "device": str(DEVICE),
            "notes": [],
            "agreement": 0.9725,
            "compared_on": "5000 test images",
        }
    )
    curve = [(0.30 + 0.45 * 0.01 * i, 19 - 14.0 / (1 + 0.35 * i)) for i in range(60)]
    losses = (0.91, 0.62, 0.51, 0.44, 0.41, 0.37, 0.36, 0.345)
    shares = (0.812, 0.846, 0.861, 0.874, 0.881, 0.889, 0.8985, 0.897)
    return RunReport(
        title="ResNet-20 on glyphs, 2x",
        model="examples/glyphs/nets.py:resnet20",
        device=DEVICE,
        graph=graph,
        plan=plan,
        summary=summary,
        frontier=tuple(curve),
        stops=resnet_stops(plan),
        untouched=(0.82, 19.0),
        finalists=finalists,
        prediction=PredictionError(len(finalists), 0.020, 0.028, 1.0),
        accuracies={
            "original": Accuracy(0.9018, 5000),
            "repaired": Accuracy(0.7312, 5000),
            "merged": Accuracy(0.8992, 5000),
        },
        history=tuple(
            Epoch(i + 1, loss, share)
            for i, (loss, share) in enumerate(zip(losses, shares, strict=True))
        ),
        certificate={
            "max_rel_error": 3.1e-15,
            "tolerance": 1e-10,
            "passed": True,
            "blocks": [
                {"start": 1, "end": 3, "max_rel_error": 3.1e-15},
                {"start": 3, "end": 5, "max_rel_error": 0.0},
            ],
        },
        bench=Bench(
            "fp32",
            Timing(0.8421, 0.861, 0.902, 1187.5),
            Timing(0.4135, 0.4203, 0.4461, 2418.4),
            2.04,
            2.01,
            2.07,
            "10 % to 90 % of 40 paired rounds",
            reason="the GPU's clock is free (306 MHz of 306 to 624, not locked)",
            pairings=PAIRINGS,
            notes=("timed by events around launches of a CUDA graph", "power mode 25W"),
        ),
        calibration=CALIBRATION,
        verify={"onnx_max_abs_error": 2.4e-6, "gate": {"max_drop_points": 0.5, "passed": True}},
        engine={"precision": "fp16", "tensorrt": "10.16", "sha256": "ab" * 32},
        unverified=("No TensorRT engine was run: this machine has no NVIDIA GPU.",),
        versions={"python": "3.11.9", "torch": "2.15.0", "onnxruntime": "1.31.0"},
        recipe="model: examples/glyphs/nets.py:resnet20\nspeedup: 2.0\n",
        stage_seconds={"latency": 19.2, "importance": 89.0, "search": 0.5, "finetune": 725.0},
    )


def resnet_stops(plan: MergePlan) -> tuple[Stop, ...]:
    """The plan's first changes one after the other, then all of them, and none: fastest first."""
    changes = tuple(c.change for c in plan.changed)
    fewer = [
        Stop(0.84 - 0.07 * n, 19 - 0.3 * n, changes[:n], chosen=False) for n in range(len(changes))
    ]
    return Stop(0.412, 17.31, changes, 0.4135, True), *reversed(fewer)


def mobilenet_run() -> RunReport:
    """A run with the least that a run can have: a graph, a plan and a missed budget."""
    graph = mobilenet()
    plan = mobilenet_plan(graph)
    return RunReport(
        title="MobileNetV2, search only",
        model="timm:mobilenetv2_100",
        device=DEVICE,
        graph=graph,
        plan=plan,
    )
