"""``bench``: original and merged network in one interleaved run → ``bench.json``."""

from __future__ import annotations

from trt_layermerge.core.jsonio import Json, read_json, write_json
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
    precision = context.recipe.measure.precision
    original, merged = (
        to_precision((context.folder / name).read_bytes(), precision)
        for name in ("original.onnx", "model.onnx")
    )
    result = bench(original, merged, context.backend, batch=context.recipe.measure.batch)
    write_json(context.folder / "bench.json", "bench", result.to_json())
    return ("bench.json",)


def _result(context: Context) -> Json:
    return read_json(context.folder / "bench.json", "bench")


STAGE = Stage("bench", ("original.onnx", "model.onnx"), _settings, _run, _result)
