"""Raw ONNX -> one clean model: constants folded, dead nodes gone, one input, one output."""

from __future__ import annotations

import contextlib
import sys

import onnx
import onnx_graphsurgeon as gs

from trt_layermerge.errors import UnsupportedModelError

IR_VERSION = 8
"""What ONNX 1.12 wrote: TensorRT 8.6 and its contemporaries read it."""


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns an equivalent model, sorted, without ``Constant``, ``Identity`` and dead nodes.

    Raises:
        UnsupportedModelError: If it has not exactly one input and one output, or ONNX's own
            checker with strict shape inference refuses it.
    """
    with contextlib.redirect_stdout(sys.stderr):  # where graphsurgeon would print its warnings
        graph = gs.import_onnx(model)
        graph.fold_constants().cleanup(remove_unused_node_outputs=True).toposort()
    for kind, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        if len(tensors) != 1:
            raise UnsupportedModelError(
                f"the exported network has {len(tensors)} {kind}s "
                f"({', '.join(t.name for t in tensors[:5])}); only networks with one image input "
                "and one logits output are supported: wrap the model so that it has these"
            )
    exported = gs.export_onnx(graph, do_type_check=False)
    cleaned = onnx.helper.make_model(
        exported.graph,
        producer_name="trt-layermerge",
        ir_version=IR_VERSION,
        opset_imports=[o for o in model.opset_import if o.domain in ("", "ai.onnx")],
    )
    check(cleaned)
    return cleaned


def check(model: onnx.ModelProto) -> None:
    """Runs ONNX's checker with strict shape and type inference.

    Raises:
        UnsupportedModelError: If it refuses the model.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UnsupportedModelError(
            f"the ONNX model is not valid: {str(error).strip().splitlines()[0]}"
        ) from error


def shape_of(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """Returns the shape of a value; a dynamic axis is its name."""
    return tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or "?"
        for d in value.type.tensor_type.shape.dim
    )
