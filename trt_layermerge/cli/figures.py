"""What ``bench`` and ``verify`` show: figures first, then how far they may be trusted.

``result`` is as ``bench.json`` or ``verify.json``.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from trt_layermerge.cli.tables import Result, as_text, percent, table, times


def bench_view(result: Result) -> RenderableType:
    """Returns the mark first, then latencies, speed-ups, power, and what was not timed."""
    parts: list[RenderableType] = []
    if not result["comparable"]:
        parts.append(Text(f"NOT COMPARABLE: {result['reason']}", style="bold red"))
    pairs = result["precisions"]
    if pairs:
        head = ("precision", "network", "median", "90 %", "99 %", "images/s")
        rows = [_latency(pair, side) for pair in pairs for side in ("original", "merged")]
        parts.append(table("Latency, ms", head, rows))
    parts += [Text(line) for pair in pairs for line in _speedup(pair)]
    parts += [Text(line) for line in _notes(result)]
    return Group(*parts)


def _latency(pair: Result, side: str) -> tuple[object, ...]:
    timed = pair[side]
    figures = [timed[key] for key in ("p50_ms", "p90_ms", "p99_ms")]
    return (pair["precision"], side, *figures, round(timed["throughput"]))


def _speedup(pair: Result) -> Iterator[str]:
    spread = f"({times(pair['low'])} to {times(pair['high'])})"
    slower = "; the merged network is slower" if pair["high"] < 1 else ""
    yield f"{pair['precision']}: {times(pair['speedup'])} {spread}{slower}"
    sides = [pair["original"], pair["merged"]]
    for key, words in (
        ("enqueue_ms", "ms to launch a run"),
        ("power_w", "W while it runs"),
        ("energy_mj", "mJ a run above idle"),
    ):
        if any(side[key] is not None for side in sides):
            yield f"  {' → '.join(as_text(side[key]) for side in sides)} {words}"
    for warning in pair["doubts"]:
        yield f"  doubtful: {warning}"


def _notes(result: Result) -> Iterator[str]:
    int8 = result["int8"]
    if int8 is not None:
        verdict = "faster" if int8["faster"] else "NOT faster beyond the spread"
        spread = f"{times(int8['low'])} to {times(int8['high'])}"
        yield f"int8 against {int8['over']}: {times(int8['speedup'])} ({spread}): {verdict}"
    wall = result.get("wall")
    if wall is not None:
        medians, tails = (
            " → ".join(as_text(wall[side][key]) for side in ("original", "merged"))
            for key in ("p50_ms", "p99_ms")
        )
        warning = "" if wall["comparable"] else f"; not comparable: {wall['reason']}"
        yield f"by the wall clock: {medians} ms, 99 %: {tails} ms{warning}"
    for untimed in result.get("untimed", ()):
        yield f"{untimed['precision']} was not timed: {untimed['reason']}"
    if result.get("power_note"):
        yield f"no power: {result['power_note']}"
    found = result.get("conditions")
    if found is not None and not found["gpu_clock"].startswith("unknown"):
        mode = found["before"].get("power_mode")
        yield f"GPU clock {found['gpu_clock']}" + (f"; power mode {mode}" if mode else "")


def verify_view(result: Result) -> RenderableType:
    """Returns what was compared with torch, and what was not."""
    head = ("against torch", "difference", "relative", "same class", "accuracy")
    rows = [
        (c["name"], *_differences(c), percent(c["agreement"]), percent(c["accuracy"]))
        for c in result["comparisons"]
        if c["reason"] is None
    ]
    accuracy = result["accuracy"]
    said = [f"{result['images']} {result['on']}; {fidelity(result)}"]
    said += [
        f"  class {row['class']}: {percent(row['original'])} → {percent(row['merged'])} of "
        f"{row['images']} images"
        for row in result["classes"]
    ]
    if accuracy["original"] is not None:
        torch = ", ".join(f"{name} {percent(accuracy[name])}" for name in ("original", "merged"))
        said.append(f"accuracy in torch: {torch}; worst drop {percent(accuracy['drop'])}")
    if metric := result.get("metric"):
        figures = [f"{name} {metric[name]:.4g}" for name in ("original", "merged")]
        built = [f"{c['name']} {c['metric']:.4g}" for c in result["comparisons"] if not c["reason"]]
        said.append(
            f"{metric['name']}: {', '.join([*figures, *built])}; worst drop {metric['drop']:.4g}"
        )
    said += [f"not verified: {sentence}" for sentence in result["unverified"]]
    return Group(table("Verification", head, rows), *map(Text, said))


def fidelity(result: Result) -> str:
    """Returns how far the merged network gives the answers of the original, in words."""
    told = []
    for name, found in result["fidelity"].items():
        prefix = f"{name}: " if len(result["fidelity"]) > 1 else ""
        kl, error = found.get("kl"), found.get("relative_error")
        far = f", KL {kl:.3g} nats" if kl is not None else ""
        far = f", relative error {error:.3g}" if error is not None else far
        told.append(f"{prefix}{percent(found['agreement'])}{far}")
    least = result["least_agreement"]
    worst = f"; of what was built, {percent(least)}" if least < result["agreement"] else ""
    return f"original and merged answer alike on {'; '.join(told)}{worst}"


def _differences(comparison: Result) -> tuple[str, str]:
    if not comparison["finite"]:
        return "not finite", "not finite"
    return f"{comparison['max_abs']:.1e}", f"{comparison['max_rel']:.1e}"
