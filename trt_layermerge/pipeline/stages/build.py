"""``build``: both networks → engines with sidecars; ``build.json`` tells what was (not) built."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from trt_layermerge.core.device import Precision
from trt_layermerge.core.jsonio import Json, read_json, sha256_file, write_json
from trt_layermerge.deploy.sidecar import STEMS, Network, check_engine
from trt_layermerge.errors import (
    CorruptInputError,
    DeviceError,
    UnsupportedModelError,
    UntrustedInputError,
    UsageError,
)
from trt_layermerge.pipeline.built import built_engines
from trt_layermerge.pipeline.context import Context, data_inputs
from trt_layermerge.pipeline.deployed import (
    CALIBRATION,
    ENGINE_FALLBACK,
    deployed_model,
    master_name,
    weights_name,
)
from trt_layermerge.pipeline.recipe import dump_recipe
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.pipeline.versions import versions

if TYPE_CHECKING:
    from trt_layermerge.backends.tensorrt_options import BuildOptions
    from trt_layermerge.deploy.sidecar import Origin


def _settings(context: Context) -> Json:
    from trt_layermerge.deploy.machine import this_machine

    return {
        "libraries": versions(("tensorrt", "tensorrt-rtx")),
        "build": context.recipe.build.model_dump(mode="json"),
        "batch": context.recipe.measure.batch,
        "machine": this_machine().folder,
        "labels": data_inputs(context.recipe.data.train),
        "preprocess": context.recipe.data.preprocess.model_dump(mode="json"),
        "seed": context.seed,
    }


def _run(context: Context) -> tuple[str, ...]:
    section = context.recipe.build
    wanted: list[tuple[Network, Precision]] = [
        (network, precision) for precision in section.precisions for network in STEMS
    ]
    if section.engine == "none":
        wanted = []
    rows: list[Json] = []
    for done, (network, precision) in enumerate(wanted):
        context.reporter.progress("building engines", done, len(wanted))
        try:
            rows.append({**_build(context, network, precision), "error": None})
        except (DeviceError, UnsupportedModelError) as error:
            # Nothing else of a run needs an engine: the refusal is shown, and stands in the report.
            context.reporter.note(f"no {precision} engine of the {network} network: {error}")
            refused = {"plan": None, "error": str(error), "exit_code": error.exit_code}
            rows.append({"network": network, "precision": precision, **refused})
    context.reporter.progress("building engines", len(wanted), len(wanted))
    plans = [row["plan"] for row in rows if row["plan"] is not None]
    if plans:
        _remove_others(context, plans)
    # The sidecars are not listed: later stages add to them.
    write_json(context.folder / "build.json", "build", {"engines": rows})
    return "build.json", *plans


def _remove_others(context: Context, plans: Collection[str]) -> None:
    """Removes what earlier builds left for this machine and this one did not make again.

    Engines of other machines, in folders of their own, cannot be built again here.
    """
    from trt_layermerge.deploy.machine import this_machine
    from trt_layermerge.deploy.sidecar import sidecar_path

    kept = {context.folder / name for name in plans}
    for plan in (context.folder / "engines" / this_machine().folder).glob("*.plan"):
        if plan not in kept:
            sidecar_path(plan).unlink(missing_ok=True)
            plan.unlink()


def _build(context: Context, network: Network, precision: Precision) -> Json:
    """Writes an engine and its sidecar; returns its record, with its name in the run's folder."""
    from trt_layermerge.backends.tensorrt import build_engine
    from trt_layermerge.backends.tensorrt_api import load_api
    from trt_layermerge.deploy.machine import this_machine
    from trt_layermerge.deploy.record import build_record
    from trt_layermerge.deploy.sidecar import write_engine
    from trt_layermerge.measure.agent.telemetry import power_mode

    folder, chosen = context.folder, context.recipe.build.engine
    api = load_api(None if chosen == "auto" else chosen)
    model = deployed_model(context, network, precision, ENGINE_FALLBACK)
    build = build_engine(model, precision, api=api, options=build_options(context, model))
    origin = _origin(context, network, precision)
    machine = this_machine(power_mode().value)
    plan = write_engine(folder / "engines", build, origin, machine, network)
    context.reporter.note(
        f"{precision} engine of the {network} network: {len(build.plan):,} bytes by "
        f"{build.library} {build.version} in {build.seconds:.1f} s"
    )
    return {**build_record(build, network, model), "plan": str(plan.relative_to(folder.root))}


def build_options(context: Context, model: bytes) -> BuildOptions:
    """Returns how the recipe wants an engine of a model to be built.

    Args:
        context: The run.
        model: The ONNX model; where its batch is free, the engine takes 1 to ``build.max_batch``.
    """
    from trt_layermerge.backends.tensorrt_options import BuildOptions, default_timing_cache
    from trt_layermerge.export.batch import batch_shapes, dynamic_batch

    section, batch = context.recipe.build, context.recipe.measure.batch
    profile = None
    if dynamic_batch(model):
        profile = batch_shapes(model, 1, batch, section.max_batch or batch)
    return BuildOptions(
        **section.options.for_builder(), timing_cache=default_timing_cache(), profile=profile
    )


def _origin(context: Context, network: Network, precision: Precision) -> Origin:
    from trt_layermerge.deploy.sidecar import Origin

    folder, data = context.folder, context.data("train")
    weights = folder / weights_name(context, precision) if network == "merged" else None
    return Origin(
        onnx_sha256=sha256_file(folder / master_name(network, precision)),
        weights_sha256=sha256_file(weights) if weights else None,
        preprocess=context.recipe.data.preprocess.build().to_json(),
        labels=data.class_names or None if data is not None else None,
        recipe=dump_recipe(context.recipe),
        seed=context.seed,
    )


def _result(context: Context) -> Json:
    return read_json(context.folder / "build.json", "build")


def _settled(context: Context) -> bool:
    """Whether every engine was built, and belongs to its sidecar.

    When it was not, the device may have been busy, or short of memory. Sidecars are none of the
    stage's outputs, since later stages add to them.
    """
    if not (context.folder / "build.json").is_file():
        return True
    try:
        engines = built_engines(context)
        for built in engines:
            if built.plan is not None:
                check_engine(context.folder / built.plan)
    except (UsageError, CorruptInputError, UntrustedInputError):
        return False
    return all(built.plan is not None for built in engines)


READS = ("original.onnx", "model.onnx", "merged.safetensors", CALIBRATION)
STAGE = Stage("build", READS, _settings, _run, _result, settled=_settled)
