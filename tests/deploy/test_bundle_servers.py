"""Golden files of DeepStream and Isaac ROS, and their arithmetic against ``Preprocess``.

The keys follow the documentation and the sources of both; neither has loaded these files.
"""

from dataclasses import replace

import numpy as np
import pytest
import yaml

from tests.deploy.bundles import IMAGENET, UNIFORM, contents, pixels, several, with_plan
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.deploy.bundle.contents import Baked, Port
from trt_layermerge.deploy.bundle.deepstream import config, nvinfer_scaling, one_line
from trt_layermerge.deploy.bundle.isaac_ros import encoder_scaling, params
from trt_layermerge.deploy.bundle.render import render
from trt_layermerge.errors import UsageError

DEEPSTREAM = """\
[property]
gpu-id=0
onnx-file=model.onnx
model-engine-file=model.plan
labelfile-path=labels.txt
batch-size=8
network-mode=2
network-type=1
process-mode=1
infer-dims=3;8;6
model-color-format=0
maintain-aspect-ratio=0
net-scale-factor=1.0
offsets=0.0;0.0;0.0
classifier-threshold=0.2
output-blob-names=prob
gie-unique-id=1
"""

ISAAC_ROS = """\
/**:
  ros__parameters:
    engine_file_path: "/models/model.plan"
    model_file_path: "/models/model.onnx"
    force_engine_update: false
    enable_fp16: true
    input_tensor_names: ["input_tensor"]
    input_binding_names: ["input"]
    input_tensor_formats: ["nitros_tensor_list_nchw_rgb_f32"]
    output_tensor_names: ["output_tensor"]
    output_binding_names: ["logits"]
    output_tensor_formats: ["nitros_tensor_list_nhwc_rgb_f32"]
    max_batch_size: 8
"""


@pytest.fixture(scope="module")
def baked():
    return with_plan(contents(normalise=True, softmax=True, max_batch=8))


def test_deepstream(baked):
    files = render(baked, "deepstream")
    assert files["config_infer.txt"].decode() == DEEPSTREAM
    assert files["labels.txt"] == b"tench;great white shark;hen\n"
    for name in ("model.onnx", "model.plan", "model.json"):
        assert name in files
    assert files["model.plan"] == baked.engine.plan


@pytest.mark.parametrize(("precision", "mode"), [("fp32", 0), ("int8", 1), ("fp16", 2)])
def test_deepstreams_numbers_for_precisions(baked, precision, mode):
    models = {**baked.models, "int8": b""}
    text = config(replace(baked, models=models, precision=precision))
    assert f"network-mode={mode}\n" in text


def test_int8_says_that_deepstream_must_not_build_it(baked):
    models = {**baked.models, "int8": b"a"}
    outputs = {**baked.samples.outputs, "int8": baked.samples.outputs["fp16"]}
    given = replace(
        baked,
        models=models,
        precision="int8",
        portable=b"b",
        samples=replace(baked.samples, outputs=outputs),
    )
    assert "falls back to fp16" in render(given, "deepstream")["README.md"].decode()
    assert "falls back" not in render(baked, "deepstream")["README.md"].decode()


@pytest.mark.parametrize(
    "preprocess", [UNIFORM, Preprocess(1.0, (127.5, 120.0, 110.0), (128.0, 128.0, 128.0))]
)
def test_a_uniform_std_is_what_nvinfer_computes(preprocess):
    """nvinfer: y = net-scale-factor · (x − offset), in float32."""
    factor, offsets = nvinfer_scaling(preprocess, Baked(softmax=True))
    x = pixels().astype(np.float32)
    found = np.float32(factor) * (x - np.asarray(offsets, np.float32))
    expected = preprocess(pixels()).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    # with the 1/255 of most samples it would be something else
    assert np.abs(np.float32(1 / 255) * x - expected).max() > 0.1


def test_a_std_for_each_channel_must_be_in_the_graph():
    given = contents(softmax=True)
    with pytest.raises(UsageError, match=r"one factor for all channels.*--no-bake-preprocess"):
        render(given, "deepstream")
    assert "net-scale-factor=1.0\noffsets=0.0;0.0;0.0\n" in config(
        contents(normalise=True, softmax=True)
    )


def test_logits_are_no_probabilities():
    with pytest.raises(UsageError, match=r"these are logits.*--bake-preprocess"):
        render(contents(preprocess=UNIFORM), "deepstream")


@pytest.mark.parametrize("target", ["deepstream", "isaac-ros"])
def test_networks_of_neither_colour_nor_grey_fit_no_camera(target):
    given = contents(normalise=True, softmax=True)
    face = replace(given.interface, inputs=(Port("input", (4, 8, 6), "image"),))
    with pytest.raises(UsageError, match="takes 4 channels"):
        render(replace(given, interface=face), target)


def test_deepstream_hands_on_the_tensors_of_what_is_no_classifier():
    given = several(preprocess=UNIFORM)
    with pytest.raises(UsageError, match="a frame and nothing else, and this one takes 2 inputs"):
        render(given, "deepstream")
    face = replace(given.interface, inputs=given.interface.inputs[:1])
    text = config(replace(given, interface=face))
    assert "network-type=100\n" in text and "output-tensor-meta=1\n" in text
    assert "output-blob-names=map;kind;best\n" in text
    assert "classifier-threshold" not in text


def test_isaac_ros_numbers_several_tensors():
    found = yaml.safe_load(params(several()))["/**"]["ros__parameters"]
    assert found["input_tensor_names"] == ["input_tensor_0", "input_tensor_1"]
    assert found["input_binding_names"] == ["image", "numbers"]
    assert found["output_tensor_names"] == [f"output_tensor_{i}" for i in range(3)]
    assert found["output_binding_names"] == ["map", "kind", "best"]
    readme = " ".join(render(several(), "isaac-ros")["README.md"].decode().split())
    assert "a node of yours must put the other inputs into the same list" in readme


@pytest.mark.parametrize("label", ["a;b", "a\nb"])
def test_labels_that_deepstream_would_split_are_refused(label):
    with pytest.raises(UsageError, match="separates labels"):
        one_line(("hen", label))


def test_isaac_ros():
    given = with_plan(contents(max_batch=8))
    files = render(given, "isaac-ros")
    assert files["params.yaml"].decode() == ISAAC_ROS
    assert yaml.safe_load(ISAAC_ROS)["/**"]["ros__parameters"]["force_engine_update"] is False
    assert {"model.onnx", "model.plan", "model.json", "labels.txt"} <= files.keys()
    assert "enable_fp16: false" in params(replace(given, precision="fp32"))


@pytest.mark.parametrize(
    "preprocess", [IMAGENET, UNIFORM, Preprocess(1.0, (120.0,) * 3, (60.0,) * 3)]
)
def test_the_encoder_node_can_normalise(preprocess):
    """isaac_ros_dnn_image_encoder: y = (x / 255 − image_mean) / image_stddev."""
    mean, std = encoder_scaling(contents(preprocess=preprocess))
    found = (pixels() / 255 - mean) / std
    expected = preprocess(pixels()).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_the_encoder_node_can_leave_pixels_alone():
    mean, std = encoder_scaling(contents(normalise=True, softmax=True))
    np.testing.assert_allclose((pixels() / 255 - mean) / std, pixels(), rtol=1e-12, atol=1e-9)
