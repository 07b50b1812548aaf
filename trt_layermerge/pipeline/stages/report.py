"""``report``: everything above → ``report.html``, ``report.md`` and ``summary.json``."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence

from trt_layermerge.core.candidate import Candidate, Change
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
    Stop,
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


def _comparable(run: Run, bench: Json) -> bool:
    """Whether ``bench`` ran where, and as, the search predicts; also if nothing was benchmarked."""
    table, asked = run.latency, (bench["precision"], bench["batch"])
    measured = {key[1:] for key in table.entries}
    same = table.device.to_json() == bench["device"] and asked in measured
    return bench["original"] is None or same


def _predicted_ms(run: Run, bench: Json) -> float | None:
    """Returns the plan's prediction on the clock of ``bench``; None if that ran elsewhere."""
    promised = run.plan.latency_ms
    if promised is None or not _comparable(run, bench):
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


def report_of(run: Run) -> RunReport:
    """Returns all that the pages of a finished run show."""
    return _report(run, _result(run))


def _report(run: Run, summary: Json) -> RunReport:
    verify, frontier, bench = (_read(run, k) for k in ("verify", "frontier", "bench"))
    fit = frontier["prediction"]["fit"]  # errors of networks left out of the table's fit
    clock = _clock(run, bench) if _comparable(run, bench) else 1.0
    return RunReport(
        title=_title(run, summary),
        failed_gates=tuple(summary.get("failed_gates", ())),
        model=run.recipe.model.name,
        device=DeviceInfo.from_json(bench["device"]),
        graph=run.graph,
        plan=run.plan,
        summary=summary,
        folder=run.folder.root,
        frontier=tuple((clock * ms, score) for ms, score in frontier["points"]),
        stops=_stops(run, frontier.get("plans", ()), summary, clock),
        untouched=(clock * frontier["untouched"][0], frontier["untouched"][1]),
        finalists=_finalists(run, summary, clock),
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


def _finalists(run: Run, summary: Json, clock: float) -> tuple[Finalist, ...]:
    """Returns the plans that the search measured; of the chosen one, what ``bench`` measured."""
    return tuple(
        Finalist(
            f"{len(row['candidates'])} blocks replaced",
            clock * row["predicted_ms"],
            ms,
            row["score"],
            row["chosen"],
            row["joint_score"],
            tuple(row["race_scores"] or ()),
        )
        for row in _read(run, "finalists")["finalists"]
        if (ms := _measured_ms(row, summary, clock)) is not None
    )


def _measured_ms(row: Json, summary: Json, clock: float) -> float | None:
    """Returns what a finalist took; one whose prediction ``bench`` can judge, in ``bench``."""
    searched, benched = row["measured_ms"], summary["merged"]["latency_ms"]
    if row["chosen"] and summary["predicted_ms"] is not None and benched is not None:
        return float(benched)
    return None if searched is None else float(clock * searched)


def _stops(run: Run, plans: Sequence[Json], summary: Json, clock: float) -> tuple[Stop, ...]:
    """Returns the plans to choose from, with what the search measured of them."""
    with damage(run.folder / "finalists.json"):
        measured = {
            tuple(Candidate.from_json(c).change for c in row["candidates"]): ms
            for row in _read(run, "finalists")["finalists"]
            if (ms := _measured_ms(row, summary, clock)) is not None
        }
    plan, changes = run.plan, tuple(c.change for c in run.plan.changed)
    stops = {
        found: Stop(clock * row["predicted_ms"], row["score"], found, measured.get(found))
        for row in plans
        for found in [tuple(Change(**{**c, "kept": tuple(c["kept"])}) for c in row["changes"])]
    }
    if plan.latency_ms is not None and plan.score is not None:
        stops[changes] = Stop(
            clock * plan.latency_ms, plan.score, changes, measured.get(changes), True
        )
    return tuple(sorted(stops.values(), key=lambda stop: stop.latency_ms))


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
