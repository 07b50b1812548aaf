"""What ``verify`` compares with torch: ONNX models at every precision, and every engine."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from trt_layermerge.core.device import Precision
from trt_layermerge.core.jsonio import write_bytes
from trt_layermerge.deploy.sidecar import STEMS
from trt_layermerge.pipeline.built import Built, built_engines, wanted_precisions
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.deployed import (
    ENGINE_FALLBACK,
    RUNTIME_FALLBACK,
    deployed_model,
)

if TYPE_CHECKING:
    from trt_layermerge.deploy.comparison import Subject
    from trt_layermerge.deploy.sidecar import Sidecar

TOLERANCE: dict[Precision, float | None] = {"fp32": 1e-3, "fp16": 5e-2, "int8": None}
"""Largest difference over the largest output. Half precision has 11 bits, and a network adds their
roundings up: 5e-2 finds what is broken. Whether fp16 and int8 are good enough, accuracy decides."""


def subjects(context: Context) -> list[Subject]:
    """Returns both networks at every precision, for ONNX Runtime, and every engine."""
    from trt_layermerge.backends import get_backend
    from trt_layermerge.deploy.verify import onnx_subject

    backend, batch = get_backend("onnxruntime"), context.recipe.measure.batch
    found = [
        onnx_subject(
            onnx_name(stem, precision, fallback),
            network,
            deployed_model(context, network, precision, fallback, batch=batch),
            backend,
            TOLERANCE[precision],
        )
        for precision in wanted_precisions(context)
        for fallback in fallbacks(precision)
        for network, stem in STEMS.items()
    ]
    engines = (_engines(context, built) for built in built_engines(context) if built.plan)
    return [*found, *chain.from_iterable(engines)]


def fallbacks(precision: Precision) -> tuple[Precision, ...]:
    """Returns the float types that int8 comes with: ONNX Runtime's and TensorRT's; else one."""
    both = (RUNTIME_FALLBACK, ENGINE_FALLBACK)
    return both if precision == "int8" else both[:1]


def onnx_name(stem: str, precision: Precision, fallback: Precision) -> str:
    """Returns the name of an ONNX model, such as ``model.int8-fp16.onnx``.

    fp32 goes without saying; only int8 has a fallback.
    """
    typed = "" if precision == "fp32" else f".{precision}"
    rest = f"-{fallback}" if precision == "int8" and fallback != "fp32" else ""
    return f"{stem}{typed}{rest}.onnx"


def _engines(context: Context, built: Built) -> list[Subject]:
    """Returns an engine at its usual batch, and at the ends of what its profile takes."""
    from trt_layermerge.deploy.sidecar import check_engine
    from trt_layermerge.deploy.verify import engine_subject

    plan, trust = context.folder / str(built.plan), context.trust_engine
    tolerance, sidecar = TOLERANCE[built.precision], check_engine(plan, trust=trust)
    typed = f"{context.folder.root}/{_debug_name(built)}"
    advice = f"find the layer: {bisect_command(typed, tolerance, sidecar)}"
    return [
        engine_subject(
            plan, built.network, trust=trust, batch=batch, tolerance=tolerance, advice=advice
        )
        for batch in (None, *other_batches(sidecar))
    ]


def other_batches(sidecar: Sidecar | None) -> tuple[int, ...]:
    """Returns the smallest and the largest batch of an engine that takes several."""
    if sidecar is None or not sidecar.profile:
        return ()
    smallest, usual, largest = (shape[0] for shape in next(iter(sidecar.profile.values())))
    return tuple(batch for batch in sorted({smallest, largest}) if batch != usual)


def bisect_command(model: str, tolerance: float | None, sidecar: Sidecar | None) -> str:
    """Returns the Polygraphy command that reduces a model to the nodes an engine gets wrong.

    Args:
        model: The ONNX model that the engine was built from, at the engine's precision.
        tolerance: Largest difference that passes, absolute and relative.
        sidecar: What is known of the engine; None for a trusted stranger.
    """
    library = sidecar.library if sidecar else "tensorrt"
    words = str(sidecar.settings.get("typing", "strong") if sidecar else "strong").split()
    weak = "".join(f" --{flag.lower()}" for flag in words[1:])
    typing = weak if words[0] == "weak" else " --strongly-typed"
    allowed = tolerance or 0.1
    prefix = "POLYGRAPHY_USE_TENSORRT_RTX=1 " if library == "tensorrt_rtx" else ""
    return (
        f"{prefix}polygraphy debug reduce {model} -o reduced.onnx --mode bisect --check polygraphy "
        f"run polygraphy_debug.onnx --onnxrt --trt{typing} --atol {allowed:g} --rtol {allowed:g}"
    )


def leave_models(context: Context, wrong: set[str]) -> None:
    """Writes the ONNX models that some engines were built from, for the commands about them.

    Args:
        context: The run.
        wrong: File names of the engines.
    """
    for built in built_engines(context):
        if built.plan is None or built.plan.rpartition("/")[2] not in wrong:
            continue
        batch, precision = context.recipe.measure.batch, built.precision
        model = deployed_model(context, built.network, precision, ENGINE_FALLBACK, batch=batch)
        write_bytes(context.folder / _debug_name(built), model)


def _debug_name(built: Built) -> str:
    stem = str(built.plan).rpartition("/")[2].removesuffix(".plan")
    return f"debug/{stem}.onnx"
