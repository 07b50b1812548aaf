"""``isaac-ros``: parameters of the node ``isaac_ros_tensor_rt``."""

from __future__ import annotations

import json

from trt_layermerge.deploy.bundle.contents import Contents
from trt_layermerge.deploy.bundle.layout import Layout, flat_places, lines, loadable
from trt_layermerge.errors import UsageError

FOLDER = "/models"

USAGE = """\
`params.yaml` holds the parameters of `nvidia::isaac_ros::dnn_inference::TensorRTNode` in ROS 2's
form. It expects this folder as `{folder}`; change two paths if it lies elsewhere.
`force_engine_update` is false: by default the node would build an engine of its own over ours.
The node knows fp16 and no int8, so for int8 our engine is the only way.

The node `isaac_ros_dnn_image_encoder` before it divides pixels by 255; give it
`image_mean: {mean}`, `image_stddev: {std}`, `network_image_width: {width}` and
`network_image_height: {height}`. {state}
"""


def layout(contents: Contents) -> Layout:
    """Returns ``params.yaml``, ``model.onnx``, ``model.plan`` and ``labels.txt``.

    Raises:
        UsageError: If a label does not fit into one line, or the network takes no RGB images.
    """
    if contents.interface.image[0] != 3:
        raise UsageError(
            "Isaac ROS gives networks RGB images, but this one takes "
            f"{contents.interface.image[0]} channels; package it for another target (--for plain "
            "or triton)"
        )
    files = {"params.yaml": params(contents).encode()}
    if contents.labels is not None:
        files["labels.txt"] = lines(contents.labels)
    return Layout(flat_places(contents), _usage(contents), files)


def params(contents: Contents) -> str:
    """Returns ``params.yaml``."""
    face = contents.interface
    values = {
        "engine_file_path": f"{FOLDER}/model.plan",
        "model_file_path": f"{FOLDER}/model.onnx",
        "force_engine_update": False,
        "enable_fp16": contents.precision != "fp32",
        "input_tensor_names": _numbered("input_tensor", len(face.inputs)),
        "input_binding_names": [port.name for port in face.inputs],
        "input_tensor_formats": ["nitros_tensor_list_nchw_rgb_f32"],
        "output_tensor_names": _numbered("output_tensor", len(face.outputs)),
        "output_binding_names": [port.name for port in face.outputs],
        "output_tensor_formats": ["nitros_tensor_list_nhwc_rgb_f32"],
        "max_batch_size": face.limit,
    }
    body = "".join(f"    {key}: {json.dumps(value)}\n" for key, value in values.items())
    return f"/**:\n  ros__parameters:\n{body}"


def _numbered(name: str, count: int) -> list[str]:
    """Returns what tensors are called in the messages of ROS: one alone has no number."""
    return [name] if count == 1 else [f"{name}_{i}" for i in range(count)]


def encoder_scaling(contents: Contents) -> tuple[list[float], list[float]]:
    """Returns ``image_mean`` and ``image_stddev`` of ``y = (x / 255 − mean) / stddev``.

    With ``s = 255 · scale`` the network expects ``(x / 255 · s − mean) / std``, so these are
    ``mean / s`` and ``std / s``; with normalisation in the graph, 0 and 1/255.
    """
    if contents.baked.normalise:
        return [0.0] * contents.interface.image[0], [1 / 255] * contents.interface.image[0]
    preprocess = contents.preprocess
    s = 255 * preprocess.scale
    return [m / s for m in preprocess.mean], [d / s for d in preprocess.std]


def _usage(contents: Contents) -> str:
    mean, std = encoder_scaling(contents)
    _, height, width = contents.interface.image
    state = (
        "The node loads `model.plan`."
        if loadable(contents)
        else "There is no engine that the node can load yet: on the robot type "
        "`trt-layermerge rebuild . --backend tensorrt`. Without, the node builds its own."
    )
    if len(contents.interface.inputs) > 1:
        state += (
            " The encoder makes `input_tensor_0` alone: a node of yours must put the other inputs "
            "into the same list of tensors."
        )
    return USAGE.format(folder=FOLDER, mean=mean, std=std, width=width, height=height, state=state)
