"""``report``: everything above → ``report.html``, ``report.md`` and ``summary.json``."""

from __future__ import annotations

from base64 import b64encode

from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.jsonio import Json, damage, read_json, write_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import AccuracyGateError, LatencyGateError
from trt_layermerge.pipeline.bench_page import bench_of
from trt_layermerge.pipeline.files import read_body, read_history
from trt_layermerge.pipeline.folder import stage_seconds
from trt_layermerge.pipeline.recipe import dump_recipe
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.pipeline.stages.bench import STAGE as BENCH
from trt_layermerge.pipeline.stages.verify import STAGE as VERIFY
from trt_layermerge.pipeline.versions import versions
from trt_layermerge.report.data import (
    Accuracy,
    Changed,
    Epoch,
    Finalist,
    PredictionError,
    RunReport,
)
from trt_layermerge.report.page import write_report
from trt_layermerge.report.summary import checked_summary
from trt_layermerge.session.built import built_engines, engine_names
from trt_layermerge.session.deployed import CALIBRATION

READS = (
    "graph.json",
    "latency.jsonl",
    "frontier.json",
    "finalists.json",
    "plan.json",
    "finetune.jsonl",
    "certificate.json",
    "export.json",
    CALIBRATION,
    "build.json",
    "bench.json",
    "verify.json",
)


def _settings(run: Run) -> Json:
    return {"recipe": run.recipe.model_dump(mode="json")}


def _run(run: Run) -> tuple[str, ...]:
    summary = _summary(run)
    write_json(run.folder / "summary.json", "summary", summary)
    written = write_report(_report(run, summary), run.folder.root)
    return "summary.json", *(str(path.relative_to(run.folder.root)) for path in written)


def _read(run: Run, kind: str) -> Json:
    return read_body(run.folder / f"{kind}.json", kind)


def _clock(run: Run, bench: Json) -> float:
    """Returns how much slower the original ran in ``bench`` than in ``latency``.

    The host's speed may have changed in between. Predictions are brought to the clock of ``bench``,
    and so is a budget that was asked for as a speed-up. 1 where nothing was benchmarked.
    """
    if bench["original"] is None:
        return 1.0
    with damage(run.folder / "plan.json"):
        return float(bench["original"]["p50_ms"] / run.plan.notes["original_ms"])


def _predicted_ms(run: Run, bench: Json) -> float | None:
    """Returns the plan's prediction on the clock of ``bench``; None if that ran elsewhere.

    Where nothing was benchmarked, the prediction is returned as it is.
    """
    table, promised = run.latency, run.plan.latency_ms
    same_device = table.device.to_json() == bench["device"]
    asked = (bench["precision"], bench["batch"])
    if bench["original"] is None:
        return promised
    if promised is None or not same_device or asked not in {key[1:] for key in table.entries}:
        return None
    return _clock(run, bench) * promised


def _budget_ms(run: Run, bench: Json) -> float | None:
    """Returns what the plan was chosen for; one asked for as a speed-up on the clock of bench."""
    budget = run.plan.budget_ms
    if budget is None or run.recipe.search.budget_ms is not None:
        return budget
    return _clock(run, bench) * budget


def _summary(run: Run) -> Json:
    """Returns ``summary.json``.

    Where nothing was benchmarked, the latencies are those that the search went by: imported, or
    none.
    """
    plan, verify, bench = run.plan, _read(run, "verify"), _read(run, "bench")
    notes, timed = plan.notes, bench["original"] is not None

    def network(side: str, version: LayerGraph | MergePlan) -> Json:
        searched = "original_ms" if side == "original" else "measured_ms"
        times = bench[side] or {"p50_ms": notes.get(searched), "p10_ms": None, "p90_ms": None}
        return {
            "accuracy": verify["accuracy"][side],
            "latency_ms": times["p50_ms"],
            "convs": len(version.convs),
            "activations": version.activation_count,
            "latency_p10_ms": times["p10_ms"],
            "latency_p90_ms": times["p90_ms"],
        }

    return checked_summary(
        {
            "original": network("original", run.graph),
            "repaired": {"accuracy": verify["repaired_accuracy"]},
            "merged": network("merged", plan),
            "speedup": bench["speedup"] if timed else notes.get("measured_speedup"),
            "predicted_ms": _predicted_ms(run, bench),
            "budget_ms": _budget_ms(run, bench),
            "certificate_max_rel_error": _read(run, "certificate")["max_rel_error"],
            "precision": bench["precision"],
            "backend": bench["device"]["backend"],
            "batch": bench["batch"],
            "seed": run.seed,
            "preprocess": run.recipe.data.preprocess.build().to_json(),
            "input": {
                "name": next(iter(_read(run, "export")["models"]["model.onnx"]["inputs"])),
                "shape": [bench["batch"], *run.recipe.model.input[1:]],
            },
            "speedup_low": bench["low"],
            "speedup_high": bench["high"],
            "device": str(DeviceInfo.from_json(bench["device"])),
            "notes": verify.get("notes", []),
            "agreement": verify["least_agreement"],
            "compared_on": f"{verify['images']} {verify['on']}",
            "metric": verify["metric"],
            "failed_gates": failed_gates(run),
        }
    )


def _report(run: Run, summary: Json) -> RunReport:
    verify, frontier, bench = (_read(run, k) for k in ("verify", "frontier", "bench"))
    fit = frontier["prediction"]["fit"]  # errors of networks left out of the table's fit
    return RunReport(
        title=_title(run, summary),
        failed_gates=tuple(summary.get("failed_gates", ())),
        model=run.recipe.model.name,
        device=DeviceInfo.from_json(bench["device"]),
        graph=run.graph,
        plan=run.plan,
        summary=summary,
        frontier=tuple((ms, score) for ms, score in frontier["points"]),
        untouched=tuple(frontier["untouched"]),
        finalists=_finalists(run),
        prediction=None
        if fit["median_error"] is None
        else PredictionError(
            fit["networks"], fit["median_error"], fit["worst_error"], fit["spearman"]
        ),
        accuracies=_accuracies(verify),
        changed=_changed(run, verify),
        history=_history(run),
        certificate=_read(run, "certificate"),
        bench=bench_of(bench),
        calibration=read_body(run.folder / CALIBRATION, "calibrations"),
        verify=verify,
        engine=_engine(run),
        unverified=(*summary["notes"], *verify["unverified"], *_not_built(run)),
        versions=versions(),
        recipe=dump_recipe(run.recipe),
        stage_seconds=stage_seconds(run.folder),
    )


def _title(run: Run, summary: Json) -> str:
    speedup, name = summary["speedup"], run.folder.root.name
    if summary.get("failed_gates"):
        return f"{name}: beyond its limits"
    return name if speedup is None else f"{name}: {speedup:.2f}x faster"


def failed_gates(run: Run) -> list[str]:
    """Returns a paragraph for each limit of the recipe that the run exceeds."""
    found = []
    for stage in (VERIFY, BENCH):
        try:
            stage.gate(run)
        except (AccuracyGateError, LatencyGateError) as error:
            found.append(str(error))
    return found


def _finalists(run: Run) -> tuple[Finalist, ...]:
    return tuple(
        Finalist(
            f"{len(row['candidates'])} blocks replaced",
            row["predicted_ms"],
            row["measured_ms"],
            row["score"],
            row["chosen"],
            row["joint_score"],
            tuple(row["race_scores"] or ()),
        )
        for row in _read(run, "finalists")["finalists"]
        if row["measured_ms"] is not None
    )


def _accuracies(verify: Json) -> dict[str, Accuracy]:
    values = {**verify["accuracy"], "repaired": verify["repaired_accuracy"]}
    return {
        name: Accuracy(values[name], verify["images"])
        for name in ("original", "repaired", "merged")
        if values[name] is not None
    }


def _changed(run: Run, verify: Json) -> tuple[Changed, ...]:
    def picture(name: str | None) -> str | None:
        path = run.folder / str(name)
        return b64encode(path.read_bytes()).decode() if name and path.is_file() else None

    return tuple(
        Changed(
            row["image"],
            row["original"],
            row["original_confidence"],
            row["merged"],
            row["merged_confidence"],
            picture(row["picture"]),
        )
        for row in verify["changed"]
    )


def _history(run: Run) -> tuple[Epoch, ...]:
    rows = read_history(run.folder / "finetune.jsonl")["rows"]
    return tuple(Epoch(row["epoch"], row["loss"], row["val_accuracy"]) for row in rows)


def _engine(run: Run) -> Json | None:
    from trt_layermerge.deploy.sidecar import sidecar_path

    sidecars = (sidecar_path(run.folder / name) for name in engine_names(run.folder.root))
    return next((read_json(path, "engine") for path in sidecars if path.is_file()), None)


def _not_built(run: Run) -> list[str]:
    return [
        f"no {built.precision} engine of the {built.network} network was built: {built.error}"
        for built in built_engines(run.folder.root)
        if built.error
    ]


def _result(run: Run) -> Json:
    path = run.folder / "summary.json"
    body = read_json(path, "summary")
    return {"schema": body.pop("schema"), **checked_summary(body)}


STAGE = Stage("report", READS, _settings, _run, _result)
