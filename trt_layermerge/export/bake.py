"""Work before and behind a network, made part of its graph.

In front: ``y = (x · scale − mean) / std`` for RGB from 0 to 255, as ``Mul``, ``Sub`` and ``Div`` of
float32 with the very constants of ``Preprocess``, so that both give the same bits. Behind: softmax
over the classes. A network typed in another precision keeps float32 at its ends
(``fp16.to_precision`` with ``keep_io``), so what is added here is float32 always.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import GraphProto, TensorProto, ValueInfoProto, helper, numpy_helper

from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.export.graph import checked, fresh_names, parse_model, rename, set_nodes

PROBABILITIES = "prob"
_NORMALISED, _LOGITS = "normalised", "logits_before_softmax"


def bake(model: bytes, preprocess: Preprocess | None, *, softmax: bool) -> bytes:
    """Returns the model with normalisation in front and softmax behind.

    Args:
        model: An ONNX model; for ``softmax``, one with a single float32 output ``(N, classes)``.
        preprocess: What the first input, float32 ``(N, C, H, W)``, goes through; its name stays.
            None leaves it alone.
        softmax: Whether the output becomes probabilities, then called ``prob``.

    Raises:
        CorruptInputError: If the bytes are no ONNX model.
        UnsupportedModelError: If input or output are of another form, or the channels are not
            those of ``preprocess``.
    """
    parsed = parse_model(model)
    if preprocess is not None:
        _refuse_other("first input", parsed.graph.input[:1], 4)
        _normalise(parsed.graph, preprocess)
    if softmax:
        _refuse_other("output", parsed.graph.output, 2)
        _add_softmax(parsed.graph)
    return checked(parsed)


def _refuse_other(what: str, values: Sequence[ValueInfoProto], rank: int) -> None:
    types = [value.type.tensor_type for value in values]
    if [(t.elem_type, len(t.shape.dim)) for t in types] != [(TensorProto.FLOAT, rank)]:
        raise UnsupportedModelError(
            f"the {what} of the network is not one float32 tensor of {rank} dimensions; "
            "package it without --bake-preprocess"
        )


def _normalise(graph: GraphProto, preprocess: Preprocess) -> None:
    source = graph.input[0].name
    channels = graph.input[0].type.tensor_type.shape.dim[1].dim_value
    if {len(preprocess.mean), len(preprocess.std)} != {channels}:
        raise UnsupportedModelError(
            f"the network takes {channels} channels, but data.preprocess has "
            f"{len(preprocess.mean)} means and {len(preprocess.std)} deviations"
        )
    fresh = fresh_names(graph)
    normalised = fresh(_NORMALISED)
    rename(graph, source, normalised)
    nodes, value = [], source
    steps = (
        ("Mul", "scale", np.float32(preprocess.scale).reshape(1, 1, 1, 1)),
        ("Sub", "mean", np.asarray(preprocess.mean, np.float32).reshape(1, -1, 1, 1)),
        ("Div", "std", np.asarray(preprocess.std, np.float32).reshape(1, -1, 1, 1)),
    )
    for operator, name, constant in steps:
        result = normalised if operator == "Div" else fresh(f"{_NORMALISED}_{name}")
        given = fresh(f"preprocess_{name}")
        graph.initializer.append(numpy_helper.from_array(constant, given))
        nodes.append(helper.make_node(operator, [value, given], [result], f"bake_{name}"))
        value = result
    set_nodes(graph, [*nodes, *graph.node])


def _add_softmax(graph: GraphProto) -> None:
    output = graph.output[0]
    fresh = fresh_names(graph)
    logits, probabilities = fresh(_LOGITS), fresh(PROBABILITIES)
    rename(graph, output.name, logits)
    node = helper.make_node("Softmax", [logits], [probabilities], "bake_softmax", axis=1)
    set_nodes(graph, [*graph.node, node])
    output.name = probabilities
