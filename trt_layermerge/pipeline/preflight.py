"""What can be found wrong with a recipe before hours are spent on it."""

from __future__ import annotations

from importlib.util import find_spec

from trt_layermerge.core.agreement import check_labels
from trt_layermerge.data.names import parse_name
from trt_layermerge.errors import (
    DeviceError,
    MissingDependencyError,
    UnsupportedModelError,
    UsageError,
    did_you_mean,
)
from trt_layermerge.pipeline.data_files import data_inputs, refuse_overlaps
from trt_layermerge.pipeline.room import refuse_little_room
from trt_layermerge.pipeline.run import Run

UNTOLD = ", or none that tell the classes of an output"


def preflight(run: Run) -> None:
    """Holds the recipe of a whole run to its network, its images and this machine.

    Of the test images only the labels are looked at, and of a Dataset only where a limit needs
    them: ``verify`` shows them to networks, and nothing else does.

    Raises:
        UsageError: If a name or an option cannot be used, or training images are missing.
        CorruptInputError: If images cannot be used.
        DeviceError: If the device or the builder of engines is not there, Ray is not installed
            where it is asked for, or disk or memory will not do.
        UnsupportedModelError: If the original network cannot be typed as it is to be deployed.
    """
    from trt_layermerge.finetune.device import device_named
    from trt_layermerge.pipeline.packaging import refuse_bundles

    device_named(run.recipe.device)
    if run.recipe.scale.workers > 1 and find_spec("ray") is None:
        raise MissingDependencyError("ray", "scoring by several workers", "ray")
    _check_images(run)
    _check_gates(run)
    _check_kinds(run)
    refuse_bundles(run)
    _check_engines(run)
    refuse_precisions(run)
    refuse_little_room(run)


def _check_images(run: Run) -> None:
    """Checks that the images will do for all that is to be scored, trained and calibrated on them.

    Raises:
        UsageError: If they will not, or nobody understands how.
        CorruptInputError: If some cannot be used.
    """
    from trt_layermerge.data.augment import parse_augment
    from trt_layermerge.finetune.loop import check_teaching
    from trt_layermerge.quantize.qdq import quantizable
    from trt_layermerge.session.images import calibration_of
    from trt_layermerge.session.networks import onnx_of
    from trt_layermerge.session.quantizing import preset_of
    from trt_layermerge.session.scoring import scoring_recipe
    from trt_layermerge.session.training import training_recipe

    data = run.recipe.data
    refuse_overlaps({"train": data.train, "val": data.val, "test": data.test})
    judged = run.session.judged(run.train)
    training = training_recipe(run.recipe.finetune, run.seed, judged)
    if run.recipe.importance.method == "finetune" and not judged:
        raise UsageError(
            "importance.method finetune scores by accuracy, and the training images have no "
            f"labels{UNTOLD}; choose calibrate, or give images with labels (data.train)"
        )
    scoring_recipe(run.recipe.importance, run.seed)
    if run.recipe.calibrate.qat_epochs and not judged:
        raise UsageError(
            "calibrate.qat_epochs trains on labels and chooses by accuracy, and the training "
            f"images have no labels{UNTOLD}; set it to 0, or give images with labels (data.train)"
        )
    preset = preset_of(run.recipe.calibrate)
    if run.recipe.int8 and preset.keep_float:
        known = quantizable(onnx_of(run.session.model, run.session.example, "fp32"))
        if strange := [name for name in preset.keep_float if name not in known]:
            hint = did_you_mean(strange[0], known)
            run.reporter.note(
                f"the original network has no node {', '.join(strange)} (keep_float); if the "
                f"merged one has none either, calibrate will refuse{hint}"
            )
    wanted = run.recipe.importance
    calibration_of(run.train, wanted.fit_images, wanted.score_images, run.seed)
    if training is not None:
        check_teaching(training, run.train)
        parse_augment(training.augment, run.train)
    run.data("val")
    data_inputs(data.test)
    _check_labels(run)


def _check_gates(run: Run) -> None:
    """Checks that what the limits are about will be measured. Raises ``UsageError``."""
    limits = run.recipe.verify
    if limits.max_accuracy_drop is not None and not _tells_accuracy(run):
        raise UsageError(
            "verify.max_accuracy_drop is a limit on accuracy, and there are no test images with "
            f"labels{UNTOLD} to measure it on; give some (--test imagefolder:DIR or npz:FILE), or "
            "hold the answers to the original network's instead (--set "
            "verify.max_accuracy_drop=null --set verify.min_agreement=0.95)"
        )
    if run.metric is None and limits.max_metric_drop is not None:
        raise UsageError(
            "verify.max_metric_drop is a limit on data.metric, and there is none; name it "
            "(FILE.py:FUNCTION), or take the limit away (--set verify.max_metric_drop=null)"
        )
    if run.recipe.measure.recorded and limits.max_latency_ms is not None:
        raise UsageError(
            "verify.max_latency_ms is a limit on what bench times, and latencies are imported ones "
            "(measure.recorded), so nothing is timed; give the limit as the goal (--budget-ms), or "
            "take it away (--set verify.max_latency_ms=null)"
        )


def _check_kinds(run: Run) -> None:
    """Checks that each limit on candidates that is not the usual one is of use to some block.

    Raises:
        UsageError: If one is not.
    """
    from trt_layermerge.kinds import Limits, kinds_named

    search = run.recipe.search
    limits = Limits(**search.limits.model_dump())
    if search.rules != "full" or limits.kernels == Limits().kernels:
        return
    for kind in kinds_named("full", search.kinds):
        if (why := kind.idle(run.session.graph, limits)) is not None:
            raise UsageError(f"search.limits.kernels: {why}")


def _check_engines(run: Run) -> None:
    """Checks that what is to build engines is here, where latency is measured here.

    Raises:
        DeviceError: If it is not.
    """
    from trt_layermerge.backends.tensorrt_api import load_api

    engine = run.recipe.build.engine
    if engine in ("auto", "none"):
        return
    try:
        load_api(engine)
    except DeviceError as error:
        why = f"build.engine {engine} cannot build engines here: {error}"
        if run.session.elsewhere:
            run.reporter.note(why)
            return
        raise DeviceError(
            f"{why}, or let whoever is there build them (--set build.engine=auto: on a machine "
            "without, a run goes on and its bundles are completed by rebuild)"
        ) from error


def _tells_accuracy(run: Run) -> bool:
    """Whether the test images have labels, and an output is logits of their classes."""
    test = run.data("test")
    return test is not None and run.session.judged(test)


def refuse_precisions(run: Run) -> None:
    """Types the original network as the merged one is to be measured, built and bundled.

    Precisions that are built unless somebody says otherwise are left to ``build``, which notes
    why there is no engine.

    Raises:
        UnsupportedModelError: If it cannot be, as where a weight is beyond half precision.
    """
    from trt_layermerge.session.networks import onnx_of
    from trt_layermerge.session.settings import BuildSection

    recipe, session = run.recipe, run.session
    asked = {recipe.measure.precision}
    if recipe.package.targets and recipe.package.precision is not None:
        asked.add(recipe.package.precision)
    usual = recipe.build.precisions == BuildSection().precisions
    built = set() if recipe.build.engine == "none" or usual else {*recipe.build.precisions}
    for precision in sorted((asked | built) - {"fp32"}):
        try:
            fallback = session.networks.fallback
            onnx_of(session.model, session.example, precision, fallback, timed=False)
        except UnsupportedModelError as error:
            key = "" if precision in asked else " (build.precisions)"
            raise UnsupportedModelError(
                f"the original network itself cannot be {precision}{key}: {error}"
            ) from error


def _check_labels(run: Run) -> None:
    """Checks the labels that are known without their images against the network's classes.

    Raises:
        CorruptInputError: If one is none of these.
    """
    from trt_layermerge.data import held_labels

    session = run.session
    if list(session.outputs.values()) != ["classes"]:
        return
    (answers,) = session.answers.values()
    for split in ("train", "val", "test"):
        source: str | None = getattr(run.recipe.data, split)
        if source is None or parse_name(source).kind == "python":
            continue
        data = run.data(split)
        labels = None if data is None else held_labels(data)
        if labels is not None:
            check_labels(labels, answers.shape[1])
