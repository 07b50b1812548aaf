"""``calibrate``: both ONNX models → ``original.int8.onnx``, ``model.int8.onnx``, scales.

Where nothing is int8, ``calibration.json`` says so.
"""

from __future__ import annotations

from trt_layermerge.core.jsonio import Json, write_json
from trt_layermerge.pipeline.data_files import data_inputs
from trt_layermerge.pipeline.files import read_body
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.session.deployed import CALIBRATION, MERGED
from trt_layermerge.session.quantizing import masters_in, preset_of, presets_of

NOT_ASKED = (
    "nothing is measured or built at int8; ask for it with measure.precision or build.precisions"
)


def _settings(run: Run) -> Json:
    if not run.recipe.int8:
        return {}  # whatever was calibrated before does no harm
    data, section = run.recipe.data, run.recipe.calibrate
    epochs, preset = section.qat_epochs, preset_of(section)
    if preset.keep_float:  # before the run remembers a mistyped name
        presets_of(preset, masters_in(run.folder.root))
    return {
        "preset": preset.to_json(),
        "train": data_inputs(data.train, data.classes),
        "val": data_inputs(data.val, data.classes),
        "preprocess": run.preprocessing,
        "task": run.recipe.task,
        "qat": {"epochs": epochs, "seed": run.seed} if epochs else None,
    }


def _run(run: Run) -> tuple[str, ...]:
    if not run.recipe.int8:
        body = {"reason": NOT_ASKED, "networks": {}}
        write_json(run.folder / CALIBRATION, "calibrations", body)
        return (CALIBRATION,)
    return run.session.quantize(run.train, val=run.data("val"))


def _result(run: Run) -> Json:
    body = read_body(run.folder / CALIBRATION, "calibrations")
    if not body["networks"]:
        return {"reason": body["reason"]}
    kept = ("file", "accuracy_fp32", "accuracy_int8", "agreement", "keep_float", "layers")
    rows = [
        {"network": network, **{key: table[key] for key in kept}}
        for network, table in body["networks"].items()
    ]
    return {**{k: body[k] for k in ("calibrated_on", "judged_on", "qat")}, "networks": rows}


READS = ("original.onnx", "model.onnx", MERGED)
STAGE = Stage("calibrate", READS, _settings, _run, _result)
