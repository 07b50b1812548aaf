"""Torch and ONNX compute the same, the model is clean, and failures say what to do."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.nets import FACTORIES, conv_bn, example, mobile, plain_chain, randomise
from trt_layermerge.core.inputs import Several
from trt_layermerge.core.jsonio import sha256_file
from trt_layermerge.errors import UnsupportedModelError, UsageError
from trt_layermerge.export.batch import with_batch
from trt_layermerge.export.fp16 import rounded, to_precision
from trt_layermerge.export.onnx import difference, export_bytes, export_onnx
from trt_layermerge.export.runtime import logits, outputs_of

REL = 1e-5  # float32 in another order of summation, a few layers deep


class Antialiased(nn.Module):
    """Something that only the second exporter knows."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv_bn(3, 4, 3)

    def forward(self, x):
        x = F.interpolate(x, size=(8, 8), mode="bilinear", antialias=True)
        return self.bn(self.conv(x)).mean((2, 3))


class Unexportable(nn.Module):
    def forward(self, x):
        return torch.linalg.matrix_exp(x[..., :4, :4]) if float(x.sum()) else x


class Frozen(nn.Module):
    """Branches on its data: a trace keeps the branch of the example."""

    def forward(self, x):
        return x.mean((2, 3)) if float(x.sum()) > 0 else -x.mean((2, 3))


def run(data, x):
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"input": x.numpy()})[0])


@pytest.mark.parametrize("name", sorted(FACTORIES))
def test_onnx_computes_what_torch_computes(name, tmp_path):
    model = FACTORIES[name]()
    images = example(batch=5, seed=1)
    path = tmp_path / "model.onnx"
    report = export_onnx(model, example(batch=2), path, check=images, tolerance=REL)

    outputs = torch.cat([run(path.read_bytes(), x) for x in (images[:2], images[2:4], images[3:])])
    expected = torch.cat([model(x) for x in images.split(2)]).detach()  # in its own batches
    actual = outputs[[0, 1, 2, 3, 5]]
    assert (actual - expected).abs().max() <= REL * expected.abs().max()
    assert report.images_compared == 5
    assert report.max_abs_error == pytest.approx(float((actual - expected).abs().max()))
    assert report.sha256 == sha256_file(path)
    assert report.exporter == "torchscript"


def test_model_is_clean(tmp_path):
    report = export_onnx(mobile(), example(), tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    # 11 units; 7 of them with ReLU6; two shortcuts. Every batch norm is folded.
    assert report.nodes == {
        "Add": 2,
        "Clip": 8,
        "Conv": 11,
        "Flatten": 1,
        "Gemm": 1,
        "GlobalAveragePool": 1,
    }
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    assert [i.name for i in model.graph.input] == ["input"]
    assert [o.name for o in model.graph.output] == ["logits"]
    used = {name for node in model.graph.node for name in node.input}
    assert {t.name for t in model.graph.initializer} <= used
    assert report.input_shape == (2, 3, 16, 17)
    assert (report.max_abs_error, report.max_rel_error, report.images_compared) == (None, None, 0)


def test_batch_is_static_unless_asked(tmp_path):
    x = example(batch=3)
    static = export_bytes(plain_chain(), example(batch=1))
    with pytest.raises(Exception, match="Got: 3 Expected: 1"):
        run(static, x)
    report = export_onnx(
        plain_chain(), example(batch=1), tmp_path / "m.onnx", dynamic_batch=True, check=x
    )
    assert report.input_shape == ("batch", 3, 16, 17)
    assert report.output_shape == ("batch", 5)
    assert run((tmp_path / "m.onnx").read_bytes(), x).shape == (3, 5)


def test_same_network_gives_same_bytes():
    assert export_bytes(mobile(), example()) == export_bytes(mobile(), example())
    assert export_bytes(mobile(seed=1), example()) != export_bytes(mobile(), example())


def test_traced_graph_module_exports(tmp_path):
    model = torch.fx.symbolic_trace(plain_chain())
    report = export_onnx(model, example(), tmp_path / "m.onnx", check=example(seed=2))
    assert report.max_rel_error <= REL


def test_padding_off_the_centre_needs_no_second_exporter(tmp_path):
    padded = nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(3, 4, 3, 2), nn.Flatten())
    report = export_onnx(padded.eval(), example(), tmp_path / "m.onnx", check=example())
    assert (report.exporter, report.notes) == ("torchscript", ())
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [node.op_type for node in graph.node] == ["Conv", "Flatten"]


def test_second_exporter_takes_what_the_first_cannot(tmp_path):
    pytest.importorskip("onnxscript")
    model = randomise(Antialiased())
    report = export_onnx(
        model, example(), tmp_path / "m.onnx", dynamic_batch=True, check=example(batch=3, seed=2)
    )
    assert report.exporter == "torch.export"
    assert (report.opset, onnx.load(tmp_path / "m.onnx").ir_version) == (18, 8)
    assert report.nodes["Resize"] == 1
    assert "BatchNormalization" not in report.nodes
    assert report.input_shape == ("batch", 3, 16, 17)
    assert report.max_rel_error <= REL


def test_no_graph_of_a_failed_attempt_is_printed(capfd):
    pytest.importorskip("onnxscript")
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(7)).eval()  # 14 x 15 to 7 x 7
    assert run(export_bytes(pooled, example()), example()).shape == (2, 4, 7, 7)
    assert "graph(" not in "".join(capfd.readouterr())


def test_refusal_carries_both_reasons(tmp_path, capfd):
    with pytest.raises(UnsupportedModelError, match=r"torchscript: .*matrix_exp.*torch_export: "):
        export_onnx(Unexportable().eval(), example(), tmp_path / "m.onnx")
    assert capfd.readouterr().out == ""
    assert not (tmp_path / "m.onnx").exists()


def test_difference_is_found_and_nothing_is_written(tmp_path):
    model, positive = Frozen().eval(), example().abs()
    report = export_onnx(model, positive, tmp_path / "same.onnx", check=positive)
    assert report.max_rel_error <= REL
    assert "Python float" in report.notes[0]
    with pytest.raises(UnsupportedModelError, match=r"differs from torch by 2\.00e\+00 relative"):
        export_onnx(model, positive, tmp_path / "other.onnx", check=-positive)
    assert not (tmp_path / "other.onnx").exists()


def test_nan_weights_fail_the_check(tmp_path):
    model = plain_chain()
    nn.init.constant_(model[-1].classifier.weight, float("nan"))
    with pytest.raises(UnsupportedModelError, match="differs from torch by nan"):
        export_onnx(model, example(), tmp_path / "m.onnx", check=example())


def test_training_mode_is_refused_and_mode_is_kept(tmp_path):
    model = plain_chain()
    model[1].train()
    with pytest.raises(UsageError, match=r"1 modules are in training mode, 1 first"):
        export_bytes(model, example())
    assert model[1].training and not model[0].training


class Nested(nn.Module):
    """Two inputs; a dict of a map and of a list of a number and of whole numbers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image, depth):
        y = self.conv(image) + depth
        return {"map": y, "more": [y.mean((1, 2, 3)), y.argmax(1)]}


@pytest.mark.parametrize("dynamic", [False, True])
def test_nested_outputs_and_several_inputs_keep_their_names(tmp_path, dynamic):
    net, x = Nested().eval(), Several((example(batch=2), torch.rand(2, 1, 1, 1)))
    check = Several((example(batch=5, seed=2), torch.rand(5, 1, 1, 1)))
    path = tmp_path / "m.onnx"
    report = export_onnx(net, x, path, check=check, dynamic_batch=dynamic)
    size = "batch" if dynamic else 2
    assert report.inputs == {"image": (size, 3, 16, 17), "depth": (size, 1, 1, 1)}
    assert report.outputs == {"map": (size, 4, 16, 17), "more_0": (size,), "more_1": (size, 16, 17)}
    assert report.max_rel_error < REL
    found = outputs_of(path.read_bytes(), check.map(lambda part: part.numpy()))
    with torch.no_grad():
        expected = net(*check.parts)
    np.testing.assert_allclose(found["map"], expected["map"], atol=1e-5)
    np.testing.assert_allclose(found["more_0"], expected["more"][0], atol=1e-5)
    assert (found["more_1"] == expected["more"][1].numpy()).mean() > 0.99


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_second_exporter_keeps_names_too(dynamic):
    class Both(Antialiased):
        def forward(self, x, y):
            z = super().forward(x)
            return {"sum": z + y, "parts": [z]}

    net, x = Both().eval(), Several((example(batch=2), torch.rand(2, 4)))
    data = export_bytes(net, x, dynamic_batch=dynamic)
    assert [value.name for value in onnx.load_from_string(data).graph.input] == ["x", "y"]
    check = Several((example(batch=4, seed=2), torch.rand(4, 4)))
    found = outputs_of(data, check.map(lambda part: part.numpy()))
    with torch.no_grad():
        expected = net(*check.parts)
    assert list(found) == ["sum", "parts_0"]
    np.testing.assert_allclose(found["sum"], expected["sum"], atol=1e-5)
    np.testing.assert_allclose(found["parts_0"], expected["parts"][0], atol=1e-5)


def test_the_worst_output_is_told(tmp_path):
    net, x = Nested().eval(), Several((example(batch=2), torch.rand(2, 1, 1, 1)))
    data, other = export_bytes(net, x), Nested().eval()
    other.load_state_dict(net.state_dict())
    assert max(difference(data, other, x)) < 1e-5
    forward = other.forward
    other.forward = lambda *inputs: {
        **(f := forward(*inputs)),
        "more": [2 * f["more"][0], f["more"][1]],
    }
    assert difference(data, other, x)[1] == pytest.approx(0.5, rel=1e-4)


def test_an_output_may_be_called_like_the_input():
    class Same(nn.Module):
        def forward(self, x):
            return {"input": x + 1, "conv": x * 2}

    found = outputs_of(export_bytes(Same().eval(), example()), example().numpy())
    assert list(found) == ["input_output", "conv"]


def test_a_value_that_is_put_out_twice_stands_twice():
    class Twice(nn.Module):
        def forward(self, x):
            return {"a": x + 1, "b": x + 1, "c": (y := x * 2), "d": y}

    found = outputs_of(export_bytes(Twice().eval(), example()), example().numpy())
    assert list(found) == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(found["c"], found["d"])


def test_empty_check_is_refused(tmp_path):
    with pytest.raises(UsageError, match="at least one"):
        export_onnx(plain_chain(), example(), tmp_path / "m.onnx", check=example()[:0])


def test_export_names_what_half_precision_cannot_hold(tmp_path):
    """``Conv`` of 300s on 20: 120,000 inside, 240 outside; ONNX Runtime's fp16 hides it."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(20, 1, 1, bias=False), torch.nn.Conv2d(1, 4, 1, bias=False)
    ).eval()
    torch.nn.init.constant_(net[0].weight, 300.0)
    torch.nn.init.constant_(net[1].weight, 2e-3)
    x = torch.full((1, 20, 2, 2), 20.0)
    report = export_onnx(net, x, tmp_path / "m.onnx", check=x)
    assert len(report.kept_in_float) == 2
    model = (tmp_path / "m.onnx").read_bytes()
    half = rounded(to_precision(with_batch(model, 1), "fp16", keep_io=True))
    np.testing.assert_allclose(logits(half, x.numpy()), 240, rtol=1e-3)
    unknown = export_bytes(net, x)
    assert np.isinf(logits(rounded(to_precision(unknown, "fp16", keep_io=True)), x.numpy())).all()


class Same(nn.Conv2d):
    """TF's padding, worked out from the size of the input as timm's ``Conv2dSame`` does."""

    def forward(self, x):
        pads = []
        for axis in (3, 2):
            size, k, s = x.shape[axis], self.kernel_size[axis - 2], self.stride[axis - 2]
            if torch.jit.is_tracing():
                size = torch.as_tensor(size)
                rounds = torch.ceil(size / s).to(torch.int64)
            else:
                rounds = -(-size // s)
            pad = (rounds - 1) * s + k - size
            pads += [pad // 2, pad - pad // 2]
        return nn.functional.conv2d(nn.functional.pad(x, pads), self.weight, self.bias, self.stride)


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_padding_that_follows_from_the_size_is_constant(tmp_path, dynamic):
    """Two in a row: the size behind the first is known only when its padding is."""
    net = nn.Sequential(
        Same(3, 4, 3, 2), nn.ReLU(), Same(4, 4, 5, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    x = torch.randn(2, 3, 17, 22, generator=torch.Generator().manual_seed(0))
    report = export_onnx(net.eval(), x, tmp_path / "m.onnx", dynamic_batch=dynamic, check=x)
    assert set(report.nodes) == {"Conv", "Relu", "GlobalAveragePool", "Flatten"}
    model = (tmp_path / "m.onnx").read_bytes()
    for batch in (1, 4):
        images = torch.randn(batch, 3, 17, 22).numpy()
        expected = net(torch.from_numpy(images)).detach().numpy()
        np.testing.assert_allclose(logits(with_batch(model, batch), images), expected, atol=1e-5)


class Mask(nn.Module):
    """Puts out probabilities that are all tiny, as of a detector that finds nothing."""

    def __init__(self, shift):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3)
        self.shift = shift

    def forward(self, x):
        return torch.sigmoid(self.conv(x) - self.shift)


def test_tiny_probabilities_are_not_held_to_more_than_onnx_runtime_computes(tmp_path):
    model = randomise(Mask(15.0))
    report = export_onnx(model, example(), tmp_path / "m.onnx", check=example(batch=4, seed=1))
    assert report.max_abs_error < 2e-7


def test_small_probabilities_that_differ_are_still_refused(tmp_path):
    model = randomise(Mask(6.0))
    data = export_bytes(model, example())
    model.shift = 6.01  # one per cent of every value
    assert difference(data, model, example(batch=4, seed=1))[1] > 5e-3
