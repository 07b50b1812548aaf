"""The verbs that do one stage of a run: from options to the pipeline and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from trt_layermerge.cli.console import RichReporter, error_console, print_result
from trt_layermerge.cli.options import (
    PRECISIONS,
    BackendName,
    GoalOptions,
    SharedOptions,
    StageOptions,
    run_at,
)
from trt_layermerge.cli.verb import option, overrides
from trt_layermerge.cli.views import stage_view
from trt_layermerge.errors import DeviceError, LayerMergeError, UnsupportedModelError, error_of
from trt_layermerge.pipeline.options import PRESETS, Reporter, RunOptions

Result: TypeAlias = dict[str, Any]
Failure: TypeAlias = Callable[[Result], LayerMergeError | None]

_BUNDLE = "Bundle"


def run_stage(
    stage: str,
    options: StageOptions,
    always: Mapping[str, Any] | None = None,
    failure: Failure = lambda result: None,
) -> None:
    """Does one stage of a run and prints its result.

    Args:
        stage: Its name.
        options: What was typed.
        always: Keys of the recipe that the stage sets whatever was typed.
        failure: As ``perform`` takes it.
    """
    request = request_of(options, always)
    from trt_layermerge.pipeline import api

    perform(options, lambda reporter: api.run_stage(stage, request, reporter), stage, failure)


def request_of(options: StageOptions, always: Mapping[str, Any] | None = None) -> RunOptions:
    """Returns what the options of a stage ask of the pipeline."""
    run, runs_dir = run_at(options.run, options.runs_dir)
    return RunOptions(
        run=run,
        runs_dir=runs_dir,
        recipe=options.recipe,
        overrides={**overrides(options), **(always or {})},
        trust_engine=getattr(options, "trust_engine", False),
        verbose=options.verbosity,
    )


def perform(
    options: SharedOptions,
    work: Callable[[Reporter], Result],
    stage: str,
    failure: Failure = lambda result: None,
) -> None:
    """Does some work, its progress on stderr, and prints the result of a stage.

    Args:
        options: What was typed.
        work: What is done; given who shows its progress.
        stage: Name of the stage, which decides what is shown.
        failure: Returns what the command ends with although there is a result, or None.

    Raises:
        LatencyGateError: If one of several speed-ups was not reached; all else is printed before.
        AccuracyGateError: If one of several networks is less accurate than allowed.
    """
    with RichReporter(error_console(), options.verbosity) as reporter:
        result = work(reporter)
    missed = [row for row in result.get("plans", ()) if row["error"]]  # of several speed-ups
    errors = (error_of(row["exit_code"], f"{row['run']}: {row['error']}") for row in missed)
    error = next(errors, None) or failure(result)
    if result and not (error and options.as_json):  # only the first of several processes has one
        print_result(result, None if options.as_json else stage_view(stage, result))
    if error is not None:
        error.result = result
        raise error


@dataclass(frozen=True, kw_only=True)
class InspectOptions(StageOptions):
    """Options of ``inspect``."""

    rules: Literal["paper", "full"] | None = option(
        "Which blocks and candidates exist.", key="search.rules"
    )


def inspect(options: InspectOptions) -> None:
    """Shows units, segments, residuals, and what cannot merge and why."""

    def failure(result: Result) -> LayerMergeError | None:
        why = result.get("nothing_merges")
        return UnsupportedModelError(why) if why else None

    run_stage("inspect", options, failure=failure)


@dataclass(frozen=True, kw_only=True)
class ImportanceOptions(StageOptions):
    """Options of ``importance``."""

    method: Literal["calibrate", "finetune", "spectral"] | None = option(
        "calibrate: seconds a candidate; finetune: as published; spectral: by weights.",
        key="importance.method",
    )
    workers: int | None = option(
        "Processes that score; more than 1 need Ray.", key="scale.workers", min=1
    )
    ray: str | None = option(
        "Address of a Ray cluster: auto, HOST:PORT or ray://HOST:PORT.", key="scale.ray"
    )


def importance(options: ImportanceOptions) -> None:
    """Scores every candidate on data, or continues to."""
    run_stage("importance", options)


@dataclass(frozen=True, kw_only=True)
class SearchOptions(StageOptions, GoalOptions):
    """Options of ``search``."""


def search(options: SearchOptions) -> None:
    """Chooses the best plan within the budget, and writes the whole frontier."""
    run_stage("search", options)


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(StageOptions):
    """Options of ``finetune``."""

    preset: str | None = option(
        " ".join(f"{name}: {what}" for name, what in PRESETS.items()),
        key="finetune.preset",
        metavar="NAME",
    )
    start: Literal["repair", "original"] | None = option(
        "Start from repaired blocks, or from the original weights.", key="finetune.start"
    )


def finetune(options: FinetuneOptions) -> None:
    """Trains the network of the plan; continues where it stopped."""
    run_stage("finetune", options)


def merge(options: StageOptions) -> None:
    """Collapses the relaxed network into few convolutions and certifies it."""
    run_stage("merge", options)


def export(options: StageOptions) -> None:
    """Writes the original and the merged network as ONNX, checked against torch."""
    run_stage("export", options)


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(StageOptions):
    """Options of ``calibrate``."""

    preset: Path | None = option(
        "How to calibrate: a YAML file as in calib/presets.", key="calibrate.preset", convert=str
    )
    method: Literal["minmax", "entropy", "percentile"] | None = option(
        "Overrides the preset's way to find scales: minmax, entropy or percentile.",
        key="calibrate.options.method",
        metavar="METHOD",
    )
    images: int | None = option(
        "Overrides the preset's number of training images.", key="calibrate.options.images", min=1
    )
    qat_epochs: int | None = option(
        "Epochs of training the merged network with int8's rounding.",
        key="calibrate.qat_epochs",
        min=0,
    )


def calibrate(options: CalibrateOptions) -> None:
    """Quantises both networks to int8 within an accuracy gate; the run builds int8 from then on."""
    run_stage("calibrate", options, {"build.precisions+": "int8"})


@dataclass(frozen=True, kw_only=True)
class BuildOptions(StageOptions):
    """Options of ``build``: here the backend and the precision are the engine's."""

    backend: BackendName | None = option(
        "tensorrt or tensorrt_rtx; by default the one that is installed.", key="build.engine"
    )
    precision: str | None = option(
        "Precision of the engine.",
        key="build.precisions",
        convert=lambda precision: [precision],
        metavar=PRECISIONS,
    )


def build(options: BuildOptions) -> None:
    """Builds the engine with its sidecar."""
    run_stage("build", options, failure=_no_engine)


def _no_engine(result: Result) -> LayerMergeError | None:
    """Returns why there is no engine: a whole run goes on without, who asks for one must hear."""
    engines = result["engines"]
    if not engines or any(engine["plan"] is not None for engine in engines):
        return None
    unsupported = engines[0].get("exit_code") == UnsupportedModelError.exit_code
    return (UnsupportedModelError if unsupported else DeviceError)(engines[0]["error"])


@dataclass(frozen=True, kw_only=True)
class BenchOptions(StageOptions):
    """Options of ``bench``."""

    max_latency_ms: float | None = option(
        "Most that the merged network may take in the median, in ms.", key="verify.max_latency_ms"
    )
    trust_engine: bool = option(
        "Time engines that do not match their sidecar too; an engine runs code.",
        "--trust-engine",
        default=False,
    )


def bench(options: BenchOptions) -> None:
    """Times the original beside the merged network, at every precision that was built."""
    run_stage("bench", options)


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(StageOptions):
    """Options of ``verify``."""

    max_accuracy_drop: float | None = option(
        "Largest loss of accuracy allowed, as a fraction like 0.01.", key="verify.max_accuracy_drop"
    )
    min_agreement: float | None = option(
        "Smallest share of answers that must be the original's, like 0.95; needs no labels.",
        key="verify.min_agreement",
    )
    trust_engine: bool = option(
        "Load engines that do not match their sidecar too; an engine runs code.",
        "--trust-engine",
        default=False,
    )


def verify(options: VerifyOptions) -> None:
    """Compares torch, ONNX and engine: numbers, accuracy, gates."""
    run_stage("verify", options)


@dataclass(frozen=True, kw_only=True)
class PackageOptions(StageOptions):
    """Options of ``package``: here the precision is the bundle's."""

    targets: list[str] | None = option(
        "What the bundle is for: plain, triton, deepstream or isaac-ros; repeatable.",
        "--for",
        key="package.targets",
        metavar="TARGET",
        panel=_BUNDLE,
    )
    bake_preprocess: bool | None = option(
        "Normalisation and softmax within the network; DeepStream needs it.",
        key="package.bake_preprocess",
        show_default=False,
        panel=_BUNDLE,
    )
    precision: Literal["fp32", "fp16", "int8"] | None = option(
        "fp32, fp16 or int8; by default what was measured.",
        key="package.precision",
        metavar="TYPE",
        panel=_BUNDLE,
    )


def package(options: PackageOptions) -> None:
    """Bundles engine, ONNX, recipe and checks for a server, a robot or a program."""
    run_stage("package", options)


def report(options: StageOptions) -> None:
    """Writes one page that works offline, and its Markdown twin."""
    run_stage("report", options)
