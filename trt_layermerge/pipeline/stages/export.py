"""``export``: both networks → ``original.onnx`` and ``model.onnx``, checked against torch."""

from __future__ import annotations

from trt_layermerge.core.jsonio import Json
from trt_layermerge.pipeline.data_files import data_inputs
from trt_layermerge.pipeline.files import read_body
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.session.images import images_of
from trt_layermerge.session.session import COMPARED_IMAGES


def _settings(run: Run) -> Json:
    return {
        "model": run.recipe.model.identity(),
        "batch": run.recipe.measure.batch,
        "dynamic_batch": run.recipe.build.max_batch is not None,
        "val": data_inputs(run.recipe.data.val),
        "preprocess": run.preprocessing,
    }


def _run(run: Run) -> tuple[str, ...]:
    data = run.data("val") or run.data("train")
    run.session.export(check=None if data is None else images_of(data, COMPARED_IMAGES))
    return "original.onnx", "model.onnx", "export.json"


def _result(run: Run) -> Json:
    return read_body(run.folder / "export.json", "export")


STAGE = Stage("export", ("graph.json", "plan.json", "merged.safetensors"), _settings, _run, _result)
