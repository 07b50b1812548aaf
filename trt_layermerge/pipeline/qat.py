"""The merged network trained with int8's rounding, in the places of its Q/DQ model."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from trt_layermerge.core.jsonio import sha256_bytes, sha256_json
from trt_layermerge.pipeline.context import Context, images_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trt_layermerge.finetune.qat import RoundedLayer

STATE = "qat.state.safetensors"


def train_rounded(
    context: Context, model: bytes, ranges: Mapping[str, float], keep_float: Collection[str]
) -> nn.Module:
    """Returns the merged network, trained; continues where an earlier call stopped.

    It learns from the labels and from the original network, on the training images.

    Args:
        context: The run.
        model: The float32 ONNX model of the merged network.
        ranges: Largest magnitude of each activation.
        keep_float: Names of the layers that are not rounded.

    Raises:
        UnsupportedModelError: If a rounded layer is not found again in the torch network.
    """
    from trt_layermerge.finetune.loop import EpochRow, finetune
    from trt_layermerge.finetune.qat import RoundedNet, qat_recipe

    recipe = qat_recipe(context.recipe.calibrate.qat_epochs, context.seed)
    network = copy.deepcopy(context.merged)
    images = images_of(context.train, len(context.example))
    student = RoundedNet(network, rounded_layers(model, ranges, keep_float, images), images)

    def tell(row: EpochRow) -> None:
        context.reporter.progress("training with int8's rounding", row.epoch, recipe.epochs)

    finetune(
        student,
        context.train,
        None,
        recipe,
        teacher=context.model,
        state_path=context.folder / STATE,
        identity=sha256_json([sha256_bytes(model), dict(ranges), sorted(keep_float)]),
        on_epoch=tell,
        device=context.recipe.device,
    )
    context.model.cpu()
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
    import torch
    from onnx import numpy_helper

    from trt_layermerge.finetune.qat import Operator, RoundedLayer
    from trt_layermerge.quantize.layers import find_layers, parse
    from trt_layermerge.quantize.qdq import scale_of

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
    import onnx

    from trt_layermerge.export.runtime import open_model

    proto = onnx.load_from_string(model)
    inputs = {value.name for value in proto.graph.input}
    inner = sorted(set(names) - inputs)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inner)
    outputs = open_model(proto.SerializeToString())(images.numpy())
    return {**dict.fromkeys(inputs, images.numpy()), **dict(zip(inner, outputs, strict=True))}
