"""What quantising one layer alone costs: noise in its output, and in the network's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from trt_layermerge.core.agreement import yes_no
from trt_layermerge.core.inputs import parts_of
from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.outputs import Kind, Kinds, kinds_of
from trt_layermerge.export.runtime import Images, batch_of, open_model, outputs_of, rebatch
from trt_layermerge.quantize.layers import Layer, find_layers, parse
from trt_layermerge.quantize.qdq import PairWriter, Ranges, at_opset, write_pairs


@dataclass(frozen=True, slots=True)
class LayerError:
    """What quantising one layer alone costs.

    Attributes:
        name: Name of the ONNX node.
        op: Its operator.
        sqnr_db: ``10 log10(Σ y² / Σ (y − ŷ)²)`` in dB, where ``y`` is the layer's float output and
            ``ŷ`` the output with quantised weight and inputs, over all images; infinite if equal.
        kl: How far the network's answers are moved (``divergence``), the mean over its outputs;
            ``KL(p ‖ p̂)`` in nats of classes. None: not computed.
    """

    name: str
    op: str
    sqnr_db: float
    kl: float | None = None

    def to_json(self) -> Json:
        """Returns a JSON-ready mapping; an infinite ratio becomes None."""
        ratio = self.sqnr_db if math.isfinite(self.sqnr_db) else None
        return {"name": self.name, "op": self.op, "sqnr_db": ratio, "kl": self.kl}


def sensitivities(
    model: bytes,
    ranges: Ranges,
    images: Images,
    kl_images: int = 16,
    kinds: Kinds | None = None,
) -> tuple[LayerError, ...]:
    """Returns the cost of each quantisable layer, in the order of the graph.

    All ratios come from one pass over all images. ``kl`` needs one model for each layer, so it is
    computed on the first ``kl_images`` only; 0 leaves it out.

    Args:
        model: A float32 ONNX model.
        ranges: Largest magnitude of each activation.
        images: Preprocessed images ``(N, C, H, W)``.
        kl_images: How many of them ``kl`` is computed on.
        kinds: What the outputs are (``core.outputs``); by default what their shapes tell.

    Raises:
        The errors of ``quantize_model``, and ``DeviceError`` if ONNX Runtime fails.
    """
    proto = at_opset(parse(model))
    layers = find_layers(proto.graph)
    ratios = signal_to_noise(proto, layers, ranges, images)
    losses: list[float | None] = [None] * len(layers)
    if kl_images:
        few = images[:kl_images]
        reference = outputs_of(model, few)
        known = kinds or kinds_of(reference, parts_of(few)[0].shape)

        def moved(layer: Layer) -> float:
            other = outputs_of(_with_one(proto, layer, ranges), few)
            each = [divergence(reference[name], other[name], kind) for name, kind in known.items()]
            return sum(each) / len(each)

        losses = [moved(layer) for layer in layers]
    return tuple(
        LayerError(layer.name, layer.op, ratio, loss)
        for layer, ratio, loss in zip(layers, ratios, losses, strict=True)
    )


def signal_to_noise(
    proto: ModelProto, layers: tuple[Layer, ...], ranges: Ranges, images: Images
) -> list[float]:
    """Returns the signal-to-noise ratio of each layer in dB, from one pass over the images.

    Every layer stands in the graph twice, float and quantised; both read float values, and only two
    sums of squares of each pair leave the graph.

    Args:
        proto: A float32 model at opset 19.
        layers: Its layers.
        ranges: Largest magnitude of each activation.
        images: Preprocessed images ``(N, C, H, W)``.
    """
    twins = _with_twins(proto, layers, ranges)
    run = open_model(twins)
    total = np.zeros((len(layers), 2))
    for batch in rebatch([images], batch_of(twins)):
        total += np.array(run(batch), np.float64).reshape(total.shape)
    return [
        10 * math.log10(signal / noise) if signal and noise else math.inf for signal, noise in total
    ]


def divergence(reference: NDArray[Any], other: NDArray[Any], kind: Kind) -> float:
    """Returns how far an output is moved: 0 where it is the same.

    Of ``classes``, the mean over images and pixels of ``Σ p (log p − log p̂)`` in nats, with p the
    softmax over the classes; of ``probabilities`` the same of each yes and no; of ``labels`` and
    ``indices`` the share that is another one; of ``values`` ``Σ (y − ŷ)² / Σ y²``.

    Args:
        reference: Logits ``(N, C, ...)``, or other outputs.
        other: Those to compare, of the same shape.
        kind: What they are.
    """
    if kind == "labels":
        return float(((reference > 0) != (other > 0)).mean())
    if kind == "indices":
        return float((reference != other).mean())
    if kind == "probabilities":
        return float(yes_no(reference, other).mean())
    if kind == "values":
        exact = reference.astype(np.float64)
        signal = float((exact**2).sum())
        noise = float(((exact - other) ** 2).sum())
        return noise / signal if signal else noise
    expected, found = _log_softmax(reference), _log_softmax(other)
    return float((np.exp(expected) * (expected - found)).sum(axis=1).mean())


def _log_softmax(values: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = values.astype(np.float64) - values.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _with_one(proto: ModelProto, layer: Layer, ranges: Ranges) -> bytes:
    """Returns the model with one layer quantised, unchecked."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    write_pairs(copy, [layer], ranges)
    data: bytes = copy.SerializeToString()
    return data


def _with_twins(proto: ModelProto, layers: tuple[Layer, ...], ranges: Ranges) -> bytes:
    """Returns a model whose outputs are ``Σ y²`` and ``Σ (y − ŷ)²`` of each layer in turn."""
    model = ModelProto()
    model.CopyFrom(proto)
    graph = model.graph
    pairs = PairWriter(graph, ranges)
    by_output = {layer.output: layer for layer in layers}
    nodes: list[NodeProto] = []
    del graph.output[:]
    for node in graph.node:
        nodes.append(node)
        layer = by_output.get(node.output[0])
        if layer is not None:
            inputs = pairs.inputs(node, layer)
            nodes += [*pairs.take_nodes(), *_twin(node, inputs, pairs.fresh)]
            graph.output.extend(
                helper.make_tensor_value_info(n.output[0], TensorProto.FLOAT, ())
                for n in nodes[-2:]
            )
    pairs.finish(nodes)
    data: bytes = model.SerializeToString()
    return data


def _twin(node: NodeProto, inputs: list[str], fresh: Callable[[str], str]) -> list[NodeProto]:
    """Returns the node with other inputs, and what sums the squares of it and of the difference."""
    name = node.output[0]
    twin = NodeProto()
    twin.CopyFrom(node)
    twin.name = f"{name}_twin"
    twin.input[:] = inputs
    twin.output[:] = [fresh(f"{name}_twin")]
    difference = fresh(f"{name}_difference")
    signal, noise = fresh(f"{name}_signal"), fresh(f"{name}_noise")
    return [
        twin,
        helper.make_node("Sub", [name, twin.output[0]], [difference]),
        helper.make_node("ReduceSumSquare", [name], [signal], keepdims=0),
        helper.make_node("ReduceSumSquare", [difference], [noise], keepdims=0),
    ]
