"""Writes the pages that are made from the code: ``python -m benchmarks.manual``."""

from __future__ import annotations

from benchmarks.manual.pages import PAGES, ROOT
from trt_layermerge.core.jsonio import write_text

for path, text in PAGES.items():
    write_text(ROOT / path, text())
    print(path)
