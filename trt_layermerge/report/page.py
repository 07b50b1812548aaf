"""The pages of a run: one view of it, shown as HTML and as Markdown by the same template.

The HTML is whole: style, pictures and one small script of its own, which moves the slider and shows
what is pointed at. A plotting library would weigh a megabyte for what sixty lines do here.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from markupsafe import Markup

from trt_layermerge.core.jsonio import write_text
from trt_layermerge.report import plots
from trt_layermerge.report.answers import (
    Answer,
    Step,
    answers,
    gaps,
    next_steps,
    prediction,
    shipping,
)
from trt_layermerge.report.chain import NARROW, chain_picture
from trt_layermerge.report.choice import HEAD, Row, looks_of, rows_of
from trt_layermerge.report.data import Epoch, Look, RunReport
from trt_layermerge.report.nested import Table, nested
from trt_layermerge.report.templates import BLOCK, render

WHOLE_HISTORY = 12
WIDTH = 720
"""Of a picture outside the page, in pixels: inside, it is as wide as its column."""


@dataclass(frozen=True)
class View:
    """All that the templates show: they choose words and formats, and work nothing out.

    Attributes:
        run: The run itself.
        shipping: Whether it can be shipped: the first words of the page.
        answers: The first screen below it.
        prediction: How well predictions held.
        steps: What to type next.
        gaps: What nobody checked.
        choice: The plans to choose from, below ``head``; ``looks`` are those of their blocks.
        pictures: SVG by file name; None where there is nothing to draw.
        narrow: The picture of the chain for a telephone.
        epochs: The epochs that matter.
        proofs: Certificate, verification and engine, as they were written.
    """

    run: RunReport
    shipping: Answer
    answers: tuple[Answer, ...]
    prediction: Answer
    steps: tuple[Step, ...]
    gaps: tuple[str, ...]
    choice: tuple[Row, ...]
    looks: tuple[Look, ...]
    pictures: Mapping[str, Markup | None]
    narrow: Markup
    epochs: tuple[Epoch, ...]
    proofs: Mapping[str, tuple[Table, ...]]
    head: tuple[str, ...] = HEAD


def view_of(run: RunReport) -> View:
    """Returns everything that the pages of a run show."""
    original = run.accuracies.get("original")
    limit = run.summary.get("budget_ms", run.plan.budget_ms)
    drawn = {
        "comparison": plots.comparison_plot(run.accuracies, run.bench),
        "chain": chain_picture(run.graph, run.plan, run.kinds),
        "changed": render("changed.svg", changed=run.changed) if run.changed else None,
        "frontier": plots.frontier_plot(run.frontier, run.untouched, run.stops, limit),
        "prediction": plots.prediction_plot(run.finalists),
        **plots.finetune_plots(run.history, original.value if original else None),
    }
    return View(
        run=run,
        shipping=shipping(run),
        answers=answers(run),
        prediction=prediction(run),
        steps=next_steps(run),
        gaps=gaps(run),
        choice=rows_of(run),
        looks=looks_of(run),
        pictures={name: Markup(svg) if svg else None for name, svg in drawn.items()},
        narrow=Markup(chain_picture(run.graph, run.plan, run.kinds, NARROW)),
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

    The HTML asks for nothing, and its own script is the only one that browsers run in it; the
    Markdown links its pictures as ``pictures/NAME.svg``.
    """
    html = render("page.html", view=view, run=view.run, contents=[])
    markdown = render("page.md", view=view, run=view.run)
    return {
        "report.html": document(view.run.title, html, view.looks),
        "report.md": joined(markdown),
    }


def document(title: str, body: str, looks: tuple[Look, ...] = ()) -> str:
    """Returns a whole page of HTML, which asks for nothing and runs its own script only.

    Args:
        title: Of the page.
        body: What it shows, in HTML.
        looks: Of the blocks that it shows.
    """
    script = render("script.js").strip()
    digest = b64encode(sha256(script.encode()).digest()).decode()
    return render(
        "shell.html",
        title=title,
        body=Markup(body),
        looks=looks,
        script=Markup(script),
        digest=digest,
    )


def joined(markdown: str) -> str:
    """Returns rendered Markdown with blank lines between its blocks and nowhere else."""
    return "\n\n".join(filter(None, map(str.strip, markdown.split(BLOCK)))) + "\n"


def write_report(run: RunReport, folder: Path) -> tuple[Path, ...]:
    """Writes ``report.html``, ``report.md`` and ``pictures/*.svg``; returns their paths.

    Every file is replaced whole. The pages come last, so they never link to a missing picture.

    Args:
        run: What is shown.
        folder: Where to; made where it is missing.

    Raises:
        DeviceError: If the folder cannot be written.
    """
    view = view_of(run)
    return write_pages(folder, pages(view), view.pictures)


def write_pages(
    folder: Path, pages: Mapping[str, str], pictures: Mapping[str, str | None]
) -> tuple[Path, ...]:
    """Writes pages and the pictures that their Markdown links to; returns their paths.

    Raises what ``write_report`` raises.

    Args:
        folder: Where to.
        pages: The text of each, by its name.
        pictures: SVG by name; None where there is nothing to draw.
    """
    drawn = {
        folder / "pictures" / f"{name}.svg": svg.replace('width="100%"', f'width="{WIDTH}"', 1)
        for name, svg in pictures.items()
        if svg
    }
    written = {folder / name: page for name, page in pages.items()}
    for path, words in (drawn | written).items():
        write_text(path, words)
    return *written, *drawn
