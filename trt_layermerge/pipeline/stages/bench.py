"""``bench``: both networks at every precision in one interleaved run → ``bench.json``; gates."""

from __future__ import annotations

from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import LatencyGateError
from trt_layermerge.measure.conditions import device_here
from trt_layermerge.pipeline.files import read_body
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.session.benching import timed_precisions
from trt_layermerge.session.deployed import CALIBRATION


def _settings(run: Run) -> Json:
    measure = run.recipe.measure
    return {
        "precision": measure.precision,
        "precisions": timed_precisions(run.recipe),
        "batch": measure.batch,
        "elsewhere": [measure.host, measure.recorded],
    }


def _here(run: Run) -> Json:
    where = None if run.session.elsewhere else device_here(run.session.backend).to_json()
    return {"where": where, "trust_engine": run.trust_engine}


def _run(run: Run) -> tuple[str, ...]:
    run.session.bench()
    return ("bench.json",)


def _gate(run: Run) -> None:
    """Holds what was measured to the limits of the recipe as it is now.

    Raises:
        LatencyGateError: If the merged network is slower than the original at the same precision
            beyond the spread of the rounds, or slower than allowed; also if a limit is set and
            nothing was measured.
    """
    body, limits = read_body(run.folder / "bench.json", "bench"), run.recipe.verify
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


def _result(run: Run) -> Json:
    return read_body(run.folder / "bench.json", "bench")


READS = (CALIBRATION, "build.json", "original.onnx", "model.onnx", "export.json")
STAGE = Stage("bench", READS, _settings, _run, _result, _gate, _here)
