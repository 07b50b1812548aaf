"""``bench``: original and merged network in one interleaved run → ``bench.json``."""

from __future__ import annotations

from trt_layermerge.core.jsonio import Json, read_json, write_json
from trt_layermerge.errors import UsageError
from trt_layermerge.export.fp16 import to_precision
from trt_layermerge.measure.bench import bench
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.stage import Stage


def _settings(context: Context) -> Json:
    measure = context.recipe.measure
    return {
        "precision": measure.precision,
        "batch": measure.batch,
        "device": context.backend.device().to_json(),
    }


def _run(context: Context) -> tuple[str, ...]:
    measure, folder = context.recipe.measure, context.folder
    exported = read_json(folder / "export.json", "export")["models"]["model.onnx"]
    if exported["input_shape"][0] != measure.batch:
        raise UsageError(
            f"the networks were exported for a batch of {exported['input_shape'][0]}, not "
            f"{measure.batch}; measure, choose and export for that batch: "
            f"trt-layermerge run --run {folder.root.name}"
        )
    original, merged = (
        to_precision((folder / name).read_bytes(), measure.precision)
        for name in ("original.onnx", "model.onnx")
    )
    result = bench(original, merged, context.backend, batch=measure.batch)
    body = {"precision": measure.precision, **result.to_json()}
    write_json(folder / "bench.json", "bench", body)
    return ("bench.json",)


def _result(context: Context) -> Json:
    return read_json(context.folder / "bench.json", "bench")


STAGE = Stage("bench", ("original.onnx", "model.onnx", "export.json"), _settings, _run, _result)
