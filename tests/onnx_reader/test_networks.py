"""Exports of detectors, text finders, segmentation and super-resolution, by both exporters."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tests import nets
from tests.onnx_reader.real_nets import NETS
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.merge import certify, collapse, relax
from trt_layermerge.onnx_reader import load_onnx
from trt_layermerge.tracing import trace

SHAPE = (1, 3, 64, 96)
TOLERANCE = 1e-5
"""Of the largest value of each output, in single precision."""


def images(count: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(count, *shape[1:], generator=torch.Generator().manual_seed(count))


def exported(model: nn.Module, path: Path, how: str, opset: int = 17) -> list[str]:
    """Writes what ``torch.onnx.export`` makes of a model; returns the names of its outputs.

    Args:
        model: The network, in eval mode.
        path: Where to.
        how: ``fixed`` for sizes as they are, ``free`` for a free batch, rows and columns; ``new``
            for the exporter of ``torch.export``.
        opset: Of the file, where the exporter is the older one.
    """
    example = images(2 if how == "free" else 1)
    with torch.no_grad():
        count = len(tuples(model(example)))
    names = [f"head.{i}" for i in range(count)]
    axes = {name: {0: "n", 2: "h", 3: "w"} for name in ("images", *names)}
    options: dict[str, Any] = {"dynamo": False, "opset_version": opset}
    if how == "free":
        options["dynamic_axes"] = {"images": axes["images"], **{n: {0: "n"} for n in names}}
    if how == "new":
        options = {"dynamo": True, "opset_version": 18, "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what it traces, and that it is old
        torch.onnx.export(
            model, (example,), str(path), input_names=["images"], output_names=names, **options
        )
    return names


def tuples(value: Any) -> tuple[Tensor, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def largest_difference(found: Any, expected: Any) -> float:
    """Returns the largest difference over the largest value, of all outputs."""
    pairs = list(zip(tuples(found), tuples(expected), strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def runtime(path: Path, x: Tensor) -> tuple[Tensor, ...]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return tuple(map(torch.from_numpy, session.run(None, {"images": x.numpy()})))


NEW = ("detector by bins", "text", "segmentation by corners")
"""Networks that the newer exporter, which takes seconds, writes too."""


@pytest.mark.parametrize(
    ("name", "how"),
    [*((name, how) for name in NETS for how in ("fixed", "free")), *((n, "new") for n in NEW)],
)
def test_exports_are_read_as_onnx_runtime_computes_them(
    tmp_path: Path, name: str, how: str
) -> None:
    model = nets.randomise(NETS[name](), seed=1)
    names = exported(model, tmp_path / "a.onnx", how)
    network = load_onnx(tmp_path / "a.onnx", SHAPE)
    assert network.meta["outputs"] == tuple(names)
    with torch.no_grad():
        expected = runtime(tmp_path / "a.onnx", images(1))
        assert largest_difference(network(images(1)), expected) <= TOLERANCE
        assert largest_difference(network(images(3)), model(images(3))) <= TOLERANCE


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("name", ["detector at anchors", "text", "segmentation"])
def test_exports_of_older_opsets(tmp_path: Path, name: str, opset: int) -> None:
    model = nets.randomise(NETS[name](), seed=1)
    exported(model, tmp_path / "a.onnx", "free", opset)
    network = load_onnx(tmp_path / "a.onnx", SHAPE)
    with torch.no_grad():
        assert largest_difference(network(images(3)), model(images(3))) <= TOLERANCE


class Logits(nn.Module):
    """The map of a network of torchvision that answers with a dictionary."""

    def __init__(self, name: str) -> None:
        super().__init__()
        models = pytest.importorskip("torchvision.models")
        self.inner = models.get_model(name, weights=None, weights_backbone=None, num_classes=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)["out"]


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_segmentation_of_torchvision(tmp_path: Path, name: str) -> None:
    model = nets.randomise(Logits(name), seed=1)
    exported(model, tmp_path / "a.onnx", "free")
    network = load_onnx(tmp_path / "a.onnx", SHAPE)
    with torch.no_grad():
        expected = runtime(tmp_path / "a.onnx", images(1))
        assert largest_difference(network(images(1)), expected) <= TOLERANCE


@pytest.mark.parametrize("name", ["detector", "text", "super-resolution"])
def test_a_plan_of_a_file_goes_to_its_certificate(tmp_path: Path, name: str) -> None:
    model = nets.randomise(NETS[name](), seed=2)
    exported(model, tmp_path / "a.onnx", "fixed")
    network, x = load_onnx(tmp_path / "a.onnx", SHAPE), images(2)
    graph = trace(network, x)
    theirs = trace(model, x)
    assert [u.spec for u in graph.conv_units] == [u.spec for u in theirs.conv_units]
    spans = [[(b.start, b.end) for b in g.branches] for g in (graph, theirs)]
    assert spans[0] == spans[1]
    candidates = enumerate_candidates(graph, "full")
    composed = next(
        c for c in candidates if c.kind == "compose" and c.block.end - c.block.start > 1
    )
    relaxed = relax(network, graph, MergePlan.of(graph, [composed]))
    merged = collapse(relaxed)
    certificate = certify(relaxed, merged, x)
    assert certificate.ok
    convs = [sum(isinstance(m, nn.Conv2d) for m in n.modules()) for n in (network, merged)]
    assert convs[1] < convs[0]
    unchanged = relax(network, graph, MergePlan.of(graph, []))
    with torch.no_grad():
        for own, other in zip(tuples(unchanged(x)), tuples(network(x)), strict=True):
            # bit by bit but where a constant was folded into a weight
            assert (own - other).abs().max() <= 1e-6 * other.abs().max()
