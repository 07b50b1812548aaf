"""``bench``: both networks at every precision in one interleaved run → ``bench.json``; gates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trt_layermerge.core.device import PRECISIONS, Precision
from trt_layermerge.core.jsonio import Json, read_json, write_json
from trt_layermerge.errors import LatencyGateError, UsageError
from trt_layermerge.measure.conditions import device_here
from trt_layermerge.pipeline.benching import bench_elsewhere, bench_here, wall_clock
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.deployed import CALIBRATION
from trt_layermerge.pipeline.stage import Stage

if TYPE_CHECKING:
    from trt_layermerge.measure.bench import Bench

SIDES = ("original", "merged", "speedup", "low", "high")


def _settings(context: Context) -> Json:
    measure = context.recipe.measure
    if measure.recorded or measure.host is not None:
        where: Json | list[Any] = [measure.host, measure.recorded]
    else:
        where = device_here(context.backend).to_json()
    return {
        "precision": measure.precision,
        "precisions": timed_precisions(context),
        "batch": measure.batch,
        "where": where,
        "trust_engine": context.trust_engine,
    }


def _run(context: Context) -> tuple[str, ...]:
    measure, folder = context.recipe.measure, context.folder
    exported = read_json(folder / "export.json", "export")["models"]["model.onnx"]
    found = exported["input_shape"][0]
    if found != measure.batch and context.recipe.build.max_batch is None:
        raise UsageError(
            f"the networks were exported for a batch of {found}, not {measure.batch}; measure, "
            f"choose and export for that batch: trt-layermerge run --run {folder.root.name}"
        )
    write_json(folder / "bench.json", "bench", _body(context))
    return ("bench.json",)


def _body(context: Context) -> Json:
    """Returns ``bench.json``; the figures at the measured precision stand at its top."""
    measure = context.recipe.measure
    if measure.recorded:
        return _unmeasured(context)
    wanted = timed_precisions(context)
    if measure.host is not None:
        result, wall = bench_elsewhere(context, wanted), None
    else:
        able = [p for p in wanted if p == measure.precision or p in context.backend.precisions()]
        result, wall = bench_here(context, able), wall_clock(context, measure.precision)
    return {
        "precision": measure.precision,
        **_main(result, measure.precision),
        **result.to_json(),
        "untimed": [
            {"precision": p, "reason": _why_untimed(context, p)}
            for p in wanted
            if p not in {pairing.precision for pairing in result.pairings}
        ],
        "wall": wall,
    }


def _main(result: Bench, precision: Precision) -> Json:
    body = result[precision].to_json()
    return {name: body[name] for name in SIDES}


def _unmeasured(context: Context) -> Json:
    """Returns the body where latencies are imported and no device is at hand."""
    measure = context.recipe.measure
    reason = (
        "latencies were imported, and the device they are of is not at hand; measure there: "
        f"trt-layermerge bench --run {context.folder.root.name} --set measure.host=HOST"
    )
    return {
        "precision": measure.precision,
        "batch": measure.batch,
        "device": context.meter.device().to_json(),
        **dict.fromkeys(SIDES),
        "comparable": False,
        "reason": reason,
        "precisions": [],
        "untimed": [{"precision": p, "reason": reason} for p in timed_precisions(context)],
        "int8": None,
    }


def timed_precisions(context: Context) -> tuple[Precision, ...]:
    """Returns the precisions that are timed where the device can: what is measured and built.

    Where int8 is among them, so is the float type it replaces: it has to be faster than that.
    """
    recipe = context.recipe
    wanted = {recipe.measure.precision}
    if recipe.build.engine != "none":
        wanted |= set(recipe.build.precisions)
    if "int8" in wanted:
        wanted.add(context.fallback)
    return tuple(p for p in PRECISIONS if p in wanted)


def _why_untimed(context: Context, precision: Precision) -> str:
    backend = context.recipe.measure.backend
    return (
        f"{backend} runs {precision} through casts here, which is slower than what will be "
        "deployed; time it on the target: trt-layermerge bench --backend tensorrt"
    )


def _gate(context: Context) -> None:
    """Holds what was measured to the limits of the recipe as it is now.

    Raises:
        LatencyGateError: If the merged network is slower than the original at the same precision
            beyond the spread of the rounds, or slower than allowed; also if a limit is set and
            nothing was measured.
    """
    body, limits = read_json(context.folder / "bench.json", "bench"), context.recipe.verify
    if limits.never_slower:
        for pair in body["precisions"]:
            if pair["high"] < 1:
                raise LatencyGateError(_slower(body, pair))
    limit = limits.max_latency_ms
    if limit is None:
        return
    if body["merged"] is None:
        raise LatencyGateError(f"{limit:g} ms are allowed, but nothing was timed: {body['reason']}")
    p50_ms = body["merged"]["p50_ms"]
    if p50_ms > limit:
        raise LatencyGateError(
            f"the merged network takes {p50_ms:.4g} ms at {body['precision']} in the median, "
            f"{limit:g} ms are allowed; choose a smaller budget (--budget-ms) and run again"
        )


def _slower(body: Json, pair: Json) -> str:
    original, merged = (pair[side]["p50_ms"] for side in ("original", "merged"))
    return (
        f"the merged network is slower than the original at {pair['precision']}: {merged:.4g} "
        f"against {original:.4g} ms, {pair['speedup']:.3f}x ({pair['low']:.3f} to "
        f"{pair['high']:.3f}, {body['spread']}); choose another plan (--speedup) for this "
        "precision (--precision), or allow it (--set verify.never_slower=false)"
    )


def _result(context: Context) -> Json:
    return read_json(context.folder / "bench.json", "bench")


READS = (CALIBRATION, "build.json", "original.onnx", "model.onnx", "export.json")
STAGE = Stage("bench", READS, _settings, _run, _result, _gate)
