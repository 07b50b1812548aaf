"""A bundle for this machine: the ONNX model and the recipe are shipped, the engine is a cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from trt_layermerge.backends.tensorrt import build_engine
from trt_layermerge.backends.tensorrt_api import FLAVORS, TensorRTApi, load_api
from trt_layermerge.backends.tensorrt_options import BuildOptions, default_timing_cache
from trt_layermerge.core.device import Precision
from trt_layermerge.core.jsonio import Json, sha256_bytes
from trt_layermerge.deploy.bundle.contents import Contents, Engine, Target
from trt_layermerge.deploy.bundle.folder import read_bundle, write_bundle
from trt_layermerge.deploy.bundle.layout import loadable
from trt_layermerge.deploy.bundle.render import render
from trt_layermerge.deploy.machine import this_machine
from trt_layermerge.deploy.sidecar import Origin, describe
from trt_layermerge.errors import CorruptInputError

STORED = (
    "workspace_bytes",
    "optimization_level",
    "tf32",
    "hardware_compatible",
    "version_compatible",
)
"""Options that a bundle carries. Caches belong to a machine, the profile to the batch, and inputs
and outputs of a bundle are plain arrays whatever would be faster."""


def rebuild(folder: Path, library: str | None = None, precision: Precision | None = None) -> Json:
    """Replaces the engine of a bundle, and all that speaks of it, and returns what is there now.

    Every hash is checked before; the old engine is not loaded. Nothing changes where the build
    fails.

    Args:
        folder: The bundle.
        library: ``tensorrt`` or ``tensorrt_rtx``; None for what the recipe says, by default the
            first that works here.
        precision: Another precision that the bundle holds a network for; None for the same.

    Raises:
        UsageError: If it is no bundle, or holds no such network.
        CorruptInputError: If a file is not as it was packaged.
        UntrustedInputError: If that is the engine.
        DeviceError: If the engine cannot be built here.
    """
    target, before = read_bundle(folder)
    wanted = replace(before, precision=precision or before.precision)
    api = load_api(library or _library(before))
    after = with_engine(wanted, api)
    write_bundle(folder, render(after, target))
    return summary(folder, target, after)


def with_engine(contents: Contents, api: TensorRTApi) -> Contents:
    """Returns the contents with an engine built by this library for this machine.

    Raises:
        CorruptInputError: If the ONNX model or the stored options cannot be used.
        LayerMergeError: What ``build_engine`` raises.
    """
    model = contents.models[contents.precision]
    options = _options(contents)
    built = build_engine(model, contents.precision, api=api, options=options)
    origin = Origin(
        onnx_sha256=sha256_bytes(model),
        weights_sha256=contents.weights_sha256,
        preprocess=contents.preprocess.to_json(),
        labels=contents.labels,
        recipe=contents.recipe,
        seed=contents.seed,
    )
    engine = Engine(built.plan, describe(built, origin, this_machine()))
    return replace(contents, engine=engine, why_no_engine=None)


def summary(folder: Path, target: Target, contents: Contents) -> Json:
    """Returns a bundle in short, JSON-ready; ``loadable``: by what it is for.

    Args:
        folder: The bundle.
        target: What it is for.
        contents: What it holds.
    """
    sidecar = contents.engine and contents.engine.sidecar
    return {
        "target": target,
        "precision": contents.precision,
        "engine": sidecar and f"{sidecar.library} {sidecar.library_version}",
        "bundle": str(folder),
        "note": engine_note(contents, target),
        "details": {
            "gpu": sidecar and sidecar.machine.gpu,
            "why_no_engine": contents.why_no_engine,
            "loadable": engine_note(contents, target) is None,
            "baked": asdict(contents.baked),
        },
    }


def engine_note(contents: Contents, target: Target) -> str | None:
    """Returns what keeps a bundle's engine from being used by its target, or None."""
    if contents.engine is None:
        return f"no engine: {contents.why_no_engine}"
    if target == "plain" or loadable(contents):
        return None
    return (
        f"the engine is {contents.engine.sidecar.library}'s, which {target} cannot load; copy the "
        "bundle there and type: trt-layermerge rebuild BUNDLE --backend tensorrt"
    )


def _library(contents: Contents) -> str | None:
    """Returns the library that the recipe names; ``auto`` and ``none`` leave the choice.

    Raises:
        CorruptInputError: If it names another module: a file does not say what is imported.
    """
    chosen = str(contents.build.get("engine", "auto"))
    if chosen not in ("auto", "none", *FLAVORS):
        raise CorruptInputError(
            f"the manifest names {chosen!r:.99}, which builds no engines; take the bundle again"
        )
    return None if chosen in ("auto", "none") else chosen


def _options(contents: Contents) -> BuildOptions:
    face = contents.interface
    profile = None
    if face.max_batch is not None:
        one, usual, most = 1, face.batch, face.max_batch
        profile = {
            port.name: ((one, *port.shape), (usual, *port.shape), (most, *port.shape))
            for port in face.inputs
        }
    stored: Mapping[str, Any] = {n: v for n, v in contents.build.items() if n in STORED}
    try:
        return BuildOptions(**stored, profile=profile, timing_cache=default_timing_cache())
    except TypeError as error:
        raise CorruptInputError(
            f"the build options of the bundle cannot be used ({error}); take it again"
        ) from error
