"""Writes the pages of the studies from their result files: nothing on them is typed.

python -m benchmarks.studies.report
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.studies.glyphs_page import PLOT as GLYPHS_PLOT
from benchmarks.studies.glyphs_page import glyphs_page
from benchmarks.studies.importance_page import PLOT as IMPORTANCE_PLOT
from benchmarks.studies.importance_page import importance_page
from benchmarks.studies.kinds_page import kinds_page
from benchmarks.studies.plots import glyphs_plot, importance_plot
from benchmarks.studies.settings import ROOT
from trt_layermerge.core.jsonio import write_text

RESULTS = ROOT / "docs" / "results"


@dataclass(frozen=True)
class Page:
    """A page and what makes it.

    Attributes:
        name: File of the page.
        data: File of the results, below ``data``.
        write: Results to Markdown.
        plot: File of the plot; None for none.
        draw: Results to SVG.
    """

    name: str
    data: str
    write: Callable[[Path], str]
    plot: str | None = None
    draw: Callable[[Path], str] | None = None


PAGES = (
    Page("glyphs.md", "glyphs.jsonl", glyphs_page, GLYPHS_PLOT, glyphs_plot),
    Page("kinds.md", "kinds.jsonl", kinds_page),
    Page("importance.md", "importance.jsonl", importance_page, IMPORTANCE_PLOT, importance_plot),
)


def write_pages(results: Path) -> list[Path]:
    """Returns the files that were written beside ``data``, for every study that has results."""
    written = []
    for page in PAGES:
        data = results / "data" / page.data
        if data.exists():
            write_text(results / page.name, page.write(data))
            written.append(results / page.name)
        if data.exists() and page.plot and page.draw:
            write_text(results / page.plot, page.draw(data))
            written.append(results / page.plot)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the pages."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.report", description=__doc__
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    written = write_pages(parser.parse_args(arguments).results)
    print("\n".join(map(str, written)) or "no study has results yet; run one first")
    return 0 if written else 1


if __name__ == "__main__":
    raise SystemExit(main())
