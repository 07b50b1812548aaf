"""Writes pages of results, and figures in other documents, from what is recorded.

Run as ``python -m benchmarks.pages`` when something was measured anew (which writes its own page,
not the documents that quote it), or when the words of a page have changed.
"""

from __future__ import annotations

import importlib

from benchmarks.manual import pages as manual
from benchmarks.quotes import quotes
from benchmarks.results import Page
from trt_layermerge.core.jsonio import write_text

MODULES: tuple[str, ...] = (
    "bm_coverage",
    "bm_ddpm",
    "bm_demo",
    "bm_engines",
    "bm_fuzz",
    "bm_half",
    "bm_int8_latency",
    "bm_lazy",
    "bm_loading",
    "bm_onnx_files",
    "bm_post_training",
    "bm_predict",
    "bm_quantize",
    "bm_search",
    "bm_speed",
    "bm_tolerances",
    "faults.page",
)
"""Benchmarks with a page and recorded figures: each has a ``PAGE``."""

AWAITED: tuple[str, ...] = ("bm_foreign", "bm_gpu", "bm_lite0", "bm_plans")
"""Those that are still to be run: no figures of theirs are recorded yet."""


def page_of(module: str) -> Page:
    """Returns the page of a benchmark."""
    page = importlib.import_module(f"benchmarks.{module}").PAGE
    assert isinstance(page, Page)
    return page


def main() -> None:
    """Writes every page, and the figures in every document that quotes some."""
    for module in MODULES:
        page = page_of(module)
        page.write()
        print(page.path)
    manual.write()
    for quote in quotes():
        text = quote.path.read_text(encoding="utf-8")
        write_text(quote.path, quote.updated(text))


if __name__ == "__main__":
    main()
