"""Writes the pages that are made from the code: ``python -m benchmarks.manual``."""

from benchmarks.manual.pages import write

write()
