"""``build``: both networks → engines with sidecars; ``build.json`` tells what was (not) built."""

from __future__ import annotations

from trt_layermerge.core.jsonio import Json
from trt_layermerge.deploy.machine import this_machine
from trt_layermerge.pipeline.data_files import data_inputs
from trt_layermerge.pipeline.files import read_body
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.pipeline.versions import versions
from trt_layermerge.session.building import all_built
from trt_layermerge.session.deployed import CALIBRATION


def _settings(run: Run) -> Json:
    return {
        "build": run.recipe.build.model_dump(mode="json"),
        "batch": run.recipe.measure.batch,
        "labels": data_inputs(run.recipe.data.train, run.recipe.data.classes),
        "preprocess": run.preprocessing,
        "seed": run.seed,
    }


def _here(_: Run) -> Json:
    return {
        "libraries": versions(("tensorrt", "tensorrt-rtx")),
        "machine": this_machine().folder,
    }


def _run(run: Run) -> tuple[str, ...]:
    data = run.data("train")
    run.session.class_names = data.class_names if data is not None else ()
    return run.session.build()


def _result(run: Run) -> Json:
    return read_body(run.folder / "build.json", "build")


def _settled(run: Run) -> bool:
    return all_built(run.folder.root)


READS = ("original.onnx", "model.onnx", "merged.safetensors", CALIBRATION)
STAGE = Stage("build", READS, _settings, _run, _result, here=_here, settled=_settled)
