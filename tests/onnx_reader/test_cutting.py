"""Files that are cut at named tensors, and where it is said to cut those that cannot be read."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from tests.onnx_reader.test_operators import graph_of
from trt_layermerge.errors import UnsupportedModelError, UsageError
from trt_layermerge.models.networks import load_network, network_inputs
from trt_layermerge.onnx_reader import load_onnx
from trt_layermerge.onnx_reader.cutting import cut

SHAPE = (1, 3, 8, 8)


def weights(*shape: int) -> Any:
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def suppressed() -> onnx.ModelProto:
    """Returns a detector: two convs, boxes and scores of the last map, and their suppression."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "v"], ["m"], name="second"),
        helper.make_node("Reshape", ["m", "rows"], ["r"], name="rows"),
        helper.make_node("Split", ["r", "sizes"], ["b", "s"], name="parts", axis=1),
        helper.make_node("Sigmoid", ["s"], ["scores"], name="score"),
        helper.make_node("Transpose", ["b"], ["boxes"], name="turn", perm=[0, 2, 1]),
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "k"], ["n"], name="nms"),
        helper.make_node("Cast", ["n"], ["y"], name="cast", to=TensorProto.FLOAT),
    ]
    constants = {
        "w": weights(4, 3, 3, 3),
        "v": weights(6, 4, 1, 1),
        "rows": np.array([1, 6, -1]),
        "sizes": np.array([4, 2]),
        "k": np.array(3),
    }
    return graph_of(nodes, constants, rank=2)


def recurrent() -> onnx.ModelProto:
    """Returns a reader of text: a conv, its columns as a sequence, an LSTM and a linear layer."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv", strides=[8, 1]),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Squeeze", ["r", "two"], ["q"], name="flat"),
        helper.make_node("Transpose", ["q"], ["t"], name="turn", perm=[2, 0, 1]),
        helper.make_node("LSTM", ["t", "i", "h"], ["l"], name="lstm", hidden_size=5),
        helper.make_node("Squeeze", ["l", "one"], ["s"], name="one"),
        helper.make_node("MatMul", ["s", "m"], ["y"], name="last"),
    ]
    constants = {
        "w": weights(4, 3, 8, 1),
        "two": np.array([2]),
        "i": weights(1, 20, 4),
        "h": weights(1, 20, 5),
        "one": np.array([1]),
        "m": weights(5, 7),
    }
    return graph_of(nodes, constants, rank=3)


@pytest.mark.parametrize(
    ("model", "named", "ends"),
    [
        (suppressed(), r"NonMaxSuppression \(node nms\)", "b,scores"),
        (recurrent(), r"LSTM \(node lstm\)", "r"),
    ],
)
def test_what_cannot_be_read_names_the_command_that_cuts_it(
    tmp_path: Path, model: onnx.ModelProto, named: str, ends: str
) -> None:
    path = tmp_path / "with space.onnx"
    onnx.save(model, path)
    with pytest.raises(UnsupportedModelError, match=named) as caught:
        load_onnx(path, SHAPE)
    typed = shlex.split(str(caught.value).partition("recipe): ")[2])
    assert typed[:3] == ["trt-layermerge", "inspect", "--model"]
    assert typed[3:] == [str(path), "--input", "1x3x8x8", "--outputs", ends]
    network = load_onnx(path, SHAPE, ends.split(","))  # compares with ONNX Runtime
    assert network.meta["outputs"] == tuple(ends.split(","))


def test_the_part_before_is_what_the_file_computes_there(tmp_path: Path) -> None:
    onnx.save(suppressed(), tmp_path / "a.onnx")
    network = load_network(str(tmp_path / "a.onnx"), None, SHAPE, ("scores", "a"))
    assert [name for name, _ in network.named_children()] == ["first", "second"]
    whole = suppressed()
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ("scores", "a"))
    session = onnxruntime.InferenceSession(whole.SerializeToString())
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    expected = session.run(["scores", "a"], {"x": x.numpy()})
    with torch.no_grad():
        for own, other in zip(network(x), expected, strict=True):
            np.testing.assert_allclose(own.numpy(), other, rtol=1e-5, atol=1e-6)


def test_readable_outputs_beside_an_unreadable_one_are_kept(tmp_path: Path) -> None:
    model = suppressed()
    map_of_all = helper.make_tensor_value_info("r", TensorProto.FLOAT, list("abc"))
    model.graph.output.insert(0, map_of_all)
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(UnsupportedModelError, match="--outputs r,b,scores"):
        load_onnx(tmp_path / "a.onnx", SHAPE)


def test_operators_used_in_a_way_that_cannot_be_read_are_cut_too(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("Resize", ["a", "", "s"], ["y"], name="grow", mode="cubic"),
    ]
    onnx.save(
        graph_of(nodes, {"w": weights(4, 3, 3, 3), "s": np.float32([1, 1, 2, 2])}),
        tmp_path / "a.onnx",
    )
    with pytest.raises(UnsupportedModelError, match=r"node grow \(Resize\) .* --outputs a"):
        load_onnx(tmp_path / "a.onnx", SHAPE)


def test_nothing_readable_suggests_nothing(tmp_path: Path) -> None:
    onnx.save(graph_of([helper.make_node("Acos", ["x"], ["y"])], {}), tmp_path / "a.onnx")
    with pytest.raises(UnsupportedModelError, match=r"it was exported from$"):
        load_onnx(tmp_path / "a.onnx", SHAPE)


def test_inputs_that_only_the_rest_needs_are_cut_off(tmp_path: Path) -> None:
    model = suppressed()
    model.graph.input.append(helper.make_tensor_value_info("top", TensorProto.FLOAT, [1]))
    model.graph.node[6].input.extend(["top"])
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(UnsupportedModelError, match=r"has 2 inputs \(x, top\)"):
        load_onnx(tmp_path / "a.onnx", SHAPE)
    assert load_onnx(tmp_path / "a.onnx", SHAPE, ["r"]).meta["inputs"] == ("x",)


def test_cutting_leaves_the_model_untouched_and_its_order_as_named() -> None:
    model = suppressed()
    before = model.SerializeToString()
    part = cut(model, ["scores", "b"], "a model")
    assert model.SerializeToString() == before
    assert [value.name for value in part.graph.output] == ["scores", "b"]
    assert [node.name for node in part.graph.node] == ["first", "second", "rows", "parts", "score"]
    assert [tensor.name for tensor in part.graph.initializer] == ["w", "v", "rows", "sizes"]


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (["score"], r"computes no tensor 'score' \(--outputs\); did you mean scores"),
        (["w"], "computes no tensor 'w'"),
        (["x"], "computes no tensor 'x'"),
        ([""], "computes no tensor ''"),
        (["a", "b", "a"], "cut at 'a' twice"),
    ],
)
def test_names_of_no_tensor_are_refused(tmp_path: Path, outputs: list[str], words: str) -> None:
    onnx.save(suppressed(), tmp_path / "a.onnx")
    with pytest.raises(UsageError, match=words):
        load_onnx(tmp_path / "a.onnx", SHAPE, outputs)


def test_another_part_is_another_network(tmp_path: Path) -> None:
    onnx.save(suppressed(), tmp_path / "a.onnx")
    name = str(tmp_path / "a.onnx")
    whole = network_inputs(name, None, SHAPE)
    assert "outputs" not in whole
    assert network_inputs(name, None, SHAPE, ("a",)) == {**whole, "outputs": ["a"]}
    with pytest.raises(UsageError, match=r"only ONNX files .* \(--outputs\)"):
        load_network("torchvision:resnet18", None, SHAPE, ("a",))


QUANTISED = {
    "QDQ": [
        helper.make_node("DequantizeLinear", ["q", "d"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ],
    "QLinearConv": [
        helper.make_node("QuantizeLinear", ["x", "d", "z"], ["i"]),
        helper.make_node("QLinearConv", ["i", "d", "z", "q", "d", "z8", "d", "z"], ["o"]),
        helper.make_node("DequantizeLinear", ["o", "d", "z"], ["y"]),
    ],
    "ConvInteger": [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["i", "scale", "zero"]),
        helper.make_node("ConvInteger", ["i", "q", "zero"], ["o"]),
        helper.make_node("Cast", ["o"], ["y"], to=TensorProto.FLOAT),
    ],
}


@pytest.mark.parametrize("kind", list(QUANTISED))
def test_quantised_files_are_refused_by_the_name_of_their_operators(
    tmp_path: Path, kind: str
) -> None:
    constants = {
        "q": np.ones((4, 3, 3, 3), np.int8),
        "d": np.float32(0.1),
        "z": np.uint8(3),
        "z8": np.int8(0),
    }
    model = graph_of(QUANTISED[kind], constants)
    used = {name for node in model.graph.node for name in node.input}
    kept = [t for t in model.graph.initializer if t.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, tmp_path / "a.onnx")
    operator = {"QDQ": "DequantizeLinear"}.get(kind, kind)
    words = rf"quantised already \(.*{operator}.*\): .* float network that it was made from"
    with pytest.raises(UnsupportedModelError, match=words):
        load_onnx(tmp_path / "a.onnx", SHAPE)
