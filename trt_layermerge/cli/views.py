"""Results as tables: pure functions from machine-readable results to something Rich can print."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trt_layermerge.cli.engines import build_view, package_view
from trt_layermerge.cli.figures import bench_view, verify_view
from trt_layermerge.cli.tables import NOTHING, Result, as_text, fields_view, percent, table, times
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.conv import spec_from_json
from trt_layermerge.pipeline.options import duration


def inspect_view(result: Result) -> RenderableType:
    """Returns units, segments, residuals, barriers and counts.

    ``result`` holds ``graph`` (as in ``graph.json``), ``blocks`` (their number), ``candidates``
    (their numbers by kind) and ``refused`` (numbers of candidates by reason).
    """
    graph = result["graph"]
    candidates: Mapping[str, int] = result["candidates"]
    barriers = [(b["node"], b["unit"], b["reason"]) for b in graph["barriers"]]
    refused = [(count, why) for why, count in result["refused"].items()]
    streams = [(s["name"], s["channels"], s["refusal"] or "yes") for s in graph.get("streams", ())]
    tables = [
        table("Units", ("unit", "name", "convolution", "segment"), _unit_rows(graph)),
        table("Residuals", ("units", "shortcut", "branch can merge"), _residual_rows(graph)),
        table("Streams", ("channels of", "number", "may be fewer (search.kinds: stream)"), streams),
        table("What cannot merge, and why", ("where", "unit", "reason"), barriers),
        table("Candidates left out, and why", ("number", "reason"), refused),
    ]
    counts = Text(
        f"{len(graph['units'])} units in {len(graph['segments'])} segments; "
        f"{result['blocks']} blocks; {sum(candidates.values())} candidates "
        f"({as_text(candidates)})"
    )
    estimate = _estimate_text(result.get("estimate"))
    return Group(*(each for each in tables if each.row_count), counts, *estimate)


def _estimate_text(estimate: Result | None) -> list[Text]:
    """Returns how long the next stages will take, and what to set to make it less."""
    if estimate is None:
        return []
    known = {name: s for name, s in estimate["seconds"].items() if s is not None}
    if not known:
        return []
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in known.items())
    threads, quick = estimate["threads"], estimate["quick_s"]
    text = f"Here, on {threads} thread{'s' * (threads > 1)}, it will take about "
    text += f"{duration(sum(known.values()))}: {parts}."
    if quick is not None:
        text += f" With --set importance.effort=quick about {duration(quick)}."
    return [Text(f"{text} Fewer candidates take less (--set search.limits.max_units=3).")]


def _unit_rows(graph: Result) -> list[tuple[Any, ...]]:
    segment_of = {
        unit: number
        for number, (start, end) in enumerate(graph["segments"])
        for unit in range(start, end)
    }
    return [
        (u["index"], u["name"], spec_from_json(u["spec"]), segment_of.get(u["index"]))
        for u in graph["units"]
    ]


def _residual_rows(graph: Result) -> list[tuple[str, str, str]]:
    return [
        (
            f"{r['start']}:{r['end']}",
            " + ".join(s["conv"] or s["bn"] or "identity" for s in r["shortcuts"]),
            "yes",
        )
        for r in graph["residuals"]
    ] + [
        (
            f"{b['start']}:{b['end']}",
            " + ".join(str(spec_from_json(s)) for s in b["remains"]) or "identity",
            "no: it stays, or goes as a whole",
        )
        for b in graph.get("branches", ())
        if b.get("macs") is None
    ]


def plan_view(result: Result) -> RenderableType:
    """Returns what a plan changes, and its totals. ``result`` is as ``plan.json``, notes beside."""
    plan = [Candidate.from_json(c) for c in result["candidates"]]
    changed = [c for c in plan if not c.original]
    rows = [
        (
            f"{c.block.start}:{c.block.end}",
            c.kind,
            list(c.kept),
            " + ".join(str(s) for s in c.convs) or None,
        )
        for c in changed
    ]
    kept = sum(c.original for c in plan)
    totals = fields_view(
        {
            "predicted_ms": result["predicted_ms"],
            "measured_ms": result.get("measured_ms"),
            "budget_ms": result["budget_ms"],
            "original_ms": result.get("original_ms"),
            "measured_speedup": times(result.get("measured_speedup")),
            "score": result["score"],
            "taken_because": result.get("why"),
            "units_untouched": kept,
            "blocks_replaced": len(changed),
        }
    )
    return Group(table("Plan", ("units", "kind", "kept", "becomes"), rows), totals)


def plans_view(result: Result) -> RenderableType:
    """Returns a row for the plan of each of several speed-ups, and what to type to go on."""
    rows = [
        (
            times(row["speedup"]),
            times(row.get("predicted_speedup")),
            times(row.get("measured_speedup")),
            row.get("loss"),
            *(_of(row, what) for what in ("convolutions", "activations")),
            percent(row.get("accuracy")),
            row["run"],
        )
        for row in result["plans"]
    ]
    columns = (
        *("asked", "predicted", "measured", "loss before training"),
        *("convolutions that go", "activations that go", "accuracy after it", "run"),
    )
    return Group(
        table("Plans", columns, rows),
        *(Text(f"{row['run']}: {row['error']}") for row in result["plans"] if row["error"]),
        *(Text(f"→ {row['next']}") for row in result["plans"] if "next" in row),
        *([Text(f"One page compares them: {result['page']}")] if "page" in result else []),
    )


def _of(row: Result, what: str) -> str | None:
    return "{} of {}".format(*row["goes"][what]) if "goes" in row else None


def summary_view(summary: Result) -> RenderableType:
    """Returns original beside merged, and how far the promises held. ``summary.json`` goes in."""
    original, merged = summary["original"], summary["merged"]
    rows = [
        (label, show(original), show(merged))
        for label, show in (
            ("accuracy on test", _accuracy),
            ("latency, ms", _latency),
            ("convolutions", lambda side: as_text(side.get("convs"))),
            ("activations", lambda side: as_text(side.get("activations"))),
        )
    ]
    if metric := summary.get("metric"):
        before, after = (as_text(metric[side]) for side in ("original", "merged"))
        rows.insert(1, (f"{metric['name']} on test", before, after))
    where = summary.get("device") or summary.get("backend")
    setting = f"{where}, {summary.get('precision')}, batch {summary.get('batch')}"
    facts = {
        "same_answer_as_the_original": _agreement(summary),
        "speedup": _speedup(summary),
        "measured_on": setting,
        "predicted_ms": summary.get("predicted_ms"),
        "measured_ms": merged.get("latency_ms"),
        "budget_ms": summary.get("budget_ms"),
        "accuracy_after_repair_alone": _accuracy(summary.get("repaired") or {}),
        "largest_certificate_error": _scientific(summary.get("certificate_max_rel_error")),
        "seed": summary.get("seed"),
    }
    notes = (Text(f"note: {note}") for note in summary.get("notes", ()))
    failed = (
        Text(f"A LIMIT IS EXCEEDED: {why}", style="bold red")
        for why in summary.get("failed_gates", ())
    )
    result = table("Result", ("", "original", "merged"), rows)
    return Group(*failed, result, fields_view(facts), *notes)


def calibrate_view(result: Result) -> RenderableType:
    """Returns what int8 loses, and which layers stay in float. The stage's result goes in."""
    rows = [
        (
            row["network"],
            *(percent(row[key]) for key in ("accuracy_fp32", "accuracy_int8", "agreement")),
            f"{len(row['keep_float'])} of {len(row['layers'])}",
        )
        for row in result.get("networks", ())
    ]
    if not rows:
        return fields_view(result)
    columns = ("network", "right in fp32", "right in int8", "same answer", "left in float")
    facts = {key: as_text(result[key]) for key in ("calibrated_on", "judged_on", "qat")}
    facts |= {
        f"{row['network']}, in float": "\n".join(row["keep_float"])
        for row in result["networks"]
        if row["keep_float"]
    }
    return Group(table("Int8", columns, rows), fields_view(facts))


def _agreement(summary: Result) -> str | None:
    share, images = summary.get("agreement"), summary.get("compared_on")
    return None if share is None else f"{percent(share)} of {images}"


def _accuracy(side: Result) -> str:
    return percent(side.get("accuracy"))


def _latency(side: Result) -> str:
    value, low, high = (as_text(side.get(f"latency_{k}ms")) for k in ("", "p10_", "p90_"))
    return f"{value} ({low} to {high})" if NOTHING not in (low, high) else value


def _speedup(summary: Result) -> str | None:
    value, low, high = (times(summary.get(f"speedup{end}")) for end in ("", "_low", "_high"))
    return f"{value} ({low} to {high})" if value and low and high else value


def _scientific(value: float | None) -> str | None:
    return None if value is None else f"{value:.1e}"


VIEWS: Mapping[str, Callable[[Result], RenderableType]] = {
    "inspect": inspect_view,
    "search": plan_view,
    "calibrate": calibrate_view,
    "build": build_view,
    "package": package_view,
    "report": summary_view,
    "bench": bench_view,
    "verify": verify_view,
}
"""Views of stages that have one of their own."""


def stage_view(stage: str, result: Result) -> RenderableType:
    """Returns what a user sees of the result of a stage."""
    if "plans" in result:
        return plans_view(result)
    return VIEWS.get(stage, fields_view)(result)


STATES: Mapping[str, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "missing": ("✗", "red"),
    "warning": ("!", "yellow"),
    "none": ("·", "dim"),
}
"""Sign and style of a finding by its state."""


def agent_view(result: Result) -> RenderableType:
    """Returns how many jobs were measured, which failed, and what to type next."""
    failed = result["failed"]
    lines = [f"{result['total'] - len(failed)} of {result['total']} jobs: {result['results']}"]
    lines += [f"failed: {label}" for label in failed]
    lines += result["notes"]
    typed = ["trt-layermerge", "latency", "--run", "NAME", "--import", str(result["results"])]
    lines.append(f"→ {shlex.join(typed)}")
    return Text("\n".join(lines))


def doctor_view(result: Result) -> RenderableType:
    """Returns one line for every finding, with what to type below it."""
    grid = Table.grid(padding=(0, 2))
    for finding in result["findings"]:
        sign, style = STATES[finding["state"]]
        grid.add_row(
            Text(sign, style=style),
            Text(finding["topic"], style="bold"),
            Text(finding["found"], overflow="fold"),
        )
        if finding["remedy"]:
            grid.add_row("", "", Text(f"→ {finding['remedy']}", style="cyan", overflow="fold"))
    return grid
