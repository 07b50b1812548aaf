"""Raw ONNX -> one clean model: constants folded, dead nodes gone, inputs and outputs named."""

from __future__ import annotations

import contextlib
import sys

import onnx
import onnx_graphsurgeon as gs

from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.export.exporters import Names
from trt_layermerge.export.graph import checked
from trt_layermerge.export.padding import absorb_pads

IR_VERSION = 8
"""What ONNX 1.12 wrote: TensorRT 8.6 and its contemporaries read it."""


def clean(model: onnx.ModelProto, names: Names) -> onnx.ModelProto:
    """Returns an equivalent model, sorted, without ``Constant``, ``Identity`` and dead nodes.

    Padding is part of the layer that it is for (``padding.absorb_pads``).

    Args:
        model: What an exporter wrote.
        names: What its inputs and outputs are called.

    Raises:
        UnsupportedModelError: If it has other inputs or outputs, or ONNX's own checker with strict
            shape inference refuses it.
    """
    with contextlib.redirect_stdout(sys.stderr):  # where graphsurgeon would print its warnings
        graph = _folded(model)
        absorb_pads(graph)
        graph.cleanup(remove_unused_node_outputs=True)
    for kind, tensors, wanted in (
        ("inputs", graph.inputs, names.inputs),
        ("outputs", graph.outputs, names.outputs),
    ):
        found = [tensor.name for tensor in tensors]
        if found != list(wanted):
            raise UnsupportedModelError(
                f"the exported network has the {kind} {', '.join(found) or 'none'}, and not "
                f"{', '.join(wanted)}: one of them does not depend on the others, or is given "
                "twice; let forward take what it uses alone, and return each value once"
            )
    exported = gs.export_onnx(graph, do_type_check=False)
    cleaned = onnx.helper.make_model(
        exported.graph,
        producer_name="trt-layermerge",
        ir_version=IR_VERSION,
        opset_imports=[o for o in model.opset_import if o.domain in ("", "ai.onnx")],
    )
    checked(cleaned)
    return cleaned


def _folded(model: onnx.ModelProto) -> gs.Graph:
    """Returns the graph with all folded that follows from sizes which are known.

    Padding that a network works out from the size of its input (TF's ``SAME``) is constant one
    convolution after the other: each round of inference makes the next size known.
    """
    nodes = len(model.graph.node) + 1
    while len(model.graph.node) < nodes:
        nodes = len(model.graph.node)
        graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model, data_prop=True))
        graph.fold_constants().cleanup(remove_unused_node_outputs=True).toposort()
        model = gs.export_onnx(graph, do_type_check=False)
    return graph
