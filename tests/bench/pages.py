"""Writes all pages of results anew from their recorded figures: ``python -m tests.bench.pages``.

For when the words of a page have changed; measuring writes its page by itself.
"""

from __future__ import annotations

import importlib

from tests.bench.results import Page

MODULES: tuple[str, ...] = (
    "bm_demo",
    "bm_engines",
    "bm_int8_latency",
    "bm_post_training",
    "bm_quantize",
    "bm_speed",
    "bm_tolerances",
)
"""Benchmarks with a page and recorded figures: each has a ``PAGE``."""


def page_of(module: str) -> Page:
    """Returns the page of a benchmark."""
    page = importlib.import_module(f"tests.bench.{module}").PAGE
    assert isinstance(page, Page)
    return page


def main() -> None:
    """Writes every page."""
    for module in MODULES:
        page = page_of(module)
        page.write()
        print(page.path)


if __name__ == "__main__":
    main()
