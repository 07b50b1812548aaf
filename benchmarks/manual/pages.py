"""Which pages are made from the code and from what is recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.manual.commands import commands_page
from benchmarks.manual.recipe import recipe_page
from benchmarks.manual.results import results_page
from trt_layermerge.core.jsonio import write_text

ROOT = Path(__file__).parents[2]

PAGES: Mapping[str, Callable[[], str]] = {
    "docs/reference/commands.md": commands_page,
    "docs/reference/recipe.md": recipe_page,
    "docs/results/index.md": results_page,
}


def write() -> None:
    """Writes every page."""
    for path, text in PAGES.items():
        write_text(ROOT / path, text())
        print(path)
