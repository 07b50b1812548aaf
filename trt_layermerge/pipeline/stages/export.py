"""``export``: both networks → ``original.onnx`` and ``model.onnx``, checked against torch."""

from __future__ import annotations

from trt_layermerge.core.jsonio import Json, read_json, write_json
from trt_layermerge.pipeline.context import Context, data_inputs, images_of
from trt_layermerge.pipeline.stage import Stage

IMAGES = 16


def _settings(context: Context) -> Json:
    return {
        "model": context.recipe.model.identity(),
        "batch": context.recipe.measure.batch,
        "dynamic_batch": context.recipe.build.max_batch is not None,
        "val": data_inputs(context.recipe.data.val),
        "preprocess": context.recipe.data.preprocess.model_dump(mode="json"),
    }


def _run(context: Context) -> tuple[str, ...]:
    from trt_layermerge.export.onnx import export_onnx

    data = context.data("val") or context.data("train")
    images = None if data is None else images_of(data, IMAGES)
    if images is None:
        context.reporter.note("no images to compare ONNX with torch on: exported unchecked")
    networks = {"original.onnx": context.model, "model.onnx": context.merged}
    free = context.recipe.build.max_batch is not None
    reports = {
        name: export_onnx(
            network, context.example, context.folder / name, dynamic_batch=free, check=images
        ).to_json()
        for name, network in networks.items()
    }
    write_json(context.folder / "export.json", "export", {"models": reports})
    return "original.onnx", "model.onnx", "export.json"


def _result(context: Context) -> Json:
    return read_json(context.folder / "export.json", "export")


STAGE = Stage("export", ("graph.json", "plan.json", "merged.safetensors"), _settings, _run, _result)
