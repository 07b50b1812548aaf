"""What ``bench.json`` says, as the page of a run shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from trt_layermerge.core.jsonio import Json
from trt_layermerge.report.data import Bench, Pairing, Timing

METHODS = {
    "call": "a clock of the host around each run",
    "enqueue": "events around launches in a row",
    "graph": "events around launches of a CUDA graph",
}
"""What ``Runner.method`` means."""


def bench_of(body: Json) -> Bench | None:
    """Returns both networks at every precision; None where nothing was timed."""
    if body["original"] is None:
        return None
    pairings = tuple(Pairing(**_pair(pair)) for pair in body["precisions"])
    more = {"spread": body["spread"], "reason": body["reason"], "notes": tuple(notes(body))}
    return Bench(**_pair(body), **more, pairings=pairings)


def _pair(body: Json) -> Json:
    """Returns what one precision has in common with the whole file."""
    timings = {
        side: Timing(**{field.name: body[side][field.name] for field in fields(Timing)})
        for side in ("original", "merged")
    }
    return {**timings, **{name: body[name] for name in ("precision", "speedup", "low", "high")}}


def notes(body: Json) -> Iterator[str]:
    """Yields what ``bench.json`` says of its figures, one sentence each."""
    methods = {p[side]["method"] for p in body["precisions"] for side in ("original", "merged")}
    yield f"timed by {' and '.join(sorted(METHODS[method] for method in methods))}"
    found = body["conditions"]
    mode = found["before"]["power_mode"]
    if not found["gpu_clock"].startswith("unknown"):
        yield f"GPU clock {found['gpu_clock']}" + (f"; power mode {mode}" if mode else "")
    if int8 := body["int8"]:
        verdict = "faster" if int8["faster"] else "not faster beyond the spread"
        spread = f"{int8['speedup']:.2f}x, {int8['low']:.2f}x to {int8['high']:.2f}x"
        yield f"the merged int8 network is {verdict} than at {int8['over']} ({spread})"
    if wall := body["wall"]:
        tails = " → ".join(f"{wall[side]['p99_ms']:.3f} ms" for side in ("original", "merged"))
        yield f"99th percentile by the wall clock, waiting for the core included: {tails}"
    for untimed in body["untimed"]:
        yield f"{untimed['precision']} was not timed: {untimed['reason']}"
    if body["power_note"]:
        yield f"no power: {body['power_note']}"
    for pair in body["precisions"]:
        yield from (f"warning at {pair['precision']}, {doubt}" for doubt in pair["doubts"])
