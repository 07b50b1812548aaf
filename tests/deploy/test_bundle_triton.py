"""Triton's own protobuf definition reads what is written; the server itself never did."""

from dataclasses import replace

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tests.deploy.bundles import LABELS, contents, several, with_plan
from trt_layermerge.deploy.bundle.contents import Port
from trt_layermerge.deploy.bundle.render import render
from trt_layermerge.deploy.machine import Machine


def configs(given):
    """Returns the files of the repository, and the parsed configuration by model."""
    files = {
        name.removeprefix("models/"): data
        for name, data in render(given, "triton").items()
        if name.startswith("models/")
    }
    parsed = {
        name.partition("/")[0]: text_format.Parse(data.decode(), model_config_pb2.ModelConfig())
        for name, data in files.items()
        if name.endswith("config.pbtxt")
    }
    return files, parsed


def tensor(part):
    return part.name, model_config_pb2.DataType.Name(part.data_type), list(part.dims)


@pytest.mark.parametrize("max_batch", [None, 8])
def test_both_entries_say_what_the_network_is(max_batch):
    files, parsed = configs(with_plan(contents(max_batch=max_batch)))
    batch = [] if max_batch else [1]
    assert {name: c.platform for name, c in parsed.items()} == {
        "net": "tensorrt_plan",
        "net_onnx": "onnxruntime_onnx",
    }
    for name, config in parsed.items():
        assert config.name == name
        assert config.max_batch_size == (max_batch or 0)
        assert [tensor(i) for i in config.input] == [("input", "TYPE_FP32", [*batch, 3, 8, 6])]
        assert [tensor(o) for o in config.output] == [("logits", "TYPE_FP32", [*batch, 3])]
        assert config.output[0].label_filename == "labels.txt"
        assert files[f"{name}/labels.txt"].decode().splitlines() == list(LABELS)
        assert config.HasField("dynamic_batching") == bool(max_batch)
        assert config.default_model_filename == ""


def test_a_plan_is_found_by_the_compute_capability_it_is_for_and_by_no_other():
    given = with_plan(contents())
    files, parsed = configs(given)
    assert dict(parsed["net"].cc_model_filenames) == {"8.7": "model_cc87.plan"}
    assert files["net/1/model_cc87.plan"] == given.engine.plan
    assert "net/1/model.plan" not in files  # what other GPUs would load
    assert files["net_onnx/1/model.onnx"] == given.models["fp16"]
    assert not parsed["net_onnx"].cc_model_filenames


def test_a_plan_for_an_unknown_gpu_is_the_default():
    files, parsed = configs(with_plan(contents(), machine=Machine()))
    assert not parsed["net"].cc_model_filenames
    assert "net/1/model.plan" in files


def test_without_an_engine_only_onnx_is_loaded():
    given = contents()
    files, parsed = configs(given)
    assert set(parsed) == {"net", "net_onnx"}
    assert [name for name in files if "/1/" in name] == ["net_onnx/1/model.onnx"]
    text = render(given, "triton")["README.md"].decode()
    assert "--model-control-mode=explicit --load-model=net_onnx\n" in text
    text = render(with_plan(given), "triton")["README.md"].decode()
    assert "--load-model=net --load-model=net_onnx\n" in text


def test_int8_gives_onnx_runtime_the_model_that_it_runs():
    given = contents()
    outputs = {**given.samples.outputs, "int8": given.samples.outputs["fp16"]}
    given = replace(
        given,
        precision="int8",
        models={**given.models, "int8": b"rest fp16"},
        portable=b"rest fp32",
        samples=replace(given.samples, outputs=outputs),
    )
    files = render(with_plan(given), "triton")
    assert files["models/net_onnx/1/model.onnx"] == b"rest fp32"
    assert files["onnx/model.int8.onnx"] == b"rest fp16"


@pytest.mark.parametrize("max_batch", [None, 4])
def test_several_inputs_and_outputs_of_any_rank_and_type(max_batch):
    _, parsed = configs(several(max_batch=max_batch))
    batch = [] if max_batch else [1]
    for config in parsed.values():
        assert [tensor(i) for i in config.input] == [
            ("image", "TYPE_FP32", [*batch, 3, 8, 6]),
            ("numbers", "TYPE_INT64", [*batch, 2]),
        ]
        assert [tensor(o) for o in config.output] == [
            ("map", "TYPE_FP32", [*batch, 4, 8, 6]),
            ("kind", "TYPE_FP32", [*batch, 3]),
            ("best", "TYPE_INT64", [1]),
        ]
        assert [o.label_filename for o in config.output] == ["", "labels.txt", ""]
        # Where the server adds the batch, a number for each image has no dimension left.
        assert [o.HasField("reshape") for o in config.output] == [False, False, bool(max_batch)]


def test_names_cannot_break_out_of_their_quotes():
    given = contents()
    face = replace(given.interface, inputs=(Port('in"put\\', (3, 8, 6), "image"),))
    _, parsed = configs(replace(given, interface=face))
    assert parsed["net"].input[0].name == 'in"put\\'
