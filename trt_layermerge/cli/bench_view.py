"""What ``bench`` shows: both networks at every precision, and how far the figures may be trusted.

``result`` is as ``bench.json``.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from trt_layermerge.cli.tables import NOTHING, Result, as_text, table, times

HEAD = ("precision", "network", "median, ms", "90 %", "99 %", "images/s", "enqueue, ms", "timed by")


def bench_view(result: Result) -> RenderableType:
    """Returns the mark first, then latencies, speed-ups, power, and what was not timed."""
    parts: list[RenderableType] = []
    if not result["comparable"]:
        parts.append(Text(f"NOT COMPARABLE: {result['reason']}", style="bold red"))
    pairs = result["precisions"]
    if pairs:
        rows = [_latency(pair, side) for pair in pairs for side in ("original", "merged")]
        parts.append(table("Latency", HEAD, rows))
    parts += [Text(line) for pair in pairs for line in _speedup(pair)]
    parts += [Text(line) for line in _notes(result)]
    return Group(*parts)


def _latency(pair: Result, side: str) -> tuple[object, ...]:
    timed = pair[side]
    figures = [timed[key] for key in ("p50_ms", "p90_ms", "p99_ms")]
    rate = f"{timed['throughput']:.4g}"
    return (pair["precision"], side, *figures, rate, timed["enqueue_ms"], timed["method"])


def _speedup(pair: Result) -> Iterator[str]:
    spread = f"({times(pair['low'])} to {times(pair['high'])})"
    slower = "; the merged network is slower" if pair["high"] < 1 else ""
    yield f"{pair['precision']}: {times(pair['speedup'])} {spread}{slower}"
    sides = [pair["original"], pair["merged"]]
    if any(side["power_w"] is not None for side in sides):
        watts, joules = ([as_text(s[key]) for s in sides] for key in ("power_w", "energy_mj"))
        yield (f"  {' → '.join(watts)} W while it runs, {' → '.join(joules)} mJ a run above idle")
    for doubt in pair["doubts"]:
        yield f"  doubtful: {doubt}"


def _notes(result: Result) -> Iterator[str]:
    int8 = result["int8"]
    if int8 is not None:
        verdict = "faster" if int8["faster"] else "NOT faster beyond the spread"
        spread = f"{times(int8['low'])} to {times(int8['high'])}"
        yield f"int8 against {int8['over']}: {times(int8['speedup'])} ({spread}): {verdict}"
    wall = result.get("wall")
    if wall is not None:
        tails = (as_text(wall[side]["p99_ms"]) for side in ("original", "merged"))
        medians = (as_text(wall[side]["p50_ms"]) for side in ("original", "merged"))
        doubt = "" if wall["comparable"] else f"; not comparable: {wall['reason']}"
        yield f"by the wall clock: {' → '.join(medians)} ms, 99 %: {' → '.join(tails)} ms{doubt}"
    for untimed in result.get("untimed", ()):
        yield f"{untimed['precision']} was not timed: {untimed['reason']}"
    if result.get("power_note"):
        yield f"no power: {result['power_note']}"
    if result.get("conditions"):
        found = result["conditions"]
        modes = found["before"].get("power_mode") or NOTHING
        yield f"GPU clock {found['gpu_clock']}; power mode {modes}"
