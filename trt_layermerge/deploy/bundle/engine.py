"""The engine of a bundle, built here from the ONNX model that the bundle holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trt_layermerge.backends.tensorrt import build_engine
from trt_layermerge.backends.tensorrt_api import TensorRTApi
from trt_layermerge.backends.tensorrt_options import BuildOptions, default_timing_cache
from trt_layermerge.core.jsonio import sha256_bytes
from trt_layermerge.deploy.bundle.contents import Contents, Engine
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


def _options(contents: Contents) -> BuildOptions:
    face = contents.interface
    profile = None
    if face.max_batch is not None:
        shapes = tuple((n, *face.image) for n in (1, face.batch, face.max_batch))
        profile = {face.input: (shapes[0], shapes[1], shapes[2])}
    stored: Mapping[str, Any] = {n: v for n, v in contents.build.items() if n in STORED}
    try:
        return BuildOptions(**stored, profile=profile, timing_cache=default_timing_cache())
    except TypeError as error:
        raise CorruptInputError(
            f"the build options of the bundle cannot be used ({error}); take it again"
        ) from error
