"""A torch model becomes a layer graph, with a written reason for everything that cannot merge."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.tracing.build import build_graph
from trt_layermerge.tracing.functionalise import functionalise, remove_unused
from trt_layermerge.tracing.norms import split_norms
from trt_layermerge.tracing.prepare import (
    Inputs,
    as_inputs,
    check_values,
    evaluate,
    evaluation_copy,
    same_values,
    switch_off_inplace,
)
from trt_layermerge.tracing.reading import Reading, record_shapes
from trt_layermerge.tracing.rewrites import make_linear
from trt_layermerge.tracing.streams import find_streams
from trt_layermerge.tracing.tracer import symbolic_trace

__all__ = ["TracedNetwork", "trace", "trace_network"]


@dataclass(frozen=True)
class TracedNetwork:
    """A traced copy of a model, and what is known of it.

    Attributes:
        module: The copy in eval mode, free of in-place operations; tracing the same model again
            gives the same node names. The shape of every tensor stands in ``meta["shape"]``.
        graph: Units, residuals, segments and barriers; its node names are those of ``module``.
    """

    module: fx.GraphModule
    graph: LayerGraph


def trace(model: nn.Module, example_inputs: torch.Tensor | Inputs) -> LayerGraph:
    """Returns the layer graph of a model, which is left untouched.

    Args:
        model: A network whose convolutions are modules.
        example_inputs: A tensor, or a tuple of tensors, that the model accepts. Geometry is
            that of this input.

    Raises:
        UnsupportedModelError: If the model cannot be copied, run on this input, or traced.
        CorruptInputError: If a parameter or buffer holds NaN or infinity.
    """
    return trace_network(model, example_inputs).graph


def trace_network(model: nn.Module, example_inputs: torch.Tensor | Inputs) -> TracedNetwork:
    """Returns a traced copy of a model with its layer graph; arguments and errors as ``trace``."""
    inputs = as_inputs(example_inputs)
    check_values(model)
    duplicate = evaluation_copy(model)
    expected = evaluate(duplicate, inputs)
    inplace = switch_off_inplace(duplicate)
    module, opaque = symbolic_trace(duplicate, inputs)
    split_norms(module)
    record_shapes(module, inputs)
    functionalise(module, inplace)
    remove_unused(module, len(inputs))
    make_linear(module, opaque)
    if not same_values(evaluate(module, inputs), expected):
        raise UnsupportedModelError(
            "the traced copy does not compute what the model computes: in eval mode the model is "
            "random, changes with every call, or overwrites a tensor that it reads again; write "
            "its forward without these"
        )
    reading = Reading(module, opaque)
    first, *others = (tuple(x.shape) for x in inputs)
    types = tuple(str(x.dtype).removeprefix("torch.") for x in inputs)
    if all(x.is_floating_point() for x in inputs):
        types = ()
    graph = build_graph(reading, first)
    found = replace(
        graph,
        further_shapes=tuple(others),
        input_types=types,
        streams=find_streams(reading, graph),
    )
    return TracedNetwork(module, found)
