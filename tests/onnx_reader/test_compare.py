"""What is checked when a file is loaded: the same values, every image for itself, real numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from tests import nets
from tests.onnx_reader.test_networks import exported
from tests.onnx_reader.test_operators import graph_of
from trt_layermerge.errors import CorruptInputError, UnsupportedModelError, UsageError
from trt_layermerge.onnx_reader import load_onnx, operators

SHAPE = (1, 3, 8, 8)
RNG = np.random.default_rng(7)
KERNEL = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)


def saved(folder: Path, nodes: list[Any], weights: dict[str, Any], rank: int = 4) -> Path:
    onnx.save(graph_of(nodes, weights, rank), folder / "a.onnx")
    return folder / "a.onnx"


def wrongly(monkeypatch: pytest.MonkeyPatch, op: str, other: str) -> None:
    wrong = {**operators.OPERATORS, op: operators.OPERATORS[other]}
    monkeypatch.setattr("trt_layermerge.onnx_reader.reader.OPERATORS", wrong)


def test_differences_are_refused_with_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, [helper.make_node("Floor", ["x"], ["y"])], {})
    load_onnx(path, SHAPE)
    wrongly(monkeypatch, "Floor", "Ceil")
    words = r"y differs from ONNX Runtime's by [\d.e+-]+ of 3.0e\+00, its largest, and 1e-03 is"
    with pytest.raises(UnsupportedModelError, match=words):
        load_onnx(path, SHAPE)


def test_shapes_are_compared_before_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, [helper.make_node("GlobalMaxPool", ["x"], ["y"])], {})
    wrongly(monkeypatch, "GlobalMaxPool", "Relu")
    words = r"y has the shape \(1, 3, 8, 8\), and ONNX Runtime's \(1, 3, 1, 1\)"
    with pytest.raises(UnsupportedModelError, match=words):
        load_onnx(path, SHAPE)


def small_sigmoid(folder: Path) -> Path:
    """Writes a sigmoid of about -12, where ONNX Runtime's is 1e-3 off and more."""
    nodes = [
        helper.make_node("Mul", ["x", "tenth"], ["t"]),
        helper.make_node("Sub", ["t", "ten"], ["s"]),
        helper.make_node("Sigmoid", ["s"], ["y"]),
    ]
    return saved(folder, nodes, {"tenth": np.float32(0.1), "ten": np.float32(12)})


def test_a_small_sigmoid_is_judged_by_what_is_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_sigmoid(tmp_path)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    network = load_onnx(path, SHAPE)
    session = onnxruntime.InferenceSession(str(path))
    expected = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    exact = torch.sigmoid(x.double() * 0.1 - 12)
    assert float((expected - exact).abs().max() / exact.max()) > 1e-3  # so it is told
    torch.testing.assert_close(network(x).double(), exact, rtol=1e-5, atol=0)
    wrongly(monkeypatch, "Mul", "Add")  # -12 + x for -12 + x / 10, both nearly 0 behind it
    with pytest.raises(UnsupportedModelError, match="s differs from ONNX Runtime's"):
        load_onnx(path, SHAPE)


class Rows(nn.Module):
    """Attention in torch's order, columns first, as a head of text recognition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attention = nn.Conv2d(3, 8, (64, 1)), nn.MultiheadAttention(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = self.conv(x).squeeze(2).permute(2, 0, 1)
        return self.attention(columns, columns, columns, need_weights=False)[0]


def test_a_batch_that_is_frozen_or_not_in_front_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2, 3]),
        helper.make_node("Reshape", ["t", "s"], ["y"]),
    ]
    words = (
        r"works for a batch of 1 alone, and no other can be trained or measured: the ONNX node "
        r"without a name that makes y \(Reshape\) makes values of shape \(3, 8, 8\) and \(6, 8, 8\)"
        r" for batches of 1 and 2, .* export it with a free batch"
    )
    with pytest.raises(UnsupportedModelError, match=words):
        load_onnx(saved(tmp_path, nodes, {"s": np.array([3, 8, 8])}, 3), SHAPE)
    model = nets.randomise(Rows(), seed=1)
    exported(model, tmp_path / "b.onnx", "fixed")
    with pytest.raises(UnsupportedModelError, match=r"works for a batch of 1 alone.*Reshape"):
        load_onnx(tmp_path / "b.onnx", (1, 3, 64, 96))


def test_images_that_are_mixed_are_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], name="mean", axes=[0, 2, 3]),
        helper.make_node("Sub", ["x", "m"], ["y"], name="centre"),
    ]
    with pytest.raises(UnsupportedModelError, match=r"the ONNX node mean \(ReduceMean\) makes"):
        load_onnx(saved(tmp_path, nodes, {}), SHAPE)


def test_windows_of_a_frozen_batch_are_free(tmp_path: Path) -> None:
    """Rows that are a multiple of the batch become the batch again."""
    nodes = [
        helper.make_node("Reshape", ["x", "three"], ["r"]),
        helper.make_node("Reshape", ["r", "back"], ["y"]),
    ]
    weights = {"three": np.array([3, 64]), "back": np.array([1, 3, 8, 8])}
    network = load_onnx(saved(tmp_path, nodes, weights), SHAPE)
    x = torch.randn(5, *SHAPE[1:], generator=torch.Generator().manual_seed(1))
    assert torch.equal(network(x), x)


BAD = (np.nan, np.inf, -np.inf)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("op", ["Conv", "Gemm", "BatchNormalization", "PRelu"])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, op: str, value: float) -> None:
    ones = np.ones(3, np.float32)
    nodes, weights, part = {
        "Conv": ([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": KERNEL.copy()}, "weight"),
        "Gemm": (
            [
                helper.make_node("Flatten", ["x"], ["f"]),
                helper.make_node("Gemm", ["f", "m", "w"], ["y"]),
            ],
            {"m": RNG.normal(size=(192, 4)).astype(np.float32), "w": np.ones(4, np.float32)},
            "bias",
        ),
        "BatchNormalization": (
            [helper.make_node("BatchNormalization", ["x", "a", "a", "a", "w"], ["y"])],
            {"a": ones, "w": ones.copy()},
            "running_var",
        ),
        "PRelu": (
            [helper.make_node("PRelu", ["x", "w"], ["y"])],
            {"w": ones.copy().reshape(3, 1, 1)},
            "weight",
        ),
    }[op]
    rank = 2 if op == "Gemm" else 4
    load_onnx(saved(tmp_path, nodes, weights, rank), SHAPE)
    weights["w"].flat[-1] = value
    with pytest.raises(CorruptInputError, match=rf"\({op}\) has values .*not finite.* its {part}"):
        load_onnx(saved(tmp_path, nodes, weights, rank), SHAPE)


def test_constants_may_be_infinite_but_not_nan(tmp_path: Path) -> None:
    nodes = [helper.make_node("Max", ["x", "low"], ["y"])]
    load_onnx(saved(tmp_path, nodes, {"low": np.float32([-np.inf, 0])[[0, 1] * 4]}), SHAPE)
    with pytest.raises(CorruptInputError, match="the ONNX constant low holds NaN"):
        load_onnx(saved(tmp_path, nodes, {"low": np.float32(np.nan)}), SHAPE)


def sized(folder: Path, nodes: list[Any], weights: dict[str, Any], sizes: tuple[Any, ...]) -> Path:
    """Writes a network whose input has the sizes given, some of them words or below zero."""
    model = graph_of(nodes, weights)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes))
    onnx.save(model, folder / "a.onnx")
    return folder / "a.onnx"


@pytest.mark.parametrize("sizes", [(-1, 3, -1, -1), ("n", 3, "h", "w"), (10, 3, 32, 32)])
def test_a_file_is_read_at_the_input_that_is_asked_for(
    tmp_path: Path, sizes: tuple[Any, ...]
) -> None:
    """Minus one is what some exporters write for a size that is free."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["p"]),
        helper.make_node("Mul", ["a", "p"], ["y"]),
    ]
    network = load_onnx(sized(tmp_path, nodes, {"w": KERNEL}, sizes), (2, 3, 9, 17))
    assert network(torch.ones(4, 3, 9, 17)).shape == (4, 4, 7, 15)


def test_a_file_whose_nodes_belong_to_its_own_sizes_is_refused_at_others(tmp_path: Path) -> None:
    head = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["y"]),
    ]
    model = graph_of(head, {"m": np.ones((192, 2), np.float32)}, 2)
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(UsageError, match=r"takes inputs of shape 1x3x8x8, and 1x3x9x9 was asked"):
        load_onnx(tmp_path / "a.onnx", (1, 3, 9, 9))
    nodes = [helper.make_node("Resize", ["x", "", "", "z"], ["y"], name="up")]
    path = saved(tmp_path, nodes, {"z": np.array([1, 3, 16, 16])})
    load_onnx(path, SHAPE)
    with pytest.raises(UsageError, match=r"1x3x8x8, .* node up \(Resize\) has sizes that belong"):
        load_onnx(path, (1, 3, 9, 9))
