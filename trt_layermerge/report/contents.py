"""The whole page of a run, as a document that HTML and Markdown show alike."""

from __future__ import annotations

from trt_layermerge.report import background, results, speeds, text
from trt_layermerge.report.answers import answers, gaps
from trt_layermerge.report.data import RunReport
from trt_layermerge.report.document import Document
from trt_layermerge.report.rounding import rounding


def build_document(report: RunReport) -> Document:
    """Returns the page of a run. Raises ``MissingDependencyError`` without matplotlib."""
    setting = "".join(
        f", {name} {text.plain(report.summary[name])}"
        for name in ("precision", "batch")
        if name in report.summary
    )
    return Document(
        title=report.title,
        lead=f"{report.model} on {report.device}{setting}.",
        notices=speeds.notices(report),
        answers=answers(report),
        unverified=gaps(report),
        sections=(
            results.comparison(report),
            *speeds.speeds(report),
            *rounding(report),
            results.changes(report),
            results.selection(report),
            results.predictions(report),
            background.training(report),
            background.proof(report),
            background.barriers(report),
            background.origin(report),
        ),
    )
