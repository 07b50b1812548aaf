"""The merged network trained with int8's rounding, in the places of its Q/DQ model."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.jsonio import sha256_bytes, sha256_json
from trt_layermerge.data import LabelledData
from trt_layermerge.export.runtime import open_model
from trt_layermerge.finetune.loop import EpochRow, finetune
from trt_layermerge.finetune.qat import Operator, RoundedLayer, RoundedNet, qat_recipe
from trt_layermerge.quantize.layers import find_layers, parse
from trt_layermerge.quantize.qdq import scale_of
from trt_layermerge.session.images import images_of

STATE = "qat.state.safetensors"


def train_rounded(
    merged: nn.Module,
    teacher: nn.Module,
    train: LabelledData,
    model: bytes,
    ranges: Mapping[str, float],
    keep_float: Collection[str],
    *,
    batch: int,
    epochs: int,
    seed: int,
    device: str,
    state_path: Path,
    tell: Callbacks,
) -> nn.Module:
    """Returns the merged network, trained; continues where an earlier call stopped.

    It learns from the labels and from the original network, on the training images.

    Args:
        merged: The merged network; left untouched.
        teacher: The original network.
        train: Labelled images.
        model: The float32 ONNX model of the merged network.
        ranges: Largest magnitude of each activation.
        keep_float: Names of the layers that are not rounded.
        batch: Batch of the ONNX model, where it is fixed.
        epochs: Passes over the images.
        seed: Of the training.
        device: Name of a torch device.
        state_path: File of the unfinished training.
        tell: What is called meanwhile.

    Raises:
        UnsupportedModelError: If a rounded layer is not found again in the torch network.
    """
    recipe = qat_recipe(epochs, seed)
    network = copy.deepcopy(merged)
    images = images_of(train, batch)
    student = RoundedNet(network, rounded_layers(model, ranges, keep_float, images), images)

    def on_epoch(row: EpochRow) -> None:
        tell.progress("training with int8's rounding", row.epoch, recipe.epochs)

    finetune(
        student,
        train,
        None,
        recipe,
        teacher=teacher,
        state_path=state_path,
        identity=sha256_json([sha256_bytes(model), dict(ranges), sorted(keep_float)]),
        on_epoch=on_epoch,
        device=device,
    )
    teacher.cpu()
    return network.cpu().eval()


def rounded_layers(
    model: bytes, ranges: Mapping[str, float], keep_float: Collection[str], images: Tensor
) -> list[RoundedLayer]:
    """Returns what the Q/DQ model rounds, with what it reads on some images in float.

    Args:
        model: The float32 ONNX model; its batch is dynamic or that of the images.
        ranges: Largest magnitude of each activation.
        keep_float: Names of the layers that are not rounded.
        images: ``(N, C, H, W)``.
    """
    graph = parse(model).graph
    nodes = {node.output[0]: node for node in graph.node}
    layers = [layer for layer in find_layers(graph) if layer.name not in keep_float]
    weights = {tensor.name: tensor for tensor in graph.initializer}
    read = {
        layer.output: [name for name in nodes[layer.output].input[:2] if name not in weights]
        for layer in layers
    }
    values = _values(model, {name for names in read.values() for name in names}, images)
    found = []
    for layer in layers:
        inputs = nodes[layer.output].input
        weight = None
        if layer.weight_axis is not None:
            # torch has the output channels first.
            array = numpy_helper.to_array(weights[inputs[1]])
            weight = torch.from_numpy(np.moveaxis(array, layer.weight_axis, 0).copy())
        found.append(
            RoundedLayer(
                layer.name,
                cast(Operator, layer.op),
                tuple(torch.from_numpy(values[name]) for name in read[layer.output]),
                weight,
                {place: scale_of(ranges[inputs[place]]) for place in layer.activations},
            )
        )
    return found


def _values(model: bytes, names: Collection[str], images: Tensor) -> dict[str, NDArray[np.float32]]:
    """Returns values within a network on some images, by name."""
    proto = onnx.load_from_string(model)
    inputs = {value.name for value in proto.graph.input}
    inner = sorted(set(names) - inputs)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inner)
    outputs = open_model(proto.SerializeToString())(images.numpy())
    return {**dict.fromkeys(inputs, images.numpy()), **dict(zip(inner, outputs, strict=True))}
