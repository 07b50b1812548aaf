"""``verify``: torch, ONNX and engines on ``test``, opened here and only here → ``verify.json``."""

from __future__ import annotations

from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import AccuracyGateError
from trt_layermerge.pipeline.data_files import data_inputs, metric_inputs, same_files
from trt_layermerge.pipeline.files import read_body
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.sections import DataSection
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.session.built import engine_hashes, wanted_precisions
from trt_layermerge.session.deployed import CALIBRATION


def _settings(run: Run) -> Json:
    data = run.recipe.data
    return {
        "model": run.recipe.model.identity(),
        "test": data_inputs(data.test, data.classes),
        "seen": seen_before(data),
        "preprocess": run.preprocessing,
        "task": run.recipe.task,
        "max_accuracy_drop": run.recipe.verify.max_accuracy_drop,
        "max_metric_drop": run.recipe.verify.max_metric_drop,
        "min_agreement": run.recipe.verify.min_agreement,
        **metric_inputs(data.metric),
        "precisions": wanted_precisions(run.recipe),
    }


def _here(run: Run) -> Json:
    return {"engines": engine_hashes(run.folder.root), "trust_engine": run.trust_engine}


def _run(run: Run) -> tuple[str, ...]:
    test = run.data("test")
    if run.recipe.data.train is not None:
        run.session.class_names = run.train.class_names
    run.session.notes = (*run.session.notes, *run.image_notes)
    _, written = run.session.verify(
        test,
        train=None if test is not None else run.data("train"),
        metric=run.metric,
        max_accuracy_drop=run.recipe.verify.max_accuracy_drop,
        max_metric_drop=run.recipe.verify.max_metric_drop,
        min_agreement=run.recipe.verify.min_agreement,
        unseen=seen_before(run.recipe.data),
    )
    return written


def _gate(run: Run) -> None:
    failed = read_body(run.folder / "verify.json", "verify")["failed_gate"]
    if failed is not None:
        raise AccuracyGateError(failed)


def seen_before(data: DataSection) -> list[str]:
    """Returns a sentence for each set that ``test`` is the same files as, or that serves for it."""
    if data.test is None and data.train is not None:
        return ["nothing was compared on unseen images: training images served (data.test is none)"]
    return [
        f"accuracy on unseen images was not measured: test and {name} are the same files"
        for name, source in (("train", data.train), ("val", data.val))
        if same_files(source, data.test)
    ]


def _result(run: Run) -> Json:
    return read_body(run.folder / "verify.json", "verify")


READS = (
    "graph.json",
    "plan.json",
    "repaired.safetensors",
    "merged.safetensors",
    "original.onnx",
    "model.onnx",
    "build.json",
    CALIBRATION,
)
STAGE = Stage("verify", READS, _settings, _run, _result, _gate, _here)
