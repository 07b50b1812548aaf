"""Networks from ONNX files: the same numbers, the same blocks, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from tests import nets
from tests.pipeline import tiny
from trt_layermerge.core.jsonio import sha256_file
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import (
    CorruptInputError,
    LayerMergeError,
    UnsupportedModelError,
    UsageError,
)
from trt_layermerge.export.exporters import export_raw
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.merge import certify, collapse, relax
from trt_layermerge.pipeline import onnx_operators
from trt_layermerge.pipeline.models import load_network, network_inputs
from trt_layermerge.pipeline.onnx_model import load_onnx
from trt_layermerge.pipeline.sections import ModelSection
from trt_layermerge.tracing import trace

SIZE = 32
SHAPE = (1, 3, SIZE, SIZE)
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def exported(model: nn.Module, path: Path, *, dynamic: bool = False) -> Path:
    """Writes what torch exports, uncleaned, as other people's files are."""
    raw = export_raw(model, torch.zeros(SHAPE), ("images", "logits"), dynamic)
    onnx.save(raw.model, path)
    return path


def images(count: int) -> torch.Tensor:
    return nets.example(size=SIZE, batch=count)[..., :SIZE]


class Odd(nn.Module):
    """Everything that is written in an unusual way: gates, uneven padding, reshaped outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, 2)
        self.second = nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.third = nn.Conv2d(6, 8, (1, 3), padding=(0, 1), dilation=(1, 1))
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.first(F.pad(x, (0, 1, 0, 1))))
        x = F.hardtanh(self.second(x), -1.5, 2.5) * 0.5
        x = F.hardswish(self.norm(self.third(x)))
        x = torch.cat([x[:, :4], x[:, 4:].tanh()], 1)
        x = F.avg_pool2d(x, 4, 4)
        return self.head(x.reshape(x.shape[0], -1)).softmax(1)


ZOO: dict[str, Callable[[], nn.Module]] = {
    "odd": Odd,
    "residual": lambda: nn.Sequential(nets.Basic(3, 8), nets.Basic(8, 12, 2), nets.Head(12)),
    "inverted": lambda: nn.Sequential(nets.Inverted(3, 6, 2), nets.Inverted(6, 6), nets.Head(6)),
    "branching": nets.Branching,
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", list(ZOO))
def test_the_network_is_the_one_that_was_exported(tmp_path: Path, name: str, dynamic: bool) -> None:
    model = nets.randomise(ZOO[name](), seed=3)
    network = load_onnx(exported(model, tmp_path / "a.onnx", dynamic=dynamic), SHAPE)
    with torch.no_grad():
        for count in (1, 3):
            torch.testing.assert_close(network(images(count)), model(images(count)), **TOLERANCE)
    assert not network.training
    if name == "odd":
        return  # its padding is a barrier in torch, and part of the convolution in ONNX
    mine, theirs = trace(network, images(2)), trace(model, images(2))
    for rules in ("paper", "full"):
        assert mine.blocks(rules) == theirs.blocks(rules)
    assert [u.spec for u in mine.units] == [u.spec for u in theirs.units]
    assert len(mine.residuals) == len(theirs.residuals)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_networks_of_torchvision(tmp_path: Path, name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    model = nets.randomise(models.get_model(name), seed=1)
    network = load_onnx(exported(model, tmp_path / "a.onnx"), SHAPE)
    with torch.no_grad():
        expected, found = model(images(2)), network(images(2))
    assert float((expected - found).abs().max() / expected.abs().max()) < 1e-4
    mine, theirs = trace(network, images(1)), trace(model, images(1))
    # Which convolutions of a block are kept follows their weights, into which BN was folded.
    found_here, expected_here = (
        {(c.block, c.kind, c.spec) for c in enumerate_candidates(graph, "full")}
        for graph in (mine, theirs)
    )
    assert len(found_here) > 100 and found_here == expected_here


def test_a_convolution_with_uneven_padding_merges(tmp_path: Path) -> None:
    model = nets.randomise(Odd(), seed=5)
    network = load_onnx(exported(model, tmp_path / "a.onnx"), SHAPE)
    graph = trace(network, images(2))
    assert graph.units[0].spec.padding == (0, 0, 1, 1)
    pair = next(
        c
        for c in enumerate_candidates(graph, "full")
        if c.kind == "compose" and (c.block.start, c.block.end) == (0, 2) and len(c.kept) == 2
    )
    relaxed = relax(network, graph, MergePlan.of(graph, [pair]))
    certificate = certify(relaxed, collapse(relaxed), images(2))
    assert certificate.ok


def graph_of(nodes: list[Any], weights: dict[str, Any], rank: int = 4) -> onnx.ModelProto:
    """Returns a model from ``x`` to ``y`` in single precision."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list("abcd"[:rank]))],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)
NODES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "SAME_UPPER": (
        [helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])],
        {"w": KERNEL},
    ),
    "SAME_LOWER": (
        [helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", strides=[2, 2])],
        {"w": KERNEL},
    ),
    "uneven pool": (
        [
            helper.make_node(
                "MaxPool", ["x"], ["y"], kernel_shape=[3, 3], pads=[0, 0, 1, 1], strides=[2, 2]
            )
        ],
        {},
    ),
    "pool without padding": (
        [helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        {},
    ),
    "gemm": (
        [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("Gemm", ["f", "w", "b"], ["y"], alpha=0.5, beta=2.0),
        ],
        {"w": RNG.normal(size=(192, 5)).astype(np.float32), "b": np.float32(0.25)},
    ),
    "other hard sigmoid": ([helper.make_node("HardSigmoid", ["x"], ["y"])], {}),
    "mean": ([helper.make_node("ReduceMean", ["x"], ["y"], axes=[-1, 2], keepdims=0)], {}),
    "squeeze": (
        [
            helper.make_node("GlobalAveragePool", ["x"], ["p"]),
            helper.make_node("Squeeze", ["p", "axes"], ["s"]),
            helper.make_node("Unsqueeze", ["s", "one"], ["y"]),
        ],
        {"axes": np.array([2, 3]), "one": np.array([-1])},
    ),
    "split": (
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]),
            helper.make_node("Split", ["t", "sizes"], ["a", "b"], axis=3),
            helper.make_node("Concat", ["b", "a"], ["y"], axis=-1),
        ],
        {"sizes": np.array([1, 2])},
    ),
    "constants first": (
        [
            helper.make_node("Sub", ["c", "x"], ["s"]),
            helper.make_node("Pow", ["s", "two"], ["p"]),
            helper.make_node("Div", ["p", "c"], ["y"]),
        ],
        {"c": np.arange(1, 4, dtype=np.float32)[:, None, None], "two": np.float32(2)},
    ),
    "slice": (
        [helper.make_node("Slice", ["x", "s", "e", "a", "t"], ["y"])],
        {
            "s": np.array([1, 0]),
            "e": np.array([2**63 - 1, 7]),
            "a": np.array([2, -1]),
            "t": np.array([1, 2]),
        },
    ),
}


RANKS = {"gemm": 2, "mean": 2, "squeeze": 3}


@pytest.mark.parametrize("name", list(NODES))
def test_operators_compute_what_onnx_says(tmp_path: Path, name: str) -> None:
    from onnx.reference import ReferenceEvaluator

    nodes, weights = NODES[name]
    model = graph_of(nodes, weights, RANKS.get(name, 4))
    onnx.save(model, tmp_path / "a.onnx")
    x = RNG.normal(size=(1, 3, 8, 8)).astype(np.float32)
    expected = ReferenceEvaluator(model).run(None, {"x": x})[0]
    with torch.no_grad():
        found = load_onnx(tmp_path / "a.onnx", (1, 3, 8, 8))(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_is_read_wrongly_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    path = exported(nets.randomise(Odd(), seed=3), tmp_path / "a.onnx")
    wrong = {**onnx_operators.OPERATORS, "Tanh": onnx_operators.OPERATORS["Relu"]}
    monkeypatch.setattr("trt_layermerge.pipeline.onnx_model.OPERATORS", wrong)
    with pytest.raises(UnsupportedModelError, match="computes something else"):
        load_onnx(path, SHAPE)


def test_refusals_name_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(UsageError, match="there is no ONNX file"):
        load_onnx(path, SHAPE)
    cases: list[tuple[list[Any], dict[str, Any], type[LayerMergeError], str]] = [
        (
            [helper.make_node("Cos", ["x"], ["a"]), helper.make_node("Acos", ["a"], ["y"])],
            {},
            UnsupportedModelError,
            "Acos, Cos",
        ),
        (
            [
                helper.make_node("QuantizeLinear", ["x", "s"], ["q"]),
                helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
            ],
            {"s": np.float32(0.1)},
            UnsupportedModelError,
            "quantised already",
        ),
        (
            [helper.make_node("Conv", ["x", "x"], ["y"])],
            {},
            UnsupportedModelError,
            "only constants",
        ),
        (
            [
                helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32),
                helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
            ],
            {},
            UnsupportedModelError,
            "integers",
        ),
    ]
    for nodes, weights, kind, message in cases:
        onnx.save(graph_of(nodes, weights), path)
        with pytest.raises(kind, match=message):
            load_onnx(path, (1, 3, 8, 8))
    onnx.save(graph_of([helper.make_node("Relu", ["x"], ["y"])], {}), path)
    with pytest.raises(UsageError, match="takes inputs of shape 1x3x8x8"):
        load_onnx(path, SHAPE)
    with pytest.raises(UsageError, match="brings its own weights"):
        load_network(ModelSection(name=str(path), weights="w.safetensors"))


def test_damaged_files_end_in_our_errors(tmp_path: Path) -> None:
    path = exported(nets.randomise(nn.Sequential(*nets.conv_bn(3, 4, 3)), 0), tmp_path / "a.onnx")
    good, rng = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(60):
        mutated = bytearray(good[: rng.randrange(len(good))] if rng.random() < 0.3 else good)
        for _ in range(3):
            if mutated:
                mutated[rng.randrange(min(len(mutated), 200))] = rng.randrange(256)
        path.write_bytes(mutated)
        try:
            load_onnx(path, SHAPE)
        except LayerMergeError:
            refused += 1
    assert refused > 20
    path.write_bytes(b"not a model")
    with pytest.raises(CorruptInputError, match="no valid ONNX model"):
        load_onnx(path, SHAPE)


def test_weights_in_half_precision_and_beside_the_file(tmp_path: Path) -> None:
    model = nets.randomise(ZOO["residual"](), seed=2)
    path = exported(model, tmp_path / "a.onnx")
    section = ModelSection(name=str(path), input=SHAPE)
    assert network_inputs(section)["source"] == {"a.onnx": sha256_file(path)}
    expected = load_network(section).state_dict()

    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert all(torch.equal(v, expected[k]) for k, v in load_network(section).state_dict().items())
    before = network_inputs(section)
    assert set(before["source"]) == {"a.onnx", "w.bin"}
    content = bytearray((tmp_path / "w.bin").read_bytes())
    content[-2] ^= 1
    (tmp_path / "w.bin").write_bytes(content)
    assert network_inputs(section) != before

    raw = export_raw(model.half().float(), torch.zeros(SHAPE), ("images", "logits"), False).model
    for tensor in raw.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for value in (*raw.graph.input, *raw.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(raw, path)
    for value in load_network(section).state_dict().values():
        assert not value.is_floating_point() or value.dtype == torch.float32


def test_a_whole_run_needs_nothing_but_the_file(tmp_path: Path) -> None:
    recipe = tiny.write_project(tmp_path)
    weights = str(tmp_path / "tiny.safetensors")
    model = load_network(ModelSection(name=f"{tmp_path / 'nets.py'}:tiny", weights=weights))
    raw = export_raw(model, torch.zeros(1, 3, 16, 16), ("images", "logits"), False)
    onnx.save(raw.model, tmp_path / "tiny.onnx")
    text = recipe.read_text().replace(
        'name: "nets.py:tiny", weights: tiny.safetensors', "name: tiny.onnx"
    )
    assert "nets.py" not in text
    recipe.write_text(text)
    (tmp_path / "nets.py").unlink()
    summary, _ = tiny.run(tmp_path / "runs", recipe)
    images, labels = (np.load(tmp_path / "test.npz")[k] for k in ("images", "labels"))
    with torch.no_grad():
        answers = model(torch.from_numpy(tiny.PREPROCESS(images))).numpy()
    assert summary["original"]["accuracy"] == float(np.mean(answers.argmax(1) == labels))
    assert summary["merged"]["latency_ms"] <= summary["budget_ms"]
    assert summary["merged"]["convs"] < summary["original"]["convs"] == 8
    _, again = tiny.run(tmp_path / "runs")
    assert again.stages("run") == ()
