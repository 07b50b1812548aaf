"""Both networks → engines with sidecars; ``build.json`` tells what was (not) built."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from trt_layermerge.backends.tensorrt import EngineBuild, build_engine
from trt_layermerge.backends.tensorrt_api import load_api
from trt_layermerge.backends.tensorrt_options import BuildOptions, default_timing_cache
from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.device import Precision
from trt_layermerge.core.jsonio import Json, sha256_file, write_json
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.deploy.machine import this_machine
from trt_layermerge.deploy.sidecar import (
    STEMS,
    Network,
    Origin,
    build_record,
    check_engine,
    sidecar_path,
    write_engine,
)
from trt_layermerge.errors import (
    CorruptInputError,
    DeviceError,
    UnsupportedModelError,
    UntrustedInputError,
    UsageError,
)
from trt_layermerge.export.batch import batch_shapes, dynamic_batch
from trt_layermerge.measure.agent.telemetry import power_mode
from trt_layermerge.session.built import built_engines, identity_of
from trt_layermerge.session.deployed import (
    ENGINE_FALLBACK,
    deployed_model,
    master_name,
    weights_name,
)
from trt_layermerge.session.settings import Settings


@dataclass(frozen=True)
class About:
    """What a sidecar tells of an engine's network beside what was built.

    Attributes:
        preprocess: From pixels to the network's input (``core.preprocess``).
        labels: Names of the classes, or None.
        recipe: What the network was made by, as text.
    """

    preprocess: Preprocess
    labels: tuple[str, ...] | None
    recipe: str


def build_engines(
    folder: Path, settings: Settings, about: About, tell: Callbacks
) -> tuple[str, ...]:
    """Writes engines of both exported networks, and ``build.json``; returns the files' names.

    An engine that cannot be built is noted with its reason: nothing else needs it.

    Args:
        folder: Where the networks are, and where ``engines/`` goes.
        settings: Which precisions, and how they are built.
        about: What the sidecars tell.
        tell: What is called meanwhile.

    Raises:
        DeviceError: If an engine cannot be written; the one before stays.
    """
    section = settings.build
    wanted: list[tuple[Network, Precision]] = [
        (network, precision) for precision in section.precisions for network in STEMS
    ]
    if section.engine == "none":
        wanted = []
    rows: list[Json] = []
    for done, (network, precision) in enumerate(wanted):
        tell.progress("building engines", done, len(wanted))
        try:
            model, build = _built(folder, settings, network, precision)
        except (DeviceError, UnsupportedModelError) as error:
            tell.note(f"no {precision} engine of the {network} network: {error}")
            refused = {"plan": None, "error": str(error), "exit_code": error.exit_code}
            rows.append({"network": network, "precision": precision, **refused})
            continue
        # What was built and cannot be written is a failure: the disk is full.
        origin = _origin(folder, settings.seed, about, network, precision)
        machine = this_machine(power_mode().value)
        plan = write_engine(folder / "engines", build, origin, machine, network)
        tell.note(
            f"{precision} engine of the {network} network: {len(build.plan):,} bytes by "
            f"{build.library} {build.version} in {build.seconds:.1f} s"
        )
        row = build_record(build, network, model)
        rows.append({**row, "plan": str(plan.relative_to(folder)), "error": None})
    tell.progress("building engines", len(wanted), len(wanted))
    plans = [row["plan"] for row in rows if row["plan"] is not None]
    if plans:
        _remove_others(folder, plans)
    # The sidecars are not listed: later stages add to them.
    write_json(folder / "build.json", "build", {"engines": rows})
    return "build.json", *plans


def _remove_others(folder: Path, plans: Collection[str]) -> None:
    """Removes what earlier builds left for this machine and this one did not make again.

    Engines of other machines, in folders of their own, cannot be built again here.
    """
    kept = {folder / name for name in plans}
    for plan in (folder / "engines" / this_machine().folder).glob("*.plan"):
        if plan not in kept:
            sidecar_path(plan).unlink(missing_ok=True)
            plan.unlink()


def _built(
    folder: Path, settings: Settings, network: Network, precision: Precision
) -> tuple[bytes, EngineBuild]:
    """Returns a network of the run as ONNX at a precision, and its engine."""
    chosen = settings.build.engine
    api = load_api(None if chosen == "auto" else chosen)
    model = deployed_model(folder, network, precision, ENGINE_FALLBACK)
    options = build_options(settings, model)
    return model, build_engine(model, precision, api=api, options=options)


def build_options(settings: Settings, model: bytes) -> BuildOptions:
    """Returns how an engine of a model is wanted to be built.

    Args:
        settings: How to build.
        model: The ONNX model; where its batch is free, the engine takes 1 to ``build.max_batch``.
    """
    section, batch = settings.build, settings.measure.batch
    profile = None
    if dynamic_batch(model):
        profile = batch_shapes(model, 1, batch, section.max_batch or batch)
    return BuildOptions(
        **section.options.for_builder(), timing_cache=default_timing_cache(), profile=profile
    )


def _origin(
    folder: Path, seed: int, about: About, network: Network, precision: Precision
) -> Origin:
    weights = folder / weights_name(folder, precision) if network == "merged" else None
    return Origin(
        onnx_sha256=sha256_file(folder / master_name(network, precision)),
        weights_sha256=sha256_file(weights) if weights else None,
        preprocess=about.preprocess.to_json(),
        labels=about.labels,
        recipe=about.recipe,
        seed=seed,
    )


def all_built(folder: Path) -> bool:
    """Whether every engine was built, and belongs to its sidecar.

    When it was not, the device may have been busy, or short of memory. Sidecars are none of the
    stage's outputs, since later stages add to them.
    """
    if not (folder / "build.json").is_file():
        return True
    try:
        engines = built_engines(folder)
        for built in engines:
            if built.plan is not None:
                check_engine(folder / built.plan, wanted=identity_of(folder, built))
    except (UsageError, CorruptInputError, UntrustedInputError):
        return False
    return all(built.plan is not None for built in engines)
