"""Latency table → search → engines → predicted against measured, on the GPU that is found.

**Never run on a GPU yet**; the road was walked on the CPU with ``--backend fake``. Run as
``python -m benchmarks.bm_gpu``, clocks locked; ``tests/gpu/README.md`` tells what it needs. For
each network: measure every candidate's specs at fp16, build random plans whole, fit, predict the
plans kept for testing; then search for plans at 1.5 and 2 times the speed, build their engines and
time them beside the original's. Weights are random, so nothing is said of accuracy: the search
keeps as many convolutions as it can. Writes ``docs/results/gpu.md``.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from benchmarks.bm_predict import Outcome, run
from benchmarks.predict_page import NETWORKS, Case, case_lines
from benchmarks.results import Page, measured_by
from trt_layermerge.backends import Backend, get_backend
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.device import Precision
from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.tables import ImportanceEntry, ImportanceTable
from trt_layermerge.errors import DeviceError, InfeasibleBudgetError
from trt_layermerge.measure.spec_model import spec_model
from trt_layermerge.measure.timing import Turns, speedup, time_models
from trt_layermerge.search import solve

DEFAULT = ("mobilenet_v2", "resnet34")
SPEEDUPS = (1.5, 2.0)
CHOICES: dict[str, dict[str, str]] = {
    "tensorrt": {},
    "tensorrt_rtx": {},
    "torch": {"device": "cuda"},
}


def first_that_runs(precision: Precision) -> Backend:
    """Returns the first backend that runs a convolution on a GPU; prints what the others lack."""
    probe = spec_model(
        ConvSpec(8, 8, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 14, 14), precision, 1
    )
    for name, options in CHOICES.items():
        try:
            backend = get_backend(name, **options)
            with backend.open(probe) as runner:
                runner.time_burst(1)
            return backend
        except DeviceError as error:
            print(f"{name}: {error}", flush=True)
    raise SystemExit("no backend runs on a GPU here")


def searched(outcome: Outcome, backend: Backend, precision: Precision) -> Json:
    """Returns plans for a speed-up, promised and measured."""
    entries = {
        c.key: ImportanceEntry(float(len(c.kept) - len(c.block)), "convolutions kept")
        for c in outcome.faster
    }
    plans = {}
    for wanted in SPEEDUPS:
        try:
            plans[wanted] = solve(
                outcome.networks.graph,
                outcome.faster,
                outcome.table,
                ImportanceTable(entries),
                outcome.case.original_ms / wanted,
                precision=precision,
            )
        except InfeasibleBudgetError as error:
            print(error, flush=True)
    networks = outcome.networks
    models = [networks.original_onnx, *map(networks.plan_onnx, plans.values())]
    reference, *timings = time_models(models, backend, Turns())
    found = []
    for (wanted, plan), timing in zip(plans.items(), timings, strict=True):
        ratio = asdict(speedup(reference, timing))
        found.append(
            {"wanted": wanted, "promised_ms": plan.latency_ms, "ms": timing.ms, "speedup": ratio}
        )
    warnings = {text for timing in (reference, *timings) for text in timing.warnings()}
    return {
        "original_ms": reference.ms,
        "method": reference.method,
        "plans": found,
        "warnings": sorted(warnings),
    }


def searched_lines(found: Json) -> list[str]:
    """Returns the Markdown lines of plans for a speed-up."""
    lines = [
        f"Original {found['original_ms']:.4f} ms, timed by {found['method']}.",
        "",
        "| asked for | promised ms | measured ms | error | speed-up (p10 to p90) |",
        "|---|---|---|---|---|",
    ]
    for plan in found["plans"]:
        promised, ms, ratio = plan["promised_ms"], plan["ms"], plan["speedup"]
        lines.append(
            f"| {plan['wanted']:g}x | {promised:.4f} | {ms:.4f} | {promised / ms - 1:+.1%} "
            f"| {ratio['value']:.2f}x ({ratio['p10']:.2f} to {ratio['p90']:.2f}) |"
        )
    return [*lines, "", *(f"- {warning}" for warning in found["warnings"])]


def text(header: Json, rows: list[Json]) -> str:
    """Returns the page."""
    lines = ["# Latency on a GPU", "", measured_by("bm_gpu", header), ""]
    lines += [f"Device: {header['device']}, {header['precision']}, batch 1."]
    for row in rows:
        lines += ["", *case_lines(Case.of(row["case"])), "", *searched_lines(row["searched"])]
    return "\n".join(lines).rstrip() + "\n"


PAGE = Page("gpu", text)


def main() -> None:
    """Measures every network, and writes the page unless the backend was chosen."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", help="instead of the first that runs on a GPU; writes nothing")
    parser.add_argument("--precision", default="fp16", choices=("fp32", "fp16"))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=DEFAULT)
    given = parser.parse_args()
    precision: Precision = given.precision
    backend = get_backend(given.backend) if given.backend else first_that_runs(precision)
    rows = []
    for name in given.networks:
        outcome = run(name, "full", backend, precision)
        rows.append({"case": outcome.case.row(), "searched": searched(outcome, backend, precision)})
        print(
            *case_lines(outcome.case), *searched_lines(rows[-1]["searched"]), sep="\n", flush=True
        )
    if not given.backend:
        PAGE.record({"device": str(backend.device()), "precision": precision}, rows)


if __name__ == "__main__":
    main()
