"""What stands behind the results: training, proof, barriers, and where all of it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trt_layermerge.report import text
from trt_layermerge.report.data import Epoch, RunReport
from trt_layermerge.report.document import Code, Paragraph, Part, Section, Table
from trt_layermerge.report.nested import nested_parts
from trt_layermerge.report.pictures import finetune_plot
from trt_layermerge.report.results import figure

WHOLE_HISTORY = 12


def training(report: RunReport) -> Section:
    """Returns the fine-tune curve and the epochs that matter."""
    original = report.accuracies.get("original")
    picture = figure(
        "finetune",
        finetune_plot(report.history, original.value if original else None),
        "Training loss, and accuracy on validation data. The dashed line is the original's "
        f"accuracy on {report.accuracy_data}.",
        "The merged network was not fine-tuned, or no history of it was recorded.",
    )
    if not report.history:
        return Section("training", "Fine-tuning", (picture,))
    rows = tuple(
        (str(e.epoch), text.plain(e.loss), text.percent(e.accuracy, 2))
        for e in _telling(report.history)
    )
    table = Table(("epoch", "training loss", "validation accuracy"), rows, (0, 1, 2))
    parts: tuple[Part, ...] = (picture, table)
    if len(report.history) > WHOLE_HISTORY:
        words = f"First, best and last of {len(report.history)} epochs; the rest is in the run."
        parts = (picture, Paragraph(words), table)
    return Section("training", "Fine-tuning", parts)


def _telling(history: tuple[Epoch, ...]) -> tuple[Epoch, ...]:
    """Returns a short history whole, and first, best and last of a long one."""
    if len(history) <= WHOLE_HISTORY:
        return history
    judged = [e for e in history if e.accuracy is not None and e.accuracy == e.accuracy]
    best = [max(judged, key=lambda e: e.accuracy or 0.0)] if judged else []
    return tuple(dict.fromkeys([history[0], *best, history[-1]]))


def proof(report: RunReport) -> Section:
    """Returns certificate, verification and engine sidecar as they were written."""
    parts = (
        *_object(
            "Certificate of the merge (collapsed against relaxed network):",
            report.certificate,
            "The merge was not certified.",
        ),
        *_object(
            "Verification of the exported network:",
            report.verify,
            "The exported network was not verified against the trained one.",
        ),
        *_object("Engine:", report.engine, "No engine was built in this run."),
    )
    return Section("proof", "Certificate, verification, engine", parts)


def _object(words: str, value: Mapping[str, Any] | None, otherwise: str) -> tuple[Part, ...]:
    if not value:
        return (Paragraph(otherwise),)
    fields = {name: inner for name, inner in value.items() if name != "schema"}
    return (Paragraph(words), *nested_parts(fields))


def barriers(report: RunReport) -> Section:
    """Returns what could not merge, with the reasons."""
    found = report.graph.barriers
    if not found:
        nothing = Paragraph("Tracing found nothing that merging could not cross.")
        return Section("barriers", "What could not merge", (nothing,))
    rows = tuple(("" if b.unit is None else str(b.unit), b.node, b.reason) for b in found)
    table = Table(("unit", "where", "why"), rows, (0,))
    return Section("barriers", "What could not merge", (table,))


def origin(report: RunReport) -> Section:
    """Returns all that is needed to repeat the run."""
    facts = [
        ("model", report.model),
        ("device", report.device.name),
        ("backend", f"{report.device.backend} {report.device.backend_version}"),
        ("device settings", report.device.settings or "none recorded"),
        ("input", " × ".join(map(str, report.graph.input_shape))),
        ("seed", "not recorded" if report.seed is None else str(report.seed)),
        *((f"version of {name}", version) for name, version in report.versions.items()),
        *((f"time of {name}", text.seconds(s)) for name, s in report.stage_seconds.items()),
    ]
    recipe: Part = Code(report.recipe) if report.recipe else Paragraph("No recipe was recorded.")
    return Section("origin", "How to repeat it", (Table(("", ""), tuple(facts)), recipe))
