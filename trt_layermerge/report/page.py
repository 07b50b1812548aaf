"""The pages of a run: one view of it, shown as HTML and as Markdown by the same template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from trt_layermerge.core.jsonio import write_text
from trt_layermerge.report import plots
from trt_layermerge.report.answers import Answer, answers, gaps
from trt_layermerge.report.chain import chain_picture
from trt_layermerge.report.data import Epoch, RunReport
from trt_layermerge.report.nested import Table, nested
from trt_layermerge.report.templates import BLOCK, render

WHOLE_HISTORY = 12


@dataclass(frozen=True)
class View:
    """All that the templates show: they choose words and formats, and work nothing out.

    Attributes:
        run: The run itself.
        answers: The first screen.
        gaps: What nobody checked.
        pictures: SVG by file name; None where there is nothing to draw.
        epochs: The epochs that matter.
        proofs: Certificate, verification and engine, as they were written.
    """

    run: RunReport
    answers: tuple[Answer, ...]
    gaps: tuple[str, ...]
    pictures: Mapping[str, Markup | None]
    epochs: tuple[Epoch, ...]
    proofs: Mapping[str, tuple[Table, ...]]


def view_of(run: RunReport) -> View:
    """Returns everything that the pages of a run show.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    original = run.accuracies.get("original")
    drawn = {
        "comparison": plots.comparison_plot(run.accuracies, run.bench),
        "chain": chain_picture(run.graph, run.plan, run.kinds),
        "changed": render("changed.svg", changed=run.changed) if run.changed else None,
        "frontier": plots.frontier_plot(run.frontier, run.untouched, run.plan, run.finalists),
        "prediction": plots.prediction_plot(run.finalists),
        "finetune": plots.finetune_plot(run.history, original.value if original else None),
    }
    return View(
        run=run,
        answers=answers(run),
        gaps=gaps(run),
        pictures={name: Markup(svg) if svg else None for name, svg in drawn.items()},
        epochs=_telling(run.history),
        proofs={name: nested(getattr(run, name)) for name in ("certificate", "verify", "engine")},
    )


def _telling(history: tuple[Epoch, ...]) -> tuple[Epoch, ...]:
    """Returns a short history whole, and first, best and last of a long one."""
    if len(history) <= WHOLE_HISTORY:
        return history
    judged = [e for e in history if e.accuracy is not None and e.accuracy == e.accuracy]
    best = [max(judged, key=lambda e: e.accuracy or 0.0)] if judged else []
    return tuple(dict.fromkeys([history[0], *best, history[-1]]))


def pages(view: View) -> dict[str, str]:
    """Returns ``report.html`` and its Markdown twin, by name.

    The HTML holds style and pictures, has no scripts and asks for nothing; the Markdown links its
    pictures as ``pictures/NAME.svg``.
    """
    html = render("page.html", view=view, run=view.run, contents=[])
    blocks = render("page.md", view=view, run=view.run).split(BLOCK)
    markdown = "\n\n".join(filter(None, (block.strip() for block in blocks))) + "\n"
    return {"report.html": html, "report.md": markdown}


def write_report(run: RunReport, folder: Path) -> tuple[Path, ...]:
    """Writes ``report.html``, ``report.md`` and ``pictures/*.svg``; returns their paths.

    Every file is replaced whole. The pages come last, so they never link to a missing picture.

    Args:
        run: What is shown.
        folder: Where to; made where it is missing.

    Raises:
        DeviceError: If the folder cannot be written.
        MissingDependencyError: If matplotlib is not installed.
    """
    view = view_of(run)
    pictures = {folder / "pictures" / f"{n}.svg": svg for n, svg in view.pictures.items() if svg}
    written = {folder / name: page for name, page in pages(view).items()}
    for path, words in (pictures | written).items():
        write_text(path, words)
    return *written, *pictures
