"""How ``bench`` measures: engines that were built, models that are built for it, another device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from trt_layermerge.backends import Backend, get_backend
from trt_layermerge.core.device import Precision
from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import DeviceError
from trt_layermerge.pipeline.built import Built, built_engines
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.deployed import deployed_model

if TYPE_CHECKING:
    from trt_layermerge.measure.bench import Bench, Pair
    from trt_layermerge.measure.conditions import Conditions
    from trt_layermerge.measure.energy import Energy
    from trt_layermerge.measure.timing import Timing

WALL_ROUNDS = 10
PERCENTILES = ("p50_ms", "p90_ms", "p99_ms")


def bench_here(context: Context, precisions: Sequence[Precision]) -> Bench:
    """Returns both networks at every precision, timed in one run on this machine.

    Engines that ``build`` made for this GPU are timed themselves, and their sidecars are told;
    whatever has none is built for the occasion.

    Raises:
        DeviceError: If a network cannot be built or run.
        UntrustedInputError: If an engine does not belong to its sidecar.
    """
    from trt_layermerge.deploy.engines import EngineFiles
    from trt_layermerge.measure.bench import bench

    files = _engine_files(context) if context.engines else {}
    models = {p: files[p] if p in files else models_of(context, p) for p in precisions}
    plans = {plan for p in files if p in models for plan in files[p]}
    backend: Backend = EngineFiles(context.backend, plans) if plans else context.backend
    energy = _energy(context)
    result = bench(
        models,
        backend,
        batch=context.recipe.measure.batch,
        energy=energy if callable(energy) else None,
    )
    if isinstance(energy, str):
        result = replace(result, power_note=energy)
    if plans:
        _tell_sidecars(context, result, files)
    return result


def bench_elsewhere(context: Context, precisions: Sequence[Precision]) -> Bench:
    """Returns both networks at every precision, timed by the agent on another device.

    Each pair is timed in turns; int8 and the type it replaces are one pair more.

    Raises:
        DeviceError: If the device is not there, or cannot build or run one of them.
    """
    from trt_layermerge.measure.bench import ROUNDS, assemble
    from trt_layermerge.measure.meter import Failed
    from trt_layermerge.measure.timing import speedup

    seen: list[Conditions] = []

    def pair(first: bytes, second: bytes) -> tuple[Timing, Timing]:
        (outcome,) = context.meter.networks(first, [second], ROUNDS)
        if isinstance(outcome, Failed):
            raise DeviceError(outcome.error)
        seen.append(outcome.conditions)
        return outcome.builds[0]

    rest, measure = context.fallback, context.recipe.measure
    models = {p: models_of(context, p) for p in precisions}
    timings = {p: pair(*both) for p, both in models.items()}
    result = assemble(timings, context.meter.device(), measure.batch, rest)
    if result.int8 is not None:
        result = replace(result, int8=(rest, speedup(*pair(models[rest][1], models["int8"][1]))))
    return replace(
        result,
        conditions=replace(seen[0], after=seen[-1].after),
        power_note="the agent reads power before and after each job only",
    )


def wall_clock(context: Context, precision: Precision) -> Json | None:
    """Returns percentiles by the wall clock where the backend counts time on its core; else None.

    Tails of time on core leave out waiting for the core, which whoever waits for an answer feels.
    """
    from trt_layermerge.measure.bench import bench

    if "time on core" not in context.backend.device().settings:
        return None
    models = {precision: models_of(context, precision)}
    backend = get_backend("onnxruntime", wall=True)
    found = bench(models, backend, batch=context.recipe.measure.batch, rounds=WALL_ROUNDS)
    body, pairing = found.to_json(), found[precision].to_json()
    sides = {s: {p: pairing[s][p] for p in PERCENTILES} for s in ("original", "merged")}
    return {**sides, "comparable": body["comparable"], "reason": body["reason"]}


def models_of(context: Context, precision: Precision) -> Pair:
    """Returns both networks as ONNX, as the search has timed them."""
    measured = context.recipe.measure
    batch = measured.batch if context.recipe.build.max_batch is not None else None
    original, merged = (
        deployed_model(context, network, precision, context.fallback, keep_io=False, batch=batch)
        for network in ("original", "merged")
    )
    return original, merged


def _engine_files(context: Context) -> dict[Precision, Pair]:
    """Returns the engines of both networks by precision, where both fit this machine."""
    from trt_layermerge.deploy.engines import fitting_engine

    found: dict[tuple[Precision, str], bytes] = {}
    for built in built_engines(context):
        if built.plan is None:
            continue
        try:
            plan, api = fitting_engine(context.folder / built.plan, trust=context.trust_engine)
        except DeviceError as error:
            context.reporter.note(f"{built.plan} is not timed: {error}")
            continue
        if api.flavor == context.backend.name:
            found[built.precision, built.network] = plan
    both = {p for p, network in found if (p, "original") in found and (p, "merged") in found}
    return {p: (found[p, "original"], found[p, "merged"]) for p in both}


def _tell_sidecars(context: Context, result: Bench, files: Mapping[Precision, Pair]) -> None:
    """Writes median and 99th percentile into the sidecars of the engines that were timed."""
    from trt_layermerge.deploy.sidecar import amend_sidecar, check_engine

    def latency(built: Built) -> dict[str, float] | None:
        timed = built.precision in files and built.precision in {
            p.precision for p in result.pairings
        }
        if not timed:
            return None
        pairing = result[built.precision]
        side = pairing.original if built.network == "original" else pairing.merged
        return {"p50_ms": side.p50_ms, "p99_ms": side.p99_ms}

    for built in built_engines(context):
        figures = latency(built)
        if built.plan is None or figures is None:
            continue
        plan = context.folder / built.plan
        if check_engine(plan, trust=context.trust_engine) is not None:
            amend_sidecar(plan, latency=figures)


def _energy(context: Context) -> Callable[[bytes, Backend], Energy] | str:
    """Returns what measures energy, or in words why nothing does."""
    from trt_layermerge.measure.agent.telemetry import power_w
    from trt_layermerge.measure.conditions import clock_of
    from trt_layermerge.measure.energy import energy_of

    if clock_of(context.backend.device()) != "gpu":
        return "power is read where a GPU runs the networks; what a processor draws is not read"
    reading = power_w()
    if reading.value is None:
        return reading.reason
    return energy_of
