"""What users read, from the machine-readable results."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console, RenderableType

from tests.search.graphs import Chain
from trt_layermerge.cli.figures import bench_view, verify_view
from trt_layermerge.cli.tables import as_text, fields_view
from trt_layermerge.cli.views import (
    calibrate_view,
    doctor_view,
    inspect_view,
    plan_view,
    stage_view,
    summary_view,
)
from trt_layermerge.core.candidate import finish, merged_spec
from trt_layermerge.core.graph import graph_to_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.unit import Barrier, Block


def lines(view: RenderableType, width: int = 120) -> list[str]:
    """Returns the printed lines, runs of blanks joined."""
    console = Console(file=(file := io.StringIO()), width=width, markup=False, emoji=False)
    console.print(view)
    return [" ".join(line.split()) for line in file.getvalue().splitlines() if line.strip()]


SUMMARY: dict[str, Any] = {
    "original": {
        "accuracy": 0.9512,
        "latency_ms": 0.51234,
        "latency_p10_ms": 0.5,
        "latency_p90_ms": 0.61,
        "convs": 21,
        "activations": 19,
    },
    "repaired": {"accuracy": 0.9},
    "merged": {"accuracy": 0.9478, "latency_ms": 0.256, "convs": 10, "activations": 9},
    "speedup": 2.0013,
    "speedup_low": 1.95,
    "speedup_high": 2.1,
    "predicted_ms": 0.25,
    "budget_ms": 0.26,
    "certificate_max_rel_error": 1.23e-6,
    "precision": "fp32",
    "backend": "onnxruntime",
    "batch": 1,
    "seed": 0,
}


@pytest.mark.parametrize(
    ("seconds", "quick", "words"),
    [
        (
            {"latency": 62.0, "importance": 174.0, "search": 110.7},
            190.2,
            "it will take about 6 min: latency 62 s, importance 3 min, search 2 min. With --set "
            "importance.effort=quick about 3 min. Fewer",
        ),
        ({"latency": None, "importance": 9000.0, "search": 0.2}, None, "2.5 h, search 1 s. Fewer"),
    ],
)
def test_an_inspection_ends_with_how_long_the_rest_takes(
    seconds: Any, quick: float | None, words: str
) -> None:
    graph = graph_to_json(Chain(8, 16).conv(8, 3).conv(8, 3).graph())
    result = {"graph": graph, "blocks": 1, "candidates": {"fit": 1}, "refused": {}}
    result["estimate"] = {"seconds": seconds, "threads": 2, "quick_s": quick}
    printed = " ".join(lines(inspect_view(result), width=300)[-1:])
    assert words in printed
    assert "Here, on 2 threads," in printed


def test_several_plans_stand_in_one_table_with_what_to_type() -> None:
    reached = {
        "run": "mine-1.5x",
        "speedup": 1.5,
        "predicted_speedup": 1.61,
        "measured_speedup": 1.58,
        "loss": 0.1234,
        "goes": {"convolutions": [9, 50], "activations": [11, 35]},
        "next": "trt-layermerge run --run mine-1.5x",
        "error": None,
    }
    missed = {"run": "mine-9x", "speedup": 9.0, "error": "no network meets 1 ms"}
    printed = lines(stage_view("search", {"plans": [reached, missed]}), width=160)
    assert "1.50x 1.61x 1.58x 0.1234 9 of 50 11 of 35 – mine-1.5x" in printed
    assert "9.00x – – – – – – mine-9x" in printed
    assert printed[-2:] == [
        "mine-9x: no network meets 1 ms",
        "→ trt-layermerge run --run mine-1.5x",
    ]


def test_the_summary_sets_original_beside_merged() -> None:
    printed = [line for line in lines(summary_view(SUMMARY)) if set(line) - set("─ ")]
    assert printed == [
        "Result",
        "original merged",
        "accuracy on test 95.12 % 94.78 %",
        "latency, ms 0.5123 (0.5 to 0.61) 0.256",
        "convolutions 21 10",
        "activations 19 9",
        "same answer as the original –",
        "speedup 2.00x (1.95x to 2.10x)",
        "measured on onnxruntime, fp32, batch 1",
        "predicted ms 0.25",
        "measured ms 0.256",
        "budget ms 0.26",
        "accuracy after repair alone 90.00 %",
        "largest certificate error 1.2e-06",
        "seed 0",
    ]


def test_a_summary_without_data_has_dashes() -> None:
    sides = {"original": {"latency_ms": 2.0}, "merged": {"latency_ms": 1.0}}
    printed = lines(summary_view(sides))
    assert "accuracy on test – –" in printed
    assert "latency, ms 2 1" in printed
    assert "speedup –" in printed


def test_inspect_shows_units_residuals_barriers_and_counts() -> None:
    graph = replace(
        Chain(3, 32).conv(8, 3, 2).barrier().conv(8, 3).conv(8, 3).residual(1).graph(),
        barriers=(Barrier("pool", "pooling [of] a kind", unit=None), Barrier("conv0", "no", 0)),
    )
    result = {
        "graph": graph_to_json(graph),
        "blocks": 4,
        "candidates": {"compose": 5, "fit": 2},
        "refused": {"they do not line up": 3},
    }
    printed = lines(inspect_view(result))
    assert "0 conv0 3>8 k3x3 s2x2 @32x32 relu 0" in printed
    assert "2 conv2 8>8 k3x3 @16x16 +res relu 1" in printed
    assert "1:3 identity yes" in printed
    assert "pool – pooling [of] a kind" in printed
    assert "conv0 0 no" in printed
    assert "3 units in 2 segments; 4 blocks; 7 candidates (compose 5, fit 2)" in printed
    assert "3 they do not line up" in printed


def test_an_inspection_has_no_table_without_rows() -> None:
    graph = graph_to_json(Chain(3, 32).conv(8, 3).graph())
    assert not graph["barriers"] and not graph["residuals"]
    result = {"graph": graph, "blocks": 1, "candidates": {"identity": 1}, "refused": {}}
    printed = lines(inspect_view(result))
    assert printed[0] == "Units"
    titles = {"Residuals", "What cannot merge, and why", "Candidates left out, and why"}
    assert not titles & set(printed)


def test_a_summary_tells_by_which_clock_it_was_measured() -> None:
    device = "some CPU (onnxruntime 1.31, 1 thread, time on core)"
    told = {"original": {}, "merged": {}, "device": device, "precision": "fp32", "batch": 1}
    assert f"measured on {device}, fp32, batch 1" in lines(summary_view(told))


def test_a_plan_shows_what_changes_and_the_totals() -> None:
    graph = Chain(8, 16).conv(8, 3).conv(8, 3).conv(8, 3).graph()
    block = Block(1, 3)
    merged = finish(graph, block, "compose", (1, 2), (merged_spec(graph, block, (1, 2)),))
    plan = replace(MergePlan.of(graph, [merged]), latency_ms=0.5, score=-0.25, budget_ms=0.6)
    result = {
        "candidates": [c.to_json() for c in plan.candidates],
        "predicted_ms": plan.latency_ms,
        "budget_ms": plan.budget_ms,
        "score": plan.score,
        "measured_speedup": 1.5,
    }
    printed = lines(plan_view(result))
    assert "1:3 compose 1, 2 8>8 k5x5 @16x16 relu" in printed
    assert "predicted ms 0.5" in printed
    assert "measured speedup 1.50x" in printed
    assert "units untouched 1" in printed
    assert "blocks replaced 1" in printed


def test_a_calibration_shows_what_int8_loses_and_what_stays_in_float() -> None:
    source = {"source": "val", "images": 64}
    kept = ["/blocks/blocks.10/layers/layers.6/Conv", "/head/Gemm"]
    rows = [
        {
            "network": n,
            "accuracy_fp32": 0.975,
            "accuracy_int8": 0.97,
            "agreement": 0.99,
            "keep_float": k,
            "layers": [{}] * 31,
        }
        for n, k in (("original", []), ("merged", kept))
    ]
    result = {"calibrated_on": source, "judged_on": source, "qat": None, "networks": rows}
    printed = lines(calibrate_view(result), width=80)
    assert "original 97.50 % 97.00 % 99.00 % 0 of 31" in printed
    assert "merged 97.50 % 97.00 % 99.00 % 2 of 31" in printed
    assert printed[-2:] == [f"merged, in float {kept[0]}", kept[1]]
    assert "judged on source val, images 64" in printed
    assert lines(calibrate_view({"reason": "nothing is int8"})) == ["reason nothing is int8"]


def test_records_become_tables() -> None:
    engines = [
        {"precision": "fp32", "plan": "a.plan", "error": None, "deep": [1]},
        {"precision": "fp16", "plan": None, "error": "no [driver]", "deep": []},
    ]
    assert [line for line in lines(fields_view({"engines": engines})) if set(line) - set("─")] == [
        "engines",
        "precision plan error",
        "fp32 a.plan –",
        "fp16 – no [driver]",
    ]


def test_nested_values_stay_in_their_file() -> None:
    result = {
        "schema": "x@1",
        "shape": [1, 3],
        "repairs": {"none": 2, "block": 1},
        "deep": {"a": {"b": 1}},
        "error": None,
    }
    assert lines(fields_view(result)) == ["shape 1, 3", "repairs none 2, block 1", "error –"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (True, "yes"), (1234.5678, "1235"), (1e-7, "1e-07"), ([], "–"), ("[b]", "[b]")],
)
def test_values_for_people(value: object, text: str) -> None:
    assert as_text(value) == text


def test_doctor_puts_the_remedy_below_what_is_missing() -> None:
    findings = [
        {"topic": "torch", "state": "ok", "found": "2.4", "remedy": ""},
        {"topic": "tensorrt", "state": "missing", "found": "not installed", "remedy": "pip x[y]"},
    ]
    assert lines(doctor_view({"findings": findings})) == [
        "✓ torch 2.4",
        "✗ tensorrt not installed",
        "→ pip x[y]",
    ]


def timed(ms: float, **others: object) -> dict[str, Any]:
    """Returns one side of a precision of ``bench.json``."""
    names = ("p10_ms", "p50_ms", "p90_ms", "p99_ms", "best_ms")
    figures = {"throughput": 1000 / ms, "runs": 40, "method": "graph", "enqueue_ms": 0.03}
    return {**dict.fromkeys(names, ms), **figures, "power_w": None, "energy_mj": None, **others}


def bench_result(**others: object) -> dict[str, Any]:
    pair = {"precision": "fp16", "original": timed(0.5), "merged": timed(0.25), "doubts": []}
    pair |= {"speedup": 2.0, "low": 1.95, "high": 2.1}
    conditions = {"gpu_clock": "624 MHz, locked", "before": {"power_mode": "25W"}}
    body = {"comparable": True, "reason": None, "precisions": [pair], "int8": None}
    return {**body, "conditions": conditions, **others}


def test_a_benchmark_shows_both_networks_at_every_precision() -> None:
    narrow = lines(bench_view(bench_result()), 80)
    printed = [line for line in narrow if set(line) - set("─ ")]
    assert printed == [
        "Latency, ms",
        "precision network median 90 % 99 % images/s",
        "fp16 original 0.5 0.5 0.5 2000",
        "fp16 merged 0.25 0.25 0.25 4000",
        "fp16: 2.00x (1.95x to 2.10x)",
        "0.03 → 0.03 ms to launch a run",
        "GPU clock 624 MHz, locked; power mode 25W",
    ]


def test_latencies_that_do_not_compare_are_marked_before_anything_else() -> None:
    result = bench_result(comparable=False, reason="the GPU's clock is free")
    assert lines(bench_view(result))[0] == "NOT COMPARABLE: the GPU's clock is free"


def test_what_is_slower_doubtful_or_untimed_is_said() -> None:
    result = bench_result(
        int8={"over": "fp16", "speedup": 1.01, "low": 0.98, "high": 1.03, "faster": False},
        untimed=[{"precision": "fp32", "reason": "not built"}],
        power_note="no sensor",
        wall={
            **{side: {"p50_ms": 1.0, "p99_ms": 2.0} for side in ("original", "merged")},
            "comparable": True,
            "reason": None,
        },
    )
    pair = result["precisions"][0]
    pair |= {"high": 0.9, "doubts": ["merged: it varies"], "merged": timed(0.6, power_w=5.5)}
    printed = lines(bench_view(result))
    assert "fp16: 2.00x (1.95x to 0.90x); the merged network is slower" in printed
    assert "– → 5.5 W while it runs" in printed
    assert not any("mJ" in line for line in printed)
    assert "doubtful: merged: it varies" in printed
    assert "int8 against fp16: 1.01x (0.98x to 1.03x): NOT faster beyond the spread" in printed
    assert "by the wall clock: 1 → 1 ms, 99 %: 2 → 2 ms" in printed
    assert "fp32 was not timed: not built" in printed
    assert "no power: no sensor" in printed


def test_a_benchmark_that_could_not_be_made_says_why() -> None:
    result = {"comparable": False, "reason": "imported", "precisions": [], "int8": None}
    assert lines(bench_view(result)) == ["NOT COMPARABLE: imported"]


def test_a_verification_shows_what_was_compared_and_what_was_not() -> None:
    compared = {"reason": None, "max_abs": 5e-6, "max_rel": 8e-7, "finite": True}
    shares = {"agreement": 0.998, "accuracy": 0.941}
    broken = {**compared, "max_abs": None, "max_rel": None, "finite": False}
    result = {
        "images": 1000,
        "on": "test images",
        "agreement": 0.97,
        "least_agreement": 0.96,
        "fidelity": {"logits": {"kind": "classes", "agreement": 0.97, "kl": 0.0125}},
        "classes": [{"class": "cat", "images": 8, "original": 1.0, "merged": 0.75}],
        "accuracy": {"original": 0.95, "merged": 0.942, "drop": 0.009},
        "comparisons": [
            {"name": "model.onnx", **compared, **shares},
            {"name": "model.int8.onnx", **broken, "agreement": 0.5, "accuracy": None},
            {"name": "model.plan", **broken, **shares, "reason": "no driver"},
        ],
        "unverified": ["model.plan was not run: no driver"],
    }
    assert [line for line in lines(verify_view(result), 80) if set(line) - set("─ ")] == [
        "Verification",
        "against torch difference relative same class accuracy",
        "model.onnx 5.0e-06 8.0e-07 99.80 % 94.10 %",
        "model.int8.onnx not finite not finite 50.00 % –",
        "1000 test images; original and merged answer alike on 97.00 %, KL 0.0125 nats;",
        "of what was built, 96.00 %",
        "class cat: 100.00 % → 75.00 % of 8 images",
        "accuracy in torch: original 95.00 %, merged 94.20 %; worst drop 0.90 %",
        "not verified: model.plan was not run: no driver",
    ]
    unlabelled = {**result, "accuracy": dict.fromkeys(("original", "merged", "drop"))}
    told = lines(verify_view(unlabelled), 80)
    assert "1000 test images; original and merged answer alike on 97.00 %" in " ".join(told)
    assert not any("accuracy in torch" in line for line in told)
