"""Writes the pages of a run."""

from __future__ import annotations

from pathlib import Path

from trt_layermerge.core.jsonio import write_text
from trt_layermerge.report.contents import build_document
from trt_layermerge.report.data import RunReport
from trt_layermerge.report.document import Picture
from trt_layermerge.report.html import render_html
from trt_layermerge.report.markdown import PICTURE_FOLDER, render_markdown


def write_report(report: RunReport, folder: Path) -> tuple[Path, ...]:
    """Writes ``report.html``, ``report.md`` and ``pictures/*.svg``; returns their paths.

    Every file is replaced whole. The pages come last, so they never link to a missing picture.

    Raises:
        DeviceError: If the folder cannot be written.
        MissingDependencyError: If matplotlib is not installed.
    """
    document = build_document(report)
    pictures = {
        folder / PICTURE_FOLDER / f"{part.name}.svg": part.svg
        for section in document.sections
        for part in section.parts
        if isinstance(part, Picture)
    }
    for path, svg in pictures.items():
        write_text(path, svg)
    pages = folder / "report.html", folder / "report.md"
    write_text(pages[0], render_html(document))
    write_text(pages[1], render_markdown(document))
    return *pages, *pictures
