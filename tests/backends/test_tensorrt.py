"""Engines built for real by TensorRT-RTX, which needs no GPU for that; every way it can fail."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.gpus import NO_GPU
from tests.nets import example, mobile
from trt_layermerge.backends.registry import get_backend
from trt_layermerge.backends.tensorrt import build_engine, load_engine
from trt_layermerge.backends.tensorrt_api import TensorRTApi, load_api
from trt_layermerge.backends.tensorrt_options import BuildOptions
from trt_layermerge.backends.tensorrt_site import BuildSite, host_memory
from trt_layermerge.errors import (
    CorruptInputError,
    DeviceError,
    UnsupportedModelError,
    UsageError,
)
from trt_layermerge.export.fp16 import to_precision
from trt_layermerge.export.onnx import export_bytes

pytest.importorskip("tensorrt_rtx")
GLYPHS = Path(__file__).parents[2] / "examples" / "glyphs"
no_gpu = pytest.mark.skipif(not NO_GPU, reason="says what happens without a GPU")


@pytest.fixture(scope="module")
def rtx():
    return load_api("tensorrt_rtx")


@pytest.fixture(scope="module")
def fp32():
    return export_bytes(mobile(), example())


def graph(nodes, shape=(1, 2, 4, 4), **constants):
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(v, k) for k, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return model.SerializeToString()


def conv(channels=2, shape=(1, 2, 4, 4), dtype=np.float32, outputs=2):
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="first")
    return graph([node], shape, w=np.ones((outputs, channels, 3, 3), dtype))


def test_small_network_builds_in_single_and_half(rtx, fp32):
    single = build_engine(fp32, "fp32", api=rtx)
    half = build_engine(to_precision(fp32, "fp16"), "fp16", api=rtx)
    for build in (single, half):
        assert (build.library, build.version) == ("tensorrt_rtx", rtx.module.__version__)
        assert build.inputs == {"input": (2, 3, 16, 17)}
        assert build.outputs == {"logits": (2, 5)}
        assert build.seconds > 0
        assert build.settings["typing"] == "strong"
        assert not any(line.startswith(("ERROR", "VERBOSE")) for line in build.log)
        assert build.log


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_glyph_networks_build(rtx, name):
    spec = importlib.util.spec_from_file_location("glyph_nets", GLYPHS / "nets.py")
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    torch.manual_seed(0)
    data = export_bytes(getattr(nets, name)().eval(), torch.zeros(1, 3, 32, 32))
    single = build_engine(data, "fp32", api=rtx)
    half = build_engine(to_precision(data, "fp16"), "fp16", api=rtx)
    assert single.outputs == half.outputs == {"logits": (1, 36)}
    tensors = onnx.load_from_string(data).graph.initializer
    weight_bytes = 4 * sum(numpy_helper.to_array(t).size for t in tensors)
    # Half the weights are gone; what else an engine holds hardly depends on the precision.
    assert 0.4 * weight_bytes < len(single.plan) - len(half.plan) < 0.6 * weight_bytes


def test_every_build_hears_its_own_log_and_no_other(rtx):
    first = build_engine(conv(), api=rtx)
    seen = len(first.log)
    with pytest.raises(UnsupportedModelError) as refusal:
        build_engine(graph([helper.make_node("Foo", ["x"], ["y"], name="odd")]), api=rtx)
    again = build_engine(conv(), api=rtx)  # while the refused network is still held
    assert "Foo" in str(refusal.value)
    assert len(first.log) == seen
    assert again.log
    for build in (first, again):
        assert not any("Foo" in line or "logger" in line for line in build.log)


@no_gpu
def test_target_without_a_driver_is_recorded(rtx):
    target = build_engine(conv(), api=rtx).settings["compute_capability"]
    assert target.startswith("default of the library (no CUDA driver or GPU can be used here")


@no_gpu
def test_current_gpu_cannot_be_targeted_without_a_driver(rtx, monkeypatch):
    """Why the default is left: this is what asking for the GPU at hand leads to."""
    here = BuildSite("a GPU that is not there")
    monkeypatch.setattr("trt_layermerge.backends.tensorrt.look_around", lambda: here)
    with pytest.raises(DeviceError, match="cudaError 35"):
        build_engine(conv(), api=rtx)


@pytest.mark.parametrize("junk", [b"", b"hello world"])
def test_junk_that_parses_as_an_empty_network(rtx, junk):
    with pytest.raises(CorruptInputError, match="empty"):
        build_engine(junk, api=rtx)


def test_truncated_model(rtx, fp32):
    for data in (fp32[: len(fp32) // 2], b"\x08\x08\x12\xff\x01"):
        with pytest.raises(CorruptInputError, match="no ONNX model"):
            build_engine(data, api=rtx)


def test_unknown_operator_is_named(rtx):
    odd = graph([helper.make_node("Foo", ["x"], ["y"], name="strange")])
    with pytest.raises(UnsupportedModelError, match=r"'strange' \(Foo\): .*Plugin not found"):
        build_engine(odd, api=rtx)


def test_dangling_input_is_named(rtx):
    dangling = graph([helper.make_node("Add", ["x", "nowhere"], ["y"], name="sum")])
    with pytest.raises(UnsupportedModelError, match=r"INVALID_GRAPH at node 'sum' \(Add\)"):
        build_engine(dangling, api=rtx)


def test_channel_mismatch_is_named(rtx):
    with pytest.raises(UnsupportedModelError, match=r"INVALID_NODE at node 'first' \(Conv\)"):
        build_engine(conv(channels=3), api=rtx)


def test_mixed_types_are_refused(rtx):
    with pytest.raises(UnsupportedModelError, match=r"'first' \(Conv\).*same type"):
        build_engine(conv(dtype=np.float16), api=rtx)


def test_dynamic_batch_needs_a_profile(rtx):
    model = conv(shape=("batch", 2, 4, 4))
    with pytest.raises(UsageError, match=r"'x' has dynamic dimensions \(-1, 2, 4, 4\): give"):
        build_engine(model, api=rtx)
    profile = {"x": ((1, 2, 4, 4), (2, 2, 4, 4), (8, 2, 4, 4))}
    build = build_engine(model, api=rtx, options=BuildOptions(profile=profile))
    assert build.profile == profile
    assert build.inputs == {"x": (-1, 2, 4, 4)}
    assert build.plan


def test_precision_must_be_that_of_the_types(rtx, fp32):
    with pytest.raises(UsageError, match="typed fp32, not fp16"):
        build_engine(fp32, "fp16", api=rtx)
    with pytest.raises(UsageError, match="typed fp16, not fp32"):
        build_engine(to_precision(fp32, "fp16"), "fp32", api=rtx)
    assert build_engine(fp32, api=rtx).precision == "fp32"


def test_profile_that_contradicts_the_network_gives_the_log(rtx):
    shape = (1, 3, 4, 4)
    with pytest.raises(DeviceError, match=r"not build the engine: ERROR: .*profile"):
        options = BuildOptions(profile={"x": (shape, shape, shape)})
        build_engine(conv(shape=("n", 2, 4, 4)), api=rtx, options=options)


def test_every_unknown_operator_is_named(rtx):
    nodes = [
        helper.make_node("Foo", ["x"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
        helper.make_node("Bar", ["b"], ["y"], name="third"),
    ]
    with pytest.raises(UnsupportedModelError, match=r"'first' \(Foo\).*'third' \(Bar\)"):
        build_engine(graph(nodes), api=rtx)


def test_how_much_else_it_knows_is_told(rtx):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node("Sigmoid", ["a"], ["b"], name="second"),
        helper.make_node("Foo", ["b"], ["y"], name="third"),
    ]
    with pytest.raises(UnsupportedModelError, match=r"\(it knows 2 other nodes, in 1 piece"):
        build_engine(graph(nodes), api=rtx)


def test_too_little_memory_is_told(rtx):
    """For real: no kernel of the library does with a workspace of a mebibyte."""
    options = BuildOptions(workspace_bytes=1 << 20)
    model = conv(channels=8, shape=(1, 8, 16, 16))
    with pytest.raises(
        DeviceError, match=r"ran out of memory.*have 1 MiB.*workspace_mib\) or leav"
    ):
        build_engine(model, api=rtx, options=options)


@no_gpu
def test_workspace_is_clamped_to_the_memory_of_the_host(rtx):
    free = host_memory()
    assert free > 1 << 28
    settings = build_engine(conv(), api=rtx).settings
    assert settings["memory"] == "host"
    assert abs(settings["free_bytes"] - free) < free / 4  # others come and go
    assert 0.6 * settings["free_bytes"] < settings["workspace_bytes"]
    assert settings["workspace_bytes"] <= 0.75 * settings["free_bytes"]


def test_the_same_workspace_gives_the_same_bytes(rtx, fp32):
    """Why the clamped one is rounded: it stands in the engine."""
    options = BuildOptions(workspace_bytes=1 << 28)
    first, again = (build_engine(fp32, api=rtx, options=options).plan for _ in range(2))
    assert first == again
    other = build_engine(fp32, api=rtx, options=BuildOptions(workspace_bytes=(1 << 28) + 4096))
    assert other.plan != first


def test_what_the_library_was_told_is_recorded(rtx, tmp_path):
    options = BuildOptions(
        workspace_bytes=1 << 28, optimization_level=2, tf32=True, timing_cache=tmp_path
    )
    settings = build_engine(conv(), api=rtx, options=options).settings
    told = ("workspace_bytes", "optimization_level", "tf32", "refit", "types")
    assert [settings[name] for name in told] == [1 << 28, 2, True, False, ["FLOAT"]]
    assert settings["timing_cache"].startswith("not used: TensorRT-RTX times nothing")
    assert list(tmp_path.iterdir()) == []
    assert build_engine(conv(), api=rtx).settings["tf32"] is False


def test_compatible_engines_are_refused(rtx):
    for name, why in (("hardware", "not bound to one GPU"), ("version", "lean runtime")):
        with pytest.raises(UsageError, match=rf"{why}.*build\.options\.{name}_compatible out"):
            build_engine(conv(), api=rtx, options=BuildOptions(**{f"{name}_compatible": True}))


@pytest.mark.parametrize(
    ("dtype", "formats"),
    [
        (np.float32, ["LINEAR", "CHW32", "HWC"]),
        (np.float16, ["LINEAR", "CHW2", "CHW4", "CHW32", "HWC8", "HWC16"]),
    ],
)
def test_io_formats_may_be_free(rtx, dtype, formats):
    data = onnx.shape_inference.infer_shapes(
        onnx.load_from_string(conv(channels=8, shape=(1, 8, 16, 16), outputs=8))
    ).SerializeToString()
    model = to_precision(data, "fp16") if dtype == np.float16 else data
    fixed = build_engine(model, api=rtx)
    free = build_engine(model, api=rtx, options=BuildOptions(free_io_formats=True))
    assert fixed.settings["io_formats"] == "LINEAR"
    assert free.settings["io_formats"] == {"x": formats, "y": formats}
    assert len(free.plan) != len(fixed.plan)  # another kernel, so the library took notice


def test_formats_of_logits_stay_plain(rtx, fp32):
    options = BuildOptions(free_io_formats=True)
    formats = build_engine(fp32, api=rtx, options=options).settings["io_formats"]
    assert formats == {"input": ["LINEAR", "CHW32", "HWC"], "logits": ["LINEAR"]}


def test_bfloat16_is_refused_with_what_it_needs(rtx):
    weights = helper.make_tensor("w", TensorProto.BFLOAT16, (2, 2, 3, 3), [1.0] * 36)
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["y"], name="first")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, (1, 2, 4, 4))],
            [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, None)],
            [weights],
        ),
        opset_imports=[helper.make_opsetid("", 22)],
        ir_version=10,
    )
    with pytest.raises(UnsupportedModelError, match=r"input 'x' is typed BF16.*capability 8\.0"):
        build_engine(model.SerializeToString(), api=rtx)


def test_float8_is_refused_with_what_it_needs(rtx):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="narrow"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="widen"),
    ]
    model = onnx.load_from_string(graph(nodes, scale=np.array(0.1, np.float32)))
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, (), [0.0])
    model.graph.initializer.append(zero)
    model.opset_import[0].version = 19
    with pytest.raises(UnsupportedModelError, match=r"'narrow' is typed FP8.*capability 8\.9"):
        build_engine(model.SerializeToString(), api=rtx)


@no_gpu
def test_loading_without_a_driver(rtx):
    plan = build_engine(conv(), api=rtx).plan
    with pytest.raises(DeviceError, match=r"no CUDA driver or GPU .* type nvidia-smi"):
        load_engine(plan, rtx)


@no_gpu
def test_backend_without_a_driver(fp32):
    backend = get_backend("tensorrt_rtx")
    assert backend.name == "tensorrt_rtx"
    assert "fp16" in backend.precisions()
    for call in (backend.device, lambda: backend.open(fp32)):
        with pytest.raises(DeviceError, match=r"no CUDA driver or GPU .*--backend onnxruntime"):
            call()


def test_default_library_is_one_that_is_installed():
    assert isinstance(load_api(), TensorRTApi)
