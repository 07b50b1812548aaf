"""``build``: ``model.onnx`` → engines with sidecars; ``build.json`` tells what was not built."""

from __future__ import annotations

import shutil

from trt_layermerge.core.device import Precision
from trt_layermerge.core.jsonio import Json, read_json, sha256_file, write_json
from trt_layermerge.errors import DeviceError
from trt_layermerge.pipeline.context import Context, data_inputs
from trt_layermerge.pipeline.recipe import dump_recipe
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.pipeline.versions import versions


def _settings(context: Context) -> Json:
    from trt_layermerge.deploy.machine import this_machine

    return {
        "libraries": versions(("tensorrt", "tensorrt-rtx")),
        "build": context.recipe.build.model_dump(mode="json"),
        "machine": this_machine().folder,
        "labels": data_inputs(context.recipe.data.train),
        "preprocess": context.recipe.data.preprocess.model_dump(mode="json"),
        "seed": context.seed,
    }


def _run(context: Context) -> tuple[str, ...]:
    from trt_layermerge.deploy.machine import this_machine

    section = context.recipe.build
    # Engines of other machines, in folders of their own, cannot be built again here.
    shutil.rmtree(context.folder / "engines" / this_machine().folder, ignore_errors=True)
    built: list[Json] = []
    written: list[str] = []
    for precision in section.precisions if section.engine != "none" else ():
        try:
            plan = _build(context, precision)
        except DeviceError as error:
            # Nothing else of a run needs an engine: the refusal is shown, and stands in the report.
            context.reporter.note(f"no {precision} engine: {error}")
            built.append({"precision": precision, "plan": None, "error": str(error)})
        else:
            written.append(plan)
            built.append({"precision": precision, "plan": plan, "error": None})
    # The sidecars are not listed: later stages add to them.
    write_json(context.folder / "build.json", "build", {"engines": built})
    return "build.json", *written


def _build(context: Context, precision: Precision) -> str:
    """Writes an engine and its sidecar; returns the engine's name in the run's folder."""
    from trt_layermerge.backends.tensorrt import build_engine
    from trt_layermerge.backends.tensorrt_api import load_api
    from trt_layermerge.deploy.machine import this_machine
    from trt_layermerge.deploy.sidecar import Origin, write_engine
    from trt_layermerge.export.fp16 import to_precision

    folder, chosen = context.folder, context.recipe.build.engine
    api = load_api(None if chosen == "auto" else chosen)
    model = (folder / "model.onnx").read_bytes()
    build = build_engine(to_precision(model, precision, keep_io=True), precision, api=api)
    data = context.data("train")
    origin = Origin(
        onnx_sha256=sha256_file(folder / "model.onnx"),
        weights_sha256=sha256_file(folder / "merged.safetensors"),
        preprocess=context.recipe.data.preprocess.build().to_json(),
        labels=data.class_names or None if data is not None else None,
        recipe=dump_recipe(context.recipe),
        seed=context.seed,
    )
    plan = write_engine(folder / "engines", build, origin, this_machine())
    context.reporter.note(
        f"{precision} engine: {len(build.plan):,} bytes by {build.library} {build.version} "
        f"in {build.seconds:.1f} s"
    )
    return str(plan.relative_to(folder.root))


def _result(context: Context) -> Json:
    return read_json(context.folder / "build.json", "build")


STAGE = Stage("build", ("model.onnx", "merged.safetensors"), _settings, _run, _result)
