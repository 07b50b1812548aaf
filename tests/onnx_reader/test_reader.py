"""Networks from ONNX files: the same numbers, the same blocks, and what is refused."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from dataclasses import replace
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
from tests.onnx_reader.test_operators import graph_of
from tests.pipeline import tiny
from trt_layermerge.backends import get_backend
from trt_layermerge.core.conv import ConvSpec, PieceSpec, Spec
from trt_layermerge.core.jsonio import sha256_file
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.unit import Unit
from trt_layermerge.errors import (
    CorruptInputError,
    LayerMergeError,
    UnsupportedModelError,
    UsageError,
)
from trt_layermerge.export.exporters import Names, export_raw
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.measure.spec_model import spec_model
from trt_layermerge.merge import certify, collapse, relax
from trt_layermerge.models.networks import load_network, network_inputs
from trt_layermerge.onnx_reader import load_onnx, onnx_hashes, operators, read_onnx
from trt_layermerge.tracing import trace


def bomb(path: Path, count: int) -> Path:
    """Writes a network of 168 bytes that adds the largest of so many zeros."""
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["c"]),
        helper.make_node("ReduceMax", ["c"], ["m"], keepdims=0),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 3, 8, 8)) for n in "xy"]
    shape = numpy_helper.from_array(np.array([count]), "s")
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [shape])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def test_a_few_bytes_are_not_folded_into_gigabytes(tmp_path: Path) -> None:
    assert load_onnx(bomb(tmp_path / "small.onnx", 10), (1, 3, 8, 8)) is not None
    words = r"ConstantOfShape\) makes a constant of 1,100,000,000 values, .* up to 1024 MiB"
    with pytest.raises(UnsupportedModelError, match=words):
        load_onnx(bomb(tmp_path / "large.onnx", 1_100_000_000), (1, 3, 8, 8))


@pytest.mark.parametrize("kind", ["pipe", "device", "short"])
@pytest.mark.parametrize("read", [lambda path: load_onnx(path, SHAPE), onnx_hashes])
def test_weights_beside_a_file_are_a_file(tmp_path: Path, kind: str, read: Any) -> None:
    path = exported(nets.plain_chain(), tmp_path / "m.onnx")
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="w", size_threshold=0)
    beside = tmp_path / "w"
    data = beside.read_bytes()
    beside.unlink()
    if kind == "pipe":
        os.mkfifo(beside)
    elif kind == "device":
        beside.symlink_to("/dev/zero")
    else:
        beside.write_bytes(data[:-1])
    with pytest.raises(CorruptInputError, match=r"is no file beside it|bytes, and .* ends at"):
        read(path)


SIZE = 32
SHAPE = (1, 3, SIZE, SIZE)
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def exported(model: nn.Module, path: Path, *, dynamic: bool = False) -> Path:
    """Writes what torch exports, uncleaned, as other people's files are."""
    raw = export_raw(model, torch.zeros(SHAPE), Names(["images"], ["scores"]), dynamic)
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


def bare(unit: Unit) -> Spec:
    """Returns what a unit computes; of a piece, whose operations are others in ONNX, its sizes."""
    return replace(unit.spec, digest="") if isinstance(unit.spec, PieceSpec) else unit.spec


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
    assert [bare(u) for u in mine.units] == [bare(u) for u in theirs.units]
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


def stacked(first: str, second: str) -> onnx.ModelProto:
    """Returns two convolutions in a row, named as given."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name=first),
        helper.make_node("Conv", ["a", "v"], ["y"], name=second),
    ]
    weights = np.random.default_rng(1).normal(size=(2, 4, 4, 3, 3)).astype(np.float32)
    return graph_of(nodes, {"w": weights[0][:, :3], "v": weights[1]})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("c", "c"),
        ("", ""),
        ("a.b", "a/b"),
        ("graph", "code"),
        ("meta", "lambda"),
        ("forward", "training"),
        ("0", "größe"),
    ],
)
def test_any_names_of_nodes_will_do(tmp_path: Path, first: str, second: str) -> None:
    onnx.save(stacked(first, second), tmp_path / "a.onnx")
    network = load_onnx(tmp_path / "a.onnx", (1, 3, 8, 8))  # compares with ONNX Runtime
    names = [name for name, _ in network.named_children()]
    assert len(names) == len(set(names)) == 2 and all(name.isidentifier() for name in names)
    plain = load_onnx(_saved(stacked("one", "two"), tmp_path), (1, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(x), plain(x))


def _saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "plain.onnx")
    return folder / "plain.onnx"


def test_a_third_node_of_the_same_name_takes_nobodys() -> None:
    model = stacked("c", "c")
    model.graph.node.append(helper.make_node("Relu", ["y"], ["z"], name="c_1"))
    model.graph.output[0].name = "z"
    network = read_onnx(model)
    assert [name for name, _ in network.named_children()] == ["c", "c_2"]
    assert [node.name for node in model.graph.node] == ["c", "c", "c_1"]  # left untouched


def test_several_outputs_are_a_tuple_under_their_names(tmp_path: Path) -> None:
    model = stacked("one", "two")
    model.graph.output.insert(
        0, helper.make_tensor_value_info("a", TensorProto.FLOAT, list("abcd"))
    )
    onnx.save(model, tmp_path / "a.onnx")
    network = load_onnx(tmp_path / "a.onnx", (1, 3, 8, 8))
    assert network.meta["inputs"] == ("x",) and network.meta["outputs"] == ("a", "y")
    found = network(torch.ones(1, 3, 8, 8))
    assert [tuple(value.shape) for value in found] == [(1, 4, 6, 6), (1, 4, 4, 4)]
    assert len(trace(network, torch.ones(1, 3, 8, 8)).units) == 2
    assert copy.deepcopy(network).meta["outputs"] == ("a", "y")
    loaded = load_network(str(tmp_path / "a.onnx"), None, (1, 3, 8, 8))
    assert all(
        torch.equal(a, b) for a, b in zip(loaded(images(1)), network(images(1)), strict=True)
    )


def gates() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3), nn.Mish(), nn.Conv2d(4, 4, 1), nn.SiLU()
    )


@pytest.mark.parametrize("size", [1.0, 3.0])
def test_activations_of_several_nodes_get_their_names_back(tmp_path: Path, size: float) -> None:
    model = nets.randomise(gates(), seed=4)
    network = load_onnx(exported(model, tmp_path / "a.onnx"), SHAPE)
    assert {"Erf", "Softplus", "Sigmoid"} <= {
        node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node
    }
    found = [unit.activation for unit in trace(network, images(1)).units]
    assert found == ["gelu", "mish", "silu"]
    x = images(1) * size
    with torch.no_grad():
        torch.testing.assert_close(network(x), model(x), **TOLERANCE)


@pytest.mark.parametrize("number", ["half", "root"])
def test_what_only_looks_like_gelu_is_none(tmp_path: Path, number: str) -> None:
    model = onnx.load(exported(nets.randomise(gates(), seed=4), tmp_path / "a.onnx"))
    value = {"half": 0.5, "root": 2**0.5}[number]
    changed = 0
    tensors = [*model.graph.initializer, *(a.t for n in model.graph.node for a in n.attribute)]
    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT and not any(d > 1 for d in tensor.dims):
            array = numpy_helper.to_array(tensor)
            if abs(float(array.item()) - value) < 1e-6:
                tensor.CopyFrom(numpy_helper.from_array(array * np.float32(1.1), tensor.name))
                changed += 1
    assert changed == 1
    onnx.save(model, tmp_path / "b.onnx")
    network = load_onnx(tmp_path / "b.onnx", SHAPE)  # compares with ONNX Runtime
    assert "gelu" not in [unit.activation for unit in trace(network, images(1)).units]


def half_typed() -> onnx.ModelProto:
    """Returns a network of two inputs in half precision, with a cast to single at its end."""
    model = onnx.load_model_from_string(spec_model(HALF, "fp16", 2))
    model.graph.node.append(helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT))
    output = helper.make_tensor_value_info("z", TensorProto.FLOAT, (2, 6, 9, 8))
    model.graph.output[0].CopyFrom(output)
    return model


HALF = ConvSpec(4, 6, (3, 3), (1, 1), (0, 1, 2, 1), (1, 1), 1, 9, 8, "hardswish", True)


def test_a_file_keeps_its_types_or_becomes_single() -> None:
    pytest.importorskip("onnxruntime")
    model = half_typed()
    own, single = read_onnx(model, dtype=None), read_onnx(model.SerializeToString())
    rng = np.random.default_rng(2)
    inputs = [rng.normal(size=s).astype(np.float16) for s in ((2, 4, 9, 8), (2, 6, 9, 8))]
    with torch.inference_mode():
        kept = own(*map(torch.from_numpy, inputs))
        wide = single(*(torch.from_numpy(x).float() for x in inputs))
    assert {v.dtype for v in own.state_dict().values()} == {torch.float16}
    assert {v.dtype for v in single.state_dict().values()} == {torch.float32}
    assert kept.dtype == wide.dtype == torch.float32
    with get_backend("onnxruntime").open(model.SerializeToString()) as runner:
        expected = runner.infer(dict(zip(("x", "residual"), inputs, strict=True)))["z"]
    np.testing.assert_allclose(wide.numpy(), expected, atol=2e-2)
    np.testing.assert_allclose(kept.numpy(), expected, atol=2e-2)
    assert float((kept - kept.half().float()).abs().max()) == 0 < float((kept - wide).abs().max())


def test_sizes_and_inputs_must_be_told(tmp_path: Path) -> None:
    free = exported(nets.randomise(ZOO["branching"](), 0), tmp_path / "a.onnx", dynamic=True)
    with pytest.raises(UnsupportedModelError, match="leaves sizes of images free"):
        read_onnx(free.read_bytes())
    onnx.save(half_typed(), tmp_path / "b.onnx")
    with pytest.raises(UnsupportedModelError, match=r"has 2 inputs \(x, residual\)"):
        load_onnx(tmp_path / "b.onnx", (1, 4, 9, 8))


def test_what_is_read_wrongly_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    path = exported(nets.randomise(Odd(), seed=3), tmp_path / "a.onnx")
    wrong = {**operators.OPERATORS, "Tanh": operators.OPERATORS["Relu"]}
    monkeypatch.setattr("trt_layermerge.onnx_reader.reader.OPERATORS", wrong)
    with pytest.raises(UnsupportedModelError, match="computes something else"):
        load_onnx(path, SHAPE)


def test_what_onnx_runtime_cannot_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing of its is printed to stdout either, where results for machines go."""
    import onnxruntime

    onnx.save(stacked("one", "two"), tmp_path / "a.onnx")

    def session(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel\nfor bfloat16")

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(UnsupportedModelError, match="no kernel for bfloat16; export it again"):
        load_onnx(tmp_path / "a.onnx", (1, 3, 8, 8))
    assert capfd.readouterr().out == ""


def test_refusals_name_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(UsageError, match="there is no ONNX file"):
        load_onnx(path, SHAPE)
    cases: list[tuple[list[Any], dict[str, Any], type[LayerMergeError], str]] = [
        (
            [helper.make_node("Tan", ["x"], ["a"]), helper.make_node("Acos", ["a"], ["y"])],
            {},
            UnsupportedModelError,
            r"Acos \(which makes y\), Tan \(which makes a\)",
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
        load_onnx(path, (1, 1, 8, 8))
    with pytest.raises(UsageError, match="brings its own weights"):
        load_network(str(path), "w.safetensors")


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
    named = (str(path), None, SHAPE)
    assert network_inputs(*named)["source"] == {"a.onnx": sha256_file(path)}
    expected = load_network(*named).state_dict()

    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert all(torch.equal(v, expected[k]) for k, v in load_network(*named).state_dict().items())
    before = network_inputs(*named)
    assert set(before["source"]) == {"a.onnx", "w.bin"}
    content = bytearray((tmp_path / "w.bin").read_bytes())
    content[-2] ^= 1
    (tmp_path / "w.bin").write_bytes(content)
    assert network_inputs(*named) != before

    raw = export_raw(
        model.half().float(), torch.zeros(SHAPE), Names(["images"], ["scores"]), False
    ).model
    for tensor in raw.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for value in (*raw.graph.input, *raw.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(raw, path)
    for value in load_network(*named).state_dict().values():
        assert not value.is_floating_point() or value.dtype == torch.float32


def test_a_whole_run_needs_nothing_but_the_file(tmp_path: Path) -> None:
    recipe = tiny.write_project(tmp_path)
    weights = str(tmp_path / "tiny.safetensors")
    model = load_network(f"{tmp_path / 'nets.py'}:tiny", weights)
    raw = export_raw(model, torch.zeros(1, 3, 16, 16), Names(["images"], ["scores"]), False)
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
    made = onnx.load(tmp_path / "runs" / "tiny" / "model.onnx").graph
    assert [made.input[0].name, made.output[0].name] == ["images", "scores"]
    _, again = tiny.run(tmp_path / "runs")
    assert again.stages("run") == ()
